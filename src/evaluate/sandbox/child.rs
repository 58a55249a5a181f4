//! Inside: what `glan sandbox-child` does before it becomes the interpreter.
//!
//! Two stages, because a process namespace holds only processes that start after it: the *outer* one makes the
//! namespaces and starts the *inner* one in them; that restricts itself step by step and then executes Python. A step
//! that fails ends the process before the program runs: [`READY`] is written when every layer stands, and without
//! it nothing counts.

use std::{
    fs,
    io::Write,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        resource::{Resource, UsageWho, getrusage, setrlimit},
        signal::Signal,
    },
    unistd,
};
use serde::{Deserialize, Serialize};

use super::{Layer, interpreter, system_calls};

/// First on standard output, once every layer stands.
pub const READY: &[u8] = b"sandbox ready\n";
/// Exit code of a program that used up its processor time, as a shell shows `SIGXCPU`.
pub const CPU_TIME_EXIT_CODE: u8 = 152;
/// Exit code of a setup that failed.
const SETUP_EXIT_CODE: u8 = 125;

/// The unprivileged user that a program is, as far as it can see.
const NOBODY: u32 = 65_534;
/// Size of the scratch folder, which lives in memory, and of the largest file.
const SCRATCH_BYTES: u64 = 64 << 20;
const SCRATCH_FILES: u32 = 4096;
const OPEN_FILES: u64 = 64;

/// What the stages need to know; they get it as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// Our own executable, for the inner stage.
    pub launcher: PathBuf,
    /// Layers to set up.
    pub layers: Vec<Layer>,
    /// Where the program works: an empty folder.
    pub scratch: PathBuf,
    /// Seconds of processor time.
    pub cpu_seconds: u64,
    /// Bytes of address space.
    pub memory_bytes: u64,
    /// The interpreter; an empty path only tries the layers.
    pub python: PathBuf,
    /// What the program may read.
    pub readable: Vec<PathBuf>,
    /// What it may read and execute.
    pub executables: Vec<PathBuf>,
}

/// Runs a stage and returns the process's exit code.
pub fn main(stage: &str, setup: &str) -> u8 {
    let outcome = serde_json::from_str(setup).context("the setup is not readable").and_then(|setup| match stage {
        "outer" => outer(&setup),
        "inner" => inner(&setup).map(|()| 0),
        _ => bail!("there is no stage `{stage}`"),
    });
    outcome.unwrap_or_else(|error| {
        // Standard error is the pipe that our parent reads; if it is gone, nobody wants to know.
        let _ = write!(std::io::stderr(), "{error:#}");
        SETUP_EXIT_CODE
    })
}

/// Makes the namespaces, starts the inner stage in them, and turns its end into an exit code.
fn outer(setup: &Setup) -> Result<u8> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    close_inherited_files()?;
    if setup.layers.contains(&Layer::Namespaces) {
        make_namespaces(&setup.scratch).context("namespaces")?;
    }
    let mut child = Command::new(&setup.launcher)
        .args(["sandbox-child", "inner", &serde_json::to_string(setup)?])
        .env_clear()
        .spawn()
        .with_context(|| format!("cannot start `{}` in the sandbox", setup.launcher.display()))?;
    let status = child.wait()?;
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6;
    let used = seconds(usage.user_time()) + seconds(usage.system_time());
    let limit = setup.cpu_seconds as f64;
    // The kernel's limit counts in ticks, which a busy machine spreads unevenly; what was used is known exactly. So the
    // limit is set higher and the verdict is ours, and a kill far from the limit is none of the kernel's clock.
    let killed = status.signal() == Some(Signal::SIGKILL as i32);
    if used >= limit || (killed && used >= limit / 2.0) {
        return Ok(CPU_TIME_EXIT_CODE);
    }
    Ok(match status.code() {
        Some(code) => code as u8,
        None => 128u8.saturating_add(status.signal().unwrap_or_default() as u8),
    })
}

/// Seconds after which the kernel kills a program that uses `seconds`.
fn kill_after(seconds: u64) -> u64 {
    seconds + seconds.div_ceil(2)
}

