//! MMLU: 57 subjects from school to profession, four choices each.
//!
//! **Source**: Hendrycks et al. 2021, arXiv 2009.03300; lm-evaluation-harness's `mmlu`, `mmlu_generative` and
//! `mmlu_continuation`.

use std::path::Path;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::{
    Group,
    arc::letter,
    definition::{Definition, ExactMatch, Scoring, leak},
    filters::{Filter, Step},
};
use crate::evaluate::{
    data,
    task::{Document, Sampler, Split, Target, Task},
};

const FILES: &[&str] = &["mmlu/test.jsonl", "mmlu/dev.jsonl"];

/// Subjects by category, in the harness's order.
pub const CATEGORIES: [(&str, &[&str]); 4] = [
    (
        "stem",
        &[
            "abstract_algebra",
            "anatomy",
            "astronomy",
            "college_biology",
            "college_chemistry",
            "college_computer_science",
            "college_mathematics",
            "college_physics",
            "computer_security",
            "conceptual_physics",
            "electrical_engineering",
            "elementary_mathematics",
            "high_school_biology",
            "high_school_chemistry",
            "high_school_computer_science",
            "high_school_mathematics",
            "high_school_physics",
            "high_school_statistics",
            "machine_learning",
        ],
    ),
    (
        "other",
        &[
            "business_ethics",
            "clinical_knowledge",
            "college_medicine",
            "global_facts",
            "human_aging",
            "management",
            "marketing",
            "medical_genetics",
            "miscellaneous",
            "nutrition",
            "professional_accounting",
            "professional_medicine",
            "virology",
        ],
    ),
    (
        "social_sciences",
        &[
            "econometrics",
            "high_school_geography",
            "high_school_government_and_politics",
            "high_school_macroeconomics",
            "high_school_microeconomics",
            "high_school_psychology",
            "human_sexuality",
            "professional_psychology",
            "public_relations",
            "security_studies",
            "sociology",
            "us_foreign_policy",
        ],
    ),
    (
        "humanities",
        &[
            "formal_logic",
            "high_school_european_history",
            "high_school_us_history",
            "high_school_world_history",
            "international_law",
            "jurisprudence",
            "logical_fallacies",
            "moral_disputes",
            "moral_scenarios",
            "philosophy",
            "prehistory",
            "professional_law",
            "world_religions",
        ],
    ),
];

/// All subjects with their categories.
pub fn subjects() -> impl Iterator<Item = &'static str> {
    CATEGORIES.iter().flat_map(|(_, subjects)| subjects.iter().copied())
}

/// The tasks of this file.
pub fn tasks() -> Vec<Box<dyn Task>> {
    subjects().flat_map(|subject| [letters(subject), generative(subject), continuation(subject)]).collect()
}

/// The groups of this file.
pub fn groups() -> Vec<Group> {
    let mut groups = Vec::new();
    for (suffix, version, metric, filter) in [
        ("", 2.0, "acc", "none"),
        ("_generative", 3.0, "exact_match", "get_response"),
        ("_continuation", 2.0, "acc", "none"),
    ] {
        groups.extend(by_category("mmlu", suffix, version, metric, filter));
    }
    groups
}

