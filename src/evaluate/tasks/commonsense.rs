//! HellaSwag, WinoGrande and PIQA: what happens next, who is meant, how things are done.
//!
//! **Source**: Zellers et al. 2019, arXiv 1905.07830; Sakaguchi et al. 2019, arXiv 1907.10641; Bisk et al. 2019, arXiv
//! 1911.11641; prompts of lm-evaluation-harness's tasks of the same names.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    definition::{Definition, Scoring},
    filters::constant,
};
use crate::evaluate::{
    data,
    task::{Document, Split, Target, Task},
};

/// The tasks of this file.
pub fn tasks() -> Vec<Box<dyn Task>> {
    vec![hellaswag(), winogrande(), piqa()]
}

/// A thousand of the 10,042 rows also do; scores are then an estimate.
const HELLASWAG: [&str; 2] = ["hellaswag/hellaswag_val.jsonl", "hellaswag/hellaswag_val_1000.jsonl"];

fn hellaswag() -> Box<dyn Task> {
    let bracketed = constant(r"\[.*?\]");
    let clean = move |text: &str| {
        let text = text.trim().replace(" [title]", ". ");
        bracketed.replace_all(&text, "").replace("  ", " ")
    };
    let document = move |row: Value| -> Result<Document> {
        let (label, first, second) =
            (data::string(&row, "activity_label")?, data::string(&row, "ctx_a")?, data::string(&row, "ctx_b")?);
        let choices: Vec<String> = data::strings(&row, "endings")?.iter().map(|ending| clean(ending)).collect();
        let gold = index(&row, "label", choices.len())?;
        Ok(Document {
            text: clean(&format!("{label}: {first} {}", capitalized(&second))),
            target: Target::Choice(gold),
            shot_answer: choices[gold].clone(),
            choices,
            row,
        })
    };
    Definition::multiple_choice("hellaswag", 1.0, move |data_dir, _| {
        let name = data::nearest(data_dir, &HELLASWAG).unwrap_or(HELLASWAG[1]);
        let documents = data::documents(data::read_rows(data_dir, name)?, name, &document)?;
        Ok(Split { documents, fewshot_pool: Vec::new() })
    })
    .documented("{{query}}", "{{label}}", &HELLASWAG)
    .boxed()
}

/// The first letter large and all others small, as Python's `capitalize`.
pub fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_uppercase().collect::<String>() + &characters.as_str().to_lowercase(),
        None => String::new(),
    }
}

/// An index under a key, as a number or as text.
pub fn index(row: &Value, key: &str, choices: usize) -> Result<usize> {
    match data::string(row, key)?.parse::<usize>() {
        Ok(index) if index < choices => Ok(index),
        _ => bail!("expected under `{key}` the index of one of the {choices} choices"),
    }
}

const WINOGRANDE: &[&str] = &["winogrande/winogrande_val.jsonl"];

/// Both names are put into the sentence, and what follows is scored after each.
fn winogrande() -> Box<dyn Task> {
    let document = |row: Value| -> Result<Document> {
        let sentence = data::string(&row, "sentence")?;
        let (before, after) = sentence.split_once('_').context("expected a `_` in `sentence`")?;
        let options = [data::string(&row, "option1")?, data::string(&row, "option2")?];
        let gold = match data::string(&row, "answer")?.as_str() {
            "1" => 0,
            "2" => 1,
            other => bail!("expected \"1\" or \"2\" under `answer`, found `{other}`"),
        };
        let choices: Vec<String> = options.iter().map(|option| format!("{before}{option}")).collect();
        let target = after.trim().to_owned();
        Ok(Document {
            text: choices[gold].clone(),
            target: Target::Text(target.clone()),
            shot_answer: target,
            choices,
            row,
        })
    };
    let mut task = Definition::multiple_choice("winogrande", 1.0, move |data_dir, _| {
        let documents = data::documents(data::read_rows(data_dir, WINOGRANDE[0])?, WINOGRANDE[0], document)?;
        Ok(Split { documents, fewshot_pool: Vec::new() })
    })
    .scored_by(&["acc"], Scoring { choices: Some(likelier_sentence), ..Scoring::default() })
    .documented("{{sentence up to _ + option}}", "{{sentence after _}}", WINOGRANDE);
    task.multiple_inputs = true;
    task.boxed()
}

/// The right context is the text of the document.
fn likelier_sentence(document: &Document, sums: &[f64]) -> crate::evaluate::task::Scores {
    let gold = document.choices.iter().position(|choice| *choice == document.text).unwrap_or_default();
    let found = Document { target: Target::Choice(gold), ..document.clone() };
    crate::evaluate::metrics::accuracies(&["acc"], &found, sums)
}

const PIQA: &[&str] = &["piqa/valid.jsonl", "piqa/valid-labels.lst"];

fn piqa() -> Box<dyn Task> {
    Definition::multiple_choice("piqa", 1.0, |data_dir, _| {
        let labels = data::read_text(data_dir, PIQA[1])?;
        let mut labels = labels.lines();
        let rows = data::read_rows(data_dir, PIQA[0])?;
        let mut documents = Vec::with_capacity(rows.len());
        for (line, mut row) in rows {
            let place = || format!("`{}` line {line}", PIQA[0]);
            let label = labels.next().with_context(|| format!("`{}` has no label for line {line}", PIQA[1]))?;
            row["label"] = label.trim().parse().with_context(place)?;
            let choices = vec![data::string(&row, "sol1")?, data::string(&row, "sol2")?];
            let gold = index(&row, "label", 2).with_context(place)?;
            documents.push(Document {
                text: format!("Question: {}\nAnswer:", data::string(&row, "goal").with_context(place)?),
                target: Target::Choice(gold),
                shot_answer: choices[gold].clone(),
                choices,
                row,
            });
        }
        Ok(Split { documents, fewshot_pool: Vec::new() })
    })
    .documented("Question: {{goal}}\nAnswer:", "{{label}}", PIQA)
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capitals_are_pythons() {
        assert_eq!(capitalized("a FEW Women"), "A few women");
        assert_eq!(capitalized(""), "");
    }

    #[test]
    fn the_likelier_sentence_is_told_by_its_context() {
        let document = Document {
            row: Value::Null,
            text: "so Ann".into(),
            target: Target::Text("won.".into()),
            shot_answer: "won.".into(),
            choices: vec!["so Bob".into(), "so Ann".into()],
        };
        assert_eq!(likelier_sentence(&document, &[-2.0, -1.0])[0].1.number(), Some(1.0));
        assert_eq!(likelier_sentence(&document, &[-1.0, -2.0])[0].1.number(), Some(0.0));
    }
}
