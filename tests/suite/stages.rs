//! The stages from outside: what a user sees when something is wrong with a configuration, an input or a model.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::support::{Outcome, glan, root};

const STAGES: [&str; 5] = ["generate", "curate", "train", "evaluate", "report"];

/// A tiny model with random weights.
fn model() -> PathBuf {
    root().join("tests/fixtures/models/llama")
}

/// Runs a stage on `folder`/run with a configuration that names the tiny model twice.
fn stage(folder: &Path, command: &str, extra: &[&str]) -> Outcome {
    let model = toml::Value::String(model().to_string_lossy().into_owned());
    let text = format!("device = \"cpu\"\n[teacher]\nmodel = {model}\n[student]\nmodel = {model}\n");
    fs::write(folder.join("config.toml"), text).unwrap();
    let arguments = [&[command, "-c", "config.toml", "--run-dir", "run"], extra].concat();
    glan(folder, &arguments)
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn an_unknown_key_ends_every_stage_with_2_and_the_nearest_key() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "bad.toml", "seed = 1\n[train]\nlearning_rat = 1e-3\n");
    for command in STAGES.iter().chain(&["run"]) {
        glan(folder.path(), &[*command, "-c", "bad.toml"]).expect_code(2).expect_stderr(&[
            "bad.toml` line 3",
            "unknown key `train.learning_rat`",
            "`train.learning_rate`",
        ]);
        stage(folder.path(), command, &["--set", "evaluate.task=primer"])
            .expect_code(2)
            .expect_stderr(&["--set evaluate.task=primer", "did you mean `evaluate.tasks`?"]);
    }
    assert!(!folder.path().join("runs").exists(), "a wrong configuration leaves nothing behind");
}

#[test]
fn a_missing_configuration_and_a_value_out_of_range_end_with_2() {
    let folder = tempfile::tempdir().unwrap();
    for command in STAGES.iter().chain(&["run"]) {
        glan(folder.path(), &[*command, "-c", "nowhere.toml"]).expect_code(2).expect_stderr(&["nowhere.toml"]);
        stage(folder.path(), command, &["--set", "train.learning_rate=0"])
            .expect_code(2)
            .expect_stderr(&["`train.learning_rate` is 0, but must be above 0"]);
    }
}

#[test]
fn a_stage_without_its_input_ends_with_3_and_names_the_command_that_makes_it() {
    for (command, maker) in [("curate", "glan generate"), ("train", "glan curate"), ("evaluate", "glan train")] {
        let folder = tempfile::tempdir().unwrap();
        stage(folder.path(), command, &[]).expect_code(3).expect_stderr(&[maker]);
    }
}

#[test]
fn a_model_that_is_nowhere_is_named_with_the_way_to_get_it() {
    let folder = tempfile::tempdir().unwrap();
    let taxonomy = "[[fields]]\nname = \"F\"\n[[fields.subfields]]\nname = \"S\"\ndisciplines = [\"D\"]\n";
    write(folder.path(), "taxonomy.toml", taxonomy);
    let settings = ["--set", "teacher.model=org/name", "--set", "generate.taxonomy=taxonomy.toml"];
    stage(folder.path(), "generate", &settings).expect_code(2).expect_stderr(&["org/name", "glan fetch"]);

    write(folder.path(), "requests.jsonl", "{\"id\": \"a\", \"prompt\": \"x\"}\n");
    let arguments = ["complete", "--model", "org/name", "--requests", "requests.jsonl", "--output", "out.jsonl"];
    glan(folder.path(), &arguments).expect_code(2).expect_stderr(&["org/name", "glan fetch"]);
}

#[test]
fn a_missing_taxonomy_is_named() {
    let folder = tempfile::tempdir().unwrap();
    stage(folder.path(), "generate", &["--set", "generate.taxonomy=nowhere.toml"])
        .expect_code(2)
        .expect_stderr(&["nowhere.toml"]);
}

#[test]
fn a_run_directory_in_use_is_refused_and_one_of_another_configuration_too() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    // Makes the configuration file; there is nothing to curate yet.
    stage(folder.path(), "curate", &[]).expect_code(3);
    let config = glan::config::load(Some(&folder.path().join("config.toml")), &[]).unwrap();
    let held = glan::run_dir::RunDir::open(&run, &config).unwrap();
    stage(folder.path(), "curate", &[]).expect_code(1).expect_stderr(&["another glan", "--run-dir"]);
    drop(held);

    write(&run, "generate/answers.jsonl", "");
    stage(folder.path(), "curate", &["--set", "generate.num_questions=7"])
        .expect_code(2)
        .expect_stderr(&["`generate.num_questions` was 1000 and is now 7", "--run-dir"]);
}

