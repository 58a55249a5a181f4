//! Prompt assembly as lm-evaluation-harness does it: plain text, or messages for a chat template.

use super::task::{Document, Target, Task};
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

    /// What a configuration or a command line asks for; an empty instruction is none.
    pub fn of(chat: bool, fewshot_as_multiturn: bool, system_instruction: &str) -> Self {
        let system_instruction = Some(system_instruction.to_owned()).filter(|text| !text.is_empty());
        Self { chat, fewshot_as_multiturn: chat && fewshot_as_multiturn, system_instruction }
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
    /// A conversation that ends in a user turn, or in the beginning of the answer.
    Messages(Vec<Message>),
}

impl Context {
    /// The beginning of the answer, where the conversation ends in one.
    pub fn open_answer(&self) -> Option<&str> {
        match self {
            Context::Text(_) => None,
            Context::Messages(turns) => {
                turns.last().filter(|turn| turn.role == ASSISTANT).map(|turn| turn.content.as_str())
            }
        }
    }
}

const ASSISTANT: &str = "assistant";

/// A turn, and what follows it where turns are joined to plain text.
struct Turn {
    message: Message,
    delimiter: String,
}

/// What stands between and around the questions of a prompt.
struct Form<'a> {
    target_delimiter: &'a str,
    fewshot_delimiter: &'a str,
}

impl Form<'_> {
    /// A question with its answer, with the beginning of one, or alone.
    fn turns(&self, question: &str, gen_prefix: Option<&str>, answer: &str) -> Vec<Turn> {
        let gen_prefix = gen_prefix.unwrap_or_default();
        let delimiter = match (answer.is_empty(), gen_prefix.is_empty()) {
            (false, true) => self.target_delimiter,
            (_, false) if !question.is_empty() && !joined_by_space(question, gen_prefix) => self.target_delimiter,
            _ => "",
        };
        let mut turns = vec![Turn { message: Message::user(question), delimiter: delimiter.to_owned() }];
        if !answer.is_empty() {
            let answer = Message::assistant(delimited(gen_prefix, answer, " "));
            turns.push(Turn { message: answer, delimiter: self.fewshot_delimiter.to_owned() });
        } else if !gen_prefix.is_empty() {
            turns.push(Turn { message: Message::assistant(gen_prefix), delimiter: String::new() });
        }
        turns
    }
}

/// Whether white space stands where two texts meet.
fn joined_by_space(first: &str, second: &str) -> bool {
    first.ends_with(char::is_whitespace) || second.starts_with(char::is_whitespace)
}

/// Two texts with a delimiter between them, unless one is empty or white space stands there already.
fn delimited(first: &str, second: &str, delimiter: &str) -> String {
    if first.is_empty() || second.is_empty() || joined_by_space(first, second) {
        format!("{first}{second}")
    } else {
        format!("{first}{delimiter}{second}")
    }
}

/// The contexts of one document with its examples: one, or one per choice where the choices are contexts.
pub fn contexts(task: &dyn Task, shots: &[&Document], document: &Document, style: &PromptStyle) -> Vec<Context> {
    let form = Form { target_delimiter: task.target_delimiter(), fewshot_delimiter: task.fewshot_delimiter() };
    let instruction = style.system_instruction.as_deref().unwrap_or_default();
    let system = delimited(instruction, &task.description(document), form.fewshot_delimiter);
    let gen_prefix = task.gen_prefix(document);
    let questions = if task.multiple_inputs() { &document.choices[..] } else { std::slice::from_ref(&document.text) };
    questions
        .iter()
        .map(|question| {
            let mut turns = Vec::new();
            for shot in shots {
                turns.extend(form.turns(&shot.text, task.gen_prefix(shot).as_deref(), &shot.shot_answer));
            }
            // The choices' contexts stand as they are.
            let form =
                Form { target_delimiter: if task.multiple_inputs() { "" } else { form.target_delimiter }, ..form };
            turns.extend(form.turns(question, gen_prefix.as_deref(), ""));
            shaped(&system, turns, style)
        })
        .collect()
}

