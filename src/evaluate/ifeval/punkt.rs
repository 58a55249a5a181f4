//! English sentences as NLTK's Punkt finds them.
//!
//! A period, question or exclamation mark is a candidate where white space or closing punctuation follows. The words
//! around it decide, with what was counted once on a large corpus: abbreviations, collocations, frequent sentence
//! starters, and in which case and place each word was seen.
//!
//! **Source**: Kiss and Strunk 2006, "Unsupervised Multilingual Sentence Boundary Detection", sections 4.1 to 4.3; the
//! behaviour is that of NLTK 3.9, the version that lm-evaluation-harness asks for.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use serde::Deserialize;

use super::python;

/// Seen at the beginning of a sentence, inside of one, or at an unknown place, in upper or lower case.
mod seen {
    pub const MID_UPPER: u32 = 4;
    pub const UPPER: u32 = 2 + MID_UPPER + 8;
    pub const BEGIN_LOWER: u32 = 16;
    pub const LOWER: u32 = BEGIN_LOWER + 32 + 64;
}

/// What was learned on the corpus.
#[derive(Debug, Deserialize)]
pub struct Punkt {
    sentence_starters: HashSet<String>,
    abbrev_types: HashSet<String>,
    collocations: HashSet<(String, String)>,
    /// Flags of [`seen`] per word in lower case.
    ortho_context: HashMap<String, u32>,
}

/// A possible end of a sentence.
#[derive(Debug, Clone)]
struct Candidate {
    /// Byte index of the mark, which is one byte long.
    at: usize,
    /// End of the punctuation mark or word that follows.
    after: usize,
    /// Where the following word begins, if white space is in between.
    next_word: Option<usize>,
}

impl Punkt {
    /// The sentences of a text. White space between sentences belongs to none.
    pub fn sentences<'a>(&self, text: &'a str) -> Vec<&'a str> {
        let mut slices = Vec::new();
        let mut last_break = 0;
        for (candidate, word_start) in words_before(text, candidates(text)) {
            if self.breaks(&text[word_start..candidate.after]) {
                slices.push(last_break..candidate.at + 1);
                last_break = candidate.next_word.unwrap_or(candidate.at + 1);
            }
        }
        // White space may be all that is left after the last break.
        slices.push(last_break..last_break.max(text.trim_end_matches(python::is_space).len()));
        realign(text, &slices).into_iter().map(|slice| &text[slice]).collect()
    }

    /// Whether a sentence ends before the last token of the context.
    fn breaks(&self, context: &str) -> bool {
        let mut tokens: Vec<Token> =
            context.split('\n').flat_map(|line| words(line).into_iter().map(|word| self.token(word))).collect();
        // The first pass has looked at words alone; now each is looked at together with the next.
        for index in 1..tokens.len() {
            let (before, after) = tokens.split_at_mut(index);
            self.reclassify(&mut before[index - 1], &after[0]);
            if before[index - 1].breaks {
                return true;
            }
        }
        false
    }

    fn token<'a>(&self, word: &'a str) -> Token<'a> {
        let lower = word.to_lowercase();
        let kind = if is_number(&lower) { "##number##".to_owned() } else { lower };
        let mut token = Token { word, kind, breaks: false, abbreviation: false, ellipsis: false };
        if [".", "?", "!"].contains(&word) {
            token.breaks = true;
        } else if word.len() > 1 && word.bytes().all(|byte| byte == b'.') {
            token.ellipsis = true;
        } else if word.ends_with('.') && !word.ends_with("..") {
            let stem = word[..word.len() - 1].to_lowercase();
            let last_part = stem.rsplit('-').next().unwrap_or_default();
            token.abbreviation = self.abbrev_types.contains(&stem) || self.abbrev_types.contains(last_part);
            token.breaks = !token.abbreviation;
        }
        token
    }

    /// The second pass: decides anew on a word with a period, in the light of the next one.
    fn reclassify(&self, token: &mut Token, next: &Token) {
        if !token.word.ends_with('.') {
            return;
        }
        let kind = without_period(&token.kind);
        let next_kind = if next.breaks { without_period(&next.kind) } else { &next.kind };
        if self.collocations.contains(&(kind.to_owned(), next_kind.to_owned())) {
            token.breaks = false;
            return;
        }
        let initial = token.is_initial();
        let starts = self.starts_sentence(next, next_kind);
        if (token.abbreviation || token.ellipsis)
            && !initial
            && (starts == Some(true) || (next.starts_upper() && self.sentence_starters.contains(next_kind)))
        {
            token.breaks = true;
            return;
        }
        if initial || kind == "##number##" {
            let never_lower = self.seen(next_kind) & seen::LOWER == 0;
            if starts == Some(false) || (starts.is_none() && initial && next.starts_upper() && never_lower) {
                token.breaks = false;
            }
        }
    }

    /// What case and place of a word say about whether it begins a sentence; `None` where they say nothing.
    fn starts_sentence(&self, token: &Token, kind: &str) -> Option<bool> {
        if [";", ":", ",", ".", "!", "?"].contains(&token.word) {
            return Some(false);
        }
        let seen = self.seen(kind);
        if token.starts_upper() && seen & seen::LOWER != 0 && seen & seen::MID_UPPER == 0 {
            return Some(true);
        }
        let lower = token.word.chars().next().is_some_and(char::is_lowercase);
        if lower && (seen & seen::UPPER != 0 || seen & seen::BEGIN_LOWER == 0) {
            return Some(false);
        }
        None
    }

    fn seen(&self, kind: &str) -> u32 {
        self.ortho_context.get(kind).copied().unwrap_or(0)
    }
}

