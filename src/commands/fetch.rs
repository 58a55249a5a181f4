//! `glan fetch`: the one command that opens a socket. It downloads a model into the Hugging Face cache, where
//! [`crate::model_dir::resolve`] and every other Hugging Face program find it.
//!
//! The revision is turned into a commit first and all files come from that commit; the cache's reference to it is moved
//! only when everything is there, so that an interrupted download never stands in for a model. Benchmarks come by
//! [`benchmarks`].

mod benchmarks;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError, ApiRepo},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::usage,
    interrupt,
    model_dir::{HubEnvironment, is_repository, resolve_in},
    telemetry,
};

/// Files that are taken where a repository has them, beside the weights.
const OPTIONAL: [&str; 6] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
];
/// Files without which a model cannot be used here.
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// A broken connection is taken up again this often, where it broke off.
const RETRIES: usize = 3;
const HUB: &str = "https://huggingface.co";

/// Arguments of `glan fetch`.
#[derive(Debug, Clone, Args)]
pub struct FetchArgs {
    /// The model's repository, `org/name`; with --benchmarks the names of benchmarks, all where none is given.
    #[arg(value_name = "ORG/NAME", required_unless_present = "benchmarks")]
    pub names: Vec<String>,
    /// Download benchmarks into this folder, for `glan evaluate --data`.
    #[arg(long, value_name = "DIR")]
    pub benchmarks: Option<PathBuf>,
    /// Where benchmarks come from, instead of their authors' repositories.
    #[arg(long, value_name = "URL", requires = "benchmarks")]
    pub mirror: Option<String>,
    /// Branch, tag or commit.
    #[arg(long, default_value = "main")]
    pub revision: String,
    /// Machine-readable result on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn main(args: &FetchArgs) -> Result<()> {
    let environment = HubEnvironment::from_process();
    if let Some(folder) = &args.benchmarks {
        let fetched = benchmarks::fetch(folder, &args.names, args.mirror.as_deref(), &environment)?;
        if args.json {
            telemetry::print_result(serde_json::to_string_pretty(&fetched)?);
        } else {
            let (downloaded, all) = (fetched.downloaded, fetched.files.len());
            let folder = folder.display();
            telemetry::print_result(format!(
                "{downloaded} files downloaded, {} already there\n{folder}",
                all - downloaded
            ));
        }
        return Ok(());
    }
    let [model] = &args.names[..] else {
        return Err(usage(format!("one model at a time; {} names were given", args.names.len())));
    };
    let fetched = fetch(model, &args.revision, &environment)?;
    if args.json {
        telemetry::print_result(serde_json::to_string_pretty(&fetched)?);
    } else {
        let downloaded = fetched.files.iter().filter(|file| file.downloaded).count();
        telemetry::print_result(format!(
            "{} at {}: {downloaded} files downloaded, {} already there\n{}",
            fetched.model,
            fetched.commit,
            fetched.files.len() - downloaded,
            fetched.directory.display()
        ));
    }
    Ok(())
}

/// What a download left behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fetched {
    /// `org/name`
    pub model: String,
    /// As asked for.
    pub revision: String,
    /// The commit that the revision stands for.
    pub commit: String,
    /// The model directory in the cache.
    pub directory: PathBuf,
    /// Its files.
    pub files: Vec<FetchedFile>,
}

/// One file of a download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FetchedFile {
    /// Name in the repository.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Whether it was downloaded now, rather than found in the cache.
    pub downloaded: bool,
}

/// What the hub says of a repository at one revision.
#[derive(Debug, Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<RemoteFile>,
}

#[derive(Debug, Deserialize)]
struct RemoteFile {
    rfilename: String,
    size: Option<u64>,
}

impl Listing {
    fn has(&self, name: &str) -> bool {
        self.siblings.iter().any(|file| file.rfilename == name)
    }

    fn size(&self, name: &str) -> Option<u64> {
        self.siblings.iter().find(|file| file.rfilename == name)?.size
    }
}

