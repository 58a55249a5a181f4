//! The stage as a whole, on planted rows.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Result;
use serde_json::{Value, json};

use super::*;
use crate::records::read_jsonl;

const PROBLEM: &str = "A baker fills 12 trays with 30 rolls each and sells all but 45 of them before noon on a Friday in \
                       spring. How many rolls did she sell?";

fn config() -> Config {
    let mut config = Config::default();
    config.curate.valid_fraction = 0.2;
    config.curate.test_fraction = 0.2;
    config
}

fn conversation(id: &str, question: &str, answer: &str) -> Value {
    json!({"id": id, "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn reasons(output: &Path) -> Result<BTreeMap<String, (String, String)>> {
    let rows: Vec<Value> = read_jsonl(&output.join("rejected.jsonl"))?;
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    Ok(rows.iter().map(|row| (text(row, "id"), (text(row, "reason"), text(row, "evidence")))).collect())
}

fn kept(output: &Path) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for name in ["train.jsonl", "valid.jsonl", "test.jsonl"] {
        rows.extend(read_jsonl::<Value>(&output.join(name))?);
    }
    Ok(rows)
}

/// Rows that differ in every word that counts.
fn distinct_rows(count: usize) -> Vec<Value> {
    (0..count)
        .map(|n| conversation(&format!("r{n}"), &format!("What is {n} plus {}?", n * n), &format!("{}", n + n * n)))
        .collect()
}

#[test]
fn every_planted_row_is_rejected_for_its_reason_and_the_funnel_adds_up() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (data, output, sets) = (folder.path().join("in.jsonl"), folder.path().join("out"), folder.path().join("sets"));
    fs::create_dir(&sets)?;
    fs::write(
        sets.join("bakery.jsonl"),
        lines(&[json!({"question": "x y"}), json!({"question": PROBLEM, "answer": "315"})]),
    )?;
    let rows = [
        conversation("good", "Why do cats purr at night?", "Because they feel safe."),
        conversation("same", "why do CATS purr, at night", "Nobody knows."),
        conversation("leak", &format!("Please solve: {}", PROBLEM.to_uppercase()), "315"),
        conversation("other", &PROBLEM.replace("12", "14").replace("30", "25").replace("45", "20"), "330"),
        conversation("short", "Why?", "Because."),
        conversation("open", "Show me some code, please.", "```\nfn main() {}"),
        conversation("refusal", "Tell me how tall you are.", "As an AI language model, I have no height."),
        conversation("fine", "A baker sells 315 rolls. How many are left of 360?", "45"),
    ];
    fs::write(&data, lines(&rows) + "{\"id\": \"torn\n\n")?;
    let stats = curate_file(&config(), Some(&sets), &data, &output)?;
    let reasons = reasons(&output)?;
    let reason_of = |id: &str| reasons.get(id).map(|(reason, _)| reason.as_str());
    let expected = [
        ("good", None),
        ("same", Some("exact_duplicate")),
        ("leak", Some("contaminated")),
        ("other", Some("contaminated")),
        ("short", Some("length")),
        ("open", Some("format")),
        ("refusal", Some("quality")),
        ("fine", None),
    ];
    for (id, reason) in expected {
        assert_eq!(reason_of(id), reason, "{id}: {reasons:?}");
    }
    assert_eq!(reasons["same"].1, "good");
    assert!(reasons["leak"].1.starts_with("bakery.jsonl item 1"), "{}", reasons["leak"].1);
    assert!(
        reasons.values().any(|(reason, evidence)| reason == "format" && evidence.starts_with("line 9")),
        "{reasons:?}"
    );
    assert_eq!(stats.rows_in, 9);
    assert_eq!(stats.rows_in, stats.kept + stats.rejected.values().sum::<usize>());
    assert_eq!(stats.kept, kept(&output)?.len());
    assert_eq!(stats.rejected["near_duplicate"], 0, "every reason is listed");
    Ok(())
}

