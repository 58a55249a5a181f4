//! Outside: starts programs in the sandbox, watches the clock, reads the verdict.

use std::{
    collections::HashMap,
    io::{Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use rand::Rng;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::{
    Clock, Layer, Outcome,
    child::{self, CPU_TIME_EXIT_CODE, READY, Setup},
    interpreter::Interpreter,
};
use crate::{config::CodeConfig, error::usage, interrupt};

/// How often a running program is looked after.
const POLL: Duration = Duration::from_millis(4);
/// Bytes that are kept of a program's output, from its beginning and of its end.
const KEPT_BYTES: usize = 1024;

/// Arguments of the hidden subcommand `sandbox-child`.
#[derive(Debug, Clone, Args)]
pub struct ChildArgs {
    stage: String,
    setup: String,
}

/// Runs the hidden subcommand and returns the exit code.
///
/// Must come before anything starts a thread: the kernel gives new user namespaces to single-threaded processes alone.
pub fn child_main(args: &ChildArgs) -> u8 {
    child::main(&args.stage, &args.setup)
}

/// A place to run programs in, one process each. Shared between threads.
#[derive(Debug, Clone)]
pub struct Sandbox {
    setup: Setup,
    wall: Duration,
    python_version: String,
    /// The scratch folder, on which each process mounts one of its own; removed with the sandbox.
    scratch: Arc<tempfile::TempDir>,
}

impl Sandbox {
    /// Finds the interpreter, tries every layer, and runs two programs to see that verdicts come out right.
    ///
    /// `launcher` is the `glan` executable: `std::env::current_exe()`, except in tests.
    ///
    /// **Errors**: no interpreter; a layer is missing and `allow_missing_layers` does not name it.
    pub fn open(config: &CodeConfig, launcher: &Path) -> Result<Self> {
        let interpreter = Interpreter::find(&config.python)?;
        let missing = missing_layers(launcher)?;
        let refused = missing.iter().filter(|(layer, _)| !config.allow_missing_layers.contains(layer));
        let refused: Vec<String> = refused.map(|(layer, reason)| format!("`{layer}` ({reason})")).collect();
        if !refused.is_empty() {
            let named: Vec<String> = missing.iter().map(|(layer, _)| format!("\"{layer}\"")).collect();
            return Err(usage(format!(
                "model-written programs are not run, because the sandbox lacks {} here; to run them all the same, name \
                 the risk: --set 'evaluate.code.allow_missing_layers=[{}]'",
                refused.join(", "),
                named.join(", ")
            )));
        }
        for (layer, reason) in &missing {
            tracing::warn!("model-written programs run without `{layer}` ({reason})");
        }
        let scratch =
            tempfile::Builder::new().prefix("glan-code-").tempdir().context("cannot make a scratch folder")?;
        let lacks = |layer: &Layer| missing.iter().any(|(it, _)| it == layer);
        let sandbox = Self {
            setup: Setup {
                launcher: launcher.to_owned(),
                layers: Layer::ALL.into_iter().filter(|layer| !lacks(layer)).collect(),
                // Landlock and mounts see through links, such as that of a temporary folder.
                scratch: scratch.path().canonicalize()?,
                cpu_seconds: config.cpu_seconds,
                memory_bytes: config.memory_mib << 20,
                python: interpreter.executable,
                readable: interpreter.readable,
                executables: interpreter.executables,
            },
            wall: Duration::from_secs(config.wall_seconds),
            python_version: interpreter.version,
            scratch: Arc::new(scratch),
        };
        let harmless = [("pass", true), ("raise ValueError('as it should')", false)];
        for (program, passes) in harmless {
            let outcome = sandbox.run(program)?;
            if outcome.passed() != passes {
                bail!("the code sandbox does not work here: `{program}` gives {outcome:?}");
            }
        }
        Ok(sandbox)
    }

    /// The interpreter, the limits and the layers: what verdicts depend on, for result files.
    pub fn description(&self) -> Value {
        json!({
            "python_version": self.python_version,
            "cpu_seconds": self.setup.cpu_seconds,
            "memory_bytes": self.setup.memory_bytes,
            "layers": self.setup.layers,
        })
    }

    /// The layers that stand.
    pub fn layers(&self) -> &[Layer] {
        &self.setup.layers
    }

    /// The same without a layer, as on a machine that lacks it. Its risk is the caller's.
    #[must_use]
    pub fn without(&self, layer: Layer) -> Self {
        let mut setup = self.setup.clone();
        setup.layers.retain(|it| *it != layer);
        Self { setup, wall: self.wall, python_version: self.python_version.clone(), scratch: self.scratch.clone() }
    }

    /// Runs a program to its end or to a limit.
    ///
    /// What the machine did to it (it was too busy to start it, or killed it for memory) is tried once more.
    ///
    /// **Errors**: the sandbox could not be set up. What the program does is never an error.
    pub fn run(&self, program: &str) -> Result<Outcome> {
        let end = match self.run_once(program)? {
            End::Judged(outcome) => return Ok(outcome),
            End::NotStarted | End::Killed => self.run_once(program)?,
        };
        match end {
            End::Judged(outcome) => Ok(outcome),
            End::Killed => Ok(Outcome::Failed(format!("signal {}", Signal::SIGKILL as i32))),
            End::NotStarted => bail!(
                "the sandbox did not start within {} s, twice; this machine is too busy to judge programs: raise \
                 `evaluate.code.wall_seconds`",
                self.wall.as_secs()
            ),
        }
    }

    fn run_once(&self, program: &str) -> Result<End> {
        let token = format!("{:032x}", rand::rng().random::<u128>());
        let input = format!("{token}\n{program}");
        // Without mounts of its own a process gets a folder of its own; nothing may pass from program to program.
        let mounts = self.setup.layers.contains(&Layer::Namespaces);
        let folder = if mounts { None } else { Some(tempfile::tempdir_in(&self.setup.scratch)?) };
        let scratch = folder.as_ref().map_or(self.setup.scratch.as_path(), tempfile::TempDir::path).to_owned();
        let ended = start(&Setup { scratch, ..self.setup.clone() }, &input, self.wall)?;
        if !ended.output.starts_with(READY) {
            return match ended.status {
                None => Ok(End::NotStarted),
                Some(status) => Err(not_set_up(status, &ended.errors)),
            };
        }
        let Some(status) = ended.status else { return Ok(End::Judged(Outcome::TimedOut(Clock::Wall))) };
        const KILLED: i32 = Signal::SIGKILL as i32;
        if status.code() == Some(128 + KILLED) || status.signal() == Some(KILLED) {
            return Ok(End::Killed);
        }
        Ok(End::Judged(match status.code() {
            Some(0) if ended.output.ends_with(token.as_bytes()) => Outcome::Passed,
            Some(0) => Outcome::Failed("the program ended the interpreter".to_owned()),
            Some(code) if code == i32::from(CPU_TIME_EXIT_CODE) => Outcome::TimedOut(Clock::Processor),
            Some(1) if ended.errors.starts_with("MemoryError") => Outcome::OutOfMemory,
            Some(1) if !ended.errors.is_empty() => Outcome::Failed(ended.errors),
            Some(code) if code > 128 => Outcome::Failed(format!("signal {}", code - 128)),
            Some(code) => Outcome::Failed(format!("exit code {code}: {}", ended.errors).trim_end_matches(": ").into()),
            None => Outcome::Failed(format!("signal {}", status.signal().unwrap_or_default())),
        }))
    }

    /// Runs many programs, as many at a time as there are cores; outcomes in the programs' order. Equal programs are run
    /// once.
    ///
    /// **Errors**: those of [`Self::run`]; interruption.
    pub fn run_all(&self, programs: &[String]) -> Result<Vec<Outcome>> {
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut distinct: Vec<&str> = Vec::new();
        let mut place_of = Vec::with_capacity(programs.len());
        for program in programs {
            let place = *places.entry(program).or_insert(distinct.len());
            if place == distinct.len() {
                distinct.push(program);
            }
            place_of.push(place);
        }
        let run = |program: &&str| -> Result<Outcome> {
            interrupt::check()?;
            self.run(program)
        };
        let outcomes: Vec<Outcome> = distinct.par_iter().map(run).collect::<Result<_>>()?;
        Ok(place_of.into_iter().map(|place| outcomes[place].clone()).collect())
    }
}

/// Tries every layer alone; those that cannot be set up, each with the reason.
pub fn missing_layers(launcher: &Path) -> Result<Vec<(Layer, String)>> {
    let scratch = tempfile::Builder::new().prefix("glan-code-").tempdir().context("cannot make a scratch folder")?;
    let mut missing = Vec::new();
    for layer in Layer::ALL {
        let setup = Setup {
            launcher: launcher.to_owned(),
            layers: vec![layer],
            scratch: scratch.path().canonicalize()?,
            cpu_seconds: 60,
            memory_bytes: 1 << 30,
            python: PathBuf::new(),
            readable: Vec::new(),
            executables: Vec::new(),
        };
        let ended = start(&setup, "", Duration::from_secs(60))?;
        match ended.status {
            Some(status) if ended.output.starts_with(READY) && status.success() => {}
            Some(status) => missing.push((layer, format!("{:#}", not_set_up(status, &ended.errors)))),
            None => missing.push((layer, "setting it up takes more than a minute".to_owned())),
        }
    }
    Ok(missing)
}

fn not_set_up(status: ExitStatus, errors: &str) -> anyhow::Error {
    let reason = if errors.is_empty() { status.to_string() } else { errors.to_owned() };
    anyhow!("the sandbox could not be set up: {reason}")
}

/// How a run ended.
enum End {
    /// By the program's own doing, or its limits.
    Judged(Outcome),
    /// The wall clock ran out before the program began.
    NotStarted,
    /// `SIGKILL`, far from the limit of processor time: the system was out of memory, or somebody intervened.
    Killed,
}

/// A process that has ended.
struct Ended {
    /// `None` when the wall clock ended it.
    status: Option<ExitStatus>,
    /// The beginning and the end of standard output.
    output: Vec<u8>,
    /// The same of standard error.
    errors: String,
}

fn start(setup: &Setup, input: &str, wall: Duration) -> Result<Ended> {
    let mut child = Command::new(&setup.launcher)
        .args(["sandbox-child", "outer", &serde_json::to_string(setup)?])
        .env_clear()
        // A group of its own: it can be killed as a whole, and cannot signal ours.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", setup.launcher.display()))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(move || {
            // A program that ends before it has read everything is none of our errors.
            let _ = stdin.map(|mut pipe| pipe.write_all(input.as_bytes()));
        });
        let output = scope.spawn(move || stdout.map(ends_of).unwrap_or_default());
        let errors = scope.spawn(move || stderr.map(ends_of).unwrap_or_default());
        let status = wait(&mut child, wall)?;
        let joined = "reading a pipe does not panic";
        let errors = String::from_utf8_lossy(&errors.join().expect(joined)).into_owned();
        Ok(Ended { status, output: output.join().expect(joined), errors })
    })
}

