//! `glan fetch --benchmarks`: the files that `glan evaluate --data` reads, from their authors' repositories.
//!
//! `benchmarks.json` names for each file the repository, the commit, the size, the SHA-256 and the licence. Only files
//! that may be passed on and that their repositories hold in the form that is read here are in it; what else
//! `docs/evaluation.md` lists has to be brought. Beside the files `benchmarks.lock.json` says what was taken from where.

use std::{
    collections::BTreeSet,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{error::usage, interrupt, model_dir::HubEnvironment, records, telemetry::Progress};

/// Serves every public repository's files by commit.
const HOST: &str = "https://raw.githubusercontent.com";
/// What was taken, beside the files.
const LOCK: &str = "benchmarks.lock.json";

/// A file as the list names it.
#[derive(Debug, Clone, Deserialize)]
struct Entry {
    file: String,
    repository: String,
    commit: String,
    path: String,
    bytes: u64,
    sha256: String,
    licence: String,
}

/// A file as the lock records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedFile {
    /// Name under the folder.
    pub file: String,
    /// Where it came from.
    pub url: String,
    /// Its size.
    pub bytes: u64,
    /// Its hash, checked.
    pub sha256: String,
    /// What its authors allow.
    pub licence: String,
}

/// What a download left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FetchedBenchmarks {
    /// The folder for `--data`.
    pub folder: PathBuf,
    /// Files that were downloaded now.
    pub downloaded: usize,
    /// All files of what was asked for.
    pub files: Vec<LockedFile>,
}

/// Downloads benchmarks, all where none are named; files that are there with the right hash are left alone.
///
/// **Errors**: usage, for an unknown benchmark and when downloading is switched off; the file that could not be had, or
/// that is not what the list says.
pub fn fetch(
    folder: &Path,
    names: &[String],
    host: Option<&str>,
    environment: &HubEnvironment,
) -> Result<FetchedBenchmarks> {
    let list: Vec<Entry> = serde_json::from_str(include_str!("benchmarks.json")).context("the built-in list")?;
    let known: BTreeSet<&str> = list.iter().map(|entry| benchmark(&entry.file)).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(name.as_str())) {
        let known: Vec<&str> = known.into_iter().collect();
        return Err(usage(format!("there is no benchmark `{unknown}` to fetch; known: {}", known.join(", "))));
    }
    let is_wanted = |entry: &&Entry| names.is_empty() || names.iter().any(|name| name == benchmark(&entry.file));
    let host = host.unwrap_or(HOST).trim_end_matches('/');
    let mut fetched = FetchedBenchmarks { folder: folder.to_owned(), downloaded: 0, files: Vec::new() };
    let wanted: Vec<&Entry> = list.iter().filter(is_wanted).collect();
    let mut progress = Progress::new("fetch files", 0, wanted.len() as u64);
    for entry in wanted {
        interrupt::check()?;
        let url = format!("{host}/{}/{}/{}", entry.repository, entry.commit, entry.path);
        let path = folder.join(&entry.file);
        if !fs::read(&path).is_ok_and(|bytes| hash(&bytes) == entry.sha256) {
            if environment.offline {
                return Err(usage(format!(
                    "`HF_HUB_OFFLINE` is set, so `{}` cannot be downloaded (unset the variable to download)",
                    entry.file
                )));
            }
            records::write_atomic(&path, &download(&url, entry)?)?;
            fetched.downloaded += 1;
        }
        let Entry { file, bytes, sha256, licence, .. } = entry.clone();
        fetched.files.push(LockedFile { file, url, bytes, sha256, licence });
        progress.advance(1, &entry.file);
    }
    progress.finish();
    write_lock(folder, &fetched.files)?;
    Ok(fetched)
}

/// The benchmark of a file: its first folder.
fn benchmark(file: &str) -> &str {
    file.split('/').next().unwrap_or(file)
}

fn download(url: &str, entry: &Entry) -> Result<Vec<u8>> {
    let again = "run the same command again to go on with what is missing";
    let mut response = ureq::get(url).call().map_err(|error| anyhow!("cannot download `{url}`: {error}; {again}"))?;
    let mut bytes = Vec::new();
    // One byte more than there should be is enough to see that it is another file.
    let mut body = response.body_mut().as_reader().take(entry.bytes + 1);
    body.read_to_end(&mut bytes).with_context(|| format!("`{url}` broke off after {} bytes; {again}", bytes.len()))?;
    let found = hash(&bytes);
    if found != entry.sha256 {
        bail!(
            "`{url}` is not the file that is known as `{}`: {} bytes with SHA-256 {found}, expected {} with {}",
            entry.file,
            bytes.len(),
            entry.bytes,
            entry.sha256
        );
    }
    Ok(bytes)
}

/// Records what was taken, beside what earlier calls took.
fn write_lock(folder: &Path, files: &[LockedFile]) -> Result<()> {
    let path = folder.join(LOCK);
    let mut locked: Vec<LockedFile> = if path.is_file() { records::read_json(&path)? } else { Vec::new() };
    locked.retain(|old| !files.iter().any(|new| new.file == old.file));
    locked.extend_from_slice(files);
    locked.sort_by(|one, other| one.file.cmp(&other.file));
    records::write_json(&path, &locked)
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_list_has_a_commit_a_hash_and_a_licence_and_stays_in_the_folder() {
        let list: Vec<Entry> = serde_json::from_str(include_str!("benchmarks.json")).expect("the list is built in");
        assert!(list.len() > 50, "{}", list.len());
        for entry in &list {
            assert!(entry.commit.len() == 40 && entry.sha256.len() == 64 && entry.bytes > 0, "{entry:?}");
            assert!(!entry.licence.is_empty() && !entry.licence.contains("NC"), "{entry:?}");
            assert!(Path::new(&entry.file).components().all(|part| matches!(part, std::path::Component::Normal(_))));
        }
    }

    #[test]
    fn an_unknown_benchmark_and_offline_mode_are_usage_errors_before_any_connection() {
        let folder = tempfile::tempdir().expect("a folder");
        let environment = HubEnvironment { offline: true, ..HubEnvironment::default() };
        let fetch = |name: &str| fetch(folder.path(), &[name.to_owned()], Some("http://127.0.0.1:9"), &environment);
        let error = fetch("gsm9k").expect_err("there is no such benchmark");
        assert!(crate::error::exit_code(&error) == 2 && error.to_string().contains("gsm8k"), "{error}");
        let error = fetch("piqa").expect_err("offline");
        assert!(crate::error::exit_code(&error) == 2 && error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    }
}
