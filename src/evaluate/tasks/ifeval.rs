//! IFEval: prompts with instructions that a program can check, such as "no commas" or "at least 300 words".
//!
//! **Source**: Zhou et al. 2023, arXiv 2311.07911; lm-evaluation-harness's `ifeval`, version 4.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::definition::{Definition, Scoring, mean};
use crate::evaluate::{
    data,
    documents::Documents,
    ifeval::{Checker, Verdicts},
    task::{Document, Measure, Scores, Split, Target, Task},
};

const FILES: &[&str] = &["ifeval/input_data.jsonl"];
const METRICS: &[&str] =
    &["prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc"];

/// The task of this file.
pub fn tasks() -> Vec<Box<dyn Task>> {
    let kwargs = json!({"until": [], "do_sample": false, "temperature": 0.0, "max_gen_toks": 1280});
    let task = Definition::generative("ifeval", 4.0, kwargs, |data_dir, _| {
        // Missing files are better found now than when there are answers to check.
        checker(data_dir)?;
        let documents = data::documents(data::read_rows(data_dir, FILES[0])?, FILES[0], document)?;
        Ok(Split { documents, fewshot_pool: Vec::new() })
    })
    .scored_by(METRICS, Scoring { answers: Some(score), aggregate: Some(aggregate), ..Scoring::default() })
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

/// The checks with what they read from a benchmarks' folder, which takes a while and 20 MB.
static CHECKER: Mutex<Option<(PathBuf, Arc<Checker>)>> = Mutex::new(None);

/// The checks with the files of a folder; read once.
///
/// **Errors**: a file is missing or damaged.
pub fn checker(data_dir: &Path) -> Result<Arc<Checker>> {
    let mut last = CHECKER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, checker)) = last.as_ref().filter(|(folder, _)| folder == data_dir) {
        return Ok(checker.clone());
    }
    let checker = Arc::new(Checker::load(data_dir)?);
    *last = Some((data_dir.to_owned(), checker.clone()));
    Ok(checker)
}

fn score(document: &Document, answers: &[String]) -> Result<Scores> {
    // Documents are read after their checks, from the same folder.
    let last = CHECKER.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (_, checker) = last.context("the documents were not read")?;
    let Verdicts { strict, loose } = checker.verdicts(&document.row, answers.first().map_or("", String::as_str))?;
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
fn aggregate(metric: &str, documents: &Documents, values: &[Measure]) -> (f64, Option<f64>) {
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
        assert_eq!(aggregate("inst_level_strict_acc", &documents.to_vec().into(), &values), (0.5, None));
    }
}
