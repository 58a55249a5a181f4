//! Random walks over the allowed tokens: whatever the model prefers, the output matches.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::sync::LazyLock;

use proptest::prelude::*;
use rand::{Rng, seq::IteratorRandom};
use serde_json::{Value, json};

use super::*;
use crate::{seed::stream, tokenizer::toy};

struct Fixture {
    tokenizer: Tokenizer,
    factory: GrammarFactory,
    eos: u32,
}

impl Fixture {
    fn new(tokenizer: Tokenizer) -> Self {
        let eos = tokenizer.eos_token_id().unwrap();
        let factory = GrammarFactory::new(&tokenizer, &[eos]).unwrap();
        Self { tokenizer, factory, eos }
    }

    fn start(&self, constraint: &Constraint) -> GrammarState {
        Grammar::compile(constraint, &self.factory).unwrap().start()
    }

    /// Draws allowed tokens, after `random_steps` of them always the one that ends soonest; returns the text.
    fn walk(&self, constraint: &Constraint, seed: u64, random_steps: usize) -> String {
        let mut rng = stream(seed, "walk", "");
        let mut state = self.start(constraint);
        let mut bytes = Vec::new();
        for step in 0.. {
            assert!(step < random_steps + 300, "no end: {}", String::from_utf8_lossy(&bytes));
            let mask = state.allowed().unwrap();
            let token = if step < random_steps {
                mask.tokens().choose(&mut rng).unwrap()
            } else {
                let closing = |byte: u8| mask.tokens().find(|&token| self.tokenizer.token_bytes(token) == [byte]);
                let ends = [mask.allows(self.eos).then_some(self.eos), closing(b'"'), closing(b']'), closing(b'}')];
                ends.into_iter().flatten().next().unwrap_or_else(|| mask.tokens().choose(&mut rng).unwrap())
            };
            assert!(mask.allows(token));
            bytes.extend(self.tokenizer.token_bytes(token));
            if state.accept(token).unwrap() {
                break;
            }
        }
        assert!(state.is_finished());
        String::from_utf8(bytes).unwrap()
    }

    /// Whether a text can be written token by token, ended by the end token: forced tokens where there are any, else
    /// bytes.
    fn matches(&self, constraint: &Constraint, text: &str) -> bool {
        let mut state = self.start(constraint);
        let mut rest = text.as_bytes();
        while let Some(&byte) = rest.first() {
            let byte_token = self.tokenizer.token_id(&format!("<0x{byte:02X}>")).unwrap_or(u32::from(byte));
            let id = state.forced_token().unwrap_or(byte_token);
            let bytes = self.tokenizer.token_bytes(id);
            if state.is_finished() || !rest.starts_with(&bytes) || !state.allowed().unwrap().allows(id) {
                return false;
            }
            if state.accept(id).is_err() {
                return false;
            }
            rest = &rest[bytes.len()..];
        }
        state.may_end()
    }
}

static BYTES: LazyLock<Fixture> = LazyLock::new(|| Fixture::new(toy::byte_level(None, "<|im_end|>")));
static PIECES: LazyLock<Fixture> = LazyLock::new(|| Fixture::new(toy::sentencepiece()));

fn syllabus_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "level": {"enum": ["beginner", "advanced", "he said \"hi\""]},
            "sessions": {
                "type": "array", "minItems": 1, "maxItems": 3,
                "items": {
                    "type": "object",
                    "properties": {
                        "title": {"type": "string", "minLength": 1, "maxLength": 12},
                        "key_concepts": {
                            "type": "array", "minItems": 2, "maxItems": 3,
                            "items": {"type": "string", "maxLength": 6}
                        }
                    },
                    "required": ["title", "key_concepts"], "additionalProperties": false
                }
            },
            "hours": {"type": "integer", "minimum": 1, "maximum": 40}
        },
        "required": ["level", "sessions", "hours"], "additionalProperties": false
    })
}

