//! The code sandbox with the real executable and hostile programs; `sandbox_controls` shows which layer stops what.
//!
//! Every program here may do its worst: first come limits, and what a program attacks is a folder of the test's own. A
//! machine that lacks a layer says so, and runs what the other layers stop.

use std::{
    fs,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use glan::{
    config::CodeConfig,
    evaluate::sandbox::{Clock, Layer, Outcome, Sandbox, missing_layers},
    telemetry::print_result,
};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use serde_json::Value;

use super::support::{glan, root};

fn launcher() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_glan"))
}

/// A sandbox with short limits; `None`, said aloud, where this machine cannot have a complete one.
fn sandbox() -> Option<Sandbox> {
    sandbox_of(&CodeConfig { cpu_seconds: 1, wall_seconds: 300, memory_mib: 512, ..CodeConfig::default() })
}

fn sandbox_of(config: &CodeConfig) -> Option<Sandbox> {
    Sandbox::open(config, launcher()).inspect_err(|error| print_result(format!("skipped: {error:#}"))).ok()
}

/// Runs a program that must not pass, and returns what it failed with.
#[track_caller]
fn failure(sandbox: &Sandbox, program: &str) -> String {
    match sandbox.run(program).unwrap() {
        Outcome::Failed(reason) => reason,
        other => panic!("{other:?} of\n{program}"),
    }
}

/// A program that passes when every line of `attempts` raises an `OSError`.
fn all_refused(attempts: &str) -> String {
    let mut program = String::from("import os, sys\n");
    for line in attempts.lines().map(str::trim).filter(|line| !line.is_empty()) {
        program += &format!(
            "try:\n    {line}\nexcept OSError:\n    pass\nelse:\n    raise SystemError({line:?} + ' went through')\n"
        );
    }
    program
}

