//! The five shapes in which training rows come, and what each means.
//!
//! A row's own keys say which it is: `messages` (OpenAI, Hugging Face), `conversations` (ShareGPT), `prompt` and
//! `completion` (TRL, as texts or as lists of messages), `instruction` and `output` (Alpaca), `text`. Where keys of
//! several are there, the first in this order counts: Alpaca's files carry a rendered `text` beside their fields.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use crate::language_model::Message;

/// One row, read but not yet rendered.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The row's own `id`, if it has one.
    pub id: Option<String>,
    /// What it holds.
    pub content: RowContent,
}

/// What a row holds.
#[derive(Debug, Clone, PartialEq)]
pub enum RowContent {
    /// A conversation.
    Conversation {
        /// Its turns.
        messages: Vec<Message>,
        /// Per turn: whether it is trained, if it is the assistant's (`weight` 0 and turns of a `prompt` are not).
        trained: Vec<bool>,
    },
    /// Text without a chat template, of which the part behind the prompt is trained.
    Completion {
        /// Never trained (where the loss is on answers alone); empty for plain text.
        prompt: String,
        /// Trained, with an end-of-sequence token.
        completion: String,
    },
}

/// The shape of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFormat {
    /// `messages`: a list of `{role, content}`.
    Messages,
    /// `conversations`: a list of `{from, value}`.
    ShareGpt,
    /// `prompt` and `completion`.
    PromptCompletion,
    /// `instruction`, `output`, and perhaps `input`, `system`.
    Alpaca,
    /// `text`.
    Text,
}

impl RowFormat {
    /// The format that a row's keys speak of.
    pub fn of(row: &Map<String, Value>) -> Option<Self> {
        // A key with null in it is what a table has in the rows of another format.
        let has = |key: &str| row.get(key).is_some_and(|value| !value.is_null());
        let formats = [
            (has("messages"), Self::Messages),
            (has("conversations"), Self::ShareGpt),
            (has("prompt") && has("completion"), Self::PromptCompletion),
            (has("instruction") && has("output"), Self::Alpaca),
            (has("text"), Self::Text),
        ];
        formats.into_iter().find_map(|(holds, format)| holds.then_some(format))
    }

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::ShareGpt => "ShareGPT",
            Self::PromptCompletion => "prompt-completion",
            Self::Alpaca => "Alpaca",
            Self::Text => "text",
        }
    }
}

impl Row {
    /// Reads a row of any format.
    ///
    /// **Errors**: name the field, what it holds and what was expected; the caller adds file and line.
    pub fn parse(mut row: Map<String, Value>) -> Result<Self> {
        let Some(format) = RowFormat::of(&row) else {
            let keys: Vec<&String> = row.keys().collect();
            bail!(
                "expected `messages` or `text` or `conversations`, or both `prompt` and `completion`, or both \
                 `instruction` and `output`; found the keys {keys:?}"
            );
        };
        no_tools(&row, &["tools", "functions"], "")?;
        let id = match row.shift_remove("id") {
            Some(Value::String(id)) => Some(id),
            Some(Value::Null) | None => None,
            Some(id) => Some(id.to_string()),
        };
        let content = match format {
            RowFormat::Messages => conversation(messages(&row["messages"], "messages")?)?,
            RowFormat::ShareGpt => conversation(share_gpt(&row)?)?,
            RowFormat::PromptCompletion => prompt_completion(&row)?,
            RowFormat::Alpaca => conversation(alpaca(&row)?)?,
            RowFormat::Text => RowContent::Completion { prompt: String::new(), completion: text(&row, "text")? },
        };
        Ok(Self { id, content })
    }
}

/// A turn and whether it may be trained.
type Turn = (Message, bool);

fn conversation(turns: Vec<Turn>) -> Result<RowContent> {
    let (messages, trained) = turns.into_iter().unzip();
    Ok(RowContent::Conversation { messages, trained })
}

