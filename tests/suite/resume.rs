//! `glan train` killed at any point, its checkpoints cut, flipped and lost: the run that goes on ends with the same bytes.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use super::support::{Outcome, glan, glan_command, root};

/// What every run below has.
const SETTINGS: [&str; 6] = [
    "train.max_steps=160",
    "train.learning_rate=5e-3",
    "train.train_batch_size=4",
    "train.save_steps=4",
    "train.save_total_limit=3",
    "train.logging_steps=1",
];

/// Ways to train that have a state of their own.
const WAYS: [(&str, &[&str]); 4] = [
    ("full", &["train.max_tokens_per_micro_batch=24", "train.neftune_noise_alpha=5"]),
    ("packed", &["train.packing=true", "train.max_length=48", "train.max_tokens_per_micro_batch=64"]),
    ("lora", &["train.method=lora", "train.lora_r=4", "train.lora_dropout=0.1", "train.group_by_length=true"]),
    (
        "dora",
        &[
            "train.method=lora",
            "train.use_dora=true",
            "train.lora_r=4",
            "train.packing=true",
            "train.max_length=48",
            "train.max_tokens_per_micro_batch=48",
            "train.activation_checkpointing=block",
            "train.eval_steps=6",
            "train.load_best_model_at_end=true",
        ],
    ),
];

/// 41 rows of prompt and completion.
pub fn write_rows(folder: &Path) {
    let mut text = String::new();
    for row in 0..41 {
        let word = |i: usize| 3 + (row * 31 + i * 7) % 90;
        let prompt: Vec<String> = (0..3 + row % 9).map(|i| format!("t{}", word(i))).collect();
        let completion: Vec<String> = (0..3 + row % 5).map(|i| format!(" t{}", word(i + 40))).collect();
        let row = serde_json::json!({
            "id": format!("row-{row}"), "prompt": prompt.join(" "), "completion": completion.concat()
        });
        writeln!(text, "{row}").unwrap();
    }
    fs::write(folder.join("rows.jsonl"), text).unwrap();
}

fn arguments(output: &str, settings: &[&str]) -> Vec<String> {
    let model = root().join("tests/fixtures/models/llama").to_string_lossy().into_owned();
    let mut arguments: Vec<String> =
        ["train", "--model", &model, "--data", "rows.jsonl", "--valid", "rows.jsonl", "--output", output]
            .map(String::from)
            .to_vec();
    for set in SETTINGS.iter().chain(settings) {
        arguments.extend(["--set".to_owned(), (*set).to_owned()]);
    }
    arguments
}

/// `glan train` on the rows, with these settings beside those above.
pub fn train(folder: &Path, output: &str, settings: &[&str]) -> Outcome {
    glan(folder, &arguments(output, settings))
}

/// Starts a run and kills it without warning as soon as `is_there` says so; whether it came to that.
fn kill_when(folder: &Path, output: &str, settings: &[&str], is_there: impl Fn(&Path) -> bool) -> bool {
    let mut child = glan_command(folder)
        .args(arguments(output, settings))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let path = folder.join(output);
    let killed = loop {
        if is_there(&path) {
            break true;
        }
        if child.try_wait().unwrap().is_some() {
            break false;
        }
        std::thread::yield_now();
    };
    child.kill().unwrap();
    child.wait().unwrap();
    killed
}

/// The checkpoints of a run.
pub fn steps(folder: &Path) -> Vec<usize> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut steps: Vec<usize> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok())
        .collect();
    steps.sort_unstable();
    steps
}

fn has_checkpoint(at_least: usize) -> impl Fn(&Path) -> bool {
    move |path| steps(path).last().is_some_and(|last| *last >= at_least)
}

/// Everything that a run leaves behind, by name; TensorBoard's files hold the time.
fn outcome(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[track_caller]
fn expect_same(whole: &Path, other: &Path) {
    let (whole, other) = (outcome(whole), outcome(other));
    let names = |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&whole), names(&other));
    for ((name, whole), (_, other)) in whole.iter().zip(&other) {
        assert!(whole == other, "`{}` has other bytes", name.display());
    }
}

fn copy(from: &Path, to: &Path) {
    for (name, bytes) in outcome(from) {
        fs::create_dir_all(to.join(&name).parent().unwrap()).unwrap();
        fs::write(to.join(name), bytes).unwrap();
    }
}

