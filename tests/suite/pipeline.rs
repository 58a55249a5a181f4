//! The whole pipeline on the shipped models, in small: the same bytes at any batch size and after any kill, no network.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use super::support::{glan_command, root};

/// `configs/quick.toml` cut down: one subject per discipline, few questions, one epoch.
const SMALL: [&str; 7] = [
    "generate.samples_per_discipline=1",
    "generate.max_subjects=1",
    "generate.num_questions=60",
    "train.num_train_epochs=1",
    "train.save_steps=2",
    "evaluate.limit=20",
    "curate.valid_fraction=0.1",
];

fn arguments(run_dir: &Path, extra: &[&str]) -> Vec<String> {
    let run_dir = run_dir.to_string_lossy().into_owned();
    let mut arguments = ["run", "-c", "configs/quick.toml", "--json", "--run-dir", &run_dir].map(String::from).to_vec();
    for set in SMALL.iter().chain(extra) {
        arguments.extend(["--set".to_owned(), (*set).to_owned()]);
    }
    arguments
}

/// The files that must be the same to the byte.
fn records(run_dir: &Path) -> Vec<(&'static str, Vec<u8>)> {
    [
        "generate/taxonomy.json",
        "generate/subjects.jsonl",
        "generate/syllabi.jsonl",
        "generate/questions.jsonl",
        "generate/answers.jsonl",
        "generate/rejected.jsonl",
        "curate/train.jsonl",
        "curate/valid.jsonl",
        "curate/test.jsonl",
        "curate/rejected.jsonl",
        "train/student/model.safetensors",
    ]
    .map(|name| (name, fs::read(run_dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))))
    .into()
}

fn assert_same(a: &Path, b: &Path) {
    for ((name, a), (_, b)) in records(a).iter().zip(&records(b)) {
        assert!(a == b, "`{name}` differs ({} and {} bytes)", a.len(), b.len());
    }
}

#[test]
fn the_whole_run_gives_the_same_bytes_one_by_one_batched_and_killed_and_needs_no_network() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = |name: &str| folder.path().join(name);
    let finish = |mut command: Command| -> serde_json::Value {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(String::from_utf8(output.stdout).unwrap().lines().last().unwrap()).unwrap()
    };

    // Without a network interface, where this machine lets an ordinary user ask for that.
    let mut batched = glan_command(root());
    let isolated = Command::new("unshare").args(["-r", "-n", "true"]).status().is_ok_and(|status| status.success());
    if isolated {
        batched = Command::new("unshare");
        batched.current_dir(root()).args(["-r", "-n", env!("CARGO_BIN_EXE_glan")]);
    } else {
        eprintln!("skipped: no network namespace to be had, the run keeps its network");
    }
    batched.args(arguments(&run_dir("batched"), &["engine.max_num_seqs=32"]));
    let verdict = finish(batched);
    for key in ["task", "base", "base_fewshot", "tuned", "p_value"] {
        assert!(!verdict["verdict"][key].is_null(), "{verdict}");
    }
    assert!(run_dir("batched").join("report.html").is_file());

    let mut few = glan_command(root());
    few.args(arguments(
        &run_dir("few"),
        &["engine.max_num_seqs=3", "engine.max_num_batched_tokens=37", "engine.block_size=5"],
    ));
    assert_eq!(finish(few)["verdict"], verdict["verdict"]);
    assert_same(&run_dir("batched"), &run_dir("few"));

    // Killed (SIGKILL) as soon as each of these files has something in it, and started again.
    for file in ["generate/subjects_raw.jsonl", "generate/questions.jsonl", "generate/answers.jsonl", "train/metrics.jsonl"] {
        let mut child = glan_command(root())
            .args(arguments(&run_dir("killed"), &[]))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while fs::metadata(run_dir("killed").join(file)).map_or(0, |file| file.len()) == 0 {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut again = glan_command(root());
    again.args(arguments(&run_dir("killed"), &[]));
    assert_eq!(finish(again)["verdict"], verdict["verdict"]);
    assert_same(&run_dir("batched"), &run_dir("killed"));
}
