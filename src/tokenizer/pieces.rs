//! From tokens to bytes: what one entry of a vocabulary stands for, and text that grows token by token.
//!
//! The rule is read off the decoder in `tokenizer.json`. Every decoder of a causal language model works token by token,
//! apart from what it does to the first one, so a stream needs no more memory than an unfinished character.

use anyhow::Result;
use serde_json::Value;

use super::Tokenizer;

/// How a vocabulary spells bytes.
#[derive(Debug, Default)]
pub(super) struct PieceRule {
    /// GPT-2's alphabet: one printable character per byte.
    byte_level: bool,
    /// `<0xNN>` is one byte.
    byte_fallback: bool,
    /// Replacements in every token, such as `▁` by a space.
    replacements: Vec<(String, String)>,
    /// A first token loses these characters (Metaspace with a prefix).
    dropped_from_first: Option<char>,
    /// Spaces cut off the start of the text.
    strip_start: usize,
    /// The prefix of a token that continues a word (WordPiece); other tokens begin with a space.
    continuing_prefix: Option<String>,
    /// No decoder at all: tokens are joined by spaces.
    space_separated: bool,
}

impl PieceRule {
    /// The rule of a tokenizer's decoder.
    pub(super) fn of(hf: &tokenizers::Tokenizer) -> Result<Self> {
        let mut rule = Self::default();
        match hf.get_decoder() {
            Some(decoder) => rule.read(&serde_json::to_value(decoder)?),
            None => rule.space_separated = true,
        }
        Ok(rule)
    }

    fn read(&mut self, decoder: &Value) {
        let text = |key: &str| decoder.get(key).and_then(Value::as_str).unwrap_or_default();
        match text("type") {
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Sequence" => {
                for step in decoder.get("decoders").and_then(Value::as_array).into_iter().flatten() {
                    self.read(step);
                }
            }
            "Replace" => {
                if let Some(pattern) = decoder.pointer("/pattern/String").and_then(Value::as_str) {
                    self.replacements.push((pattern.to_owned(), text("content").to_owned()));
                }
            }
            "Metaspace" => {
                self.replacements.push((text("replacement").to_owned(), " ".to_owned()));
                if text("prepend_scheme") != "never" {
                    self.dropped_from_first = text("replacement").chars().next();
                }
            }
            "Strip" if text("content") == " " => {
                let spaces = decoder.get("start").and_then(Value::as_u64).unwrap_or(0);
                self.strip_start = usize::try_from(spaces).unwrap_or(0);
            }
            "WordPiece" => self.continuing_prefix = Some(text("prefix").to_owned()),
            "BPEDecoder" => self.replacements.push((text("suffix").to_owned(), " ".to_owned())),
            // `Fuse` joins, which is what a stream does anyway; others do not occur in causal language models.
            _ => {}
        }
    }

    /// The bytes of a token that comes after others.
    pub(super) fn bytes(&self, token: &str) -> Vec<u8> {
        if self.byte_level {
            let bytes: Option<Vec<u8>> = token.chars().map(byte_of_char).collect();
            return bytes.unwrap_or_else(|| token.as_bytes().to_vec());
        }
        if self.byte_fallback
            && let Some(byte) = fallback_byte(token)
        {
            return vec![byte];
        }
        let mut text = token.to_owned();
        for (from, to) in self.replacements.iter().filter(|(from, _)| !from.is_empty()) {
            text = text.replace(from.as_str(), to);
        }
        match &self.continuing_prefix {
            Some(prefix) => match text.strip_prefix(prefix.as_str()) {
                Some(rest) => rest.as_bytes().to_vec(),
                None => format!(" {text}").into_bytes(),
            },
            None => text.into_bytes(),
        }
    }

    /// The bytes of the first token of a text.
    fn first_bytes(&self, token: &str) -> Vec<u8> {
        if self.continuing_prefix.is_some() {
            return token.as_bytes().to_vec();
        }
        match self.dropped_from_first {
            Some(mark) => self.bytes(&token.replace(mark, "")),
            None => self.bytes(token),
        }
    }
}

/// The byte that a character of GPT-2's alphabet stands for.
///
/// **Source**: `bytes_to_unicode` of GPT-2: printable Latin-1 stands for itself, the 68 other bytes follow in order
/// from U+0100.
fn byte_of_char(character: char) -> Option<u8> {
    let code = u32::from(character);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u8::try_from(code).ok(),
        // 0x00..=0x20, then 0x7F..=0xA0, then 0xAD
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

/// The character of GPT-2's alphabet for a byte.
pub(super) fn char_of_byte(byte: u8) -> char {
    ('\0'..='\u{143}').find(|&character| byte_of_char(character) == Some(byte)).expect("every byte has a character")
}

/// The byte of a token such as `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Text of token ids as they come, without special tokens.
///
/// Everything that was pushed, put together with [`StreamDecoder::finish`], is what [`Tokenizer::decode`] gives for the
/// whole, up to the number of replacement characters for bytes that are not UTF-8. Work per token does not depend on
/// the tokens before.
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    /// Bytes of a character that is not finished.
    pending: Vec<u8>,
    is_first: bool,
    spaces_to_strip: usize,
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        let spaces_to_strip = tokenizer.inner.pieces.strip_start;
        Self { tokenizer, pending: Vec::new(), is_first: true, spaces_to_strip }
    }

    /// Takes the next token and returns the text that is now final, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let inner = &self.tokenizer.inner;
        if inner.special_ids.contains(&id) {
            return None;
        }
        let token = inner.hf.id_to_token(id)?;
        if self.is_first {
            self.pending.extend(inner.pieces.first_bytes(&token));
        } else {
            if inner.pieces.space_separated {
                self.pending.push(b' ');
            }
            self.pending.extend(inner.pieces.bytes(&token));
        }
        self.is_first = false;
        self.take(false)
    }

    /// Ends the text: an unfinished character becomes a replacement character.
    pub fn finish(&mut self) -> Option<String> {
        self.take(true)
    }

    fn take(&mut self, at_end: bool) -> Option<String> {
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.pending.clear();
                    break;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[..valid]));
                    match error.error_len() {
                        Some(wrong) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            self.pending.drain(..valid + wrong);
                        }
                        None if at_end => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            self.pending.clear();
                            break;
                        }
                        None => {
                            self.pending.drain(..valid);
                            break;
                        }
                    }
                }
            }
        }
        if self.spaces_to_strip > 0 && !text.is_empty() {
            let spaces = text.bytes().take_while(|&byte| byte == b' ').count().min(self.spaces_to_strip);
            // The first other character ends the stripping, however many spaces were still allowed.
            self.spaces_to_strip = if spaces == text.len() { self.spaces_to_strip - spaces } else { 0 };
            text.drain(..spaces);
        }
        (!text.is_empty()).then_some(text)
    }
}
