//! The closed loop on the shipped models, in small, and the comparison of two evaluations: files, kills, exit codes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};

use super::support::{glan, glan_command, root};

/// `configs/quick.toml` cut down so far that the student learns little, with a rule that finds something weak in any
/// student: the plumbing is what is looked at here, `docs/log.md` has what the loop does for a student.
const SMALL: [&str; 11] = [
    "generate.samples_per_discipline=1",
    "generate.max_subjects=1",
    "generate.num_questions=90",
    "train.num_train_epochs=1",
    "train.save_steps=2",
    "evaluate.tasks=[\"primer\"]",
    "evaluate.base_fewshot=0",
    "evaluate.limit=90",
    "improve.margin=0.0",
    "improve.min_items=2",
    "improve.max_false_discovery=1.0",
];

fn arguments(command: &str, run_dir: &Path) -> Vec<String> {
    let run_dir = run_dir.to_string_lossy().into_owned();
    let mut arguments =
        [command, "-c", "configs/quick.toml", "--json", "--run-dir", &run_dir].map(String::from).to_vec();
    for set in SMALL {
        arguments.extend(["--set".to_owned(), set.to_owned()]);
    }
    arguments
}

/// Every file under a folder by its relative path; dates and durations are taken out.
fn snapshot(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut files, mut open) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // Which checkpoints are kept depends on when a run was stopped; the student does not.
                if !path.to_string_lossy().contains("checkpoint-") {
                    open.push(path);
                }
                continue;
            }
            let name = path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
            // What a run says of its own time and place: speeds, dates, paths.
            let is_timed =
                name.contains("/results_") || name.ends_with("metrics.jsonl") || name.ends_with("report.html");
            let undated = name.split("_20").next().unwrap().to_owned();
            files.insert(undated, if is_timed { Vec::new() } else { fs::read(&path).unwrap() });
        }
    }
    files
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, target).unwrap();
        }
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_round_grows_the_weak_disciplines_leaves_the_run_alone_and_survives_kills() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = folder.path().join("run");
    glan(root(), &arguments("run", &run_dir)).expect_code(0);
    let before = snapshot(&run_dir);
    let killed = folder.path().join("killed");
    copy(&run_dir, &killed);

    let said = glan(root(), &arguments("improve", &run_dir)).expect_code(0).stdout;
    let said: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    let round = run_dir.join("round-1");
    let mut after = snapshot(&run_dir);
    after.retain(|name, _| !name.starts_with("round-1/"));
    for (name, bytes) in &before {
        assert!(after.get(name) == Some(bytes), "`{name}` of the run is not what it was");
    }
    assert_eq!(after.len(), before.len(), "{:?}", after.keys());

    // Each weak discipline, and no other, has more training rows; the page says so.
    let improvement = &said["rounds"][0]["improvement"];
    assert_eq!(*improvement, read(&round.join("evaluate/improvement.json")));
    let weak = read(&round.join("weak_nodes.json"));
    let nodes = improvement["nodes"].as_array().unwrap();
    assert!(nodes.iter().any(|node| node["is_weak"] == true));
    for node in nodes {
        let grew = node["rows_after"].as_u64() > node["rows_before"].as_u64();
        assert_eq!(grew, node["is_weak"] == true, "{node}");
    }
    // Chosen by one half of the items, measured on the other.
    let measured: u64 = nodes.iter().map(|node| node["n"].as_u64().unwrap()).sum();
    assert_eq!(measured + weak["n"].as_u64().unwrap(), 90);
    assert!(fs::read_to_string(round.join("report.html")).unwrap().contains("What this round did"));
    let rows = fs::read_to_string(run_dir.join("evaluate/weak_rows.jsonl")).unwrap();
    let weak_rows: u64 = weak["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|node| node["is_weak"] == true)
        .map(|node| node["rows"].as_u64().unwrap())
        .sum();
    assert_eq!(rows.lines().count() as u64, weak_rows);

    // Killed (SIGKILL) as soon as each of these is there, and started again: the same bytes.
    for file in
        ["weak_nodes.json", "generate/weak.jsonl", "curate/train.jsonl", "train/metrics.jsonl", "evaluate/tuned"]
    {
        let mut child = glan_command(root())
            .args(arguments("improve", &killed))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while !killed.join("round-1").join(file).exists() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    glan(root(), &arguments("improve", &killed)).expect_code(0);
    let (whole, mended) = (snapshot(&run_dir), snapshot(&killed));
    assert_eq!(whole.keys().collect::<Vec<_>>(), mended.keys().collect::<Vec<_>>());
    for (name, bytes) in &whole {
        assert!(mended[name] == *bytes, "`{name}` differs after kills");
    }

    // Two runs are compared by their tuned models.
    let paths = [&run_dir, &round].map(|path| path.to_string_lossy().into_owned());
    let compared = glan(root(), &["evaluate", "--json", "--compare", &paths[0], &paths[1]]).expect_code(0).stdout;
    let compared: Value = serde_json::from_str(compared.trim()).unwrap();
    assert_eq!(compared["tasks"], improvement["tasks"]);
}

/// An evaluation of one task with 60 items, of which the first `right` are right.
fn evaluation(folder: &Path, question: &str, right: usize) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("results_2026-01-01.json"), json!({"versions": {"t": 1}}).to_string()).unwrap();
    let row = |id: usize| {
        let question = format!("{question} {id}");
        json!({"doc_id": id, "doc_hash": question, "doc": {"question": question}, "filter": "none", "metrics": ["acc"],
               "acc": f64::from(u8::from(id < right))})
    };
    let lines: String = (0..60).map(|id| format!("{}\n", row(id))).collect();
    fs::write(folder.join("samples_t_2026-01-01.jsonl"), lines).unwrap();
    folder.to_owned()
}

