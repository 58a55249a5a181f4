//! BIG-Bench Hard: 27 tasks that models of 2022 found hard, with and without a chain of thought.
//!
//! **Source**: Suzgun et al. 2022, arXiv 2210.09261; lm-evaluation-harness's `bbh` (the same as `bbh_cot_fewshot`),
//! `bbh_fewshot` and `bbh_cot_zeroshot`.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    Group, bbh_answers,
    definition::{Definition, ExactMatch, greedy, leak, with},
    filters::{Filter, Step},
};
use crate::evaluate::{
    data,
    task::{Document, Sampler, Split, Target, Task},
};

/// The worked examples and descriptions of all tasks.
const EXAMPLES: &str = "fewshot/bbh_cot_3shot.json";

/// The tasks by name.
pub const NAMES: [&str; 27] = [
    "boolean_expressions",
    "causal_judgement",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "logical_deduction_three_objects",
    "movie_recommendation",
    "multistep_arithmetic_two",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "sports_understanding",
    "temporal_sequences",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "web_of_lies",
    "word_sorting",
];

/// A form of all 27 tasks.
#[derive(Clone, Copy)]
struct Form {
    prefix: &'static str,
    version: f64,
    group_version: f64,
    /// Stands after the question.
    lead: &'static str,
    /// Whether an example's answer is the chain of thought.
    thinks_aloud: bool,
    has_examples: bool,
}

const COT_FEWSHOT: Form = Form {
    prefix: "bbh_cot_fewshot",
    version: 4.0,
    group_version: 3.0,
    lead: " Let's think step by step.\n",
    thinks_aloud: true,
    has_examples: true,
};
const FEWSHOT: Form =
    Form { prefix: "bbh_fewshot", version: 2.0, group_version: 3.0, lead: "", thinks_aloud: false, has_examples: true };
const COT_ZEROSHOT: Form = Form {
    prefix: "bbh_cot_zeroshot",
    version: 3.0,
    group_version: 3.0,
    lead: " Let's think step by step.",
    thinks_aloud: true,
    has_examples: false,
};
/// The tasks of this file.
pub fn tasks() -> Vec<Box<dyn Task>> {
    let forms = [COT_FEWSHOT, FEWSHOT, COT_ZEROSHOT];
    forms.into_iter().flat_map(|form| NAMES.map(move |name| definition(form, name).boxed())).collect()
}

/// The groups of this file.
pub fn groups() -> Vec<Group> {
    let group = |name: &'static str, form: Form, filter| {
        let members = NAMES.iter().map(|task| leak(format!("{}_{task}", form.prefix))).collect();
        Group::new(name, form.group_version, members, "exact_match", filter)
    };
    vec![
        group("bbh", COT_FEWSHOT, "get-answer"),
        group("bbh_cot_fewshot", COT_FEWSHOT, "get-answer"),
        group("bbh_fewshot", FEWSHOT, "none"),
        group("bbh_cot_zeroshot", COT_ZEROSHOT, "flexible-extract"),
    ]
}

fn definition(form: Form, name: &'static str) -> Definition {
    let full_name = format!("{}_{name}", form.prefix);
    let file = leak(format!("bbh/bbh/{name}.json"));
    let files: &'static [&'static str] = Box::leak(Box::new([file, EXAMPLES]));
    let kwargs = match (form.has_examples, form.thinks_aloud) {
        (true, true) => with(greedy(&["</s>", "Q", "\n\n"]), "max_gen_toks", 1024),
        (true, false) => greedy(&["</s>", "Q", "\n\n"]),
        (false, _) => greedy(&["</s>", "Q:", "<|im_end|>"]),
    };
    let load = move |data_dir: &Path, with_fewshot: bool| load(data_dir, with_fewshot, form, name, file);
    let shots = if form.has_examples { 3 } else { 0 };
    let mut task = Definition::generative(&full_name, form.version, kwargs, load)
        .documented(leak(format!("Q: {{{{input}}}}\nA:{}", form.lead)), "{{target}}", files)
        .shots(shots, Sampler::FirstN);
    // The description comes with the examples' file, so every document brings its own.
    task.description = Some(Box::new(|document| document.row["description"].as_str().unwrap_or_default().to_owned()));
    if form.thinks_aloud && form.has_examples {
        task.target_delimiter = "".into();
        task = task.filtered(vec![Filter::new("get-answer", vec![stated_answer(), Step::TakeFirst])]);
    }
    if !form.has_examples {
        task.fixed_fewshot = true;
        task.exact_match = ExactMatch::without(&[r"\.$", ",", r"\\", "\n", "\""]);
        task = task.filtered(bbh_answers::filters(name));
    }
    task
}

/// The form with worked examples under another name and with other settings, for other protocols.
pub fn worked(full_name: &'static str, name: &'static str, kwargs: Value) -> Definition {
    let file = leak(format!("bbh/bbh/{name}.json"));
    let load = move |data_dir: &Path, with_fewshot: bool| load(data_dir, with_fewshot, COT_FEWSHOT, name, file);
    let mut task = definition(COT_FEWSHOT, name);
    let plain = Definition::generative(full_name, task.spec.version, kwargs, load);
    task.spec = crate::evaluate::task::TaskSpec { name: full_name, output_type: plain.spec.output_type, ..task.spec };
    task.generation_kwargs = plain.generation_kwargs;
    task
}

/// After "the answer is ", the rest of the line less its last character.
pub fn stated_answer() -> Step {
    Step::first(r"(?<=the answer is )(.*)(?=.)")
}

fn load(data_dir: &Path, with_fewshot: bool, form: Form, name: &str, file: &str) -> Result<Split> {
    let examples = data::read_json(data_dir, EXAMPLES)?;
    let examples = &examples[name];
    let description = data::string(examples, "description").with_context(|| format!("`{EXAMPLES}` `{name}`"))?;
    let whole = data::read_json(data_dir, file)?;
    let rows = whole["examples"].as_array().with_context(|| format!("`{file}`: expected a list under `examples`"))?;
    let numbered = |rows: &[Value]| rows.iter().cloned().enumerate().map(|(index, row)| (index + 1, row)).collect();
    let document = |mut row: Value| -> Result<Document> {
        let target = data::string(&row, "target")?;
        row["description"] = description.as_str().into();
        Ok(Document {
            text: format!("Q: {}\nA:{}", data::string(&row, "input")?, form.lead),
            shot_answer: if form.thinks_aloud { target.clone() } else { bare_answer(&target) },
            target: Target::Text(target),
            choices: Vec::new(),
            row,
        })
    };
    let documents = data::documents(numbered(rows), file, document)?;
    let mut fewshot_pool = Vec::new();
    if with_fewshot {
        let samples = examples["samples"].as_array().with_context(|| format!("`{EXAMPLES}` `{name}`: no samples"))?;
        fewshot_pool = data::documents(numbered(samples), EXAMPLES, document)?;
    }
    Ok(Split { documents, fewshot_pool })
}

/// The answer at the end of a chain of thought.
fn bare_answer(chain: &str) -> String {
    match chain.rsplit_once("the answer is ") {
        Some((_, answer)) => answer.trim_end().strip_suffix('.').unwrap_or(answer.trim_end()).to_owned(),
        None => chain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bare_answer_ends_the_chain_of_thought() {
        assert_eq!(bare_answer("It is. So the answer is (A)."), "(A)");
        assert_eq!(bare_answer("So the answer is ] ) )."), "] ) )");
    }
}
