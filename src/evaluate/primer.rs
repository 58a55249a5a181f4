//! The built-in benchmarks: small questions that the quick configuration's student can learn within minutes.
//!
//! `primer` asks for an answer in words, `primer_mc` for the likeliest of four choices. Both come with the program, so
//! that a first run needs no download. The last rows of each file are examples and are never evaluated.
//!
//! A question stands alone, as a user would put it: "Question: … Answer:" around it (version 1) is a form that neither
//! model has met, and a tuned student answered a third of its questions wrong for that alone.

use std::{path::Path, sync::LazyLock};

use anyhow::Result;
use regex::Regex;
use serde_json::Value;

use super::{
    data,
    task::{Document, Generation, OutputType, Sampler, Split, Target, Task, TaskSpec},
};

/// Rows `{"id", "discipline", "skill", "question", "answer"}`.
pub const PRIMER_JSONL: &str = include_str!("../../benchmarks/primer/primer.jsonl");

/// Rows `{"id", "discipline", "skill", "question", "choices": [4], "answer": INDEX}`.
pub const PRIMER_MC_JSONL: &str = include_str!("../../benchmarks/primer/primer_mc.jsonl");

/// So many rows at the end of a file are the few-shot pool.
const FEWSHOT_ROWS: usize = 10;

/// Questions with a free answer.
pub struct Primer;

/// Questions with four choices.
pub struct PrimerMc;

static PRIMER: TaskSpec = TaskSpec {
    name: "primer",
    version: 2.0,
    num_fewshot: 0,
    sampler: Sampler::FirstN,
    output_type: OutputType::GenerateUntil(Generation { until: &["\n"], until_chat: &[], max_gen_toks: 96 }),
    doc_to_text: "{{question}}",
    doc_to_target: "{{answer}}",
    filters: &["extract"],
    metrics: &["exact_match"],
    files: &[],
};

static PRIMER_MC: TaskSpec = TaskSpec {
    name: "primer_mc",
    version: 2.0,
    num_fewshot: 0,
    sampler: Sampler::FirstN,
    output_type: OutputType::MultipleChoice,
    doc_to_text: "{{question}}",
    doc_to_target: "answer",
    filters: &["none"],
    metrics: &["acc", "acc_norm"],
    files: &[],
};

impl Task for Primer {
    fn spec(&self) -> &TaskSpec {
        &PRIMER
    }

    fn load(&self, _data_dir: &Path, _with_fewshot: bool) -> Result<Split> {
        split(PRIMER_JSONL, "benchmarks/primer/primer.jsonl", document)
    }

    fn filter(&self, _name: &str, response: &str, document: &Document) -> String {
        extract(response, is_number(&document.target.to_string()))
    }

    fn exact_match(&self, prediction: &str, reference: &str) -> bool {
        normalise(prediction) == normalise(reference)
    }
}

impl Task for PrimerMc {
    fn spec(&self) -> &TaskSpec {
        &PRIMER_MC
    }

    fn load(&self, _data_dir: &Path, _with_fewshot: bool) -> Result<Split> {
        split(PRIMER_MC_JSONL, "benchmarks/primer/primer_mc.jsonl", choice_document)
    }
}

fn split(text: &str, origin: &str, document: fn(Value) -> Result<Document>) -> Result<Split> {
    let mut documents = data::documents(data::parse_rows(text, origin)?, origin, document)?;
    let fewshot_pool = documents.split_off(documents.len().saturating_sub(FEWSHOT_ROWS));
    Ok(Split { documents, fewshot_pool })
}

fn document(row: Value) -> Result<Document> {
    let answer = data::string(&row, "answer")?;
    Ok(Document {
        text: data::string(&row, "question")?,
        shot_answer: answer_sentence(&answer),
        target: Target::Text(answer),
        choices: Vec::new(),
        row,
    })
}

fn choice_document(row: Value) -> Result<Document> {
    let (choices, gold) = data::choices(&row)?;
    let choices: Vec<_> = choices.iter().map(|choice| answer_sentence(choice)).collect();
    Ok(Document {
        text: data::string(&row, "question")?,
        shot_answer: choices[gold].clone(),
        target: Target::Choice(gold),
        choices,
        row,
    })
}

/// How every answer of this world ends.
fn answer_sentence(answer: &str) -> String {
    format!("The answer is {answer}.")
}