#[test]
fn a_comparison_prints_a_table_and_its_gate_ends_with_4() {
    let folder = tempfile::tempdir().unwrap();
    evaluation(&folder.path().join("good"), "q", 50);
    evaluation(&folder.path().join("bad"), "q", 30);
    evaluation(&folder.path().join("other"), "else", 30);
    let table = glan(folder.path(), &["evaluate", "--compare", "good", "bad"]).expect_code(0).stdout;
    for said in ["0.8333  0.5000  -0.3333", "<0.001", "worse"] {
        assert!(table.contains(said), "{said}: {table}");
    }
    let gate = ["evaluate", "--fail-on-regression", "--compare"];
    glan(folder.path(), &[&gate[..], &["good", "bad"]].concat())
        .expect_code(4)
        .expect_stderr(&["worse than before: t acc,none went from 0.8333 to 0.5000"]);
    glan(folder.path(), &[&gate[..], &["bad", "good"]].concat()).expect_code(0);
    glan(folder.path(), &[&gate[..], &["good", "other"]].concat())
        .expect_code(2)
        .expect_stderr(&["task `t`", "item 0", "q 0", "else 0"]);
    glan(folder.path(), &["evaluate", "--compare", "good"]).expect_code(2);
    glan(folder.path(), &["evaluate", "--compare", "good", "missing"]).expect_code(2).expect_stderr(&["missing"]);
}

#[test]
fn a_weak_file_that_names_an_unknown_discipline_is_refused_before_anything_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let weak = folder.path().join("weak.json");
    fs::write(&weak, json!({"nodes": [{"discipline": "Alchemy", "extra_questions": 5}]}).to_string()).unwrap();
    let mut arguments = arguments("generate", &folder.path().join("run"));
    arguments.extend(["--weak".to_owned(), weak.to_string_lossy().into_owned()]);
    glan(root(), &arguments).expect_code(2).expect_stderr(&["`Alchemy`", "which the taxonomy lacks"]);
    assert!(!folder.path().join("run/generate/answers.jsonl").exists());
}
