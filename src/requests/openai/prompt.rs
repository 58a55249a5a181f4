//! `messages` and `prompt` of a body.

use anyhow::Result;
use serde_json::Value;

use super::{MAX_PROMPTS, unsupported};
use crate::{
    language_model::{Message, Prompt},
    requests::fields::{FieldError, Fields},
};

/// The conversation.
pub fn take_messages(fields: &mut Fields) -> Result<Vec<Message>> {
    let list = fields.take("messages", "a list of at least one message", |value| {
        value.as_array().filter(|list| !list.is_empty()).cloned()
    })?;
    let list = list.ok_or_else(|| FieldError::new("messages", "field `messages` is missing"))?;
    list.into_iter().enumerate().map(|(place, message)| read_message(place, message)).collect()
}

/// One turn: a role with a text, or with parts that are texts.
fn read_message(place: usize, message: Value) -> Result<Message> {
    let at = |what: &str| format!("messages[{place}]{what}");
    let wrong = |what: &str, complaint: &str| {
        let field = at(what);
        let message = format!("field `{field}`: {complaint}");
        FieldError { field, message }
    };
    let mut fields = Fields::of(message).map_err(|error| wrong("", &format!("{error:#}")))?;
    let role = fields.take_string("role")?.ok_or_else(|| wrong(".role", "it is missing"))?;
    let role = match role.as_str() {
        "system" | "user" | "assistant" => role,
        // OpenAI's newer name for the same thing.
        "developer" => "system".to_owned(),
        other => {
            return Err(
                wrong(".role", &format!("expected system, developer, user or assistant, found `{other}`")).into()
            );
        }
    };
    let content = fields.take("content", "a text or a list of parts", |value| Some(value.clone()))?;
    let content = match content {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts: Option<Vec<&str>> = parts.iter().map(part_text).collect();
            // As vLLM does for templates that take texts.
            texts.ok_or_else(|| wrong(".content", "only parts of type `text` are supported"))?.join("\n")
        }
        Some(_) => return Err(wrong(".content", "expected a text or a list of parts").into()),
        None => return Err(wrong(".content", "it is missing").into()),
    };
    // An assistant's turn of an earlier reply comes back with these, all empty.
    for name in ["refusal", "tool_calls", "function_call", "audio", "annotations", "reasoning_content", "reasoning"] {
        let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
        if fields.take(name, "anything", |value| Some(is_empty(value)))? == Some(false) {
            return Err(unsupported(&at(&format!(".{name}"))).into());
        }
    }
    fields.finish().map_err(|error| match error.downcast::<FieldError>() {
        Ok(error) => wrong(&format!(".{}", error.field), "it is not known").into(),
        Err(error) => error,
    })?;
    Ok(Message { role, content })
}

fn part_text(part: &Value) -> Option<&str> {
    let part = part.as_object()?;
    (part.get("type")? == "text" && part.len() == 2).then(|| part.get("text")?.as_str()).flatten()
}

/// One text, several texts, one list of token ids, or several.
pub fn take_prompts(fields: &mut Fields) -> Result<Vec<Prompt>> {
    const EXPECTED: &str =
        "a text, a list of texts, a list of token ids, or a list of such lists; at most 2048, not empty";
    let prompts = fields.take("prompt", EXPECTED, |value| {
        let Value::Array(items) = value else { return Some(vec![Prompt::Text(value.as_str()?.to_owned())]) };
        let prompts = match items.first()? {
            Value::Number(_) => vec![Prompt::TokenIds(token_ids(value)?)],
            Value::String(_) => {
                items.iter().map(|item| Some(Prompt::Text(item.as_str()?.to_owned()))).collect::<Option<_>>()?
            }
            _ => items.iter().map(|item| token_ids(item).map(Prompt::TokenIds)).collect::<Option<Vec<_>>>()?,
        };
        (prompts.len() <= MAX_PROMPTS).then_some(prompts)
    })?;
    prompts.ok_or_else(|| FieldError::new("prompt", "field `prompt` is missing").into())
}

/// A list of at least one token id.
fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let ids: Vec<u32> = value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect::<Option<_>>()?;
    (!ids.is_empty()).then_some(ids)
}
