//! MATH with four worked examples, answered by "Final Answer: The final answer is $…$. I hope it is correct."
//!
//! `exact_match` takes the stated answer, normalises it and asks whether it is worth the same as the reference;
//! `math_verify` looks for an answer anywhere. The harness asks a computer algebra system (sympy, math-verify); here
//! [`super::latex`] reads the same grammar and compares values, and says where it differs.
//!
//! **Source**: Lewkowycz et al. 2022, arXiv 2206.14858, appendix D; lm-evaluation-harness's `minerva_math`, version 3.

use std::{path::Path, sync::LazyLock};

use anyhow::{Context as _, Result};
use fancy_regex::Regex;
use serde_json::Value;

use super::{
    definition::{Definition, Scoring, greedy},
    filters::constant,
    latex, math,
};
use crate::evaluate::{
    data,
    task::{Document, Measure, Sampler, Scores, Split, Target, Task},
};

const EXAMPLES: &str = "fewshot/minerva_math_4shot.json";

/// The tasks of this file.
pub fn tasks() -> Vec<Box<dyn Task>> {
    let subjects = math::SUBJECTS.map(|(name, subject)| definition(&format!("minerva_math_{name}"), Some(subject)));
    subjects.into_iter().chain([definition("minerva_math500", None)]).collect()
}

fn definition(name: &str, subject: Option<&'static str>) -> Box<dyn Task> {
    let files: &'static [&'static str] =
        if subject.is_some() { &["math/test.jsonl", EXAMPLES] } else { &["math/math500_test.jsonl", EXAMPLES] };
    let load = move |data_dir: &Path, with_fewshot: bool| {
        let fewshot_pool = if with_fewshot { examples(data_dir)? } else { Vec::new() };
        Ok(Split { documents: math::documents(data_dir, subject, document)?, fewshot_pool })
    };
    Definition::generative(name, 3.0, greedy(&["Problem:"]), load)
        .scored_by(&["exact_match", "math_verify"], Scoring { answers: Some(score), ..Scoring::default() })
        .documented("Problem:\n{{problem}}\n\nSolution:", "{{answer if few_shot is undefined else solution}}", files)
        .shots(4, Sampler::FirstN)
        .boxed()
}

fn asked(problem: &str) -> String {
    format!("Problem:\n{problem}\n\nSolution:")
}

fn document(row: Value) -> Result<Document> {
    let solution = data::string(&row, "solution")?;
    Ok(Document {
        text: asked(&data::string(&row, "problem")?),
        target: Target::Text(normalise(&math::boxed_answer(&solution)?)),
        shot_answer: solution,
        choices: Vec::new(),
        row,
    })
}

fn examples(data_dir: &Path) -> Result<Vec<Document>> {
    let whole = data::read_json(data_dir, EXAMPLES)?;
    let rows = whole.as_array().with_context(|| format!("`{EXAMPLES}`: expected a list"))?;
    rows.iter()
        .map(|row| {
            let solution = data::string(row, "solution")?;
            Ok(Document {
                text: asked(&data::string(row, "problem")?),
                target: Target::Text(solution.clone()),
                shot_answer: solution,
                choices: Vec::new(),
                row: row.clone(),
            })
        })
        .collect()
}

fn score(document: &Document, answers: &[String]) -> Result<Scores> {
    let response = answers.first().map_or("", String::as_str);
    let answer = normalise(&stated_answer(response));
    let solution = document.row["solution"].as_str().unwrap_or_default();
    Ok(vec![
        ("exact_match", Measure::of(latex::is_equivalent(&answer, &document.target.to_string()))),
        ("math_verify", Measure::of(latex::verify(solution, response))),
    ])
}

static STATED: LazyLock<Regex> =
    LazyLock::new(|| constant(r"Final Answer: The final answer is(.*?). I hope it is correct."));

/// The answer that a solution states at its end. The closing sentence is put after every solution, so one that states
/// an answer and stops there still needs the space before it.
pub fn stated_answer(text: &str) -> String {
    let text = format!("{text}I hope it is correct.");
    let found = STATED.captures(&text).ok().flatten();
    let found = found.and_then(|found| Some(found.get(1)?.as_str().trim().to_owned()));
    found.unwrap_or_else(|| "[invalidanswer]".to_owned())
}

const SUBSTITUTIONS: [(&str, &str); 10] = [
    ("an ", ""),
    ("a ", ""),
    (".$", "$"),
    ("\\$", ""),
    ("\\ ", ""),
    (" ", ""),
    ("mbox", "text"),
    (",\\text{and}", ","),
    ("\\text{and}", ","),
    ("\\text{m}", "\\text{}"),
];

const REMOVED: [&str; 40] = [
    "square",
    "ways",
    "integers",
    "dollars",
    "mph",
    "inches",
    "ft",
    "hours",
    "km",
    "units",
    "\\ldots",
    "sue",
    "points",
    "feet",
    "minutes",
    "digits",
    "cents",
    "degrees",
    "cm",
    "gm",
    "pounds",
    "meters",
    "meals",
    "edges",
    "students",
    "childrentickets",
    "multiples",
    "\\text{s}",
    "\\text{.}",
    "\\text{\ns}",
    "\\text{}^2",
    "\\text{}^3",
    "\\text{\n}",
    "\\text{}",
    "\\mathrm{th}",
    "^\\circ",
    "^{\\circ}",
    "\\;",
    ",\\!",
    "{,}",
];

/// What is unwrapped or put in braces, in order.
static REWRITES: LazyLock<[(Regex, &str); 7]> = LazyLock::new(|| {
    [
        (constant(r"(.*?)(\$)(.*?)(\$)(.*)"), "$$${3}$$"),
        (constant(r"(\\text\{)(.*?)(\})"), "${2}"),
        (constant(r"(\\textbf\{)(.*?)(\})"), "${2}"),
        (constant(r"(\\overline\{)(.*?)(\})"), "${2}"),
        (constant(r"(\\boxed\{)(.*)(\})"), "${2}"),
        (constant(r"(frac)([^{])(.)"), "frac{${2}}{${3}}"),
        (constant(r"(sqrt)([^{])"), "sqrt{${2}}"),
    ]
});

/// An answer as it is compared.
pub fn normalise(answer: &str) -> String {
    let mut answer = answer.rsplit('=').next().unwrap_or_default().to_owned();
    for (from, to) in SUBSTITUTIONS {
        answer = answer.replace(from, to);
    }
    for removed in REMOVED.iter().chain(&["\"", "\\dots"]) {
        answer = answer.replace(removed, "");
    }
    for (pattern, replacement) in REWRITES.iter() {
        answer = pattern.replace_all(&answer, *replacement).into_owned();
    }
    answer = answer.replace('$', "");
    let digits = answer.replace(',', "");
    if !digits.is_empty() && digits.chars().all(|it| it.is_ascii_digit()) { digits } else { answer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_sentence_must_have_been_written() {
        assert_eq!(stated_answer("Final Answer: The final answer is $5$. I hope it is correct."), "$5$");
        assert_eq!(stated_answer("Final Answer: The final answer is $5$"), "[invalidanswer]");
    }

    #[test]
    fn units_words_and_wrappings_are_taken_off() {
        for (answer, normal) in [
            ("$x=5$", "5"),
            ("10,000", "10000"),
            ("5 \\text{ cm}", "5"),
            ("$\\frac12$", "\\frac{1}{2}"),
            ("\\left( 3, 4 \\right)", "\\le(3,4\\right)"),
        ] {
            assert_eq!(normalise(answer), normal, "{answer}");
        }
    }
}
