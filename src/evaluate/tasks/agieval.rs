//! AGIEval: entrance examinations for people, in English and Chinese.
//!
//! **Source**: Zhong et al. 2023, arXiv 2304.06364; lm-evaluation-harness's `agieval` with the zero-shot questions of
//! the benchmark's own repository. `logiqa` and `jec-qa` may not be passed on; without them the groups are partial,
//! and their rows in result files name what is missing.

use std::sync::LazyLock;

use anyhow::{Context as _, Result, bail};
use fancy_regex::Regex;
use serde_json::{Value, json};

use super::{
    Group,
    definition::{Definition, Scoring, leak},
    filters::constant,
    math::{last_boxed, strip_string},
};
use crate::evaluate::{
    data,
    task::{Document, Measure, Scores, Split, Target, Task},
};

/// The multiple-choice sets by file, and whether they are in Chinese.
const CHOOSING: [(&str, bool); 19] = [
    ("gaokao-biology", true),
    ("gaokao-chemistry", true),
    ("gaokao-chinese", true),
    ("gaokao-geography", true),
    ("gaokao-history", true),
    ("gaokao-mathqa", true),
    ("gaokao-physics", true),
    ("jec-qa-ca", true),
    ("jec-qa-kd", true),
    ("logiqa-zh", true),
    ("aqua-rat", false),
    ("gaokao-english", false),
    ("logiqa-en", false),
    ("lsat-ar", false),
    ("lsat-lr", false),
    ("lsat-rc", false),
    ("sat-en-without-passage", false),
    ("sat-en", false),
    ("sat-math", false),
];

/// The sets that ask for an expression.
const CLOZE: [(&str, bool); 2] = [("gaokao-mathcloze", true), ("math", false)];

/// The sets of the group `agieval_nous`.
const NOUS: [&str; 8] =
    ["aqua-rat", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc", "sat-en-without-passage", "sat-en", "sat-math"];

fn task_name(file: &str) -> &'static str {
    leak(format!("agieval_{}", file.replace('-', "_")))
}

/// The tasks of this file.
pub fn tasks() -> Vec<Box<dyn Task>> {
    let choosing = CHOOSING.into_iter().map(|(file, chinese)| choosing(file, chinese));
    choosing.chain(CLOZE.into_iter().map(|(file, chinese)| cloze(file, chinese))).collect()
}

/// The groups of this file.
pub fn groups() -> Vec<Group> {
    let all = || CHOOSING.into_iter().chain(CLOZE);
    let named = |names: Vec<&str>| names.into_iter().map(task_name).collect();
    let in_language = |wanted: bool| all().filter(|(_, chinese)| *chinese == wanted).map(|(file, _)| file).collect();
    vec![
        Group::new("agieval", 0.0, named(all().map(|(file, _)| file).collect()), "acc", "none"),
        Group::new("agieval_en", 0.0, named(in_language(false)), "acc", "none"),
        Group::new("agieval_cn", 0.0, named(in_language(true)), "acc", "none"),
        Group::new("agieval_nous", 0.0, named(NOUS.to_vec()), "acc_norm", "none"),
    ]
}

fn choosing(file: &'static str, chinese: bool) -> Box<dyn Task> {
    let files: &'static [&'static str] = Box::leak(Box::new([leak(format!("agieval/{file}.jsonl"))]));
    let mut task = Definition::multiple_choice(task_name(file), 1.0, move |data_dir, _| {
        let rows = data::read_rows(data_dir, files[0])?;
        let documents = data::documents(rows, files[0], |row| choice_document(row, chinese))?;
        Ok(Split { documents, fewshot_pool: Vec::new() })
    })
    .documented("{{query}}", "{{gold}}", files);
    task.pool_is_test = true;
    task.boxed()
}

fn choice_document(row: Value, chinese: bool) -> Result<Document> {
    let choices = data::strings(&row, "options")?;
    if choices.is_empty() {
        bail!("expected `options` to choose from");
    }
    let passage = row["passage"].as_str().unwrap_or_default();
    let question = data::string(&row, "question")?;
    let (last, options) = (super::arc::letter(choices.len() - 1), choices.join(" "));
    let text = if chinese {
        format!("{passage}问题：{question} 选项：{options}\n答案：从A到{last}, 我们应选择")
    } else {
        format!("{passage}Q: {question} Answer Choices: {options}\nA: Among A through {last}, the answer is")
    };
    let letters = match &row["label"] {
        Value::String(letters) => letters.clone(),
        Value::Array(letters) => letters.iter().filter_map(Value::as_str).collect(),
        _ => bail!("expected under `label` the letter of a choice"),
    };
    let gold: Vec<usize> = letters
        .chars()
        .map(|letter| (letter as usize).checked_sub('A' as usize).filter(|&index| index < choices.len()))
        .collect::<Option<_>>()
        .with_context(|| format!("`label` is `{letters}`; expected letters of the {} choices", choices.len()))?;
    let shot_answer = gold.first().map(|&index| choices[index].clone()).unwrap_or_default();
    Ok(Document { text, target: Target::Choices(gold), shot_answer, choices, row })
}

