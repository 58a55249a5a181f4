//! Loading, BOS rules, offsets, bytes of tokens and streaming, on the toy vocabularies.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let mut decoder = tokenizer.stream_decoder();
    let mut text: String = ids.iter().filter_map(|&id| decoder.push(id)).collect();
    text.extend(decoder.finish());
    text
}

#[test]
fn a_missing_and_a_cut_tokenizer_name_the_file_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Tokenizer::load(folder.path()).err().expect("there is no tokenizer.json");
    assert_eq!(crate::error::exit_code(&missing), 3);
    assert!(missing.to_string().contains("tokenizer.json") && missing.to_string().contains("glan fetch"), "{missing}");
    let text = toy::byte_level_json().to_string();
    fs::write(folder.path().join("tokenizer.json"), &text[..text.len() / 2]).unwrap();
    let cut = Tokenizer::load(folder.path()).err().expect("the file is cut");
    assert!(cut.to_string().contains("tokenizer.json") && cut.to_string().contains("fetch"), "{cut}");
}

#[test]
fn special_tokens_may_be_strings_or_objects_and_the_map_fills_gaps() {
    let folder = toy::directory(&toy::byte_level_json(), &json!({"eos_token": {"content": "<|im_end|>"}}));
    fs::write(
        folder.path().join("special_tokens_map.json"),
        json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>"}).to_string(),
    )
    .unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(tokenizer.eos_token(), Some("<|im_end|>"));
    assert_eq!(tokenizer.bos_token(), Some("<s>"));
    assert_eq!(tokenizer.eos_token_id(), tokenizer.token_id("<|im_end|>"));
    assert_eq!(tokenizer.bos_token_id(), tokenizer.token_id("<s>"));
}

#[test]
fn without_other_files_the_model_configuration_names_the_special_tokens() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), toy::sentencepiece_json().to_string()).unwrap();
    fs::write(folder.path().join("config.json"), json!({"bos_token_id": 1, "eos_token_id": 2}).to_string()).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!((tokenizer.bos_token(), tokenizer.eos_token_id()), (Some("<s>"), Some(2)));
    // A tokenizer configuration that says `null` means it.
    fs::write(folder.path().join("tokenizer_config.json"), json!({"bos_token": null}).to_string()).unwrap();
    assert_eq!(Tokenizer::load(folder.path()).unwrap().bos_token_id(), None);
}

#[test]
fn add_bos_token_prepends_or_removes_but_never_doubles() {
    let load = |tokenizer: &Value, config: Value| {
        let folder = toy::directory(tokenizer, &config);
        Tokenizer::load(folder.path()).unwrap()
    };
    let count = |tokenizer: &Tokenizer, text: &str, add: bool| {
        let bos = tokenizer.bos_token_id().unwrap();
        let ids = tokenizer.encode(text, add).unwrap();
        let (offset_ids, offsets) = tokenizer.encode_with_offsets(text, add).unwrap();
        assert_eq!(ids, offset_ids);
        assert_eq!(ids.len(), offsets.len());
        ids.iter().filter(|&&id| id == bos).count()
    };
    let (bytes, pieces) = (toy::byte_level_json(), toy::sentencepiece_json());
    let absent = load(&bytes, json!({"bos_token": "<s>", "add_bos_token": true}));
    assert_eq!([count(&absent, "ab", true), count(&absent, "ab", false), count(&absent, "<s>ab", true)], [1, 0, 1]);
    let present = load(&pieces, json!({"bos_token": "<s>", "add_bos_token": true}));
    assert_eq!([count(&present, "ab", true), count(&present, "ab", false)], [1, 0]);
    let removed = load(&pieces, json!({"bos_token": "<s>", "add_bos_token": false}));
    assert_eq!(count(&removed, "ab", true), 0);
    let unsaid = load(&bytes, json!({"bos_token": "<s>"}));
    assert_eq!(count(&unsaid, "ab", true), 0);
}

