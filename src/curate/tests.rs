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

/// No model is configured.
struct NoModels;

impl Models for NoModels {
    fn language_model(&mut self, _: Role) -> Result<Box<dyn LanguageModel>> {
        anyhow::bail!("no model is configured")
    }

    fn encoder(&mut self) -> Result<Box<dyn TextEncoder>> {
        anyhow::bail!("no encoder is configured")
    }
}

fn curate_file(config: &Config, folder: Option<&Path>, data: &Path, output: &Path) -> Result<CurateStats> {
    super::curate_file(config, folder, data, output, &mut NoModels)
}

/// Every file under a folder, by its path there.
fn read_all(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            files.extend(read_all(&path)?.into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            files.insert(name, fs::read(&path)?);
        }
    }
    Ok(files)
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
    let stats = curate_file(&config(), None, &data, &output)?;
    let first = read_all(&output)?;
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    one_thread.install(|| curate_file(&config(), None, &data, &output))?;
    assert_eq!(first, read_all(&output)?);
    let names: Vec<&str> = first.keys().map(String::as_str).collect();
    let expected = [
        "audit.json",
        "dataset/README.md",
        "dataset/alpaca/test.jsonl",
        "dataset/alpaca/train.jsonl",
        "dataset/alpaca/valid.jsonl",
        "dataset/axolotl.yaml",
        "dataset/data/test-00000-of-00001.parquet",
        "dataset/data/train-00000-of-00001.parquet",
        "dataset/data/valid-00000-of-00001.parquet",
        "dataset/dataset_info.json",
        "dataset/sharegpt/test.jsonl",
        "dataset/sharegpt/train.jsonl",
        "dataset/sharegpt/valid.jsonl",
        "rejected.jsonl",
        "scores.jsonl",
        "stats.json",
        "test.jsonl",
        "train.jsonl",
        "valid.jsonl",
    ];
    assert_eq!(names, expected);
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
    let error = run(&config(), &run_dir, &mut NoModels).expect_err("there are no answers yet");
    assert_eq!(crate::error::exit_code(&error), 3);
    assert!(error.to_string().contains("glan generate"), "{error}");
    let answers = run_dir.stage_file("generate", "answers.jsonl");
    fs::create_dir_all(run_dir.stage("generate"))?;
    let row = json!({
        "id": "a1", "parent": "q1", "discipline": "Music", "subject": "Harmony", "level": "Beginner",
        "class_sessions": ["Chords"], "key_concepts": ["Triad"], "question": "What is a triad?", "answer": "Three notes.",
    });
    fs::write(answers, format!("{row}\n{}\n", row.to_string().replace("a1", "a2")))?;
    run(&config(), &run_dir, &mut NoModels)?;
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