fn cloze(file: &'static str, chinese: bool) -> Box<dyn Task> {
    let files: &'static [&'static str] = Box::leak(Box::new([leak(format!("agieval/{file}.jsonl"))]));
    let kwargs = json!({"max_gen_toks": 32, "do_sample": false, "temperature": 0.0, "until": ["Q:"]});
    let mut task = Definition::generative(task_name(file), 1.0, kwargs, move |data_dir, _| {
        let rows = data::read_rows(data_dir, files[0])?;
        let documents = data::documents(rows, files[0], |row| {
            let (question, answer) = (data::string(&row, "question")?, data::string(&row, "answer")?);
            let text = if chinese {
                format!("问题：{question}\n答案：")
            } else {
                format!("Q: {question}\nA: The answer is")
            };
            Ok(Document { text, target: Target::Text(answer.clone()), shot_answer: answer, choices: Vec::new(), row })
        })?;
        Ok(Split { documents, fewshot_pool: Vec::new() })
    })
    .scored_by(&["acc"], Scoring { answers: Some(equivalent_answer), ..Scoring::default() })
    .documented("{{query}}", "{{answer}}", files);
    task.pool_is_test = true;
    task.boxed()
}

fn equivalent_answer(document: &Document, answers: &[String]) -> Result<Scores> {
    // The harness reads both sides twice.
    let answer = answers.first().and_then(|answer| parsed(answer));
    let gold = parsed(&document.target.to_string());
    let right = match (&answer, &gold) {
        (None, None) => true,
        (Some(answer), Some(gold)) => same(parsed(answer).as_deref(), parsed(gold).as_deref()),
        _ => false,
    };
    Ok(vec![("acc", Measure::of(right))])
}

fn same(first: Option<&str>, second: Option<&str>) -> bool {
    let stripped = |text: Option<&str>| text.and_then(|text| strip_string(text).ok());
    match (stripped(first), stripped(second)) {
        (Some(first), Some(second)) => first == second,
        _ => first == second,
    }
}

static IN_DOLLARS: LazyLock<Regex> = LazyLock::new(|| constant(r"\$(.*)\$"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| constant(r"(?:\$)?\d+(?:\.\d+)?(?![\w\d])"));

/// The answer in a text: in a box, else between dollar signs, else after the last "=", else the last number.
fn parsed(text: &str) -> Option<String> {
    let after_equals = |text: &str| match text.rsplit_once('=') {
        Some((_, right)) => right.trim_start_matches(' ').to_owned(),
        None => text.to_owned(),
    };
    if text.contains("\\boxed") {
        let boxed = last_boxed_only(text)?;
        return boxed.strip_prefix("\\boxed{")?.strip_suffix('}').map(after_equals);
    }
    let last = |regex: &Regex, group: usize| {
        let found = regex.captures_iter(text).map_while(Result::ok).last()?;
        found.get(group).map(|found| found.as_str().to_owned())
    };
    if let Some(found) = last(&IN_DOLLARS, 1).map(|found| after_equals(&found)).filter(|found| !found.is_empty()) {
        return Some(found);
    }
    match text.rsplit_once('=') {
        Some((_, right)) => {
            let right = right.trim_start_matches(' ').trim_end_matches('.');
            // Backslash and n, as the harness looks for it.
            Some(right.split("\\n").next().unwrap_or_default().to_owned())
        }
        None => last(&NUMBER, 0),
    }
}

fn last_boxed_only(text: &str) -> Option<String> {
    last_boxed(text, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_boxed_in_dollars_after_equals_or_the_last_number() {
        assert_eq!(parsed(r"so \boxed{x = 5}").as_deref(), Some("5"));
        assert_eq!(parsed("the sum $a + b = 7$.").as_deref(), Some("7"));
        assert_eq!(parsed("x = 3.").as_deref(), Some("3"));
        assert_eq!(parsed("there are 3 or 4.").as_deref(), Some("4"));
        assert_eq!(parsed("none"), None);
    }

    #[test]
    fn several_letters_are_several_right_choices() {
        let row = json!({"passage": null, "question": "Q?", "options": ["(A)x", "(B)y", "(C)z"], "label": ["A", "C"]});
        let document = choice_document(row, false).expect("the row is whole");
        assert_eq!(document.target, Target::Choices(vec![0, 2]));
        assert_eq!(document.text, "Q: Q? Answer Choices: (A)x (B)y (C)z\nA: Among A through C, the answer is");
    }
}
