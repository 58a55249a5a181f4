//! The 25 kinds of instructions: their arguments, and whether a text follows them.
//!
//! Kinds, arguments and expressions are those of lm-evaluation-harness's `ifeval`, version 4, oddities included: a
//! keyword is a regular expression, a bullet's blanks may span lines, highlighted sections count once per style.

use std::sync::LazyLock;

use anyhow::{Context, Result, bail};
use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::{LanguageDetector, Punkt, python, words};

/// One instruction of a prompt, with its arguments.
#[derive(Debug)]
pub enum Instruction {
    /// `keywords:existence`
    Keywords(Vec<Regex>),
    /// `keywords:frequency`
    KeywordFrequency(Regex, Bound),
    /// `keywords:forbidden_words`
    ForbiddenWords(Vec<Regex>),
    /// `keywords:letter_frequency`
    LetterFrequency(char, Bound),
    /// `language:response_language`
    Language(String),
    /// `length_constraints:number_sentences`
    Sentences(Bound),
    /// `length_constraints:number_paragraphs`
    Paragraphs(usize),
    /// `length_constraints:number_words`
    Words(Bound),
    /// `length_constraints:nth_paragraph_first_word`
    NthParagraph {
        /// How many paragraphs there must be.
        count: usize,
        /// Which of them, from 1.
        nth: usize,
        /// Its first word, in lower case.
        first_word: String,
    },
    /// `detectable_content:number_placeholders`
    Placeholders(usize),
    /// `detectable_content:postscript`
    Postscript(Regex),
    /// `detectable_format:number_bullet_lists`
    Bullets(usize),
    /// `detectable_format:constrained_response`
    ConstrainedResponse,
    /// `detectable_format:number_highlighted_sections`
    Highlights(usize),
    /// `detectable_format:multiple_sections`
    Sections(Regex, usize),
    /// `detectable_format:json_format`
    Json,
    /// `detectable_format:title`
    Title,
    /// `combination:two_responses`
    TwoResponses,
    /// `combination:repeat_prompt`
    RepeatPrompt(String),
    /// `startend:end_checker`
    EndsWith(String),
    /// `startend:quotation`
    Quotation,
    /// `change_case:capital_word_frequency`
    CapitalWords(Bound),
    /// `change_case:english_capital`
    EnglishCapital,
    /// `change_case:english_lowercase`
    EnglishLowercase,
    /// `punctuation:no_comma`
    NoComma,
}

/// A number with `relation`: `less than` or `at least`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Fewer than this.
    LessThan(usize),
    /// This many or more.
    AtLeast(usize),
}

impl Bound {
    fn holds(self, count: usize) -> bool {
        match self {
            Bound::LessThan(bound) => count < bound,
            Bound::AtLeast(bound) => count >= bound,
        }
    }
}

/// What language and sentence checks look things up in.
pub struct Resources<'a> {
    /// Sentences.
    pub punkt: &'a Punkt,
    /// Languages.
    pub detector: &'a LanguageDetector,
}

macro_rules! pattern {
    ($name:ident, $pattern:expr) => {
        static $name: LazyLock<Regex> =
            LazyLock::new(|| Regex::new($pattern).expect("the pattern is a constant and a test compiles it"));
    };
}

// `[\s\x1c-\x1f]` and `[\p{L}\p{N}_]` are Python's `\s` and `\w`.
pattern!(PARAGRAPH_MARK, r"[\s\x1c-\x1f]?\*\*\*[\s\x1c-\x1f]?");
pattern!(WORD, r"[\p{L}\p{N}_]+");
pattern!(PLACEHOLDER, r"\[.*?\]");
pattern!(STAR_BULLET, r"(?m)^[\s\x1c-\x1f]*\*[^\*].*$");
pattern!(DASH_BULLET, r"(?m)^[\s\x1c-\x1f]*-.*$");
pattern!(HIGHLIGHT, r"\*[^\n\*]*\*");
pattern!(DOUBLE_HIGHLIGHT, r"\*\*[^\n\*]*\*\*");
pattern!(TITLE, r"<<[^\n]+>>");

