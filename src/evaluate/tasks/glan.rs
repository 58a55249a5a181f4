//! The protocols of the GLAN paper: free answers, from which rules take the answer.
//!
//! ARC and MMLU are asked without examples and answered in words; GSM8K and MATH without examples; MBPP with three and
//! BBH with three worked ones. The paper names the protocol and refers to Orca 2 for the rules, but prints neither
//! prompts nor rules: those here are ours, so compare models by them, not with the paper's table. HumanEval without
//! examples is the task `humaneval` itself.
//!
//! **Source**: Li et al. 2024, arXiv 2402.13064, sections 3.3 and 3.5.

use std::sync::LazyLock;

use anyhow::Result;
use fancy_regex::Regex;
use serde_json::{Value, json};

use super::{
    Group, arc, bbh,
    code::extract_code,
    definition::{Definition, ExactMatch, Scoring, leak},
    filters::{Filter, INVALID, Step, constant},
    math, mbpp, mmlu,
};
use crate::evaluate::{
    data,
    task::{Document, Measure, Scores, Split, Target, Task},
};

/// Most tokens of a free answer.
const MAX_GEN_TOKS: u64 = 512;

/// The tasks of this file.
pub fn tasks() -> Vec<Box<dyn Task>> {
    let mut tasks = vec![arc("glan_arc_easy", arc::EASY), arc("glan_arc_challenge", arc::CHALLENGE)];
    tasks.extend(mmlu::subjects().map(mmlu));
    tasks.extend([gsm8k(), math(), mbpp()]);
    tasks.extend(bbh::NAMES.map(bbh));
    tasks
}

/// The groups of this file.
pub fn groups() -> Vec<Group> {
    let mut groups = mmlu::by_category("glan_mmlu", "", 1.0, "exact_match", "extract");
    let members = bbh::NAMES.iter().map(|name| leak(format!("glan_bbh_{name}"))).collect();
    groups.push(Group::new("glan_bbh", 1.0, members, "exact_match", "extract"));
    let members = vec![
        "humaneval",
        "glan_mbpp",
        "glan_gsm8k",
        "glan_math",
        "glan_bbh",
        "glan_arc_easy",
        "glan_arc_challenge",
        "glan_mmlu",
    ];
    // The paper gives no number for all of them.
    groups.push(Group { metrics: Vec::new(), ..Group::new("glan", 1.0, members, "exact_match", "extract") });
    groups
}

/// Settings of a free answer. A chat model ends its turn; other models are stopped at the next question.
fn free(stop: &str) -> Value {
    json!({"until": [stop], "max_gen_toks": MAX_GEN_TOKS, "do_sample": false, "temperature": 0.0})
}

fn extracting(filter: fn(&str, &Document) -> String) -> Vec<Filter> {
    vec![Filter::new("extract", vec![Step::Custom(filter), Step::TakeFirst])]
}

const CHOICE_TEXT: &str = "{{question}}\nA. {{choices[0]}}\n…\n\nThink step by step, then end with \"The answer is X.\", \
                           where X is the letter of the right choice.";

