//! Benchmark files in every form.

use std::{io::Write, path::Path};

use anyhow::Result;

use super::benchmarks::{parse_jsonl, read_folder};

fn texts_of(folder: &Path) -> Vec<(String, usize, String, Option<String>)> {
    let mut texts = Vec::new();
    read_folder(folder, &mut |text| {
        texts.push((text.source, text.index, text.question, text.answer));
        Ok(())
    })
    .expect("a readable folder");
    texts
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

#[test]
fn every_format_is_read_packed_and_plain() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("sub"))?;
    std::fs::write(
        at("a.jsonl"),
        "{\"question\":\"Q1\",\"answer\":\"A1\"}\nbroken\n\n{\"prompt\":{\"text\":\"Q2\"}}\n",
    )?;
    std::fs::write(at("b.json"), "{\"examples\":[{\"input\":\"Q3\",\"target\":\"A3\"},{\"input\":\"Q4\"}]}")?;
    std::fs::write(at("c.csv.gz"), gzip("\u{feff}Type,Question,Best Answer\r\nx,\"Q5, \"\"so\"\"\nto say\",A5\r\n"))?;
    std::fs::write(at("sub/d.tsv"), "id\tsentence\n7\tQ6\n")?;
    std::fs::write(at("notes.txt"), "question")?;
    let expected = [
        ("a.jsonl", 0, "Q1", Some("A1")),
        ("a.jsonl", 3, "Q2", None),
        ("b.json", 0, "Q3", Some("A3")),
        ("b.json", 1, "Q4", None),
        ("c.csv.gz", 0, "Q5, \"so\"\nto say", Some("A5")),
        ("sub/d.tsv", 0, "Q6", None),
    ];
    let expected: Vec<_> = expected
        .map(|(source, index, question, answer)| {
            (source.to_owned(), index, question.to_owned(), answer.map(str::to_owned))
        })
        .into();
    assert_eq!(texts_of(folder.path()), expected);
    Ok(())
}

#[test]
fn unknown_keys_tables_without_a_heading_and_lists_are_read() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    std::fs::write(
        at("a.csv"),
        "Which of the two boxes is heavier?,the red one,the blue one,B\nWhich of the two is light?,x,y,A\n",
    )?;
    std::fs::write(
        at("b.jsonl"),
        "{\"uid\":\"x y\",\"aufgabe\":\"How many legs do two cats have?\"}\n{\"turns\":[\"Q1\",\"Q2\"]}\n",
    )?;
    std::fs::write(at("c.json"), "[\"Name a river that flows north.\", \"too short\"]")?;
    let expected = [
        ("a.csv", 0, "Which of the two boxes is heavier?", None),
        ("a.csv", 1, "Which of the two is light?", None),
        ("b.jsonl", 0, "How many legs do two cats have?", None),
        ("b.jsonl", 1, "Q1", None),
        ("b.jsonl", 1, "Q2", None),
        ("c.json", 0, "Name a river that flows north.", None),
    ];
    let expected: Vec<_> = expected
        .map(|(source, index, question, answer): (_, _, _, Option<&str>)| {
            (source.to_owned(), index, question.to_owned(), answer.map(str::to_owned))
        })
        .into();
    assert_eq!(texts_of(folder.path()), expected);
    Ok(())
}

#[test]
fn choices_are_found_in_every_form() {
    let choices = |line: &str| parse_jsonl("x", line).pop().map(|text| text.choices).unwrap_or_default();
    for line in [
        r#"{"question":"Q","choices":["one","two"]}"#,
        r#"{"question":"Q","options":["(A)one","(B) two"]}"#,
        r#"{"question":"Q","choices":{"text":["one","two"],"label":["A","B"]}}"#,
        r#"{"question":{"stem":"Q","choices":[{"text":"one","label":"A"},{"text":"two","label":"B"}]}}"#,
        r#"{"question":"Q","A":"one","B":"two","answer":"A"}"#,
        r#"{"question":"Q","mc1_targets":{"one":1,"two":0}}"#,
        r#"{"goal":"Q","sol1":"one","sol2":"two"}"#,
    ] {
        assert_eq!(choices(line), ["one", "two"], "{line}");
    }
}

#[test]
fn answers_are_found_by_text_number_letter_and_blank() {
    let answer = |line: &str| parse_jsonl("x", line).pop().and_then(|text| text.answer);
    assert_eq!(answer(r#"{"question":"Q","choices":["a","b"],"answer":1}"#).as_deref(), Some("b"));
    assert_eq!(answer(r#"{"question":"Q","options":["(A)2","(B)4"],"label":"B"}"#).as_deref(), Some("4"));
    assert_eq!(answer(r#"{"question":"Q","choices":["a"],"answer":9}"#), None);
    let blank = parse_jsonl("x", r#"{"sentence":"so _ won","option1":"Ann","option2":"Bo","answer":"2"}"#);
    assert_eq!(blank[0].question, "so Bo won");
}

#[test]
fn parquet_gives_the_texts_of_the_same_rows_as_json_lines_and_links_are_followed() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rows");
    let texts = |name: &str| {
        // As the Hugging Face cache has it: a link to a blob without a name.
        let folder = tempfile::tempdir().expect("a folder");
        let blob = folder.path().join("blob");
        std::fs::copy(fixtures.join(name), &blob).expect("a copy");
        let snapshot = folder.path().join("snapshots");
        std::fs::create_dir(&snapshot).expect("a folder");
        #[cfg(unix)]
        std::os::unix::fs::symlink(&blob, snapshot.join(name)).expect("a link");
        #[cfg(not(unix))]
        std::fs::copy(&blob, snapshot.join(name)).expect("a copy");
        let mut texts = Vec::new();
        let files = read_folder(folder.path(), &mut |text| {
            texts.push((text.index, text.question, text.answer, text.choices));
            Ok(())
        });
        assert_eq!(files.expect("a folder that can be read"), 1);
        texts
    };
    let expected = texts("rows.jsonl");
    assert!(expected.len() > 10, "{expected:?}");
    for name in ["snappy.parquet", "zstd.parquet", "gzip_v1_item.parquet"] {
        assert_eq!(texts(name), expected, "{name}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("cut.parquet"), b"PAR1 and no more").expect("written");
    assert_eq!(read_folder(folder.path(), &mut |_| Ok(())).expect("damaged files are skipped"), 1);
}

#[test]
fn a_missing_folder_is_a_usage_error_that_names_it() {
    let error = read_folder(Path::new("no/such/folder"), &mut |_| Ok(())).expect_err("it is missing");
    assert_eq!(crate::error::exit_code(&error), 2);
    assert!(error.to_string().contains("no/such/folder"), "{error}");
}