/// A list of turns, `{role, content}` or `{from, value}` (both occur under either name); `field` is its name in messages.
fn messages(value: &Value, field: &str) -> Result<Vec<Turn>> {
    list(value, field)?
        .iter()
        .enumerate()
        .map(|(index, value)| {
            let field = format!("{field}[{index}]");
            let turn = object(value, &field)?;
            let is_share_gpt =
                if field.starts_with("conversations") { !turn.contains_key("role") } else { turn.contains_key("from") };
            no_tools(turn, &["tool_calls", "function_call"], &format!("{field}."))?;
            let (role, content) = if is_share_gpt {
                let role = speaker(&string(turn.get("from"), &format!("{field}.from"))?, &field)?.to_owned();
                (role, content(turn.get("value"), &format!("{field}.value"))?)
            } else {
                let role = string(turn.get("role"), &format!("{field}.role"))?;
                (role, content(turn.get("content"), &format!("{field}.content"))?)
            };
            // OpenAI's and Axolotl's ways to say that a turn is context only.
            let trained = turn.get("weight").and_then(Value::as_f64) != Some(0.0)
                && turn.get("train").and_then(Value::as_bool) != Some(false);
            Ok((Message { role, content }, trained))
        })
        .collect()
}

/// The role of a speaker that ShareGPT's files know.
fn speaker(from: &str, field: &str) -> Result<&'static str> {
    Ok(match from {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
        "system" => "system",
        _ => bail!("`{field}.from` is `{from}`, expected `human`, `gpt` or `system`"),
    })
}

/// Refuses calls of tools and their descriptions, which are not rendered: left out in silence, the model would learn to
/// answer from nothing.
fn no_tools(object: &Map<String, Value>, keys: &[&str], prefix: &str) -> Result<()> {
    for key in keys {
        let is_empty = match object.get(*key) {
            None | Some(Value::Null) => true,
            Some(Value::Array(list)) => list.is_empty(),
            // Tables hold the list as a text.
            Some(Value::String(text)) => matches!(text.trim(), "" | "[]" | "null"),
            Some(_) => false,
        };
        if !is_empty {
            bail!("`{prefix}{key}` holds tools, which this trainer does not render; leave the row out");
        }
    }
    Ok(())
}

/// The row's own `system` field, which goes in front.
fn system(row: &Map<String, Value>) -> Result<Vec<Turn>> {
    let is_there = row.get("system").is_some_and(|system| !system.is_null() && system.as_str() != Some(""));
    Ok(if is_there { vec![(Message::system(text(row, "system")?), false)] } else { Vec::new() })
}

fn share_gpt(row: &Map<String, Value>) -> Result<Vec<Turn>> {
    let mut turns = system(row)?;
    turns.extend(messages(&row["conversations"], "conversations")?);
    Ok(turns)
}

/// Instruction and input as one user turn, a blank line between them; LLaMA-Factory's `history` before it, whose answers
/// are trained as they are there.
fn alpaca(row: &Map<String, Value>) -> Result<Vec<Turn>> {
    let mut turns = system(row)?;
    if let Some(history) = row.get("history").filter(|history| !history.is_null()) {
        let expected =
            |field: &str, value: &Value| format!("`{field}` {}, expected a list of pairs of texts", is(Some(value)));
        for (index, pair) in history.as_array().with_context(|| expected("history", history))?.iter().enumerate() {
            let field = format!("history[{index}]");
            let Some([question, answer]) = pair.as_array().map(Vec::as_slice) else { bail!(expected(&field, pair)) };
            turns.push((Message::user(string(Some(question), &format!("{field}[0]"))?), false));
            turns.push((Message::assistant(string(Some(answer), &format!("{field}[1]"))?), true));
        }
    }
    let mut question = text(row, "instruction")?;
    if row.get("input").is_some_and(|input| !input.is_null() && input.as_str() != Some("")) {
        question.push_str("\n\n");
        question.push_str(&text(row, "input")?);
    }
    turns.push((Message::user(question), false));
    turns.push((Message::assistant(text(row, "output")?), true));
    Ok(turns)
}

fn prompt_completion(row: &Map<String, Value>) -> Result<RowContent> {
    match (&row["prompt"], &row["completion"]) {
        (prompt @ Value::Array(_), completion @ Value::Array(_)) => {
            let mut turns = messages(prompt, "prompt")?;
            for (_, trained) in &mut turns {
                *trained = false;
            }
            turns.extend(messages(completion, "completion")?);
            conversation(turns)
        }
        _ => Ok(RowContent::Completion { prompt: text(row, "prompt")?, completion: text(row, "completion")? }),
    }
}

fn text(row: &Map<String, Value>, field: &str) -> Result<String> {
    string(row.get(field), field)
}

