//! Logs and progress, on stderr alone. Nothing is ever sent anywhere.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::EnvFilter;

/// Starts logging to stderr. `RUST_LOG` overrides the level; `NO_COLOR` is honoured.
pub fn install(verbose: bool, quiet: bool) {
    let level = if verbose {
        "glan=debug,warn"
    } else if quiet {
        "error"
    } else {
        "glan=info,warn"
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    // Fails only when a subscriber is already there (in tests), which is then as good as ours.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(false)
        .without_time()
        .try_init();
}

/// Progress of one stage: a bar on a terminal, a log line every ten seconds elsewhere.
pub struct Progress {
    bar: ProgressBar,
    what: String,
    total: u64,
    last_line: std::time::Instant,
    on_terminal: bool,
}

impl Progress {
    /// Begins with `done` of `total` units.
    pub fn new(what: &str, done: u64, total: u64) -> Self {
        let on_terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            Some(total),
            if on_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
        );
        let style = ProgressStyle::with_template("{prefix:>10} [{bar:32}] {pos}/{len} {msg} {elapsed} eta {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        bar.set_style(style);
        bar.set_prefix(what.to_owned());
        bar.set_position(done);
        bar.reset_eta();
        if on_terminal {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Self { bar, what: what.to_owned(), total, last_line: std::time::Instant::now(), on_terminal }
    }

    /// Moves forward by `units`, with a short note such as a rate or a loss.
    pub fn advance(&mut self, units: u64, note: &str) {
        self.bar.inc(units);
        if !note.is_empty() {
            self.bar.set_message(note.to_owned());
        }
        if !self.on_terminal && self.last_line.elapsed() >= Duration::from_secs(10) {
            tracing::info!("{} {}/{} {note}", self.what, self.bar.position(), self.total);
            self.last_line = std::time::Instant::now();
        }
    }

    /// Ends the bar.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

/// Prints an error chain on stderr, innermost cause last.
#[expect(clippy::print_stderr, reason = "the one place that speaks to the user before the process ends")]
pub fn print_error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

/// Prints a command's result on stdout. A reader that has gone away (`| head`) has read enough: no panic, no error.
pub fn print_result(text: impl std::fmt::Display) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = writeln!(stdout, "{text}").and_then(|()| stdout.flush())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        tracing::error!("cannot write the result to stdout: {error}");
    }
}
