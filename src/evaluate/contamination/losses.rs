//! Has a model seen a benchmark? Its loss on the training split next to that on the test split.
//!
//! A model that learnt the training split by heart finds it easier than the test split, so a large positive difference
//! speaks of contamination; a leaked test split hides itself, because it lowers the other side.
//!
//! **Source**: GLAN, section 3.4 and table 3 (after Skywork, Wei et al. 2023). Over which tokens the paper takes the
//! loss, and in which form, it does not say: here it is every token of question and answer, as one plain text.

use std::path::Path;

use anyhow::{Context as _, Result};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    evaluate::{
        data,
        plan::{Plan, PlannedTask},
        prompt::{Context, PromptStyle},
        responses::{self, Response},
        stage,
        task::{Document, Split, Target},
        tasks::definition::Definition,
    },
    language_model::LanguageModel,
    requests::encode_pair,
    seed,
};

/// Benchmarks with two splits: name, test file, training file.
const BENCHMARKS: [(&str, &str, &str); 5] = [
    ("arc_challenge", "arc/arc_challenge_test.jsonl", "arc/arc_challenge_train.jsonl"),
    ("arc_easy", "arc/arc_easy_test.jsonl", "arc/arc_easy_train.jsonl"),
    ("gsm8k", "gsm8k/test.jsonl", "gsm8k/train.jsonl"),
    ("math", "math/test.jsonl", "math/train.jsonl"),
    ("hellaswag", "hellaswag/hellaswag_val.jsonl", "hellaswag/hellaswag_train.jsonl"),
];

/// The texts of one benchmark.
#[derive(Debug, Clone, PartialEq)]
pub struct Texts {
    /// Its name.
    pub benchmark: &'static str,
    /// Items of the test split.
    pub test: Vec<String>,
    /// Items of the training split.
    pub train: Vec<String>,
}

/// One model's losses on one benchmark, in nats per token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitLosses {
    /// The benchmark.
    pub benchmark: String,
    /// Whose losses these are: `base` or `tuned`.
    pub model: String,
    /// Average loss per token of the test split.
    pub test_loss: f64,
    /// Average loss per token of the training split.
    pub train_loss: f64,
    /// `test_loss - train_loss`.
    pub delta: f64,
    /// `100 delta / test_loss`.
    pub delta_percent: f64,
    /// 95 % bootstrap interval of `delta`, by items.
    pub delta_ci95: Option<[f64; 2]>,
    /// Items of the test split.
    pub test_items: usize,
    /// Items of the training split.
    pub train_items: usize,
    /// Items that the model could not score, such as those longer than its context; they do not count.
    pub failed: usize,
}

/// The benchmarks under a data folder of which both splits are there, with at most so many items of each split, spread
/// evenly over its file.
///
/// **Errors**: a damaged row, by file and line.
pub fn texts(data_dir: &Path, items: usize) -> Result<Vec<Texts>> {
    let there = |name: &str| !data_dir.as_os_str().is_empty() && data::locate(data_dir, name).is_ok();
    let mut found = Vec::new();
    for (benchmark, test, train) in BENCHMARKS.into_iter().filter(|(_, test, train)| there(test) && there(train)) {
        let read = |name: &str| -> Result<Vec<String>> {
            let rows = spread(data::read_rows(data_dir, name)?, items);
            data::documents(rows, name, |row| text(&row))
        };
        found.push(Texts { benchmark, test: read(test)?, train: read(train)? });
    }
    Ok(found)
}

/// At most so many of a list, evenly spread: files are sorted by subject.
fn spread<T>(rows: Vec<T>, items: usize) -> Vec<T> {
    let count = rows.len();
    if items == 0 || count <= items {
        return rows;
    }
    let is_taken = |index: usize| (index + 1) * items / count > index * items / count;
    rows.into_iter().enumerate().filter(|(index, _)| is_taken(*index)).map(|(_, row)| row).collect()
}

/// Question and answer as one text.
fn text(row: &Value) -> Result<String> {
    let first = |keys: &[&str]| keys.iter().find_map(|key| row[*key].as_str()).map(str::to_owned);
    let joined = || Some(format!("{} {}", row["ctx_a"].as_str()?, row["ctx_b"].as_str()?));
    let question = first(&["question", "problem", "ctx"]).or_else(joined);
    let choices = ["choices", "endings"].iter().find_map(|key| row[*key].as_array());
    let answer = match choices {
        Some(choices) => {
            let label = ["answer", "label"].iter().find_map(|key| {
                let value = &row[*key];
                value.as_u64().or_else(|| value.as_str()?.parse().ok())
            });
            label.and_then(|index| choices.get(index as usize)?.as_str().map(str::to_owned))
        }
        None => first(&["answer", "solution"]),
    };
    let question = question.context("expected a question under `question`, `problem`, `ctx` or `ctx_a` and `ctx_b`")?;
    let answer = answer.context("expected an answer under `answer` or `solution`, or the index of a choice")?;
    Ok(format!("Question: {question}\nAnswer: {answer}"))
}

