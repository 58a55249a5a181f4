//! The metadata that describe a tokenizer, as llama.cpp's converter names them.
//!
//! What they describe is built again and compared with the original on [`SAMPLES`]; where the names that llama.cpp
//! knows cannot say it, the whole `tokenizer.json` goes along under the key that the specification has for it, and the
//! caller is told that llama.cpp will cut text in another way.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, anyhow};
use serde_json::Value as Json;

use super::{
    BYTE, CONTROL, HUGGING_FACE, NORMAL, SPECIAL_IDS, Tokenizer, UNKNOWN, UNUSED, USER_DEFINED,
    pre_tokenizer::{self, PreTokenizer},
};
use crate::gguf::{Metadata, Value};

/// Texts on which two tokenizers are compared: words, numbers, contractions, spaces, lines, code, other scripts, signs.
pub const SAMPLES: [&str; 16] = [
    "The quick brown fox jumps over the lazy dog.",
    " leading space and trailing space ",
    "Tabs\tand  two   three    spaces\n\nblank line\r\n  indented",
    "It's we'll I'D they'VE don't 'tis",
    "0 12 345 6789 3.14159 1,000,000 2026-11-22 17:30",
    "fn main() { print_it(\"{}\", x >> 2 && y != z); } // ok",
    "def f(x):\n    return x**2 + 1e-5\n",
    "naïve café Straße Ünïcödé Ελληνικά русский",
    "日本語のテキスト 中文 한국어",
    "emoji 🙂🚀 and 👩‍👩‍👧 family",
    "e\u{301} combining, \u{a0}no-break, \u{200b}zero width",
    "<|im_start|>user\nHi<|im_end|>\n<s> </s> <unk> [INST] x [/INST] <|eot_id|>",
    "CamelCase snake_case kebab-case SHOUTING x86_64",
    "$1 + $2 = <3; a^b ~ c|d `code` #tag @name",
    "Once upon a time, there was a little girl named Lily.",
    "",
];

/// What [`Tokenizer::gguf_metadata`] found.
pub struct Described {
    /// The keys `tokenizer.…`.
    pub metadata: Metadata,
    /// What the reader of the file should know, if anything.
    pub note: Option<String>,
}

impl Tokenizer {
    /// This tokenizer as metadata for a model of `vocab_size` tokens.
    ///
    /// **Errors**: an id beyond `vocab_size`.
    pub fn gguf_metadata(&self, vocab_size: usize) -> Result<Described> {
        self.check_fits(vocab_size)?;
        let json: Json = serde_json::to_value(&self.inner.hf)?;
        let source = Source { tokenizer: self, json: &json, vocab_size };
        let (kind, exact) = source.kind();
        match kind {
            Kind::ByteLevel(Some(rule)) => {
                let metadata = source.byte_level(rule)?;
                if exact && self.agrees(&metadata)? == SAMPLES.len() {
                    return Ok(Described { metadata, note: None });
                }
                source.with_json(metadata)
            }
            Kind::ByteLevel(None) => source.nearest(),
            Kind::SentencePiece => {
                let metadata = source.sentencepiece()?;
                if exact && self.agrees(&metadata)? == SAMPLES.len() {
                    return Ok(Described { metadata, note: None });
                }
                source.with_json(metadata)
            }
            Kind::Other => {
                let mut metadata = Metadata::default();
                metadata.set("tokenizer.ggml.model", "none");
                source.vocabulary(&mut metadata, |_| NORMAL)?;
                source.special(&mut metadata)?;
                source.with_json(metadata)
            }
        }
    }

    /// On how many samples the tokenizer of these metadata gives the same ids and the same text back.
    fn agrees(&self, metadata: &Metadata) -> Result<usize> {
        let Some(other) = Self::from_gguf(metadata)? else { return Ok(0) };
        self.agreement(&other)
    }

