//! A tokenizer out of the metadata of a GGUF file, and into it.
//!
//! llama.cpp keeps vocabulary, merges or scores, and the *name* of the rule that cuts text; the rest is in its code.
//! What is built here is the tokenizer that the model's own `tokenizer.json` describes. A file may also hold that JSON
//! itself (`tokenizer.huggingface.json` of the GGUF specification), which then counts.

mod pre_tokenizer;
mod write;

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper,
    models::bpe::{BPE, BpeBuilder, Vocab},
};

pub use self::write::{Described, SAMPLES};
use super::{Tokenizer, keep_whole_offsets};
use crate::{
    gguf::{CHAT_TEMPLATE, GgufFile, Metadata},
    records::{write_atomic, write_json},
};

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;
const BYTE: i64 = 6;

/// The key under which a file holds a whole `tokenizer.json`.
const HUGGING_FACE: &str = "tokenizer.huggingface.json";

/// Names of special tokens, and the key that has their id.
const SPECIAL_IDS: [(&str, &str); 4] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
];

impl Tokenizer {
    /// The tokenizer of a GGUF file; of a file without one, the `tokenizer.json` beside it.
    pub(super) fn load_gguf(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let found = Self::from_gguf(&file.header.metadata);
        match found.with_context(|| format!("the tokenizer of `{}`", path.display()))? {
            Some(tokenizer) => Ok(tokenizer),
            None => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                Self::load(folder).with_context(|| format!("`{}` holds no tokenizer", path.display()))
            }
        }
    }

    /// The tokenizer that metadata describe; `None` where they describe none.
    ///
    /// **Errors**: a kind of tokenizer or a way of cutting text that is not known, by name; ids that are not there.
    pub fn from_gguf(metadata: &Metadata) -> Result<Option<Self>> {
        let vocabulary = Vocabulary::of(metadata)?;
        let mut hf = match (metadata.text(HUGGING_FACE)?, metadata.text("tokenizer.ggml.model")?) {
            (Some(json), _) => tokenizers::Tokenizer::from_bytes(json.as_bytes())
                .map_err(|error| anyhow!("`{HUGGING_FACE}` is not a whole tokenizer: {error}"))?,
            (None, Some("gpt2")) => vocabulary.byte_level(metadata)?,
            (None, Some("llama")) => vocabulary.sentencepiece(metadata)?,
            (None, None | Some("none" | "no_vocab")) => return Ok(None),
            (None, Some(other)) => {
                bail!("`tokenizer.ggml.model` is `{other}`, supported are `gpt2` (byte-level BPE) and `llama`")
            }
        };
        hf.with_truncation(None).map_err(|error| anyhow!("`{HUGGING_FACE}`: {error}"))?;
        hf.with_padding(None);
        keep_whole_offsets(&mut hf)?;
        let mut named = BTreeMap::new();
        for (name, key) in SPECIAL_IDS {
            if let Some(id) = metadata.unsigned(key)? {
                named.insert(name.to_owned(), vocabulary.token(id, key)?.to_owned());
            }
        }
        Self::from_parts(hf, named, metadata.flag("tokenizer.ggml.add_bos_token")?).map(Some)
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and, where the file has one, `chat_template.jinja`.
    pub(super) fn save_files(&self, file: &GgufFile, to: &Path) -> Result<()> {
        let text = self.inner.hf.to_string(true).map_err(|error| anyhow!("cannot write the tokenizer: {error}"))?;
        write_atomic(&to.join("tokenizer.json"), text.as_bytes())?;
        let mut config = serde_json::Map::new();
        for (name, token) in self.named_tokens() {
            config.insert(name.clone(), json!(token));
        }
        config.insert("add_bos_token".into(), json!(self.adds_bos()?));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
        write_json(&to.join("tokenizer_config.json"), &config)?;
        match file.header.metadata.text(CHAT_TEMPLATE)? {
            Some(template) => write_atomic(&to.join("chat_template.jinja"), template.as_bytes()),
            None => Ok(()),
        }
    }

    /// Whether an encoded text begins with the BOS token.
    pub(super) fn adds_bos(&self) -> Result<bool> {
        let first = self.encode("a", true)?.first().copied();
        Ok(first.is_some() && first == self.bos_token_id() && self.encode("a", false)?.first().copied() != first)
    }
}