#[test]
fn truncation_and_padding_of_the_saved_file_are_not_used() {
    let mut value = toy::byte_level_json();
    value["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    value["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
                              "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
    let folder = toy::directory(&value, &json!({}));
    assert_eq!(Tokenizer::load(folder.path()).unwrap().encode("abcdef", true).unwrap().len(), 6);
}

#[test]
fn offsets_are_byte_ranges_that_cover_the_white_space() {
    let tokenizer = toy::byte_level(None, "<|im_end|>");
    let text = "é  日\n\n<|im_end|>\n x";
    let (ids, offsets) = tokenizer.encode_with_offsets(text, true).unwrap();
    let mut covered = vec![false; text.len()];
    for (id, range) in ids.iter().zip(&offsets) {
        covered[range.clone()].fill(true);
        if tokenizer.is_special(*id) {
            assert_eq!(&text[range.clone()], "<|im_end|>");
        }
    }
    assert!(covered.iter().all(|&covered| covered), "{offsets:?}");
    let pieces = toy::sentencepiece();
    let (_, offsets) = pieces.encode_with_offsets("a é", false).unwrap();
    assert_eq!(offsets.last().unwrap().end, "a é".len());
}

#[test]
fn token_bytes_follow_the_decoder() {
    let bytes = toy::byte_level(None, "<|im_end|>");
    for byte in 0..=255u8 {
        assert_eq!(bytes.token_bytes(u32::from(byte)), [byte]);
    }
    assert_eq!(bytes.token_bytes(bytes.token_id("\":").unwrap()), b"\":");
    assert!(bytes.token_bytes(bytes.token_id("<|im_end|>").unwrap()).is_empty());
    assert!(bytes.token_bytes(100_000).is_empty());
    let pieces = toy::sentencepiece();
    assert_eq!(pieces.token_bytes(pieces.token_id("<0x0A>").unwrap()), b"\n");
    assert_eq!(pieces.token_bytes(pieces.token_id("▁ab").unwrap()), b" ab");
    assert_eq!(pieces.token_bytes(pieces.token_id("é").unwrap()), "é".as_bytes());
    assert!(pieces.token_bytes(1).is_empty());
}

#[test]
fn a_word_level_vocabulary_without_decoder_streams_with_spaces() {
    let value = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"two": 0, "words": 1, "<0x41>": 5}, "unk_token": "two"}
    });
    let folder = toy::directory(&value, &json!({}));
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 6, "one more than the largest id, holes included");
    assert_eq!(tokenizer.token_bytes(1), b"words");
    assert_eq!(tokenizer.token_bytes(5), b"<0x41>", "not a byte: this vocabulary has no byte fallback");
    assert_eq!(streamed(&tokenizer, &[0, 1, 3, 0]), tokenizer.decode(&[0, 1, 3, 0], true).unwrap());
}

#[test]
fn a_metaspace_decoder_streams_as_it_decodes() {
    let mut value = toy::sentencepiece_json();
    value["decoder"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let folder = toy::directory(&value, &json!({"bos_token": "<s>"}));
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let ids: Vec<u32> = ["▁ab", "▁", "c", "▁a"].iter().map(|token| tokenizer.token_id(token).unwrap()).collect();
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "ab c a");
    assert_eq!(streamed(&tokenizer, &ids), "ab c a");
    assert_eq!(tokenizer.token_bytes(ids[0]), b" ab");
}

#[test]
fn a_stream_holds_back_unfinished_characters_only() {
    let tokenizer = toy::byte_level(None, "<|im_end|>");
    let mut decoder = tokenizer.stream_decoder();
    let pushed: Vec<Option<String>> = "a🙂".bytes().map(|byte| decoder.push(u32::from(byte))).collect();
    assert_eq!(pushed, [Some("a".into()), None, None, None, Some("🙂".into())]);
    assert_eq!(decoder.push(0xE6), None);
    assert_eq!(decoder.push(tokenizer.token_id("<|im_end|>").unwrap()), None);
    assert_eq!(decoder.finish(), Some("\u{FFFD}".into()));
    assert_eq!(decoder.finish(), None);
}

#[test]
fn a_tokenizer_larger_than_the_model_is_refused_with_both_numbers() {
    let tokenizer = toy::sentencepiece();
    assert_eq!(tokenizer.vocab_size(), 271);
    tokenizer.check_fits(271).unwrap();
    let error = tokenizer.check_fits(270).expect_err("id 270 has no row").to_string();
    assert!(error.contains("270 but") && error.contains("has 270 rows"), "{error}");
}

#[test]
fn copied_files_load_again_and_overwrite() {
    let from = toy::directory(&toy::sentencepiece_json(), &json!({"bos_token": "<s>"}));
    fs::write(from.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    let to = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        Tokenizer::copy_files(from.path(), &to.path().join("student")).unwrap();
    }
    assert_eq!(Tokenizer::files(&to.path().join("student")).len(), 3);
    assert_eq!(Tokenizer::load(&to.path().join("student")).unwrap().bos_token_id(), Some(1));
}

static BYTE_LEVEL: LazyLock<Tokenizer> = LazyLock::new(|| toy::byte_level(None, "<|im_end|>"));
static SENTENCEPIECE: LazyLock<Tokenizer> = LazyLock::new(toy::sentencepiece);

proptest! {
    #[test]
    fn byte_level_text_survives_encoding_decoding_and_streaming(text in "\\PC{0,40}|[ \\n\\ta-c🙂é日]{0,24}") {
        let tokenizer = &*BYTE_LEVEL;
        let ids = tokenizer.encode(&text, true).unwrap();
        prop_assert_eq!(&tokenizer.decode(&ids, false).unwrap(), &text);
        prop_assert_eq!(&streamed(tokenizer, &ids), &tokenizer.decode(&ids, true).unwrap());
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).collect();
        prop_assert_eq!(bytes, text.into_bytes());
    }

    #[test]
    fn a_byte_level_stream_agrees_with_decode_on_any_ids(ids in prop::collection::vec(0u32..275, 0..30)) {
        let tokenizer = &*BYTE_LEVEL;
        prop_assert_eq!(streamed(tokenizer, &ids), tokenizer.decode(&ids, true).unwrap());
    }

    #[test]
    fn a_sentencepiece_stream_agrees_with_decode(text in "[ abc{}\\n🙂é]{0,24}") {
        let tokenizer = &*SENTENCEPIECE;
        let ids = tokenizer.encode(&text, true).unwrap();
        prop_assert_eq!(&tokenizer.decode(&ids, true).unwrap(), &text);
        prop_assert_eq!(streamed(tokenizer, &ids), text);
    }
}
