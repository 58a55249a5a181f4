//! Rules that look at one row alone: its lengths, its form, and signs that the model failed.
//!
//! The rules are few and mechanical, each for a failure that teachers really produce; whether an answer is *right* is
//! not judged here. The first rule that a row breaks names the reason.

use std::{collections::HashSet, hash::BuildHasherDefault};

use anyhow::Result;
use regex::Regex;
use serde::{Deserialize, Serialize};

use super::{
    minhash::Identity,
    normalize::{Words, hash_sequence},
};
use crate::{config::CurateConfig, error::usage};

/// Why a row is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Not a row, or text that no model should learn to write.
    Format,
    /// A question or an answer is too short or too long.
    Length,
    /// The model refused, repeated itself or broke off.
    Quality,
    /// A column is beyond a threshold of the configuration.
    Threshold,
    /// Holds an evaluation item.
    Contaminated,
    /// An earlier row asks the same.
    ExactDuplicate,
    /// An earlier row asks nearly the same.
    NearDuplicate,
    /// An earlier row's question means the same.
    SemanticDuplicate,
    /// Its discipline has enough rows.
    Quota,
    /// Shares a key concept with the test rows.
    HeldOut,
}

impl Reason {
    /// Every reason, in the order in which rows are tried.
    pub const ALL: [Reason; 10] = [
        Reason::Format,
        Reason::Length,
        Reason::Quality,
        Reason::Threshold,
        Reason::Contaminated,
        Reason::ExactDuplicate,
        Reason::NearDuplicate,
        Reason::SemanticDuplicate,
        Reason::Quota,
        Reason::HeldOut,
    ];

    /// As files spell it.
    pub fn name(self) -> &'static str {
        match self {
            Reason::Format => "format",
            Reason::Length => "length",
            Reason::Quality => "quality",
            Reason::Threshold => "threshold",
            Reason::Contaminated => "contaminated",
            Reason::ExactDuplicate => "exact_duplicate",
            Reason::NearDuplicate => "near_duplicate",
            Reason::SemanticDuplicate => "semantic_duplicate",
            Reason::Quota => "quota",
            Reason::HeldOut => "held_out",
        }
    }
}

/// A reason with what it rests on.
pub type Rejection = (Reason, String);

/// Words from which on a text may be called repetitive.
const MIN_REPETITION_WORDS: usize = 40;
/// Words per run whose repetition counts.
const REPETITION_WORDS: usize = 6;
/// Times that one word may follow itself.
const MAX_WORD_RUN: usize = 10;
/// Characters at the start of an answer in which a refusal is looked for: later it may be a quotation.
const REFUSAL_CHARS: usize = 160;

/// Beginnings of refusals, in lower case with plain apostrophes.
const REFUSALS: [&str; 14] = [
    "as an ai language model",
    "as a large language model",
    "as an ai assistant, i",
    "as an ai, i",
    "i'm sorry, but i can't",
    "i'm sorry, but i cannot",
    "i'm sorry, i can't",
    "i am sorry, but i can",
    "sorry, but i can't",
    "i cannot assist with",
    "i can't assist with",
    "i cannot help with",
    "i can't help with",
    "i cannot fulfill",
];

/// A text with its words.
pub type Cut<'a> = (&'a str, &'a Words);

/// The rules of one configuration.
pub struct Filter {
    question_chars: (usize, usize),
    answer_chars: (usize, usize),
    answer_pattern: Option<Regex>,
    leaked_token: Regex,
}

