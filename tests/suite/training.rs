//! `glan train` on the real executable: killed, damaged and resumed, the weights stay the same to the bit.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use super::support::{glan, glan_command, root};

const STEPS: usize = 400;

fn model(name: &str) -> PathBuf {
    root().join("tests/fixtures/models").join(name)
}

/// Conversations over the fixture's vocabulary (`t3` … `t95`).
fn write_rows(path: &Path, count: usize) {
    let mut text = String::new();
    for row in 0..count {
        let word = |i: usize| 3 + (row * 31 + i * 7) % 90;
        let question: Vec<String> = (0..5 + row % 9).map(|i| format!("t{}", word(i))).collect();
        let answer: Vec<String> = (0..3 + row % 5).map(|i| format!("t{}", word(i + 40))).collect();
        let messages = serde_json::json!([
            {"role": "user", "content": question.join(" ")},
            {"role": "assistant", "content": answer.join(" ")},
        ]);
        writeln!(text, "{}", serde_json::json!({"id": format!("row-{row}"), "messages": messages})).unwrap();
    }
    fs::write(path, text).unwrap();
}

fn arguments(output: &str) -> Vec<String> {
    let model = model("llama").to_string_lossy().into_owned();
    let mut arguments: Vec<String> =
        ["train", "--model", &model, "--data", "rows.jsonl", "--output", output].map(String::from).to_vec();
    let steps = format!("train.max_steps={STEPS}");
    for set in ["train.learning_rate=1e-3", "train.train_batch_size=4", "train.save_steps=20", &steps] {
        arguments.extend(["--set".to_owned(), set.to_owned()]);
    }
    arguments
}

fn weights(folder: &Path, output: &str) -> Vec<u8> {
    fs::read(folder.join(output).join("student/model.safetensors")).unwrap()
}

fn checkpoints(folder: &Path) -> Vec<usize> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut steps: Vec<usize> = entries
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok())
        .collect();
    steps.sort_unstable();
    steps
}

/// Starts a training run and kills it once a checkpoint past `step` stands.
fn kill_after(folder: &Path, output: &str, step: usize) {
    let mut child = glan_command(folder)
        .args(arguments(output))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while checkpoints(&folder.join(output)).last().is_none_or(|last| *last < step) {
        if child.try_wait().unwrap().is_some() {
            break;
        }
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_run_ends_with_the_same_weights_and_metrics_and_a_damaged_checkpoint_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_rows(&folder.join("rows.jsonl"), 37);
    glan(folder, &arguments("whole")).expect_code(0);
    assert_eq!(checkpoints(&folder.join("whole")), Vec::<usize>::new(), "a finished run keeps no checkpoint");

    kill_after(folder, "killed", 40);
    kill_after(folder, "killed", 80);
    let steps = checkpoints(&folder.join("killed"));
    let last = steps.last().expect("the run was killed after a checkpoint");
    let damaged = folder.join("killed").join(format!("checkpoint-{last}/optimizer.safetensors"));
    let mut bytes = fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    glan(folder, &arguments("killed"))
        .expect_code(0)
        .expect_stderr(&[&format!("checkpoint-{last}"), "is damaged", "resuming at step"]);

    assert!(weights(folder, "whole") == weights(folder, "killed"), "other weights after a kill");
    let metrics = |output: &str| fs::read_to_string(folder.join(output).join("metrics.jsonl")).unwrap();
    assert_eq!(metrics("whole"), metrics("killed"));
    assert_eq!(metrics("whole").lines().count(), STEPS / 10);
}

#[test]
fn the_number_of_threads_and_the_size_of_micro_batches_do_not_matter_where_they_must_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_rows(&folder.join("rows.jsonl"), 20);
    let run = |output: &str, threads: &str| {
        let status =
            glan_command(folder).args(arguments(output)).env("RAYON_NUM_THREADS", threads).output().unwrap().status;
        assert!(status.success());
    };
    run("one", "1");
    run("three", "3");
    assert!(weights(folder, "one") == weights(folder, "three"), "threads change the weights");
}

#[test]
fn the_loss_falls_and_the_student_ends_its_turn_with_a_trained_token() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_rows(&folder.join("rows.jsonl"), 8);
    glan(folder, &arguments("out")).expect_code(0);
    let metrics: Vec<serde_json::Value> = fs::read_to_string(folder.join("out/metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let loss = |row: &serde_json::Value| row["loss"].as_f64().unwrap();
    let (first, last) = (loss(&metrics[0]), loss(metrics.last().unwrap()));
    assert!(last < 0.2 * first, "loss went from {first} to {last}");
    assert!(folder.join("out/student/chat_template.jinja").is_file());
    let generation: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("out/student/generation_config.json")).unwrap()).unwrap();
    assert!(!generation["eos_token_id"].is_null());

    // The trained answer comes back word for word from the student.
    let row: serde_json::Value =
        serde_json::from_str(fs::read_to_string(folder.join("rows.jsonl")).unwrap().lines().next().unwrap()).unwrap();
    let request = serde_json::json!({"id": 1, "messages": [row["messages"][0]], "max_new_tokens": 20});
    fs::write(folder.join("in.jsonl"), format!("{request}\n")).unwrap();
    glan(folder, &["complete", "--model", "out/student", "--requests", "in.jsonl", "--output", "o.jsonl"])
        .expect_code(0);
    let result: serde_json::Value =
        serde_json::from_str(fs::read_to_string(folder.join("o.jsonl")).unwrap().trim()).unwrap();
    assert_eq!(result["text"].as_str().unwrap().trim(), row["messages"][1]["content"].as_str().unwrap());
    assert_eq!(result["finish_reason"], "stop");
}

#[test]
fn bad_rows_are_named_by_file_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (text, expected) in [
        ("{\"id\":1,\"messages\":[{\"role\":\"user\",\"content\":\"t3\"}]}\n{\"id\":2,", "line 2"),
        ("{\"id\":1,\"question\":\"t3\"}\n", "`messages` or `text`"),
        ("\n", "no row"),
    ] {
        fs::write(folder.join("rows.jsonl"), text).unwrap();
        glan(folder, &arguments("out")).expect_code(1).expect_stderr(&["rows.jsonl", expected]);
    }
}
