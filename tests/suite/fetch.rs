//! `glan fetch` against a hub of this machine: the real executable, the real cache layout, no network.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
};

use glan::model_dir::{HubEnvironment, resolve_in};
use serde_json::{Value, json};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const REPOSITORY: &str = "org/tiny";

/// A hub that serves one repository.
struct Hub {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

/// How the hub misbehaves.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Well,
    /// The first answer with the whole second shard breaks off half-way.
    CutsOnce,
    /// The second shard is never given.
    FailsShard,
}

fn repository_files() -> BTreeMap<String, Vec<u8>> {
    let index = json!({"metadata": {}, "weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"
    }});
    let text = |text: &str| text.as_bytes().to_vec();
    BTreeMap::from([
        ("config.json".into(), text("{\"model_type\": \"llama\"}")),
        ("tokenizer.json".into(), text("{}")),
        ("tokenizer_config.json".into(), text("{\"bos_token\": null}")),
        ("chat_template.jinja".into(), text("{{ messages }}")),
        ("README.md".into(), text("not fetched")),
        ("pytorch_model.bin".into(), text("not fetched")),
        ("model.safetensors.index.json".into(), text(&index.to_string())),
        ("model-00001-of-00002.safetensors".into(), (0..=255).collect()),
        ("model-00002-of-00002.safetensors".into(), (0..3000u32).map(|byte| byte as u8).collect()),
    ])
}

impl Hub {
    fn open(files: BTreeMap<String, Vec<u8>>, mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, host) = (Arc::clone(&requests), address.clone());
        // Ends with the test process.
        thread::spawn(move || {
            let mut cut = mood == Mood::CutsOnce;
            for stream in listener.incoming() {
                // A client that hangs up early is one of the cases.
                let _ = serve(stream.unwrap(), &files, mood, &mut cut, &log, &host);
            }
        });
        Self { address, requests }
    }

    /// Bodies that were asked for since the last call, metadata requests left out.
    fn downloads(&self) -> Vec<String> {
        let mut requests = self.requests.lock().unwrap();
        let taken = std::mem::take(&mut *requests);
        taken.into_iter().filter(|request| !request.starts_with("/api") && !request.ends_with("bytes=0-0")).collect()
    }

    fn fetch(&self, hub_cache: &Path, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_glan"));
        for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN", "HF_HUB_OFFLINE", "HF_HOME"] {
            command.env_remove(name);
        }
        command.arg("fetch").args(arguments).env("HF_ENDPOINT", &self.address).env("HF_HUB_CACHE", hub_cache);
        command.output().unwrap()
    }
}

fn serve(
    mut stream: TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    mood: Mood,
    cut: &mut bool,
    log: &Mutex<Vec<String>>,
    host: &str,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = String::new();
    for line in lines.by_ref() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("range")
        {
            range = value.to_owned();
        }
    }
    log.lock().unwrap().push(format!("{path} {range}"));
    let mut answer = |status: &str, headers: &str, body: &[u8], length: usize| -> std::io::Result<()> {
        write!(stream, "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n")?;
        stream.write_all(body)
    };
    let page = path.split('?').next().unwrap_or_default();
    if page == format!("/api/models/{REPOSITORY}/revision/main") {
        let siblings: Vec<Value> =
            files.iter().map(|(name, bytes)| json!({"rfilename": name, "size": bytes.len()})).collect();
        let body = json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return answer("200 OK", "Content-Type: application/json\r\n", body.as_bytes(), body.len());
    }
    let resolved = page.strip_prefix(&format!("/{REPOSITORY}/resolve/{COMMIT}/"));
    let name = resolved.or_else(|| page.strip_prefix("/storage/")).unwrap_or_default();
    let Some(bytes) = files.get(name) else { return answer("404 Not Found", "", b"", 0) };
    let identity = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"etag-{}\"\r\n", name.replace('.', "-"));
    if name.starts_with("model-00002") && mood == Mood::FailsShard {
        return answer("500 Internal Server Error", "", b"", 0);
    }
    // As on the hub, weights lie elsewhere.
    if resolved.is_some() && name.ends_with(".safetensors") {
        let headers = format!("{identity}Location: {host}/storage/{name}\r\n");
        return answer("302 Found", &headers, b"", 0);
    }
    let (start, end) = range.trim_start_matches("bytes=").split_once('-').unwrap_or(("0", ""));
    let start: usize = start.parse().unwrap_or(0);
    let end = end.parse::<usize>().map_or(bytes.len(), |last| last + 1).min(bytes.len());
    let headers = format!("{identity}Content-Range: bytes {start}-{}/{}\r\n", end.max(1) - 1, bytes.len());
    let mut body = &bytes[start.min(end)..end];
    let length = body.len();
    if *cut && name.starts_with("model-00002") && length > 1 {
        *cut = false;
        body = &body[..length / 2];
    }
    answer("206 Partial Content", &headers, body, length)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Checks the model in the cache, and that it is found as any other program would find it.