fn arc(name: &'static str, files: &'static [&'static str; 2]) -> Box<dyn Task> {
    Definition::generative(name, 1.0, free("\nQuestion:"), move |data_dir, _| {
        arc::load(data_dir, false, files, choice_document)
    })
    .filtered(extracting(chosen_letter))
    .documented(CHOICE_TEXT, "{{letter}}", files)
    .zero_shot()
    .boxed()
}

fn mmlu(subject: &'static str) -> Box<dyn Task> {
    let mut task =
        Definition::generative(&format!("glan_mmlu_{subject}"), 1.0, free("\nQuestion:"), move |data_dir, _| {
            mmlu::load(data_dir, false, subject, choice_document)
        })
        .filtered(extracting(chosen_letter))
        .documented(CHOICE_TEXT, "{{letter}}", &["mmlu/test.jsonl"])
        .zero_shot();
    task.alias = Some(subject);
    task.boxed()
}

fn choice_document(row: Value) -> Result<Document> {
    let (choices, gold) = data::choices(&row)?;
    let mut text = data::string(&row, "question")?.trim().to_owned();
    for (index, choice) in choices.iter().enumerate() {
        text += &format!("\n{}. {choice}", arc::letter(index));
    }
    text += "\n\nThink step by step, then end with \"The answer is X.\", where X is the letter of the right choice.";
    let letter = arc::letter(gold);
    let shot_answer = format!("The answer is {letter}.");
    Ok(Document { text, target: Target::Text(letter), shot_answer, choices: Vec::new(), row })
}

/// "The answer is B", "Answer: (B)", "\boxed{B}" and the like.
static STATED: LazyLock<Regex> = LazyLock::new(|| {
    constant(
        r"(?i)\b(?:answer|option|choice)(?:\s+is)?\s*:?[\s\*]*(?:option\s+|choice\s+)?[\*\(\[\$]*(?:\\boxed\{|\\text\{)*((?-i)[A-Z])(?![\w'])",
    )
});
static BOXED: LazyLock<Regex> = LazyLock::new(|| constant(r"\\boxed\{(?:\\text\{)?\(?([A-Z])\)?\}"));
/// A letter that opens the answer: "B", "(B)", "B. because".
static OPENING: LazyLock<Regex> = LazyLock::new(|| constant(r"\A\s*[\(\*]*([A-Z])(?:[\.\):\*,]|\s*\z)"));

/// The letter that an answer settles on: the last one stated, else one in a box, else one that opens the answer, else
/// that of the only choice whose text is repeated.
fn chosen_letter(response: &str, document: &Document) -> String {
    let choices = data::strings(&document.row, "choices").unwrap_or_default();
    let is_choice = |letter: &String| (0..choices.len()).any(|index| arc::letter(index) == *letter);
    let last = |regex: &Regex| {
        let found = regex.captures_iter(response).map_while(Result::ok);
        found.filter_map(|found| Some(found.get(1)?.as_str().to_uppercase())).filter(is_choice).last()
    };
    if let Some(letter) = last(&STATED).or_else(|| last(&BOXED)).or_else(|| last(&OPENING)) {
        return letter;
    }
    let lower = response.to_lowercase();
    let named: Vec<usize> =
        (0..choices.len()).filter(|&index| lower.contains(choices[index].trim().to_lowercase().as_str())).collect();
    match named[..] {
        [only] => arc::letter(only),
        _ => INVALID.to_owned(),
    }
}

fn gsm8k() -> Box<dyn Task> {
    const FILES: &[&str] = &["gsm8k/test.jsonl"];
    let mut task = Definition::generative("glan_gsm8k", 1.0, free("\nQuestion:"), |data_dir, _| {
        let documents = data::documents(data::read_rows(data_dir, FILES[0])?, FILES[0], |row| {
            let answer = data::string(&row, "answer")?;
            let number = answer.rsplit("####").next().unwrap_or_default().trim().to_owned();
            Ok(Document {
                text: data::string(&row, "question")?,
                target: Target::Text(number),
                shot_answer: answer,
                choices: Vec::new(),
                row,
            })
        })?;
        Ok(Split { documents, fewshot_pool: Vec::new() })
    })
    .filtered(extracting(final_number))
    .documented("{{question}}", "{{answer.split('####')[-1].strip()}}", FILES)
    .zero_shot();
    task.exact_match = ExactMatch::without(&[",", r"\$", r"\.0*$"]);
    task.boxed()
}

static NUMBER: LazyLock<Regex> = LazyLock::new(|| constant(r"-?\$?[0-9][0-9,]*(?:\.[0-9]+)?"));

/// The first number after the last "answer is", "####" or box, else the last number.
fn final_number(response: &str, _document: &Document) -> String {
    let after =
        ["answer is", "####", "\\boxed{"].iter().filter_map(|mark| Some(response.rfind(mark)? + mark.len())).max();
    let numbers = |text: &str| -> Vec<String> {
        NUMBER.find_iter(text).map_while(Result::ok).map(|found| found.as_str().to_owned()).collect()
    };
    let stated = after.and_then(|start| numbers(&response[start..]).into_iter().next());
    stated.or_else(|| numbers(response).pop()).unwrap_or_else(|| INVALID.to_owned())
}

fn math() -> Box<dyn Task> {
    const FILES: &[&str] = &["math/test.jsonl"];
    Definition::generative("glan_math", 1.0, free("\nProblem:"), |data_dir, _| {
        let documents = math::rows_of_subject(data_dir, FILES[0], None, |row| {
            let answer = math::boxed_answer(&data::string(&row, "solution")?)?;
            let text = format!(
                "{}\n\nThink step by step, and put the final answer in \\boxed{{}}.",
                data::string(&row, "problem")?
            );
            Ok(Document { text, target: Target::Text(answer.clone()), shot_answer: answer, choices: Vec::new(), row })
        })?;
        Ok(Split { documents, fewshot_pool: Vec::new() })
    })
    .filtered(extracting(final_expression))
    .scored_by(&["exact_match"], Scoring { answers: Some(equivalent), ..Scoring::default() })
    .documented("{{problem}}\n\nThink step by step, and put the final answer in \\boxed{}.", "{{answer}}", FILES)
    .zero_shot()
    .boxed()
}

static IN_DOLLARS: LazyLock<Regex> = LazyLock::new(|| constant(r"\$([^$]+)\$"));

/// The last box, else what follows the last "answer is" up to the end of its line, else the last text in dollar signs.
fn final_expression(response: &str, _document: &Document) -> String {
    if let Ok(answer) = math::boxed_answer(response) {
        return answer;
    }
    if let Some((_, rest)) = response.rsplit_once("answer is") {
        let line = rest.lines().next().unwrap_or_default().trim_start_matches(':').trim();
        return line.trim_end_matches('.').trim_matches('$').to_owned();
    }
    let found = IN_DOLLARS.captures_iter(response).map_while(Result::ok).last();
    let found = found.and_then(|found| Some(found.get(1)?.as_str().to_owned()));
    found.unwrap_or_else(|| INVALID.to_owned())
}

fn equivalent(document: &Document, answers: &[String]) -> Result<Scores> {
    let answer = answers.first().map_or("", String::as_str);
    Ok(vec![("exact_match", Measure::of(math::is_equiv(answer, &document.target.to_string())))])
}

fn mbpp() -> Box<dyn Task> {
    let kwargs = json!({"until": ["[DONE]"], "max_gen_toks": MAX_GEN_TOKS, "do_sample": false, "temperature": 0.0});
    mbpp::definition("glan_mbpp", 1.0, kwargs, mbpp::plain_document)
        .filtered(extracting(|response, _| match response.find("```") {
            Some(start) => extract_code(&response[start + 3..]),
            None => response.to_owned(),
        }))
        .boxed()
}

/// The prompts of `bbh`; an answer may be put a little differently than the examples put it.
fn bbh(name: &'static str) -> Box<dyn Task> {
    let kwargs = json!({"until": ["\n\nQ:", "</s>"], "max_gen_toks": 1024, "do_sample": false, "temperature": 0.0});
    let mut task = bbh::worked(leak(format!("glan_bbh_{name}")), name, kwargs).filtered(extracting(stated));
    task.spec.version = 1.0;
    task.alias = Some(name);
    task.exact_match = ExactMatch { ignore_case: true, ..ExactMatch::default() };
    task.boxed()
}

/// What follows the last "answer is" on its line, without a final period and emphasis.
fn stated(response: &str, _document: &Document) -> String {
    let Some((_, rest)) = response.rsplit_once("answer is") else { return INVALID.to_owned() };
    let line = rest.lines().next().unwrap_or_default().trim_start_matches(':').trim();
    line.trim_end_matches('.').trim_matches('*').trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(response: &str) -> String {
        let row = json!({"question": "Q?", "choices": ["red", "blue", "green", "a cat"], "answer": 1});
        chosen_letter(response, &choice_document(row).expect("the row is whole"))
    }

    #[test]
    fn an_answer_settles_on_the_last_letter_that_it_states() {
        assert_eq!(letter("It could be A. But the answer is B."), "B");
        assert_eq!(letter("The correct answer is (C) green."), "C");
        assert_eq!(letter("**Answer:** **D**"), "D");
        assert_eq!(letter("so \\boxed{B}"), "B");
        assert_eq!(letter("B. blue, since red is not"), "B");
        assert_eq!(letter("The sky is blue."), "B");
        assert_eq!(letter("red or blue"), INVALID);
        assert_eq!(letter("The answer is E."), INVALID);
        assert_eq!(letter("The answer is a cat"), "D");
    }

    #[test]
    fn numbers_and_expressions_are_the_final_ones() {
        let document = choice_document(json!({"question": "Q?", "choices": ["a"], "answer": 0})).expect("whole");
        assert_eq!(final_number("5 and 6. The answer is $1,200. Check: 3", &document), "$1,200");
        assert_eq!(final_number("5 and then 7", &document), "7");
        assert_eq!(final_expression(r"so \boxed{\frac12}", &document), r"\frac12");
        assert_eq!(final_expression("The answer is $x+1$.", &document), "x+1");
        assert_eq!(stated("So the answer is **(A)**.", &document), "(A)");
    }
}
