//! What the integration tests share: the repository's files and the real executable.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a command left behind.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code; -1 when a signal ended the process.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    /// Fails the test, with everything that the command said, unless it ended with this code.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// Fails the test unless stderr holds every one of these.
    #[track_caller]
    pub fn expect_stderr(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "stderr lacks `{part}`: {self:#?}");
        }
        self
    }
}

/// The executable, set to run in `folder` with an empty Hugging Face cache and no settings of the caller's.
pub fn glan_command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_glan"));
    command.current_dir(folder).env("HF_HOME", folder.join("hf_home")).env("HF_HUB_OFFLINE", "1").env("NO_COLOR", "1");
    for variable in ["HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "RUST_LOG", "XDG_CACHE_HOME", "OPENAI_API_KEY"] {
        command.env_remove(variable);
    }
    command
}

/// Runs the executable in `folder`.
pub fn glan<S: AsRef<OsStr>>(folder: &Path, arguments: &[S]) -> Outcome {
    let output = glan_command(folder).args(arguments).output().unwrap();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// All files under `folder` (relative to the repository) with one of these extensions, sorted.
pub fn files(folder: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    collect(&root().join(folder), extensions, &mut found);
    found.sort();
    found
}

fn collect(folder: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, extensions, found);
        } else if path.extension().and_then(OsStr::to_str).is_some_and(|it| extensions.contains(&it)) {
            found.push(path);
        }
    }
}

/// A path as it is written in messages: relative to the repository, with forward slashes.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().replace('\\', "/")
}