fn check_syllabus(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(["beginner", "advanced", "he said \"hi\""].contains(&value["level"].as_str().unwrap()));
    assert!((1..=40).contains(&value["hours"].as_i64().unwrap()));
    let sessions = value["sessions"].as_array().unwrap();
    assert!((1..=3).contains(&sessions.len()));
    for session in sessions {
        assert!((1..=12).contains(&session["title"].as_str().unwrap().chars().count()), "{text}");
        let concepts = session["key_concepts"].as_array().unwrap();
        assert!((2..=3).contains(&concepts.len()));
        assert!(concepts.iter().all(|concept| concept.as_str().unwrap().chars().count() <= 6), "{text}");
        assert_eq!(session.as_object().unwrap().len(), 2);
    }
    assert_eq!(value.as_object().unwrap().len(), 3);
    // Compact: what is written is what a compact writer writes, escapes of single characters aside.
    if !text.contains('\\') {
        assert_eq!(text, value.to_string());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_walk_through_a_schema_is_valid_json_and_can_end(seed in any::<u64>(), random_steps in 0usize..200) {
        let constraint = Constraint::JsonSchema(syllabus_schema());
        check_syllabus(&BYTES.walk(&constraint, seed, random_steps));
        check_syllabus(&PIECES.walk(&constraint, seed, random_steps));
    }

    #[test]
    fn every_walk_through_an_expression_matches_it(seed in any::<u64>(), random_steps in 0usize..40) {
        let pattern = r"(yes|no): [a-cé]{2,5}( \d+)?\.";
        let text = BYTES.walk(&Constraint::Regex(pattern.into()), seed, random_steps);
        let whole = regex::Regex::new(&format!("^(?:{pattern})$")).unwrap();
        prop_assert!(whole.is_match(&text), "{}", text);
    }

    #[test]
    fn every_walk_through_choices_is_one_of_them(
        choices in prop::collection::vec("[ -~é]{1,8}", 1..6),
        seed in any::<u64>(),
    ) {
        let text = BYTES.walk(&Constraint::Choice(choices.clone()), seed, 64);
        prop_assert!(choices.contains(&text), "{:?} {:?}", choices, text);
    }
}

#[test]
fn expressions_match_the_whole_output_and_nothing_else() {
    let number = Constraint::Regex(r"-?(0|[1-9]\d*)".into());
    for (text, expected) in [("0", true), ("-12", true), ("12a", false), ("", false), ("-", false), ("007", false)] {
        assert_eq!(BYTES.matches(&number, text), expected, "{text:?}");
        assert_eq!(PIECES.matches(&number, text), expected, "{text:?}");
    }
}

#[test]
fn choices_are_taken_literally_and_one_may_begin_another() {
    let choices = Constraint::Choice(vec!["a".into(), "ab".into(), "(.*)".into(), "/x\n".into()]);
    for (text, expected) in [("a", true), ("ab", true), ("(.*)", true), ("/x\n", true), ("b", false), ("(x)", false)] {
        assert_eq!(BYTES.matches(&choices, text), expected, "{text:?}");
    }
    let mut state = BYTES.start(&choices);
    assert_eq!(state.accept(u32::from(b'a')), Ok(false), "`ab` can still follow");
    assert!(state.allowed().unwrap().allows(BYTES.eos));
    assert_eq!(state.accept(u32::from(b'b')), Ok(true), "nothing can follow `ab`");
}

#[test]
fn an_unbounded_expression_ends_with_the_end_token() {
    let mut state = BYTES.start(&Constraint::Regex("a+".into()));
    assert!(!state.allowed().unwrap().allows(BYTES.eos));
    assert_eq!(state.accept(u32::from(b'a')), Ok(false));
    assert!(state.may_end() && !state.is_finished());
    assert_eq!(state.accept(BYTES.eos), Ok(true));
    assert!(state.is_finished());
}

#[test]
fn json_is_compact_and_special_tokens_are_never_allowed_inside() {
    let constraint = Constraint::JsonSchema(json!({
        "type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}, "required": ["a"],
        "additionalProperties": false
    }));
    assert!(BYTES.matches(&constraint, r#"{"a":["x","y"]}"#));
    assert!(!BYTES.matches(&constraint, r#"{"a": ["x"]}"#));
    assert!(!BYTES.matches(&constraint, r#"{"a":["x", "y"]}"#));
    assert!(!BYTES.matches(&constraint, "{\n\"a\":[]}"));
    let mut state = BYTES.start(&constraint);
    for byte in br#"{"a":[""# {
        let mask = state.allowed().unwrap();
        assert!(BYTES.tokenizer.special_tokens().iter().all(|(id, _)| !mask.allows(*id)));
        state.accept(u32::from(*byte)).unwrap();
    }
    let mask = state.allowed().unwrap();
    assert!(BYTES.tokenizer.special_tokens().iter().all(|(id, _)| !mask.allows(*id)));
    assert!(state.accept(BYTES.eos).is_err() && state.accept(1_000_000).is_err());
}

#[test]
fn a_forced_token_is_the_tokenizers_own_and_the_only_one_that_is_allowed() {
    let constraint = Constraint::JsonSchema(json!({"type": "object", "properties": {"hello": {"type": "integer"}},
                                      "required": ["hello"], "additionalProperties": false}));
    for fixture in [&*BYTES, &*PIECES] {
        let mut state = fixture.start(&constraint);
        let mut forced = Vec::new();
        while let Some(token) = state.forced_token() {
            assert_eq!(state.allowed().unwrap().only(), Some(token), "after {forced:?}");
            state.accept(token).unwrap();
            forced.push(token);
        }
        let bytes: Vec<u8> = forced.iter().flat_map(|&token| fixture.tokenizer.token_bytes(token)).collect();
        let text = String::from_utf8(bytes).unwrap();
        assert!(r#"{"hello":"#.starts_with(&text) && text.len() >= r#"{"hello"#.len(), "{text}");
        assert!(state.allowed().unwrap().tokens().count() > 1, "a number can begin in several ways");
        if std::ptr::eq(fixture, &*BYTES) {
            assert_eq!(forced, fixture.tokenizer.encode(&text, false).unwrap());
        }
    }
}

#[test]
fn wrong_constraints_are_typed_errors_of_one_line() {
    let compile = |constraint: Constraint| Grammar::compile(&constraint, &BYTES.factory).err().expect("it is wrong");
    let errors = [
        compile(Constraint::JsonSchema(json!({"type": "nonsense"}))),
        compile(Constraint::JsonSchema(json!([1]))),
        compile(Constraint::JsonSchema(json!({"$ref": "#/definitions/none"}))),
        compile(Constraint::JsonSchema(json!({"type": "string", "minLength": 3, "maxLength": 1}))),
        compile(Constraint::Regex("(".into())),
        compile(Constraint::Regex("(?=x)".into())),
        compile(Constraint::Choice(Vec::new())),
    ];
    for error in &errors {
        assert!(!error.to_string().contains('\n') && error.to_string().len() < 400, "{error}");
    }
    assert!(errors[4].to_string().contains("unclosed group"), "{}", errors[4]);
    assert!(matches!(errors[0], GrammarError::JsonSchema(_)) && matches!(errors[4], GrammarError::Regex(_)));
    assert!(matches!(errors[6], GrammarError::Choice(_)));
}

#[test]
fn a_model_without_end_token_finishes_where_nothing_can_follow() {
    let tokenizer = toy::byte_level(None, "<|im_end|>");
    let factory = GrammarFactory::new(&tokenizer, &[]).unwrap();
    for (choice, length) in [("ab", 2), ("", 0)] {
        let mut state = Grammar::compile(&Constraint::Choice(vec![choice.into()]), &factory).unwrap().start();
        let mut steps = 0;
        while let Some(token) = state.allowed().unwrap().tokens().next() {
            assert!((token as usize) < tokenizer.vocab_size());
            state.accept(token).unwrap();
            steps += 1;
        }
        assert!(state.is_finished() && steps == length, "{choice:?}: {steps}");
    }
}

#[test]
fn a_vocabulary_without_the_needed_bytes_is_an_error_and_not_an_endless_walk() {
    let value = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {"yes": 0, "no": 1, "maybe": 2}, "unk_token": "no"}
    });
    let folder = toy::directory(&value, &json!({}));
    let factory = GrammarFactory::new(&Tokenizer::load(folder.path()).unwrap(), &[2]).unwrap();
    let mut state = Grammar::compile(&Constraint::Choice(vec!["yes".into()]), &factory).unwrap().start();
    assert_eq!(state.accept(0), Ok(true));
    let mut state = Grammar::compile(&Constraint::Choice(vec!["perhaps".into()]), &factory).unwrap().start();
    assert!(matches!(state.allowed(), Err(GrammarError::Step(_))));
}

#[test]
fn a_state_does_not_depend_on_other_states() {
    let grammar = Grammar::compile(&Constraint::JsonSchema(syllabus_schema()), &BYTES.factory).unwrap();
    let masks = |state: &mut GrammarState| -> Vec<Vec<u32>> {
        let mut rng = stream(7, "walk", "");
        (0..40)
            .map(|_| {
                let tokens: Vec<u32> = state.allowed().unwrap().tokens().collect();
                state.accept(tokens[rng.random_range(0..tokens.len())]).unwrap();
                tokens
            })
            .collect()
    };
    let alone = masks(&mut grammar.start());
    let (mut left, mut right) = (grammar.start(), grammar.start());
    right.accept(u32::from(b'{')).unwrap();
    assert_eq!(masks(&mut left), alone);
    assert_eq!(right.allowed().unwrap().tokens().count(), 1 + usize::from(BYTES.tokenizer.token_id("\"l").is_some()));
}

#[test]
fn a_mask_rules_out_everything_else_and_the_rows_past_the_vocabulary() {
    let mut state = BYTES.start(&Constraint::Choice(vec!["a".into(), "b".into()]));
    let mask = state.allowed().unwrap();
    let mut logits = vec![1.0f32; BYTES.tokenizer.vocab_size() + 77];
    mask.apply(&mut logits);
    let kept: Vec<usize> = (0..logits.len()).filter(|&token| logits[token].is_finite()).collect();
    assert_eq!(kept, [usize::from(b'a'), usize::from(b'b')]);
    let mut everything = BYTES.start(&Constraint::Regex("(?s:.*)".into()));
    let mask = everything.allowed().unwrap();
    let mut logits = vec![1.0f32; BYTES.tokenizer.vocab_size()];
    mask.apply(&mut logits);
    for (token, logit) in (0u32..).zip(&logits) {
        assert_eq!(logit.is_finite(), mask.allows(token));
    }
}