const CONSTRAINED_RESPONSES: [&str; 3] = ["My answer is yes.", "My answer is no.", "My answer is maybe."];

impl Instruction {
    /// Reads one entry of `instruction_id_list` and its `kwargs`.
    ///
    /// **Errors**: a kind that is not known, an argument that is missing, a keyword that is no regular expression.
    pub fn parse(id: &str, arguments: &Value) -> Result<Self> {
        let arguments = Arguments(arguments);
        Ok(match id {
            "keywords:existence" => Self::Keywords(
                arguments.texts("keywords")?.iter().map(|word| insensitive(word)).collect::<Result<_>>()?,
            ),
            "keywords:frequency" => Self::KeywordFrequency(
                insensitive(python::strip(arguments.text("keyword")?))?,
                arguments.bound("frequency", "relation")?,
            ),
            "keywords:forbidden_words" => Self::ForbiddenWords(
                arguments.texts("forbidden_words")?.iter().map(|word| insensitive(word)).collect::<Result<_>>()?,
            ),
            "keywords:letter_frequency" => {
                let text = python::strip(arguments.text("letter")?).to_lowercase();
                let letter = text.chars().next().context("expected a letter under `letter`")?;
                Self::LetterFrequency(letter, arguments.bound("let_frequency", "let_relation")?)
            }
            "language:response_language" => Self::Language(arguments.text("language")?.to_owned()),
            "length_constraints:number_sentences" => Self::Sentences(arguments.bound("num_sentences", "relation")?),
            "length_constraints:number_paragraphs" => Self::Paragraphs(arguments.number("num_paragraphs")?),
            "length_constraints:number_words" => Self::Words(arguments.bound("num_words", "relation")?),
            "length_constraints:nth_paragraph_first_word" => Self::NthParagraph {
                count: arguments.number("num_paragraphs")?,
                nth: arguments.number("nth_paragraph")?,
                first_word: arguments.text("first_word")?.to_lowercase(),
            },
            "detectable_content:number_placeholders" => Self::Placeholders(arguments.number("num_placeholders")?),
            "detectable_content:postscript" => {
                Self::Postscript(postscript(python::strip(arguments.text("postscript_marker")?))?)
            }
            "detectable_format:number_bullet_lists" => Self::Bullets(arguments.number("num_bullets")?),
            "detectable_format:constrained_response" => Self::ConstrainedResponse,
            "detectable_format:number_highlighted_sections" => Self::Highlights(arguments.number("num_highlights")?),
            "detectable_format:multiple_sections" => {
                let splitter = python::strip(arguments.text("section_spliter")?);
                let pattern = format!(r"[\s\x1c-\x1f]?{splitter}[\s\x1c-\x1f]?\d+[\s\x1c-\x1f]?");
                let pattern = Regex::new(&pattern).with_context(|| format!("`{splitter}` is no regular expression"))?;
                Self::Sections(pattern, arguments.number("num_sections")?)
            }
            "detectable_format:json_format" => Self::Json,
            "detectable_format:title" => Self::Title,
            "combination:two_responses" => Self::TwoResponses,
            "combination:repeat_prompt" => Self::RepeatPrompt(trimmed_lower(arguments.text("prompt_to_repeat")?)),
            "startend:end_checker" => Self::EndsWith(trimmed_lower(arguments.text("end_phrase")?)),
            "startend:quotation" => Self::Quotation,
            "change_case:capital_word_frequency" => {
                Self::CapitalWords(arguments.bound("capital_frequency", "capital_relation")?)
            }
            "change_case:english_capital" => Self::EnglishCapital,
            "change_case:english_lowercase" => Self::EnglishLowercase,
            "punctuation:no_comma" => Self::NoComma,
            _ => bail!("there is no instruction `{id}`"),
        })
    }

