//! Reads benchmark files: JSON lines, gzipped or not.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The file of a benchmark under the data folder, as `NAME` or `NAME.gz`.
///
/// **Errors**: name both places.
pub fn locate(data_dir: &Path, name: &str) -> Result<PathBuf> {
    let plain = data_dir.join(name);
    let gzipped = data_dir.join(format!("{name}.gz"));
    match [&plain, &gzipped].into_iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None if data_dir.as_os_str().is_empty() => {
            bail!("needs `{name}` or `{name}.gz` in a data folder (`evaluate.data_dir` or --data), and none is named")
        }
        None => bail!("expected `{}` or `{}`; neither is there", plain.display(), gzipped.display()),
    }
}

/// The rows of a benchmark file with their 1-based line numbers.
pub fn read_rows(data_dir: &Path, name: &str) -> Result<Vec<(usize, Value)>> {
    let path = locate(data_dir, name)?;
    let mut text = String::new();
    let file = File::open(&path).with_context(|| format!("cannot open `{}`", path.display()))?;
    if path.extension().is_some_and(|extension| extension == "gz") {
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text)
    } else {
        { file }.read_to_string(&mut text)
    }
    .with_context(|| format!("cannot read `{}`", path.display()))?;
    parse_rows(&text, &path.display().to_string())
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

/// The choices of a row and the index of the right one.
pub fn choices(row: &Value) -> Result<(Vec<String>, usize)> {
    let choices: Vec<String> =
        serde_json::from_value(row["choices"].clone()).context("expected a list of strings under `choices`")?;
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