fn string(value: Option<&Value>, field: &str) -> Result<String> {
    match value {
        Some(Value::String(text)) => Ok(text.clone()),
        other => bail!("`{field}` {}, expected a text", is(other)),
    }
}

/// A text, or a list of `{"type": "text", "text"}` parts.
fn content(value: Option<&Value>, field: &str) -> Result<String> {
    let Some(Value::Array(parts)) = value else { return string(value, field) };
    parts
        .iter()
        .enumerate()
        .map(|(index, part)| {
            let kind = part.get("type").and_then(Value::as_str);
            if kind.is_some_and(|kind| kind != "text") {
                bail!("`{field}[{index}].type` is `{}`, only `text` is read", kind.unwrap_or_default());
            }
            string(part.get("text"), &format!("{field}[{index}].text"))
        })
        .collect()
}

fn list<'a>(value: &'a Value, field: &str) -> Result<&'a Vec<Value>> {
    let turns = value.as_array().with_context(|| format!("`{field}` {}, expected a list of turns", is(Some(value))))?;
    if turns.is_empty() {
        bail!("`{field}` is an empty list, expected at least one turn");
    }
    Ok(turns)
}

fn object<'a>(value: &'a Value, field: &str) -> Result<&'a Map<String, Value>> {
    value.as_object().with_context(|| format!("`{field}` {}, expected an object", is(Some(value))))
}

