//! The run directory: the contract between the stages.
//!
//! ```text
//! runs/NAME/  run.toml                resolved configuration; run.lock while a command works here, shards.lock where several do
//!             generate/  taxonomy.json subjects.jsonl syllabi.jsonl questions.jsonl answers.jsonl rejected.jsonl stats.json
//!             curate/    train.jsonl valid.jsonl test.jsonl rejected.jsonl scores.jsonl audit.json stats.json dataset/
//!             train/     metrics.jsonl samples.jsonl checkpoint-N/ student/
//!             evaluate/MODEL/  results_*.json samples_*.jsonl   and  evaluate/comparison.json contamination.json judge/
//!                              weak_nodes.json
//!             report.html
//!             round-N/                a round of `glan improve`, a run directory of its own
//! ```

//! A stage is a pure function of its input files, its keys of the configuration and the seed. So a directory in which a
//! stage has written under other keys is refused: its files would be half of one run and half of another.

use std::{
    fs::{self, File, TryLockError},
    io::{ErrorKind, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use toml::Value;

use crate::{
    config::{self, Config},
    error::usage,
    records::write_atomic,
};

/// The stages that write records, in order, each with the keys (`table.` or a whole key) that it adds to what the files
/// of the stages before it depend on. `device`, `engine.` and `report.` are left out: they change no record.
const STAGE_KEYS: [(&str, &[&str]); 4] = [
    ("generate", &["seed", "teacher.", "answerer.", "judge.", "generate."]),
    ("curate", &["curate.", "evaluate.data_dir"]),
    ("train", &["student.", "train."]),
    ("evaluate", &["evaluate."]),
];

/// Of those, what only says when to give up. It changes no record that is there, and whoever was stopped by it may change it
/// and go on.
const THRESHOLDS: [&str; 3] = ["generate.min_yield", "generate.max_attempts", "generate.pilot_questions"];

/// An open run directory. No other process can open it while a clone of this lives, unless both share it.
#[derive(Debug, Clone)]
pub struct RunDir {
    root: PathBuf,
    /// `None` where the file system has no locks.
    _lock: Option<Arc<Lock>>,
    is_shared: bool,
}

/// A turn of one of the processes that share a directory; ends when it is dropped.
#[derive(Debug)]
pub struct Turn {
    _lock: Option<File>,
}

/// The exclusive lock on `run.lock`. The operating system drops it with the process, however that ends.
#[derive(Debug)]
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Emptied, so that finished directories of equal runs are equal, byte for byte. The file stays: removing it
        // would let two processes hold two locks of the same name.
        let _ = self.0.set_len(0);
    }
}

impl RunDir {
    /// Opens (or makes) a run directory and saves the resolved configuration in it.
    ///
    /// **Errors**: usage, when a stage that has already written here was configured otherwise; plain, when another
    /// process works here or the directory cannot be written.
    pub fn open(root: &Path, config: &Config) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot make the run directory `{}`", root.display()))?;
        let lock = lock(root)?;
        save_config(root, config)?;
        Ok(Self { root: root.to_owned(), _lock: lock, is_shared: false })
    }

    /// [`RunDir::open`] for processes that work in one directory together, such as the shards of `glan generate`: they
    /// keep others out, not each other.
    ///
    /// **Errors**: those of [`RunDir::open`].
    pub fn open_shared(root: &Path, config: &Config) -> Result<Self> {
        fs::create_dir_all(root).with_context(|| format!("cannot make the run directory `{}`", root.display()))?;
        let lock = lock_shared(root)?;
        let run_dir = Self { root: root.to_owned(), _lock: lock, is_shared: true };
        let turn = run_dir.turn()?;
        save_config(root, config)?;
        drop(turn);
        Ok(run_dir)
    }

    /// Waits until no other process of those that share the directory is in its turn. What only one of them may do at
    /// a time (look whether a small file is there, and write it) is done while the result lives. Immediate where the
    /// directory is not shared, and where the file system has no locks.
    pub fn turn(&self) -> Result<Turn> {
        if !self.is_shared {
            return Ok(Turn { _lock: None });
        }
        let path = self.root.join("shards.lock");
        let file = open_lock(&path)?;
        match file.lock() {
            Ok(()) => Ok(Turn { _lock: Some(file) }),
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(Turn { _lock: None }),
            Err(error) => Err(error).with_context(|| format!("cannot lock `{}`", path.display())),
        }
    }
    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file of a stage, such as `("generate", "answers.jsonl")`.
    pub fn stage_file(&self, stage: &str, name: &str) -> PathBuf {
        self.root.join(stage).join(name)
    }

    /// The folder of a stage.
    pub fn stage(&self, stage: &str) -> PathBuf {
        self.root.join(stage)
    }
}

