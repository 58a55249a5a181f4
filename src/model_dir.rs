//! Finds a model that is named by directory, by GGUF file or as `org/name` in the Hugging Face cache, and says which one
//! it is. Never opens a socket.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{error::usage, gguf::is_gguf, records::read_json};

/// The environment variables of the Hugging Face ecosystem that this program reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubEnvironment {
    /// `HF_HUB_CACHE`: the cache itself.
    pub hub_cache: Option<PathBuf>,
    /// `HF_HOME`: the cache is `hub` in it, and the access token `token`.
    pub hf_home: Option<PathBuf>,
    /// `XDG_CACHE_HOME`: `huggingface/hub` in it.
    pub xdg_cache_home: Option<PathBuf>,
    /// The user's home: `.cache/huggingface/hub` in it.
    pub home: Option<PathBuf>,
    /// `HF_ENDPOINT`: the hub's address.
    pub endpoint: Option<String>,
    /// `HF_TOKEN`: access token.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: nothing may be downloaded.
    pub offline: bool,
}

impl HubEnvironment {
    /// What the process was started with. An empty variable counts as unset.
    pub fn from_process() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let path = |name: &str| set(name).map(PathBuf::from);
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        Self {
            hub_cache: path("HF_HUB_CACHE"),
            hf_home: path("HF_HOME"),
            xdg_cache_home: path("XDG_CACHE_HOME"),
            home: std::env::home_dir(),
            endpoint: text("HF_ENDPOINT"),
            token: text("HF_TOKEN"),
            // The words that huggingface_hub takes for true.
            offline: text("HF_HUB_OFFLINE")
                .is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")),
        }
    }

    /// Hugging Face's folder, in which the cache and the access token lie.
    fn hugging_face_home(&self) -> Option<PathBuf> {
        let cache = || self.xdg_cache_home.clone().or_else(|| Some(self.home.as_ref()?.join(".cache")));
        self.hf_home.clone().or_else(|| Some(cache()?.join("huggingface")))
    }

    /// The folder of the cache.
    pub fn cache(&self) -> Option<PathBuf> {
        self.hub_cache.clone().or_else(|| Some(self.hugging_face_home()?.join("hub")))
    }

    /// The access token: `HF_TOKEN`, else the file that `hf auth login` writes.
    pub fn access_token(&self) -> Option<String> {
        let text = match &self.token {
            Some(token) => token.clone(),
            None => fs::read_to_string(self.hugging_face_home()?.join("token")).ok()?,
        };
        Some(text.trim().to_owned()).filter(|token| !token.is_empty())
    }
}

/// The directory of a model, or its GGUF file.
///
/// Looked for in this order: a GGUF file or a directory of that name (a directory that holds one GGUF file and no
/// safetensors stands for that file); `models--org--name/snapshots/<refs/main>` under
/// `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
///
/// **Errors**: usage, naming every place looked at and `glan fetch`.
pub fn resolve(name: &str) -> Result<PathBuf> {
    resolve_in(name, &HubEnvironment::from_process())
}

/// [`resolve`] in a given environment.
pub fn resolve_in(name: &str, environment: &HubEnvironment) -> Result<PathBuf> {
    if name.is_empty() {
        return Err(usage("no model is named: give a directory or `org/name`"));
    }
    let directory = PathBuf::from(name);
    if directory.is_dir() {
        return only_gguf(directory);
    }
    if is_gguf(&directory) && directory.is_file() {
        return Ok(directory);
    }
    let mut places = vec![if is_gguf(&directory) { format!("file `{name}`") } else { format!("directory `{name}`") }];
    let advice = if is_repository(name) {
        match environment.cache().map(|cache| cache.join(repository_folder(name))) {
            Some(folder) => match snapshot(&folder) {
                Ok(found) => return only_gguf(found),
                Err(place) => places.push(place),
            },
            None => places.push("no Hugging Face cache: neither `HF_HOME` nor a home directory is set".into()),
        }
        format!("download it with `glan fetch {name}`, or give the directory that holds its `config.json`")
    } else {
        "give the directory that holds its `config.json`, or `org/name` of a model on the hub (`glan fetch org/name` \
         downloads it)"
            .to_owned()
    };
    Err(usage(format!("no model `{name}`; looked for {}; {advice}", places.join(" and "))))
}

