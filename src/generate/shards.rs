//! One stage on several machines: `--shard I/N`, then `--merge`.
//!
//! Each sub-step's work list is cut into N ranges, and the files of a range lie in `shards/STEP/I-of-N/`, append-only like
//! all others. Questions and answers are divided: shard I does its own range. What every shard needs whole
//! (subjects, syllabi) is done together: a shard does its own range first, then each that nobody is at, and waits only
//! for ranges at which another process is. So shards may run all at once, a few at a time, one after another, or each in a directory of
//! its own (then each does all of that part; the folders of `shards/` are copied together): the files are the same.
//!
//! Merging puts the ranges one after another, which is the order of the work list, and has the plain stage look
//! them over without a teacher: whatever is missing or made from something else is found before a file is replaced.

use std::{
    fmt,
    fs::{self, File, TryLockError},
    io::{self, ErrorKind},
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{
    Extra, FILES, ModelLoader, Role, STEPS, Stage, Stats, run_stage,
    stats::StepStats,
    step::{Part, Split, Step, finish_part},
};
use crate::{
    config::Config,
    error::{Failure, usage},
    interrupt,
    records::{self, write_atomic_with},
    run_dir::RunDir,
};

/// How long to wait before looking again at what others are at.
const POLL: Duration = Duration::from_millis(200);

/// Most shards: their number is also a number of folders per sub-step.
const MAX_SHARDS: usize = 10_000;

/// One of several equal parts of the stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<usize>().ok();
        match text.split_once('/').map(|(index, of)| (number(index), number(of))) {
            Some((Some(index), Some(of))) if index < of && of <= MAX_SHARDS => Ok(Self { index, of }),
            Some((Some(index), Some(of))) => Err(format!(
                "shard {index} of {of}: shards count from 0 to one less than their number, at most {MAX_SHARDS}"
            )),
            _ => Err("expected I/N, such as 0/8".to_owned()),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}/{}", self.index, self.of)
    }
}

impl Shard {
    fn name(self) -> String {
        format!("{}-of-{}", self.index, self.of)
    }

    fn from_name(name: &str) -> Option<Self> {
        name.replacen("-of-", "/", 1).parse().ok()
    }

    fn all(self) -> impl Iterator<Item = Self> {
        (0..self.of).map(move |index| Self { index, ..self })
    }

    fn part(self, folder: &Path, step: &str, total: usize) -> Part {
        let folder = folder.join("shards").join(step).join(self.name());
        Part { folder, range: range(self, total) }
    }
}

/// A shard's range of a work list: lengths differ by at most one.
pub fn range(shard: Shard, total: usize) -> Range<usize> {
    // In 128 bits: ten million requests times ten thousand shards do not fit into 32.
    let at = |index: usize| (total as u128 * index as u128 / shard.of as u128) as usize;
    at(shard.index)..at(shard.index + 1)
}

/// `shards/I-of-N.json`: how far a shard is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Whether its last answer is on disk.
    finished: bool,
    /// Hash of the syllabi that its questions were drawn from.
    syllabi: String,
    /// Its yield table; of what shards do together the whole.
    stats: Stats,
}

impl Report {
    /// Writes the report of a shard.
    pub fn save(folder: &Path, shard: Shard, stats: &Stats, syllabi: &str, finished: bool) -> Result<()> {
        let path = folder.join("shards").join(format!("{}.json", shard.name()));
        records::write_json(&path, &Self { finished, syllabi: syllabi.to_owned(), stats: stats.clone() })
    }
}

/// The shards that have a report, in order.
fn begun(folder: &Path) -> Result<Vec<Shard>> {
    let folder = folder.join("shards");
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", folder.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("cannot read `{}`", folder.display()))?.file_name();
        found.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).and_then(Shard::from_name));
    }
    found.sort_by_key(|shard: &Shard| (shard.of, shard.index));
    Ok(found)
}

