//! Decontamination on planted cases: real benchmark items in every disguise, and innocent look-alikes of them.
//!
//! The shipped benchmarks are always planted; every file under `../shared/benchmarks`, where that folder is there, in
//! addition. The figures are those that `docs/pipeline.md` states.

use std::path::{Path, PathBuf};

use rand::Rng;
use rayon::prelude::*;

use super::{
    benchmarks::{self, BenchmarkText},
    built_in_benchmarks,
    decontaminate::{BenchmarkIndex, IndexBuilder},
    normalize::{Words, item_words},
    row_words::Conversation,
    whole_items::MIN_MASKED_WORDS,
};
use crate::{language_model::Message, seed};

/// Items planted of each file.
const SAMPLE: usize = 150;

/// A disguise: its name, least recall, fewest words of the texts that it is for, and what it does.
type Disguise = (&'static str, f64, usize, fn(&str, u64) -> String);

const DISGUISES: [Disguise; 13] = [
    ("verbatim", 0.99, 1, |text, _| text.to_owned()),
    ("upper case", 0.99, 1, |text, _| text.to_uppercase()),
    ("title case", 0.99, 1, |text, _| title_case(text)),
    ("other punctuation", 0.99, 1, |text, _| unicode_punctuation(text)),
    ("no punctuation", 0.99, 1, |text, _| without_punctuation(text)),
    ("markdown", 0.99, 1, |text, _| format!("> **{}**", text.replace('\n', "\n> "))),
    ("wrapped lines", 0.99, 1, |text, _| wrapped(text)),
    ("full width", 0.99, 1, |text, _| full_width(text)),
    ("embedded", 0.99, 4, |text, _| embedded(text)),
    ("embedded upper", 0.99, 4, |text, _| embedded(&text.to_uppercase())),
    ("embedded, no punctuation", 0.99, 4, |text, _| embedded(&without_punctuation(text))),
    ("other numbers", 0.9, 13, |text, seed| other_numbers(text, seed)),
    ("other numbers, embedded", 0.9, 13, |text, seed| embedded(&other_numbers(text, seed))),
];

/// An item as an evaluation shows it: with its choices, in another order than the file's.
fn rendered(text: &BenchmarkText) -> String {
    let choices = text.choices.iter().rev().zip('A'..).map(|(choice, letter)| format!("\n{letter}. {choice}"));
    text.question.clone() + &choices.collect::<String>()
}

fn embedded(text: &str) -> String {
    format!("Here is an exercise that my teacher gave me yesterday. {text}\nPlease explain every step of your answer.")
}

fn title_case(text: &str) -> String {
    let mut after_letter = false;
    let mut title = String::new();
    for char in text.chars() {
        if after_letter {
            title.extend(char.to_lowercase());
        } else {
            title.extend(char.to_uppercase());
        }
        after_letter = char.is_alphanumeric();
    }
    title
}

/// Typographers' marks for the typist's. Signs between numbers stay: they are arithmetic.
fn unicode_punctuation(text: &str) -> String {
    text.replace("'", "’")
        .replace(". ", " … ")
        .replace(", ", "；")
        .replace(" \"", " “")
        .replace('"', "”")
        .replace("? ", "？\u{a0}")
        .replace(": ", " — ")
        .replace(" ", "\u{2003}")
}

/// Sentence marks go; what belongs to a formula or a number stays.
fn without_punctuation(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let is_inner = |at: usize| {
        let digit = |at: Option<usize>| at.and_then(|at| chars.get(at)).is_some_and(|char| char.is_ascii_digit());
        digit(at.checked_sub(1)) && digit(Some(at + 1))
    };
    (0..chars.len())
        .filter(|&at| !matches!(chars[at], '.' | ',' | ';' | ':' | '!' | '?' | '"' | '“' | '”') || is_inner(at))
        .map(|at| chars[at])
        .collect()
}

fn wrapped(text: &str) -> String {
    let mut lines = String::new();
    for (at, word) in text.split(' ').enumerate() {
        lines.push_str(if at % 7 == 6 { "\r\n   " } else { " " });
        lines.push_str(word);
    }
    lines
}

fn full_width(text: &str) -> String {
    let wide = |char: char| char::from_u32(u32::from(char) + 0xfee0).unwrap_or(char);
    text.chars().map(|char| if char.is_ascii_alphanumeric() { wide(char) } else { char }).collect()
}

/// Every number gets another value, of up to one digit more.
fn other_numbers(text: &str, seed: u64) -> String {
    let mut random = seed::stream(seed, "planted", text);
    let (mut other, mut is_in_number) = (String::new(), false);
    for char in text.chars() {
        match (char.is_ascii_digit(), is_in_number) {
            (true, false) => other.push_str(&format!("{}", random.random_range(11..400))),
            (true, true) => {}
            (false, _) => other.push(char),
        }
        is_in_number = char.is_ascii_digit();
    }
    other
}

fn shared_folder() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/benchmarks");
    folder.is_dir().then_some(folder)
}