/// A word with the marks that stick to it.
struct Token<'a> {
    word: &'a str,
    /// The word in lower case, every number as one.
    kind: String,
    breaks: bool,
    abbreviation: bool,
    ellipsis: bool,
}

impl Token<'_> {
    /// One letter and a period.
    fn is_initial(&self) -> bool {
        let mut characters = self.word.chars();
        characters.next().is_some_and(|it| python::is_word(it) && !is_decimal(it))
            && characters.next() == Some('.')
            && characters.next().is_none()
    }

    fn starts_upper(&self) -> bool {
        self.word.chars().next().is_some_and(char::is_uppercase)
    }
}

fn without_period(kind: &str) -> &str {
    if kind.len() > 1 { kind.strip_suffix('.').unwrap_or(kind) } else { kind }
}

/// `\d`: decimal digits of any script.
fn is_decimal(character: char) -> bool {
    character.is_ascii_digit() || (!character.is_ascii() && character.is_numeric() && is_nd(character))
}

fn is_nd(character: char) -> bool {
    static DIGIT: std::sync::LazyLock<regex::Regex> =
        std::sync::LazyLock::new(|| regex::Regex::new(r"^\p{Nd}").expect("the pattern is a constant"));
    DIGIT.is_match(character.encode_utf8(&mut [0; 4]))
}

/// `-?[.,]?\d[\d,.-]*\.?`.
fn is_number(word: &str) -> bool {
    let rest = word.strip_prefix('-').unwrap_or(word);
    let rest = rest.strip_prefix(['.', ',']).unwrap_or(rest);
    rest.chars().next().is_some_and(is_decimal) && rest.chars().all(|it| is_decimal(it) || ",.-".contains(it))
}

/// Punctuation that ends a word, and that may follow the end of a sentence directly.
fn is_closing(character: char) -> bool {
    ")\";}]*:@'({[!?".contains(character)
}

fn candidates(text: &str) -> Vec<Candidate> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(['.', '?', '!']) {
        let rest = &text[at + 1..];
        let Some(next) = rest.chars().next() else { continue };
        if is_closing(next) {
            found.push(Candidate { at, after: at + 1 + next.len_utf8(), next_word: None });
        } else if python::is_space(next) {
            let word = rest.trim_start_matches(python::is_space);
            if !word.is_empty() {
                let start = text.len() - word.len();
                let length = word.find(python::is_space).unwrap_or(word.len());
                found.push(Candidate { at, after: start + length, next_word: Some(start) });
            }
        }
    }
    found
}

/// Each candidate with the start of the word before it. Of candidates in one word the last counts.
fn words_before(text: &str, candidates: Vec<Candidate>) -> Vec<(Candidate, usize)> {
    let mut kept: Vec<(Candidate, usize)> = Vec::new();
    let mut previous = 0..0;
    let mut pending: Option<(Candidate, usize)> = None;
    for candidate in candidates {
        let before = &text[previous.end..candidate.at];
        let space = before.rfind([' ', '\t', '\n', '\r', '\u{b}', '\u{c}']);
        // White space as the very first character of the gap is overlooked; that is NLTK's way.
        let start = match space {
            Some(index) if index > 0 => previous.end + index + 1,
            _ => previous.start,
        };
        if let Some(earlier) = pending.take()
            && previous.end <= start
        {
            kept.push(earlier);
        }
        previous = start..candidate.at;
        pending = Some((candidate, start));
    }
    kept.extend(pending);
    kept
}

