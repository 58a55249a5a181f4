//! Constrained decoding: which tokens may come next so that the output matches a JSON schema, a regular expression or a
//! list of choices.
//!
//! llguidance does the work, on bytes: a [`GrammarFactory`] sorts the vocabulary into a trie once, a [`Grammar`] is one
//! compiled constraint, and a [`GrammarState`] follows one sequence. States share nothing that depends on the order of
//! their calls, so a sequence's tokens depend on it alone.

use std::sync::Arc;

use llguidance::{
    JsonCompileOptions, Matcher, ParserFactory,
    api::TopLevelGrammar,
    earley::SlicedBiasComputer,
    toktrie::{InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie},
};
use thiserror::Error;

use self::environment::VocabularyEnv;
use crate::{language_model::Constraint, tokenizer::Tokenizer};

mod environment;

/// Tokens longer than this never match: the trie's node has ten bits for its depth.
const MAX_TOKEN_BYTES: usize = 512;

/// Why a constraint cannot be served. It fails one request, not the run.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GrammarError {
    /// The JSON schema is wrong, cannot be satisfied, or asks for what is not supported.
    #[error("the JSON schema cannot be used: {0}")]
    JsonSchema(String),
    /// The regular expression is wrong or too large.
    #[error("the regular expression cannot be used: {0}")]
    Regex(String),
    /// The list of choices is empty or too large.
    #[error("the list of choices cannot be used: {0}")]
    Choice(String),
    /// No token of the vocabulary continues the output, or a limit was reached.
    #[error("the constraint cannot go on: {0}")]
    Step(String),
    /// The tokenizer cannot be used for constraints.
    #[error("no constrained output with this tokenizer: {0}")]
    Tokenizer(String),
}

/// A tokenizer's vocabulary, ready for constraints. Built once per model.
pub struct GrammarFactory {
    parsers: ParserFactory,
    vocab_size: usize,
    eos_ids: Arc<[u32]>,
}

impl GrammarFactory {
    /// Sorts the vocabulary; `eos_ids` are the tokens that may end an output.
    pub fn new(tokenizer: &Tokenizer, eos_ids: &[u32]) -> Result<Self, GrammarError> {
        let vocab_size = tokenizer.vocab_size();
        let mut words: Vec<Vec<u8>> = (0..vocab_size)
            .map(|id| {
                let id = u32::try_from(id).expect("token ids are 32-bit");
                if eos_ids.contains(&id) || tokenizer.is_special(id) {
                    return special_word(&tokenizer.token_text(id).unwrap_or_default());
                }
                let mut bytes = tokenizer.token_bytes(id);
                if bytes.len() > MAX_TOKEN_BYTES {
                    bytes.clear();
                }
                bytes
            })
            .collect();
        let mut ends: Vec<u32> = eos_ids.iter().copied().filter(|&id| (id as usize) < vocab_size).collect();
        let eos_ids: Arc<[u32]> = ends.as_slice().into();
        if ends.is_empty() {
            // The trie needs an end token. This one is past the vocabulary, and masks leave it out.
            ends.push(u32::try_from(vocab_size).map_err(|error| GrammarError::Tokenizer(error.to_string()))?);
            words.push(special_word("no end of sequence"));
        }
        let size = u32::try_from(words.len()).map_err(|error| GrammarError::Tokenizer(error.to_string()))?;
        let trie = TokTrie::from(&TokRxInfo::new(size, ends[0]), &words).with_eos_tokens(&ends);
        let environment: TokEnv = Arc::new(VocabularyEnv::new(trie, tokenizer.clone()));
        let mut parsers =
            ParserFactory::new(&environment, InferenceCapabilities::default(), &SlicedBiasComputer::json_slices())
                .map_err(|error| GrammarError::Tokenizer(format!("{error:#}")))?;
        parsers.quiet();
        parsers.limits_mut().verbose_errors = false;
        Ok(Self { parsers, vocab_size, eos_ids })
    }
}

/// Special tokens begin with a byte that no UTF-8 text has, so that no constraint on text ever matches them.
fn special_word(text: &str) -> Vec<u8> {
    let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
    word.extend_from_slice(format!("<{text}>").as_bytes());
    word
}

/// A compiled constraint. Compile once, start one state per sequence.
pub struct Grammar {
    start: Matcher,
    vocab_size: usize,
    eos_ids: Arc<[u32]>,
}

impl Grammar {
    /// Compiles a constraint.
    ///
    /// **Errors**: a schema or pattern that is wrong or not supported; the text says what.
    pub fn compile(constraint: &Constraint, factory: &GrammarFactory) -> Result<Self, GrammarError> {
        let (grammar, failed): (TopLevelGrammar, fn(String) -> GrammarError) = match constraint {
            Constraint::JsonSchema(schema) => {
                (TopLevelGrammar::from_json_schema(compact(schema)?), GrammarError::JsonSchema)
            }
            Constraint::Regex(pattern) => (TopLevelGrammar::from_regex(pattern), GrammarError::Regex),
            Constraint::Choice(choices) if choices.is_empty() => {
                return Err(GrammarError::Choice("it is empty".into()));
            }
            Constraint::Choice(choices) => {
                let escaped: Vec<String> = choices.iter().map(|choice| regex::escape(choice)).collect();
                (TopLevelGrammar::from_regex(&escaped.join("|")), GrammarError::Choice)
            }
        };
        let parser = factory.parsers.create_parser(grammar).map_err(|error| failed(gist(&format!("{error:#}"))))?;
        let start = Matcher::new(Ok(parser));
        if let Some(error) = start.get_error() {
            return Err(failed(gist(&error)));
        }
        Ok(Self { start, vocab_size: factory.vocab_size, eos_ids: Arc::clone(&factory.eos_ids) })
    }

