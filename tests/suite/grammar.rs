//! Constrained decoding with the vocabularies of real models, where the shared folder holds them.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed unwrap fails the test; a skipped test says so")]

use glan::{
    engine::grammar::{Grammar, GrammarFactory},
    language_model::Constraint,
    seed::stream,
    tokenizer::Tokenizer,
};
use rand::seq::IteratorRandom;
use serde_json::{Value, json};

use crate::chat_templates::shared;

#[test]
fn random_tokens_of_real_vocabularies_write_valid_json() {
    let Some(shared) = shared() else {
        eprintln!("skipped: no shared folder with real tokenizers (set GLAN_SHARED)");
        return;
    };
    let schema = json!({
        "type": "object",
        "properties": {
            "subject": {"type": "string", "minLength": 1, "maxLength": 40},
            "level": {"type": "integer", "minimum": 1, "maximum": 12},
            "subtopics": {"type": "array", "minItems": 2, "maxItems": 4, "items": {"type": "string", "maxLength": 30}}
        },
        "required": ["subject", "level", "subtopics"],
        "additionalProperties": false
    });
    for (name, walks) in [("stories260K", 20), ("smollm2-tokenizer", 10), ("gpt2-tokenizer", 5)] {
        let tokenizer = Tokenizer::load(&shared.join("models").join(name)).unwrap();
        let eos = tokenizer.eos_token_id().unwrap();
        let factory = GrammarFactory::new(&tokenizer, &[eos]).unwrap();
        let grammar = Grammar::compile(&Constraint::JsonSchema(schema.clone()), &factory).unwrap();
        for seed in 0..walks {
            let mut rng = stream(seed, "walk", name);
            let mut state = grammar.start();
            let mut stream = tokenizer.stream_decoder();
            let (mut text, mut ids) = (String::new(), Vec::new());
            let mut num_forced = 0;
            while !state.is_finished() {
                let forced = state.forced_token();
                let mask = state.allowed().unwrap();
                assert!(forced.is_none_or(|token| mask.only() == Some(token)), "{name}: {forced:?} after {text}");
                num_forced += usize::from(forced.is_some());
                let token = mask.tokens().choose(&mut rng).unwrap();
                text.extend(stream.push(token));
                ids.push(token);
                state.accept(token).unwrap();
                assert!(ids.len() < 1000, "{name}: no end: {text}");
            }
            text.extend(stream.finish());
            assert!(num_forced > 3, "{name}: only {num_forced} tokens of the keys were forced: {text}");
            assert_eq!(text, tokenizer.decode(&ids, true).unwrap(), "{name}");
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}: {text}"));
            assert!(value["subject"].as_str().unwrap().chars().count() <= 40, "{name}: {text}");
            assert!((1..=12).contains(&value["level"].as_i64().unwrap()), "{name}: {text}");
            assert!((2..=4).contains(&value["subtopics"].as_array().unwrap().len()), "{name}: {text}");
        }
    }
}