/// Gives closing quotes and brackets after a break to the sentence before it.
fn realign(text: &str, slices: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut sentences = Vec::new();
    let mut shift = 0;
    for (index, slice) in slices.iter().enumerate() {
        let sentence = slice.start + shift..slice.end.max(slice.start + shift);
        let closing = slices.get(index + 1).map(|next| (next.start, closing_length(&text[next.clone()])));
        shift = 0;
        match closing {
            Some((start, Some((kept, taken)))) => {
                sentences.push(sentence.start..start + kept);
                shift = taken;
            }
            _ if !sentence.is_empty() => sentences.push(sentence),
            _ => {}
        }
    }
    sentences
}

/// Bytes of closing marks at the beginning of a slice, without and with the white space after them; `None` if there
/// are none or a word follows directly.
fn closing_length(slice: &str) -> Option<(usize, usize)> {
    let kept = slice.len() - slice.trim_start_matches(['"', '\'', ')', ']', '}']).len();
    let rest = &slice[kept..];
    let space = rest.len() - rest.trim_start_matches(python::is_space).len();
    (kept > 0 && (space > 0 || rest.is_empty() || rest.starts_with("--"))).then_some((kept, kept + space))
}

/// The words of a line, other marks than periods split off.
fn words(line: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let length = match multi_mark_length(rest) {
            0 if python::is_space(first) => {
                rest = &rest[first.len_utf8()..];
                continue;
            }
            0 if "(\"`{[:;&#*@)}]-,".contains(first) => first.len_utf8(),
            0 => word_length(rest),
            length => length,
        };
        words.push(&rest[..length]);
        rest = &rest[length..];
    }
    words
}

/// Bytes up to the first place where a word may end, at least one character.
fn word_length(text: &str) -> usize {
    let ends = |rest: &str| match rest.chars().next() {
        None => true,
        Some(next) => python::is_space(next) || is_closing(next) || multi_mark_length(rest) > 0,
    };
    text.char_indices()
        .skip(1)
        .map(|(at, _)| at)
        .find(|&at| ends(&text[at..]) || text[at..].strip_prefix(',').is_some_and(ends))
        .unwrap_or(text.len())
}

/// Bytes of a dash of several hyphens or an ellipsis, spaced or not, at the beginning; 0 if there is none.
fn multi_mark_length(text: &str) -> usize {
    for mark in ['-', '.'] {
        let length = text.len() - text.trim_start_matches(mark).len();
        if length >= 2 {
            return length;
        }
    }
    let mut pairs = 0;
    let mut rest = text;
    let mut end = 0;
    while let Some(after) = rest.strip_prefix('.') {
        if pairs >= 2 {
            end = text.len() - after.len();
        }
        let Some(space) = after.chars().next().filter(|it| python::is_space(*it)) else { break };
        rest = &after[space.len_utf8()..];
        pairs += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Punkt {
        serde_json::from_value(serde_json::json!({
            "sentence_starters": ["however"],
            "abbrev_types": ["dr", "u.s", "inc"],
            "collocations": [["##number##", "street"]],
            "ortho_context": {"the": 2 + 32, "smith": 4 + 8, "however": 2 + 32 + 4},
        }))
        .unwrap()
    }

    #[test]
    fn abbreviations_collocations_and_starters_decide() {
        let punkt = small();
        assert_eq!(punkt.sentences("I saw Dr. Smith. The end."), ["I saw Dr. Smith.", "The end."]);
        // An abbreviation before a word that is never capital inside a sentence, and before a frequent starter.
        assert_eq!(punkt.sentences("In the U.S. The end."), ["In the U.S.", "The end."]);
        assert_eq!(punkt.sentences("At Acme Inc. However it is."), ["At Acme Inc.", "However it is."]);
        assert_eq!(punkt.sentences("See 5. Street now."), ["See 5. Street now."]);
        assert_eq!(punkt.sentences("Why? Oh!!! Yes"), ["Why?", "Oh!!!", "Yes"]);
    }

    #[test]
    fn closing_marks_belong_to_the_sentence_before() {
        let punkt = small();
        assert_eq!(punkt.sentences("(He left.) Then?\") She"), ["(He left.)", "Then?\")", "She"]);
        assert!(punkt.sentences("").is_empty());
        assert!(punkt.sentences(" \n").is_empty());
        assert_eq!(punkt.sentences("Done. \n "), ["Done."]);
    }

    #[test]
    fn words_keep_periods_and_lose_other_marks() {
        assert_eq!(
            words("(Dr. X's, well--ok. . . 3,5)"),
            ["(", "Dr.", "X", "'s", ",", "well", "--", "ok", ". . .", "3,5", ")"]
        );
        assert_eq!(words("a . . . b.. c"), ["a", ". . .", "b", "..", "c"]);
    }
}
