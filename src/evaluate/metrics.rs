//! From answers to numbers: the metrics of one document.

use serde_json::{Value, json};

use super::{
    plan::PlannedTask,
    responses::Response,
    task::{Document, OutputType, Target},
};

/// The scores of one document under one filter.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The filter's name.
    pub filter: &'static str,
    /// What the filter made of the answers, in the harness's form (numbers as strings).
    pub filtered: Value,
    /// Metrics by name; 0 or 1.
    pub metrics: Vec<(&'static str, f64)>,
}

/// Scores one document under every filter of its task.
pub fn score(planned: &PlannedTask, document: &Document, responses: &[Response]) -> Vec<Scored> {
    let spec = planned.spec();
    match spec.output_type {
        OutputType::MultipleChoice => vec![Scored {
            filter: spec.filters[0],
            filtered: responses.iter().map(response_value).collect(),
            metrics: multiple_choice(document, responses),
        }],
        OutputType::GenerateUntil(_) => {
            spec.filters.iter().map(|filter| generative(planned, document, responses, filter)).collect()
        }
    }
}

fn generative(planned: &PlannedTask, document: &Document, responses: &[Response], filter: &'static str) -> Scored {
    let metric = planned.spec().metrics[0];
    let Some(Response::Generated { text }) = responses.first() else {
        let filtered = responses.iter().map(response_value).collect();
        return Scored { filter, filtered, metrics: vec![(metric, 0.0)] };
    };
    let answer = planned.task.filter(filter, text, document);
    let right = planned.task.exact_match(&answer, &document.target.to_string());
    Scored { filter, filtered: json!([answer]), metrics: vec![(metric, zero_or_one(right))] }
}

/// `acc`: the choice of the highest sum of log-probabilities is right. `acc_norm`: that of the highest sum per
/// character (code point) of the choice. Ties go to the first. A document with a failed request is wrong.
fn multiple_choice(document: &Document, responses: &[Response]) -> Vec<(&'static str, f64)> {
    let sums: Option<Vec<f64>> = responses
        .iter()
        .map(|response| match response {
            Response::Scored { logprob, .. } => Some(*logprob),
            _ => None,
        })
        .collect();
    let Some(sums) = sums else { return vec![("acc", 0.0), ("acc_norm", 0.0)] };
    let per_character: Vec<f64> =
        sums.iter().zip(&document.choices).map(|(sum, choice)| sum / choice.chars().count().max(1) as f64).collect();
    let is_right = |values: &[f64]| zero_or_one(Some(document.target.clone()) == argmax(values).map(Target::Choice));
    vec![("acc", is_right(&sums)), ("acc_norm", is_right(&per_character))]
}

fn argmax(values: &[f64]) -> Option<usize> {
    (0..values.len()).reduce(|best, index| if values[index] > values[best] { index } else { best })
}

fn zero_or_one(right: bool) -> f64 {
    f64::from(u8::from(right))
}

/// An answer as sample files hold it: numbers and truth values as Python prints them.
pub fn response_value(response: &Response) -> Value {
    match response {
        Response::Generated { text } => json!(text),
        Response::Scored { logprob, is_greedy } => {
            json!([format!("{logprob:?}"), if *is_greedy { "True" } else { "False" }])
        }
        Response::Failed { error } => json!(["failed", error]),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;
    use crate::evaluate::{
        plan::{Plan, PlanOptions},
        prompt::PromptStyle,
        shared_fixtures,
    };

    fn asked(choices: [&str; 2], gold: usize) -> Document {
        Document {
            row: Value::Null,
            text: String::new(),
            target: Target::Choice(gold),
            shot_answer: String::new(),
            choices: choices.map(str::to_owned).to_vec(),
        }
    }

    fn sums(values: [f64; 2]) -> Vec<Response> {
        values.iter().map(|&logprob| Response::Scored { logprob, is_greedy: false }).collect()
    }

    #[test]
    fn acc_norm_divides_by_code_points_and_ties_go_to_the_first() {
        // 8 bytes but 4 characters: by bytes the second choice would win.
        let document = asked(["éééé", "abcdef"], 1);
        assert_eq!(multiple_choice(&document, &sums([-8.0, -9.0])), [("acc", 0.0), ("acc_norm", 1.0)]);
        let document = asked(["ab", "cd"], 0);
        assert_eq!(multiple_choice(&document, &sums([-1.0, -1.0])), [("acc", 1.0), ("acc_norm", 1.0)]);
    }

    #[test]
    fn a_failed_choice_makes_the_document_wrong() {
        let mut responses = sums([-1.0, -2.0]);
        responses[1] = Response::Failed { error: "too long".into() };
        assert_eq!(multiple_choice(&asked(["a", "b"], 0), &responses), [("acc", 0.0), ("acc_norm", 0.0)]);
    }

    /// Catches: another argmax, length or gold index than the harness's.
    #[test]
    fn multiple_choice_scores_equal_those_of_the_harness() -> Result<()> {
        let Some(golden) = shared_fixtures::golden("scoring.json")? else { return Ok(()) };
        let data_dir = shared_fixtures::benchmarks().expect("the golden file is there, so the folder is");
        let mut compared = 0;
        for row in golden["multiple_choice"].as_array().expect("a list of rows") {
            let task = row["task"].as_str().expect("a task name");
            if !task.starts_with("arc_") {
                continue;
            }
            let options =
                PlanOptions { data_dir: data_dir.clone(), limit: 0, num_fewshot: None, style: PromptStyle::plain() };
            let plan = Plan::new(&[task.to_owned()], options)?;
            let document = &plan.tasks[0].documents[row["doc_id"].as_u64().expect("an index") as usize];
            let sums: Vec<f64> = serde_json::from_value(row["loglikelihoods"].clone())?;
            let responses: Vec<_> =
                sums.iter().map(|&logprob| Response::Scored { logprob, is_greedy: false }).collect();
            for (metric, value) in multiple_choice(document, &responses) {
                assert_eq!(Some(value), row["metrics"][metric].as_f64(), "{row}");
            }
            compared += 1;
        }
        assert!(compared >= 6, "only {compared} rows were compared");
        Ok(())
    }
}
