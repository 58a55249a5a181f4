//! What can be measured of one row, as numbers: the columns of `scores.jsonl`.
//!
//! The stage writes them for every well-formed row, kept or not, so that a user sees what a threshold would do before
//! setting it (`curate.thresholds`) and cuts again without generating again. A column that a row has no value for is
//! `null` and passes every threshold.

use std::sync::LazyLock;

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value};

pub use crate::config::{COLUMNS, Threshold};

use super::{
    arithmetic, filter,
    normalize::{Words, hash_word},
    row_words::RowText,
    rows::Row,
};

/// Columns that a row may bring along, with the keys under which it does.
const GIVEN: [(&str, [&str; 3]); 3] = [
    ("agreement", ["agreement", "self_consistency", "consistency"]),
    ("judge_score", ["judge_score", "score", "quality_score"]),
    ("ifd", ["ifd", "ifd_score", "ifd_ppl"]),
];

/// English function words: text in English is a third to a half of these, text in another language next to none.
const FUNCTION_WORDS: [&str; 40] = [
    "the", "of", "and", "to", "a", "in", "is", "that", "it", "for", "as", "was", "with", "be", "by", "on", "not", "he",
    "his", "are", "or", "at", "from", "this", "have", "an", "which", "you", "one", "we", "can", "has", "so", "if",
    "each", "its", "there", "then", "they", "how",
];

/// The values of one row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Columns([Option<f64>; COLUMNS.len()]);

impl Columns {
    /// Measures a row, of which the audit has counted the `toxic_words` already.
    pub fn of(row: &Row, text: &RowText, toxic_words: u32) -> Self {
        let (question, answer) = (text.question.as_ref(), text.answer.as_ref());
        let is_any = |is: &dyn Fn(&str) -> bool| f64::from(u8::from(text.answers().any(|(answer, _)| is(answer))));
        let mut columns = Self::default();
        let mut set = |name: &str, value: f64| columns.set(name, Some(value));
        set("question_chars", question.chars().count() as f64);
        set("answer_chars", answer.chars().count() as f64);
        set("refusal", is_any(&|answer| filter::refusal(answer).is_some()));
        set("truncated", is_any(&is_truncated));
        set("repetition", filter::repeated_share(&text.answered));
        set("prompt_leak", f64::from(u8::from(leaks_prompt(answer))));
        let sums = arithmetic::check(answer);
        set("arithmetic_checked", sums.checked as f64);
        set("arithmetic_wrong", sums.wrong.len() as f64);
        set("toxic_words", f64::from(toxic_words));
        columns.set("script_agreement", script_agreement(question, answer));
        columns.set("english", english_share(&text.answered));
        for (column, keys) in GIVEN {
            let given = keys.iter().find_map(|key| row.column(key)?.as_f64());
            columns.set(column, given);
        }
        if columns.get("agreement").is_none() {
            columns.set("agreement", row.column("answers").and_then(agreement));
        }
        columns
    }

    /// The value of a column; `None` when it has none.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0[COLUMNS.iter().position(|column| *column == name)?]
    }

    /// Sets a column; names that are none are ignored.
    pub fn set(&mut self, name: &str, value: Option<f64>) {
        if let Some(place) = COLUMNS.iter().position(|column| *column == name) {
            self.0[place] = value;
        }
    }

    /// As a JSON object, every column in order.
    pub fn to_map(&self) -> Map<String, Value> {
        COLUMNS.iter().zip(self.0).map(|(name, value)| ((*name).to_owned(), json_number(value))).collect()
    }
}

impl Serialize for Columns {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(COLUMNS.len()))?;
        for (name, value) in COLUMNS.iter().zip(self.0) {
            map.serialize_entry(name, &json_number(value))?;
        }
        map.end()
    }
}

/// Counts without a decimal point, shares with four decimals.
fn json_number(value: Option<f64>) -> Value {
    match value {
        None => Value::Null,
        Some(value) if value.fract() == 0.0 && value.abs() < 1e15 => Value::from(value as i64),
        Some(value) => Value::from((value * 1e4).round() / 1e4),
    }
}

/// An answer of some length that ends in the middle of a sentence.
fn is_truncated(answer: &str) -> bool {
    let answer = answer.trim_end();
    let Some(last) = answer.chars().next_back() else { return false };
    let words = answer.lines().next_back().unwrap_or_default().split_whitespace().count();
    matches!(last, ',' | ':' | ';' | '(' | '-' | '，' | '：' | '、')
        || (last.is_alphabetic() && last.is_lowercase() && words >= 12)
}

/// Words of the pipeline's own prompts, which a teacher repeats when it has lost the thread.
fn leaks_prompt(answer: &str) -> bool {
    const PHRASES: [&str; 9] = [
        "class session",
        "key concepts:",
        "homework question",
        "as an education expert",
        "### instruction",
        "### response",
        "your task is to",
        "you are a helpful",
        "[question]",
    ];
    let answer = answer.to_lowercase();
    PHRASES.iter().any(|phrase| answer.contains(phrase))
}

/// Share of the answer's letters in the script that most of the question's letters are of; `None` without letters.
fn script_agreement(question: &str, answer: &str) -> Option<f64> {
    let (asked, answered) = (letters_by_script(question), letters_by_script(answer));
    let main = (0..asked.len()).rev().max_by_key(|&script| asked[script]).filter(|&script| asked[script] > 0)?;
    let letters: usize = answered.iter().sum();
    (letters > 0).then(|| answered[main] as f64 / letters as f64)
}

fn letters_by_script(text: &str) -> [usize; 8] {
    let mut counts = [0; 8];
    text.chars().filter(|char| char.is_alphabetic()).for_each(|char| counts[script(char)] += 1);
    counts
}

