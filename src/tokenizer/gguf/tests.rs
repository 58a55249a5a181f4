//! Tokenizers through metadata and back.

use serde_json::json;

use super::{
    super::{Tokenizer, toy},
    *,
};
use crate::gguf::Value as Gguf;

/// Metadata of a toy, and the tokenizer that they describe.
fn through(json: &Value, config: &Value) -> (Tokenizer, Described, Tokenizer) {
    let folder = toy::directory(json, config);
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let described = tokenizer.gguf_metadata(tokenizer.vocab_size() + 3).unwrap();
    let again = Tokenizer::from_gguf(&described.metadata).unwrap().unwrap();
    (tokenizer, described, again)
}

#[test]
fn byte_level_bpe_comes_back_with_its_special_tokens() {
    let config = json!({"bos_token": "<s>", "eos_token": "<|endoftext|>", "add_bos_token": true});
    let (before, described, after) = through(&toy::byte_level_json(), &config);
    assert_eq!(described.note, None);
    let text = |key: &str| described.metadata.text(key).unwrap().map(str::to_owned);
    assert_eq!(text("tokenizer.ggml.model").as_deref(), Some("gpt2"));
    assert_eq!(text("tokenizer.ggml.pre").as_deref(), Some("gpt-2"));
    assert_eq!(text(HUGGING_FACE), None, "what llama.cpp can say needs no second copy");
    assert_eq!(before.agreement(&after).unwrap(), SAMPLES.len());
    assert_eq!(before.named_tokens(), after.named_tokens());
    assert_eq!(before.special_tokens(), after.special_tokens());
    assert_eq!(before.vocab_size(), after.vocab_size(), "padding is no token");
    assert_eq!(after.encode("hi", true).unwrap()[0], before.bos_token_id().unwrap());
    for id in 0..before.vocab_size() as u32 {
        assert_eq!(before.token_bytes(id), after.token_bytes(id));
    }
}

#[test]
fn sentencepiece_comes_back_through_scores() {
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": true});
    let (before, described, after) = through(&toy::sentencepiece_json(), &config);
    assert_eq!(described.note, None);
    assert_eq!(described.metadata.text("tokenizer.ggml.model").unwrap(), Some("llama"));
    assert_eq!(described.metadata.integers("tokenizer.ggml.token_type").unwrap().unwrap()[..4], [2, 3, 3, 6]);
    assert_eq!(before.agreement(&after).unwrap(), SAMPLES.len());
    assert_eq!(before.named_tokens(), after.named_tokens());
}

#[test]
fn another_way_of_cutting_goes_along_whole() {
    let mut json = toy::byte_level_json();
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": " ?[0-9]| ?[a-z]+|."}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    let (before, described, after) = through(&json, &json!({"eos_token": "</s>"}));
    assert!(described.note.as_deref().unwrap().contains(HUGGING_FACE));
    assert_eq!(described.metadata.text("tokenizer.ggml.model").unwrap(), Some("gpt2"), "llama.cpp loads it too");
    assert_eq!(before.agreement(&after).unwrap(), SAMPLES.len());
    assert_eq!(before.named_tokens(), after.named_tokens());
}

#[test]
fn every_named_rule_is_a_pre_tokenizer() {
    for rule in &pre_tokenizer::RULES {
        serde_json::from_value::<PreTokenizerWrapper>(rule.json()).unwrap_or_else(|error| panic!("{rule:?}: {error}"));
        assert!(rule.names.iter().all(|name| pre_tokenizer::named(name) == Some(rule)), "{rule:?}");
    }
    // Contractions, three digits at most, line breaks: what tells the rules apart.
    let mut metadata = Metadata::default();
    metadata.set("tokenizer.ggml.model", "gpt2");
    let bytes: Vec<String> = (0..=255u8).map(|byte| super::super::pieces::char_of_byte(byte).to_string()).collect();
    let mut tokens = bytes;
    tokens.extend(["12".into(), "123".into(), "1234".into()]);
    metadata.set("tokenizer.ggml.tokens", Gguf::Texts(tokens));
    metadata.set("tokenizer.ggml.merges", Gguf::Texts(vec!["1 2".into(), "12 3".into(), "123 4".into()]));
    for (name, expected) in [("llama-bpe", 2), ("qwen2", 4), ("gpt-2", 1), ("smollm", 4), ("default", 2)] {
        metadata.set("tokenizer.ggml.pre", name);
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap().unwrap();
        assert_eq!(tokenizer.encode("1234", false).unwrap().len(), expected, "{name}");
    }
}

#[test]
fn what_is_not_known_or_damaged_is_named() {
    let (_, described, _) = through(&toy::byte_level_json(), &json!({"eos_token": "</s>"}));
    for (key, value, expected) in [
        ("tokenizer.ggml.model", Gguf::from("bert"), "`bert`"),
        ("tokenizer.ggml.pre", Gguf::from("chatglm-bpe"), "`chatglm-bpe`"),
        ("tokenizer.ggml.eos_token_id", Gguf::from(99_999usize), "99999"),
        ("tokenizer.ggml.tokens", Gguf::Texts(vec!["a".into()]), "tokenizer.ggml.token_type"),
        ("tokenizer.ggml.merges", Gguf::Texts(vec!["ab".into()]), "two parts"),
        ("tokenizer.ggml.merges", Gguf::Texts(vec!["a zzz".into()]), "not in the vocabulary"),
        ("tokenizer.ggml.model", Gguf::from("llama"), "scores"),
    ] {
        let mut metadata = described.metadata.clone();
        metadata.set(key, value);
        let error = format!("{:#}", Tokenizer::from_gguf(&metadata).err().unwrap());
        assert!(error.contains(expected), "`{expected}` is not in: {error}");
    }
    assert!(Tokenizer::from_gguf(&Metadata::default()).unwrap().is_none());
}
