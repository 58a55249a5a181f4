//! Small tokenizers for tests, written the way Hugging Face files are.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Tokenizer, pieces::char_of_byte};

/// Special tokens of the chat formats that the tests use; their ids come after the 256 bytes and three merges.
pub(crate) const SPECIAL: [&str; 16] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<s>",
    "</s>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "[INST]",
    "[/INST]",
    "<unk>",
];

fn added(id: usize, content: &str) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}

/// Byte-level BPE: id = byte for the first 256, then `he`, `in`, `":`, then [`SPECIAL`].
pub(crate) fn byte_level_json() -> Value {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255u8 {
        vocab.insert(char_of_byte(byte).to_string(), json!(byte));
    }
    for (index, merged) in ["he", "in", "\":"].iter().enumerate() {
        vocab.insert((*merged).to_owned(), json!(256 + index));
    }
    let added: Vec<Value> = SPECIAL.iter().enumerate().map(|(index, token)| added(259 + index, token)).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": [["h", "e"], ["i", "n"], ["\"", ":"]]}
    })
}

/// Llama-style SentencePiece BPE with byte fallback: `<unk> <s> </s>`, 256 bytes, and a few pieces.
pub(crate) fn sentencepiece_json() -> Value {
    let mut vocab = serde_json::Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.to_owned(), json!(vocab.len()));
    }
    for byte in 0..=255u8 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(vocab.len()));
    }
    for piece in ["▁", "a", "b", "c", "{", "}", "\"", ":", "▁a", "ab", "▁ab", "é"] {
        vocab.insert(piece.to_owned(), json!(vocab.len()));
    }
    let template = |sequence: &str| json!({"Sequence": {"id": sequence, "type_id": 0}});
    let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing", "single": [bos, template("A")],
            "pair": [bos, template("A"), template("B")],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab, "merges": [["▁", "a"], ["a", "b"], ["▁a", "b"]]}
    })
}

/// A folder with a `tokenizer.json` and a `tokenizer_config.json`.
pub(crate) fn directory(tokenizer: &Value, config: &Value) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write(folder.path(), tokenizer, config);
    folder
}

/// Writes both files into a folder.
pub(crate) fn write(folder: &Path, tokenizer: &Value, config: &Value) {
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).expect("a writable folder");
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).expect("a writable folder");
}

/// The byte-level tokenizer with these BOS and EOS tokens.
pub(crate) fn byte_level(bos_token: Option<&str>, eos_token: &str) -> Tokenizer {
    let folder = directory(&byte_level_json(), &json!({"bos_token": bos_token, "eos_token": eos_token}));
    Tokenizer::load(folder.path()).expect("the toy tokenizer loads")
}

/// The SentencePiece tokenizer.
pub(crate) fn sentencepiece() -> Tokenizer {
    let folder = directory(&sentencepiece_json(), &json!({"bos_token": "<s>", "eos_token": "</s>"}));
    Tokenizer::load(folder.path()).expect("the toy tokenizer loads")
}
