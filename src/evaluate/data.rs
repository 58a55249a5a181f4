//! Reads benchmark files: JSON lines, JSON and tables, gzipped or not, from a data folder or the Hugging Face cache.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::hub_data;

/// Where a benchmark file is.
enum Place {
    /// In the data folder.
    Folder(PathBuf),
    /// In the Hugging Face cache, under another form.
    Hub(hub_data::Found),
    /// In the program.
    Bundled(&'static str),
}

/// Examples and primers that lm-evaluation-harness keeps in its task files (MIT licence, `fewshot/LICENSE`).
const BUNDLED: [(&str, &str); 4] = [
    ("fewshot/bbh_cot_3shot.json", include_str!("tasks/fewshot/bbh_cot_3shot.json")),
    ("fewshot/gsm8k_cot_8shot.json", include_str!("tasks/fewshot/gsm8k_cot_8shot.json")),
    ("fewshot/minerva_math_4shot.json", include_str!("tasks/fewshot/minerva_math_4shot.json")),
    ("fewshot/truthfulqa_primer.json", include_str!("tasks/fewshot/truthfulqa_primer.json")),
];

fn find(data_dir: &Path, name: &str) -> Result<Place> {
    let plain = data_dir.join(name);
    let gzipped = data_dir.join(format!("{name}.gz"));
    let has_folder = !data_dir.as_os_str().is_empty();
    if let Some(path) = [&plain, &gzipped].into_iter().find(|path| path.is_file()) {
        return Ok(Place::Folder(path.clone()));
    }
    if let Some((_, text)) = BUNDLED.iter().find(|(bundled, _)| *bundled == name) {
        return Ok(Place::Bundled(text));
    }
    if let Some(found) = hub_data::find(data_dir, name) {
        return Ok(Place::Hub(found));
    }
    let hub = hub_data::repository(name)
        .map_or_else(String::new, |data_set| format!("; nor is the data set `{data_set}` in the Hugging Face cache"));
    if has_folder {
        bail!("expected `{}` or `{}`; neither is there{hub}", plain.display(), gzipped.display());
    }
    bail!("needs `{name}` or `{name}.gz` in a data folder (`evaluate.data_dir` or --data), and none is named{hub}")
}

/// The file of a benchmark: `NAME` or `NAME.gz` under the data folder, or the first of the Hugging Face cache's that
/// stand for it.
///
/// **Errors**: name the places.
pub fn locate(data_dir: &Path, name: &str) -> Result<PathBuf> {
    Ok(match find(data_dir, name)? {
        Place::Folder(path) => path,
        Place::Hub(found) => found.files.into_iter().next().unwrap_or_default(),
        Place::Bundled(_) => PathBuf::from(name),
    })
}

/// The first of `names` that lies in the data folder, else the first that is anywhere: what a user put into the folder is
/// not passed over for a cache.
pub fn nearest<'a>(data_dir: &Path, names: &[&'a str]) -> Option<&'a str> {
    let found = |in_folder: bool| {
        names.iter().copied().find(|name| match find(data_dir, name) {
            Ok(Place::Folder(_)) => true,
            Ok(_) => !in_folder,
            Err(_) => false,
        })
    };
    found(true).or_else(|| found(false))
}

/// The text of a benchmark file, unpacked.
pub fn read_text(data_dir: &Path, name: &str) -> Result<String> {
    let path = match find(data_dir, name)? {
        Place::Folder(path) => path,
        Place::Hub(found) => return found.text(),
        Place::Bundled(text) => return Ok(text.to_owned()),
    };
    let mut text = String::new();
    let file = File::open(&path).with_context(|| format!("cannot open `{}`", path.display()))?;
    if path.extension().is_some_and(|extension| extension == "gz") {
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text)
    } else {
        { file }.read_to_string(&mut text)
    }
    .with_context(|| format!("cannot read `{}`", path.display()))?;
    Ok(text)
}

/// A benchmark file that is one JSON value.
pub fn read_json(data_dir: &Path, name: &str) -> Result<Value> {
    serde_json::from_str(&read_text(data_dir, name)?).with_context(|| format!("`{name}`: not JSON"))
}

