//! Verdicts on instructions against those of the harness: every prompt with every response of the file.

use std::{collections::HashMap, path::Path};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Tally, list};
use crate::evaluate::{data, ifeval::Verdicts, tasks::ifeval::checker};

/// The prompts of the benchmark.
const PROMPTS: &str = "ifeval/input_data.jsonl";

/// Counts every verdict, strict and loose, of every instruction.
///
/// **Errors**: the benchmark's file is missing, or the golden file is of another form.
pub fn compare(file: &Value, benchmarks: &Path, tally: &mut Tally) -> Result<()> {
    let checks = checker(benchmarks)?;
    let rows = data::read_rows(benchmarks, PROMPTS)?;
    let rows: HashMap<u64, &Value> = rows.iter().filter_map(|(_, row)| Some((row["key"].as_u64()?, row))).collect();
    let responses = data::strings(file, "responses").context("`ifeval.json`")?;
    for prompt in list(file, "prompts")? {
        let key = prompt["key"].as_u64().context("`ifeval.json`: expected a number under `key`")?;
        let row = rows.get(&key).with_context(|| format!("`{PROMPTS}` has no row of key {key}"))?;
        let mut said = responses.clone();
        said.push(repeated(row, responses.get(1).map_or("", String::as_str)));
        said.push(prompt["own"].as_str().unwrap_or_default().to_owned());
        for (index, golden) in list(prompt, "results")?.iter().enumerate() {
            let place = format!("key {key} response {index}");
            let Some(response) = said.get(index) else {
                tally.count(Err(format!("{place}: the file has no such response")));
                continue;
            };
            let Verdicts { strict, loose } = checks.verdicts(row, response)?;
            count(&strict, &golden[0], &format!("{place} strict"), tally);
            count(&loose, &golden[1], &format!("{place} loose"), tally);
        }
    }
    Ok(())
}

/// The text that a prompt wants repeated, or the prompt, with an answer after it.
fn repeated(row: &Value, answer: &str) -> String {
    let wanted = row["kwargs"].as_array().into_iter().flatten().find_map(|kwargs| kwargs["prompt_to_repeat"].as_str());
    format!("{}\n\n{answer}", wanted.or(row["prompt"].as_str()).unwrap_or_default())
}

fn count(ours: &[bool], golden: &Value, place: &str, tally: &mut Tally) {
    let golden: Vec<char> = golden.as_str().unwrap_or_default().chars().collect();
    for index in 0..golden.len().max(ours.len()) {
        let ours = ours.get(index).map(|followed| if *followed { '1' } else { '0' });
        let found = match (ours, golden.get(index)) {
            (Some(_), Some('?')) => Ok(()),
            (Some(ours), Some(golden)) if ours == *golden => Ok(()),
            (ours, golden) => Err(format!("{place} instruction {index}: {ours:?} instead of {golden:?}")),
        };
        tally.count(found);
    }
}