#[test]
fn every_way_of_training_ends_with_the_same_bytes_after_kills_at_several_points() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_rows(folder);
    for (name, settings) in WAYS {
        train(folder, name, settings).expect_code(0);
        assert_eq!(steps(&folder.join(name)), Vec::<usize>::new(), "a finished run keeps no checkpoint");
        let killed = format!("{name}-killed");
        // In the middle of writing a checkpoint; between two; again later; while the student is written.
        let is_writing = |path: &Path| path.join(".checkpoint-8.partial").exists() && has_checkpoint(4)(path);
        let first = |path: &Path| is_writing(path) || has_checkpoint(8)(path);
        assert!(kill_when(folder, &killed, settings, first), "{name}: killed at its first checkpoints");
        assert!(kill_when(folder, &killed, settings, has_checkpoint(12)), "{name}: killed again soon");
        assert!(kill_when(folder, &killed, settings, has_checkpoint(80)), "{name}: killed in the middle");
        kill_when(folder, &killed, settings, |path| path.join("student/config.json").exists());
        let resumed = train(folder, &killed, settings).expect_code(0);
        assert!(resumed.stderr.contains("resuming at step") || resumed.stderr.contains("finished already"));
        expect_same(&folder.join(name), &folder.join(&killed));
    }
}

#[test]
fn a_damaged_checkpoint_of_any_kind_is_named_and_the_one_before_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_rows(folder);
    let settings = ["train.max_tokens_per_micro_batch=64"];
    train(folder, "whole", &settings).expect_code(0);
    assert!(kill_when(folder, "killed", &settings, has_checkpoint(16)));
    let found = steps(&folder.join("killed"));
    let (last, before) = (found[found.len() - 1], found[found.len() - 2]);
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() - 100].to_vec();
    let flip = |at: usize| {
        move |mut bytes: Vec<u8>| {
            bytes[at] ^= 1;
            bytes
        }
    };
    // A digit of the number of tokens becomes another one: still JSON.
    let digit = |bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).unwrap();
        text.replacen("\"num_input_tokens_seen\": ", "\"num_input_tokens_seen\": 1", 1).into_bytes()
    };
    type Damage<'a> = Option<&'a dyn Fn(Vec<u8>) -> Vec<u8>>;
    let damages: [(&str, Damage); 8] = [
        ("model.safetensors", Some(&cut)),
        ("model.safetensors", Some(&flip(5000))),
        ("model.safetensors", None),
        ("optimizer.safetensors", Some(&flip(3))),
        ("optimizer.safetensors", None),
        ("trainer_state.json", Some(&digit)),
        ("trainer_state.json", Some(&|_| Vec::new())),
        ("trainer_state.json", None),
    ];
    for (index, (file, damage)) in damages.into_iter().enumerate() {
        let name = format!("damaged-{index}");
        copy(&folder.join("killed"), &folder.join(&name));
        let path = folder.join(&name).join(format!("checkpoint-{last}/{file}"));
        match damage {
            Some(damage) => fs::write(&path, damage(fs::read(&path).unwrap())).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let resuming = format!("resuming at step {before} of");
        let parts = [&format!("checkpoint-{last}"), "is damaged, trying the one before", file, &resuming];
        train(folder, &name, &settings).expect_code(0).expect_stderr(&parts);
        expect_same(&folder.join("whole"), &folder.join(&name));
    }
    // None is left whole: from the start, to the same end.
    for step in found {
        fs::write(folder.join(format!("killed/checkpoint-{step}/trainer_state.json")), "{").unwrap();
    }
    let outcome = train(folder, "killed", &settings).expect_code(0);
    assert!(!outcome.stderr.contains("resuming at step"), "{}", outcome.stderr);
    expect_same(&folder.join("whole"), &folder.join("killed"));
}

#[test]
fn the_newest_checkpoints_and_the_best_are_kept_and_a_damaged_best_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write_rows(folder);
    // A rate this high makes the validation loss rise early, for good.
    let settings = [
        "train.learning_rate=1",
        "train.lr_scheduler_type=constant",
        "train.max_grad_norm=0",
        "train.eval_steps=1",
        "train.save_steps=5",
        "train.save_total_limit=2",
        "train.load_best_model_at_end=true",
        "train.early_stopping_patience=60",
    ];
    train(folder, "whole", &settings).expect_code(0).expect_stderr(&["stopped after step"]);
    let results: serde_json::Value = glan::records::read_json(&folder.join("whole/train_results.json")).unwrap();
    let best = results["best_step"].as_u64().unwrap() as usize;
    assert!(kill_when(folder, "killed", &settings, has_checkpoint(best + 20)));
    let found = steps(&folder.join("killed"));
    // Four where the kill came before the oldest was removed.
    assert!(found[0] == best && (3..=4).contains(&found.len()), "best {best}, found {found:?}");
    assert!(found[1] > best + 10 && found.iter().skip(1).all(|step| step % 5 == 0), "{found:?}");
    let model = folder.join(format!("killed/checkpoint-{best}/model.safetensors"));
    fs::write(&model, &fs::read(&model).unwrap()[1..]).unwrap();
    let part = format!("the best one before it, `checkpoint-{best}`");
    train(folder, "killed", &settings).expect_code(0).expect_stderr(&[&part]);
    expect_same(&folder.join("whole"), &folder.join("killed"));
}
