//! MATH: competition problems in seven subjects, and the 500 of them that MATH-500 keeps.
//!
//! An answer is right when it equals the boxed one after both were brought to one form, string by string.
//!
//! **Source**: Hendrycks et al. 2021, arXiv 2103.03874; lm-evaluation-harness's `hendrycks_math`.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    Group,
    definition::{Definition, Scoring, greedy, leak},
};
use crate::evaluate::{
    data,
    task::{Document, Measure, Scores, Split, Target, Task},
};

/// The documents of all subjects.
const TEST: &str = "math/test.jsonl";
/// Where examples come from.
const TRAIN: &str = "math/train.jsonl";
/// MATH-500.
const MATH_500: &str = "math/math500_test.jsonl";

/// Subjects as tasks name them and as rows name them.
pub const SUBJECTS: [(&str, &str); 7] = [
    ("algebra", "Algebra"),
    ("counting_and_prob", "Counting & Probability"),
    ("geometry", "Geometry"),
    ("intermediate_algebra", "Intermediate Algebra"),
    ("num_theory", "Number Theory"),
    ("prealgebra", "Prealgebra"),
    ("precalc", "Precalculus"),
];

/// The tasks of this file.
pub fn tasks() -> Vec<Box<dyn Task>> {
    let mut tasks: Vec<Box<dyn Task>> = Vec::new();
    for (name, subject) in SUBJECTS {
        let task = definition(&format!("hendrycks_math_{name}"), &[TEST, TRAIN], move |data_dir, with_fewshot| {
            let read = |file: &str| rows_of_subject(data_dir, file, Some(subject), document);
            let fewshot_pool = if with_fewshot { read(TRAIN)? } else { Vec::new() };
            Ok(Split { documents: read(TEST)?, fewshot_pool })
        });
        tasks.push(task.boxed());
    }
    let mut task = definition("hendrycks_math500", &[MATH_500], |data_dir, _| {
        Ok(Split { documents: rows_of_subject(data_dir, MATH_500, None, document)?, fewshot_pool: Vec::new() })
    });
    task.pool_is_test = true;
    tasks.push(task.boxed());
    tasks
}

/// The groups of this file.
pub fn groups() -> Vec<Group> {
    let members = SUBJECTS.iter().map(|(name, _)| leak(format!("hendrycks_math_{name}"))).collect();
    vec![Group::new("hendrycks_math", 1.0, members, "exact_match", "none")]
}

fn definition(
    name: &str,
    files: &'static [&'static str],
    load: impl Fn(&Path, bool) -> Result<Split> + Send + Sync + 'static,
) -> Definition {
    Definition::generative(name, 1.0, greedy(&["Problem:"]), load)
        .documented("Problem: {{problem}}\nAnswer:", "{{answer}}", files)
        .scored_by(&["exact_match"], Scoring { answers: Some(equal_after_stripping), ..Scoring::default() })
}

/// Documents of the test files of MATH, of one subject or all.
pub fn rows_of_subject(
    data_dir: &Path,
    file: &str,
    subject: Option<&str>,
    document: fn(Value) -> Result<Document>,
) -> Result<Vec<Document>> {
    let rows = data::shared_rows(data_dir, file)?;
    let is_wanted = |row: &Value| subject.is_none_or(|subject| row["type"] == subject);
    data::documents(rows.iter().filter(|(_, row)| is_wanted(row)).cloned().collect(), file, document)
}

/// The documents of all subjects, or of MATH-500, for other forms of the benchmark.
pub fn documents(
    data_dir: &Path,
    subject: Option<&str>,
    document: fn(Value) -> Result<Document>,
) -> Result<Vec<Document>> {
    rows_of_subject(data_dir, if subject.is_some() { TEST } else { MATH_500 }, subject, document)
}

fn document(row: Value) -> Result<Document> {
    let answer = boxed_answer(&data::string(&row, "solution")?)?;
    Ok(Document {
        text: format!("Problem: {}\nAnswer:", data::string(&row, "problem")?),
        target: Target::Text(answer.clone()),
        shot_answer: answer,
        choices: Vec::new(),
        row,
    })
}

/// The content of the last box of a solution.
///
/// **Errors**: there is none.
pub fn boxed_answer(solution: &str) -> Result<String> {
    let boxed = last_boxed(solution, true).context("the solution has no \\boxed answer")?;
    if let Some(answer) = boxed.strip_prefix("\\boxed ") {
        return Ok(answer.to_owned());
    }
    let inner = boxed.strip_prefix("\\boxed{").and_then(|rest| rest.strip_suffix('}'));
    Ok(inner.with_context(|| format!("`{boxed}` is no \\boxed{{…}}"))?.to_owned())
}

/// The last `\boxed{…}` of a text, else the last `\fbox{…}`. With `spaced`, "\boxed 5" up to the next dollar sign counts.
pub fn last_boxed(text: &str, spaced: bool) -> Option<String> {
    if spaced && let Some((_, rest)) = text.rsplit_once("\\boxed ") {
        return Some(format!("\\boxed {}", rest.split('$').next().unwrap_or_default()));
    }
    let start = text.rfind("\\boxed").or_else(|| text.rfind("\\fbox"))?;
    let mut depth = 0i32;
    for (offset, character) in text[start..].char_indices() {
        match character {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(text[start..=start + offset].to_owned());
                }
            }
            _ => {}
        }
    }
    None
}

