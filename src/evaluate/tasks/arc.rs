//! ARC: grade-school science questions with three to five choices, easy and challenge sets.
//!
//! **Source**: Clark et al. 2018, arXiv 1803.05457; prompts of lm-evaluation-harness's `arc_easy`, `arc_challenge` and
//! `arc_challenge_chat`.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    definition::{Definition, ExactMatch},
    filters::{Filter, Step},
};
use crate::evaluate::{
    data,
    task::{Document, Split, Target, Task},
};

/// The files of a set: what is asked, and what examples are taken from.
type Files = &'static [&'static str; 2];

/// Questions that simple methods answer.
pub const EASY: Files = &["arc/arc_easy_test.jsonl", "arc/arc_easy_train.jsonl"];
/// Questions that simple methods fail.
pub const CHALLENGE: Files = &["arc/arc_challenge_test.jsonl", "arc/arc_challenge_train.jsonl"];

/// The tasks of this file.
pub fn tasks() -> Vec<Box<dyn Task>> {
    let choosing = |name: &str, files: Files| {
        Definition::multiple_choice(name, 1.0, move |data_dir, with_fewshot| {
            load(data_dir, with_fewshot, files, document)
        })
        .documented("Question: {{question}}\nAnswer:", "{{answer}}", files)
        .boxed()
    };
    vec![choosing("arc_easy", EASY), choosing("arc_challenge", CHALLENGE), chat()]
}

/// Reads a set.
pub fn load(
    data_dir: &Path,
    with_fewshot: bool,
    files: Files,
    document: fn(Value) -> Result<Document>,
) -> Result<Split> {
    let read = |name: &str| data::documents(data::read_rows(data_dir, name)?, name, document);
    Ok(Split { documents: read(files[0])?, fewshot_pool: if with_fewshot { read(files[1])? } else { Vec::new() } })
}

/// A document of the form `{"question", "choices", "answer": INDEX}`.
fn document(row: Value) -> Result<Document> {
    let (choices, gold) = data::choices(&row)?;
    Ok(Document {
        text: format!("Question: {}\nAnswer:", data::string(&row, "question")?),
        target: Target::Choice(gold),
        shot_answer: choices[gold].clone(),
        choices,
        row,
    })
}

/// The Llama 3 form. Its prompt holds backslash and n where line ends were meant, as the harness's does.
fn chat() -> Box<dyn Task> {
    let kwargs = json!({"max_gen_toks": 100, "until": ["\n\n", "."]});
    let mut task = Definition::generative("arc_challenge_chat", 1.0, kwargs, |data_dir, with_fewshot| {
        load(data_dir, with_fewshot, CHALLENGE, chat_document)
    })
    .filtered(vec![Filter::new("remove_whitespace", vec![Step::RemoveWhitespace, Step::TakeFirst])])
    .documented("Given the following question and four candidate answers …", "{{letter}}", CHALLENGE)
    .zero_shot();
    task.gen_prefix = Some(Box::new(|_| "The best answer is".to_owned()));
    task.exact_match = ExactMatch::loose();
    task.boxed()
}

fn chat_document(row: Value) -> Result<Document> {
    let (choices, gold) = data::choices(&row)?;
    let question = data::string(&row, "question")?;
    let mut text = format!(
        "Given the following question and four candidate answers (A, B, C and D), choose the best answer.\
         \\nQuestion: {}",
        question.trim()
    );
    // A fifth choice is not shown.
    for (letter, choice) in ["A", "B", "C", "D"].iter().zip(&choices) {
        text += &format!("\\n{letter}. {choice}");
    }
    text += "\\nYour response should end with \"The best answer is [the_answer_letter]\" where the \
             [the_answer_letter] is one of A, B, C or D.";
    let letter = letter(gold);
    Ok(Document { text, target: Target::Text(letter.clone()), shot_answer: letter, choices: Vec::new(), row })
}

/// The letter of a choice, A for the first.
pub fn letter(index: usize) -> String {
    char::from(b'A' + index as u8).to_string()
}