/// Downloads a model; files that are already in the cache are left alone.
///
/// **Errors**: usage for a wrong name, a missing repository or revision, and when downloading is switched off; else the
/// file that could not be had.
pub fn fetch(model: &str, revision: &str, environment: &HubEnvironment) -> Result<Fetched> {
    if !is_repository(model) {
        return Err(usage(format!("`{model}` is not the name of a model on the hub; expected `org/name`")));
    }
    if environment.offline {
        let found = match resolve_in(model, environment) {
            Ok(directory) => format!("it is already in `{}`", directory.display()),
            Err(_) => "it is not in the cache".to_owned(),
        };
        return Err(usage(format!(
            "`HF_HUB_OFFLINE` is set, so `{model}` cannot be downloaded; {found} (unset the variable to download)"
        )));
    }
    let cache_folder = environment.cache().ok_or_else(|| {
        usage("no folder for the Hugging Face cache: set `HF_HOME`, since there is no home directory")
    })?;
    let endpoint = environment.endpoint.clone().unwrap_or_else(|| HUB.to_owned());
    let endpoint = endpoint.trim_end_matches('/');
    let cache = Cache::new(cache_folder.clone());
    let api = ApiBuilder::from_cache(cache.clone())
        .with_endpoint(endpoint.to_owned())
        .with_token(environment.access_token())
        .with_retries(RETRIES)
        .with_progress(false)
        .build()
        .map_err(|error| anyhow!("cannot set up the connection to `{endpoint}`: {error}"))?;

    let named = Repo::with_revision(model.to_owned(), RepoType::Model, revision.to_owned());
    let listing = list(&api.repo(named.clone()), model, revision, endpoint)?;
    let missing: Vec<&str> = REQUIRED.into_iter().filter(|name| !listing.has(name)).collect();
    if !missing.is_empty() {
        bail!("`{model}` at {} holds no `{}`, which a model here needs", listing.sha, missing.join("` and no `"));
    }
    let pinned = Repo::with_revision(model.to_owned(), RepoType::Model, listing.sha.clone());
    let directory = cache.repo(pinned.clone()).pointer_path(&listing.sha);
    let mut download = Download {
        repository: api.repo(pinned),
        model,
        directory: directory.clone(),
        listing: &listing,
        files: Vec::new(),
    };
    download.run()?;
    let files = download.files;

    // `hf-hub` made a reference named after the commit, which nobody looks for; the one that was asked for is due now.
    let references = cache_folder.join(named.folder_name()).join("refs");
    if revision != listing.sha {
        cache.repo(named).create_ref(&listing.sha).context("cannot write the cache's reference to the model")?;
    }
    let _ = fs::remove_file(references.join(&listing.sha));
    Ok(Fetched { model: model.to_owned(), revision: revision.to_owned(), commit: listing.sha, directory, files })
}

/// Asks the hub for the commit and the files of a revision.
fn list(repository: &ApiRepo, model: &str, revision: &str, endpoint: &str) -> Result<Listing> {
    let response = repository.info_request().query("blobs", "true").call();
    let mut response = response.map_err(|error| match status(&error.to_string()) {
        Some(404) => usage(format!("there is no model `{model}` with revision `{revision}` at `{endpoint}`")),
        Some(code @ (401 | 403)) => usage(format!(
            "`{endpoint}` refuses `{model}` (status {code}): it does not exist, or it needs an access token that may \
             read it; accept its terms on the hub and set `HF_TOKEN`"
        )),
        _ => anyhow!("cannot reach `{endpoint}` for `{model}`: {error}"),
    })?;
    response
        .body_mut()
        .read_json()
        .map_err(|error| anyhow!("`{endpoint}` gave no list of the files of `{model}`: {error}"))
}

/// The status code in an error such as `http status: 404`.
fn status(error: &str) -> Option<u16> {
    error.rsplit_once("http status: ")?.1.get(..3)?.parse().ok()
}

/// One model on its way into the cache.
struct Download<'a> {
    repository: ApiRepo,
    model: &'a str,
    directory: PathBuf,
    listing: &'a Listing,
    files: Vec<FetchedFile>,
}