/// Runs one shard of the stage.
///
/// **Errors**: those of [`super::run`]; usage, when the directory holds another number of shards or the files of a run
/// without any.
pub fn run(config: &Config, run_dir: &RunDir, shard: Shard, load_model: &mut ModelLoader) -> Result<()> {
    let folder = run_dir.stage("generate");
    {
        let _turn = run_dir.turn()?;
        let others = begun(&folder)?;
        if let Some(other) = others.iter().find(|other| other.of != shard.of) {
            return Err(usage(format!(
                "`{}` holds {} shards, not {}; go on with --shard I/{}, or take another --run-dir",
                folder.display(),
                other.of,
                shard.of,
                other.of
            )));
        }
        let whole = STEPS.iter().find(|(_, file)| fs::metadata(folder.join(file)).is_ok_and(|file| file.len() > 0));
        if let (true, Some((_, file))) = (others.is_empty(), whole) {
            return Err(usage(format!(
                "`{}` was begun without shards; finish it without --shard, or take another --run-dir",
                folder.join(file).display()
            )));
        }
        if !others.contains(&shard) {
            Report::save(&folder, shard, &Stats::default(), "", false)?;
        }
    }
    let mut stage = Stage::new(config, run_dir, folder, Some(shard), load_model);
    run_stage(&mut stage, Extra::default())
}

/// Whether the run is in shards that have not been merged.
///
/// **Errors**: a missing input, if so.
pub fn check_merged(folder: &Path) -> Result<()> {
    match begun(folder)?.last() {
        Some(shard) if !folder.join("answers.jsonl").exists() => Err(Failure::MissingInput(format!(
            "`{}` is made in {} shards; finish them (--shard 0/{} and so on), then run `glan generate --merge` with the same --run-dir",
            folder.display(),
            shard.of,
            shard.of
        ))
        .into()),
        _ => Ok(()),
    }
}

/// The shard's share of a sub-step, and of what is done together everything.
pub fn run_step<S: Step>(stage: &mut Stage, step: &S, shard: Shard, stats: &mut StepStats) -> Result<()> {
    let mut open: Vec<Shard> = match step.split() {
        Split::Together => {
            (0..shard.of).map(|ahead| Shard { index: (shard.index + ahead) % shard.of, ..shard }).collect()
        }
        Split::Apart | Split::Own => vec![shard],
    };
    if step.split() == Split::Apart {
        let requested = shard.part(&stage.folder, step.name(), step.total()).range.len();
        (stats.requested, stats.pending, stats.is_part) = (requested, requested, true);
    }
    stats.is_part |= step.split() == Split::Own;
    let mut told = false;
    while !open.is_empty() {
        let mut busy = Vec::new();
        for &other in &open {
            let mut part = other.part(&stage.folder, step.name(), step.total());
            if step.split() == Split::Own {
                part.range = 0..step.total();
            }
            let Some(_lock) = lock(&part.folder)? else {
                busy.push(other);
                continue;
            };
            let mut of_part = StepStats { is_part: true, ..StepStats::new(step.name(), part.range.len()) };
            let result = finish_part(stage, step, &part, &mut of_part);
            stats.add(&of_part);
            result?;
        }
        if busy.len() == open.len() {
            if !told {
                let names: Vec<String> = busy.iter().map(Shard::to_string).collect();
                tracing::info!("{}: waiting for the processes that are at {}", step.name(), names.join(", "));
                told = true;
            }
            interrupt::check()?;
            std::thread::sleep(POLL);
        }
        open = busy;
    }
    let part = shard.part(&stage.folder, step.name(), step.total());
    stats.check(stage.config.generate.min_yield, &part.folder.join("rejected.jsonl"))
}

/// Takes a part for this process; `None` when another one is at it. The operating system drops the lock with the process.
fn lock(folder: &Path) -> Result<Option<File>> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create folder `{}`", folder.display()))?;
    let path = folder.join("part.lock");
    let context = || format!("cannot lock `{}`", path.display());
    let file = File::options().write(true).create(true).truncate(false).open(&path).with_context(context)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        // Opening the run directory has warned of it.
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => Ok(Some(file)),
        Err(TryLockError::Error(error)) => Err(error).with_context(context),
    }
}

/// The files of a sub-step that hold the records, in the order of the work list.
pub fn files(folder: &Path, shard: Shard, step: &str, file: &str) -> Vec<PathBuf> {
    shard.all().map(|shard| shard.part(folder, step, 0).folder.join(file)).collect()
}

/// The one file in which this shard keeps the records of a sub-step.
pub fn own_file(folder: &Path, shard: Shard, step: &str, file: &str) -> PathBuf {
    shard.part(folder, step, 0).folder.join(file)
}