fn is(value: Option<&Value>) -> &'static str {
    match value {
        None => "is missing",
        Some(Value::Null) => "is null",
        Some(Value::Bool(_)) => "is a boolean",
        Some(Value::Number(_)) => "is a number",
        Some(Value::String(_)) => "is a text",
        Some(Value::Array(_)) => "is a list",
        Some(Value::Object(_)) => "is an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(row: Value) -> Result<RowContent> {
        let Value::Object(row) = row else { bail!("the test gives objects") };
        Ok(Row::parse(row)?.content)
    }

    fn turns(row: Value) -> Result<Vec<(String, String, bool)>> {
        match parse(row)? {
            RowContent::Conversation { messages, trained } => {
                Ok(messages.into_iter().zip(trained).map(|(turn, on)| (turn.role, turn.content, on)).collect())
            }
            other => bail!("{other:?} is no conversation"),
        }
    }

    fn turn(role: &str, content: &str, trained: bool) -> (String, String, bool) {
        (role.into(), content.into(), trained)
    }

    #[test]
    fn every_format_becomes_the_conversation_that_it_means() -> Result<()> {
        let wanted = [turn("user", "q", true), turn("assistant", "a", true)];
        let messages = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
        assert_eq!(turns(json!({"messages": messages, "text": "x"}))?, wanted);
        let speakers = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]);
        assert_eq!(turns(json!({"conversations": speakers}))?, wanted);
        assert_eq!(
            turns(json!({"instruction": "do", "input": "x", "output": "a", "text": "Below is", "system": "s"}))?,
            [turn("system", "s", false), turn("user", "do\n\nx", false), turn("assistant", "a", true)]
        );
        assert_eq!(turns(json!({"instruction": "do", "input": "", "output": "a"}))?[0].1, "do");
        let (prompt, completion) = (
            json!([{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]),
            json!([{"role": "assistant", "content": [{"type": "text", "text": "3"}]}]),
        );
        let found = turns(json!({"prompt": prompt, "completion": completion}))?;
        assert_eq!(found[1..], [turn("assistant", "2", false), turn("assistant", "3", true)]);
        let found = parse(json!({"prompt": "p", "completion": "c", "text": null}))?;
        assert_eq!(found, RowContent::Completion { prompt: "p".into(), completion: "c".into() });
        let found = parse(json!({"text": "t", "messages": null}))?;
        assert_eq!(found, RowContent::Completion { prompt: String::new(), completion: "t".into() });
        let weighted = json!([{"role": "assistant", "content": "a", "weight": 0}]);
        assert_eq!(turns(json!({"messages": weighted}))?, [turn("assistant", "a", false)]);
        Ok(())
    }

    #[test]
    fn odd_forms_that_other_trainers_take_are_read_as_they_are_there() -> Result<()> {
        let wanted = [turn("system", "s", true), turn("user", "q", true), turn("assistant", "a", true)];
        // The keys of one format under the name of the other, as Axolotl maps them.
        let turns_of_roles = json!([{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"}]);
        assert_eq!(turns(json!({"conversations": turns_of_roles}))?, wanted);
        let speakers = json!([{"from": "system", "value": "s"}, {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a"}]);
        assert_eq!(turns(json!({"messages": speakers}))?, wanted);
        // A system field of the row's own, and columns that say that there are no tools.
        let found = turns(json!({"conversations": speakers.as_array().map(|turns| &turns[1..]), "system": "s",
            "tools": "[]", "id": 7}))?;
        assert_eq!(found, [turn("system", "s", false), turn("user", "q", true), turn("assistant", "a", true)]);
        let plain = json!([{"role": "user", "content": "q", "tool_calls": null, "name": null},
            {"role": "assistant", "content": "a", "tool_calls": []}]);
        assert_eq!(turns(json!({"messages": plain, "tools": null}))?, wanted[1..]);
        // Axolotl's mark of a turn that is context only; several turns of one speaker, and the assistant first.
        let marked = json!([{"from": "gpt", "value": "1", "train": false}, {"from": "human", "value": "2"},
            {"from": "human", "value": "3"}, {"from": "gpt", "value": "4", "train": true, "weight": 1.0}]);
        let found = turns(json!({"conversations": marked}))?;
        assert_eq!(found.iter().map(|turn| turn.2).collect::<Vec<_>>(), [false, true, true, true]);
        // LLaMA-Factory's history; an input that is null or missing.
        let found = turns(json!({"instruction": "3", "input": null, "output": "4", "history": [["1", "2"]]}))?;
        let wanted = [("user", "1", false), ("assistant", "2", true), ("user", "3", false), ("assistant", "4", true)];
        assert_eq!(found, wanted.map(|(role, content, trained)| turn(role, content, trained)));
        assert_eq!(turns(json!({"instruction": "3", "output": "4", "history": []}))?, wanted_last(&found));
        // An empty system field is none.
        assert_eq!(turns(json!({"instruction": "3", "output": "4", "system": ""}))?, wanted_last(&found));
        Ok(())
    }

    fn wanted_last(turns: &[(String, String, bool)]) -> Vec<(String, String, bool)> {
        turns[turns.len() - 2..].to_vec()
    }

    #[test]
    fn a_wrong_field_is_named_with_what_it_holds() {
        for (row, expected) in [
            (json!({"messages": "hello"}), "`messages` is a text, expected a list of turns"),
            (json!({"messages": []}), "`messages` is an empty list"),
            (json!({"messages": ["hello"]}), "`messages[0]` is a text, expected an object"),
            (json!({"messages": [{"role": "user"}]}), "`messages[0].content` is missing"),
            (json!({"messages": [{"role": 3, "content": "x"}]}), "`messages[0].role` is a number"),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
                "`messages[0].content[0].type` is `image`",
            ),
            (json!({"conversations": [{"from": "tool", "value": "x"}]}), "`conversations[0].from` is `tool`"),
            (json!({"conversations": [{"from": "gpt", "text": "x"}]}), "`conversations[0].value` is missing"),
            (json!({"conversations": [{"value": "x"}]}), "`conversations[0].from` is missing"),
            (
                json!({"messages": [{"role": "assistant", "content": null, "tool_calls": [{"id": 1}]}]}),
                "`messages[0].tool_calls` holds tools",
            ),
            (
                json!({"conversations": [{"from": "human", "value": "x"}], "tools": "[{\"name\": \"f\"}]"}),
                "`tools` holds tools",
            ),
            (
                json!({"instruction": "i", "output": "o", "history": [["a"]]}),
                "`history[0]` is a list, expected a list of pairs",
            ),
            (json!({"instruction": "i", "output": "o", "history": [["a", 2]]}), "`history[0][1]` is a number"),
            (json!({"prompt": "p", "completion": 1}), "`completion` is a number, expected a text"),
            (json!({"instruction": "i", "output": ["a"]}), "`output` is a list, expected a text"),
            (json!({"text": 5}), "`text` is a number"),
            (json!({"question": "q"}), "found the keys [\"question\"]"),
        ] {
            let error = parse(row.clone()).expect_err("the row is wrong");
            assert!(error.to_string().contains(expected), "{row}: {error}");
        }
    }
}
