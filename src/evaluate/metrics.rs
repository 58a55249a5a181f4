//! From answers to numbers: the metrics of one document.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    plan::PlannedTask,
    responses::Response,
    sandbox::Outcome,
    task::{Document, Measure, OutputType, Scores},
};

/// The scores of one document under one filter.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The filter's name.
    pub filter: &'static str,
    /// What the filter made of the answers, in the harness's form (numbers as strings).
    pub filtered: Value,
    /// Metrics by name.
    pub metrics: Scores,
    /// What became of the answers, where they are programs.
    pub outcomes: Vec<Outcome>,
}

/// Scores one document under every filter of its task. A document with a failed request is wrong.
///
/// `outcomes` tells what became of the answers of each filter, where they are programs.
///
/// **Errors**: answers that could not be judged.
pub fn score(
    planned: &PlannedTask,
    document: &Document,
    responses: &[Response],
    outcomes: &[Vec<Outcome>],
) -> Result<Vec<Scored>> {
    let spec = planned.spec();
    let as_given = || responses.iter().map(response_value).collect::<Value>();
    let failed = |filter: &'static str| {
        let metrics = zeros(planned, document, responses);
        Scored { filter, filtered: as_given(), metrics, outcomes: Vec::new() }
    };
    match spec.output_type {
        OutputType::MultipleChoice => {
            let Some(sums) = sums(responses) else { return Ok(vec![failed(spec.filters[0])]) };
            let metrics = planned.task.score_choices(document, &sums);
            Ok(vec![Scored { filter: spec.filters[0], filtered: as_given(), metrics, outcomes: Vec::new() }])
        }
        OutputType::GenerateUntil(_) => {
            let Some(texts) = texts(responses) else {
                return Ok(spec.filters.iter().map(|filter| failed(filter)).collect());
            };
            let score = |(index, filter): (usize, &&'static str)| -> Result<Scored> {
                let filter: &'static str = filter;
                let answers = planned.task.answers(filter, &texts, document);
                let Some(score_programs) = planned.task.program_scores() else {
                    let metrics = planned.task.score_answers(&answers, document)?;
                    return Ok(Scored { filter, filtered: json!(answers), metrics, outcomes: Vec::new() });
                };
                let outcomes = outcomes.get(index).context("the answers are programs that were not run")?.clone();
                let passed: Vec<bool> = outcomes.iter().map(Outcome::passed).collect();
                Ok(Scored { filter, filtered: json!(answers), metrics: score_programs(&passed), outcomes })
            };
            spec.filters.iter().enumerate().map(score).collect()
        }
    }
}

fn sums(responses: &[Response]) -> Option<Vec<f64>> {
    let sum = |response: &Response| match response {
        Response::Scored { logprob, .. } => Some(*logprob),
        _ => None,
    };
    responses.iter().map(sum).collect()
}

/// The answers as texts; `None` where a request failed.
pub fn texts(responses: &[Response]) -> Option<Vec<String>> {
    let text = |response: &Response| match response {
        Response::Generated { text } => Some(text.clone()),
        _ => None,
    };
    responses.iter().map(text).collect()
}

/// What a document is worth that was not answered: nothing.
fn zeros(planned: &PlannedTask, document: &Document, responses: &[Response]) -> Scores {
    let like = match planned.spec().output_type {
        OutputType::MultipleChoice => planned.task.score_choices(document, &vec![0.0; responses.len()]),
        OutputType::GenerateUntil(_) => Vec::new(),
    };
    let nothing = |measure: &Measure| match measure {
        Measure::Number(_) => Measure::Number(0.0),
        // The task's own aggregation passes over what does not apply.
        Measure::Numbers(values) => Measure::Numbers(vec![f64::NAN; values.len()]),
    };
    match like.is_empty() {
        true => planned.spec().metrics.iter().map(|metric| (*metric, Measure::Number(0.0))).collect(),
        false => like.iter().map(|(metric, measure)| (*metric, nothing(measure))).collect(),
    }
}

/// Those of the wanted metrics that compare sums of log-probabilities. Ties go to the first choice.
///
/// `acc`: the choice of the highest sum is right. `acc_norm`, `acc_bytes`: that of the highest sum per code point, per
/// byte of the choice.
pub fn accuracies(wanted: &[&'static str], document: &Document, sums: &[f64]) -> Scores {
    let per = |length: fn(&str) -> usize| -> Vec<f64> {
        sums.iter().zip(&document.choices).map(|(sum, choice)| sum / length(choice).max(1) as f64).collect()
    };
    let is_right = |values: &[f64]| Measure::of(argmax(values).is_some_and(|choice| document.target.accepts(choice)));
    let score = |metric: &&'static str| match *metric {
        "acc" => Some(("acc", is_right(sums))),
        "acc_norm" => Some(("acc_norm", is_right(&per(|choice| choice.chars().count())))),
        "acc_bytes" => Some(("acc_bytes", is_right(&per(str::len)))),
        _ => None,
    };
    wanted.iter().filter_map(score).collect()
}

/// The index of the greatest value; the first of equals.
pub fn argmax(values: &[f64]) -> Option<usize> {
    (0..values.len()).reduce(|best, index| if values[index] > values[best] { index } else { best })
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
    use super::*;
    use crate::evaluate::task::Target;

    fn asked(choices: [&str; 2], gold: usize) -> Document {
        Document {
            row: Value::Null,
            text: String::new(),
            target: Target::Choice(gold),
            shot_answer: String::new(),
            choices: choices.map(str::to_owned).to_vec(),
        }
    }

    fn numbers(scores: &Scores) -> Vec<f64> {
        scores.iter().filter_map(|(_, measure)| measure.number()).collect()
    }

    #[test]
    fn acc_norm_divides_by_code_points_acc_bytes_by_bytes_and_ties_go_to_the_first() {
        let wanted = ["acc", "acc_norm", "acc_bytes"];
        // 8 bytes but 4 characters: by bytes the first choice wins.
        let document = asked(["éééé", "abcdef"], 1);
        assert_eq!(numbers(&accuracies(&wanted, &document, &[-8.0, -9.0])), [0.0, 1.0, 0.0]);
        let document = asked(["ab", "cd"], 0);
        assert_eq!(numbers(&accuracies(&wanted, &document, &[-1.0, -1.0])), [1.0, 1.0, 1.0]);
    }

    #[test]
    fn any_of_several_right_choices_counts() {
        let mut document = asked(["ab", "cd"], 0);
        document.target = Target::Choices(vec![1]);
        assert_eq!(numbers(&accuracies(&["acc"], &document, &[-1.0, -0.5])), [1.0]);
        assert_eq!(numbers(&accuracies(&["acc"], &document, &[-0.1, -0.5])), [0.0]);
    }
}
