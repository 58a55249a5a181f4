//! Answer filters: how lm-evaluation-harness finds an answer in a response, step by step.
//!
//! Patterns are Python's. Rust's `regex` knows no look-around, and Python's `$` also stands before a final newline, so
//! they are translated and run by `fancy-regex`.

use std::{collections::HashSet, sync::Arc};

use anyhow::{Context as _, Result};
use fancy_regex::Regex;

use crate::evaluate::task::Document;

/// What a filter gives that finds nothing.
pub const INVALID: &str = "[invalid]";

/// A named pipeline; it gives a metric column of its own.
#[derive(Clone)]
pub struct Filter {
    /// Its name.
    pub name: &'static str,
    /// What is done to the responses of a document, in order.
    pub steps: Vec<Step>,
}

/// One step of a filter.
#[derive(Clone)]
pub enum Step {
    /// Takes a match of a pattern.
    Regex(Extract),
    /// Strips white space.
    RemoveWhitespace,
    /// Makes letters small.
    Lowercase,
    /// Makes letters capital.
    Uppercase,
    /// Keeps the first response.
    TakeFirst,
    /// Keeps the first so many.
    TakeFirstK(usize),
    /// Keeps the most frequent; the earliest of equals.
    MajorityVote,
    /// Whatever else a task does.
    Custom(fn(&str, &Document) -> String),
}

/// A pattern and which of its matches counts.
#[derive(Debug, Clone)]
pub struct Extract {
    /// The pattern.
    pub regex: Arc<Regex>,
    /// Index of the match; negative ones count from the last.
    pub group_select: i64,
    /// What stands for no match.
    pub fallback: String,
}

impl Extract {
    /// The match in a text, as Python's `findall` and the harness's choice among its groups give it.
    pub fn find(&self, text: &str) -> String {
        self.find_match(text).unwrap_or_else(|| self.fallback.clone())
    }

    /// The same, `None` where nothing is found.
    pub fn find_match(&self, text: &str) -> Option<String> {
        let matches = find_all(&self.regex, text);
        let index = match usize::try_from(self.group_select) {
            Ok(index) => index,
            Err(_) => matches.len().checked_sub(self.group_select.unsigned_abs() as usize)?,
        };
        matches.get(index)?.as_ref().map(|found| found.trim().to_owned())
    }
}

/// All matches as `findall` lists them: the whole match without groups, the group of one group, else the first of its
/// groups that is not empty (`None` where all are).
fn find_all(regex: &Regex, text: &str) -> Vec<Option<String>> {
    // A pattern that gives up on a text, after too much backtracking, has not matched.
    let found = regex.captures_iter(text).map_while(Result::ok);
    found
        .map(|captures| match captures.len() {
            1 | 2 => Some(captures.get(captures.len() - 1).map_or("", |group| group.as_str()).to_owned()),
            _ => captures
                .iter()
                .skip(1)
                .flatten()
                .map(|group| group.as_str())
                .find(|it| !it.is_empty())
                .map(str::to_owned),
        })
        .collect()
}

impl Step {
    /// The first match of a constant pattern.
    pub fn first(pattern: &str) -> Self {
        Self::select(pattern, 0)
    }

    /// The last match of a constant pattern.
    pub fn last(pattern: &str) -> Self {
        Self::select(pattern, -1)
    }

    fn select(pattern: &str, group_select: i64) -> Self {
        let regex = Arc::new(constant(pattern));
        Self::Regex(Extract { regex, group_select, fallback: INVALID.to_owned() })
    }

    fn apply(&self, mut responses: Vec<String>, document: &Document) -> Vec<String> {
        let map = |responses: Vec<String>, change: &dyn Fn(&str) -> String| -> Vec<String> {
            responses.iter().map(|response| change(response)).collect()
        };
        match self {
            Step::Regex(extract) => map(responses, &|response| extract.find(response)),
            Step::RemoveWhitespace => map(responses, &|response| response.trim().to_owned()),
            Step::Lowercase => map(responses, &str::to_lowercase),
            Step::Uppercase => map(responses, &str::to_uppercase),
            Step::Custom(change) => map(responses, &|response| change(response, document)),
            Step::TakeFirst => {
                responses.truncate(1);
                responses
            }
            Step::TakeFirstK(k) => {
                responses.truncate(*k);
                responses
            }
            Step::MajorityVote => most_frequent(&responses).into_iter().collect(),
        }
    }
}

fn most_frequent(responses: &[String]) -> Option<String> {
    let mut best: Option<(&String, usize)> = None;
    let mut seen = HashSet::new();
    for response in responses {
        if seen.insert(response) {
            let count = responses.iter().filter(|other| *other == response).count();
            if best.is_none_or(|(_, most)| count > most) {
                best = Some((response, count));
            }
        }
    }
    best.map(|(response, _)| response.clone())
}