/// Tokens by id.
struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: &'a [i64],
}

impl<'a> Vocabulary<'a> {
    fn of(metadata: &'a Metadata) -> Result<Self> {
        let tokens = metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let kinds = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        if !kinds.is_empty() && kinds.len() != tokens.len() {
            bail!("`tokenizer.ggml.token_type` has {} entries for {} tokens", kinds.len(), tokens.len());
        }
        Ok(Self { tokens, kinds })
    }

    fn kind(&self, id: usize) -> i64 {
        self.kinds.get(id).copied().unwrap_or(NORMAL)
    }

    fn token(&self, id: u64, key: &str) -> Result<&'a str> {
        let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
        token
            .map(String::as_str)
            .with_context(|| format!("`{key}` is {id}, but there are {} tokens", self.tokens.len()))
    }

    /// Text to id; what pads the vocabulary to the model's size is left out, the first of equal texts wins.
    fn ids(&self) -> Result<Vocab> {
        if self.tokens.is_empty() {
            bail!("`tokenizer.ggml.tokens` is missing or empty");
        }
        let mut ids = Vocab::default();
        for (id, token) in self.tokens.iter().enumerate().filter(|(id, _)| self.kind(*id) != UNUSED) {
            ids.entry(token.clone()).or_insert(u32::try_from(id)?);
        }
        Ok(ids)
    }

    /// GPT-2's kind: tokens and merges over bytes.
    fn byte_level(&self, metadata: &Metadata) -> Result<tokenizers::Tokenizer> {
        let name = metadata.text("tokenizer.ggml.pre")?.unwrap_or("default");
        let rule = pre_tokenizer::named(name).with_context(|| {
            let known: Vec<&str> = pre_tokenizer::RULES.iter().flat_map(|rule| rule.names).copied().collect();
            format!("`tokenizer.ggml.pre` is `{name}`, supported are {}", known.join(", "))
        })?;
        let merges = metadata.texts("tokenizer.ggml.merges")?.context("`tokenizer.ggml.merges` is missing")?;
        let ids = self.ids()?;
        let merges = merges
            .iter()
            .map(|merge| {
                let (left, right) =
                    merge.split_once(' ').with_context(|| format!("merge `{merge}` does not have two parts"))?;
                // Checked here, because the builder reads past its buffer where the sum is longer than every token.
                if !ids.contains_key(&format!("{left}{right}")) {
                    bail!("merge `{merge}` makes a token that is not in the vocabulary");
                }
                Ok((left.to_owned(), right.to_owned()))
            })
            .collect::<Result<Vec<_>>>()?;
        let model = build(BPE::builder().vocab_and_merges(ids, merges).ignore_merges(rule.ignore_merges))?;
        let mut hf = tokenizers::Tokenizer::new(model);
        if rule.nfc {
            hf.with_normalizer(Some(serde_json::from_value::<NormalizerWrapper>(json!({"type": "NFC"}))?))
                .map_err(|error| anyhow!("{error}"))?;
        }
        hf.with_pre_tokenizer(Some(serde_json::from_value::<PreTokenizerWrapper>(rule.json())?));
        let decoder =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
        hf.with_decoder(Some(serde_json::from_value::<DecoderWrapper>(decoder)?));
        self.finish(&mut hf, metadata, rule.add_bos)?;
        Ok(hf)
    }

    /// SentencePiece's kind: tokens with scores, bytes as fallback. Merges follow from the scores.
    fn sentencepiece(&self, metadata: &Metadata) -> Result<tokenizers::Tokenizer> {
        let scores = metadata.floats("tokenizer.ggml.scores")?.context("`tokenizer.ggml.scores` is missing")?;
        if scores.len() != self.tokens.len() {
            bail!("`tokenizer.ggml.scores` has {} entries for {} tokens", scores.len(), self.tokens.len());
        }
        let ids = self.ids()?;
        let merges = self.merges(&ids, scores);
        let unknown = (0..self.tokens.len()).find(|&id| self.kind(id) == UNKNOWN).map(|id| self.tokens[id].clone());
        let has_bytes = (0..self.tokens.len()).any(|id| self.kind(id) == BYTE);
        let mut model = BPE::builder().vocab_and_merges(ids, merges).byte_fallback(has_bytes).fuse_unk(true);
        if let Some(unknown) = unknown {
            model = model.unk_token(unknown);
        }
        let mut hf = tokenizers::Tokenizer::new(build(model)?);
        let prefix = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let normalizers =
            if prefix { vec![json!({"type": "Prepend", "prepend": "▁"}), spaces] } else { vec![spaces] };
        let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
        hf.with_normalizer(Some(serde_json::from_value::<NormalizerWrapper>(normalizer)?))
            .map_err(|error| anyhow!("{error}"))?;
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let decoder = json!({"type": "Sequence", "decoders": decoders});
        hf.with_decoder(Some(serde_json::from_value::<DecoderWrapper>(decoder)?));
        self.finish(&mut hf, metadata, true)?;
        Ok(hf)
    }

    /// Every way to put a token together from two others, the best token first.
    ///
    /// **Source**: `SentencePieceExtractor` of transformers, which makes the `tokenizer.json` of such models.
    fn merges(&self, ids: &Vocab, scores: &[f64]) -> Vec<(String, String)> {
        let mut merges = Vec::new();
        for (id, token) in
            self.tokens.iter().enumerate().filter(|(id, _)| matches!(self.kind(*id), NORMAL | USER_DEFINED))
        {
            let mut parts = Vec::new();
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                    parts.push((left_id, right_id, left, right));
                }
            }
            parts.sort_by_key(|&(left, right, ..)| (left, right));
            merges.extend(parts.into_iter().map(|(.., left, right)| (scores[id], left, right)));
        }
        merges.sort_by(|a, b| {
            let lengths = |(_, left, right): &(f64, &str, &str)| (left.chars().count(), right.chars().count());
            b.0.total_cmp(&a.0).then_with(|| lengths(b).cmp(&lengths(a)))
        });
        merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
    }

    /// Special tokens, and what begins and ends a text.
    fn finish(&self, hf: &mut tokenizers::Tokenizer, metadata: &Metadata, add_bos: bool) -> Result<()> {
        let mut added = Vec::new();
        for (id, token) in self.tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()) {
            match self.kind(id) {
                CONTROL | UNKNOWN => added.push(AddedToken::from(token.as_str(), true).normalized(false)),
                USER_DEFINED => added.push(AddedToken::from(token.as_str(), false).normalized(false)),
                _ => {}
            }
        }
        hf.add_tokens(added).map_err(|error| anyhow!("the special tokens: {error}"))?;
        let around = |add: &str, default: bool, id: &str| -> Result<Option<(u64, &str)>> {
            if !metadata.flag(add)?.unwrap_or(default) {
                return Ok(None);
            }
            metadata.unsigned(id)?.map(|number| Ok((number, self.token(number, id)?))).transpose()
        };
        let bos = around("tokenizer.ggml.add_bos_token", add_bos, "tokenizer.ggml.bos_token_id")?;
        let eos = around("tokenizer.ggml.add_eos_token", false, "tokenizer.ggml.eos_token_id")?;
        if bos.is_some() || eos.is_some() {
            hf.with_post_processor(Some(template(bos, eos)?));
        }
        Ok(())
    }
}

/// A post-processor that puts tokens around a text.
fn template(bos: Option<(u64, &str)>, eos: Option<(u64, &str)>) -> Result<PostProcessorWrapper> {
    let part = |token: Option<(u64, &str)>, sequence: u32| {
        token.map(|(_, text)| json!({"SpecialToken": {"id": text, "type_id": sequence}}))
    };
    let around = |name: &str, sequence: u32| {
        let text = json!({"Sequence": {"id": name, "type_id": sequence}});
        part(bos, sequence).into_iter().chain([text]).chain(part(eos, sequence))
    };
    let mut tokens = serde_json::Map::new();
    for (id, text) in bos.into_iter().chain(eos) {
        tokens.insert(text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}));
    }
    let single: Vec<Value> = around("A", 0).collect();
    let pair: Vec<Value> = around("A", 0).chain(around("B", 1)).collect();
    let json = json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens});
    Ok(serde_json::from_value(json)?)
}

fn build(model: BpeBuilder) -> Result<BPE> {
    model.build().map_err(|error| anyhow!("vocabulary and merges do not belong together: {error}"))
}

#[cfg(test)]
mod tests;