/// A group of all subjects and one per category; names are `{stem}_{subject}{suffix}`.
pub fn by_category(stem: &str, suffix: &str, version: f64, metric: &'static str, filter: &'static str) -> Vec<Group> {
    let named = |part: &str| leak(format!("{stem}_{part}{suffix}"));
    let of_category = |(category, subjects): (&'static str, &'static [&'static str])| {
        let members = subjects.iter().map(|subject| named(subject)).collect();
        Group { alias: category, ..Group::new(named(category), version, members, metric, filter) }
    };
    let categories: Vec<Group> = CATEGORIES.into_iter().map(of_category).collect();
    let members = categories.iter().map(|group| group.name).collect();
    let whole = Group::new(leak(format!("{stem}{suffix}")), version, members, metric, filter);
    std::iter::once(whole).chain(categories).collect()
}

fn spoken(subject: &str) -> String {
    subject.replace('_', " ")
}

fn shaped(
    task: Definition,
    subject: &'static str,
    doc_to_text: &'static str,
    doc_to_target: &'static str,
) -> Definition {
    let mut task = task.documented(doc_to_text, doc_to_target, FILES).shots(0, Sampler::FirstN);
    task.alias = Some(subject);
    task
}

const LETTERED: &str =
    "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\nD. {{choices[3]}}\nAnswer:";

fn choice_questions(subject: &str) -> String {
    format!("The following are multiple choice questions (with answers) about {}.\n\n", spoken(subject))
}

fn letters(subject: &'static str) -> Box<dyn Task> {
    let name = format!("mmlu_{subject}");
    let task = Definition::multiple_choice(&name, 1.0, move |data_dir, with_fewshot| {
        load(data_dir, with_fewshot, subject, |row| {
            let (question, gold) = lettered(&row)?;
            let choices = (0..4).map(letter).collect();
            Ok(Document { text: question, target: Target::Choice(gold), shot_answer: letter(gold), choices, row })
        })
    });
    shaped(task, subject, LETTERED, "answer")
        .described(choice_questions(subject))
        .scored_by(&["acc"], Scoring::default())
        .boxed()
}

fn generative(subject: &'static str) -> Box<dyn Task> {
    let name = format!("mmlu_{subject}_generative");
    let kwargs = json!({"until": ["</s>", "\n"]});
    let task = Definition::generative(&name, 3.0, kwargs, move |data_dir, with_fewshot| {
        load(data_dir, with_fewshot, subject, |row| {
            let (text, gold) = lettered(&row)?;
            let answer = letter(gold);
            Ok(Document { text, target: Target::Text(answer.clone()), shot_answer: answer, choices: Vec::new(), row })
        })
    })
    .filtered(vec![Filter::new(
        "get_response",
        vec![Step::first(r"^(.*?)(?=\n|$)"), Step::RemoveWhitespace, Step::first(r"^(.*?)\s*$"), Step::TakeFirst],
    )]);
    let mut task =
        shaped(task, subject, LETTERED, "{{['A', 'B', 'C', 'D'][answer]}}").described(choice_questions(subject));
    task.exact_match = ExactMatch::loose();
    task.boxed()
}

fn continuation(subject: &'static str) -> Box<dyn Task> {
    let name = format!("mmlu_{subject}_continuation");
    let task = Definition::multiple_choice(&name, 1.0, move |data_dir, with_fewshot| {
        load(data_dir, with_fewshot, subject, |row| {
            let (choices, gold) = data::choices(&row)?;
            Ok(Document {
                text: format!("Question: {}\nAnswer:", data::string(&row, "question")?.trim()),
                target: Target::Choice(gold),
                shot_answer: choices[gold].clone(),
                choices,
                row,
            })
        })
    });
    shaped(task, subject, "Question: {{question.strip()}}\nAnswer:", "{{answer}}")
        .described(format!("The following are questions (with answers) about {}.\n\n", spoken(subject)))
        .boxed()
}

/// Question and choices by letter, and the index of the right one.
pub fn lettered(row: &Value) -> Result<(String, usize)> {
    let (choices, gold) = data::choices(row)?;
    if choices.len() != 4 {
        bail!("expected four `choices`, found {}", choices.len());
    }
    let mut text = data::string(row, "question")?.trim().to_owned();
    for (index, choice) in choices.iter().enumerate() {
        text += &format!("\n{}. {choice}", letter(index));
    }
    Ok((text + "\nAnswer:", gold))
}

/// The rows of one subject.
pub fn load(
    data_dir: &Path,
    with_fewshot: bool,
    subject: &str,
    document: impl Fn(Value) -> Result<Document>,
) -> Result<Split> {
    let read = |name: &str| -> Result<Vec<Document>> {
        let rows = data::shared_rows(data_dir, name)?;
        let rows = rows.iter().filter(|(_, row)| row["subject"] == subject).cloned().collect();
        data::documents(rows, name, &document)
    };
    let split =
        Split { documents: read(FILES[0])?, fewshot_pool: if with_fewshot { read(FILES[1])? } else { Vec::new() } };
    if split.documents.is_empty() {
        bail!("`{}` has no row of subject `{subject}`", FILES[0]);
    }
    Ok(split)
}
