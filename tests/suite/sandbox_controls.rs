//! Does a hostile program fail because of the layer that is said to stop it? Each attempt is refused by the complete
//! sandbox, refused by its own layers alone, and goes through where exactly those are off. So a layer that is set up but
//! does nothing is found, and so is an attempt that would fail anywhere.

use std::{fs, path::Path};

use glan::{
    config::CodeConfig,
    evaluate::sandbox::{Clock, Layer, Outcome, Sandbox},
    telemetry::print_result,
};

fn sandbox(config: &CodeConfig) -> Option<Sandbox> {
    let launcher = Path::new(env!("CARGO_BIN_EXE_glan"));
    Sandbox::open(config, launcher).inspect_err(|error| print_result(format!("skipped: {error:#}"))).ok()
}

/// The layers, and an attempt that each of them stops by itself. Harmless where it goes through: the files are the
/// test's own, signal 0 is none, the memory is never touched.
fn attempts(secret: &str, parent: u32) -> Vec<(&'static [Layer], &'static str, String)> {
    use Layer::{Landlock, Namespaces, Rlimits, Seccomp};
    vec![
        // The limit on processes does not hold for the superuser, so it is not counted on.
        (&[Seccomp], "a new process", "pid = os.fork()\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)".to_owned()),
        (&[Rlimits], "memory", "x = bytearray(700 << 20)".to_owned()),
        (&[Landlock], "reading outside", format!("open({secret:?}).read()")),
        (&[Landlock], "writing outside", format!("open({secret:?} + '.new', 'w').write('x')")),
        (&[Landlock], "a link to the outside", format!("os.symlink({secret:?}, 'link')\nopen('link').read()")),
        (&[Seccomp], "modes outside", format!("os.chmod({secret:?}, 0o600)")),
        (&[Seccomp], "a socket", "import socket\nsocket.socket().close()".to_owned()),
        (&[Namespaces, Seccomp, Landlock], "signalling the parent", format!("os.kill({parent}, 0)")),
        (
            &[Seccomp],
            "being traced",
            "import ctypes\nif ctypes.CDLL(None).ptrace(0, 0, 0, 0): raise OSError('ptrace')".to_owned(),
        ),
        (
            &[Rlimits, Namespaces],
            "a large file",
            "with open('big', 'wb') as file:\n    for _ in range(65): file.write(bytes(1 << 20))".to_owned(),
        ),
    ]
}

/// Whether the attempt went through; a refusal must be an error that the kernel gives.
#[track_caller]
fn goes_through(sandbox: &Sandbox, what: &str, attempt: &str) -> bool {
    match sandbox.run(&format!("import os\n{attempt}")).unwrap() {
        Outcome::Passed => true,
        Outcome::OutOfMemory => false,
        Outcome::Failed(reason)
            if ["OSError", "PermissionError", "ProcessLookupError"].iter().any(|it| reason.starts_with(it)) =>
        {
            false
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn every_attempt_is_stopped_by_its_own_layers_and_by_nothing_else() {
    let config = CodeConfig { cpu_seconds: 5, wall_seconds: 300, memory_mib: 512, ..CodeConfig::default() };
    let Some(complete) = sandbox(&config) else { return };
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "treasure").unwrap();
    for (layers, what, attempt) in attempts(&secret.to_string_lossy(), std::process::id()) {
        assert!(!goes_through(&complete, what, &attempt), "the complete sandbox lets through: {what}");
        let mut without = complete.clone();
        for layer in layers {
            let others = Layer::ALL.into_iter().filter(|it| it != layer);
            let alone = others.fold(complete.clone(), |sandbox, other| sandbox.without(other));
            assert!(!goes_through(&alone, what, &attempt), "{layer} alone lets through: {what}");
            without = without.without(*layer);
        }
        assert!(goes_through(&without, what, &attempt), "without {layers:?} it is refused all the same: {what}");
    }
}

/// Without limits of resources only the wall clock ends a computation.
#[test]
fn the_limit_of_processor_time_is_what_ends_a_computation() {
    let config = CodeConfig { cpu_seconds: 1, wall_seconds: 5, ..CodeConfig::default() };
    let Some(complete) = sandbox(&config) else { return };
    let limited = complete.run("while True: pass").unwrap();
    let unlimited = complete.without(Layer::Rlimits).run("while True: pass").unwrap();
    if limited == Outcome::TimedOut(Clock::Wall) {
        return print_result("skipped: a busy machine gave a program less than a second in five");
    }
    assert_eq!((limited, unlimited), (Outcome::TimedOut(Clock::Processor), Outcome::TimedOut(Clock::Wall)));
}

/// Verdicts are a matter of processor time, so they are the same on a machine that has four times too much to do.
#[test]
fn a_busy_machine_changes_no_verdict() {
    let config = CodeConfig { cpu_seconds: 2, wall_seconds: 600, ..CodeConfig::default() };
    let Some(sandbox) = sandbox(&config) else { return };
    // Each computes for a fixed time of the processor: half of the limit, and half as much again.
    let burn =
        |seconds: f64, tag: usize| format!("import time\nwhile time.process_time() < {seconds}: pass\ntag = {tag}");
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let programs: Vec<String> = (0..4 * cores).map(|tag| burn(if tag % 2 == 0 { 1.0 } else { 3.0 }, tag)).collect();
    let outcomes = std::thread::scope(|scope| {
        let threads: Vec<_> =
            programs.chunks(1).map(|program| scope.spawn(|| sandbox.run_all(program).unwrap().remove(0))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    for (tag, outcome) in outcomes.into_iter().enumerate() {
        let expected = if tag % 2 == 0 { Outcome::Passed } else { Outcome::TimedOut(Clock::Processor) };
        assert_eq!(outcome, expected, "program {tag}");
    }
}
