//! TruthfulQA: questions that people answer wrongly, scored by what the model finds likely.
//!
//! **Source**: Lin et al. 2021, arXiv 2109.07958; lm-evaluation-harness's `truthfulqa_mc1` and `truthfulqa_mc2`, read
//! from revision 0 of the choices, the one that the harness's data set holds.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::definition::{Definition, Scoring};
use crate::evaluate::{
    data,
    task::{Document, Measure, Scores, Split, Target, Task},
};

const FILES: &[&str] = &["truthfulqa/mc_task_v0.json", "fewshot/truthfulqa_primer.json"];

/// The tasks of this file.
pub fn tasks() -> Vec<Box<dyn Task>> {
    let mass = Scoring { choices: Some(truthful_mass), ..Scoring::default() };
    vec![
        task("truthfulqa_mc1", 2.0, "mc1_targets", Scoring::default()),
        task("truthfulqa_mc2", 3.0, "mc2_targets", mass),
    ]
}

fn task(name: &str, version: f64, targets: &'static str, scoring: Scoring) -> Box<dyn Task> {
    Definition::multiple_choice(name, version, move |data_dir, _| {
        let primer = data::read_json(data_dir, FILES[1])?;
        let primer = data::string(&primer, "primer").with_context(|| format!("`{}`", FILES[1]))?;
        let rows: Vec<Value> = serde_json::from_value(data::read_json(data_dir, FILES[0])?)
            .with_context(|| format!("`{}`: expected a list", FILES[0]))?;
        let rows = rows.into_iter().enumerate().map(|(index, row)| (index + 1, row)).collect();
        let documents = data::documents(rows, FILES[0], |row| document(row, &primer, targets))?;
        Ok(Split { documents, fewshot_pool: Vec::new() })
    })
    .scored_by(&["acc"], scoring)
    .documented("{{primer}}\n\nQ: {{question}}\nA:", "0", FILES)
    .zero_shot()
    .boxed()
}

/// The choices stand in the order of the file; of `mc1` the first is the true one.
fn document(row: Value, primer: &str, targets: &str) -> Result<Document> {
    let choices = row[targets].as_object().with_context(|| format!("expected an object under `{targets}`"))?;
    let choices: Vec<String> = choices.keys().cloned().collect();
    Ok(Document {
        text: format!("{primer}\n\nQ: {}\nA:", data::string(&row, "question")?),
        target: Target::Choice(0),
        shot_answer: choices.first().cloned().unwrap_or_default(),
        choices,
        row,
    })
}

/// The share of the choices' probability that true ones have.
fn truthful_mass(document: &Document, sums: &[f64]) -> Scores {
    let labels = document.row["mc2_targets"].as_object().into_iter().flat_map(|targets| targets.values());
    // As the harness does it, without a shift; where all probabilities vanish there is no mass to be shared.
    let all: f64 = sums.iter().map(|sum| sum.exp()).sum();
    let is_true = |label: &Value| label == 1;
    let truthful: f64 = sums.iter().zip(labels).filter(|(_, label)| is_true(label)).map(|(sum, _)| sum.exp()).sum();
    vec![("acc", Measure::Number(if all > 0.0 { truthful / all } else { 0.0 }))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mass_of_the_true_choices_is_their_share_of_the_probability() {
        let row = serde_json::json!({"question": "?", "mc2_targets": {"yes": 1, "aye": 1, "no": 0}});
        let document = document(row, "p", "mc2_targets").expect("the row is whole");
        let quarter = 0.25_f64.ln();
        let score = truthful_mass(&document, &[quarter, quarter, 0.5_f64.ln()])[0].1.number().expect("a number");
        assert!((score - 0.5).abs() < 1e-12, "{score}");
        assert_eq!(truthful_mass(&document, &[-1e6, -1e6, -1e6])[0].1.number(), Some(0.0));
    }
}
