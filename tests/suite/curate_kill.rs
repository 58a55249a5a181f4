//! `glan curate` on the real executable, SIGKILLed at random points: the next run writes the bytes of one that was left
//! alone, at any number of threads.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;

use super::support::{glan_command, root};

const KILLS: usize = 5;
const ROWS: usize = 4000;

/// Sums and stories, some of them twice, some damaged.
fn rows(rng: &mut StdRng) -> String {
    let words = ["river", "stone", "cloud", "lamp", "horse", "winter", "paper", "garden", "music", "bread"];
    let mut lines = String::new();
    for number in 0..ROWS {
        let mut text =
            |count: usize| (0..count).map(|_| words[rng.random_range(0..words.len())]).collect::<Vec<_>>().join(" ");
        let question = match number % 50 {
            49 => "Which words come twice in this one, please?".to_owned(),
            _ => format!("Tell {} of {number}", text(30)),
        };
        let answer = if number % 70 == 69 { "As an AI language model, I cannot.".to_owned() } else { text(60) };
        let messages = json!([{"role": "user", "content": question}, {"role": "assistant", "content": answer}]);
        lines += &format!("{}\n", json!({"id": format!("r{number}"), "messages": messages}));
        if number % 500 == 7 {
            lines += "{\"torn\n";
        }
    }
    lines
}

fn curate(data: &Path, output: &Path, threads: usize) -> Command {
    let mut command = glan_command(root());
    command.args(["curate", "--set", "curate.test_per_discipline=3", "--set", "curate.counterfactual_fraction=0.5"]);
    command.arg("--data").arg(data).arg("--output").arg(output);
    command.env("RAYON_NUM_THREADS", threads.to_string());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn finish(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Every file under a folder by its path there.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match path.is_dir() {
            true => found.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes))),
            false => _ = found.insert(name, fs::read(&path).unwrap()),
        }
    }
    found
}

#[test]
fn kills_at_random_points_change_no_byte() {
    let mut rng = StdRng::seed_from_u64(0);
    let folder = tempfile::tempdir().unwrap();
    let (data, whole, killed) =
        (folder.path().join("in.jsonl"), folder.path().join("whole"), folder.path().join("killed"));
    fs::write(&data, rows(&mut rng)).unwrap();
    let begun = Instant::now();
    finish(curate(&data, &whole, 2));
    let time = begun.elapsed();
    let expected = files(&whole);
    assert!(expected.contains_key("stats.json") && expected.len() > 15, "{:?}", expected.keys());

    let mut kills = 0;
    for _ in 0..4 * KILLS {
        let mut child = curate(&data, &killed, 1 + kills % 2).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs_f64(time.as_secs_f64() * rng.random_range(0.05..0.95)));
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        // What is there under its own name is whole.
        for (name, bytes) in files(&killed).iter().filter(|(name, _)| !name.contains(".partial")) {
            assert!(expected.get(name) == Some(bytes), "`{name}` after a kill");
        }
        if kills == KILLS {
            break;
        }
    }
    assert!(kills > 0, "every process was done before its kill");
    finish(curate(&data, &killed, 1));
    let found = files(&killed);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in &expected {
        assert!(found[name] == *bytes, "`{name}` differs");
    }
}
