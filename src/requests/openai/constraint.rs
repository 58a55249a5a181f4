//! What the output must match: OpenAI's `response_format`, and vLLM's `structured_outputs` and `guided_*`.

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    language_model::Constraint,
    requests::fields::{FieldError, Fields},
};

/// The one constraint of a body, if any.
pub fn take(fields: &mut Fields) -> Result<Option<Constraint>> {
    let mut given: Vec<(&str, Constraint)> = Vec::new();
    if let Some(constraint) = take_response_format(fields)? {
        given.push(("response_format", constraint));
    }
    if let Some(mut outputs) = fields.take_object("structured_outputs")? {
        let constraints = [
            take_schema(&mut outputs, "json")?,
            outputs.take_string("regex")?.map(Constraint::Regex),
            take_choice(&mut outputs, "choice")?,
            outputs.take_bool("json_object")?.filter(|&wanted| wanted).map(|_| any_object()),
        ];
        outputs.finish()?;
        given.extend(constraints.into_iter().flatten().map(|constraint| ("structured_outputs", constraint)));
    }
    given.extend(take_schema(fields, "guided_json")?.map(|constraint| ("guided_json", constraint)));
    given.extend(fields.take_string("guided_regex")?.map(|regex| ("guided_regex", Constraint::Regex(regex))));
    given.extend(take_choice(fields, "guided_choice")?.map(|constraint| ("guided_choice", constraint)));
    if let [(first, _), (second, _), ..] = given.as_slice() {
        let message = format!("field `{second}`: more than one constraint is given, the first by `{first}`");
        return Err(FieldError::new(second, message).into());
    }
    Ok(given.pop().map(|(_, constraint)| constraint))
}

fn take_response_format(fields: &mut Fields) -> Result<Option<Constraint>> {
    let Some(mut format) = fields.take_object("response_format")? else { return Ok(None) };
    let wrong = |complaint: &str| FieldError::new("response_format", format!("field `response_format`: {complaint}"));
    let constraint = match format.take_string("type")?.as_deref() {
        Some("text") => None,
        Some("json_object") => Some(any_object()),
        Some("json_schema") => {
            let mut outer = format.take_object("json_schema")?.ok_or_else(|| wrong("`json_schema` is missing"))?;
            let schema = take_schema(&mut outer, "schema")?.ok_or_else(|| wrong("`json_schema.schema` is missing"))?;
            outer.take_string("name")?;
            outer.take_string("description")?;
            // Always held to, asked for or not.
            outer.take_bool("strict")?;
            outer.finish()?;
            Some(schema)
        }
        _ => return Err(wrong("expected `type` to be text, json_object or json_schema").into()),
    };
    format.finish()?;
    Ok(constraint)
}

/// A schema, which vLLM's clients may also send as a text.
fn take_schema(fields: &mut Fields, name: &str) -> Result<Option<Constraint>> {
    let schema = fields.take(name, "a JSON schema (an object)", |value| match value {
        Value::String(text) => serde_json::from_str(text).ok().filter(Value::is_object),
        value => value.is_object().then(|| value.clone()),
    })?;
    Ok(schema.map(Constraint::JsonSchema))
}

fn take_choice(fields: &mut Fields, name: &str) -> Result<Option<Constraint>> {
    let choice = fields.take(name, "a list of at least one string", |value| {
        super::strings(value).filter(|choice| !choice.is_empty())
    })?;
    Ok(choice.map(Constraint::Choice))
}

fn any_object() -> Constraint {
    Constraint::JsonSchema(json!({"type": "object"}))
}