/// Groups of scripts, by Unicode block.
fn script(char: char) -> usize {
    match u32::from(char) {
        0..=0x24f | 0x1e00..=0x1eff => 0,
        0x370..=0x3ff | 0x1f00..=0x1fff => 1,
        0x400..=0x52f => 2,
        0x590..=0x8ff => 3,
        0x900..=0xdff => 4,
        0x1100..=0x11ff | 0xac00..=0xd7af => 5,
        0x3040..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x2fa1f => 6,
        _ => 7,
    }
}

/// Share of function words among the words of an English text; `None` under ten words.
fn english_share(words: &Words) -> Option<f64> {
    static FUNCTION_HASHES: LazyLock<Vec<u64>> = LazyLock::new(|| {
        let mut hashes: Vec<u64> = FUNCTION_WORDS.iter().map(|word| hash_word(word)).collect();
        hashes.sort_unstable();
        hashes
    });
    static A: LazyLock<u64> = LazyLock::new(|| hash_word("a"));
    let (functions, a) = (FUNCTION_HASHES.as_slice(), *A);
    let total = (0..words.len()).filter(|&place| words.is_content(place) || words.hash(place) == a).count();
    let function = words.hashes().filter(|hash| functions.binary_search(hash).is_ok()).count();
    (total >= 10).then(|| function as f64 / total as f64)
}

/// Share of the answers to one question that end in the most frequent result (Wang et al. 2022, 2203.11171); `None`
/// with fewer than two.
fn agreement(answers: &Value) -> Option<f64> {
    let answers: Vec<String> = answers.as_array()?.iter().filter_map(Value::as_str).map(result_of).collect();
    let most = answers.iter().map(|answer| answers.iter().filter(|other| *other == answer).count()).max()?;
    (answers.len() >= 2).then(|| most as f64 / answers.len() as f64)
}

/// What an answer comes to: after the last `####`, in the last `\boxed{}`, its last number, or all its words.
fn result_of(answer: &str) -> String {
    let tail = answer.rsplit_once("####").map(|(_, tail)| tail);
    let boxed = answer.rsplit_once("\\boxed{").and_then(|(_, tail)| Some(tail.rsplit_once('}')?.0));
    let words = Words::of(tail.or(boxed).unwrap_or(answer));
    let is_number = |word: &&str| word.chars().all(|char| char.is_ascii_digit() || char == '.');
    match words.iter().filter(is_number).last() {
        Some(number) if boxed.is_none() => number.to_owned(),
        _ => words.join(0, words.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curate::rows::RowFormat;

    fn columns(question: &str, answer: &str, more: &str) -> Columns {
        let line = serde_json::json!({"id": "x", "messages": [
            {"role": "user", "content": question}, {"role": "assistant", "content": answer}]});
        let line = line.to_string().replacen('{', &format!("{{{more}"), 1);
        let row = Row::parse(line.as_bytes(), 1, RowFormat::Messages).expect("a row");
        Columns::of(&row, &RowText::of(&row.messages), 0)
    }

    #[test]
    fn each_column_measures_what_it_says() {
        let value = |answer: &str, name: &str| columns("What is it in English, please?", answer, "").get(name);
        assert_eq!(value("3 + 4 = 8, and 1 + 1 = 2", "arithmetic_checked"), Some(2.0));
        assert_eq!(value("3 + 4 = 8, and 1 + 1 = 2", "arithmetic_wrong"), Some(1.0));
        assert_eq!(value("I'm sorry, but I can't do that.", "refusal"), Some(1.0));
        assert_eq!(value("I can do that.", "refusal"), Some(0.0));
        assert_eq!(value("The planets are:", "truncated"), Some(1.0));
        assert_eq!(value("It is one of the many things that we know of the world and then", "truncated"), Some(1.0));
        assert_eq!(value("It is red.", "truncated"), Some(0.0));
        assert_eq!(value("Это красный дом", "script_agreement"), Some(0.0));
        assert_eq!(value("Das ist also das Haus von dem ich dir gestern erzählt habe", "english"), Some(0.0));
        assert!(value("This is the house of which I told you, and it is red.", "english") > Some(0.4));
        assert!(value(&"so it goes on and on again ".repeat(9), "repetition") > Some(0.5));
        assert_eq!(value("Your task is to write a homework question.", "prompt_leak"), Some(1.0));
        assert_eq!(value("5", "ifd"), None);
    }

    #[test]
    fn agreement_comes_from_the_row_or_from_its_answers() {
        let of = |more: &str| columns("How many?", "4", more).get("agreement");
        assert_eq!(of(r#""agreement":0.75,"#), Some(0.75));
        assert_eq!(of(r##""answers":["It is #### 4","So 4.","5 minus 2 is 3"],"##), Some(2.0 / 3.0));
        assert_eq!(of(r#""answers":["4"],"#), None);
        assert_eq!(of(r#""answers":["Paris","paris!"],"#), Some(1.0));
    }

    #[test]
    fn thresholds_are_read_and_say_what_is_wrong() {
        let row = columns("What is 3 + 4?", "3 + 4 = 8", "");
        let check = |text: &str| Threshold::parse(text).map(|threshold| threshold.check(|column| row.get(column)));
        assert_eq!(check("arithmetic_wrong <= 0"), Ok(Some("arithmetic_wrong is 1, asked for <= 0".into())));
        assert_eq!(check("arithmetic_wrong<2"), Ok(None));
        assert_eq!(check("ifd < 1"), Ok(None), "a column without a value passes");
        assert_eq!(check("answer_chars >= 10").map(|broken| broken.is_some()), Ok(true));
        for wrong in ["arithmetic", "nonsense < 3", "ifd < x", "ifd < nan"] {
            assert!(Threshold::parse(wrong).is_err(), "{wrong}");
        }
    }
}
