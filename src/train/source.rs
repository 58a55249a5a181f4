//! Where training rows come from: JSON lines, a JSON array or Parquet, each plain or packed, one row at a time.
//!
//! A file's first bytes say what it is, so that its name need not. No more than a row (of Parquet: a page of each column)
//! is in memory, whatever the size of the file.

use std::{
    fmt,
    fs::File,
    io::{BufRead, BufReader, Read},
    path::Path,
};

use anyhow::{Context, Result, bail};
use flate2::read::MultiGzDecoder;
use parquet::{
    file::reader::SerializedFileReader,
    record::{Field, Row, reader::RowIter},
};
use serde::{
    Deserializer,
    de::{DeserializeSeed, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// Where a row stands in its file, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Of a text file.
    Line(usize),
    /// Of a JSON array or a table.
    Row(usize),
}

impl Place {
    /// The number alone.
    pub fn number(self) -> usize {
        match self {
            Self::Line(number) | Self::Row(number) => number,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Line(number) => write!(out, "line {number}"),
            Self::Row(number) => write!(out, "row {number}"),
        }
    }
}

/// Calls `body` with every row of a file, in its order. A line that is no JSON object comes as an error, which `body` may
/// count and pass over.
///
/// **Errors**: those of `body`; a file that is not there, cut, or of a form that is not read, by its name.
pub fn for_each_row(path: &Path, mut body: impl FnMut(Place, Result<Map<String, Value>>) -> Result<()>) -> Result<()> {
    let opened = || format!("cannot open `{}`", path.display());
    let mut start = Vec::new();
    File::open(path).with_context(opened)?.take(4).read_to_end(&mut start).with_context(opened)?;
    let file = File::open(path).with_context(opened)?;
    match start.as_slice() {
        b"PAR1" => parquet_rows(path, file, &mut body),
        [0x1f, 0x8b, ..] => text_rows(path, BufReader::new(MultiGzDecoder::new(BufReader::new(file))), &mut body),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let unpacked = zstd::Decoder::new(file).with_context(|| format!("cannot unpack `{}`", path.display()))?;
            text_rows(path, BufReader::new(unpacked), &mut body)
        }
        b"ARRO" => bail!(
            "`{}` is an Arrow file; expected JSON lines, a JSON array or Parquet (`to_parquet` of Hugging Face's \
             datasets writes it)",
            path.display()
        ),
        _ => text_rows(path, BufReader::with_capacity(1 << 16, file), &mut body),
    }
}

/// JSON lines, or one array.
fn text_rows(
    path: &Path,
    mut text: impl BufRead,
    body: &mut dyn FnMut(Place, Result<Map<String, Value>>) -> Result<()>,
) -> Result<()> {
    let unreadable = || format!("cannot read `{}`", path.display());
    if text.fill_buf().with_context(unreadable)?.starts_with("\u{feff}".as_bytes()) {
        text.consume("\u{feff}".len());
    }
    let (mut line, mut number, mut is_start) = (Vec::new(), 0, true);
    loop {
        // An array is told by its first sign, before a line of it is read: it may be one line.
        if is_start && text.fill_buf().with_context(unreadable)?.trim_ascii_start().starts_with(b"[") {
            return array_rows(path, text, body);
        }
        line.clear();
        if text.read_until(b'\n', &mut line).with_context(unreadable)? == 0 {
            return Ok(());
        }
        number += 1;
        if !line.trim_ascii().is_empty() {
            is_start = false;
            body(Place::Line(number), object(path, &line, number))?;
        }
    }
}

fn object(path: &Path, line: &[u8], number: usize) -> Result<Map<String, Value>> {
    serde_json::from_slice(line).with_context(|| {
        format!("`{}` line {number}: not the expected JSON record (mend or remove this line)", path.display())
    })
}

/// The elements of one JSON array, without the array.
fn array_rows(
    path: &Path,
    text: impl Read,
    body: &mut dyn FnMut(Place, Result<Map<String, Value>>) -> Result<()>,
) -> Result<()> {
    let mut failed = None;
    let mut json = serde_json::Deserializer::from_reader(text);
    let read = json.deserialize_seq(Elements { body, failed: &mut failed }).and_then(|()| json.end());
    if let Some(error) = failed {
        return Err(error);
    }
    read.with_context(|| format!("`{}` is not one JSON array of objects", path.display()))
}

struct Elements<'a> {
    body: &'a mut dyn FnMut(Place, Result<Map<String, Value>>) -> Result<()>,
    /// The body's error, which is not of JSON.
    failed: &'a mut Option<anyhow::Error>,
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "an array of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(row) = rows.next_element_seed(Element)? {
            number += 1;
            if let Err(error) = (self.body)(Place::Row(number), Ok(row)) {
                *self.failed = Some(error);
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

struct Element;

impl<'de> DeserializeSeed<'de> for Element {
    type Value = Map<String, Value>;

    fn deserialize<D: Deserializer<'de>>(self, row: D) -> Result<Self::Value, D::Error> {
        serde::Deserialize::deserialize(row)
    }
}

fn parquet_rows(
    path: &Path,
    file: File,
    body: &mut dyn FnMut(Place, Result<Map<String, Value>>) -> Result<()>,
) -> Result<()> {
    let wrong = || format!("`{}` is not a whole Parquet file that can be read", path.display());
    let reader = SerializedFileReader::new(file).with_context(wrong)?;
    for (index, row) in RowIter::from_file_into(Box::new(reader)).enumerate() {
        let place = Place::Row(index + 1);
        let row = row.with_context(|| format!("`{}` {place}", path.display()))?;
        body(place, Ok(columns(row)))?;
    }
    Ok(())
}

