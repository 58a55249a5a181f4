//! Chat templates and tokenizers against renderings and ids made by Python.
//!
//! The fixture in this repository holds templates written for it. A folder of real tokenizers and templates is used
//! where there is one: `GLAN_SHARED`, else `shared/` beside the repository.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed unwrap fails the test; a skipped test says so")]

use std::path::{Path, PathBuf};

use glan::{chat_template::ChatTemplate, language_model::Message, tokenizer::Tokenizer};
use serde_json::{Value, json};

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The folder with models that are too large for this repository, if it is there.
pub fn shared() -> Option<PathBuf> {
    let named = std::env::var_os("GLAN_SHARED").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    folder.join("models/golden").is_dir().then_some(folder)
}

/// A tokenizer that knows the special tokens and nothing else.
fn bare_tokenizer(bos_token: &Value, eos_token: &Value) -> Tokenizer {
    let mut vocab = json!({"a": 0});
    let mut added = Vec::new();
    for token in [bos_token, eos_token].iter().filter_map(|token| token.as_str()) {
        let id = vocab.as_object().unwrap().len();
        if vocab.get(token).is_none() {
            vocab[token] = json!(id);
            added.push(json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                              "normalized": false, "special": true}));
        }
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"}
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({"bos_token": bos_token, "eos_token": eos_token});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    Tokenizer::load(folder.path()).unwrap()
}

fn check(template: &ChatTemplate, case: &Value, name: &str) {
    let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
    let rendered = template.render(&messages, case["add_generation_prompt"].as_bool().unwrap());
    match case["raises"].as_str() {
        Some(message) => {
            let error = rendered.expect_err("the template refuses this conversation").to_string();
            assert!(error.ends_with(message), "{name}: {error}");
        }
        None => assert_eq!(rendered.unwrap(), case["rendered"].as_str().unwrap(), "{name}: {}", case["messages"]),
    }
}

#[test]
fn templates_render_as_jinja_in_transformers_environment_does() {
    let fixture = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat_templates.json"));
    let templates = fixture["templates"].as_array().unwrap();
    assert_eq!(templates.len(), 10);
    for entry in templates {
        let tokenizer = bare_tokenizer(&entry["bos_token"], &entry["eos_token"]);
        let template = ChatTemplate::new(entry["source"].as_str().unwrap().to_owned(), &tokenizer).unwrap();
        for case in entry["cases"].as_array().unwrap() {
            check(&template, case, entry["name"].as_str().unwrap());
        }
    }
}

#[test]
fn real_templates_render_as_in_python() {
    let Some(shared) = shared() else {
        eprintln!("skipped: no shared folder with real chat templates (set GLAN_SHARED)");
        return;
    };
    let models = shared.join("models");
    let cases = read(&models.join("golden/tokenizers_and_chat.json"));
    for case in cases["chat"].as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let path = models.join(name);
        let source = if name.ends_with(".json") {
            read(&path)["chat_template"].as_str().unwrap().to_owned()
        } else {
            std::fs::read_to_string(&path).unwrap()
        };
        let tokenizer = bare_tokenizer(&case["bos_token"], &case["eos_token"]);
        check(&ChatTemplate::new(source, &tokenizer).unwrap(), case, name);
    }
}

#[test]
fn real_tokenizers_give_the_ids_of_python() {
    let Some(shared) = shared() else {
        eprintln!("skipped: no shared folder with real tokenizers (set GLAN_SHARED)");
        return;
    };
    let models = shared.join("models");
    let golden = read(&models.join("golden/tokenizers_and_chat.json"));
    let mut compared = 0;
    for (name, cases) in golden["tokenizers"].as_object().unwrap() {
        // The golden file also lists SentencePiece model files, which hold no `tokenizer.json`.
        if !models.join(name).join("tokenizer.json").is_file() {
            continue;
        }
        let tokenizer = Tokenizer::load(&models.join(name)).unwrap();
        for case in cases.as_array().unwrap() {
            let text = case["text"].as_str().unwrap();
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(json!(ids), case["ids"], "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{name}");
            let (with_offsets, offsets) = tokenizer.encode_with_offsets(text, false).unwrap();
            assert_eq!(with_offsets, ids);
            assert_eq!(offsets.last().map_or(0, |range| range.end), text.len(), "{name}: {text:?}");
            let plain: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).collect();
            let skipped = tokenizer.decode(&ids, true).unwrap();
            assert_eq!(String::from_utf8(plain).unwrap(), skipped, "{name}: {text:?}");
            compared += 1;
        }
    }
    assert!(compared >= 27, "only {compared} texts were compared");
}
