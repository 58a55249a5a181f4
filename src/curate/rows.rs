//! One line of input: a generated pair, or a conversation from anywhere, turned into the row that training reads.

use serde_json::{Map, Value, json};

use crate::{language_model::Message, seed};

/// What the lines of the input hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFormat {
    /// Records of `generate/answers.jsonl`.
    Pairs,
    /// `{"id", "messages"}` with any other columns, which are kept.
    Messages,
}

/// A row on its way through the stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The row's own id.
    pub id: String,
    /// The id of the answer that it was made from.
    pub parent: Option<String>,
    /// The conversation; ends with an assistant turn.
    pub messages: Vec<Message>,
    /// What is written when the row is kept.
    pub output: Map<String, Value>,
    /// Columns of the input that are not written.
    rest: Map<String, Value>,
}

/// A line that is no row: how it is named, and what is wrong with it.
#[derive(Debug, Clone, PartialEq)]
pub struct BadLine {
    /// The id that the line gives, else one made of its bytes.
    pub id: String,
    /// What is wrong, with the line's number.
    pub evidence: String,
}

impl Row {
    /// Reads one line; `number` counts from 1.
    pub fn parse(line: &[u8], number: usize, format: RowFormat) -> Result<Self, BadLine> {
        let text_id = || seed::record_id(&["line", &String::from_utf8_lossy(line.trim_ascii())]);
        let bad = |id: Option<String>, what: &str| BadLine {
            id: id.unwrap_or_else(text_id),
            evidence: format!("line {number}: {what}"),
        };
        let mut object = match serde_json::from_slice::<Value>(line) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return Err(bad(None, "not a JSON object")),
            // The column says where; serde's own line is always 1 here.
            Err(error) => return Err(bad(None, &format!("not JSON (column {})", error.column()))),
        };
        let id = match object.get("id") {
            Some(Value::String(id)) if !id.is_empty() => Some(id.clone()),
            Some(Value::Number(id)) => Some(id.to_string()),
            _ => None,
        };
        match format {
            RowFormat::Pairs => {
                let Some(parent) = id else { return Err(bad(None, "no `id`")) };
                let id = seed::record_id(&["curate", &parent]);
                let mut text = |key: &str| match object.remove(key) {
                    Some(Value::String(text)) => Ok(text),
                    _ => Err(bad(Some(id.clone()), &format!("`{key}` is not a text"))),
                };
                let (question, answer) = (text("question")?, text("answer")?);
                // A pair that was asked on has all of its turns here.
                let messages = match object.remove("messages").map(serde_json::from_value) {
                    None => vec![Message::user(question), Message::assistant(answer)],
                    Some(Ok(messages)) => messages,
                    Some(Err(error)) => return Err(bad(Some(id), &format!("`messages`: {error}"))),
                };
                if let Err(what) = check_turns(&messages) {
                    return Err(bad(Some(id), what));
                }
                let mut column = |key: &str| object.remove(key).unwrap_or(Value::Null);
                let output = json!({
                    "id": id, "parent": parent, "discipline": column("discipline"), "subject": column("subject"),
                    "level": column("level"), "class_sessions": column("class_sessions"),
                    "key_concepts": column("key_concepts"), "messages": messages,
                });
                let Value::Object(output) = output else { unreachable!("`json!` with braces makes an object") };
                Ok(Self { id, parent: Some(parent), messages, output, rest: object })
            }
            RowFormat::Messages => {
                let Some(value) = object.get("messages") else { return Err(bad(id, "no `messages`")) };
                let messages = match serde_json::from_value::<Vec<Message>>(value.clone()) {
                    Ok(messages) => messages,
                    Err(error) => return Err(bad(id, &format!("`messages`: {error}"))),
                };
                if let Err(what) = check_turns(&messages) {
                    return Err(bad(id, what));
                }
                let (id, output) = with_id(id, object, &messages);
                Ok(Self { id, parent: None, messages, output, rest: Map::new() })
            }
        }
    }

    /// The row with where it comes from, when that is known.
    pub fn with_provenance(mut self, provenance: &Value) -> Self {
        if !provenance.is_null() {
            self.output.insert("provenance".into(), provenance.clone());
        }
        self
    }

    /// What the user asks: all user turns, one per line.
    pub fn question(&self) -> String {
        let turns: Vec<&str> = self.turns("user").collect();
        turns.join("\n")
    }

    /// A column of the input, written or not.
    pub fn column(&self, key: &str) -> Option<&Value> {
        self.output.get(key).or_else(|| self.rest.get(key))
    }

    /// The key concepts that the row is about.
    pub fn concepts(&self) -> Vec<&str> {
        let concepts = self.column("key_concepts").and_then(Value::as_array);
        concepts.into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// The contents of all turns of one role.
    pub fn turns(&self, role: &'static str) -> impl Iterator<Item = &str> {
        self.messages.iter().filter(move |message| message.role == role).map(|message| message.content.as_str())
    }
}