impl Filter {
    /// Prepares the rules.
    ///
    /// **Errors**: usage, when `curate.answer_pattern` is no regular expression.
    pub fn new(config: &CurateConfig) -> Result<Self> {
        let answer_pattern = match config.answer_pattern.as_str() {
            "" => None,
            pattern => Some(
                Regex::new(pattern)
                    .map_err(|error| usage(format!("`curate.answer_pattern` is not a regular expression: {error}")))?,
            ),
        };
        let leaked_token = Regex::new(
            r"(?x) <\|[A-Za-z0-9_]{2,40}\|>            # ChatML, Llama 3, Phi, GPT-2
                 | \[/?INST\] | <</?SYS>>              # Llama 2, Mistral
                 | </?(?:start|end)_of_turn> | <(?:bos|eos|pad|unk)>
                 | \A\s*</?s> | </?s>\s*\z
                 | (?m:^\#\#\#\ (?:Instruction|Response|Human|Assistant):)",
        )
        .expect("a fixed pattern");
        Ok(Self {
            question_chars: (config.min_question_chars, config.max_question_chars),
            answer_chars: (config.min_answer_chars, config.max_answer_chars),
            answer_pattern,
            leaked_token,
        })
    }

    /// The first rule that a question (all user turns) and its answer (one turn), each with its words, break.
    pub fn check(&self, (question, asked): Cut, (answer, answered): Cut) -> Option<Rejection> {
        self.format(question, answer)
            .map(|evidence| (Reason::Format, evidence))
            .or_else(|| self.length(question, answer).map(|evidence| (Reason::Length, evidence)))
            .or_else(|| failure(question, answer).map(|evidence| (Reason::Quality, evidence)))
            .or_else(|| {
                let (what, evidence) = [("question", asked), ("answer", answered)]
                    .into_iter()
                    .find_map(|(what, words)| Some((what, repetition(words)?)))?;
                Some((Reason::Quality, format!("the {what} repeats itself: {evidence}")))
            })
    }

    fn format(&self, question: &str, answer: &str) -> Option<String> {
        for (what, text) in [("question", question), ("answer", answer)] {
            if text.trim().is_empty() {
                return Some(format!("the {what} is empty"));
            }
            if let Some(char) = text.chars().find(|&char| is_unwanted(char)) {
                return Some(format!("the {what} holds the character U+{:04X}", u32::from(char)));
            }
            if let Some(token) = self.leaked_token.find(text) {
                return Some(format!("the {what} holds the prompt token `{}`", token.as_str().trim()));
            }
            if !has_closed_fences(text) {
                return Some(format!("a code block of the {what} is not closed"));
            }
        }
        match &self.answer_pattern {
            Some(pattern) if !pattern.is_match(answer) => {
                Some(format!("the answer does not match `curate.answer_pattern` ({pattern})"))
            }
            _ => None,
        }
    }

    fn length(&self, question: &str, answer: &str) -> Option<String> {
        for (what, text, (least, most)) in
            [("question", question, self.question_chars), ("answer", answer, self.answer_chars)]
        {
            let chars = text.chars().count();
            if chars < least {
                return Some(format!("the {what} has {chars} characters, `curate.min_{what}_chars` is {least}"));
            }
            if chars > most {
                return Some(format!("the {what} has {chars} characters, `curate.max_{what}_chars` is {most}"));
            }
        }
        None
    }
}

fn failure(question: &str, answer: &str) -> Option<String> {
    if question.trim() == answer.trim() {
        return Some("the answer is the question".into());
    }
    if let Some(refusal) = refusal(answer) {
        return Some(format!("the answer refuses: `{refusal}`"));
    }
    // One word before a colon or comma may be all there is to say (`12:`); more is an announcement without its object.
    let end = answer.trim_end();
    if end.ends_with([',', ':', '，', '：']) && end.split_whitespace().nth(1).is_some() {
        return Some("the answer breaks off".into());
    }
    None
}

/// The beginning of a refusal, if the answer is one.
pub(super) fn refusal(answer: &str) -> Option<&'static str> {
    let start: String = answer.trim_start().chars().take(REFUSAL_CHARS).collect::<String>().to_lowercase();
    let start = start.replace('’', "'");
    REFUSALS.into_iter().find(|refusal| start.contains(refusal))
}

/// Control characters other than line ends and tabs, and the mark of bytes that were no UTF-8.
fn is_unwanted(char: char) -> bool {
    (char.is_control() && !matches!(char, '\n' | '\r' | '\t')) || char == '\u{fffd}'
}

/// Whether every code fence is closed by one of the same kind that is at least as long.
///
/// **Source**: CommonMark 0.31, section 4.5.
fn has_closed_fences(text: &str) -> bool {
    let mut open: Option<(u8, usize)> = None;
    for line in text.lines() {
        let line = line.trim();
        let Some(&mark @ (b'`' | b'~')) = line.as_bytes().first() else { continue };
        let length = line.bytes().take_while(|&byte| byte == mark).count();
        let rest = &line[length..];
        match open {
            // A backtick in the rest of the line makes it inline code.
            None if length >= 3 && !(mark == b'`' && rest.contains('`')) => open = Some((mark, length)),
            Some((opening, least)) if mark == opening && length >= least && rest.trim().is_empty() => open = None,
            _ => {}
        }
    }
    open.is_none()
}

/// A word that follows itself many times, or a text of which more than half are runs of six words said before.
fn repetition(words: &Words) -> Option<String> {
    let mut run = 1;
    for place in 1..words.len() {
        run = if words.hash(place) == words.hash(place - 1) { run + 1 } else { 1 };
        if run > MAX_WORD_RUN && words.is_content(place) {
            return Some(format!("`{}` more than {MAX_WORD_RUN} times in a row", words.word(place)));
        }
    }
    if words.len() < MIN_REPETITION_WORDS {
        return None;
    }
    let Runs { total, repeated, first } = runs(words);
    let start = first.filter(|_| total + REPETITION_WORDS > MIN_REPETITION_WORDS && 2 * repeated > total)?;
    Some(format!("{repeated} of {total} runs, such as `{}`", words.join(start, start + REPETITION_WORDS)))
}

