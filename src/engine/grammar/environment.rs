//! The vocabulary as llguidance sees it: a trie of byte strings, and how forced bytes become tokens.

use llguidance::toktrie::{TokTrie, TokenId, TokenizerEnv};

use crate::tokenizer::Tokenizer;

/// Stands before a text that is tokenised in the middle of another, so that the tokenizer does not take it for a
/// beginning. No vocabulary merges this control character with anything.
const BEFORE: &str = "\u{2}";

/// A tokenizer with its trie.
pub(super) struct VocabularyEnv {
    trie: TokTrie,
    tokenizer: Tokenizer,
    before: Vec<TokenId>,
}

impl VocabularyEnv {
    pub(super) fn new(trie: TokTrie, tokenizer: Tokenizer) -> Self {
        let before = tokenizer.encode(BEFORE, false).unwrap_or_default();
        Self { trie, tokenizer, before }
    }

    /// The tokenizer's own ids for a text, where they spell exactly its bytes.
    fn own_tokens(&self, text: &str) -> Option<Vec<TokenId>> {
        let spells = |ids: &[TokenId]| self.trie.decode_raw(ids) == text.as_bytes();
        let plain = self.tokenizer.encode(text, false).ok()?;
        if spells(&plain) {
            return Some(plain);
        }
        // SentencePiece puts a space before every beginning.
        let behind = self.tokenizer.encode(&format!("{BEFORE}{text}"), false).ok()?;
        behind.strip_prefix(self.before.as_slice()).filter(|ids| spells(ids)).map(<[_]>::to_vec)
    }
}

impl TokenizerEnv for VocabularyEnv {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// The tokenizer's own choice, since that is what the model was trained on; else the longest token each time (bytes
    /// that are no text, text that spells a special token).
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        let own = std::str::from_utf8(bytes).ok().and_then(|text| self.own_tokens(text));
        own.unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }
}
