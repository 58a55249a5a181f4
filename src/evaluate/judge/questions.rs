//! The questions that two models answer before a judge: GLAN-Test (held-out rows of a run) or a file of one's own.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::{error::usage, language_model::Message, records};

/// One question.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The row as the file holds it.
    pub row: Value,
    /// What is asked: every turn up to the last answer.
    pub turns: Vec<Message>,
    /// What it is about: column and value, such as `discipline` and `Physics`.
    pub groups: Vec<(&'static str, String)>,
}

impl Question {
    /// The question as the judge reads it, and a model without a chat template.
    pub fn text(&self) -> String {
        match &self.turns[..] {
            [only] => only.content.clone(),
            turns => {
                turns.iter().map(|turn| format!("{}: {}", turn.role, turn.content)).collect::<Vec<_>>().join("\n\n")
            }
        }
    }
}

/// Columns that results are broken down by, with the names that files give them (in any case).
const COLUMNS: [(&str, &[&str]); 4] = [
    ("field", &["field"]),
    ("discipline", &["discipline"]),
    ("skill", &["skill", "category"]),
    ("difficulty", &["difficulty", "level_of_difficulty"]),
];
/// The place of a column among those that results are broken down by.
pub fn rank(column: &str) -> usize {
    COLUMNS.iter().position(|(name, _)| *name == column).unwrap_or(COLUMNS.len())
}

/// Where a row without `messages` keeps its question.
const QUESTION_KEYS: [&str; 4] = ["question", "instruction", "prompt", "text"];

/// Fields of disciplines.
pub type Fields = BTreeMap<String, String>;

/// Reads JSON lines: `{"messages"}`, or a text under `question`, `instruction`, `prompt` or `text`.
///
/// **Errors**: usage, when the file is not there; a row without a question, by its number.
pub fn read(path: &Path, fields: &Fields) -> Result<Vec<Question>> {
    if !path.is_file() {
        return Err(usage(format!("there is no file of questions `{}`", path.display())));
    }
    let rows: Vec<Value> = records::read_jsonl(path)?;
    let read = |(index, row): (usize, Value)| {
        question(row, fields).with_context(|| format!("`{}` row {}", path.display(), index + 1))
    };
    rows.into_iter().enumerate().map(read).collect()
}

/// The key's value, whatever the case of its letters.
fn column<'a>(row: &'a Value, name: &str) -> Option<&'a Value> {
    let object = row.as_object()?;
    object.iter().find(|(key, value)| key.to_lowercase() == name && !value.is_null()).map(|(_, value)| value)
}

fn question(row: Value, fields: &Fields) -> Result<Question> {
    let turns = match column(&row, "messages") {
        Some(messages) => {
            let mut turns: Vec<Message> = serde_json::from_value(messages.clone()).context("`messages`")?;
            turns.pop_if(|turn| turn.role == "assistant");
            turns
        }
        None => {
            let text = QUESTION_KEYS.iter().find_map(|key| column(&row, key)?.as_str());
            text.map(Message::user).into_iter().collect()
        }
    };
    if turns.last().is_none_or(|turn| turn.role != "user" || turn.content.trim().is_empty()) {
        bail!("expected a question under `messages`, `question`, `instruction`, `prompt` or `text`");
    }
    let mut groups = Vec::new();
    for (name, keys) in COLUMNS {
        let value = keys.iter().find_map(|key| column(&row, key));
        let value = value.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        let of_taxonomy = || column(&row, "discipline")?.as_str().and_then(|name| fields.get(name)).cloned();
        if let Some(value) = value.or_else(|| if name == "field" { of_taxonomy() } else { None }) {
            groups.push((name, value));
        }
    }
    let difficulty = groups.iter().find(|(name, _)| *name == "difficulty");
    // The Evol-Instruct test speaks of easy and hard halves of its ten levels.
    if let Some(level) =
        difficulty.and_then(|(_, value)| value.parse::<f64>().ok()).filter(|it| (1.0..=10.0).contains(it))
    {
        groups.push(("difficulty", if level <= 5.0 { "easy (1 to 5)" } else { "hard (6 to 10)" }.to_owned()));
    }
    Ok(Question { row, turns, groups })
}

/// First so many of every discipline; 0 takes all.
pub fn first_of_each_discipline(questions: Vec<Question>, most: usize) -> Vec<Question> {
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    let mut is_wanted = |question: &Question| {
        let discipline = question.groups.iter().find(|(name, _)| *name == "discipline").map(|(_, value)| value.clone());
        let count = taken.entry(discipline.unwrap_or_default()).or_default();
        *count += 1;
        most == 0 || *count <= most
    };
    questions.into_iter().filter(|question| is_wanted(question)).collect()
}

/// The field of every discipline in a run's `taxonomy.json`; none where that cannot be read. A discipline of several
/// fields counts to the first.
pub fn fields(taxonomy: &Path) -> Fields {
    let tree: Value = records::read_json(taxonomy).unwrap_or_else(|_| json!({}));
    let list = |node: &Value, key: &str| node[key].as_array().cloned().unwrap_or_default();
    let mut fields = Fields::new();
    for field in list(&tree, "fields") {
        for subfield in list(&field, "subfields") {
            for discipline in list(&subfield, "disciplines") {
                if let (Some(name), Some(field)) = (discipline["name"].as_str(), field["name"].as_str()) {
                    fields.entry(name.to_owned()).or_insert_with(|| field.to_owned());
                }
            }
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_every_form_become_questions_with_their_groups() -> Result<()> {
        let fields = Fields::from([("Physics".to_owned(), "Natural sciences".to_owned())]);
        let row = json!({"id": "a", "discipline": "Physics", "messages": [
            {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]});
        let asked = question(row, &fields)?;
        assert_eq!(asked.text(), "Why?");
        assert_eq!(asked.groups, [("field", "Natural sciences".to_owned()), ("discipline", "Physics".to_owned())]);
        let asked = question(json!({"Instruction": "Sort.", "Skill": "Code", "Difficulty": 7}), &fields)?;
        let groups: Vec<_> = asked.groups.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(groups, [("skill", "Code"), ("difficulty", "7"), ("difficulty", "hard (6 to 10)")]);
        let turns = json!([{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}]);
        let asked = question(json!({"messages": turns}), &fields)?;
        assert_eq!((asked.turns.len(), asked.text().as_str()), (3, "user: A\n\nassistant: B\n\nuser: C"));
        for damaged in [json!({}), json!({"question": " "}), json!({"messages": [{"role": "system", "content": "x"}]})]
        {
            assert!(question(damaged, &fields).is_err());
        }
        Ok(())
    }

    #[test]
    fn so_many_of_each_discipline_are_taken() -> Result<()> {
        let all: Vec<Question> = ["A", "B", "A", "A", "B"]
            .iter()
            .map(|name| question(json!({"question": "Q", "discipline": name}), &Fields::new()))
            .collect::<Result<_>>()?;
        assert_eq!(first_of_each_discipline(all.clone(), 2).len(), 4);
        assert_eq!(first_of_each_discipline(all.clone(), 1).len(), 2);
        assert_eq!(first_of_each_discipline(all, 0).len(), 5);
        Ok(())
    }
}
