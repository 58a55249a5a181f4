//! GSM8K: grade-school word problems, answered by a worked solution that ends in `#### NUMBER`.
//!
//! **Source**: Cobbe et al. 2021, arXiv 2110.14168; the worked examples of the `cot` forms are those of Wei et al.
//! 2022, arXiv 2201.11903; conventions of lm-evaluation-harness's `gsm8k` and its variants.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    definition::{Definition, ExactMatch, greedy},
    filters::{Filter, Step},
};
use crate::evaluate::{
    data,
    task::{Document, Sampler, Split, Target, Task},
};

const FILES: &[&str] = &["gsm8k/test.jsonl", "gsm8k/train.jsonl"];
const COT_FILES: &[&str] = &["gsm8k/test.jsonl", "fewshot/gsm8k_cot_8shot.json"];

const ANY_NUMBER: &str = r"(-?[$0-9.,]{2,})|(-?[0-9]+)";
const ANSWER_SENTENCE: &str = r"The answer is (\-?[0-9\.\,]+).";

/// The tasks of this file.
pub fn tasks() -> Vec<Box<dyn Task>> {
    vec![plain(), cot(), cot_zeroshot(), cot_self_consistency(), cot_llama()]
}

/// Thousands separators, dollar signs, what leads to the marked number and a final period do not matter.
fn number_match() -> ExactMatch {
    ExactMatch::without(&[",", r"\$", "(?s).*#### ", r"\.$"])
}

fn strict_and_flexible(strict: Step) -> Vec<Filter> {
    vec![
        Filter::new("strict-match", vec![strict, Step::TakeFirst]),
        Filter::new("flexible-extract", vec![Step::last(ANY_NUMBER), Step::TakeFirst]),
    ]
}

fn plain() -> Box<dyn Task> {
    let kwargs = greedy(&["Question:", "</s>", "<|im_end|>"]);
    let form = |question: &str| format!("Question: {question}\nAnswer:");
    let mut task = Definition::generative("gsm8k", 3.0, kwargs, move |data_dir, with_fewshot| {
        let read = |name: &str| {
            data::documents(data::read_rows(data_dir, name)?, name, |row| solved(row, form, str::to_owned))
        };
        Ok(Split { documents: read(FILES[0])?, fewshot_pool: if with_fewshot { read(FILES[1])? } else { Vec::new() } })
    })
    .filtered(strict_and_flexible(Step::first(r"#### (\-?[0-9\.\,]+)")))
    .documented("Question: {{question}}\nAnswer:", "{{answer}}", FILES)
    .shots(5, Sampler::Default);
    task.exact_match = number_match();
    task.boxed()
}

/// Settings without a temperature, as these tasks name them.
fn until(stop: &[&str]) -> Value {
    json!({"do_sample": false, "until": stop})
}

fn cot_definition(
    name: &str,
    version: f64,
    kwargs: Value,
    form: fn(&str) -> String,
    shot: fn(&str) -> String,
) -> Definition {
    let mut task = Definition::generative(name, version, kwargs, move |data_dir, with_fewshot| {
        cot_split(data_dir, with_fewshot, form, shot)
    })
    .documented("Q: {{question}}\nA:", "{{answer.split('####')[-1].strip()}}", COT_FILES)
    .shots(8, Sampler::FirstN);
    task.exact_match = number_match();
    task
}

fn cot() -> Box<dyn Task> {
    let kwargs = until(&["Q:", "</s>", "<|im_end|>"]);
    let task = cot_definition("gsm8k_cot", 3.0, kwargs, |question| format!("Q: {question}\nA:"), str::to_owned);
    task.filtered(strict_and_flexible(Step::first(ANSWER_SENTENCE))).boxed()
}

fn cot_zeroshot() -> Box<dyn Task> {
    let form = |question: &str| format!("Q: {question}\nA: Let's think step by step.");
    let kwargs = until(&["Q:", "</s>", "<|im_end|>"]);
    let mut task = Definition::generative("gsm8k_cot_zeroshot", 3.0, kwargs, move |data_dir, _| {
        let rows = data::read_rows(data_dir, FILES[0])?;
        let documents = data::documents(rows, FILES[0], |row| solved(row, form, str::to_owned))?;
        Ok(Split { documents, fewshot_pool: Vec::new() })
    })
    .filtered(strict_and_flexible(Step::first(ANSWER_SENTENCE)))
    .documented("Q: {{question}}\nA: Let's think step by step.", "{{answer}}", FILES)
    .zero_shot();
    task.exact_match = number_match();
    task.boxed()
}