/// The losses of one model on all benchmarks. Answers are kept in `folder`, so an interrupted run goes on.
///
/// **Errors**: those of the model; interruption.
pub fn measure(
    benchmarks: &[Texts],
    side: &str,
    folder: &Path,
    model: &mut dyn LanguageModel,
    (run_seed, bootstrap_iters): (u64, usize),
) -> Result<Vec<SplitLosses>> {
    let plan = plan(benchmarks);
    let answers = responses::answer(&plan, folder, &stage::key_of(model), model)?;
    let tokenizer = model.tokenizer();
    let mut rows = Vec::with_capacity(benchmarks.len());
    for (index, texts) in benchmarks.iter().enumerate() {
        let mut splits = [Vec::new(), Vec::new()];
        let mut failed = 0;
        for (split, texts) in [&texts.test, &texts.train].into_iter().enumerate() {
            for (text, responses) in texts.iter().zip(&answers.responses[2 * index + split]) {
                match responses.first() {
                    Some(Response::Scored { logprob, .. }) => {
                        let (_, tokens) = encode_pair(tokenizer, "", text)?;
                        splits[split].push((-logprob, tokens.len() as f64));
                    }
                    _ => failed += 1,
                }
            }
        }
        let [test, train] = &splits;
        let (test_loss, train_loss) = (per_token(test.iter()), per_token(train.iter()));
        let mut random = seed::stream(run_seed, "evaluate.contamination", &format!("{} {side}", texts.benchmark));
        let mut resample = |items: &[(f64, f64)]| {
            let mut draw = || &items[random.random_range(0..items.len())];
            per_token((0..items.len()).map(|_| draw()).collect::<Vec<_>>().into_iter())
        };
        let can_resample = !test.is_empty() && !train.is_empty() && bootstrap_iters > 0;
        let delta_ci95 = can_resample.then(|| {
            let mut deltas: Vec<f64> = (0..bootstrap_iters).map(|_| resample(test) - resample(train)).collect();
            deltas.sort_by(f64::total_cmp);
            [0.025, 0.975].map(|quantile| deltas[((bootstrap_iters - 1) as f64 * quantile).round() as usize])
        });
        let delta = test_loss - train_loss;
        rows.push(SplitLosses {
            benchmark: texts.benchmark.to_owned(),
            model: side.to_owned(),
            test_loss,
            train_loss,
            delta,
            delta_percent: if test_loss > 0.0 { 100.0 * delta / test_loss } else { 0.0 },
            delta_ci95,
            test_items: test.len(),
            train_items: train.len(),
            failed,
        });
    }
    Ok(rows)
}

/// Average over tokens; 0 without any.
fn per_token<'a>(items: impl Iterator<Item = &'a (f64, f64)>) -> f64 {
    let (loss, tokens) = items.fold((0.0, 0.0), |sum, item| (sum.0 + item.0, sum.1 + item.1));
    if tokens > 0.0 { loss / tokens } else { 0.0 }
}

/// Two tasks per benchmark, test and train, each item a continuation of nothing.
fn plan(benchmarks: &[Texts]) -> Plan {
    let planned = |name: String, texts: &[String]| {
        let mut task = Definition::multiple_choice(&name, 1.0, |_: &Path, _| Ok(Split::default()));
        task.target_delimiter = "".into();
        let document = |text: &String| Document {
            row: Value::Null,
            text: String::new(),
            target: Target::Choice(0),
            shot_answer: String::new(),
            choices: vec![text.clone()],
        };
        let documents: Vec<Document> = texts.iter().map(document).collect();
        let contexts = vec![vec![Context::Text(String::new())]; documents.len()];
        PlannedTask::given(Box::leak(task.boxed()), documents, contexts)
    };
    let splits = |texts: &Texts| {
        [
            planned(format!("{}_test", texts.benchmark), &texts.test),
            planned(format!("{}_train", texts.benchmark), &texts.train),
        ]
    };
    Plan::of(benchmarks.iter().flat_map(splits).collect(), PromptStyle::plain())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_of_every_benchmark_become_question_and_answer() -> Result<()> {
        for (row, expected) in [
            (json!({"question": "1+1?", "answer": "2 #### 2"}), "Question: 1+1?\nAnswer: 2 #### 2"),
            (json!({"problem": "x?", "solution": "y"}), "Question: x?\nAnswer: y"),
            (json!({"question": "Q", "choices": ["a", "b"], "answer": 1}), "Question: Q\nAnswer: b"),
            (
                json!({"ctx_a": "He", "ctx_b": "runs", "endings": ["a", "b"], "label": "0"}),
                "Question: He runs\nAnswer: a",
            ),
        ] {
            assert_eq!(text(&row)?, expected);
        }
        for damaged in
            [json!({"answer": "x"}), json!({"question": "Q"}), json!({"question": "Q", "choices": ["a"], "answer": 1})]
        {
            assert!(text(&damaged).is_err(), "{damaged}");
        }
        Ok(())
    }

    #[test]
    fn items_are_spread_over_the_file() {
        assert_eq!(spread((0..10).collect(), 3), [3, 6, 9]);
        assert_eq!(spread((0..7).collect::<Vec<_>>(), 5).len(), 5);
        assert_eq!(spread(vec![1, 2], 3), [1, 2]);
        assert_eq!(spread(vec![1, 2], 0), [1, 2]);
    }
}