#[test]
fn programs_pass_fail_and_stay_out_of_each_others_way() {
    let Some(sandbox) = sandbox() else { return };
    for program in [
        "def f(x):\n    return x + 1\nassert f(1) == 2",
        "import math, re, json, collections, itertools, heapq, random, decimal, datetime, typing, string",
        "print('x' * 100000)",
        "if __name__ == '__main__':\n    raise ValueError('not reached: the module has another name')",
        "open('notes.txt', 'w').write('here')\nassert open('notes.txt').read() == 'here'",
        "import tempfile\nwith tempfile.TemporaryFile() as file:\n    file.write(b'x')",
        "assert hash('a') == hash('a')\nassert str({'b', 'a'}) is not None",
    ] {
        assert_eq!(sandbox.run(program).unwrap(), Outcome::Passed, "{program}");
    }
    for (program, reason) in [
        ("assert 1 == 2, 'no'", "AssertionError: no"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("exit()", "SystemExit"),
        ("import os\nos._exit(0)", "ended the interpreter"),
        ("input()", "OSError: a program under test has no input"),
        ("assert open('notes.txt')", "FileNotFoundError"),
        ("def f(n):\n    return f(n + 1)\nf(0)", "RecursionError"),
        ("import os\nos.kill(os.getpid(), 11)\nraise ValueError('survived')", "s"),
    ] {
        assert!(failure(&sandbox, program).contains(reason), "{program}: {}", failure(&sandbox, program));
    }
}

#[test]
fn many_programs_keep_their_order() {
    let Some(sandbox) = sandbox() else { return };
    let programs: Vec<String> = (0..12).map(|index| format!("assert {index} % 3")).collect();
    let outcomes = sandbox.run_all(&programs).unwrap();
    let passed: Vec<bool> = outcomes.iter().map(Outcome::passed).collect();
    assert_eq!(passed, (0..12).map(|index| index % 3 != 0).collect::<Vec<_>>());
}

#[test]
fn computing_ends_by_processor_time_and_sleeping_by_the_wall_clock() {
    let Some(sandbox) = sandbox() else { return };
    assert_eq!(sandbox.run("while True: pass").unwrap(), Outcome::TimedOut(Clock::Processor));
    // Signals that warn of the end must not help to get around it.
    let stubborn = "import signal\nfor number in range(1, 65):\n    try:\n        signal.signal(number, signal.SIG_IGN)\n    \
                    except (OSError, ValueError):\n        pass\nwhile True: pass";
    assert_eq!(sandbox.run(stubborn).unwrap(), Outcome::TimedOut(Clock::Processor));

    let config = CodeConfig { cpu_seconds: 1, wall_seconds: 4, ..CodeConfig::default() };
    let impatient = Sandbox::open(&config, launcher());
    let Ok(impatient) = impatient else {
        return print_result("skipped: a busy machine did not start Python in four seconds");
    };
    assert_eq!(impatient.run("import time\ntime.sleep(1000)").unwrap(), Outcome::TimedOut(Clock::Wall));
}

#[test]
fn bombs_do_not_go_off() {
    let Some(sandbox) = sandbox() else { return };
    let forks = "
        os.fork()
        os.forkpty()
        os.posix_spawn('/bin/true', ['true'], {})
        os.execv('/bin/sh', ['sh', '-c', 'true'])
        __import__('subprocess').run(['/bin/true'])
        __import__('subprocess').run([sys.executable, '-c', 'pass'])
    ";
    assert_eq!(sandbox.run(&all_refused(forks)).unwrap(), Outcome::Passed);
    let threads = "import threading\nthreading.Thread(target=print).start()";
    assert!(failure(&sandbox, threads).contains("RuntimeError"));
    assert_eq!(sandbox.run("x = bytearray(1 << 40)").unwrap(), Outcome::OutOfMemory);
    assert_eq!(sandbox.run("x = []\nwhile True: x.append(bytearray(1 << 24))").unwrap(), Outcome::OutOfMemory);
    assert_eq!(
        sandbox.run("import os\nwhile True: os.write(1, b'x' * 65536)").unwrap(),
        Outcome::TimedOut(Clock::Processor)
    );
    // The disk: one large file, many small ones, all of it gone afterwards.
    let fill = "with open('big', 'wb') as file:\n    while True: file.write(bytes(1 << 20))";
    assert!(failure(&sandbox, fill).contains("OSError"), "{}", failure(&sandbox, fill));
    let many = "n = 0\nwhile True:\n    open(f'{n}', 'w').close()\n    n += 1";
    let reason = failure(&sandbox, many);
    assert!(reason.contains("OSError"), "{reason}");
    assert_eq!(sandbox.run("import os\nassert os.listdir('.') == []").unwrap(), Outcome::Passed);
}

#[test]
fn files_outside_can_be_neither_read_nor_written_nor_changed() {
    let Some(sandbox) = sandbox() else { return };
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "treasure").unwrap();
    let before = fs::metadata(&secret).unwrap();
    let (at, inside) = (format!("{:?}", secret.display().to_string()), folder.path().display());
    let attempts = format!(
        "
        open({at}).read()
        open({at}, 'w')
        open({at}, 'a')
        os.truncate({at}, 0)
        os.unlink({at})
        os.rename({at}, 'mine')
        os.link({at}, 'mine')
        os.chmod({at}, 0o777)
        os.chown({at}, os.getuid(), -1)
        os.utime({at}, (0, 0))
        os.setxattr({at}, 'user.mark', b'x')
        os.mkdir('{inside}/new')
        os.symlink('x', '{inside}/link')
        os.mkfifo('{inside}/pipe')
        os.listdir('{inside}')
        os.listdir('/')
        os.listdir('/proc')
        open('/proc/self/environ').read()
        open('/etc/passwd').read()
        open('/dev/mem', 'rb')
        os.chroot('.')
    "
    );
    assert_eq!(sandbox.run(&all_refused(&attempts)).unwrap(), Outcome::Passed);
    // By way of a link that the program makes itself, and of the folder above.
    let links = format!(
        "import os\nos.symlink({at}, 'link')\nos.symlink('{inside}', 'folder')\n{}",
        all_refused(
            "
            open('link').read()
            open('link', 'w')
            open('folder/secret', 'a')
            os.listdir('folder')
            os.chmod('link', 0o777)
            open('../../../../../../../../../../../etc/passwd')
        "
        )
    );
    assert_eq!(sandbox.run(&links).unwrap(), Outcome::Passed);
    let after = fs::metadata(&secret).unwrap();
    assert_eq!(fs::read_to_string(&secret).unwrap(), "treasure");
    assert_eq!((before.permissions(), before.modified().unwrap()), (after.permissions(), after.modified().unwrap()));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn there_is_no_network_and_nobody_else_to_signal_or_trace() {
    let Some(sandbox) = sandbox() else { return };
    let parent = std::process::id();
    let attempts = format!(
        "
        __import__('socket').socket()
        __import__('socket').socket(__import__('socket').AF_UNIX)
        __import__('socket').create_connection(('127.0.0.1', 80), 1)
        __import__('urllib.request').request.urlopen('http://127.0.0.1/')
        os.kill(os.getppid() or -1, 9)
        os.kill({parent}, 9)
        os.kill(0, 15)
        os.kill(-1, 15)
        os.killpg(os.getpgrp() or 1, 15)
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        os.setuid(0)
        os.sched_setaffinity(0, [0])
    "
    );
    assert_eq!(sandbox.run(&all_refused(&attempts)).unwrap(), Outcome::Passed);
    // What the standard library has no function for; -1 is what a refused call returns. PTRACE_TRACEME is request 0.
    let calls = "import ctypes\nlibc = ctypes.CDLL(None)\nfor name, arguments in [('ptrace', (0, 0, 0, 0)), \
                 ('mount', (None, b'/', None, 0, None)), ('unshare', (0x10000000,)), ('setns', (0, 0)), \
                 ('process_vm_readv', (1, 0, 0, 0, 0, 0)), ('reboot', (0,)), ('memfd_create', (b'x', 0)), \
                 ('shmget', (0, 4096, 0o1600)), ('prctl', (38, 1, 0, 0, 0))]:\n    \
                 assert getattr(libc, name)(*arguments) == -1, name";
    match sandbox.run(calls).unwrap() {
        Outcome::Passed => {}
        // A Python without ctypes has no way to try.
        Outcome::Failed(reason) if reason.contains("No module named") => print_result(format!("skipped: {reason}")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_of_the_environment_and_of_open_files_is_passed_on() {
    let Some(sandbox) = sandbox() else { return };
    // Files that every process inherits, as a careless parent leaves them: below and above the limit of open files.
    let file = fs::File::open(root().join("Cargo.toml")).unwrap();
    let files = [40, 200].map(|least| {
        let copy = fcntl_dupfd_cloexec(&file, least).unwrap();
        fcntl_setfd(&copy, FdFlags::empty()).unwrap();
        copy
    });
    let leaked = files.each_ref().map(AsRawFd::as_raw_fd);
    let open_in_child = |number: i32| {
        let test = format!("[ -e /proc/self/fd/{number} ]");
        std::process::Command::new("sh").args(["-c", &test]).status().unwrap().success()
    };
    assert!(leaked.iter().all(|number| open_in_child(*number)), "an ordinary child does not inherit {leaked:?}");
    let program = format!(
        "import os\nassert set(os.environ) <= {{'HOME', 'TMPDIR', 'PATH', 'LANG', 'LC_CTYPE', 'TZ', \
         'PYTHONHASHSEED', 'PYTHONDONTWRITEBYTECODE', 'PYTHONNOUSERSITE', 'OMP_NUM_THREADS', \
         'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'}}, sorted(os.environ)\nfor file in [*range(3, 64), *{leaked:?}]:\n    \
         try:\n        os.fstat(file)\n    except OSError:\n        continue\n    raise ValueError(file)"
    );
    assert_eq!(sandbox.run(&program).unwrap(), Outcome::Passed);
}

/// The other layers must hold where one is missing by permission.
#[test]
fn without_one_layer_the_others_still_refuse() {
    let Some(complete) = sandbox() else { return };
    assert_eq!(complete.layers(), Layer::ALL);
    for layer in [Layer::Namespaces, Layer::Landlock, Layer::Seccomp] {
        let sandbox = complete.without(layer);
        assert_eq!(sandbox.run("assert True").unwrap(), Outcome::Passed, "without {layer}");
        assert!(!sandbox.run("assert False").unwrap().passed(), "without {layer}");
        let attempts = match layer {
            Layer::Seccomp => "open('/etc/passwd').read()\nos.listdir('/')",
            Layer::Landlock => "os.fork()\n__import__('socket').socket()\nos.chmod('/etc/passwd', 0o777)",
            _ => "os.fork()\n__import__('socket').socket()\nopen('/etc/passwd').read()\nopen('/x', 'w')",
        };
        assert_eq!(sandbox.run(&all_refused(attempts)).unwrap(), Outcome::Passed, "without {layer}");
    }
}

/// Catches: a sandbox that runs programs although a layer is missing.
#[test]
fn a_missing_layer_is_refused_by_name() {
    // An executable that sets up nothing stands for a kernel that can do nothing.
    let error = Sandbox::open(&CodeConfig::default(), Path::new("/bin/true")).expect_err("nothing is set up");
    let message = format!("{error:#}");
    assert!(message.contains("namespaces") && message.contains("allow_missing_layers"), "{message}");
    assert_eq!(glan::error::exit_code(&error), 2);
    // Even with every risk named, a sandbox that does not run programs is none.
    let config = CodeConfig { allow_missing_layers: Layer::ALL.into(), ..CodeConfig::default() };
    Sandbox::open(&config, Path::new("/bin/true")).expect_err("it runs nothing");
}

#[test]
fn the_doctor_tells_of_every_layer() {
    let folder = tempfile::tempdir().unwrap();
    let output = glan(folder.path(), &["doctor", "--json"]).expect_code(0);
    let findings: Value = serde_json::from_str(&output.stdout).unwrap();
    let layers = findings["code_sandbox"].as_array().unwrap();
    let missing = missing_layers(launcher()).unwrap();
    for (finding, layer) in layers.iter().zip(Layer::ALL) {
        assert_eq!(finding["layer"], layer.to_string());
        assert_eq!(finding["present"], missing.iter().all(|(it, _)| *it != layer), "{finding}");
    }
    assert_eq!(layers.len(), Layer::ALL.len());
}

/// Rows of a benchmark beside the repository; `None`, said aloud, where it is not there.
fn rows(name: &str) -> Option<Vec<Value>> {
    let shared = std::env::var_os("GLAN_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    let path = shared.join("benchmarks").join(name);
    let Ok(file) = fs::File::open(&path) else {
        print_result(format!("skipped: no file {name}"));
        return None;
    };
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::MultiGzDecoder::new(file), &mut text).unwrap();
    Some(text.split('\n').filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// The benchmark's own solutions pass and empty ones fail, each in a process of its own.
#[track_caller]
fn check_solutions(name: &str, right: &[String], empty: &[String]) {
    // One solution of MBPP computes for more than two seconds.
    let Some(sandbox) = sandbox_of(&CodeConfig { cpu_seconds: 15, wall_seconds: 600, ..CodeConfig::default() }) else {
        return;
    };
    let count = |programs: &[String]| sandbox.run_all(programs).unwrap().iter().filter(|it| it.passed()).count();
    let passed = count(right);
    print_result(format!("{name}: {passed} of {} solutions pass", right.len()));
    assert_eq!(passed, right.len(), "{name}: solutions");
    assert_eq!(count(empty), 0, "{name}: empty completions");
}

#[test]
fn humanevals_solutions_pass_and_empty_ones_fail() {
    let Some(rows) = rows("humaneval/HumanEval.jsonl.gz") else { return };
    let program = |row: &Value, completion: &str| {
        let text = |key: &str| row[key].as_str().unwrap();
        format!("{}{completion}\n{}\ncheck({})", text("prompt"), text("test"), text("entry_point"))
    };
    let step = step_size(rows.len());
    let rows: Vec<&Value> = rows.iter().step_by(step).collect();
    let right: Vec<_> = rows.iter().map(|row| program(row, row["canonical_solution"].as_str().unwrap())).collect();
    let empty: Vec<_> = rows.iter().map(|row| program(row, "")).collect();
    check_solutions("humaneval", &right, &empty[..empty.len().min(8)]);
}

#[test]
fn mbpps_solutions_pass_and_empty_ones_fail() {
    let Some(rows) = rows("mbpp/mbpp.jsonl.gz") else { return };
    let program = |row: &Value, completion: &str| {
        let tests: Vec<&str> = row["test_list"].as_array().unwrap().iter().map(|test| test.as_str().unwrap()).collect();
        format!("{completion}\n{}", tests.join("\n"))
    };
    // The tests of task 367 need its `test_setup_code`, which the harness does not run: nobody passes it.
    let tested = |row: &&Value| {
        let task = row["task_id"].as_u64().unwrap();
        (11..=510).contains(&task) && task != 367
    };
    let step = step_size(499);
    let rows: Vec<&Value> = rows.iter().filter(tested).step_by(step).collect();
    let right: Vec<_> = rows.iter().map(|row| program(row, row["code"].as_str().unwrap())).collect();
    let empty: Vec<_> = rows.iter().map(|row| program(row, "")).collect();
    check_solutions("mbpp", &right, &empty[..empty.len().min(8)]);
}

/// Some 20 programs of each set, spread over it; all of them with `GLAN_ALL_SOLUTIONS` set.
fn step_size(items: usize) -> usize {
    if std::env::var_os("GLAN_ALL_SOLUTIONS").is_some() { 1 } else { items.div_ceil(20) }
}