/// The row's columns with a text `id`: as given (in its place), else made of the conversation (in front).
fn with_id(id: Option<String>, mut object: Map<String, Value>, messages: &[Message]) -> (String, Map<String, Value>) {
    if let Some(id) = id {
        object.insert("id".into(), Value::String(id.clone()));
        return (id, object);
    }
    let parts: Vec<&str> =
        messages.iter().flat_map(|message| [message.role.as_str(), message.content.as_str()]).collect();
    let id = seed::record_id(&parts);
    object.remove("id");
    let output = std::iter::once(("id".to_owned(), Value::String(id.clone()))).chain(object).collect();
    (id, output)
}

/// Whether a conversation can be trained on.
fn check_turns(messages: &[Message]) -> Result<(), &'static str> {
    if messages.iter().any(|message| !matches!(message.role.as_str(), "system" | "user" | "assistant")) {
        return Err("`messages` holds a role other than system, user and assistant");
    }
    if !messages.iter().any(|message| message.role == "user") {
        return Err("`messages` holds no user turn");
    }
    if messages.last().is_none_or(|message| message.role != "assistant") {
        return Err("`messages` does not end with an assistant turn");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str, format: RowFormat) -> Result<Row, BadLine> {
        Row::parse(line.as_bytes(), 3, format)
    }

    #[test]
    fn a_pair_becomes_a_conversation_that_names_its_answer() {
        let line = r#"{"id":"a1","parent":"q1","discipline":"Physics","subject":"Optics","level":"Beginner",
            "class_sessions":[],"key_concepts":[],"question":"Why is the sky blue?","answer":"Scattering."}"#;
        let row = parse(&line.replace('\n', ""), RowFormat::Pairs).expect("a pair");
        let expected = format!(
            r#"{{"id":"{}","parent":"a1","discipline":"Physics","subject":"Optics","level":"Beginner","class_sessions":[],"key_concepts":[],"messages":[{{"role":"user","content":"Why is the sky blue?"}},{{"role":"assistant","content":"Scattering."}}]}}"#,
            row.id
        );
        assert_eq!(serde_json::to_string(&row.output).expect("JSON"), expected);
    }

    #[test]
    fn a_pair_that_was_asked_on_keeps_all_of_its_turns() {
        let turns = r#"[{"role":"user","content":"Q"},{"role":"assistant","content":"A"},{"role":"user","content":"And?"},{"role":"assistant","content":"B"}]"#;
        let line = |messages: &str| format!(r#"{{"id":"1","question":"Q","answer":"A","messages":{messages}}}"#);
        let row = parse(&line(turns), RowFormat::Pairs).unwrap();
        assert_eq!((row.messages.len(), row.question().as_str()), (4, "Q\nAnd?"));
        assert_eq!(row.output["messages"].as_array().map(Vec::len), Some(4));
        assert!(parse(&line(r#"[{"role":"user","content":"Q"}]"#), RowFormat::Pairs).is_err(), "no answer");
        assert!(parse(&line("7"), RowFormat::Pairs).is_err());
    }

    #[test]
    fn other_columns_and_turns_of_a_conversation_are_kept() {
        let turns = r#"[{"role":"system","content":"S"},{"role":"user","content":"A"},{"role":"assistant","content":"B"},{"role":"user","content":"C"},{"role":"assistant","content":"D"}]"#;
        let line = format!(r#"{{"source":"x","id":7,"messages":{turns},"score":0.1}}"#);
        let row = parse(&line, RowFormat::Messages).expect("a conversation");
        assert_eq!(serde_json::to_string(&row.output).expect("JSON"), line.replace(":7", ":\"7\""));
        assert_eq!((row.question(), row.messages.len()), ("A\nC".to_owned(), 5));
        let unnamed = parse(&format!(r#"{{"messages":{turns}}}"#), RowFormat::Messages).expect("a conversation");
        assert_eq!(unnamed.id.len(), 16);
        assert_eq!(unnamed.output["id"], unnamed.id.as_str());
    }

    #[test]
    fn damaged_lines_are_named_and_never_fatal() {
        for (line, what) in [
            ("{\"id\":\"x\",", "line 3: not JSON"),
            ("[1]", "line 3: not a JSON object"),
            (r#"{"id":"x"}"#, "no `messages`"),
            (r#"{"id":"x","messages":[{"role":"user"}]}"#, "missing field `content`"),
            (r#"{"id":"x","messages":[{"role":"user","content":"a"}]}"#, "does not end with"),
            (r#"{"id":"x","messages":[{"role":"assistant","content":"a"}]}"#, "no user turn"),
            (r#"{"id":"x","messages":[{"role":"tool","content":"a"}]}"#, "a role other than"),
        ] {
            let bad = parse(line, RowFormat::Messages).expect_err(line);
            assert!(bad.evidence.contains(what), "{}", bad.evidence);
        }
        assert_eq!(parse(r#"{"id":"x"}"#, RowFormat::Messages).expect_err("no messages").id, "x");
        assert!(
            parse(r#"{"id":"x","question":"Q"}"#, RowFormat::Pairs)
                .expect_err("no answer")
                .evidence
                .contains("`answer`")
        );
        assert!(Row::parse(b"{\"id\":\"\xff\"}", 3, RowFormat::Pairs).is_err());
    }
}