/// Closes what our parent's parent left open, which Rust would hand on.
fn close_inherited_files() -> Result<()> {
    let entries = fs::read_dir("/proc/self/fd").context("cannot list open files")?;
    let open: Vec<i32> = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for file in open.into_iter().filter(|file| *file > 2) {
        // The folder's own descriptor is closed already.
        let _ = unistd::close(file);
    }
    Ok(())
}

fn make_namespaces(scratch: &Path) -> Result<()> {
    let (user, group) = (unistd::geteuid(), unistd::getegid());
    unshare(
        CloneFlags::CLONE_NEWUSER
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .context("the kernel refuses new namespaces (user namespaces may be switched off)")?;
    // Not as root, so that executing the interpreter drops every capability.
    for (file, line) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("{NOBODY} {user} 1")),
        ("/proc/self/gid_map", format!("{NOBODY} {group} 1")),
    ] {
        fs::write(file, line).with_context(|| format!("cannot write `{file}`"))?;
    }
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make mounts private")?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let size = format!("size={SCRATCH_BYTES},nr_inodes={SCRATCH_FILES},mode=0700");
    mount(Some("tmpfs"), scratch, Some("tmpfs"), flags, Some(size.as_str()))
        .context("cannot mount the scratch folder")?;
    // Other processes are no business of the program's, not even their names.
    mount(Some("tmpfs"), "/proc", Some("tmpfs"), flags | MsFlags::MS_RDONLY, Some("size=4k"))
        .context("cannot hide `/proc`")
}

/// Puts on the other layers and becomes the interpreter.
fn inner(setup: &Setup) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    let has = |layer| setup.layers.contains(&layer);
    std::env::set_current_dir(&setup.scratch).context("cannot enter the scratch folder")?;
    if has(Layer::Landlock) {
        restrict_files(setup).context("landlock")?;
    }
    if has(Layer::Rlimits) {
        limit(setup).context("rlimits")?;
    }
    let mut python = Command::new(&setup.python);
    python.args(["-s", "-c", interpreter::DRIVER]).env_clear().envs(interpreter::environment(&setup.scratch));
    if has(Layer::Seccomp) {
        let filter = system_calls::filter(std::process::id()).context("seccomp")?;
        seccompiler::apply_filter(&filter).context("seccomp")?;
    }
    let mut output = std::io::stdout();
    output.write_all(READY)?;
    output.flush()?;
    if setup.python.as_os_str().is_empty() {
        return Ok(());
    }
    Err(python.exec()).with_context(|| format!("cannot execute `{}`", setup.python.display()))
}

fn restrict_files(setup: &Setup) -> Result<()> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::from_all(ABI::V3) & !AccessFs::Execute;
    let mut devices: Vec<Result<_, RulesetError>> = Vec::new();
    for path in ["/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"] {
        let file = PathFd::new(path).with_context(|| format!("cannot open `{path}`"))?;
        devices.push(Ok(PathBeneath::new(file, AccessFs::ReadFile | AccessFs::WriteFile)));
    }
    let status = Ruleset::default()
        // Truncation is watched since version 3; without it files outside could be emptied.
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V3))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?
        .add_rules(path_beneath_rules(&setup.readable, read))?
        .add_rules(path_beneath_rules(&setup.executables, read | AccessFs::Execute))?
        .add_rules(path_beneath_rules([&setup.scratch], write))?
        .add_rules(devices)?
        .restrict_self()?;
    ensure!(status.ruleset != RulesetStatus::NotEnforced, "the kernel does not enforce it");
    Ok(())
}

fn limit(setup: &Setup) -> Result<()> {
    for (resource, name, value) in [
        (Resource::RLIMIT_CORE, "core", 0),
        (Resource::RLIMIT_FSIZE, "file size", SCRATCH_BYTES),
        (Resource::RLIMIT_NOFILE, "open files", OPEN_FILES),
        (Resource::RLIMIT_NPROC, "processes", 1),
        (Resource::RLIMIT_MEMLOCK, "locked memory", 0),
        // Equal soft and hard limits: the first signal is the kill that cannot be caught.
        (Resource::RLIMIT_CPU, "processor time", kill_after(setup.cpu_seconds)),
        (Resource::RLIMIT_AS, "memory", setup.memory_bytes),
    ] {
        setrlimit(resource, value, value).with_context(|| format!("cannot limit {name} to {value}"))?;
    }
    Ok(())
}
