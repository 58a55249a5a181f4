//! Prompt assembly as lm-evaluation-harness does it: plain text, or messages for a chat template.

use super::task::Document;
use crate::language_model::Message;

/// Stands between a question and its answer, and before a continuation.
pub const TARGET_DELIMITER: &str = " ";
/// Stands after every example.
pub const FEWSHOT_DELIMITER: &str = "\n\n";

/// The form of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptStyle {
    /// Messages for the model's chat template instead of plain text.
    pub chat: bool,
    /// One turn per example rather than all examples in one user turn. Only looked at with `chat`.
    pub fewshot_as_multiturn: bool,
    /// Put before everything; plain text has it glued to the first word, as in the harness.
    pub system_instruction: Option<String>,
}

impl PromptStyle {
    /// Plain text.
    pub fn plain() -> Self {
        Self { chat: false, fewshot_as_multiturn: false, system_instruction: None }
    }

    /// A conversation with one turn per example, the harness's default under a chat template.
    pub fn chat() -> Self {
        Self { chat: true, fewshot_as_multiturn: true, system_instruction: None }
    }
}

/// What stands before the model's answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Context {
    /// Plain text.
    Text(String),
    /// A conversation that ends in a user turn.
    Messages(Vec<Message>),
}

/// The context of one document with its examples.
pub fn assemble(shots: &[&Document], document: &Document, style: &PromptStyle) -> Context {
    let system = style.system_instruction.as_deref().unwrap_or_default();
    if !style.chat {
        return Context::Text(format!("{system}{}", join_plain(shots, document)));
    }
    let mut messages = Vec::new();
    if !system.is_empty() {
        messages.push(Message::system(system));
    }
    if style.fewshot_as_multiturn {
        for shot in shots {
            messages.push(Message::user(shot.text.clone()));
            messages.push(Message::assistant(shot.shot_answer.clone()));
        }
        messages.push(Message::user(document.text.clone()));
    } else {
        messages.push(Message::user(join_plain(shots, document)));
    }
    Context::Messages(messages)
}

fn join_plain(shots: &[&Document], document: &Document) -> String {
    let mut text = String::new();
    for shot in shots {
        text += &shot.text;
        text += TARGET_DELIMITER;
        text += &shot.shot_answer;
        text += FEWSHOT_DELIMITER;
    }
    text + &document.text
}

/// The text that is scored for a choice. Under a chat template no delimiter opens an assistant's turn.
pub fn continuation(choice: &str, style: &PromptStyle) -> String {
    if style.chat { choice.to_owned() } else { format!("{TARGET_DELIMITER}{choice}") }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use anyhow::{Context as _, Result};
    use serde_json::{Value, json};

    use super::*;
    use crate::evaluate::{
        plan::{Plan, PlanOptions},
        shared_fixtures,
        task::{OutputType, Target},
    };

    fn document(question: &str, answer: &str) -> Document {
        Document {
            row: Value::Null,
            text: format!("Question: {question}\nAnswer:"),
            target: Target::Text(answer.into()),
            shot_answer: answer.into(),
            choices: Vec::new(),
        }
    }

    #[test]
    fn plain_shots_are_joined_by_blank_lines() {
        let (shot, asked) = (document("1+1?", "2"), document("2+2?", "4"));
        assert_eq!(
            assemble(&[&shot], &asked, &PromptStyle::plain()),
            Context::Text("Question: 1+1?\nAnswer: 2\n\nQuestion: 2+2?\nAnswer:".into())
        );
    }

    #[test]
    fn a_chat_gives_every_shot_its_own_turn_and_no_delimiter() {
        let (shot, asked) = (document("1+1?", "2"), document("2+2?", "4"));
        let Context::Messages(messages) = assemble(&[&shot], &asked, &PromptStyle::chat()) else {
            panic!("a chat style gives messages")
        };
        let turns: Vec<_> = messages.iter().map(|turn| (turn.role.as_str(), turn.content.as_str())).collect();
        assert_eq!(
            turns,
            [("user", "Question: 1+1?\nAnswer:"), ("assistant", "2"), ("user", "Question: 2+2?\nAnswer:")]
        );
        assert_eq!(continuation("4", &PromptStyle::chat()), "4");
        assert_eq!(continuation("4", &PromptStyle::plain()), " 4");
    }

    /// The template that the golden prompts were rendered with.
    fn chatml(messages: &[Message]) -> String {
        let mut text = String::new();
        for message in messages {
            text += &format!("<|im_start|>{}\n{}<|im_end|>\n", message.role, message.content);
        }
        text + "<|im_start|>assistant\n"
    }

    /// Catches: a different few-shot draw, delimiter, template or stop string than the harness's.
    #[test]
    fn prompts_equal_those_of_the_harness_byte_for_byte() -> Result<()> {
        let Some(golden) = shared_fixtures::golden("prompts.json")? else { return Ok(()) };
        let data_dir = shared_fixtures::benchmarks().context("the golden file is there, so the folder is")?;
        let mut plans: HashMap<String, Plan> = HashMap::new();
        let mut compared = 0;
        for case in golden["prompts"].as_array().context("a list of prompts")? {
            let task = case["task"].as_str().context("a task name")?;
            if !["gsm8k", "arc_easy", "arc_challenge"].contains(&task) {
                continue;
            }
            let style = PromptStyle {
                chat: !case["chat_template"].is_null(),
                fewshot_as_multiturn: case["fewshot_as_multiturn"].as_bool().unwrap_or(false),
                system_instruction: case["system_instruction"].as_str().map(str::to_owned),
            };
            let num_fewshot = case["num_fewshot"].as_u64().context("a number")? as usize;
            let options = PlanOptions { data_dir: data_dir.clone(), limit: 8, num_fewshot: Some(num_fewshot), style };
            let key = format!("{task} {options:?}");
            let plan = match plans.entry(key) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(Plan::new(&[task.to_owned()], options)?)
                }
            };
            compared += compare_case(case, plan)?;
        }
        assert!(compared >= 24, "only {compared} requests were compared");
        Ok(())
    }

    fn compare_case(case: &Value, plan: &Plan) -> Result<usize> {
        let planned = &plan.tasks[0];
        assert_eq!(case["num_docs"], json!(planned.original));
        let requests = case["requests"].as_array().context("a list of requests")?;
        for request in requests {
            let doc_id = request["doc_id"].as_u64().context("a number")? as usize;
            let idx = request["idx"].as_u64().context("a number")? as usize;
            let text = match &planned.contexts[doc_id] {
                Context::Text(text) => text.clone(),
                Context::Messages(messages) => chatml(messages),
            };
            let place = format!("{} document {doc_id}", planned.spec().name);
            assert_eq!(request["args"][0], json!(text), "{place}");
            match planned.spec().output_type {
                OutputType::GenerateUntil(generation) => {
                    assert_eq!(request["args"][1]["until"], json!(generation.stop_strings(plan.style.chat)), "{place}");
                }
                OutputType::MultipleChoice => {
                    let choice = continuation(&planned.documents[doc_id].choices[idx], &plan.style);
                    assert_eq!(request["args"][1], json!(choice), "{place}");
                }
            }
        }
        for (target, document) in case["targets"].as_array().context("targets")?.iter().zip(&planned.documents) {
            let expected = target.as_str().map_or_else(|| target.to_string(), str::to_owned);
            assert_eq!(document.target.to_string(), expected);
        }
        Ok(requests.len())
    }
}