static WHOLE_NUMBER: LazyLock<Regex> = LazyLock::new(|| regex(r"\A-?[0-9][0-9,]*(\.[0-9]+)?\z"));
static ANY_NUMBER: LazyLock<Regex> = LazyLock::new(|| regex(r"-?[0-9][0-9,]*(\.[0-9]+)?"));
static SENTENCE_END: LazyLock<Regex> = LazyLock::new(|| regex(r"\n|[.!?](\s|\z)"));

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a constant and a test compiles it")
}

fn is_number(text: &str) -> bool {
    WHOLE_NUMBER.is_match(text.trim())
}

/// The answer in a response: the end of its last sentence "… answer is X.", else the last number if a number is asked
/// for, else the first line that is not blank.
fn extract(response: &str, numeric: bool) -> String {
    const MARK: &str = "answer is";
    // ASCII lower case keeps byte positions.
    if let Some(position) = response.to_ascii_lowercase().rfind(MARK) {
        let rest = response[position + MARK.len()..].trim_start_matches([':', ' ']);
        let end = SENTENCE_END.find(rest).map_or(rest.len(), |end| end.start());
        return rest[..end].trim().to_owned();
    }
    if let Some(number) = ANY_NUMBER.find_iter(response).last().filter(|_| numeric) {
        return number.as_str().to_owned();
    }
    response.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

/// Lower case, single spaces, no final period, and no thousands separators in a number.
fn normalise(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    let text = words.join(" ").to_lowercase();
    let text = text.strip_suffix('.').unwrap_or(&text).trim_end();
    if is_number(text) { text.replace(',', "") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::prompt::{self, Context, PromptStyle};

    fn is_right(answer: &str, response: &str) -> bool {
        let document = document(serde_json::json!({"question": "?", "answer": answer})).expect("both keys are there");
        Primer.exact_match(&Primer.filter("extract", response, &document), answer)
    }

    #[test]
    fn the_sentence_with_the_answer_counts() {
        assert!(is_right("7", " Add them. The answer is 7."));
        assert!(is_right("7", "the answer is: 7. Done"));
        assert!(is_right("3.5", "The answer is 3.5."));
        assert!(is_right("1000", "The answer is 1,000."));
        assert!(is_right("16, 28, 33", "The answer is 16, 28, 33."));
        assert!(is_right("mouse", "The answer is cat. No, the answer is  Mouse"));
        assert!(!is_right("7", "The answer is 8. I mean 7"));
        assert!(!is_right("7", "The answer is 77."));
    }

    #[test]
    fn without_the_sentence_a_number_is_the_last_one_and_a_word_the_first_line() {
        assert!(is_right("7", " 3 + 4 = 7"));
        assert!(is_right("-7", "so -7."));
        assert!(!is_right("7", "7 or 8"));
        assert!(is_right("mouse", "\n Mouse.\nA cat is bigger."));
        assert!(is_right("10:30", " 10:30"));
        assert!(!is_right("mouse", ""));
    }

    #[test]
    fn the_last_ten_rows_are_examples_and_are_never_evaluated() -> Result<()> {
        for (task, rows) in [(&Primer as &dyn Task, PRIMER_JSONL), (&PrimerMc, PRIMER_MC_JSONL)] {
            let split = task.load(Path::new(""), true)?;
            assert_eq!(split.fewshot_pool.len(), FEWSHOT_ROWS);
            assert_eq!(split.documents.len() + FEWSHOT_ROWS, rows.lines().count());
            assert!(split.fewshot_pool.iter().all(|shot| !split.documents.contains(shot)));
        }
        Ok(())
    }

    #[test]
    fn every_reference_answer_counts_as_right_in_the_taught_sentence() -> Result<()> {
        let split = Primer.load(Path::new(""), true)?;
        for document in split.documents.iter().chain(&split.fewshot_pool) {
            let found = Primer.filter("extract", &document.shot_answer, document);
            assert!(Primer.exact_match(&found, &document.target.to_string()), "{:?}: `{found}`", document.row);
        }
        Ok(())
    }

    #[test]
    fn an_example_ends_in_the_taught_sentence() {
        let shot = document(serde_json::json!({"question": "1+1?", "answer": "2"})).expect("both keys are there");
        let context = prompt::assemble(&[&shot], &shot, &PromptStyle::plain());
        let expected = "1+1? The answer is 2.\n\n1+1?";
        assert_eq!(context, Context::Text(expected.into()));
    }
}