/// The rows of a benchmark file with their 1-based line numbers.
pub fn read_rows(data_dir: &Path, name: &str) -> Result<Vec<(usize, Value)>> {
    parse_rows(&read_text(data_dir, name)?, &locate(data_dir, name)?.display().to_string())
}

/// Rows with their line numbers, shared.
type SharedRows = Arc<Vec<(usize, Value)>>;

/// The files that were read last, by path. Tasks of one benchmark are read one after another from the same few files.
static LAST_READ: Mutex<Vec<(PathBuf, SharedRows)>> = Mutex::new(Vec::new());

/// So many files are kept: the documents and the few-shot pool of a benchmark.
const KEPT_FILES: usize = 2;

/// [`read_rows`] for files that many tasks share.
pub fn shared_rows(data_dir: &Path, name: &str) -> Result<SharedRows> {
    let path = locate(data_dir, name)?;
    let mut last = LAST_READ.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, rows)) = last.iter().find(|(other, _)| *other == path) {
        return Ok(rows.clone());
    }
    let rows = Arc::new(read_rows(data_dir, name)?);
    last.truncate(KEPT_FILES - 1);
    last.insert(0, (path, rows.clone()));
    Ok(rows)
}

/// The rows of a table with a header, as objects of strings, with the lines on which they begin.
///
/// Fields are separated by `delimiter`; a field in double quotes may hold it, line ends and doubled quotes (RFC 4180).
pub fn read_table(data_dir: &Path, name: &str, delimiter: char) -> Result<Vec<(usize, Value)>> {
    let text = read_text(data_dir, name)?;
    let mut records = table_records(text.strip_prefix('\u{feff}').unwrap_or(&text), delimiter).into_iter();
    let (_, header) = records.next().with_context(|| format!("`{name}` is empty; expected a line of column names"))?;
    records
        .map(|(line, fields)| {
            if fields.len() != header.len() {
                bail!("`{name}` line {line}: {} fields, but {} columns are named", fields.len(), header.len());
            }
            let row: serde_json::Map<_, _> =
                header.iter().cloned().zip(fields.into_iter().map(Value::String)).collect();
            Ok((line, Value::Object(row)))
        })
        .collect()
}

fn table_records(text: &str, delimiter: char) -> Vec<(usize, Vec<String>)> {
    let mut records = Vec::new();
    let (mut fields, mut field) = (Vec::new(), String::new());
    let (mut line, mut begun, mut quoted) = (1, 1, false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        line += usize::from(character == '\n');
        match character {
            '"' if quoted && characters.next_if_eq(&'"').is_some() => field.push('"'),
            '"' if quoted => quoted = false,
            _ if quoted => field.push(character),
            '"' if field.is_empty() && delimiter == ',' => quoted = true,
            '\r' if characters.peek() == Some(&'\n') => {}
            '\n' => {
                fields.push(std::mem::take(&mut field));
                records.push((begun, std::mem::take(&mut fields)));
                begun = line;
            }
            _ if character == delimiter => fields.push(std::mem::take(&mut field)),
            _ => field.push(character),
        }
    }
    if !field.is_empty() || !fields.is_empty() {
        fields.push(field);
        records.push((begun, fields));
    }
    records.retain(|(_, fields)| fields.len() > 1 || !fields[0].is_empty());
    records
}

/// The rows of JSON lines.
///
/// Lines end at "\n" alone: some benchmarks hold U+2028 and its like inside their strings.
pub fn parse_rows(text: &str, origin: &str) -> Result<Vec<(usize, Value)>> {
    text.split('\n')
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            let row = serde_json::from_str(line).with_context(|| format!("`{origin}` line {}: not JSON", index + 1))?;
            Ok((index + 1, row))
        })
        .collect()
}

/// Turns rows into documents, naming the file and the line of a row that is not as expected.
pub fn documents<T>(rows: Vec<(usize, Value)>, origin: &str, document: impl Fn(Value) -> Result<T>) -> Result<Vec<T>> {
    rows.into_iter().map(|(line, row)| document(row).with_context(|| format!("`{origin}` line {line}"))).collect()
}