/// The GGUF file of a directory that holds nothing else to load; else the directory.
///
/// **Errors**: usage, where there are several to choose from.
fn only_gguf(directory: PathBuf) -> Result<PathBuf> {
    let mut files = weight_files(&directory)?;
    files.retain(|path| is_gguf(path));
    match files.len() {
        0 => Ok(directory),
        1 => Ok(files.remove(0)),
        several => Err(usage(format!(
            "`{}` holds {several} GGUF files, such as `{}`; name the one to load",
            directory.display(),
            files[0].file_name().unwrap_or_default().to_string_lossy()
        ))),
    }
}

/// Whether a name has the form `org/name`.
pub fn is_repository(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|character| character.is_ascii_alphanumeric() || "-_.".contains(character))
    };
    name.split_once('/').is_some_and(|(organisation, model)| is_part(organisation) && is_part(model))
}

/// The folder of a model in the cache.
fn repository_folder(name: &str) -> String {
    format!("models--{}", name.replace('/', "--"))
}

/// The snapshot that `refs/main` names, or the only one there is; else what was looked for.
fn snapshot(folder: &Path) -> Result<PathBuf, String> {
    let snapshots = folder.join("snapshots");
    let commit = fs::read_to_string(folder.join("refs/main")).unwrap_or_default();
    let commit = commit.trim();
    if !commit.is_empty() {
        let named = snapshots.join(commit);
        return if named.is_dir() { Ok(named) } else { Err(format!("snapshot `{}`", named.display())) };
    }
    let mut found: Vec<PathBuf> = fs::read_dir(&snapshots)
        .map(|entries| entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
        .unwrap_or_default();
    match found.len() {
        0 => Err(format!("cache folder `{}`", folder.display())),
        1 => Ok(found.remove(0)),
        several => Err(format!(
            "`{}`, which is missing while there are {several} snapshots",
            folder.join("refs/main").display()
        )),
    }
}

/// A model's weight files in the order of their names: its safetensors files, else its GGUF files.
pub fn weight_files(directory: &Path) -> Result<Vec<PathBuf>> {
    if is_gguf(directory) && directory.is_file() {
        return Ok(vec![directory.to_owned()]);
    }
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read folder `{}`", directory.display()))?;
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in entries {
        paths.push(entry.with_context(|| format!("cannot read folder `{}`", directory.display()))?.path());
    }
    paths.retain(|path| path.is_file());
    paths.sort();
    let with_extension = |extension: &str| -> Vec<PathBuf> {
        paths.iter().filter(|path| path.extension().is_some_and(|found| found == extension)).cloned().collect()
    };
    let safetensors = with_extension("safetensors");
    Ok(if safetensors.is_empty() { with_extension("gguf") } else { safetensors })
}

/// Which model a directory or a GGUF file holds: 16 hexadecimal digits of a BLAKE3 hash over the names and bytes of
/// `config.json` and of every weight file. Of an adapter: over its settings, its weights and its base's hash; where the
/// base lies does not count.
///
/// **Errors**: neither a configuration nor weights, a file that cannot be read, or a base that is not there.
pub fn hash_model(directory: &Path) -> Result<String> {
    let mut files = vec![directory.join("config.json")];
    files.retain(|path| path.is_file());
    let mut hasher = blake3::Hasher::new();
    if files.is_empty() {
        hash_adapter_settings(directory, &mut hasher)?;
    }
    files.extend(weight_files(directory)?);
    if files.is_empty() {
        bail!("`{}` holds neither `config.json` nor weights", directory.display());
    }
    for path in files {
        let unreadable = || format!("cannot read `{}`", path.display());
        let name = path.file_name().expect("a listed file has a name").to_string_lossy().into_owned();
        let file = File::open(&path).with_context(unreadable)?;
        // Lengths go first, so that bytes cannot move from one file to the next unnoticed.
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&file.metadata().with_context(unreadable)?.len().to_le_bytes());
        hash_file(file, &mut hasher).with_context(unreadable)?;
    }
    Ok(hasher.finalize().to_hex()[..16].to_owned())
}

/// Takes in a file's bytes, on all threads: one thread hashes slower than a model is loaded.
fn hash_file(mut file: File, hasher: &mut blake3::Hasher) -> std::io::Result<()> {
    const PIECE_BYTES: u64 = 16 << 20;
    let mut piece = Vec::new();
    loop {
        piece.clear();
        if file.by_ref().take(PIECE_BYTES).read_to_end(&mut piece)? == 0 {
            return Ok(());
        }
        hasher.update_rayon(&piece);
    }
}

