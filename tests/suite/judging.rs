//! Judges and the contamination check from the command line, with models of random weights.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::support::{Outcome, glan, root};

fn model() -> String {
    root().join("tests/fixtures/models/llama").to_string_lossy().into_owned()
}

/// `glan evaluate --model M --against M --output OUT` and more.
fn evaluate(folder: &Path, output: &str, extra: &[&str]) -> Outcome {
    let model = model();
    let arguments = ["evaluate", "--model", &model, "--against", &model, "--output", output, "--json"];
    glan(folder, &[&arguments[..], extra].concat())
}

fn json_of(outcome: Outcome) -> Value {
    serde_json::from_str(&outcome.expect_code(0).stdout).unwrap()
}

#[test]
fn a_judge_of_random_weights_gives_no_scores_and_that_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("template.jinja"), "{{ question }}|{{ answer_1 }}|{{ answer_2 }}|").unwrap();
    let rows = ["Why?", "How?"].map(|question| json!({"question": question, "difficulty": 3}).to_string());
    fs::write(folder.path().join("evol.jsonl"), rows.join("\n")).unwrap();
    let judge = model();
    let arguments = [
        "--judge",
        &judge,
        "--tasks",
        "evol.jsonl",
        "--set",
        "evaluate.judge.template='template.jinja'",
        "--set",
        "evaluate.judge.max_tokens=4",
        "--set",
        "evaluate.judge.max_answer_tokens=3",
    ];
    let judged = json_of(evaluate(folder.path(), "out", &arguments));
    let summary = &judged["judged"][0]["summary"];
    assert_eq!((&summary["verdicts"], &summary["unparsed"], &summary["too_long"]), (&json!(4), &json!(4), &json!(0)));
    assert_eq!(summary["overall"]["n"], 0);
    let names: Vec<String> = fs::read_dir(folder.path().join("out/judge/evol"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    for start in ["results_", "samples_evol_", "judged.json"] {
        assert!(names.iter().any(|name| name.starts_with(start)), "{start} is not in {names:?}");
    }
}

#[test]
fn losses_on_two_splits_do_not_depend_on_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("data/gsm8k")).unwrap();
    for (split, word) in [("test", "red"), ("train", "blue")] {
        let row = |index: usize| json!({"question": word.repeat(1 + index % 3), "answer": "1"}).to_string();
        let rows: Vec<String> = (0..5).map(row).collect();
        fs::write(folder.path().join(format!("data/gsm8k/{split}.jsonl")), rows.join("\n")).unwrap();
    }
    let arguments = ["--contamination", "--data", "data"];
    let wide = json_of(evaluate(folder.path(), "wide", &arguments));
    let narrow =
        json_of(evaluate(folder.path(), "narrow", &[&arguments[..], &["--set", "engine.max_num_seqs=1"]].concat()));
    assert_eq!(wide, narrow);
    let rows = wide["losses"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    // The same model twice.
    assert_eq!(rows[0]["delta"], rows[1]["delta"]);
    assert!(rows[0]["test_loss"].as_f64().unwrap() > 0.0 && rows[0]["test_items"] == 5, "{rows:?}");
    assert!(folder.path().join("wide/contamination.json").is_file());
}

#[test]
fn options_that_do_not_go_together_end_with_2() {
    let folder = tempfile::tempdir().unwrap();
    for (extra, named) in [
        (&["--tasks", "primer"][..], "--against goes with"),
        (&[], "--against goes with"),
        (&["--contamination", "--data", "nowhere", "--tasks", "primer"], "--tasks"),
        (&["--contamination", "--data", "nowhere"], "gsm8k/train.jsonl"),
        (&["--judge", "nowhere/nothing", "--tasks", "evol.jsonl"], "nowhere/nothing"),
    ] {
        evaluate(folder.path(), "out", extra).expect_code(2).expect_stderr(&[named]);
    }
    let model = model();
    glan(folder.path(), &["evaluate", "--model", &model, "--output", "out"])
        .expect_code(2)
        .expect_stderr(&["--model needs --tasks"]);
}