fn equal_after_stripping(document: &Document, answers: &[String]) -> Result<Scores> {
    let response = answers.first().map_or("", String::as_str);
    let answer = match (response.find('$'), response.rfind('$')) {
        (Some(first), Some(last)) if first < last => &response[first + 1..last],
        _ => response,
    };
    Ok(vec![("exact_match", Measure::of(is_equiv(answer, &document.target.to_string())))])
}

/// Whether two answers have the same stripped form; where either has none, whether they are the same.
pub fn is_equiv(first: &str, second: &str) -> bool {
    match (strip_string(first), strip_string(second)) {
        (Ok(first), Ok(second)) => first == second,
        _ => first == second,
    }
}

/// Brings an answer to the form in which answers are compared.
///
/// **Errors**: the answer is of a form that the harness stumbles over; then raw answers are compared.
pub fn strip_string(text: &str) -> Result<String> {
    let mut text = text.replace('\n', "").replace("\\!", "").replace("\\\\", "\\");
    for (from, to) in [
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
        ("\\right", ""),
        ("^{\\circ}", ""),
        ("^\\circ", ""),
        ("\\$", ""),
    ] {
        text = text.replace(from, to);
    }
    // "\text{ " opens a unit.
    let parts: Vec<&str> = text.split("\\text{ ").collect();
    ensure!(parts.len() <= 2, "two units");
    text = parts[0].replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.");
    if text.is_empty() {
        return Ok(text);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    let sides: Vec<&str> = text.split('=').collect();
    if let [left, right] = sides[..]
        && left.chars().count() <= 2
    {
        text = right.to_owned();
    }
    text = brace_roots(&text)?.replace(' ', "");
    text = brace_fractions(&text)?;
    if text == "0.5" {
        text = "\\frac{1}{2}".to_owned();
    }
    slash_to_fraction(&text)
}

/// `\sqrt3` to `\sqrt{3}`.
fn brace_roots(text: &str) -> Result<String> {
    let mut parts = text.split("\\sqrt");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let first = part.chars().next().context("a root of nothing")?;
        if first == '{' {
            out += &format!("\\sqrt{part}");
        } else {
            out += &format!("\\sqrt{{{first}}}{}", &part[first.len_utf8()..]);
        }
    }
    Ok(out)
}

/// `\frac12` and `\frac1{72}` to braces.
fn brace_fractions(text: &str) -> Result<String> {
    let mut parts = text.split("\\frac");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out += "\\frac";
        let mut characters = part.chars();
        let first = characters.next().context("a fraction of nothing")?;
        if first == '{' {
            out += part;
            continue;
        }
        let Some(second) = characters.next() else { return Ok(text.to_owned()) };
        if second == '{' {
            out += &format!("{{{first}}}{{{}", characters.as_str());
        } else {
            out += &format!("{{{first}}}{{{second}}}{}", characters.as_str());
        }
    }
    Ok(out)
}

/// `3/4` to `\frac{3}{4}`, where both are whole numbers as Python writes them.
fn slash_to_fraction(text: &str) -> Result<String> {
    let parts: Vec<&str> = text.split('/').collect();
    let [above, below] = parts[..] else { return Ok(text.to_owned()) };
    let is_int = |text: &str| {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        !digits.is_empty() && digits.chars().all(|it| it.is_ascii_digit())
    };
    let is_canonical = |text: &str| {
        let digits = text.strip_prefix('-').unwrap_or(text);
        digits == "0" && !text.starts_with('-') || digits.starts_with(|it: char| ('1'..='9').contains(&it))
    };
    if !is_int(above) || !is_int(below) {
        bail!("`{text}` is no fraction of whole numbers");
    }
    if is_canonical(above) && is_canonical(below) {
        return Ok(format!("\\frac{{{above}}}{{{below}}}"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_box_counts_with_its_inner_braces() -> Result<()> {
        assert_eq!(boxed_answer(r"\boxed{1} so \boxed{\frac{1}{2}}.")?, r"\frac{1}{2}");
        assert_eq!(boxed_answer(r"thus $\boxed 5$ and")?, "5");
        assert!(boxed_answer("none").is_err());
        assert!(boxed_answer(r"\boxed{open").is_err());
        Ok(())
    }

    #[test]
    fn forms_of_one_answer_are_equal_and_others_are_not() {
        assert!(is_equiv(r"\dfrac34", "3/4"));
        assert!(is_equiv("x = .5", r"\frac{1}{2}"));
        assert!(is_equiv(r"5\text{ cm}", "5"));
        assert!(is_equiv("a/b", "a/b"));
        assert!(!is_equiv("a/b", r"\frac{a}{b}"));
        assert!(!is_equiv("02/3", r"\frac{2}{3}"));
    }
}