fn shaped(system: &str, mut turns: Vec<Turn>, style: &PromptStyle) -> Context {
    if !style.chat {
        return Context::Text(format!("{system}{}", joined(&turns)));
    }
    let mut messages = Vec::new();
    if !system.is_empty() {
        messages.push(Message::system(system));
    }
    if style.fewshot_as_multiturn {
        messages.extend(turns.into_iter().map(|turn| turn.message));
        return Context::Messages(messages);
    }
    let open = turns.pop_if(|turn| turn.message.role == ASSISTANT);
    if let Some(last) = turns.last_mut() {
        last.delimiter.clear();
    }
    messages.push(Message::user(joined(&turns)));
    messages.extend(open.map(|turn| turn.message));
    Context::Messages(messages)
}

fn joined(turns: &[Turn]) -> String {
    turns.iter().map(|turn| format!("{}{}", turn.message.content, turn.delimiter)).collect()
}

/// The text that is scored for a choice. Under a chat template no delimiter opens an assistant's turn, unless one goes
/// on there.
pub fn continuation(task: &dyn Task, document: &Document, idx: usize, style: &PromptStyle) -> String {
    let choice = match &document.target {
        Target::Text(text) if task.multiple_inputs() => text,
        _ => &document.choices[idx],
    };
    let goes_on = task.gen_prefix(document).is_some_and(|prefix| !prefix.ends_with(char::is_whitespace));
    let delimiter = if style.chat && !goes_on { "" } else { task.target_delimiter() };
    format!("{delimiter}{choice}")
}

/// A rendered conversation, cut where its open answer ends.
///
/// `None`: the template does not write the answer's beginning. **Source**: transformers' `continue_final_message`.
pub fn left_open(rendered: &str, answer: &str) -> Option<String> {
    let start = rendered.rfind(answer.trim())?;
    let whole = answer.trim_start();
    let kept = if rendered[start..].starts_with(whole) { whole } else { answer.trim() };
    Some(rendered[..start + kept.len()].to_owned())
}

/// The context of a question that comes without a description, in the usual form.
#[cfg(test)]
pub fn assemble(shots: &[&Document], document: &Document, style: &PromptStyle) -> Context {
    let mut contexts = contexts(&super::primer::Primer, shots, document, style);
    contexts.remove(0)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::evaluate::primer::PrimerMc;

    fn document(question: &str, answer: &str) -> Document {
        Document {
            row: Value::Null,
            text: format!("Question: {question}\nAnswer:"),
            target: Target::Text(answer.into()),
            shot_answer: answer.into(),
            choices: vec![answer.into()],
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
        assert_eq!(continuation(&PrimerMc, &asked, 0, &PromptStyle::chat()), "4");
        assert_eq!(continuation(&PrimerMc, &asked, 0, &PromptStyle::plain()), " 4");
    }

    #[test]
    fn white_space_at_a_joint_takes_the_place_of_the_delimiter() {
        assert_eq!(delimited("You are kind.", "Be brief.\n\n", "\n\n"), "You are kind.\n\nBe brief.\n\n");
        assert_eq!(delimited("You are kind. ", "Be brief.", "\n\n"), "You are kind. Be brief.");
        assert_eq!(delimited("", "x", " "), "x");
        let form = Form { target_delimiter: " ", fewshot_delimiter: "\n\n" };
        assert_eq!(joined(&form.turns("Q?", Some("The answer is"), "B")), "Q? The answer is B\n\n");
        assert_eq!(joined(&form.turns("Q?", Some("\n```\n"), "x")), "Q?\n```\nx\n\n");
        assert_eq!(joined(&form.turns("Q?", None, "")), "Q?");
    }

    #[test]
    fn an_open_answer_is_cut_after_its_text_and_its_white_space_if_the_template_keeps_it() {
        assert_eq!(left_open("U\nA: so\n<end>", "so\n").as_deref(), Some("U\nA: so\n"));
        assert_eq!(left_open("U\nA: so<end>", "so\n").as_deref(), Some("U\nA: so"));
        assert_eq!(left_open("U\nA: <end>", "so"), None);
    }
}
