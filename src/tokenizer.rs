//! A model's tokenizer, as Hugging Face directories hold it.
//!
//! `tokenizer.json` is what counts; `tokenizer_config.json` and `special_tokens_map.json` only name the special tokens
//! and may switch the beginning-of-sequence token on or off. Beside text and ids, a tokenizer answers one question that
//! the `tokenizers` crate does not: which *bytes* a token stands for ([`Tokenizer::token_bytes`]), on which constrained
//! decoding and streaming rest.

mod gguf;
mod pieces;
mod synthetic;
#[cfg(test)]
pub(crate) mod toy;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use tokenizers::{PostProcessorWrapper, PreTokenizerWrapper};

use self::pieces::PieceRule;
pub use self::{
    gguf::{Described, SAMPLES},
    pieces::StreamDecoder,
};
use crate::{
    error::Failure,
    gguf::{GgufFile, is_gguf},
};

/// Every file that belongs to a tokenizer; a directory holds some of them.
const FILES: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
];

/// The special tokens that a configuration names and a chat template may use.
const NAMED_TOKENS: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// Text to token ids and back. Cloning shares the vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    hf: tokenizers::Tokenizer,
    pieces: PieceRule,
    special_ids: HashSet<u32>,
    named_tokens: BTreeMap<String, String>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
    bos_rule: BosRule,
    vocab_size: usize,
}

