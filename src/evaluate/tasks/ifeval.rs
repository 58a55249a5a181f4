//! IFEval: prompts with instructions that a program can check, such as "no commas" or "at least 300 words".
//!
//! **Source**: Zhou et al. 2023, arXiv 2311.07911; lm-evaluation-harness's `ifeval`, version 4.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::definition::{Definition, Scoring, mean};
use crate::evaluate::{
    data,
    task::{Document, Measure, Scores, Split, Target, Task},
};

const FILES: &[&str] = &["ifeval/input_data.jsonl"];
const METRICS: &[&str] =
    &["prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc"];

/// Which instructions of a document a response follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdicts {
    /// As written.
    pub strict: Vec<bool>,
    /// By any of its relaxed variants.
    pub loose: Vec<bool>,
}

/// The task of this file.
pub fn tasks() -> Vec<Box<dyn Task>> {
    let kwargs = json!({"until": [], "do_sample": false, "temperature": 0.0, "max_gen_toks": 1280});
    let task = Definition::generative("ifeval", 4.0, kwargs, |data_dir, _| {
        let documents = data::documents(data::read_rows(data_dir, FILES[0])?, FILES[0], document)?;
        // Prompts can be made without them; `check_scoring` says so before anything is asked.
        *CHECKS.lock().unwrap_or_else(PoisonError::into_inner) = Checks::load(data_dir).ok().map(Arc::new);
        Ok(Split { documents, fewshot_pool: Vec::new() })
    })
    .scored_by(
        METRICS,
        Scoring { answers: Some(score), aggregate: Some(aggregate), check: Some(can_check), ..Scoring::default() },
    )
    .documented("prompt", "0", FILES)
    .zero_shot();
    vec![task.boxed()]
}

fn document(row: Value) -> Result<Document> {
    row["instruction_id_list"].as_array().context("expected a list under `instruction_id_list`")?;
    Ok(Document {
        text: data::string(&row, "prompt")?,
        target: Target::Choice(0),
        shot_answer: String::new(),
        choices: Vec::new(),
        row,
    })
}

/// The seam to the checks of instructions, with what they read from the benchmarks' folder.
pub struct Checks;

impl Checks {
    /// Reads what the checks need.
    ///
    /// **Errors**: this build has no checks, or their files are missing.
    pub fn load(_data_dir: &Path) -> Result<Self> {
        can_check()?;
        Ok(Self)
    }

    /// One verdict per instruction of a document's row, on a response.
    ///
    /// **Errors**: the row is damaged.
    pub fn verdicts(&self, _row: &Value, _response: &str) -> Result<Verdicts> {
        can_check()?;
        Ok(Verdicts { strict: Vec::new(), loose: Vec::new() })
    }
}

fn can_check() -> Result<()> {
    bail!("this build has no checks of instructions")
}

/// The checks of the folder that the documents were read from.
static CHECKS: Mutex<Option<Arc<Checks>>> = Mutex::new(None);

fn score(document: &Document, answers: &[String]) -> Result<Scores> {
    let checks = CHECKS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let checks = checks.context("the documents were not read")?;
    let Verdicts { strict, loose } = checks.verdicts(&document.row, answers.first().map_or("", String::as_str))?;
    let all = |verdicts: &[bool]| Measure::of(verdicts.iter().all(|followed| *followed));
    let each = |verdicts: &[bool]| Measure::Numbers(verdicts.iter().map(|it| f64::from(u8::from(*it))).collect());
    Ok(vec![
        (METRICS[0], all(&strict)),
        (METRICS[1], each(&strict)),
        (METRICS[2], all(&loose)),
        (METRICS[3], each(&loose)),
    ])
}

/// The instruction levels are means over all instructions, without a standard error.
fn aggregate(metric: &str, documents: &[Document], values: &[Measure]) -> (f64, Option<f64>) {
    if metric.starts_with("prompt_level") {
        return mean(values);
    }
    let (mut followed, mut instructions) = (0.0, 0.0);
    for (document, measure) in documents.iter().zip(values) {
        match measure {
            Measure::Numbers(verdicts) => {
                followed += verdicts.iter().filter(|it| **it == 1.0).sum::<f64>();
                instructions += verdicts.len() as f64;
            }
            // A request that failed follows none of its instructions.
            Measure::Number(_) => {
                instructions += document.row["instruction_id_list"].as_array().map_or(0.0, |list| list.len() as f64);
            }
        }
    }
    (if instructions > 0.0 { followed / instructions } else { 0.0 }, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instruction_level_counts_instructions_and_not_prompts() {
        let asked = |count: usize| {
            let row = json!({"prompt": "p", "instruction_id_list": vec!["a"; count]});
            document(row).expect("the row is whole")
        };
        let documents = [asked(3), asked(1), asked(2)];
        let values = [Measure::Numbers(vec![1.0, 1.0, 0.0]), Measure::Numbers(vec![1.0]), Measure::Number(0.0)];
        assert_eq!(aggregate("inst_level_strict_acc", &documents, &values), (0.5, None));
    }
}