fn columns(row: Row) -> Map<String, Value> {
    row.into_columns().into_iter().map(|(name, field)| (name, value(field))).collect()
}

/// A cell as JSON has it; times and decimals as texts.
fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(is) => is.into(),
        Field::Byte(number) => number.into(),
        Field::Short(number) => number.into(),
        Field::Int(number) => number.into(),
        Field::Long(number) => number.into(),
        Field::UByte(number) => number.into(),
        Field::UShort(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::ULong(number) => number.into(),
        Field::Float(number) => number.into(),
        Field::Double(number) => number.into(),
        Field::Str(text) => text.into(),
        // Some writers leave out the mark that says that bytes are a text.
        Field::Bytes(bytes) => String::from_utf8_lossy(bytes.data()).into(),
        Field::Group(row) => Value::Object(columns(row)),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        Field::MapInternal(map) => {
            let entries = map.entries().iter().cloned();
            Value::Object(entries.map(|(key, entry)| (key.to_string(), value(entry))).collect())
        }
        other => other.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(path: &Path) -> Result<Vec<(String, Value)>> {
        let mut rows = Vec::new();
        for_each_row(path, |place, row| {
            rows.push((place.to_string(), Value::Object(row?)));
            Ok(())
        })?;
        Ok(rows)
    }

    fn gzip(text: &str) -> Result<Vec<u8>> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes())?;
        Ok(encoder.finish()?)
    }

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rows").join(name)
    }

    #[test]
    fn lines_and_arrays_plain_and_packed_give_the_same_rows() -> Result<()> {
        let folder = tempfile::tempdir()?;
        // The names tell nothing: the first bytes do.
        let path = folder.path().join("rows");
        let lines = "{\"text\":\"a\"}\r\n\n{\"text\":\"b\"}";
        let array = " \n[{\"text\":\"a\"},\n {\"text\":\"b\"}]\n";
        let wanted = |places: [&str; 2]| {
            ["a", "b"]
                .iter()
                .zip(places)
                .map(|(text, place)| (place.to_owned(), serde_json::json!({"text": text})))
                .collect::<Vec<_>>()
        };
        for (bytes, places) in [
            (lines.as_bytes().to_vec(), ["line 1", "line 3"]),
            (format!("\u{feff}{lines}").into_bytes(), ["line 1", "line 3"]),
            (gzip(lines)?, ["line 1", "line 3"]),
            ([gzip(&lines[..16])?, gzip(&lines[16..])?].concat(), ["line 1", "line 3"]),
            (zstd::encode_all(lines.as_bytes(), 3)?, ["line 1", "line 3"]),
            (array.as_bytes().to_vec(), ["row 1", "row 2"]),
            (gzip(array)?, ["row 1", "row 2"]),
        ] {
            std::fs::write(&path, bytes)?;
            assert_eq!(read(&path)?, wanted(places));
        }
        std::fs::write(&path, "[]")?;
        assert!(read(&path)?.is_empty());
        Ok(())
    }

    #[test]
    fn what_pyarrow_wrote_gives_the_rows_of_the_lines_beside_it() -> Result<()> {
        let wanted: Vec<Value> = read(&fixture("rows.jsonl"))?.into_iter().map(|(_, row)| row).collect();
        assert!(wanted.len() > 3);
        for name in ["snappy.parquet", "zstd.parquet", "gzip_v1_item.parquet"] {
            let rows = read(&fixture(name))?;
            assert_eq!(rows[2].0, "row 3");
            assert_eq!(rows.into_iter().map(|(_, row)| row).collect::<Vec<_>>(), wanted, "{name}");
        }
        Ok(())
    }

    #[test]
    fn a_file_that_is_cut_or_of_another_form_is_named() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("rows.x");
        let parquet = std::fs::read(fixture("zstd.parquet"))?;
        let packed = gzip(&"{\"text\":\"some words\"}\n".repeat(50))?;
        for (bytes, expected) in [
            (parquet[..parquet.len() - 9].to_vec(), "is not a whole Parquet file"),
            (packed[..packed.len() - 9].to_vec(), "cannot read `"),
            (zstd::encode_all(&b"{\"text\":\"a\"}\n"[..], 3)?[..9].to_vec(), "cannot read `"),
            (b"[{\"text\":\"a\"},{\"te".to_vec(), "is not one JSON array of objects"),
            (b"[1, 2]".to_vec(), "is not one JSON array of objects"),
            (b"{\"text\":\"a\"}\n7\n".to_vec(), "line 2: not the expected JSON record"),
            (b"ARROW1\0\0".to_vec(), "is an Arrow file"),
        ] {
            std::fs::write(&path, bytes)?;
            let error = format!("{:#}", read(&path).expect_err(expected));
            assert!(error.contains(expected) && error.contains("rows.x"), "{error}");
        }
        let stopped = for_each_row(&fixture("zstd.parquet"), |place, _| match place {
            Place::Row(3) => bail!("enough"),
            _ => Ok(()),
        });
        assert_eq!(stopped.expect_err("the body stops").to_string(), "enough");
        std::fs::write(&path, "[{},{},{}]")?;
        let stopped = for_each_row(&path, |place, _| if place.number() == 2 { bail!("enough") } else { Ok(()) });
        assert_eq!(stopped.expect_err("the body stops").to_string(), "enough");
        Ok(())
    }
}