/// Waits until the process ends or the time is over; then kills it and everything in it.
fn wait(child: &mut Child, wall: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + wall;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL).context("cannot kill a program")?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(POLL);
    }
}

/// Reads to the end and keeps the beginning and the end: a program may write without limit.
fn ends_of(mut pipe: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut chunk = [0; 1 << 16];
    while let Ok(length) = pipe.read(&mut chunk) {
        if length == 0 {
            break;
        }
        kept.extend_from_slice(&chunk[..length]);
        if kept.len() > 2 * KEPT_BYTES {
            kept.drain(KEPT_BYTES..kept.len() - KEPT_BYTES);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_output_keeps_its_beginning_and_its_end() {
        let text: Vec<u8> = (0..1_000_000u32).map(|it| (it % 251) as u8).collect();
        let kept = ends_of(text.as_slice());
        assert_eq!(kept.len(), 2 * KEPT_BYTES);
        assert_eq!(kept[..KEPT_BYTES], text[..KEPT_BYTES]);
        assert_eq!(kept[KEPT_BYTES..], text[text.len() - KEPT_BYTES..]);
        assert_eq!(ends_of(&b"short"[..]), b"short");
    }

    #[test]
    fn an_executable_that_sets_up_nothing_lacks_every_layer() {
        let missing = missing_layers(Path::new("/bin/true")).unwrap();
        assert_eq!(missing.iter().map(|(layer, _)| *layer).collect::<Vec<_>>(), Layer::ALL);
    }
}
