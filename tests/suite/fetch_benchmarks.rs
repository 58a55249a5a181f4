//! `glan fetch --benchmarks` against a server of this machine: hashes are checked, files that are there stay, no network.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::Value;

use crate::chat_templates::shared;

const FILES: [&str; 3] = ["all_sentences.tsv", "templates.tsv", "occupations-stats.tsv"];

/// Serves files by the end of their path; the paths that were asked for.
fn server(files: BTreeMap<String, Vec<u8>>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    // Ends with the test process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let first = lines.next().unwrap_or_default();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
            let name = path.rsplit('/').next().unwrap_or_default();
            let (status, body) = match files.get(name) {
                Some(bytes) => ("200 OK", bytes.as_slice()),
                None => ("404 Not Found", &b""[..]),
            };
            log.lock().unwrap().push(path);
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            // A client that hangs up early is one of the cases.
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    (address, asked)
}

fn fetch(address: &str, folder: &Path, offline: bool) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_glan"));
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN", "HF_HUB_OFFLINE"] {
        command.env_remove(name);
    }
    if offline {
        command.env("HF_HUB_OFFLINE", "1");
    }
    command.args(["fetch", "winogender", "--json", "--mirror", address, "--benchmarks"]).arg(folder);
    command.output().unwrap()
}

#[test]
fn benchmarks_come_with_their_hash_and_licence_and_are_used_offline_afterwards() {
    let Some(source) = shared().map(|shared| shared.join("benchmarks/winogender")).filter(|folder| folder.is_dir())
    else {
        eprintln!("skipped: no folder of shared benchmarks");
        return;
    };
    let files: BTreeMap<String, Vec<u8>> =
        FILES.iter().map(|name| ((*name).to_owned(), fs::read(source.join(name)).unwrap())).collect();
    let folder = tempfile::tempdir().unwrap();
    let mut damaged = files.clone();
    damaged.get_mut("templates.tsv").unwrap()[10] ^= 1;
    let (address, _) = server(damaged);
    let said = fetch(&address, folder.path(), false);
    let message = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.status.success() && message.contains("templates.tsv") && message.contains("SHA-256"), "{message}");
    assert!(!folder.path().join("winogender/templates.tsv").exists(), "a wrong file is not kept");

    let (address, asked) = server(files.clone());
    let said = fetch(&address, folder.path(), false);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let lock: Value = serde_json::from_slice(&fs::read(folder.path().join("benchmarks.lock.json")).unwrap()).unwrap();
    assert_eq!(lock.as_array().unwrap().len(), FILES.len());
    for row in lock.as_array().unwrap() {
        assert_eq!(row["licence"], "MIT", "{row}");
        assert!(row["url"].as_str().unwrap().starts_with(&address), "{row}");
        assert_eq!(row["sha256"].as_str().unwrap().len(), 64);
    }
    for (name, bytes) in &files {
        assert_eq!(&fs::read(folder.path().join("winogender").join(name)).unwrap(), bytes, "{name}");
    }
    // What came before the damaged file was kept.
    assert!(asked.lock().unwrap().len() < FILES.len(), "{asked:?}");

    asked.lock().unwrap().clear();
    let said = fetch(&address, folder.path(), true);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(asked.lock().unwrap().is_empty(), "everything is there");
}