/// Share of the runs of six words that the text has said before.
pub(super) fn repeated_share(words: &Words) -> f64 {
    let Runs { total, repeated, .. } = runs(words);
    repeated as f64 / total.max(1) as f64
}

/// The runs of six words of a text: all, those said before, and where the first of these begins.
struct Runs {
    total: usize,
    repeated: usize,
    first: Option<usize>,
}

fn runs(words: &Words) -> Runs {
    let hashes: Vec<u64> = words.hashes().collect();
    let mut seen: HashSet<u64, BuildHasherDefault<Identity>> = HashSet::default();
    seen.reserve(hashes.len());
    let mut runs = Runs { total: 0, repeated: 0, first: None };
    for (start, window) in hashes.windows(REPETITION_WORDS).enumerate() {
        // Matrices and tables of numbers repeat by right.
        if !(start..start + REPETITION_WORDS).any(|place| words.is_content(place)) {
            continue;
        }
        runs.total += 1;
        if !seen.insert(hash_sequence(window.iter().copied())) {
            runs.repeated += 1;
            runs.first.get_or_insert(start);
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(question: &str, answer: &str) -> Option<Reason> {
        let config = CurateConfig { max_answer_chars: 4000, ..CurateConfig::default() };
        check(&Filter::new(&config).expect("a fine configuration"), question, answer).map(|(reason, _)| reason)
    }

    fn check(filter: &Filter, question: &str, answer: &str) -> Option<Rejection> {
        filter.check((question, &Words::of(question)), (answer, &Words::of(answer)))
    }

    #[test]
    fn plain_rows_pass() {
        let code = "Use this:\n```python\nprint('hi')\n```\nDone.";
        let table = "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0";
        let list = (1..30).map(|n| format!("{n}. Item number {n} is {}", n * n)).collect::<Vec<_>>().join("\n");
        for answer in ["4", "Tokyo", code, table, &list, "He said sorry, but I can walk.", "x <| f |> y", "a\tb\r\nc"] {
            assert_eq!(verdict("What is it, please?", answer), None, "{answer}");
        }
    }

    #[test]
    fn lengths_are_counted_in_characters() {
        assert_eq!(verdict("Why???", "Because."), Some(Reason::Length));
        assert_eq!(verdict("什么是水的沸点呢", "100 °C"), None);
        assert_eq!(
            verdict("What is long?", &"word and ".chars().cycle().take(4001).collect::<String>()),
            Some(Reason::Length)
        );
    }

    #[test]
    fn damaged_forms_are_named() {
        for (question, answer) in [
            ("  \n ", "An answer."),
            ("What is empty?", "  "),
            ("What is a bell?", "A \u{7} sound."),
            ("What is broken?", "It is \u{fffd}."),
            ("What is open?", "```rust\nfn main() {}"),
            ("What is open?", "````\n```\ncode\n```"),
            ("What is leaked?", "It is.<|im_end|>"),
            ("What is leaked?", "[INST] more [/INST]"),
            ("What is leaked?", "Fine.\n### Instruction: next"),
            ("What is leaked?", "Fine.</s>"),
        ] {
            assert_eq!(verdict(question, answer), Some(Reason::Format), "{question} {answer:?}");
        }
    }

    #[test]
    fn the_answer_pattern_is_a_rule_and_a_bad_one_is_a_usage_error() {
        let with = |pattern: &str| Filter::new(&CurateConfig { answer_pattern: pattern.into(), ..Default::default() });
        let filter = with(r"(?s)The answer is .+\.$").expect("a fine pattern");
        assert_eq!(check(&filter, "How many legs?", "The answer is 4."), None);
        assert!(matches!(check(&filter, "How many legs?", "4"), Some((Reason::Format, _))));
        let error = with("(").err().expect("an open group");
        assert_eq!(crate::error::exit_code(&error), 2);
    }

    #[test]
    fn failures_of_the_model_are_quality() {
        let loops = "the cat sat on the mat and ".repeat(12);
        for (question, answer) in [
            ("What is an echo?", "What is an echo?"),
            ("Tell me a secret.", "I’m sorry, but I can’t help with that."),
            ("Tell me a secret.", "As an AI language model, I have none."),
            ("List the planets.", "The planets are:"),
            ("Say it again, please", "no no no no no no no no no no no no no no"),
            ("Tell me a story.", &loops),
        ] {
            assert_eq!(verdict(question, answer), Some(Reason::Quality), "{answer}");
        }
    }
}