#[test]
fn a_damaged_row_is_rejected_with_its_line_and_the_others_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let row = |id: &str, question: &str| {
        let messages =
            json!([{"role": "user", "content": question}, {"role": "assistant", "content": "Because it is so."}]);
        json!({"id": id, "messages": messages}).to_string()
    };
    let lines = [
        row("a", "Why is the sky blue by day?"),
        "{\"id\": \"b\", \"mess".to_owned(),
        row("c", "How do tides come about?"),
    ];
    write(folder.path(), "rows.jsonl", &format!("{}\n", lines.join("\n")));
    glan(folder.path(), &["curate", "--data", "rows.jsonl", "--output", "out"]).expect_code(0);

    let out = folder.path().join("out");
    let mut kept: Vec<String> = ["train", "valid", "test"]
        .iter()
        .flat_map(|split| rows(&out.join(format!("{split}.jsonl"))))
        .map(|row| row["id"].as_str().unwrap().to_owned())
        .collect();
    kept.sort();
    assert_eq!(kept, ["a", "c"]);
    let rejected = rows(&out.join("rejected.jsonl"));
    assert_eq!(rejected.len(), 1, "{rejected:?}");
    assert_eq!(rejected[0]["reason"], "format");
    assert!(rejected[0]["evidence"].to_string().contains('2'), "{rejected:?}");
}

#[test]
fn a_missing_data_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = glan(folder.path(), &["curate", "--data", "nowhere.jsonl", "--output", "out"]);
    assert!([2, 3].contains(&outcome.code), "{outcome:#?}");
    outcome.expect_stderr(&["nowhere.jsonl"]);
}

#[test]
fn a_damaged_request_costs_that_request_alone() {
    let folder = tempfile::tempdir().unwrap();
    let requests = "{\"id\": \"a\", \"prompt\": \"one\", \"max_new_tokens\": 2}\n\
                    {\"id\": \"b\", \"prompt\"\n\
                    {\"id\": \"c\", \"prompt\": \"two\", \"temperature\": -1}\n\
                    {\"id\": 4, \"prompt\": \"three\", \"max_new_tokens\": 2}\n";
    write(folder.path(), "requests.jsonl", requests);
    let model = model().to_string_lossy().into_owned();
    let arguments = ["complete", "--model", &model, "--requests", "requests.jsonl", "--output", "out.jsonl"];
    glan(folder.path(), &arguments).expect_code(0);
    let results = rows(&folder.path().join("out.jsonl"));
    assert_eq!(results.len(), 4, "{results:?}");
    let reasons: Vec<bool> = results.iter().map(|row| row["finish_reason"] == "error").collect();
    assert_eq!(reasons, [false, true, true, false], "{results:?}");
    assert!(results[1]["error"].to_string().contains("line 2"), "{results:?}");
    assert!(results[2]["error"].to_string().contains("temperature"), "{results:?}");
    assert_eq!(results[3]["id"], 4);
}

#[test]
fn an_unknown_task_ends_with_2_and_lists_those_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let model = model().to_string_lossy().into_owned();
    let arguments = ["evaluate", "--model", &model, "--tasks", "prmier", "--output", "out"];
    glan(folder.path(), &arguments).expect_code(2).expect_stderr(&["prmier", "primer", "gsm8k"]);
}

#[test]
fn a_device_that_this_build_does_not_carry_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "requests.jsonl", "{\"id\": \"a\", \"prompt\": \"x\"}\n");
    let model = model().to_string_lossy().into_owned();
    let arguments =
        ["complete", "--model", &model, "--requests", "requests.jsonl", "--output", "out.jsonl", "--device", "metal"];
    glan(folder.path(), &arguments).expect_code(2).expect_stderr(&["metal", "cpu"]);
}

#[test]
fn doctor_gives_machines_one_json_value_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let outcome = glan(folder.path(), &["doctor", "--json"]).expect_code(0);
    let value: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert!(value.as_object().is_some_and(|object| !object.is_empty()), "{outcome:?}");
}