#[test]
fn thresholds_cut_by_columns_that_every_row_has() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (data, output) = (folder.path().join("in.jsonl"), folder.path().join("out"));
    let rows = [
        conversation("right", "What is 3 plus 4 then?", "3 + 4 = 7"),
        conversation("wrong", "What is 5 plus 4 then?", "5 + 4 = 8"),
        conversation("rude", "Who lives next door?", "A worthless idiot."),
        conversation("refusal", "How tall are you?", "As an AI language model, I have no height."),
    ];
    fs::write(&data, lines(&rows))?;
    let mut config = config();
    config.curate.thresholds = vec!["arithmetic_wrong <= 0".into(), "toxic_words < 2".into()];
    let stats = curate_file(&config, None, &data, &output)?;
    let reasons = reasons(&output)?;
    assert_eq!(reasons["wrong"], ("threshold".into(), "arithmetic_wrong is 1, asked for <= 0".into()));
    assert_eq!(reasons["rude"].0, "threshold");
    assert_eq!((stats.kept, stats.rejected["threshold"], stats.rejected["quality"]), (1, 2, 1));
    let scores: Vec<Value> = read_jsonl(&output.join("scores.jsonl"))?;
    let outcomes: Vec<&str> = scores.iter().filter_map(|row| row["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["kept", "threshold", "threshold", "quality"]);
    assert_eq!(
        (&scores[1]["arithmetic_wrong"], &scores[3]["refusal"], &scores[0]["ifd"]),
        (&json!(1), &json!(1), &Value::Null)
    );
    let audit: Value = crate::records::read_json(&output.join("audit.json"))?;
    let stages: Vec<&str> =
        audit["stages"].as_array().into_iter().flatten().filter_map(|stage| stage["stage"].as_str()).collect();
    assert_eq!(stages[..5], ["all", "after format", "after length", "after quality", "after threshold"]);
    let toxic = |stage: usize| &audit["stages"][stage]["representation"]["toxic"]["categories"]["insult"]["mentions"];
    assert_eq!((toxic(0), toxic(4)), (&json!(2), &json!(0)), "dropping flagged rows shows in the audit");
    Ok(())
}

/// Rows of two disciplines, one ten times as large, with key concepts.
fn taught_rows() -> Vec<Value> {
    (0..440)
        .map(|n| {
            let discipline = if n % 11 == 0 { "Music" } else { "Physics" };
            let mut row = conversation(&format!("r{n}"), &format!("She asks {n} plus {}?", n * n), "He told his son.");
            row["discipline"] = json!(discipline);
            row["subject"] = json!("S");
            row["key_concepts"] = json!([format!("c{}", n % 60)]);
            row
        })
        .collect()
}

#[test]
fn quotas_even_the_disciplines_and_the_audit_shows_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (data, output) = (folder.path().join("in.jsonl"), folder.path().join("out"));
    fs::write(&data, lines(&taught_rows()))?;
    let mut config = config();
    config.curate.max_rows_per_discipline = 40;
    let stats = curate_file(&config, None, &data, &output)?;
    assert_eq!((stats.rows_in, stats.kept, stats.rejected["quota"]), (440, 80, 360));
    let audit: Value = crate::records::read_json(&output.join("audit.json"))?;
    let evenness = |stage: &Value| stage["coverage"]["disciplines_entropy"].as_f64();
    let stages = audit["stages"].as_array().expect("stages");
    let quota = stages.iter().find(|stage| stage["stage"] == "after quota").expect("the quota's stage");
    assert!(
        evenness(&stages[0]) < Some(0.5) && evenness(quota) == Some(1.0),
        "{:?} {:?}",
        evenness(&stages[0]),
        evenness(quota)
    );
    Ok(())
}

#[test]
fn concepts_of_the_test_are_not_trained() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (data, output) = (folder.path().join("in.jsonl"), folder.path().join("out"));
    fs::write(&data, lines(&taught_rows()))?;
    let mut config = config();
    config.curate.test_per_discipline = 10;
    let stats = curate_file(&config, None, &data, &output)?;
    assert_eq!(stats.splits.test, 20);
    assert_eq!(stats.rows_in, stats.kept + stats.rejected.values().sum::<usize>());
    let concepts = |name: &str| -> Result<Vec<(Value, Value)>> {
        let rows: Vec<Value> = read_jsonl(&output.join(name))?;
        Ok(rows.iter().map(|row| (row["discipline"].clone(), row["key_concepts"][0].clone())).collect())
    };
    let (test, train, valid) = (concepts("test.jsonl")?, concepts("train.jsonl")?, concepts("valid.jsonl")?);
    assert!(test.iter().all(|concept| !train.contains(concept) && !valid.contains(concept)));
    assert!(stats.splits.train > 100 && stats.splits.valid > 10, "{:?}", stats.splits);
    Ok(())
}