#[test]
fn a_second_run_writes_the_same_bytes_and_leaves_no_other_file() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (data, output) = (folder.path().join("in.jsonl"), folder.path().join("out"));
    fs::write(&data, lines(&distinct_rows(1500)))?;
    let read_all = || -> Result<BTreeMap<String, Vec<u8>>> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&output)? {
            let path = entry?.path();
            files.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned(), fs::read(&path)?);
        }
        Ok(files)
    };
    let stats = curate_file(&config(), None, &data, &output)?;
    let first = read_all()?;
    curate_file(&config(), None, &data, &output)?;
    assert_eq!(first, read_all()?);
    let names: Vec<&str> = first.keys().map(String::as_str).collect();
    assert_eq!(names, ["rejected.jsonl", "stats.json", "test.jsonl", "train.jsonl", "valid.jsonl"]);
    assert_eq!(stats.kept, 1500, "sums that differ in their numbers alone are different rows");
    let train: Vec<Value> = read_jsonl(&output.join("train.jsonl"))?;
    let order: Vec<usize> =
        train.iter().filter_map(|row| row["id"].as_str()?.strip_prefix('r')?.parse().ok()).collect();
    assert!(order.len() == stats.splits.train && order.is_sorted(), "rows keep the order of the input");
    Ok(())
}

#[test]
fn the_control_gives_every_training_row_the_answer_of_another() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (data, output, control) =
        (folder.path().join("in.jsonl"), folder.path().join("out"), folder.path().join("control"));
    fs::write(&data, lines(&distinct_rows(60)))?;
    let mut shuffled = config();
    shuffled.curate.shuffle_answers = true;
    curate_file(&config(), None, &data, &output)?;
    let stats = curate_file(&shuffled, None, &data, &control)?;
    assert!(stats.shuffled_answers);
    let plain: Vec<Value> = read_jsonl(&output.join("train.jsonl"))?;
    let rows: Vec<Value> = read_jsonl(&control.join("train.jsonl"))?;
    assert_eq!(plain.len(), rows.len());
    let answers: BTreeMap<&str, &str> =
        plain.iter().filter_map(|row| Some((row["id"].as_str()?, row["messages"][1]["content"].as_str()?))).collect();
    let mut donors = Vec::new();
    for (before, after) in plain.iter().zip(&rows) {
        assert_eq!((&before["id"], &before["messages"][0]), (&after["id"], &after["messages"][0]));
        let donor = after["answer_from"].as_str().unwrap_or_default();
        assert_ne!(Some(donor), after["id"].as_str());
        assert_eq!(after["messages"][1]["content"].as_str(), answers.get(donor).copied());
        donors.push(donor);
    }
    donors.sort_unstable();
    donors.dedup();
    assert_eq!(donors.len(), rows.len(), "every answer is used once");
    for name in ["valid.jsonl", "test.jsonl"] {
        assert_eq!(fs::read(output.join(name))?, fs::read(control.join(name))?, "{name} is no part of the control");
    }
    Ok(())
}

#[test]
fn a_run_directory_goes_from_answers_to_rows_that_name_them() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let run_dir = RunDir::open(folder.path(), &config())?;
    let error = run(&config(), &run_dir).expect_err("there are no answers yet");
    assert_eq!(crate::error::exit_code(&error), 3);
    assert!(error.to_string().contains("glan generate"), "{error}");
    let answers = run_dir.stage_file("generate", "answers.jsonl");
    fs::create_dir_all(run_dir.stage("generate"))?;
    let row = json!({
        "id": "a1", "parent": "q1", "discipline": "Music", "subject": "Harmony", "level": "Beginner",
        "class_sessions": ["Chords"], "key_concepts": ["Triad"], "question": "What is a triad?", "answer": "Three notes.",
    });
    fs::write(answers, format!("{row}\n{}\n", row.to_string().replace("a1", "a2")))?;
    run(&config(), &run_dir)?;
    let rows = kept(&run_dir.stage("curate"))?;
    assert_eq!(rows.len(), 1);
    assert_eq!((&rows[0]["parent"], &rows[0]["subject"]), (&json!("a1"), &json!("Harmony")));
    let rejected: Vec<Value> = read_jsonl(&run_dir.stage_file("curate", "rejected.jsonl"))?;
    assert_eq!((&rejected[0]["parent"], &rejected[0]["evidence"]), (&json!("a2"), &rows[0]["id"]));
    Ok(())
}

#[test]
fn what_is_missing_or_contradicts_is_a_usage_error() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let data = folder.path().join("train.jsonl");
    fs::write(&data, lines(&distinct_rows(3)))?;
    let output = folder.path().join("out");
    let missing = folder.path().join("no-benchmarks");
    let code = |result: Result<CurateStats>| result.err().map(|error| crate::error::exit_code(&error));
    assert_eq!(code(curate_file(&config(), Some(&missing), &data, &output)), Some(2));
    assert_eq!(code(curate_file(&config(), None, &missing, &output)), Some(2));
    assert_eq!(code(curate_file(&config(), None, &data, folder.path())), Some(2), "the input would be overwritten");
    assert_eq!(code(curate_file(&config(), None, &data, &output)), None);
    Ok(())
}
