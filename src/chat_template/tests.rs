//! Loading, prompts without doubled tokens, and the ranges that a model is trained on.
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::tokenizer::toy;

/// One template of `tests/fixtures/chat_templates.json`, whose renderings the integration suite checks.
fn template(name: &str) -> (Tokenizer, ChatTemplate) {
    let fixture: serde_json::Value =
        serde_json::from_str(include_str!("../../tests/fixtures/chat_templates.json")).unwrap();
    let entry = fixture["templates"].as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap();
    let tokenizer = toy::byte_level(entry["bos_token"].as_str(), entry["eos_token"].as_str().unwrap());
    let template = ChatTemplate::new(entry["source"].as_str().unwrap().to_owned(), &tokenizer).unwrap();
    (tokenizer, template)
}

fn trained(template: &ChatTemplate, messages: &[Message]) -> Vec<String> {
    let (text, ranges) = template.render_for_training(messages).unwrap();
    assert_eq!(text, template.render(messages, false).unwrap());
    ranges.into_iter().map(|range| text[range].to_owned()).collect()
}

#[test]
fn the_file_comes_before_the_key_and_a_list_needs_a_default() {
    let tokenizer = toy::sentencepiece();
    let load = |config: serde_json::Value, file: Option<&str>| {
        let folder = toy::directory(&toy::sentencepiece_json(), &config);
        if let Some(file) = file {
            fs::write(folder.path().join("chat_template.jinja"), file).unwrap();
        }
        ChatTemplate::load(folder.path(), &tokenizer)
    };
    assert_eq!(load(json!({"chat_template": "key"}), Some("file")).unwrap().unwrap().source(), "file");
    assert_eq!(load(json!({"chat_template": "key"}), None).unwrap().unwrap().source(), "key");
    let list = json!([{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]);
    assert_eq!(load(json!({"chat_template": list}), None).unwrap().unwrap().source(), "b");
    assert!(load(json!({"chat_template": null}), None).unwrap().is_none());
    assert!(load(json!({}), None).unwrap().is_none());
    let error = load(json!({"chat_template": [{"name": "rag", "template": "a"}]}), None).err().unwrap();
    assert!(error.to_string().contains("default"), "{error:#}");
    let error = load(json!({"chat_template": "{% for %}"}), None).err().unwrap();
    assert!(format!("{error:#}").contains("tokenizer_config.json"), "{error:#}");
}

#[test]
fn a_refused_conversation_gives_the_templates_own_words() {
    let (_, mistral) = template("mistral");
    let error = mistral.render(&[Message::system("Be brief."), Message::user("Hi")], true).expect_err("no system turn");
    assert_eq!(
        error.to_string(),
        "the chat template refuses this conversation: only user and assistant turns are known, not system"
    );
}

#[test]
fn the_date_comes_from_the_clock() {
    let tokenizer = toy::sentencepiece();
    let dated = ChatTemplate::new("{{ strftime_now('%Y-%m-%d') }}".into(), &tokenizer).unwrap();
    let date: jiff::civil::Date = dated.render(&[], false).unwrap().parse().unwrap();
    assert!(date.year() >= 2024);
    let wrong = ChatTemplate::new("{{ strftime_now('%') }}".into(), &tokenizer).unwrap();
    assert!(wrong.render(&[], false).is_err());
}

#[test]
fn the_bos_token_is_never_doubled_and_never_lost() {
    for name in ["llama-2", "zephyr", "chatml"] {
        let (tokenizer, template) = template(name);
        let text = template.render(&[Message::user("Hi")], true).unwrap();
        let ids = encode_prompt(&tokenizer, &text).unwrap();
        let bos = ids.iter().filter(|&&id| Some(id) == tokenizer.bos_token_id()).count();
        assert_eq!(bos, usize::from(name == "llama-2"), "{name}");
        assert_eq!(encode_prompt_with_offsets(&tokenizer, &text).unwrap().0, ids);
    }
    let adds_bos = toy::sentencepiece();
    assert_eq!(encode_prompt(&adds_bos, "<s>ab").unwrap(), encode_prompt(&adds_bos, "ab").unwrap());
}

#[test]
fn end_of_turn_tokens_are_those_of_the_formats() {
    for (name, token) in [
        ("chatml", "<|im_end|>"),
        ("llama-2", "</s>"),
        ("llama-3", "<|eot_id|>"),
        ("mistral", "</s>"),
        ("zephyr", "</s>"),
        ("phi", "<|end|>"),
        ("reasoning", "<|im_end|>"),
    ] {
        let (tokenizer, template) = template(name);
        assert_eq!(template.end_of_turn_token(&tokenizer), tokenizer.token_id(token), "{name}");
    }
    let tokenizer = toy::sentencepiece();
    let plain = ChatTemplate::new("{{ messages[-1].content }}\n".into(), &tokenizer).unwrap();
    assert_eq!(plain.end_of_turn_token(&tokenizer), None);
}

#[test]
fn reasoning_of_past_turns_is_left_out_and_the_last_is_trained_with_it() {
    let messages = [
        Message::user("a"),
        Message::assistant("<think>\nhm\n</think>\n\nuser"),
        Message::user("b"),
        Message::assistant("think"),
    ];
    let (_, reasoning) = template("reasoning");
    assert_eq!(trained(&reasoning, &messages), ["user<|im_end|>", "<think>\n\n</think>\n\nthink<|im_end|>"]);
}

#[test]
fn a_template_whose_prompt_opens_a_thought_is_trained_on_the_content_alone() {
    let messages = [
        Message::user("a"),
        Message::assistant("<thanks>"),
        Message::user("assistant"),
        Message::assistant("assistant"),
    ];
    let (_, template) = template("open-thought");
    assert_eq!(trained(&template, &messages), ["<thanks></s>", "assistant</s>"]);
}

#[test]
fn an_end_mark_in_plain_text_is_trained_too() {
    let tokenizer = toy::sentencepiece();
    let source = "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content + '\n###END\n' }}{% endfor %}\
                  {% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}";
    let template = ChatTemplate::new(source.into(), &tokenizer).unwrap();
    let messages = [Message::user("a"), Message::assistant("b"), Message::user("c"), Message::assistant("d")];
    assert_eq!(trained(&template, &messages), ["b\n###END", "d\n###END"]);
}

#[test]
fn a_turn_that_the_template_drops_is_an_error_that_names_it() {
    let tokenizer = toy::sentencepiece();
    let template =
        ChatTemplate::new("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}".into(), &tokenizer)
            .unwrap();
    let error = template
        .render_for_training(&[Message::user("a"), Message::assistant("lost")])
        .expect_err("the answer is not rendered");
    assert!(format!("{error:#}").contains("turn 2 (\"lost\")"), "{error:#}");
}

/// Formats with what the model writes before and after an answer.
static FORMATS: LazyLock<Vec<(&str, &str, &str, ChatTemplate)>> = LazyLock::new(|| {
    [
        ("chatml", "", "<|im_end|>"),
        ("llama-2", " ", " </s>"),
        ("llama-3", "", "<|eot_id|>"),
        ("mistral", " ", "</s>"),
        ("zephyr", "", "</s>"),
        ("phi", "", "<|end|>"),
    ]
    .map(|(name, before, after)| (name, before, after, template(name).1))
    .into()
});

proptest! {
    #[test]
    fn trained_ranges_are_the_contents_and_their_end_tokens(
        turns in prop::collection::vec(("[ -~é日\\n]{1,12}", "[ -~é日\\n]{1,12}"), 1..4),
    ) {
        // Contents that are white space alone or begin with it are trimmed by some formats, and are tested above.
        let turns: Vec<(String, String)> =
            turns.iter().map(|(user, answer)| (format!("u{}u", user), format!("a{}a", answer))).collect();
        let messages: Vec<Message> =
            turns.iter().flat_map(|(user, answer)| [Message::user(user), Message::assistant(answer)]).collect();
        for (name, before, after, template) in FORMATS.iter() {
            let expected: Vec<String> = turns.iter().map(|(_, answer)| format!("{before}{answer}{after}")).collect();
            prop_assert_eq!(trained(template, &messages), expected, "{}", name);
        }
    }
}