/// A string of a row.
pub fn string(row: &Value, key: &str) -> Result<String> {
    match &row[key] {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => bail!("expected a string under `{key}`"),
    }
}

/// A list of strings of a row.
pub fn strings(row: &Value, key: &str) -> Result<Vec<String>> {
    serde_json::from_value(row[key].clone()).with_context(|| format!("expected a list of strings under `{key}`"))
}

/// The choices of a row and the index of the right one.
pub fn choices(row: &Value) -> Result<(Vec<String>, usize)> {
    let choices = strings(row, "choices")?;
    match row["answer"].as_u64().map(|index| index as usize) {
        Some(index) if index < choices.len() => Ok((choices, index)),
        _ => bail!("expected under `answer` the index of one of the {} choices", choices.len()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn gzipped_and_plain_files_give_the_same_rows() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let text = "{\"a\": \"x\u{2028}y\"}\n\n{\"a\": \"z\"}\n";
        std::fs::write(folder.path().join("plain.jsonl"), text)?;
        let file = File::create(folder.path().join("packed.jsonl.gz"))?;
        let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::default());
        encoder.write_all(text.as_bytes())?;
        encoder.finish()?;
        let plain = read_rows(folder.path(), "plain.jsonl")?;
        assert_eq!(plain, read_rows(folder.path(), "packed.jsonl")?);
        assert_eq!(plain.iter().map(|row| row.0).collect::<Vec<_>>(), [1, 3]);
        Ok(())
    }

    #[test]
    fn a_table_may_hold_commas_quotes_and_lines_in_quotes() {
        let text = "a,b\r\n\"x, \"\"y\"\"\nz\",2\n,\n";
        let expected = [(1, vec!["a", "b"]), (2, vec!["x, \"y\"\nz", "2"]), (4, vec!["", ""])];
        let expected = expected.map(|(line, fields)| (line, fields.into_iter().map(str::to_owned).collect::<Vec<_>>()));
        assert_eq!(table_records(text, ','), expected);
        assert_eq!(table_records("a\t\"b\n", '\t'), [(1, vec!["a".to_owned(), "\"b".to_owned()])]);
    }

    #[test]
    fn a_file_of_the_folder_goes_before_one_of_a_cache() -> Result<()> {
        let names = ["hellaswag/hellaswag_val.jsonl", "hellaswag/hellaswag_val_1000.jsonl"];
        let folder = tempfile::tempdir()?;
        let put = |path: &str| -> Result<()> {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().context("it lies in a folder")?)?;
            Ok(std::fs::write(path, "{}\n")?)
        };
        put("hub/datasets--Rowan--hellaswag/snapshots/a/data/validation-00000-of-00001.jsonl")?;
        assert_eq!(nearest(folder.path(), &names), Some(names[0]), "from the cache");
        put(names[1])?;
        assert_eq!(nearest(folder.path(), &names), Some(names[1]));
        put(names[0])?;
        assert_eq!(nearest(folder.path(), &names), Some(names[0]));
        assert_eq!(nearest(folder.path(), &["unknown/test.jsonl"]), None);
        Ok(())
    }

    #[test]
    fn a_missing_file_is_named_with_both_spellings() {
        let error = read_rows(Path::new("nowhere"), "gsm8k/test.jsonl").expect_err("there is no such folder");
        let message = format!("{error:#}");
        assert!(message.contains("nowhere/gsm8k/test.jsonl.gz"), "{message}");
    }

    #[test]
    fn a_row_with_an_answer_out_of_range_names_its_line() {
        let rows = parse_rows("\n{\"choices\": [\"a\"], \"answer\": 1}\n", "f.jsonl").expect("it is JSON");
        let error = documents(rows, "f.jsonl", |row| choices(&row)).expect_err("there is no choice 1");
        assert!(format!("{error:#}").contains("`f.jsonl` line 2"), "{error:#}");
    }
}
