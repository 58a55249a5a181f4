//! How the zero-shot forms of BIG-Bench Hard find an answer in a free text, task by task.
//!
//! **Source**: the filters `flexible-extract` and `strict-match` of lm-evaluation-harness's `bbh_cot_zeroshot`.

use std::{collections::HashSet, sync::LazyLock};

use fancy_regex::Regex;

use super::filters::{Extract, Filter, INVALID, Step, constant};
use crate::evaluate::task::Document;

/// Any of the sentences that state an answer, the rest of the line less its last character.
const STATED: &str = "((?<=The answer is )(.*)(?=.)|(?<=the answer is )(.*)(?=.)|(?<=The answer: )(.*)(?=.)\
                      |(?<=The final answer: )(.*)(?=.))";

/// Both filters of a task; the flexible one is the headline.
pub fn filters(name: &str) -> Vec<Filter> {
    let flexible = match name {
        "boolean_expressions" => Step::last(r"\b(True|False)\b"),
        "causal_judgement" | "navigate" => Step::last(r"\b(Yes|No|yes|no)\b"),
        "formal_fallacies" => Step::last(r"\b(valid|invalid)\b"),
        "dyck_languages" => Step::last(r#"(?<= )([" \[\(<{}>\)\]]+)|([" \[\(<{}>\)\]]+)"#),
        "multistep_arithmetic_two" | "object_counting" => Step::Custom(number),
        "sports_understanding" => Step::Custom(plausible),
        "web_of_lies" => Step::Custom(truthful),
        "word_sorting" => Step::Custom(sorted_words),
        _ => Step::Custom(option),
    };
    vec![
        Filter::new("flexible-extract", vec![flexible, Step::TakeFirst]),
        Filter::new("strict-match", vec![Step::first(STATED), Step::TakeFirst]),
    ]
}

fn last(regex: &Regex, text: &str) -> Option<String> {
    let extract = Extract { regex: std::sync::Arc::new(regex.clone()), group_select: -1, fallback: String::new() };
    extract.find_match(text).filter(|found| !found.is_empty())
}

static DIGITS: LazyLock<Regex> = LazyLock::new(|| constant("([-0-9]+)"));

/// The last number in digits, else the last one in words.
fn number(response: &str, _document: &Document) -> String {
    last(&DIGITS, response).or_else(|| number_in_words(response)).unwrap_or_else(|| INVALID.to_owned())
}

const WORDS: [(&str, i64); 28] = [
    ("zero", 0),
    ("one", 1),
    ("two", 2),
    ("three", 3),
    ("four", 4),
    ("five", 5),
    ("six", 6),
    ("seven", 7),
    ("eight", 8),
    ("nine", 9),
    ("ten", 10),
    ("eleven", 11),
    ("twelve", 12),
    ("thirteen", 13),
    ("fourteen", 14),
    ("fifteen", 15),
    ("sixteen", 16),
    ("seventeen", 17),
    ("eighteen", 18),
    ("nineteen", 19),
    ("twenty", 20),
    ("thirty", 30),
    ("forty", 40),
    ("fifty", 50),
    ("sixty", 60),
    ("seventy", 70),
    ("eighty", 80),
    ("ninety", 90),
];

/// The last run of number words: "one hundred and twenty-three".
fn number_in_words(response: &str) -> Option<String> {
    let lower = response.to_lowercase();
    let words = lower.split(|character: char| !character.is_alphabetic()).filter(|word| !word.is_empty());
    let (mut last, mut run): (Option<i64>, Option<(i64, i64)>) = (None, None);
    for word in words {
        let (total, current) = run.unwrap_or((0, 0));
        run = match word {
            "hundred" => Some((total, current.max(1) * 100)),
            "thousand" => Some((total + current.max(1) * 1000, 0)),
            "million" => Some((total + current.max(1) * 1_000_000, 0)),
            "and" if run.is_some() => run,
            _ => WORDS.iter().find(|(name, _)| *name == word).map(|(_, value)| (total, current + value)),
        };
        last = run.map(|(total, current)| total + current).or(last);
    }
    last.map(|value| value.to_string())
}

/// The value of the last phrase that is found; the first list that holds it counts.
fn mapped(response: &str, lists: &[(&LazyLock<Regex>, &str)], any: &Regex) -> String {
    let found = last(any, &response.to_lowercase());
    let value = found.and_then(|found| lists.iter().find(|(regex, _)| last(regex, &found).is_some()));
    value.map_or(INVALID, |(_, value)| value).to_owned()
}

static NOT_PLAUSIBLE: LazyLock<Regex> = LazyLock::new(|| constant(r"\b(no|not plausible)\b"));
static PLAUSIBLE: LazyLock<Regex> = LazyLock::new(|| constant(r"\b(yes|plausible)\b"));
static ANY_PLAUSIBLE: LazyLock<Regex> = LazyLock::new(|| constant(r"\b(no|not plausible)\b|\b(yes|plausible)\b"));

fn plausible(response: &str, _document: &Document) -> String {
    mapped(response, &[(&NOT_PLAUSIBLE, "no"), (&PLAUSIBLE, "yes")], &ANY_PLAUSIBLE)
}

static LIES: LazyLock<Regex> = LazyLock::new(|| constant(r"\b(no|does not tell the truth|is not telling the truth)\b"));
static TRUE: LazyLock<Regex> = LazyLock::new(|| constant(r"\b(yes|tells the truth|is telling the truth)\b"));
static ANY_TRUTH: LazyLock<Regex> = LazyLock::new(|| {
    constant(
        r"\b(no|does not tell the truth|is not telling the truth)\b|\b(yes|tells the truth|is telling the truth)\b",
    )
});

fn truthful(response: &str, _document: &Document) -> String {
    mapped(response, &[(&LIES, "no"), (&TRUE, "yes")], &ANY_TRUTH)
}

/// The words of the list in the order in which each is named last.
fn sorted_words(response: &str, document: &Document) -> String {
    let input = document.row["input"].as_str().unwrap_or_default();
    let list = input.split("List:").nth(1).unwrap_or_default();
    let words: Vec<String> =
        list.split_whitespace().map(|word| format!(r"\b{}\b", fancy_regex::escape(word))).collect();
    let Ok(regex) = Regex::new(&words.join("|")) else { return String::new() };
    let found: Vec<&str> = regex.find_iter(response).map_while(Result::ok).map(|found| found.as_str()).collect();
    let mut seen = HashSet::new();
    let mut sorted: Vec<&str> = found.into_iter().rev().filter(|word| seen.insert(*word)).collect();
    sorted.reverse();
    sorted.join(" ")
}

static OPTION: LazyLock<Regex> = LazyLock::new(|| constant(r"(\([A-Z]\))"));
static OPTION_TEXT: LazyLock<Regex> = LazyLock::new(|| constant(r"\([A-Z]\)([^\n^(]*)"));

/// The last letter in brackets, else the option whose text is named last, else the last letter after a colon.
fn option(response: &str, document: &Document) -> String {
    if let Some(found) = last(&OPTION, response) {
        return found;
    }
    let input = document.row["input"].as_str().unwrap_or_default();
    let texts: Vec<String> = OPTION_TEXT
        .captures_iter(input)
        .map_while(Result::ok)
        .map(|found| unmarked(found.get(1).map_or("", |text| text.as_str()).trim()))
        .collect();
    if texts.is_empty() {
        return INVALID.to_owned();
    }
    let letter = |index: usize| format!("({})", super::arc::letter(index));
    let any: Vec<_> = texts.iter().map(|text| fancy_regex::escape(text)).collect();
    let named = Regex::new(&any.join("|")).ok().and_then(|any| last(&any, &unmarked(response)));
    // Of options with the same text the last is meant; a text that is only part of an option is given as it is.
    if let Some(named) = named {
        return texts.iter().rposition(|text| *text == named).map_or(named, letter);
    }
    let letters: Vec<_> = (0..texts.len()).map(super::arc::letter).collect();
    let after_colon = Regex::new(&format!(r":[\s]*({})", letters.join("|"))).ok();
    let found = after_colon.and_then(|regex| last(&regex, response));
    found.map_or_else(|| INVALID.to_owned(), |found| format!("({found})"))
}

/// Small letters, without punctuation.
fn unmarked(text: &str) -> String {
    static PUNCTUATION: LazyLock<Regex> = LazyLock::new(|| constant(r"\p{P}"));
    PUNCTUATION.replace_all(&text.to_lowercase(), "").into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::task::Target;

    fn asked(input: &str) -> Document {
        Document {
            row: serde_json::json!({"input": input}),
            text: String::new(),
            target: Target::Text(String::new()),
            shot_answer: String::new(),
            choices: Vec::new(),
        }
    }

    fn found(name: &str, input: &str, response: &str) -> String {
        filters(name)[0].apply(&[response.to_owned()], &asked(input)).concat()
    }

    #[test]
    fn an_option_is_found_by_letter_by_text_or_after_a_colon() {
        let input = "Which?\nOptions:\n(A) red car\n(B) the blue one";
        assert_eq!(found("snarks", input, "Not (A), so (B)."), "(B)");
        assert_eq!(found("snarks", input, "I think the Red car!"), "(A)");
        assert_eq!(found("snarks", input, "Answer: B"), "(B)");
        assert_eq!(found("snarks", input, "who knows"), INVALID);
    }

    #[test]
    fn numbers_words_and_verdicts_are_the_last_ones() {
        assert_eq!(found("object_counting", "", "2 and 3 make 5."), "5");
        assert_eq!(found("object_counting", "", "there are twenty one of one hundred and three"), "103");
        // A hyphen alone is a match of the harness's pattern too.
        assert_eq!(found("object_counting", "", "twenty-one"), "-");
        assert_eq!(found("sports_understanding", "", "yes? It is not plausible."), "no");
        assert_eq!(found("web_of_lies", "", "Ann lies; Bob tells the truth"), "yes");
        assert_eq!(found("word_sorting", "Sort. List: bee ant", "bee ant, so: ant bee"), "ant bee");
        assert_eq!(found("dyck_languages", "", "So ) ]"), ") ]");
    }

    #[test]
    fn a_stated_answer_loses_its_last_character() {
        let strict = &filters("navigate")[1];
        assert_eq!(strict.apply(&["The answer is Yes.".to_owned()], &asked("")), ["Yes"]);
    }
}