/// Saves the resolved configuration, or finds that the one there is another.
fn save_config(root: &Path, config: &Config) -> Result<()> {
    let path = root.join("run.toml");
    if path.exists() {
        check_unchanged(root, &path, config)?;
    }
    let text = format!(
        "# Written by glan {}: the resolved configuration of this run. `glan run --config` takes it back.\n{}",
        env!("CARGO_PKG_VERSION"),
        config.to_toml()?
    );
    if fs::read_to_string(&path).is_ok_and(|saved| saved == text) {
        return Ok(());
    }
    write_atomic(&path, text.as_bytes())
}

/// Opens the file of a lock, which is never removed.
fn open_lock(path: &Path) -> Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .with_context(|| format!("cannot write to the run directory: `{}`", path.display()))
}

/// Takes the directory's lock together with the other processes that share it.
fn lock_shared(root: &Path) -> Result<Option<Arc<Lock>>> {
    let path = root.join("run.lock");
    let file = open_lock(&path)?;
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(Arc::new(Lock(file)))),
        Err(TryLockError::WouldBlock) => anyhow::bail!(
            "another glan is working in the run directory `{}` and does not share it; wait for it or choose another \
             --run-dir",
            root.display()
        ),
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
            tracing::warn!(
                "`{}` is on a file system without locks; see to it that no two processes do the same shard",
                root.display()
            );
            Ok(None)
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock `{}`", path.display())),
    }
}

/// Takes the directory's lock, and leaves this process's number in it for the message that others get.
fn lock(root: &Path) -> Result<Option<Arc<Lock>>> {
    let path = root.join("run.lock");
    let mut file = open_lock(&path)?;
    match file.try_lock() {
        Ok(()) => {
            // The number is a courtesy: a full disk will say so where it matters.
            let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
            Ok(Some(Arc::new(Lock(file))))
        }
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Unreadable on systems whose locks keep readers out as well.
            let _ = file.read_to_string(&mut holder);
            let holder = if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
            anyhow::bail!(
                "another glan{holder} is working in the run directory `{}`; wait for it or choose another --run-dir",
                root.display()
            )
        }
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
            tracing::warn!(
                "`{}` is on a file system without locks; see to it that no second glan works in it",
                root.display()
            );
            Ok(None)
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock `{}`", path.display())),
    }
}

/// Compares a saved configuration with the one asked for, for every stage that has output.
fn check_unchanged(root: &Path, path: &Path, config: &Config) -> Result<()> {
    let finished: Vec<bool> = STAGE_KEYS
        .iter()
        .map(|(stage, _)| {
            let folder = root.join(stage);
            has_files(&folder).with_context(|| format!("cannot read `{}`", folder.display()))
        })
        .collect::<Result<_>>()?;
    let Some(last) = finished.iter().rposition(|&has_output| has_output) else { return Ok(()) };

    let saved = config::load(Some(path), &[])
        .map_err(|error| usage(format!("{error:#}; mend the file or choose another --run-dir")))?;
    let (saved, asked) = (saved.entries()?, config.entries()?);
    // The files of the last stage with output depend on the keys of all stages up to it.
    let keys: Vec<&str> = STAGE_KEYS[..=last].iter().flat_map(|(_, keys)| *keys).copied().collect();
    let matters = |key: &str| {
        !THRESHOLDS.contains(&key)
            && keys.iter().any(|prefix| key == *prefix || prefix.ends_with('.') && key.starts_with(prefix))
    };
    let differing: Vec<String> = asked
        .iter()
        .filter(|(key, _)| matters(key))
        .filter_map(|(key, value)| {
            let old = saved.iter().find(|(name, _)| name == key).map(|(_, value)| value);
            (old != Some(value)).then(|| match old {
                Some(old) => format!("`{key}` was {} and is now {}", shown(old), shown(value)),
                None => format!("`{key}` was not there and is now {}", shown(value)),
            })
        })
        .collect();
    if differing.is_empty() {
        return Ok(());
    }
    let stages: Vec<&str> =
        STAGE_KEYS.iter().zip(&finished).filter(|(_, has_output)| **has_output).map(|((stage, _), _)| *stage).collect();
    Err(usage(format!(
        "the run directory `{}` already holds files of {} made under another configuration: {}; choose another \
         --run-dir or go back to the old values, which are in `{}`",
        root.display(),
        stages.join(", "),
        differing.join(", "),
        path.display()
    )))
}