#[test]
fn counterfactuals_even_the_genders_and_a_second_audit_shows_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (data, output) = (folder.path().join("in.jsonl"), folder.path().join("out"));
    let rows: Vec<Value> = (0..300)
        .map(|n| conversation(&format!("r{n}"), &format!("He has {n} and {} apples.", n * n), "He gave his son one."))
        .collect();
    fs::write(&data, lines(&rows))?;
    let mut config = config();
    config.curate.counterfactual_fraction = 0.5;
    let stats = curate_file(&config, None, &data, &output)?;
    assert!(stats.counterfactual_rows.abs_diff(stats.splits.train / 2) < 40, "{stats:?}");
    let audit: Value = crate::records::read_json(&output.join("audit.json"))?;
    let stages = audit["stages"].as_array().expect("stages");
    let share = |stage: &Value| stage["representation"]["gender"]["categories"]["female"]["share"].as_f64();
    let last = stages.last().expect("a stage");
    assert_eq!((share(&stages[0]), &last["stage"]), (Some(0.0), &json!("written")));
    assert!(share(last) > Some(0.2) && share(last) < Some(0.6), "{:?}", share(last));
    Ok(())
}

#[test]
fn the_dataset_folder_holds_the_same_rows_in_every_format() -> Result<()> {
    use parquet::{
        file::reader::{FileReader, SerializedFileReader},
        record::RowAccessor,
    };
    let folder = tempfile::tempdir()?;
    let (data, output) = (folder.path().join("in.jsonl"), folder.path().join("out"));
    let mut rows = taught_rows();
    rows[0]["messages"] = json!([
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which note is highest?"},
        {"role": "assistant", "content": "B."}, {"role": "user", "content": "And then?"}, {"role": "assistant", "content": "C."},
    ]);
    fs::write(&data, lines(&rows))?;
    let mut config = config();
    (config.curate.valid_fraction, config.curate.test_fraction) = (0.1, 0.0);
    let stats = curate_file(&config, None, &data, &output)?;
    let dataset = output.join("dataset");
    for (split, count) in [("train", stats.splits.train), ("valid", stats.splits.valid), ("test", 0)] {
        let plain: Vec<Value> = read_jsonl(&output.join(format!("{split}.jsonl")))?;
        let file = fs::File::open(dataset.join(format!("data/{split}-00000-of-00001.parquet")))?;
        let reader = SerializedFileReader::new(file)?;
        let columnar: Vec<parquet::record::Row> = reader.get_row_iter(None)?.collect::<Result<_, _>>()?;
        let alpaca: Vec<Value> = read_jsonl(&dataset.join(format!("alpaca/{split}.jsonl")))?;
        let sharegpt: Vec<Value> = read_jsonl(&dataset.join(format!("sharegpt/{split}.jsonl")))?;
        assert_eq!([plain.len(), columnar.len(), alpaca.len(), sharegpt.len()], [count; 4]);
        for (place, row) in plain.iter().enumerate() {
            let turns = row["messages"].as_array().expect("turns");
            assert_eq!(columnar[place].get_string(0)?, row["id"].as_str().unwrap_or_default());
            assert_eq!(columnar[place].get_string(2)?, row["discipline"].as_str().unwrap_or_default());
            assert_eq!(columnar[place].get_list(5)?.len(), turns.len());
            let metadata: Value = serde_json::from_str(columnar[place].get_string(6)?)?;
            assert_eq!(metadata["key_concepts"], row["key_concepts"]);
            assert_eq!(alpaca[place]["output"], turns[turns.len() - 1]["content"]);
            assert_eq!(alpaca[place]["history"].as_array().map(Vec::len), Some(if turns.len() == 5 { 1 } else { 0 }));
            assert_eq!(sharegpt[place]["conversations"][turns.len() - 1]["value"], turns[turns.len() - 1]["content"]);
        }
    }
    let card = fs::read_to_string(dataset.join("README.md"))?;
    assert!(card.starts_with("---\n") && card.contains("split: validation") && !card.contains("split: test"), "{card}");
    let info: Value = serde_json::from_str(&fs::read_to_string(dataset.join("dataset_info.json"))?)?;
    for entry in info.as_object().expect("entries").values() {
        assert!(dataset.join(entry["file_name"].as_str().unwrap_or("?")).is_file(), "{entry}");
    }
    Ok(())
}