    /// Whether a text follows the instruction. Blank texts follow none; the caller sees to that.
    pub fn is_followed(&self, text: &str, resources: &Resources) -> bool {
        match self {
            Self::Keywords(patterns) => patterns.iter().all(|pattern| pattern.is_match(text)),
            Self::KeywordFrequency(pattern, bound) => bound.holds(pattern.find_iter(text).count()),
            Self::ForbiddenWords(patterns) => !patterns.iter().any(|pattern| is_whole_word(pattern, text)),
            Self::LetterFrequency(letter, bound) => bound.holds(text.to_lowercase().matches(*letter).count()),
            Self::Language(code) => resources.detector.detect(text).is_none_or(|found| found == code),
            Self::Sentences(bound) => bound.holds(resources.punkt.sentences(text).len()),
            Self::Paragraphs(count) => paragraphs(text) == Some(*count),
            Self::Words(bound) => bound.holds(WORD.find_iter(text).count()),
            Self::NthParagraph { count, nth, first_word } => nth_paragraph(text, *count, *nth, first_word),
            Self::Placeholders(count) => PLACEHOLDER.find_iter(text).count() >= *count,
            Self::Postscript(pattern) => pattern.is_match(&text.to_lowercase()),
            Self::Bullets(count) => STAR_BULLET.find_iter(text).count() + DASH_BULLET.find_iter(text).count() == *count,
            Self::ConstrainedResponse => CONSTRAINED_RESPONSES.iter().any(|option| text.contains(option)),
            Self::Highlights(count) => highlights(text) >= *count,
            Self::Sections(pattern, count) => pattern.find_iter(text).count() >= *count,
            Self::Json => is_fenced_json(text),
            Self::Title => TITLE.find_iter(text).any(|title| {
                let inside = title.as_str().trim_start_matches('<').trim_end_matches('>');
                !is_blank(inside)
            }),
            Self::TwoResponses => two_responses(text),
            Self::RepeatPrompt(prompt) => trimmed_lower(text).starts_with(prompt),
            Self::EndsWith(phrase) => python::strip(text).trim_matches('"').to_lowercase().ends_with(phrase),
            Self::Quotation => {
                let text = python::strip(text);
                text.len() > 1 && text.starts_with('"') && text.ends_with('"')
            }
            Self::CapitalWords(bound) => {
                let sentences = resources.punkt.sentences(text);
                let tokens = sentences.into_iter().flat_map(words::word_tokens);
                bound.holds(tokens.filter(|token| python::is_upper(token)).count())
            }
            Self::EnglishCapital => python::is_upper(text) && is_english(text, resources),
            Self::EnglishLowercase => python::is_lower(text) && is_english(text, resources),
            Self::NoComma => !text.contains(','),
        }
    }
}

pub(super) fn is_blank(text: &str) -> bool {
    text.chars().all(python::is_space)
}

fn trimmed_lower(text: &str) -> String {
    python::strip(text).to_lowercase()
}

fn is_english(text: &str, resources: &Resources) -> bool {
    resources.detector.detect(text).is_none_or(|found| found == "en")
}

fn insensitive(pattern: &str) -> Result<Regex> {
    RegexBuilder::new(pattern)
        .case_insensitive(true)
        .build()
        .with_context(|| format!("`{pattern}` is no regular expression"))
}

/// Whether `\bPATTERN\b` is found, with Python's word characters. At each place the first way to match counts.
fn is_whole_word(pattern: &Regex, text: &str) -> bool {
    let is_word_at = |character: Option<char>| character.is_some_and(python::is_word);
    let is_edge = |at: usize| is_word_at(text[..at].chars().next_back()) != is_word_at(text[at..].chars().next());
    let mut from = 0;
    while let Some(found) = pattern.find_at(text, from) {
        if is_edge(found.start()) && is_edge(found.end()) {
            return true;
        }
        let Some(first) = text[found.start()..].chars().next() else { break };
        from = found.start() + first.len_utf8();
    }
    false
}