/// Takes in what `adapter_config.json` says, and the base that it names.
fn hash_adapter_settings(directory: &Path, hasher: &mut blake3::Hasher) -> Result<()> {
    let path = directory.join("adapter_config.json");
    if !path.is_file() {
        return Ok(());
    }
    let mut settings: serde_json::Map<String, serde_json::Value> = read_json(&path)?;
    let base = settings.shift_remove("base_model_name_or_path");
    let Some(base) = base.as_ref().and_then(serde_json::Value::as_str) else {
        bail!(
            "`{}` has no `base_model_name_or_path`; expected the directory or name of the base model",
            path.display()
        );
    };
    let found = resolve(base).with_context(|| format!("the base model of the adapter in `{}`", directory.display()))?;
    if found.join("adapter_config.json").is_file() && !found.join("config.json").is_file() {
        bail!("the base model of the adapter in `{}` is an adapter itself, `{}`", directory.display(), found.display());
    }
    hasher.update(hash_model(&found)?.as_bytes());
    hasher.update(&serde_json::to_vec(&settings)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_cache_is_found_by_the_variables_in_their_order() {
        let mut environment = HubEnvironment { home: Some("/users/a".into()), ..HubEnvironment::default() };
        assert_eq!(environment.cache().unwrap(), Path::new("/users/a/.cache/huggingface/hub"));
        environment.xdg_cache_home = Some("/xdg".into());
        assert_eq!(environment.cache().unwrap(), Path::new("/xdg/huggingface/hub"));
        environment.hf_home = Some("/hf".into());
        assert_eq!(environment.cache().unwrap(), Path::new("/hf/hub"));
        environment.hub_cache = Some("/hub".into());
        assert_eq!(environment.cache().unwrap(), Path::new("/hub"));
        assert_eq!(HubEnvironment::default().cache(), None);
    }

    #[test]
    fn a_repository_resolves_to_the_snapshot_of_main_or_to_the_only_one() {
        let hub = tempfile::tempdir().unwrap();
        let environment = HubEnvironment { hub_cache: Some(hub.path().to_owned()), ..HubEnvironment::default() };
        let folder = hub.path().join("models--org--a.b-1");
        write(&folder.join("snapshots/one/config.json"), "{}");
        assert_eq!(resolve_in("org/a.b-1", &environment).unwrap(), folder.join("snapshots/one"));
        write(&folder.join("snapshots/two/config.json"), "{}");
        let error = resolve_in("org/a.b-1", &environment).expect_err("two snapshots and no name");
        assert!(error.to_string().contains("2 snapshots"), "{error}");
        write(&folder.join("refs/main"), "two\n");
        assert_eq!(resolve_in("org/a.b-1", &environment).unwrap(), folder.join("snapshots/two"));
        write(&folder.join("refs/main"), "gone");
        let error = resolve_in("org/a.b-1", &environment).expect_err("the snapshot is gone");
        assert!(error.to_string().contains("snapshots/gone"), "{error}");
    }

    #[test]
    fn a_model_that_is_nowhere_is_a_usage_error_that_names_the_places() {
        let hub = tempfile::tempdir().unwrap();
        let environment = HubEnvironment { hub_cache: Some(hub.path().to_owned()), ..HubEnvironment::default() };
        let error = resolve_in("org/name", &environment).expect_err("it is not there");
        assert_eq!(crate::error::exit_code(&error), 2);
        for part in ["directory `org/name`", "models--org--name", "`glan fetch org/name`"] {
            assert!(error.to_string().contains(part), "{error}");
        }
        let error = resolve_in("no/such/folder", &environment).expect_err("it is not there");
        assert!(!error.to_string().contains("models--"), "{error}");
        assert!(resolve_in("", &environment).is_err());
        let error = resolve_in("org/name", &HubEnvironment::default()).expect_err("there is no cache");
        assert!(error.to_string().contains("HF_HOME"), "{error}");
        assert_eq!(resolve_in(hub.path().to_str().unwrap(), &environment).unwrap(), hub.path());
    }

    #[test]
    fn a_gguf_file_is_found_by_its_name_or_as_the_only_one_of_its_directory() {
        let folder = tempfile::tempdir().unwrap();
        let environment = HubEnvironment { hub_cache: Some(folder.path().to_owned()), ..HubEnvironment::default() };
        let resolve = |path: &Path| resolve_in(path.to_str().unwrap(), &environment);
        let file = folder.path().join("m/a.gguf");
        let error = resolve(&file).expect_err("it is not there").to_string();
        assert!(error.contains("file `"), "{error}");
        write(&file, "GGUF");
        assert_eq!(resolve(&file).unwrap(), file);
        assert_eq!(resolve(&folder.path().join("m")).unwrap(), file);
        let hash = hash_model(&file).unwrap();
        write(&folder.path().join("m/b.gguf"), "GGUF");
        let error = resolve(&folder.path().join("m")).expect_err("two files to choose from");
        assert!(error.to_string().contains("2 GGUF files") && crate::error::exit_code(&error) == 2, "{error}");
        assert_eq!(hash_model(&file).unwrap(), hash, "the file beside it is another model");
        write(&folder.path().join("m/model.safetensors"), "");
        assert_eq!(resolve(&folder.path().join("m")).unwrap(), folder.path().join("m"));
        write(&folder.path().join("models--org--a/snapshots/one/x.gguf"), "GGUF");
        assert!(resolve_in("org/a", &environment).unwrap().ends_with("x.gguf"));
    }

    #[test]
    fn repository_names_have_two_plain_parts() {
        for name in ["org/name", "HuggingFaceTB/SmolLM2-135M_x.y"] {
            assert!(is_repository(name), "{name}");
        }
        for name in ["name", "a/b/c", "../name", "./name", "/name", "org/", "org/na me", "org/..", "~/model"] {
            assert!(!is_repository(name), "{name}");
        }
    }

    #[test]
    fn a_hash_depends_on_names_and_bytes_of_configuration_and_weights() {
        let folder = tempfile::tempdir().unwrap();
        let hash = || hash_model(folder.path()).unwrap();
        assert!(hash_model(folder.path()).is_err());
        write(&folder.path().join("config.json"), "{}");
        write(&folder.path().join("model-1.safetensors"), "ab");
        write(&folder.path().join("model-2.safetensors"), "c");
        let first = hash();
        assert_eq!(first.len(), 16);
        write(&folder.path().join("README.md"), "not part of the model");
        assert_eq!(hash(), first);
        write(&folder.path().join("model-1.safetensors"), "a");
        write(&folder.path().join("model-2.safetensors"), "bc");
        let moved = hash();
        assert_ne!(moved, first);
        fs::rename(folder.path().join("model-2.safetensors"), folder.path().join("model-3.safetensors")).unwrap();
        assert_ne!(hash(), moved);
        write(&folder.path().join("config.json"), "{ }");
        assert_ne!(hash(), first);
    }

    #[test]
    fn the_access_token_is_the_variable_before_the_file() {
        let home = tempfile::tempdir().unwrap();
        let mut environment = HubEnvironment { hf_home: Some(home.path().to_owned()), ..HubEnvironment::default() };
        assert_eq!(environment.access_token(), None);
        write(&home.path().join("token"), "from-file\n");
        assert_eq!(environment.access_token().as_deref(), Some("from-file"));
        environment.token = Some("from-variable".into());
        assert_eq!(environment.access_token().as_deref(), Some("from-variable"));
    }

    #[test]
    fn an_adapter_s_hash_depends_on_its_base_and_its_settings_and_not_on_where_the_base_lies() {
        let folder = tempfile::tempdir().unwrap();
        let adapter = folder.path().join("adapter");
        let settings = |base: &Path, alpha: u32| {
            let base = serde_json::json!(base);
            let text = format!("{{\"r\": 4, \"base_model_name_or_path\": {base}, \"lora_alpha\": {alpha}}}");
            write(&adapter.join("adapter_config.json"), &text);
            hash_model(&adapter)
        };
        write(&adapter.join("adapter_model.safetensors"), "weights");
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        for base in [&one, &two] {
            write(&base.join("config.json"), "{}");
            write(&base.join("model.safetensors"), "ab");
        }
        let hash = settings(&one, 8).unwrap();
        assert_eq!(settings(&two, 8).unwrap(), hash, "the same base elsewhere");
        assert_ne!(settings(&two, 16).unwrap(), hash, "another scale");
        write(&two.join("model.safetensors"), "cd");
        assert_ne!(settings(&two, 8).unwrap(), hash, "another base");
        let error = settings(&adapter, 8).expect_err("its own base").to_string();
        assert!(error.contains("is an adapter itself"), "{error}");
        let error = format!("{:#}", settings(&folder.path().join("gone"), 8).expect_err("no base"));
        assert!(error.contains("the base model of the adapter"), "{error}");
    }
}
