//! HumanEval: functions to be completed, judged by running their tests ([`crate::evaluate::programs`]).
//!
//! **Source**: Chen et al. 2021, arXiv 2107.03374; lm-evaluation-harness's `humaneval`, `humaneval_64` and their
//! `instruct` forms.

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    definition::{Definition, Scoring},
    filters::{Filter, Step, constant},
};
use crate::evaluate::{
    data,
    task::{Document, Measure, ScorePrograms, Scores, Split, Target, Task},
};

const FILES: &[&str] = &["humaneval/HumanEval.jsonl"];
const STOPS: [&str; 5] = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"];

/// The tasks of this file.
pub fn tasks() -> Vec<Box<dyn Task>> {
    vec![
        task("humaneval", 1.0, false, false),
        task("humaneval_instruct", 4.0, true, false),
        task("humaneval_64", 1.0, false, true),
        task("humaneval_64_instruct", 3.0, true, true),
    ]
}

fn task(name: &str, version: f64, instruct: bool, many: bool) -> Box<dyn Task> {
    let kwargs = match many {
        false => json!({"until": STOPS, "max_gen_toks": 1024, "do_sample": false}),
        true => {
            json!({"until": STOPS, "max_gen_toks": 1024, "do_sample": true, "temperature": 0.2, "top_p": 0.95})
        }
    };
    let mut task = Definition::generative(name, version, kwargs, move |data_dir, _| {
        let rows = data::read_rows(data_dir, FILES[0])?;
        let documents = data::documents(rows, FILES[0], |row| document(row, instruct))?;
        Ok(Split { documents, fewshot_pool: Vec::new() })
    })
    .filtered(vec![Filter::new("create_test", vec![Step::Custom(if instruct { unfenced } else { completed })])])
    .scored_by(
        if many { &["pass@2", "pass@8", "pass@16", "pass@32", "pass@64"] } else { &["pass@1"] },
        Scoring { programs: Some(if many { pass_at_many } else { pass_at_1 as ScorePrograms }), ..Scoring::default() },
    )
    .documented("{{prompt}}", "{{test}}\ncheck({{entry_point}})", FILES)
    .zero_shot();
    task.repeats = if many { 64 } else { 1 };
    if instruct {
        task.gen_prefix =
            Some(Box::new(|document| format!("Here is the completed function:\n```python\n{}\n", prompt_of(document))));
    }
    task.boxed()
}

fn prompt_of(document: &Document) -> &str {
    document.row["prompt"].as_str().unwrap_or_default()
}

fn document(row: Value, instruct: bool) -> Result<Document> {
    let prompt = data::string(&row, "prompt")?;
    let tests = format!("{}\ncheck({})", data::string(&row, "test")?, data::string(&row, "entry_point")?);
    let text = match instruct {
        false => prompt,
        true => format!(
            "Write a solution to the following problem and make sure that it passes the tests:\n```python\n{prompt}\n\
             ```\n"
        ),
    };
    Ok(Document { text, target: Target::Text(tests.clone()), shot_answer: tests, choices: Vec::new(), row })
}

/// The function's head and what was written after it.
fn completed(response: &str, document: &Document) -> String {
    format!("{}{response}", prompt_of(document))
}

/// The same up to the fence that ends the code.
fn unfenced(response: &str, document: &Document) -> String {
    completed(response.split("```").next().unwrap_or_default(), document)
}

/// The first fenced block of an answer that begins inside a fence, as the harness finds it: a language's name is taken
/// for one where it stands alone.
///
/// **Source**: `extract_code_blocks` of lm-evaluation-harness's `mbpp`.
pub fn extract_code(response: &str) -> String {
    let block = constant(r"(?s)```(?:\w+)?\n?(.*?)\n?```");
    let first = |text: &str| {
        let found = block.captures(text).ok().flatten()?;
        Some(found.get(1).map_or("", |code| code.as_str()).to_owned())
    };
    first(&format!("```{response}")).or_else(|| first(&response.replace("```python", "```"))).unwrap_or_default()
}

/// The share of candidates that pass.
pub fn pass_at_1(passed: &[bool]) -> Scores {
    vec![("pass@1", Measure::Number(pass_at(1, passed)))]
}

fn pass_at_many(passed: &[bool]) -> Scores {
    let at = [("pass@2", 2), ("pass@8", 8), ("pass@16", 16), ("pass@32", 32), ("pass@64", 64)];
    at.map(|(name, k)| (name, Measure::Number(pass_at(k, passed)))).to_vec()
}

/// How likely one of `k` candidates passes, estimated from all of them.
///
/// **Source**: Chen et al. 2021, equation 1: `1 - C(n - c, k) / C(n, k)` in product form.
fn pass_at(k: usize, passed: &[bool]) -> f64 {
    let (n, correct) = (passed.len(), passed.iter().filter(|passed| **passed).count());
    if n - correct < k {
        return 1.0;
    }
    1.0 - (n - correct + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::shared_fixtures;

    #[test]
    fn pass_at_k_is_the_chance_of_a_hit() {
        assert_eq!(pass_at(1, &[true]), 1.0);
        assert_eq!(pass_at(1, &[false]), 0.0);
        assert!((pass_at(1, &[true, false, false, false]) - 0.25).abs() < 1e-12);
        // 1 - C(3, 2) / C(4, 2) = 1/2.
        assert!((pass_at(2, &[true, false, false, false]) - 0.5).abs() < 1e-12);
        assert_eq!(pass_at(2, &[true, true, true, false]), 1.0);
    }

    /// Catches: another pattern, or another order of tries, than the harness's.
    #[test]
    fn code_is_found_where_the_harness_finds_it() -> Result<()> {
        assert_eq!(extract_code("python\nx = 1\n```\nmore"), "x = 1");
        let Some(golden) = shared_fixtures::golden("scoring.json")? else { return Ok(()) };
        for row in golden["mbpp_extract_code"].as_array().expect("a list of rows") {
            let input = row["input"].as_str().expect("a string");
            assert_eq!(extract_code(input), row["output"].as_str().expect("a string"), "{row}");
        }
        Ok(())
    }
}
