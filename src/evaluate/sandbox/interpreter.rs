//! The Python interpreter: where it is, and which files it needs to see.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// Executes the program on standard input; see the file.
pub const DRIVER: &str = include_str!("driver.py");

/// What a Python installation says of itself, one line each.
const QUESTIONS: &str = "import sys; print('\\n'.join([sys.executable, sys.version.split()[0], sys.prefix, \
                         sys.base_prefix, *sys.path]))";

/// Where the program loader is, which the kernel executes together with the interpreter.
const LOADER_PATHS: [&str; 5] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store"];

/// Files that programs of the system read beside the interpreter's own: libraries, time zones.
const SYSTEM_PATHS: [&str; 4] = ["/usr/local/lib", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo"];

/// A Python interpreter.
#[derive(Debug, Clone)]
pub struct Interpreter {
    /// The executable itself, behind any wrapper script.
    pub executable: PathBuf,
    /// Such as 3.11.7.
    pub version: String,
    /// Folders and files that it reads.
    pub readable: Vec<PathBuf>,
    /// Folders and files that the kernel executes: itself and the program loader.
    pub executables: Vec<PathBuf>,
}

impl Interpreter {
    /// Asks an interpreter (a name on `PATH` or a path), outside the sandbox, where its files are.
    ///
    /// **Errors**: it is not there, is no Python 3, or its installation is the whole file system.
    pub fn find(python: &str) -> Result<Self> {
        let output = Command::new(python)
            .args(["-s", "-c", QUESTIONS])
            .env_remove("PYTHONPATH")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run `{python}`; name a Python 3 with `evaluate.code.python`"))?;
        ensure!(
            output.status.success(),
            "`{python}` ended with {}: {}; name a Python 3 with `evaluate.code.python`",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let text = String::from_utf8(output.stdout).with_context(|| format!("`{python}` does not speak UTF-8"))?;
        Self::from_answers(&text).with_context(|| format!("`{python}`"))
    }

    fn from_answers(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        let (Some(executable), Some(version)) = (lines.next(), lines.next()) else {
            bail!("expected the interpreter's path and version, found `{text}`")
        };
        ensure!(version.starts_with("3."), "expected Python 3, found {version}");
        let executable = PathBuf::from(executable);
        ensure!(executable.is_absolute(), "expected the interpreter's absolute path, found `{}`", executable.display());
        let real = executable.canonicalize().with_context(|| format!("cannot resolve `{}`", executable.display()))?;
        let mut readable = Vec::new();
        // The current folder is on the path as an empty line.
        readable.extend(lines.map(PathBuf::from).filter(|path| path.is_absolute()));
        if let Some(whole) = readable.iter().find(|path| path.parent().is_none()) {
            bail!("its files lie in `{}`; the sandbox would let programs read everything", whole.display());
        }
        readable.extend(SYSTEM_PATHS.iter().map(PathBuf::from));
        readable.retain(|path| path.exists());
        let loader = LOADER_PATHS.iter().map(PathBuf::from).filter(|path| path.exists());
        let executables = std::iter::once(real).chain(loader).collect();
        Ok(Self { executable, version: version.to_owned(), readable, executables })
    }
}

/// Everything that the interpreter finds in its environment; nothing is passed on.
pub fn environment(scratch: &Path) -> Vec<(&'static str, PathBuf)> {
    let text = |text: &str| PathBuf::from(text);
    vec![
        ("HOME", scratch.to_owned()),
        ("TMPDIR", scratch.to_owned()),
        ("PATH", text("/nonexistent")),
        ("LANG", text("C.UTF-8")),
        ("TZ", text("UTC")),
        // The order of sets of strings must not change a verdict.
        ("PYTHONHASHSEED", text("0")),
        ("PYTHONDONTWRITEBYTECODE", text("1")),
        ("PYTHONNOUSERSITE", text("1")),
        // Numeric libraries must not start threads, which the sandbox refuses.
        ("OMP_NUM_THREADS", text("1")),
        ("OPENBLAS_NUM_THREADS", text("1")),
        ("MKL_NUM_THREADS", text("1")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installation_in_the_root_folder_or_of_python_2_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let python = folder.path().join("python3");
        std::fs::write(&python, "").unwrap();
        let answers = |version: &str, rest: &str| format!("{}\n{version}\n{rest}", python.display());

        let found = Interpreter::from_answers(&answers("3.11.7", "\nrelative\n/nowhere/at/all")).unwrap();
        assert_eq!(found.version, "3.11.7");
        assert_eq!(found.executables[0], python.canonicalize().unwrap());
        assert!(found.readable.iter().all(|path| path.is_absolute() && path.exists()));

        let error = Interpreter::from_answers(&answers("3.11.7", "/")).expect_err("it would open everything");
        assert!(error.to_string().contains("read everything"), "{error}");
        let error = Interpreter::from_answers(&answers("2.7.18", "")).expect_err("it is too old");
        assert!(error.to_string().contains("2.7.18"), "{error}");
    }

    #[test]
    fn an_interpreter_that_is_not_there_names_the_key() {
        let error = Interpreter::find("no-such-python").expect_err("it is not there");
        assert!(format!("{error:#}").contains("evaluate.code.python"), "{error:#}");
    }
}