impl Download<'_> {
    fn run(&mut self) -> Result<()> {
        let small: Vec<&str> =
            REQUIRED.into_iter().chain(OPTIONAL.into_iter().filter(|name| self.listing.has(name))).collect();
        // The index says which other files are the weights, so it comes before their total is known.
        let index = self.listing.has(INDEX);
        if !index && !self.listing.has(WEIGHTS) {
            let others: Vec<&str> = self.listing.siblings.iter().map(|file| file.rfilename.as_str()).collect();
            bail!(
                "`{}` holds neither `{WEIGHTS}` nor `{INDEX}`, and other formats are not read; its files: {}",
                self.model,
                others.join(", ")
            );
        }
        let mut progress = Bytes::new(small.iter().chain(&[INDEX]).filter_map(|name| self.listing.size(name)).sum());
        for name in small {
            self.file(name, &mut progress)?;
        }
        if index {
            self.file(INDEX, &mut progress)?;
        }
        progress.finish();
        let weights: BTreeSet<String> = if index { self.shards()? } else { BTreeSet::from([WEIGHTS.to_owned()]) };
        let mut progress = Bytes::new(weights.iter().filter_map(|name| self.listing.size(name)).sum());
        for name in &weights {
            self.file(name, &mut progress)?;
        }
        progress.finish();
        Ok(())
    }

    /// The weight files that the index names.
    fn shards(&self) -> Result<BTreeSet<String>> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let index: Index = crate::records::read_json(&self.directory.join(INDEX))?;
        let shards: BTreeSet<String> = index.weight_map.into_values().collect();
        // The listing is also what keeps a name such as `../../x` out of the cache.
        match shards.iter().find(|name| !self.listing.has(name)) {
            Some(missing) => {
                bail!("`{INDEX}` of `{}` names `{missing}`, which the repository does not hold", self.model)
            }
            None => Ok(shards),
        }
    }

    fn file(&mut self, name: &str, progress: &mut Bytes) -> Result<()> {
        interrupt::check()?;
        let path = self.directory.join(name);
        let expected = self.listing.size(name);
        let is_there =
            || fs::metadata(&path).ok().map(|file| file.len()).filter(|&len| expected.is_none_or(|size| size == len));
        if let Some(bytes) = is_there() {
            progress.advance(bytes, name);
            self.files.push(FetchedFile { name: name.to_owned(), bytes, downloaded: false });
            return Ok(());
        }
        tracing::debug!("downloading {name}");
        self.repository
            .download_with_progress(name, FileProgress { bytes: progress, name })
            .map_err(|error| self.explain(name, &error))?;
        let Some(bytes) = is_there() else {
            bail!(
                "`{name}` of `{}` came with {} bytes, expected {}; remove `{}` and fetch it again",
                self.model,
                fs::metadata(&path).map_or(0, |file| file.len()),
                expected.unwrap_or(0),
                fs::canonicalize(&path).unwrap_or(path.clone()).display()
            );
        };
        self.files.push(FetchedFile { name: name.to_owned(), bytes, downloaded: true });
        Ok(())
    }

    fn explain(&self, name: &str, error: &ApiError) -> anyhow::Error {
        match status(&error.to_string()) {
            Some(401 | 403) => usage(format!(
                "the hub refuses `{name}` of `{}`: accept its terms on the hub and set `HF_TOKEN`",
                self.model
            )),
            _ => anyhow!(
                "cannot download `{name}` of `{}`: {error}; run the same command again to go on where it broke off",
                self.model
            ),
        }
    }
}

/// Progress over all files of a download, shown in MiB.
struct Bytes {
    shown: telemetry::Progress,
    /// Bytes that do not make a whole MiB yet.
    rest: u64,
}

impl Bytes {
    const UNIT: u64 = 1 << 20;

    fn new(total: u64) -> Self {
        Self { shown: telemetry::Progress::new("fetch MiB", 0, total.div_ceil(Self::UNIT)), rest: 0 }
    }

    fn advance(&mut self, bytes: u64, name: &str) {
        self.rest += bytes;
        self.shown.advance(self.rest / Self::UNIT, name);
        self.rest %= Self::UNIT;
    }

    fn finish(self) {
        self.shown.finish();
    }
}

/// Progress within one file, as `hf-hub` reports it.
struct FileProgress<'a> {
    bytes: &'a mut Bytes,
    name: &'a str,
}

impl hf_hub::api::Progress for FileProgress<'_> {
    fn init(&mut self, _: usize, _: &str) {}

    fn update(&mut self, bytes: usize) {
        self.bytes.advance(bytes as u64, self.name);
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_and_offline_mode_are_usage_errors_before_any_connection() {
        let hub = tempfile::tempdir().unwrap();
        let mut environment = HubEnvironment {
            hub_cache: Some(hub.path().to_owned()),
            // Nothing listens on port 9 of this machine; reaching for it would be another error.
            endpoint: Some("http://127.0.0.1:9".into()),
            ..HubEnvironment::default()
        };
        let error = fetch("just-a-name", "main", &environment).expect_err("the name has no organisation");
        assert_eq!(crate::error::exit_code(&error), 2);
        assert!(error.to_string().contains("org/name"), "{error}");
        environment.offline = true;
        let error = fetch("org/name", "main", &environment).expect_err("offline");
        assert_eq!(crate::error::exit_code(&error), 2);
        assert!(
            error.to_string().contains("HF_HUB_OFFLINE") && error.to_string().contains("not in the cache"),
            "{error}"
        );
    }

    #[test]
    fn status_codes_are_read_off_the_error() {
        assert_eq!(status("request error: http status: 404"), Some(404));
        assert_eq!(status("io: connection refused"), None);
    }
}
