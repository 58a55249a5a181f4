//! A tokenizer for models that have none: what benchmarks of random weights decode with.

use anyhow::{Result, anyhow};
use serde_json::{Map, Value, json};

use super::{Tokenizer, pieces::char_of_byte};
use crate::error::usage;

/// The byte tokens and the end.
const SMALLEST: usize = 257;

impl Tokenizer {
    /// A byte-level vocabulary of `vocab_size` tokens: all bytes, then made-up words of letters, half of them after a
    /// space, and last an end-of-sequence token. As many tokens for a grammar to look at as a real one.
    ///
    /// **Errors**: usage, when `vocab_size` has no room for the bytes.
    pub fn synthetic(vocab_size: usize) -> Result<Self> {
        if vocab_size < SMALLEST {
            return Err(usage(format!(
                "the model has no tokenizer.json, and its vocabulary of {vocab_size} tokens is too small for a made-up \
                 one (at least {SMALLEST}); put a tokenizer.json into its directory"
            )));
        }
        let mut vocabulary = Map::new();
        for byte in 0..=255u8 {
            vocabulary.insert(char_of_byte(byte).to_string(), json!(byte));
        }
        for (id, word) in (256..vocab_size - 1).zip(words()) {
            vocabulary.insert(word, json!(id));
        }
        let end = json!({"id": vocab_size - 1, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
                         "rstrip": false, "normalized": false, "special": true});
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": true});
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [end], "normalizer": null,
            "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                      "vocab": Value::Object(vocabulary), "merges": []}
        });
        let hf = tokenizers::Tokenizer::from_bytes(serde_json::to_vec(&file)?)
            .map_err(|error| anyhow!("cannot make up a tokenizer: {error}"))?;
        let named = [("eos_token".to_owned(), "<|endoftext|>".to_owned())].into();
        Self::from_parts(hf, named, None)
    }
}

/// `aa`, `Ġaa`, `ab`, `Ġab`, …, `aaa`, …: letters in every combination, with and without the space before them.
fn words() -> impl Iterator<Item = String> {
    let space = char_of_byte(b' ');
    (0usize..).flat_map(move |number| {
        let (mut length, mut count, mut rest) = (2, 26 * 26, number);
        while rest >= count {
            rest -= count;
            count *= 26;
            length += 1;
        }
        let mut letters = vec!['a'; length];
        for letter in letters.iter_mut().rev() {
            *letter = char::from(b'a' + (rest % 26) as u8);
            rest /= 26;
        }
        let word: String = letters.into_iter().collect();
        [word.clone(), format!("{space}{word}")]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_is_a_token_of_its_own_and_text_comes_back() {
        let tokenizer = Tokenizer::synthetic(3000).unwrap();
        assert_eq!(tokenizer.vocab_size(), 3000);
        assert_eq!(tokenizer.eos_token_id(), Some(2999));
        let texts: std::collections::HashSet<Vec<u8>> = (0..2999).map(|id| tokenizer.token_bytes(id)).collect();
        assert_eq!(texts.len(), 2999);
        assert_eq!(tokenizer.token_bytes(256), b"aa");
        assert_eq!(tokenizer.token_bytes(257), b" aa");
        let text = "{\"a b\": [1, 2.5]}\n";
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        assert_eq!(crate::error::exit_code(&Tokenizer::synthetic(256).err().unwrap()), 2);
    }
}