/// Puts the files of all shards together; every file of `generate/` is then what one process would have written.
///
/// **Errors**: a missing input, naming the shards that are not there or not finished; usage, when shards were made
/// from different syllabi; a plain one, when their rows do not answer the whole work list. Nothing is replaced then.
pub fn merge(config: &Config, run_dir: &RunDir) -> Result<()> {
    let folder = run_dir.stage("generate");
    let begun = begun(&folder)?;
    let Some(&last) = begun.last() else {
        return Err(Failure::MissingInput(format!(
            "there are no shards in `{}`; make them with `glan generate --shard I/N`, I from 0",
            folder.join("shards").display()
        ))
        .into());
    };
    if let Some(other) = begun.iter().find(|other| other.of != last.of) {
        return Err(usage(format!(
            "`{}` holds files of {} and of {} shards; remove those of one kind",
            folder.join("shards").display(),
            other.of,
            last.of
        )));
    }
    check_reports(&folder, last)?;
    let merged = folder.join("shards/merged");
    let context = || format!("cannot write to `{}` (is the disk full?)", merged.display());
    if merged.exists() {
        fs::remove_dir_all(&merged).with_context(context)?;
    }
    fs::create_dir_all(&merged).with_context(context)?;
    for name in FILES.iter().filter(|name| folder.join(name).is_file()) {
        fs::copy(folder.join(name), merged.join(name)).with_context(context)?;
    }
    for (step, file) in STEPS.iter().filter(|(step, _)| folder.join("shards").join(step).is_dir()) {
        join(&files(&folder, last, step, file), &merged.join(file))?;
    }
    for file in ["rejected.jsonl", "usage.jsonl"] {
        let parts: Vec<PathBuf> = STEPS
            .iter()
            .filter(|(step, _)| folder.join("shards").join(step).is_dir())
            .flat_map(|(step, _)| files(&folder, last, step, file))
            .collect();
        join(&parts, &merged.join(file))?;
    }
    let mut no_model = |_: Role| {
        bail!(
            "the rows of the shards in `{}` do not answer the whole work list (was a line removed, or a file mixed up?); \
             run every shard again, and then this command",
            folder.join("shards").display()
        )
    };
    run_stage(&mut Stage::new(config, run_dir, merged.clone(), None, &mut no_model), Extra::default())?;
    publish(&merged, &folder)
}

/// Every shard is there, finished, and made from the same syllabi.
fn check_reports(folder: &Path, any: Shard) -> Result<()> {
    let mut missing = Vec::new();
    let mut syllabi: Vec<(Shard, String)> = Vec::new();
    for shard in any.all() {
        let path = folder.join("shards").join(format!("{}.json", shard.name()));
        if !path.exists() {
            missing.push(format!("{shard} (not begun)"));
            continue;
        }
        let report: Report = records::read_json(&path)?;
        if !report.finished {
            missing.push(format!("{shard} (not finished)"));
        }
        syllabi.push((shard, report.syllabi));
    }
    if !missing.is_empty() {
        return Err(Failure::MissingInput(format!(
            "`{}` lacks shard {}; run `glan generate --shard I/{}` for each of them, then --merge again",
            folder.join("shards").display(),
            missing.join(", "),
            any.of
        ))
        .into());
    }
    let first = syllabi[0].1.clone();
    let others: Vec<String> =
        syllabi.iter().filter(|(_, hash)| *hash != first).map(|(shard, _)| shard.to_string()).collect();
    if !others.is_empty() {
        return Err(usage(format!(
            "shard {} was made from other syllabi than 0/{}: machines that share no directory agree on them only where \
             their arithmetic does (one kind of processor, in f32); copy `generate/shards` of one machine to all before \
             the questions begin",
            others.join(", "),
            any.of
        )));
    }
    Ok(())
}

/// One file from several, in order.
fn join(parts: &[PathBuf], target: &Path) -> Result<()> {
    write_atomic_with(target, |to| {
        for path in parts {
            let mut from = File::open(path).with_context(|| {
                format!("cannot read `{}` (copy the folders of all shards together first)", path.display())
            })?;
            io::copy(&mut from, to).with_context(|| format!("cannot copy `{}`", path.display()))?;
        }
        Ok(())
    })
}

/// Moves the files to their place, the answers last: they are what the next stage looks for.
fn publish(merged: &Path, folder: &Path) -> Result<()> {
    let context = || format!("cannot move the files of `{}`", merged.display());
    let entries: io::Result<Vec<_>> = fs::read_dir(merged).with_context(context)?.collect();
    let mut names: Vec<_> = entries.with_context(context)?.into_iter().map(|entry| entry.file_name()).collect();
    names.sort_by_key(|name| (name == "answers.jsonl", name.clone()));
    for name in names {
        fs::rename(merged.join(&name), folder.join(&name)).with_context(context)?;
    }
    fs::remove_dir(merged).with_context(context)
}