impl Filter {
    /// A filter of a name.
    pub fn new(name: &'static str, steps: Vec<Step>) -> Self {
        Self { name, steps }
    }

    /// The pipeline of a task that names none: the first response as it is.
    pub fn none() -> Self {
        Self::new("none", vec![Step::TakeFirst])
    }

    /// What the pipeline leaves of the responses to a document.
    pub fn apply(&self, responses: &[String], document: &Document) -> Vec<String> {
        self.steps.iter().fold(responses.to_vec(), |responses, step| step.apply(responses, document))
    }
}

/// Compiles a constant of this program.
pub fn constant(pattern: &str) -> Regex {
    python_regex(pattern).expect("the pattern is a constant and the tests compile it")
}

/// Compiles a pattern of Python's `re`.
///
/// **Errors**: the pattern is not one.
pub fn python_regex(pattern: &str) -> Result<Regex> {
    Regex::new(&translated(pattern)).with_context(|| format!("`{pattern}` is no regular expression"))
}

/// `$` becomes "before a final newline or at the end", `\Z` the end, and `[` inside a class the character.
fn translated(pattern: &str) -> String {
    let multi_line = pattern.starts_with("(?") && pattern[..pattern.find(')').unwrap_or(0)].contains('m');
    let mut out = String::with_capacity(pattern.len());
    let mut in_class = false;
    let mut characters = pattern.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' => match characters.next() {
                Some('Z') if !in_class => out.push_str("\\z"),
                Some(escaped) => out.extend(['\\', escaped]),
                None => out.push('\\'),
            },
            '[' if in_class => out.push_str("\\["),
            '&' | '~' if in_class => out.extend(['\\', character]),
            '[' => {
                in_class = true;
                out.push('[');
                // A bracket that comes first, or first after `^`, is a member.
                out.extend(characters.next_if_eq(&'^'));
                if characters.next_if_eq(&']').is_some() {
                    out.push_str("\\]");
                }
            }
            ']' => {
                in_class = false;
                out.push(']');
            }
            '$' if !in_class && !multi_line => out.push_str("(?=\\n?\\z)"),
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extract(pattern: &str, group_select: i64, text: &str) -> String {
        Extract { regex: Arc::new(constant(pattern)), group_select, fallback: INVALID.into() }.find(text)
    }

    #[test]
    fn a_match_is_chosen_among_findalls() {
        assert_eq!(extract(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1, "7 of 18 and 5"), "5");
        assert_eq!(extract(r"#### (\-?[0-9\.\,]+)", 0, "#### 17 #### 18"), "17");
        assert_eq!(extract(r"(?<=the answer is )(.*)(?=.)", 0, "So the answer is False.\nthe answer is 1."), "False");
        assert_eq!(extract(r"\d+", 1, "1 2"), "2");
        assert_eq!(extract(r"\d+", 2, "1 2"), INVALID);
        assert_eq!(extract(r"\d+", -3, "1 2"), INVALID);
        assert_eq!(extract(r"^(.*?)(?=\n|$)", 0, "\nB"), "");
        assert_eq!(extract(r"(a)|(b*)", 0, "cc"), INVALID);
    }

    #[test]
    fn pythons_dollar_stands_before_a_final_newline_and_a_bracket_in_a_class_is_a_character() {
        assert_eq!(extract(r"(b)$", 0, "ab\n"), "b");
        assert_eq!(extract(r"(b)$", 0, "ab\n\n"), INVALID);
        assert_eq!(extract(r"([[(]+)", 0, "x[(["), "[([");
        assert_eq!(extract(r"([$]+)", 0, "x$$"), "$$");
        assert_eq!(extract(r"[]a]+", 0, "xa]"), "a]");
    }

    #[test]
    fn a_vote_keeps_the_earliest_of_equals_and_steps_follow_one_another() {
        let document = Document {
            row: serde_json::Value::Null,
            text: String::new(),
            target: crate::evaluate::task::Target::Choice(0),
            shot_answer: String::new(),
            choices: Vec::new(),
        };
        let responses: Vec<String> = ["b 2", "a 1", "a 1", "b 2", "c 3"].map(str::to_owned).to_vec();
        let vote = Filter::new("maj", vec![Step::first(r"(\d)"), Step::MajorityVote, Step::TakeFirst]);
        assert_eq!(vote.apply(&responses, &document), ["2"]);
        let first = Filter::new("first", vec![Step::TakeFirstK(2), Step::Uppercase]);
        assert_eq!(first.apply(&responses, &document), ["B 2", "A 1"]);
    }
}