    /// A state at the start of an output.
    pub fn start(&self) -> GrammarState {
        // A deep clone: a shallow one shares the lexer's growing tables, and with them limits that others use up.
        GrammarState {
            matcher: self.start.deep_clone(),
            vocab_size: self.vocab_size,
            eos_ids: Arc::clone(&self.eos_ids),
            is_finished: false,
        }
    }
}

/// The schema with llguidance's options for compact JSON.
fn compact(schema: &serde_json::Value) -> Result<serde_json::Value, GrammarError> {
    let mut schema = match schema {
        serde_json::Value::Object(_) => schema.clone(),
        // `true` allows everything; options need an object to stand in.
        serde_json::Value::Bool(true) => serde_json::json!({}),
        _ => return Err(GrammarError::JsonSchema(format!("expected an object, found `{schema}`"))),
    };
    let options = JsonCompileOptions { whitespace_flexible: false, ..JsonCompileOptions::default() };
    debug_assert_eq!((options.item_separator.as_str(), options.key_separator.as_str()), (",", ":"));
    options.apply_to(&mut schema);
    Ok(schema)
}

/// The gist of an error of llguidance: it goes on with the grammar and a backtrace, of no use to a reader of records,
/// and a regular expression's error says what is wrong only in a line of its own.
fn gist(error: &str) -> String {
    let mut lines = error.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("unknown error");
    match lines.find_map(|line| line.strip_prefix("error: ")) {
        Some(reason) => format!("{first} {reason}"),
        None => first.to_owned(),
    }
}

/// Where one sequence stands in its constraint.
pub struct GrammarState {
    matcher: Matcher,
    vocab_size: usize,
    eos_ids: Arc<[u32]>,
    is_finished: bool,
}

impl GrammarState {
    /// The tokens that may come next. Where the output may end, the end-of-sequence tokens are among them; where it is
    /// complete and cannot go on, they are the only ones (none, if the model has no such token).
    ///
    /// **Errors**: no token of the vocabulary continues the output, or a limit of the parser was reached.
    pub fn allowed(&mut self) -> Result<TokenMask, GrammarError> {
        let bits = self.matcher.compute_mask_or_eos().map_err(|error| step_error(&error))?;
        let mask = TokenMask { bits, vocab_size: self.vocab_size };
        if mask.is_empty() {
            if !self.may_end() {
                return Err(GrammarError::Step("no token of the vocabulary can come next".into()));
            }
            self.is_finished = true;
        }
        Ok(mask)
    }

    /// Takes the next token; `true` when the output is complete and nothing can follow.
    ///
    /// **Errors**: a token that is not allowed here.
    pub fn accept(&mut self, token: u32) -> Result<bool, GrammarError> {
        let refused = || GrammarError::Step(format!("token {token} is not allowed here"));
        if token as usize >= self.vocab_size {
            return Err(refused());
        }
        let is_end = self.eos_ids.contains(&token);
        if is_end && self.may_end() {
            self.is_finished = true;
            return Ok(true);
        }
        // Consuming alone does not check, and the parser would fail only later, with an unclear message.
        match self.matcher.try_consume_tokens(&[token]) {
            Ok(1) if !is_end => Ok(self.is_finished()),
            Ok(_) => Err(refused()),
            Err(error) => Err(step_error(&error)),
        }
    }

    /// Whether the output is complete and nothing can follow.
    pub fn is_finished(&self) -> bool {
        self.is_finished || self.matcher.is_stopped()
    }

    /// Whether the output would match if it ended here.
    pub fn may_end(&mut self) -> bool {
        self.is_finished() || self.matcher.is_accepting().unwrap_or(false)
    }

    /// The token that must come next, where the bytes leave no choice: the model need not be asked.
    ///
    /// Forced bytes can mostly be cut into tokens in several ways. It is always the tokenizer's own way, whether the
    /// model is asked or not: [`GrammarState::allowed`] allows only this token in the same place.
    pub fn forced_token(&mut self) -> Option<u32> {
        if self.is_finished() {
            return None;
        }
        self.matcher.compute_ff_tokens().first().copied()
    }
}

fn step_error(error: &anyhow::Error) -> GrammarError {
    GrammarError::Step(gist(&format!("{error:#}")))
}

/// A set of token ids.
#[derive(Debug, Clone)]
pub struct TokenMask {
    bits: SimpleVob,
    vocab_size: usize,
}

impl TokenMask {
    /// Whether a token is in the set.
    pub fn allows(&self, token: u32) -> bool {
        (token as usize) < self.vocab_size && self.bits.get(token as usize)
    }

    /// The tokens of the set, ascending.
    pub fn tokens(&self) -> impl Iterator<Item = u32> + '_ {
        self.bits.iter().filter(|&token| (token as usize) < self.vocab_size)
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.tokens().next().is_none()
    }

    /// The token of a set of one.
    pub fn only(&self) -> Option<u32> {
        let mut tokens = self.tokens();
        tokens.next().filter(|_| tokens.next().is_none())
    }

    /// Sets the logits of all other tokens to minus infinity, also those past the tokenizer's vocabulary.
    ///
    /// **Shapes**: `logits` is `[V]` of the model, which may have more rows than the tokenizer has tokens.
    pub fn apply(&self, logits: &mut [f32]) {
        let words = self.bits.as_slice();
        for (index, chunk) in logits.chunks_mut(32).enumerate() {
            let word = words.get(index).copied().unwrap_or(0);
            if word == u32::MAX && (index + 1) * 32 <= self.vocab_size {
                continue;
            }
            for (bit, logit) in chunk.iter_mut().enumerate() {
                if word & (1 << bit) == 0 || index * 32 + bit >= self.vocab_size {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