/// What `add_bos_token` of `tokenizer_config.json` changes about `tokenizer.json`'s own post-processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BosRule {
    AsTokenizerJson,
    Prepend(u32),
    Remove(u32),
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` of a model directory, or the
    /// metadata of a GGUF file.
    ///
    /// **Errors**: missing input, when there is no `tokenizer.json`; else the damaged file and what to do.
    pub fn load(directory: &Path) -> Result<Self> {
        if is_gguf(directory) {
            return Self::load_gguf(directory);
        }
        let path = directory.join("tokenizer.json");
        if !path.is_file() {
            return Err(Failure::MissingInput(format!(
                "`{}` is missing: a model directory needs a tokenizer; copy it from the model's repository or run \
                 `glan fetch org/name`",
                path.display()
            ))
            .into());
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let mut hf = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| {
            anyhow!(
                "`{}` is not a whole tokenizer ({error}); it may be a cut download: fetch or copy it again",
                path.display()
            )
        })?;
        // Some files carry the truncation and padding of the run that saved them, which would cut texts silently.
        hf.with_truncation(None).map_err(|error| anyhow!("`{}`: {error}", path.display()))?;
        hf.with_padding(None);
        keep_whole_offsets(&mut hf)?;
        forget_whole_texts(&mut hf);

        let config = optional_json(&directory.join("tokenizer_config.json"))?;
        let map = optional_json(&directory.join("special_tokens_map.json"))?;
        let model_config =
            if config.is_none() && map.is_none() { optional_json(&directory.join("config.json"))? } else { None };
        let add_bos_token = config.as_ref().and_then(|config| config.get("add_bos_token")).and_then(Value::as_bool);
        let named_tokens = named_tokens(&hf, config.as_ref(), map.as_ref(), model_config.as_ref());
        Self::from_parts(hf, named_tokens, add_bos_token)
    }

    fn from_parts(
        hf: tokenizers::Tokenizer,
        named_tokens: BTreeMap<String, String>,
        add_bos_token: Option<bool>,
    ) -> Result<Self> {
        let special_ids =
            hf.get_added_tokens_decoder().iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let vocab_size = hf.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        let named_id = |name: &str| named_tokens.get(name).and_then(|token| hf.token_to_id(token));
        let (bos_token_id, eos_token_id) = (named_id("bos_token"), named_id("eos_token"));
        let pieces = PieceRule::of(&hf)?;
        let bos_rule = match (add_bos_token, bos_token_id) {
            (Some(wanted), Some(bos)) => match (wanted, adds_itself(&hf, bos)?) {
                (true, false) => BosRule::Prepend(bos),
                (false, true) => BosRule::Remove(bos),
                _ => BosRule::AsTokenizerJson,
            },
            _ => BosRule::AsTokenizerJson,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                hf,
                pieces,
                special_ids,
                named_tokens,
                bos_token_id,
                eos_token_id,
                bos_rule,
                vocab_size,
            }),
        })
    }

    /// Token ids of a text; `add_special_tokens` adds what the tokenizer itself adds (such as BOS).
    ///
    /// Text that spells a special token becomes that token, as in transformers.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .hf
            .encode_fast(text, add_special_tokens)
            .map_err(|error| anyhow!("cannot tokenise a text of {} bytes: {error}", text.len()))?;
        let mut ids = encoding.get_ids().to_vec();
        if add_special_tokens {
            match self.inner.bos_rule {
                BosRule::Prepend(bos) if ids.first() != Some(&bos) => ids.insert(0, bos),
                BosRule::Remove(bos) if ids.first() == Some(&bos) => {
                    ids.remove(0);
                }
                _ => {}
            }
        }
        Ok(ids)
    }

    /// Token ids with the byte range of the text that each covers; empty ranges for tokens that are not in the text.
    ///
    /// White space belongs to the token that stands for it, also where `tokenizer.json` asks for trimmed offsets.
    pub fn encode_with_offsets(&self, text: &str, add_special_tokens: bool) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encoding = self
            .inner
            .hf
            .encode(text, add_special_tokens)
            .map_err(|error| anyhow!("cannot tokenise a text of {} bytes: {error}", text.len()))?;
        let mut ids = encoding.get_ids().to_vec();
        let mut offsets: Vec<Range<usize>> = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        if add_special_tokens {
            match self.inner.bos_rule {
                BosRule::Prepend(bos) if ids.first() != Some(&bos) => {
                    ids.insert(0, bos);
                    offsets.insert(0, 0..0);
                }
                BosRule::Remove(bos) if ids.first() == Some(&bos) => {
                    ids.remove(0);
                    offsets.remove(0);
                }
                _ => {}
            }
        }
        Ok((ids, offsets))
    }

    /// Text of token ids.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.inner
            .hf
            .decode(ids, skip_special_tokens)
            .map_err(|error| anyhow!("cannot decode {} token ids: {error}", ids.len()))
    }

    /// Text of token ids as they come, one at a time.
    pub fn stream_decoder(&self) -> StreamDecoder {
        StreamDecoder::new(self.clone())
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// The id of a token by its text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.hf.token_to_id(token)
    }

    /// A token as the vocabulary spells it (`Ġthe`, `▁the`), special tokens included.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.hf.id_to_token(id)
    }

    /// The bytes that a token stands for after other tokens; empty for special tokens and for ids that are not there.
    /// What constrained decoding works on.
    ///
    /// Exact for byte-level BPE and for SentencePiece vocabularies (`▁`, `<0xNN>`); a vocabulary without a decoder
    /// gives the token's text, although its decoded text has spaces between the tokens.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        if self.is_special(id) {
            return Vec::new();
        }
        self.inner.hf.id_to_token(id).map_or_else(Vec::new, |token| self.inner.pieces.bytes(&token))
    }

    /// Whether a token is marked special.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special_ids.contains(&id)
    }

    /// Every token that is marked special, as `(id, text)` in the order of ids.
    pub fn special_tokens(&self) -> Vec<(u32, String)> {
        let mut tokens: Vec<(u32, String)> =
            self.inner.special_ids.iter().filter_map(|&id| Some((id, self.inner.hf.id_to_token(id)?))).collect();
        tokens.sort_unstable();
        tokens
    }

    /// Special tokens by their role (`bos_token`, `eos_token`, `unk_token`, `pad_token`), where a file names them.
    pub fn named_tokens(&self) -> &BTreeMap<String, String> {
        &self.inner.named_tokens
    }

    /// Beginning-of-sequence token, where `tokenizer_config.json` names one.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.inner.bos_token_id
    }

    /// End-of-sequence token, where `tokenizer_config.json` names one.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.inner.eos_token_id
    }

    /// Text of the beginning-of-sequence token.
    pub fn bos_token(&self) -> Option<&str> {
        self.inner.named_tokens.get("bos_token").map(String::as_str)
    }

    /// Text of the end-of-sequence token.
    pub fn eos_token(&self) -> Option<&str> {
        self.inner.named_tokens.get("eos_token").map(String::as_str)
    }

    /// Checks that every id has a row in a model's embedding.
    ///
    /// **Errors**: the largest id is not below `model_vocab_size`.
    pub fn check_fits(&self, model_vocab_size: usize) -> Result<()> {
        if self.vocab_size() > model_vocab_size {
            bail!(
                "the tokenizer's largest id is {} but the model's vocabulary has {model_vocab_size} rows \
                 (`vocab_size` in `config.json`): they belong to different models",
                self.vocab_size() - 1
            );
        }
        Ok(())
    }

    /// The tokenizer's files that a directory holds.
    pub fn files(directory: &Path) -> Vec<PathBuf> {
        FILES.iter().map(|name| directory.join(name)).filter(|path| path.is_file()).collect()
    }

    /// Copies the tokenizer's files, chat template included, from one directory to another. Those of a GGUF file are
    /// written out of its metadata.
    pub fn copy_files(from: &Path, to: &Path) -> Result<()> {
        fs::create_dir_all(to).with_context(|| format!("cannot create folder `{}`", to.display()))?;
        if is_gguf(from) {
            return Self::load_gguf(from)?.save_files(&GgufFile::open(from)?, to);
        }
        for path in Self::files(from) {
            let target = to.join(path.file_name().expect("the path was joined from a file name"));
            // Not `fs::copy`: it keeps a read-only mode, and a second run could then not overwrite its own output.
            let bytes = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
            crate::records::write_atomic(&target, &bytes)?;
        }
        Ok(())
    }
}

/// Makes token offsets cover the white space that a token stands for.
///
/// `trim_offsets` leaves it out, and a training mask built on offsets would then lose every line break.
fn keep_whole_offsets(hf: &mut tokenizers::Tokenizer) -> Result<()> {
    fn untrim(value: &mut Value) -> bool {
        let mut changed = false;
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    if key == "trim_offsets" && *value == Value::Bool(true) {
                        *value = Value::Bool(false);
                        changed = true;
                    } else {
                        changed |= untrim(value);
                    }
                }
            }
            Value::Array(items) => {
                for item in items {
                    changed |= untrim(item);
                }
            }
            _ => {}
        }
        changed
    }
    let Some(post_processor) = hf.get_post_processor() else { return Ok(()) };
    let mut value = serde_json::to_value(post_processor)?;
    if untrim(&mut value) {
        hf.with_post_processor(Some(serde_json::from_value::<PostProcessorWrapper>(value)?));
    }
    Ok(())
}

/// Keeps a model that is given whole texts, as SentencePiece's are, from remembering them: every thread would hold up to 10,000
/// texts of 256 bytes with 32 bytes for each of their characters. Words, which come again, are worth it.
fn forget_whole_texts(hf: &mut tokenizers::Tokenizer) {
    let is_whole = match hf.get_pre_tokenizer() {
        None => true,
        Some(PreTokenizerWrapper::Metaspace(metaspace)) => !metaspace.split,
        Some(_) => false,
    };
    if is_whole {
        let mut model = hf.get_model().clone();
        model.resize_cache(0);
        hf.with_model(model);
    }
}

/// Whether `tokenizer.json`'s own post-processor begins a sequence with `bos`.
fn adds_itself(hf: &tokenizers::Tokenizer, bos: u32) -> Result<bool> {
    let first = |add_special_tokens| -> Result<Option<u32>> {
        let encoding = hf.encode("a", add_special_tokens).map_err(|error| anyhow!("cannot tokenise `a`: {error}"))?;
        Ok(encoding.get_ids().first().copied())
    };
    Ok(first(true)? == Some(bos) && first(false)? != Some(bos))
}

/// The named special tokens: `tokenizer_config.json` before `special_tokens_map.json`; where neither file exists, the
/// ids of `config.json` (transformers then falls back on the tokenizer class's own names). A `null` is an answer.
fn named_tokens(
    hf: &tokenizers::Tokenizer,
    config: Option<&Value>,
    map: Option<&Value>,
    model_config: Option<&Value>,
) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content").and_then(Value::as_str).map(str::to_owned),
        _ => None,
    };
    let mut tokens = BTreeMap::new();
    for name in NAMED_TOKENS {
        let from_files = config.and_then(|config| config.get(name)).or_else(|| map.and_then(|map| map.get(name)));
        let from_model = || {
            let id = model_config?.get(format!("{name}_id"))?.as_u64()?;
            hf.id_to_token(u32::try_from(id).ok()?)
        };
        if let Some(token) = from_files.map_or_else(from_model, text) {
            tokens.insert(name.to_owned(), token);
        }
    }
    tokens
}

/// Reads a JSON file that need not be there.
pub(crate) fn optional_json(path: &Path) -> Result<Option<Value>> {
    if path.is_file() { crate::records::read_json(path).map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests;
