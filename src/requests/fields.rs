//! Reads the fields of a request line one by one, so that every complaint names the field.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use thiserror::Error;

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message}")]
pub struct FieldError {
    /// Its name.
    pub field: String,
    /// The whole complaint; it names the field, too.
    pub message: String,
}

impl FieldError {
    /// A complaint about `field`, which `message` must name.
    pub fn new(field: &str, message: impl Into<String>) -> Self {
        Self { field: field.to_owned(), message: message.into() }
    }
}

/// The fields of one line that were not read yet.
pub struct Fields {
    rest: Map<String, Value>,
}

impl Fields {
    /// The fields of a JSON object.
    pub fn parse(line: &[u8]) -> Result<Self> {
        Self::of(serde_json::from_slice(line).context("not a JSON object")?)
    }

    /// The fields of a value that must be an object.
    pub fn of(value: Value) -> Result<Self> {
        match value {
            Value::Object(rest) => Ok(Self { rest }),
            other => bail!("expected a JSON object, found {}", shorten(&other)),
        }
    }

    /// Takes a field out; `convert` returns `None` for a value that is not as `expected`. A `null` counts as absent.
    pub fn take<T>(
        &mut self,
        name: &str,
        expected: &str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.rest.shift_remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match convert(&value) {
                Some(converted) => Ok(Some(converted)),
                None => {
                    let message = format!("field `{name}`: expected {expected}, found {}", shorten(&value));
                    Err(FieldError::new(name, message).into())
                }
            },
        }
    }

    /// The object in a field.
    pub fn take_object(&mut self, name: &str) -> Result<Option<Fields>> {
        self.take(name, "an object", |value| Some(Fields { rest: value.as_object()?.clone() }))
    }

    /// A yes or no.
    pub fn take_bool(&mut self, name: &str) -> Result<Option<bool>> {
        self.take(name, "true or false", Value::as_bool)
    }

    /// A text.
    pub fn take_string(&mut self, name: &str) -> Result<Option<String>> {
        self.take(name, "a string", |value| value.as_str().map(str::to_owned))
    }

    /// A whole number of at least `least`.
    pub fn take_count(&mut self, name: &str, least: u64) -> Result<Option<usize>> {
        self.take(name, &format!("a whole number of at least {least}"), |value| {
            value.as_u64().filter(|&count| count >= least).and_then(|count| usize::try_from(count).ok())
        })
    }

    /// A number that `is_legal` accepts.
    pub fn take_number(&mut self, name: &str, expected: &str, is_legal: fn(f32) -> bool) -> Result<Option<f32>> {
        self.take(name, expected, |value| {
            value.as_f64().map(|number| number as f32).filter(|number| number.is_finite() && is_legal(*number))
        })
    }

    /// A list of token ids.
    pub fn take_token_ids(&mut self, name: &str) -> Result<Option<Vec<u32>>> {
        self.take(name, "a list of token ids", |value| {
            value.as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
        })
    }

    /// A list of strings.
    pub fn take_strings(&mut self, name: &str) -> Result<Option<Vec<String>>> {
        self.take(name, "a list of strings", strings)
    }

    /// The request's id (in the field `name`), echoed as given.
    pub fn take_id(&mut self, name: &str) -> Result<Value> {
        let id = self.take(name, "a string or a number", |value| {
            (value.is_string() || value.is_number()).then(|| value.clone())
        })?;
        id.with_context(|| format!("field `{name}` is missing"))
    }

    /// The id if there is a legal one, for the row of a line that has other faults.
    pub fn peek_id(&self, name: &str) -> Value {
        self.rest.get(name).filter(|id| id.is_string() || id.is_number()).cloned().unwrap_or(Value::Null)
    }

    /// Checks that nothing is left over.
    pub fn finish(self) -> Result<()> {
        match self.rest.keys().next() {
            Some(name) => Err(FieldError::new(name, format!("unknown field `{name}`")).into()),
            None => Ok(()),
        }
    }
}

/// A list of strings, if it is one.
pub fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// A value as a message shows it.
fn shorten(value: &Value) -> String {
    const MOST_CHARS: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MOST_CHARS) {
        Some((place, _)) => format!("`{}…`", &text[..place]),
        None => format!("`{text}`"),
    }
}
