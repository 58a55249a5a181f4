//! Keys and values of a GGUF header.

use anyhow::{Result, bail};

/// One value. Widths are a matter of the file: numbers are read into the widest kind and written in the kind that
/// llama.cpp's own converter uses (u32, i32, f32).
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// An unsigned number of any width.
    Unsigned(u64),
    /// A signed number of any width.
    Signed(i64),
    /// A number of f32 or f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// An array of texts.
    Texts(Vec<String>),
    /// An array of whole numbers or truth values.
    Integers(Vec<i64>),
    /// An array of f32 or f64.
    Floats(Vec<f64>),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Unsigned(_) | Value::Signed(_) => "a whole number",
            Value::Float(_) => "a number",
            Value::Bool(_) => "true or false",
            Value::Text(_) => "a text",
            Value::Texts(_) => "an array of texts",
            Value::Integers(_) => "an array of whole numbers",
            Value::Floats(_) => "an array of numbers",
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Value::Unsigned(number as u64)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Value::Unsigned(u64::from(number))
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Value::Float(number)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Value::Bool(flag)
    }
}

/// The metadata of a file, in the order of the file. Every typed access names the key when the value has another type.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(Vec<(String, Value)>);

impl Metadata {
    /// All pairs, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value)
    }

    /// Sets a value, in its old place if there is one.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        let value = value.into();
        match self.0.iter_mut().find(|(known, _)| known == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }

    /// Adds all pairs of another.
    pub fn extend(&mut self, other: Metadata) {
        for (key, value) in other.0 {
            self.set(&key, value);
        }
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", |value| if let Value::Text(text) = value { Some(text.as_str()) } else { None })
    }

    /// A number that is not negative.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a whole number that is not negative", |value| match value {
            Value::Unsigned(number) => Some(*number),
            Value::Signed(number) => u64::try_from(*number).ok(),
            _ => None,
        })
    }

    /// A number.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| match value {
            Value::Float(number) => Some(*number),
            Value::Unsigned(number) => Some(*number as f64),
            Value::Signed(number) => Some(*number as f64),
            _ => None,
        })
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| if let Value::Bool(flag) = value { Some(*flag) } else { None })
    }

    /// An array of texts.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "an array of texts", |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            // An empty array may have been written with any type.
            Value::Integers(none) if none.is_empty() => Some(&[]),
            _ => None,
        })
    }

    /// An array of whole numbers.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>> {
        self.typed(key, "an array of whole numbers", |value| {
            if let Value::Integers(numbers) = value { Some(numbers.as_slice()) } else { None }
        })
    }

    /// An array of numbers.
    pub fn floats(&self, key: &str) -> Result<Option<&[f64]>> {
        self.typed(key, "an array of numbers", |value| {
            if let Value::Floats(numbers) = value { Some(numbers.as_slice()) } else { None }
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => bail!("metadata key `{key}` is {}, expected {expected}", value.kind()),
        }
    }
}