fn check_model(cache: &Path) {
    let environment = HubEnvironment { hub_cache: Some(cache.to_owned()), ..HubEnvironment::default() };
    let directory = resolve_in(REPOSITORY, &environment).unwrap();
    assert_eq!(directory, cache.join("models--org--tiny/snapshots").join(COMMIT));
    let mut wanted = repository_files();
    wanted.retain(|name, _| name != "README.md" && name != "pytorch_model.bin");
    let mut found: Vec<String> =
        std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    assert_eq!(found, wanted.keys().cloned().collect::<Vec<_>>());
    for (name, bytes) in wanted {
        assert_eq!(std::fs::read(directory.join(&name)).unwrap(), bytes, "{name}");
    }
    let references: Vec<_> = std::fs::read_dir(cache.join("models--org--tiny/refs")).unwrap().collect();
    assert_eq!(references.len(), 1, "{references:?}");
}

#[test]
fn a_model_is_fetched_into_the_cache_and_a_second_run_downloads_nothing() {
    let hub = Hub::open(repository_files(), Mood::Well);
    let cache = tempfile::tempdir().unwrap();
    let output = hub.fetch(cache.path(), &[REPOSITORY, "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    check_model(cache.path());
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["commit"], COMMIT);
    assert_eq!(result["files"].as_array().unwrap().len(), 7);
    assert!(result["files"].as_array().unwrap().iter().all(|file| file["downloaded"] == true));
    assert!(!hub.downloads().is_empty());

    let output = hub.fetch(cache.path(), &[REPOSITORY]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("0 files downloaded, 7 already there"));
    assert_eq!(hub.downloads(), Vec::<String>::new());
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke_off() {
    let hub = Hub::open(repository_files(), Mood::CutsOnce);
    let cache = tempfile::tempdir().unwrap();
    let output = hub.fetch(cache.path(), &[REPOSITORY]);
    assert!(output.status.success(), "{}", stderr(&output));
    check_model(cache.path());
    let downloads = hub.downloads();
    assert!(
        downloads.iter().any(|request| request.ends_with("model-00002-of-00002.safetensors bytes=1500-")),
        "{downloads:?}"
    );
}

#[test]
fn a_failed_download_leaves_no_model_and_the_next_run_fetches_the_rest() {
    let failing = Hub::open(repository_files(), Mood::FailsShard);
    let cache = tempfile::tempdir().unwrap();
    let output = failing.fetch(cache.path(), &[REPOSITORY]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("model-00002-of-00002.safetensors"), "{}", stderr(&output));
    assert!(stderr(&output).contains("again"), "{}", stderr(&output));
    assert!(!cache.path().join("models--org--tiny/refs/main").exists());

    let working = Hub::open(repository_files(), Mood::Well);
    let output = working.fetch(cache.path(), &[REPOSITORY]);
    assert!(output.status.success(), "{}", stderr(&output));
    check_model(cache.path());
    assert!(working.downloads().iter().all(|request| request.contains("model-00002")));
}

#[test]
fn what_is_missing_is_one_clear_error() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::open(repository_files(), Mood::Well);
    let output = hub.fetch(cache.path(), &["org/unknown"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no model `org/unknown`"), "{}", stderr(&output));
    let output = hub.fetch(cache.path(), &[REPOSITORY, "--revision", "v9"]);
    assert!(stderr(&output).contains("revision `v9`"), "{}", stderr(&output));

    for (removed, words) in [
        ("tokenizer.json", "holds no `tokenizer.json`"),
        ("model.safetensors.index.json", "neither `model.safetensors` nor"),
        ("model-00001-of-00002.safetensors", "names `model-00001-of-00002.safetensors`"),
    ] {
        let mut files = repository_files();
        files.remove(removed);
        let output = Hub::open(files, Mood::Well).fetch(cache.path(), &[REPOSITORY]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
        assert_eq!(stderr(&output).lines().filter(|line| line.starts_with("error")).count(), 1);
    }
    assert!(!cache.path().join("models--org--tiny/refs/main").exists());
}

#[test]
fn nothing_is_asked_of_the_hub_when_it_is_switched_off() {
    let hub = Hub::open(repository_files(), Mood::Well);
    let cache = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_glan"))
        .args(["fetch", REPOSITORY])
        .env("HF_ENDPOINT", &hub.address)
        .env("HF_HUB_CACHE", cache.path())
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("HF_HUB_OFFLINE"), "{}", stderr(&output));
    assert!(hub.requests.lock().unwrap().is_empty());
}