/// A value as it stands in a message: as in TOML, cut where it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    let cut: String = text.chars().take(80).collect();
    if cut.len() < text.len() { format!("{cut}...") } else { cut }
}

/// Whether a folder holds a file, at any depth. A missing folder holds none.
fn has_files(folder: &Path) -> std::io::Result<bool> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if !entry.file_type()?.is_dir() || has_files(&entry.path())? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error;

    fn config(overrides: &[&str]) -> Result<Config> {
        config::load(None, &overrides.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn write(run_dir: &Path, name: &str) -> Result<()> {
        let path = run_dir.join(name);
        fs::create_dir_all(path.parent().expect("a file in a folder"))?;
        Ok(fs::write(path, "{}\n")?)
    }

    #[test]
    fn the_saved_configuration_can_be_fed_back() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let config = config(&["seed=3", "generate.answer.top_p=0.9", "teacher.model=a b\"c"])?;
        let run_dir = RunDir::open(&folder.path().join("runs/one"), &config)?;
        assert_eq!(config::load(Some(&run_dir.root().join("run.toml")), &[])?, config);
        assert_eq!(run_dir.stage_file("train", "metrics.jsonl"), run_dir.root().join("train/metrics.jsonl"));
        Ok(())
    }

    #[test]
    fn a_second_opener_is_turned_away_until_the_last_clone_is_gone() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let first = RunDir::open(folder.path(), &Config::default())?;
        let clone = first.clone();
        drop(first);
        let error = RunDir::open(folder.path(), &Config::default()).expect_err("the lock is held");
        let message = format!("{error:#}");
        assert!(message.contains("another glan") && message.contains("--run-dir"), "{message}");
        assert!(message.contains(&std::process::id().to_string()), "{message}");
        drop(clone);
        assert_eq!(fs::read(folder.path().join("run.lock"))?, b"");
        RunDir::open(folder.path(), &Config::default())?;
        Ok(())
    }

    #[test]
    fn a_change_is_refused_only_where_a_stage_with_output_depends_on_it() -> Result<()> {
        // (files there, override, refused)
        for (files, change, refused) in [
            (&[][..], "seed=1", false),
            (&["generate/answers.jsonl"], "seed=1", true),
            (&["generate/answers.jsonl"], "generate.num_questions=5", true),
            (&["generate/answers.jsonl"], "generate.answer.top_p=0.5", true),
            (&["generate/answers.jsonl"], "teacher.model=other", true),
            (&["generate/answers.jsonl"], "answerer.model=other", true),
            (&["generate/answers.jsonl"], "generate.max_attempts=3", false),
            (&["generate/answers.jsonl"], "generate.min_yield=0.01", false),
            (&["generate/answers.jsonl"], "student.model=other", false),
            (&["generate/answers.jsonl"], "curate.decontaminate=false", false),
            (&["generate/answers.jsonl"], "evaluate.data_dir=other", false),
            (&["curate/train.jsonl"], "generate.num_questions=5", true),
            (&["curate/train.jsonl"], "curate.decontaminate=false", true),
            (&["curate/train.jsonl"], "evaluate.data_dir=other", true),
            (&["curate/train.jsonl"], "evaluate.limit=5", false),
            (&["curate/train.jsonl"], "train.learning_rate=1", false),
            (&["train/checkpoint-1/model.safetensors"], "train.learning_rate=1", true),
            (&["train/checkpoint-1/model.safetensors"], "student.dtype=f32", true),
            (&["train/checkpoint-1/model.safetensors"], "evaluate.tasks=gsm8k", false),
            (&["evaluate/base/responses.jsonl"], "evaluate.tasks=gsm8k", true),
            (&["generate/answers.jsonl", "evaluate/base/responses.jsonl"], "engine.max_num_seqs=1", false),
            (&["generate/answers.jsonl", "evaluate/base/responses.jsonl"], "device=cpu", false),
            (&["generate/answers.jsonl", "evaluate/base/responses.jsonl"], "report.num_samples=1", false),
        ] {
            let folder = tempfile::tempdir()?;
            drop(RunDir::open(folder.path(), &Config::default())?);
            for file in files {
                write(folder.path(), file)?;
            }
            let changed = config(&[change])?;
            let result = RunDir::open(folder.path(), &changed).map(|_| ());
            assert_eq!(result.is_err(), refused, "{files:?} and {change}: {result:?}");
            let saved = config::load(Some(&folder.path().join("run.toml")), &[])?;
            assert_eq!(saved, if refused { Config::default() } else { changed }, "{files:?} and {change}");
        }
        Ok(())
    }

    #[test]
    fn a_refusal_names_both_values_and_the_way_out() -> Result<()> {
        let folder = tempfile::tempdir()?;
        drop(RunDir::open(folder.path(), &config(&["generate.num_questions=7"])?)?);
        write(folder.path(), "generate/answers.jsonl")?;
        let error = RunDir::open(folder.path(), &config(&["generate.num_questions=8", "seed=2"])?)
            .expect_err("the questions are there");
        let message = format!("{error:#}");
        assert_eq!(error::exit_code(&error), 2);
        for part in ["`generate.num_questions` was 7 and is now 8", "`seed` was 0 and is now 2", "another --run-dir"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        Ok(())
    }

    #[test]
    fn an_empty_stage_folder_and_a_missing_run_toml_are_no_obstacle() -> Result<()> {
        let folder = tempfile::tempdir()?;
        drop(RunDir::open(folder.path(), &Config::default())?);
        fs::create_dir_all(folder.path().join("train/checkpoint-1"))?;
        drop(RunDir::open(folder.path(), &config(&["seed=1"])?)?);
        fs::remove_file(folder.path().join("run.toml"))?;
        write(folder.path(), "generate/answers.jsonl")?;
        drop(RunDir::open(folder.path(), &config(&["seed=2"])?)?);
        assert!(folder.path().join("run.toml").exists());
        Ok(())
    }

    #[test]
    fn a_damaged_run_toml_beside_output_is_a_usage_error_with_a_line() -> Result<()> {
        let folder = tempfile::tempdir()?;
        write(folder.path(), "generate/answers.jsonl")?;
        fs::write(folder.path().join("run.toml"), "seed = 1\nnonsense\n")?;
        let error = RunDir::open(folder.path(), &Config::default()).expect_err("line 2 is no TOML");
        assert_eq!(error::exit_code(&error), 2);
        assert!(format!("{error:#}").contains("run.toml` line 2"), "{error:#}");
        Ok(())
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("file");
        fs::write(&file, "")?;
        let error = RunDir::open(&file.join("run"), &Config::default()).expect_err("a file is in the way");
        assert!(format!("{error:#}").contains("cannot make the run directory"), "{error:#}");
        fs::create_dir_all(folder.path().join("taken/run.toml"))?;
        let error = RunDir::open(&folder.path().join("taken"), &Config::default()).expect_err("a folder is in the way");
        assert!(format!("{error:#}").contains("run.toml"), "{error:#}");
        Ok(())
    }
}
