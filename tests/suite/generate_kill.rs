//! `glan generate` on the real executable: shards by the scheduler's script, and SIGKILL at random points. The files are
//! those of one process that was left alone.
//!
//! The suite kills a few times; `scripts/stress.sh KILLS SEED` sets `GLAN_KILLS` and `GLAN_SEED` and runs the same.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::support::{glan_command, root};

const KILLS: usize = 5;
const SHARDS: usize = 3;

/// The quick run in small, as a file: the script takes no overrides.
fn config(folder: &Path) -> String {
    let quick = fs::read_to_string(root().join("configs/quick.toml")).unwrap();
    let mut table: toml::Table = toml::from_str(&quick).unwrap();
    let generate = table["generate"].as_table_mut().unwrap();
    for (key, value) in
        [("samples_per_discipline", 1), ("max_subjects", 1), ("syllabi_per_subject", 1), ("num_questions", 60)]
    {
        generate.insert(key.to_owned(), toml::Value::Integer(value));
    }
    let path = folder.join("small.toml");
    fs::write(&path, table.to_string()).unwrap();
    path.to_string_lossy().into_owned()
}

fn generate(config: &str, run_dir: &Path, extra: &[String]) -> Command {
    let mut command = glan_command(root());
    command.args(["generate", "-c", config, "--run-dir"]).arg(run_dir).args(extra);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn finish(mut command: Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Every file of the stage.
fn files(run_dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(run_dir.join("generate")).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.is_file());
    files.map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())).collect()
}

#[track_caller]
fn assert_same(run_dir: &Path, expected: &BTreeMap<String, Vec<u8>>, how: &str) {
    let found = files(run_dir);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{how}");
    for (name, bytes) in expected {
        assert!(found[name] == *bytes, "{how}: `{name}` differs");
    }
}

/// Bytes of all files of the stage, those of shards included: how far a process is.
fn written(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(
            |entry| {
                if entry.path().is_dir() { written(&entry.path()) } else { entry.metadata().map_or(0, |it| it.len()) }
            },
        )
        .sum()
}

/// Kills a process once so many bytes are written; returns whether it was still at work.
fn kill_at(mut child: Child, run_dir: &Path, bytes: u64) -> bool {
    while written(&run_dir.join("generate")) < bytes {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let was_at_work = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    was_at_work
}

#[test]
fn kills_at_random_points_change_no_byte() {
    let number = |name: &str, otherwise: usize| std::env::var(name).map_or(otherwise, |text| text.parse().unwrap());
    let (kills, seed) = (number("GLAN_KILLS", KILLS), number("GLAN_SEED", 0));
    let mut rng = StdRng::seed_from_u64(seed as u64);
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let whole = folder.path().join("whole");
    finish(generate(&config, &whole, &[]));
    let expected = files(&whole);
    let bytes = written(&whole.join("generate"));

    let (mut killed, mut runs) = (0, 0);
    while killed < kills {
        // By turns without shards and in two of them, which are killed each on its own; batch sizes differ.
        let run_dir = folder.path().join(runs.to_string());
        let batch = ["--set".to_owned(), format!("engine.max_num_seqs={}", rng.random_range(1..20))];
        let processes: Vec<Vec<String>> = match runs % 2 {
            0 => vec![Vec::new()],
            _ => (0..2).map(|index| vec!["--shard".to_owned(), format!("{index}/2")]).collect(),
        };
        for process in &processes {
            let arguments = [&process[..], &batch].concat();
            let mut points: Vec<u64> = (0..4).map(|_| rng.random_range(1..=bytes)).collect();
            points.sort_unstable();
            for point in points {
                if killed == kills {
                    break;
                }
                let child = generate(&config, &run_dir, &arguments).stderr(Stdio::null()).spawn().unwrap();
                killed += usize::from(kill_at(child, &run_dir, point));
            }
            finish(generate(&config, &run_dir, &arguments));
        }
        if processes.len() > 1 {
            finish(generate(&config, &run_dir, &["--merge".to_owned()]));
        }
        assert_same(&run_dir, &expected, &format!("run {runs}, seed {seed}"));
        runs += 1;
    }
    eprintln!("{killed} kills in {runs} runs, seed {seed}: every file of `generate/` the same");
}

#[test]
fn shards_by_the_schedulers_script_give_the_files_of_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let (whole, run_dir) = (folder.path().join("whole"), folder.path().join("shards"));
    finish(generate(&config, &whole, &[]));

    // The script finds the executable as a user has it: built, or on the path.
    let bin = Path::new(env!("CARGO_BIN_EXE_glan")).parent().unwrap();
    let script = |index: Option<(&str, usize)>, last: &str| {
        let mut command = Command::new(root().join("scripts/generate_shard.sh"));
        command.args([config.as_str(), &run_dir.to_string_lossy(), last]);
        command.env_remove("SLURM_ARRAY_TASK_ID").env_remove("JOB_COMPLETION_INDEX").env_remove("SLURM_SUBMIT_DIR");
        command.env("CARGO_TARGET_DIR", bin.parent().unwrap()).env("HF_HUB_OFFLINE", "1");
        if let Some((variable, index)) = index {
            command.env(variable, index.to_string());
        }
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command
    };
    let of = SHARDS.to_string();
    assert_eq!(script(None, &of).output().unwrap().status.code(), Some(2), "no scheduler, no index");
    assert_eq!(script(None, "merge").output().unwrap().status.code(), Some(3), "nothing to merge");

    // All at once, as an array starts them; one is killed on the way and started again.
    let mut first = script(Some(("SLURM_ARRAY_TASK_ID", 0)), &of).spawn().unwrap();
    let second = script(Some(("JOB_COMPLETION_INDEX", 1)), &of).spawn().unwrap();
    kill_at(second, &run_dir, 2_000);
    finish(script(Some(("JOB_COMPLETION_INDEX", 1)), &of));
    let output = script(None, "merge").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Either the first is still at work, or the third is missing.
    assert!(!output.status.success() && (said.contains("2/3 (not begun)") || said.contains("another glan")), "{said}");
    finish(script(Some(("SLURM_ARRAY_TASK_ID", 2)), &of));
    assert!(first.wait().unwrap().success());
    finish(script(None, "merge"));
    assert_same(&run_dir, &files(&whole), "by the script");

    let yaml = fs::read_to_string(root().join("scripts/kubernetes_generate.yaml")).unwrap();
    let number = |before: &str| yaml.split_once(before).unwrap().1.split(['"', '\n']).next().unwrap().to_owned();
    assert!(yaml.contains("completionMode: Indexed"));
    assert_eq!(number("completions: "), number("\"/data/run\", \""));
}
