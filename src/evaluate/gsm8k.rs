//! GSM8K: grade-school word problems, answered by a worked solution that ends in `#### NUMBER`.
//!
//! **Source**: Cobbe et al. 2021, arXiv 2110.14168; conventions of lm-evaluation-harness's `gsm8k`, version 3.

use std::{path::Path, sync::LazyLock};

use anyhow::Result;
use regex::Regex;
use serde_json::Value;

use super::{
    data,
    task::{Document, Generation, OutputType, Sampler, Split, Target, Task, TaskSpec},
};

/// The benchmark.
pub struct Gsm8k;

static SPEC: TaskSpec = TaskSpec {
    name: "gsm8k",
    version: 3.0,
    num_fewshot: 5,
    sampler: Sampler::Default,
    output_type: OutputType::GenerateUntil(Generation {
        until: &["Question:", "</s>", "<|im_end|>"],
        until_chat: &["Question:", "</s>", "<|im_end|>"],
        max_gen_toks: 256,
    }),
    doc_to_text: "Question: {{question}}\nAnswer:",
    doc_to_target: "{{answer}}",
    filters: &["strict-match", "flexible-extract"],
    metrics: &["exact_match"],
    files: &["gsm8k/test.jsonl", "gsm8k/train.jsonl"],
};

/// What a filter gives that finds nothing.
const INVALID: &str = "[invalid]";

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is a constant and a test compiles it")
}

static STRICT: LazyLock<Regex> = LazyLock::new(|| regex(r"#### (\-?[0-9\.\,]+)"));
static FLEXIBLE: LazyLock<Regex> = LazyLock::new(|| regex(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"));
static UP_TO_MARK: LazyLock<Regex> = LazyLock::new(|| regex(r"(?s).*#### "));
/// Python's `\.$`, whose `$` also stands before a final newline.
static FINAL_PERIOD: LazyLock<Regex> = LazyLock::new(|| regex(r"\.(\n?)\z"));

impl Task for Gsm8k {
    fn spec(&self) -> &TaskSpec {
        &SPEC
    }

    fn load(&self, data_dir: &Path, with_fewshot: bool) -> Result<Split> {
        let read = |name: &str| data::documents(data::read_rows(data_dir, name)?, name, document);
        let [test, train] = [SPEC.files[0], SPEC.files[1]];
        Ok(Split { documents: read(test)?, fewshot_pool: if with_fewshot { read(train)? } else { Vec::new() } })
    }

    fn filter(&self, name: &str, response: &str, _document: &Document) -> String {
        let found = if name == "strict-match" {
            STRICT.captures_iter(response).next()
        } else {
            FLEXIBLE.captures_iter(response).last()
        };
        let group = found.and_then(|found| found.iter().skip(1).flatten().find(|group| !group.is_empty()));
        group.map_or(INVALID, |group| group.as_str().trim()).to_owned()
    }

    fn exact_match(&self, prediction: &str, reference: &str) -> bool {
        normalise(prediction) == normalise(reference)
    }
}

fn document(row: Value) -> Result<Document> {
    let answer = data::string(&row, "answer")?;
    Ok(Document {
        text: format!("Question: {}\nAnswer:", data::string(&row, "question")?),
        target: Target::Text(answer.clone()),
        shot_answer: answer,
        choices: Vec::new(),
        row,
    })
}

/// The harness's `regexes_to_ignore` in their order, then lower case.
fn normalise(text: &str) -> String {
    let text = text.replace([',', '$'], "");
    let text = UP_TO_MARK.replace_all(&text, "");
    FINAL_PERIOD.replace(&text, "$1").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::shared_fixtures;

    fn asked() -> Document {
        document(serde_json::json!({"question": "?", "answer": "so\n#### 1,018"})).expect("both keys are there")
    }

    fn is_right(filter: &str, response: &str) -> bool {
        let document = asked();
        Gsm8k.exact_match(&Gsm8k.filter(filter, response, &document), &document.target.to_string())
    }

    #[test]
    fn strict_takes_the_marked_number_and_flexible_the_last_one() {
        assert!(is_right("strict-match", " 9 + 9\n#### 1018"));
        assert!(is_right("flexible-extract", "It is $1,018."));
        assert!(!is_right("strict-match", "It is 1018"));
        assert!(!is_right("strict-match", "####1018"));
        assert!(!is_right("flexible-extract", "1018 of 2000"));
        assert_eq!(Gsm8k.filter("strict-match", "none", &asked()), INVALID);
    }

    /// Catches: a regular expression or a normalisation that differs from the harness's.
    #[test]
    fn scores_equal_those_of_the_harness() -> Result<()> {
        let Some(golden) = shared_fixtures::golden("scoring.json")? else { return Ok(()) };
        let mut compared = 0;
        for row in golden["generation"].as_array().expect("a list of rows") {
            if row["task"] != "gsm8k" {
                continue;
            }
            let field = |key: &str| row[key].as_str().expect("a string");
            let filtered = Gsm8k.filter(field("filter"), field("response"), &asked());
            assert_eq!(filtered, field("filtered"), "{row}");
            let score = f64::from(u8::from(Gsm8k.exact_match(&filtered, field("target"))));
            assert_eq!(Some(score), row["metrics"]["exact_match"].as_f64(), "{row}");
            compared += 1;
        }
        assert!(compared >= 10, "only {compared} rows were compared");
        Ok(())
    }
}
