//! The command line as a user meets it: help, wrong arguments, exit codes.

use super::support::glan;

const COMMANDS: [&str; 18] = [
    "run", "generate", "curate", "train", "evaluate", "report", "improve", "complete", "score", "serve", "taxonomy",
    "chat", "inspect", "export", "fetch", "bench", "doctor", "selftest",
];

#[test]
fn every_command_explains_itself() {
    let folder = tempfile::tempdir().unwrap();
    let overview = glan(folder.path(), &["--help"]).expect_code(0).stdout;
    for command in COMMANDS {
        assert!(
            overview.lines().any(|line| line.trim_start().starts_with(command)),
            "`{command}` is not in\n{overview}"
        );
        let help = glan(folder.path(), &[command, "--help"]).expect_code(0).stdout;
        assert!(help.contains(&format!("Usage: glan {command}")), "{help}");
        // Every option says what it does: clap puts the text on the option's line or on the next.
        let lines: Vec<&str> = help.lines().collect();
        for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.trim_start().starts_with("--")) {
            let below = lines.get(index + 1).is_some_and(|next| next.starts_with("          "));
            assert!(line.trim().contains("  ") || below, "`glan {command}`: nothing said about{line}");
        }
    }
}

#[test]
fn help_lists_no_command_that_this_test_forgot() {
    let folder = tempfile::tempdir().unwrap();
    let overview = glan(folder.path(), &["--help"]).expect_code(0).stdout;
    let listed: Vec<&str> = overview
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert_eq!(listed, COMMANDS);
}

#[test]
fn the_version_is_that_of_the_package() {
    let folder = tempfile::tempdir().unwrap();
    let expected = format!("glan {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(glan(folder.path(), &["--version"]).expect_code(0).stdout, expected);
}

#[test]
fn a_wrong_command_line_ends_with_2_and_says_so_on_stderr() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, expected) in [
        (&["genrate"][..], "generate"),
        (&["run", "--cofnig", "x"], "--config"),
        (&["run", "--set"], "--set"),
        (&["curate", "--data", "x.jsonl"], "--output"),
        (&["train", "--model", "x"], "--data"),
        (&["export", "--model", "x"], "--output"),
        (&["export", "--model", "x", "--output", "x.gguf", "--quantization", "q3"], "q4_k_m"),
        (&["export", "--model", "x", "--output", "x.bin"], ".gguf"),
        (&["export", "--model", "x", "--output", "x.gguf", "--dtype", "f16"], "--quantization"),
        (&["evaluate", "--model", "x"], "--output"),
        (&["evaluate", "--model", "x", "--output", "y"], "--tasks"),
        (&["evaluate", "--model", "x", "--tasks", "primer", "--output", "y", "--limit", "many"], "many"),
        (&["evaluate", "--compare", "a"], "--compare"),
        (&["improve"], "-c FILE"),
        (&["serve"], "--model"),
        (&["run", "--verbose", "--quiet"], "--quiet"),
        (&["bench", "generate"], "--model"),
        (&["bench", "generate", "--model", "x", "--batch", "1,0"], "--batch"),
        (&["bench", "generate", "--model", "x", "--new-tokens", "1"], "--new-tokens"),
        (&["bench", "generate", "--model", "x", "--prompt-tokens", "4", "--shared-prefix", "5"], "--shared-prefix"),
    ] {
        let outcome = glan(folder.path(), arguments).expect_code(2).expect_stderr(&[expected]);
        assert!(outcome.stdout.is_empty(), "{arguments:?}: stdout is for results: {outcome:?}");
    }
}

#[test]
fn no_command_at_all_prints_the_help_and_ends_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let nothing: [&str; 0] = [];
    glan(folder.path(), &nothing).expect_code(2).expect_stderr(&["Usage: glan"]);
}
