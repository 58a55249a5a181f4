//! `glan evaluate` on the real executable, killed (SIGKILL) at many points: no score and no sample changes.
//!
//! The suite kills three times; `scripts/kill_evaluate.sh KILLS` sets `GLAN_KILLS` and runs the same.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    parity::fixture,
    support::{glan_command, root},
};

const KILLS: usize = 3;
const ITEMS: usize = 120;

fn evaluate(output: &Path) -> Command {
    let mut command = glan_command(root());
    command.args(["evaluate", "--json", "--tasks", "primer_mc,primer", "--limit", &ITEMS.to_string(), "--model"]);
    command.arg(fixture("llama")).arg("--output").arg(output).args(["--set", "engine.max_num_seqs=8"]);
    command
}

/// Runs to the end; the scores.
fn finish(output: &Path) -> Value {
    let said = evaluate(output).stderr(Stdio::piped()).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    serde_json::from_slice::<Value>(&said.stdout).unwrap()["results"].clone()
}

/// The folder of the one model under an output folder.
fn model_folder(output: &Path) -> Option<PathBuf> {
    Some(fs::read_dir(output).ok()?.next()?.unwrap().path())
}

fn answers(output: &Path) -> Vec<u8> {
    model_folder(output).and_then(|folder| fs::read(folder.join("responses.jsonl")).ok()).unwrap_or_default()
}

/// The samples files, without the dates in their names.
fn samples(output: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(model_folder(output).unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let mut samples: Vec<_> = entries
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?;
            let (task, _) = name.strip_prefix("samples_")?.rsplit_once('_')?;
            Some((task.to_owned(), fs::read(&path).unwrap()))
        })
        .collect();
    samples.sort();
    samples
}

#[test]
fn a_kill_at_any_point_changes_no_score() {
    let kills = std::env::var("GLAN_KILLS").ok().map_or(KILLS, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let (scores, expected) = (finish(&whole), answers(&whole));
    assert_eq!(samples(&whole).len(), 2);
    let mut before_the_end = 0;
    for kill in 0..kills {
        // Somewhere in the file of answers: after each of the parts by turns, never twice at one place.
        let point = (kill * 2 + 1) * expected.len() / (2 * kills) + kill * 37 % 91;
        let output = folder.path().join(kill.to_string());
        let mut child = evaluate(&output).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while answers(&output).len() < point && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let left = answers(&output);
        assert!(
            expected
                .starts_with(&left[..left.len().min(left.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1))])
        );
        before_the_end += usize::from(left.len() < expected.len());
        assert_eq!(finish(&output), scores, "killed after {} of {} bytes", left.len(), expected.len());
        assert_eq!(answers(&output), expected);
        assert_eq!(samples(&output), samples(&whole));
    }
    eprintln!("{kills} kills, {before_the_end} of them before the last answer: the same scores, samples and answers");
    assert!(before_the_end > 0, "every run was over before it was killed");
}