    /// On how many of [`SAMPLES`] another tokenizer gives the same ids and the same text back.
    pub fn agreement(&self, other: &Self) -> Result<usize> {
        let mut same = 0;
        for text in SAMPLES {
            let (ours, theirs) = (self.encode(text, true)?, other.encode(text, true)?);
            same += usize::from(ours == theirs && self.decode(&ours, true)? == other.decode(&ours, true)?);
        }
        Ok(same)
    }
}

/// Which of GGUF's kinds of tokenizer a `tokenizer.json` is.
enum Kind {
    /// BPE over bytes, cut by a rule that llama.cpp has, or by another.
    ByteLevel(Option<&'static PreTokenizer>),
    /// BPE over characters with `▁` for spaces.
    SentencePiece,
    /// None of them.
    Other,
}

struct Source<'a> {
    tokenizer: &'a Tokenizer,
    json: &'a Json,
    vocab_size: usize,
}

impl Source<'_> {
    /// The kind, and whether nothing of the original gets lost in it as far as its form shows.
    fn kind(&self) -> (Kind, bool) {
        let (json, model) = (self.json, &self.json["model"]);
        let flags = ["lstrip", "rstrip", "single_word"];
        let added = json["added_tokens"].as_array();
        let plain = added.into_iter().flatten().all(|token| flags.iter().all(|flag| token[*flag] != true));
        let affixes = ["continuing_subword_prefix", "end_of_word_suffix"];
        let is_bpe =
            model["type"] == "BPE" && affixes.iter().all(|affix| model[*affix].as_str().unwrap_or_default().is_empty());
        let has_spaces = json["normalizer"].to_string().contains('▁');
        if is_bpe && self.tokenizer.inner.pieces.is_byte_level() {
            let ignores = model["ignore_merges"] == true;
            let is = |rule: &&PreTokenizer| rule.is(&json["normalizer"], &json["pre_tokenizer"], ignores);
            (Kind::ByteLevel(pre_tokenizer::RULES.iter().find(is)), plain)
        } else if is_bpe && has_spaces && json["pre_tokenizer"].is_null() {
            (Kind::SentencePiece, plain)
        } else {
            (Kind::Other, false)
        }
    }

    /// The known rule under which most samples keep their tokens.
    fn nearest(&self) -> Result<Described> {
        let mut best: Option<(usize, Metadata)> = None;
        for rule in &pre_tokenizer::RULES {
            let metadata = self.byte_level(rule)?;
            let same = self.tokenizer.agrees(&metadata)?;
            if best.as_ref().is_none_or(|(most, _)| same > *most) {
                best = Some((same, metadata));
            }
        }
        let (_, metadata) = best.context("there is a rule")?;
        self.with_json(metadata)
    }

    fn with_json(&self, mut metadata: Metadata) -> Result<Described> {
        let same = self.tokenizer.agrees(&metadata)?;
        let rule = metadata.text("tokenizer.ggml.pre")?.unwrap_or("none").to_owned();
        let text =
            self.tokenizer.inner.hf.to_string(false).map_err(|error| anyhow!("cannot write the tokenizer: {error}"))?;
        metadata.set(HUGGING_FACE, text.as_str());
        let note = format!(
            "the tokenizer cuts text in a way that llama.cpp has no name for; it goes along whole as `{HUGGING_FACE}`, \
             which this program reads; llama.cpp will use `tokenizer.ggml.pre` = `{rule}` ({same} of {} sample texts \
             get the same tokens)",
            SAMPLES.len()
        );
        Ok(Described { metadata, note: Some(note) })
    }

    fn byte_level(&self, rule: &PreTokenizer) -> Result<Metadata> {
        let mut metadata = Metadata::default();
        metadata.set("tokenizer.ggml.model", "gpt2");
        metadata.set("tokenizer.ggml.pre", rule.names[0]);
        self.vocabulary(&mut metadata, |_| NORMAL)?;
        let merges = self.merges().into_iter().map(|(left, right)| format!("{left} {right}")).collect();
        metadata.set("tokenizer.ggml.merges", Value::Texts(merges));
        self.special(&mut metadata)?;
        Ok(metadata)
    }

    /// Scores follow the order of the merges: what is merged first has the highest.
    fn sentencepiece(&self) -> Result<Metadata> {
        let mut metadata = Metadata::default();
        metadata.set("tokenizer.ggml.model", "llama");
        metadata.set("tokenizer.ggml.pre", "default");
        let unknown = self.json["model"]["unk_token"].as_str().map(str::to_owned);
        self.vocabulary(&mut metadata, |token| match token {
            token if Some(token) == unknown.as_deref() => UNKNOWN,
            token if super::super::pieces::fallback_byte(token).is_some() => BYTE,
            _ => NORMAL,
        })?;
        let merges = self.merges();
        let mut ranks: HashMap<String, usize> = HashMap::with_capacity(merges.len());
        for (rank, (left, right)) in merges.iter().enumerate() {
            ranks.entry(format!("{left}{right}")).or_insert(rank);
        }
        let tokens = metadata.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let kinds = metadata.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        let scores = tokens.iter().zip(kinds).enumerate().map(|(id, (token, &kind))| match ranks.get(token) {
            _ if kind != NORMAL => 0.0,
            Some(&rank) => -(rank as f64),
            // Single characters are never the result of a merge; they come last.
            None => -((merges.len() + id) as f64),
        });
        let scores = scores.collect();
        metadata.set("tokenizer.ggml.scores", Value::Floats(scores));
        let prepends = self.json["normalizer"].to_string().contains("Prepend");
        metadata.set("tokenizer.ggml.add_space_prefix", prepends);
        self.special(&mut metadata)?;
        Ok(metadata)
    }

    /// Tokens in the order of ids and their kinds; ids that no token has are padded.
    fn vocabulary(&self, metadata: &mut Metadata, kind: impl Fn(&str) -> i64) -> Result<()> {
        let hf = &self.tokenizer.inner.hf;
        let added = hf.get_added_tokens_decoder();
        let (mut tokens, mut kinds) = (Vec::new(), Vec::new());
        for id in 0..u32::try_from(self.vocab_size)? {
            let (token, kind) = match (hf.id_to_token(id), added.get(&id)) {
                (Some(token), None) => {
                    let kind = kind(&token);
                    (token, kind)
                }
                (Some(token), Some(added)) if added.special => {
                    let kind = if kind(&token) == UNKNOWN { UNKNOWN } else { CONTROL };
                    (token, kind)
                }
                (Some(token), Some(_)) => (token, USER_DEFINED),
                (None, _) => (format!("[PAD{id}]"), UNUSED),
            };
            tokens.push(token);
            kinds.push(kind);
        }
        metadata.set("tokenizer.ggml.tokens", Value::Texts(tokens));
        metadata.set("tokenizer.ggml.token_type", Value::Integers(kinds));
        Ok(())
    }

    fn merges(&self) -> Vec<(String, String)> {
        let merges = self.json["model"]["merges"].as_array();
        let text = |value: Option<&Json>| value.and_then(Json::as_str).map(str::to_owned);
        merges
            .into_iter()
            .flatten()
            .filter_map(|merge| match merge {
                Json::String(merge) => merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())),
                pair => text(pair.get(0)).zip(text(pair.get(1))),
            })
            .collect()
    }

    fn special(&self, metadata: &mut Metadata) -> Result<()> {
        for (name, key) in SPECIAL_IDS {
            let id = self.tokenizer.named_tokens().get(name).and_then(|token| self.tokenizer.token_id(token));
            if let Some(id) = id {
                metadata.set(key, id);
            }
        }
        metadata.set("tokenizer.ggml.add_bos_token", self.tokenizer.adds_bos()?);
        let bare: HashSet<u32> = self.tokenizer.encode("a", false)?.into_iter().collect();
        let last = self.tokenizer.encode("a", true)?.last().copied();
        let adds_eos =
            last.is_some() && last == self.tokenizer.eos_token_id() && last.is_none_or(|id| !bare.contains(&id));
        metadata.set("tokenizer.ggml.add_eos_token", adds_eos);
        Ok(())
    }
}