fn texts() -> Vec<BenchmarkText> {
    let mut texts = built_in_benchmarks();
    match shared_folder() {
        Some(folder) => {
            benchmarks::read_folder(&folder, &mut |text| {
                texts.push(text);
                Ok(())
            })
            .expect("a readable folder");
        }
        None => println!("skipped: no ../shared/benchmarks; the shipped benchmarks alone are planted"),
    }
    texts
}

fn index_of<'a>(texts: impl Iterator<Item = &'a BenchmarkText>) -> BenchmarkIndex {
    let mut builder = IndexBuilder::new(13);
    texts.for_each(|text| builder.add(text));
    builder.build()
}

fn is_found(index: &BenchmarkIndex, question: &str) -> bool {
    let turns = [Message::user(question), Message::assistant("I will think about it.")];
    index.find(&Words::of(question), &Conversation::of(&turns)).is_some()
}

#[test]
fn planted_items_are_found_in_every_disguise() {
    let texts = texts();
    let index = index_of(texts.iter());
    let mut totals = [(0, 0); DISGUISES.len()];
    for file in texts.chunk_by(|left, right| left.source == right.source) {
        let step = file.len().div_ceil(SAMPLE);
        let sample: Vec<_> = file.iter().step_by(step).collect();
        let mut line = format!("{:48}", file[0].source);
        for (&(name, _, least_words, disguise), total) in DISGUISES.iter().zip(&mut totals) {
            let fits = |text: &BenchmarkText| {
                let has_numbers =
                    least_words < MIN_MASKED_WORDS || text.question.chars().any(|char| char.is_ascii_digit());
                item_words(&text.question) >= least_words && has_numbers
            };
            let fit: Vec<_> = sample.iter().filter(|text| fits(text)).collect();
            let missed: Vec<_> =
                fit.par_iter().filter(|text| !is_found(&index, &disguise(&rendered(text), 1))).collect();
            if let Some(text) = missed.first() {
                println!("{name}: missed {} item {}: {:.300}", text.source, text.index, text.question);
            }
            *total = (total.0 + fit.len() - missed.len(), total.1 + fit.len());
            line += &format!(" {:>3}/{:<3}", fit.len() - missed.len(), fit.len());
        }
        println!("{line}");
    }
    for ((name, ..), (found, all)) in DISGUISES.iter().zip(totals) {
        println!("{name:24} {found}/{all} = {:.4}", found as f64 / all as f64);
    }
    for ((name, least, ..), (found, all)) in DISGUISES.iter().zip(totals) {
        assert!(found as f64 >= least * all as f64, "{name}: {found} of {all}");
    }
}

/// A question of the same kind: the beginning of an item, then words of another one.
fn look_alike(text: &str, other: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let others: Vec<&str> = other.split_whitespace().rev().take(12).collect();
    format!("{} {}", words[..(words.len() / 2).min(8)].join(" "), others.join(" "))
}

/// Whether a text is prose: cut into words by spaces, with few formulas, and not too short to be told apart.
fn is_prose(text: &BenchmarkText) -> bool {
    let words = text.question.split_whitespace().count();
    (6..400).contains(&words) && Words::of(&text.question).len() <= words + words / 5
}

#[test]
fn innocent_look_alikes_are_kept() {
    let texts = texts();
    let index = index_of(texts.iter());
    let (mut rows, mut wrong) = (0, 0);
    for file in texts.chunk_by(|left, right| left.source == right.source) {
        let prose: Vec<_> = file.iter().filter(|text| is_prose(text)).collect();
        let sample: Vec<_> = prose.iter().step_by(prose.len().div_ceil(SAMPLE).max(1)).collect();
        let is_short = |text: &&&&BenchmarkText| {
            item_words(&text.question) < MIN_MASKED_WORDS && text.question.chars().any(|char| char.is_ascii_digit())
        };
        let mut innocent: Vec<String> =
            sample.iter().filter(is_short).map(|text| other_numbers(&text.question, 2)).collect();
        let pairs = sample.iter().zip(sample.iter().rev());
        innocent.extend(pairs.map(|(text, other)| look_alike(&text.question, &other.question)));
        let found: Vec<&String> = innocent.par_iter().filter(|question| is_found(&index, question)).collect();
        if !found.is_empty() {
            println!("{:48} {:>3}/{:<3} {:?}", file[0].source, found.len(), innocent.len(), found.first());
        }
        (rows, wrong) = (rows + innocent.len(), wrong + found.len());
    }
    println!("innocent rows called contaminated: {wrong} of {rows}");
    assert!(wrong as f64 <= 0.01 * rows as f64, "{wrong} of {rows}");
}
