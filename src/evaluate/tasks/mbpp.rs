//! MBPP: small Python problems with three tests each.
//!
//! **Source**: Austin et al. 2021, arXiv 2108.07732; lm-evaluation-harness's `mbpp` and `mbpp_instruct` on the full set:
//! problems 11 to 510 are asked, 2 to 4 are the examples.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{
    code::{extract_code, pass_at_1},
    definition::{Definition, Scoring},
    filters::{Filter, Step},
};
use crate::evaluate::{
    data,
    task::{Document, Sampler, Scores, Split, Target, Task},
};

const FILES: &[&str] = &["mbpp/mbpp.jsonl"];

/// The tasks of this file.
pub fn tasks() -> Vec<Box<dyn Task>> {
    let mut instruct = definition(
        "mbpp_instruct",
        1.0,
        json!({"max_gen_toks": 256, "until": [], "do_sample": false}),
        instruct_document,
    )
    .filtered(vec![Filter::new("extract_code", vec![Step::Custom(|response, _| extract_code(response))])]);
    instruct.gen_prefix = Some(Box::new(|_| "\n```python\n".to_owned()));
    let plain = definition("mbpp", 1.0, json!({"until": ["[DONE]"], "do_sample": false}), plain_document);
    vec![plain.boxed(), instruct.boxed()]
}

/// A form of the benchmark.
pub fn definition(name: &str, version: f64, kwargs: Value, document: fn(Value) -> Result<Document>) -> Definition {
    let mut task = Definition::generative(name, version, kwargs, move |data_dir, with_fewshot| {
        load(data_dir, with_fewshot, document)
    })
    .scored_by(&["pass_at_1"], Scoring { programs: Some(score), ..Scoring::default() })
    .documented("You are an expert Python programmer, and here is your task: …", "{{tests}}", FILES)
    .shots(3, Sampler::FirstN);
    task.target_delimiter = "".into();
    task
}

fn load(data_dir: &Path, with_fewshot: bool, document: fn(Value) -> Result<Document>) -> Result<Split> {
    let rows = data::read_rows(data_dir, FILES[0])?;
    let number = |row: &Value| row["task_id"].as_u64().unwrap_or_default();
    let numbered = |wanted: std::ops::RangeInclusive<u64>| {
        rows.iter().filter(move |(_, row)| wanted.contains(&number(row))).cloned().collect::<Vec<_>>()
    };
    let documents = data::documents(numbered(11..=510), FILES[0], document)?;
    let fewshot_pool = if with_fewshot { data::documents(numbered(2..=4), FILES[0], document)? } else { Vec::new() };
    Ok(Split { documents, fewshot_pool })
}

/// A row's text, code and three tests.
fn parts(row: &Value) -> Result<(String, String, [String; 3])> {
    match <[String; 3]>::try_from(data::strings(row, "test_list")?) {
        Ok(tests) => Ok((data::string(row, "text")?, data::string(row, "code")?, tests)),
        Err(tests) => bail!("expected three tests under `test_list`, found {}", tests.len()),
    }
}

/// The form of base models: code between marks.
pub fn plain_document(row: Value) -> Result<Document> {
    let (text, code, tests) = parts(&row)?;
    let tests = tests.join("\n");
    Ok(Document {
        text: format!(
            "You are an expert Python programmer, and here is your task: {text} Your code should pass these \
             tests:\n\n{tests}\n[BEGIN]\n"
        ),
        target: Target::Text(tests),
        shot_answer: format!("{code}\n[DONE]"),
        choices: Vec::new(),
        row,
    })
}

fn instruct_document(row: Value) -> Result<Document> {
    let (text, code, tests) = parts(&row)?;
    let tests = tests.join("\n");
    Ok(Document {
        text: format!(
            "You are an expert Python programmer, and here is your task:\n{text}\nYour code should pass these \
             tests:\n{tests}"
        ),
        target: Target::Text(tests),
        shot_answer: format!("{code}\n```"),
        choices: Vec::new(),
        row,
    })
}

fn score(passed: &[bool]) -> Scores {
    pass_at_1(passed).into_iter().map(|(_, measure)| ("pass_at_1", measure)).collect()
}