fn cot_self_consistency() -> Box<dyn Task> {
    let kwargs = json!({"until": ["Q:", "\n\n"], "do_sample": true, "temperature": 0.2});
    let form = |question: &str| format!("Q: {question}\nA:");
    let mut task = cot_definition("gsm8k_cot_self_consistency", 2.0, kwargs, form, str::to_owned);
    let number = || Step::first(r"The answer is (\-?[0-9\.\,]*[0-9]+)");
    task.repeats = 64;
    task.filtered(vec![
        Filter::new("score-first", vec![number(), Step::TakeFirst]),
        Filter::new("maj@64", vec![number(), Step::MajorityVote, Step::TakeFirst]),
        Filter::new("maj@8", vec![Step::TakeFirstK(8), number(), Step::MajorityVote, Step::TakeFirst]),
    ])
    .boxed()
}

/// The Llama 3 form: the worked examples end in "The final answer is N" without a period.
fn cot_llama() -> Box<dyn Task> {
    let stop = ["<|eot_id|>", "<|start_header_id|>user<|end_header_id|>", "Q:", "</s>", "<|im_end|>"];
    let form = |question: &str| {
        format!(
            "Given the following problem, reason and give a final answer to the problem.\nProblem: {question}\n\
             Your response should end with \"The final answer is [answer]\" where [answer] is the response to the \
             problem.\n"
        )
    };
    let shot = |target: &str| {
        let target = target.replace("The answer is", "The final answer is");
        target.strip_suffix('.').unwrap_or(&target).to_owned()
    };
    let mut task = cot_definition("gsm8k_cot_llama", 4.0, until(&stop), form, shot);
    task.target_delimiter = "".into();
    let strict = Step::last(r"The final answer is ((-?[$0-9.,]{2,})|(-?[0-9]+))");
    task.filtered(strict_and_flexible(strict)).boxed()
}

/// The test documents, and the worked examples of Wei et al.
fn cot_split(data_dir: &Path, with_fewshot: bool, form: fn(&str) -> String, shot: fn(&str) -> String) -> Result<Split> {
    let after_mark = |answer: &str| answer.rsplit("####").next().unwrap_or_default().trim().to_owned();
    let rows = data::read_rows(data_dir, FILES[0])?;
    let documents = data::documents(rows, FILES[0], |row| solved(row, form, after_mark))?;
    let mut fewshot_pool = Vec::new();
    if with_fewshot {
        let examples = data::read_json(data_dir, COT_FILES[1])?;
        for row in examples.as_array().with_context(|| format!("`{}`: expected a list", COT_FILES[1]))? {
            let answer = shot(&data::string(row, "target")?);
            fewshot_pool.push(Document {
                text: form(&data::string(row, "question")?),
                target: Target::Text(answer.clone()),
                shot_answer: answer,
                choices: Vec::new(),
                row: row.clone(),
            });
        }
    }
    Ok(Split { documents, fewshot_pool })
}

fn solved(row: Value, form: fn(&str) -> String, target: fn(&str) -> String) -> Result<Document> {
    let answer = data::string(&row, "answer")?;
    Ok(Document {
        text: form(&data::string(&row, "question")?),
        target: Target::Text(target(&answer)),
        shot_answer: answer,
        choices: Vec::new(),
        row,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::tasks::find;

    fn is_right(filter: &str, response: &str) -> Result<bool> {
        let task = find("gsm8k")?;
        let row = json!({"question": "?", "answer": "so\n#### 1,018"});
        let document = solved(row, str::to_owned, str::to_owned)?;
        let answers = task.answers(filter, &[response.to_owned()], &document);
        Ok(task.score_answers(&answers, &document)?[0].1.number() == Some(1.0))
    }

    #[test]
    fn strict_takes_the_marked_number_and_flexible_the_last_one() -> Result<()> {
        assert!(is_right("strict-match", " 9 + 9\n#### 1018")?);
        assert!(is_right("flexible-extract", "It is $1,018.")?);
        assert!(!is_right("strict-match", "It is 1018")?);
        assert!(!is_right("strict-match", "####1018")?);
        assert!(!is_right("flexible-extract", "1018 of 2000")?);
        Ok(())
    }
}