fn postscript(marker: &str) -> Result<Regex> {
    let pattern = match marker {
        "P.P.S" => r"p\.[\s\x1c-\x1f]?p\.[\s\x1c-\x1f]?s.*$".to_owned(),
        "P.S." => r"p\.[\s\x1c-\x1f]?s\..*$".to_owned(),
        other => format!("{}.*$", other.to_lowercase()),
    };
    Regex::new(&format!("(?m){pattern}")).with_context(|| format!("`{marker}` is no regular expression"))
}

/// Parts between `***`; a blank one counts only against the text, unless it stands at an end.
fn paragraphs(text: &str) -> Option<usize> {
    let parts: Vec<&str> = PARAGRAPH_MARK.split(text).collect();
    let inner = parts.get(1..parts.len() - 1).unwrap_or_default();
    if inner.iter().any(|part| is_blank(part)) {
        return None;
    }
    Some(parts.iter().filter(|part| !is_blank(part)).count())
}

fn nth_paragraph(text: &str, count: usize, nth: usize, first_word: &str) -> bool {
    let parts: Vec<&str> = text.split("\n\n").collect();
    let found = parts.iter().filter(|part| !is_blank(part)).count();
    // Counted without blank parts, yet looked up among all of them; that is the harness's way.
    if nth > found {
        return false;
    }
    let Some(word) = parts.get(nth.wrapping_sub(1)).and_then(|part| python::split(part).next()) else { return false };
    let word = word.trim_start_matches('\'').trim_start_matches('"');
    let word: String = word.chars().take_while(|it| !".,?!'\"".contains(*it)).collect();
    found == count && word.to_lowercase() == first_word
}

fn highlights(text: &str) -> usize {
    let single = HIGHLIGHT.find_iter(text).filter(|found| !is_blank(found.as_str().trim_matches('*')));
    let double = DOUBLE_HIGHLIGHT.find_iter(text).filter(|found| {
        let inside = found.as_str().strip_prefix("**").unwrap_or_default();
        !is_blank(inside.strip_suffix("**").unwrap_or(inside))
    });
    single.count() + double.count()
}

fn is_fenced_json(text: &str) -> bool {
    let mut text = python::strip(text);
    for fence in ["```json", "```Json", "```JSON", "```"] {
        text = text.strip_prefix(fence).unwrap_or(text);
    }
    python::is_json(python::strip(text.strip_suffix("```").unwrap_or(text)))
}

fn two_responses(text: &str) -> bool {
    let parts: Vec<&str> = text.split("******").collect();
    let inner = parts.get(1..parts.len() - 1).unwrap_or_default();
    let filled: Vec<&str> = parts.iter().map(|part| python::strip(part)).filter(|part| !part.is_empty()).collect();
    !inner.iter().any(|part| is_blank(part)) && filled.len() == 2 && filled[0] != filled[1]
}

/// The `kwargs` of one instruction.
struct Arguments<'a>(&'a Value);

impl<'a> Arguments<'a> {
    fn text(&self, key: &str) -> Result<&'a str> {
        self.0[key].as_str().with_context(|| format!("expected a string under `{key}`"))
    }

    fn texts(&self, key: &str) -> Result<Vec<&'a str>> {
        let list = self.0[key].as_array().map(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        list.flatten().with_context(|| format!("expected a list of strings under `{key}`"))
    }

    fn number(&self, key: &str) -> Result<usize> {
        // Data sets that went through a table hold whole numbers as 3.0.
        let number = &self.0[key];
        let whole = number
            .as_u64()
            .or_else(|| number.as_f64().filter(|it| *it >= 0.0 && it.fract() == 0.0).map(|it| it as u64));
        whole.map(|whole| whole as usize).with_context(|| format!("expected a whole number under `{key}`"))
    }

    fn bound(&self, number: &str, relation: &str) -> Result<Bound> {
        let count = self.number(number)?;
        match self.text(relation)? {
            "less than" => Ok(Bound::LessThan(count)),
            "at least" => Ok(Bound::AtLeast(count)),
            other => bail!("`{relation}` is `{other}`, but must be `less than` or `at least`"),
        }
    }
}
