//! Ten thousand requests in a file: the queue costs their text and no more.

use std::{fs, path::Path, process::Stdio, time::Duration};

use serde_json::json;

use crate::support::{glan_command, root};

/// What may come on top of the text: the allocator's pages, and a poll that comes a little late.
const SLACK_BYTES: u64 = 24 << 20;

/// Answers `count` requests; returns the highest resident memory in bytes and the size of the file of requests.
fn answer(folder: &Path, count: usize) -> Option<(u64, u64)> {
    let requests: String = (0..count)
        .map(|i| {
            let prompt =
                format!("{i} and 3 and {} and 5 are in this sum, which is one of many. ", i * 7 % 1000).repeat(2);
            json!({"id": i.to_string(), "prompt": prompt, "max_new_tokens": 1}).to_string() + "\n"
        })
        .collect();
    fs::write(folder.join("requests.jsonl"), &requests).unwrap();
    let output = folder.join(format!("answers-{count}.jsonl"));
    let mut child = glan_command(folder)
        .args(["complete", "--requests", "requests.jsonl", "--device", "cpu", "--model"])
        .arg(root().join("models/primer-base"))
        .arg("--output")
        .arg(&output)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak = None;
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        peak = peak.max(kibibytes.map(|kibibytes| kibibytes << 10));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(child.wait().unwrap().success());
    let answers = fs::read_to_string(&output).unwrap();
    assert_eq!(answers.lines().count(), count);
    // Every one went through the engine: a refused request costs nothing, and would prove nothing.
    assert!(!answers.contains("\"finish_reason\":\"error\""), "{answers:.300}");
    Some((peak?, requests.len() as u64))
}

#[test]
#[allow(clippy::print_stderr, reason = "says what was skipped")]
fn ten_thousand_requests_cost_their_text() {
    let folder = tempfile::tempdir().unwrap();
    // Both are more than the window in which requests are put in order.
    let (Some((few, few_bytes)), Some((many, many_bytes))) =
        (answer(folder.path(), 2_000), answer(folder.path(), 10_000))
    else {
        eprintln!("skipped: memory, this system has no /proc");
        return;
    };
    let text = many_bytes - few_bytes;
    assert!(many <= few + 2 * text + SLACK_BYTES, "2,000 requests: {few} bytes, 10,000: {many}, text {text}");
}
