//! Keeps evaluation items out of the training rows.
//!
//! An item counts as leaked when a row (all its turns, as the words of [`super::normalize`]) holds
//! * any run of `n` words of the item's question, or of its question followed by its answer (the n-gram test of GPT-3
//!   and most since; `n` is 13 by default), also with every number masked, so that the same text with other numbers is
//!   found;
//! * or the whole of an item without telling n-grams, numbers and arithmetic signs included: from eight words on
//!   anywhere, from four on in what the user asks, and below that only as the user's whole question;
//! * or the whole of an item of 13 words or more with any numbers ([`super::whole_items`]).
//!
//! What many items share is no evidence of any of them, so these are left out:
//! * an n-gram of more than [`MAX_ITEMS_PER_NGRAM`] different texts (task instructions, templates);
//! * an n-gram of which fewer than half the words mean anything: "10 - 8 = 2" stands in many solutions, the alphabet
//!   and the counting numbers in many texts. An item made of such n-grams alone (a long sum) counts as a whole;
//! * a short question with fewer than two words of its own ("Which of the following statements is true?"), or with
//!   fewer than four that one file asks twice with different answers: inside a text it counts together with its choices
//!   alone, in whatever order they stand.
//!
//! Measured on real items planted in twelve disguises and on innocent look-alikes: `planted_tests.rs`, figures in
//! `docs/pipeline.md`.

use std::{collections::HashSet, ops::Range};

use super::{
    benchmarks::BenchmarkText,
    ngram_table::NgramTable,
    normalize::{Words, hash_sequence, is_content, is_sign, item_words},
    row_words::{Conversation, Rolling, RowWords},
    whole_items::{MIN_MASKED_WORDS, Signs, Units, WholeItems},
};

/// Different texts that may share an n-gram before it counts as boiler-plate. Benchmarks ask up to seven questions
/// about one passage and templates make dozens of items; ten lies between.
pub const MAX_ITEMS_PER_NGRAM: usize = 10;
/// Items shorter than this match only a row's whole question: "Who won?" is part of many innocent texts.
const MIN_EMBEDDED_WORDS: usize = 4;
/// Items shorter than this are looked for only in what the user asks: answers say "The moon is full" by themselves.
const MIN_ANSWER_WORDS: usize = 8;
/// A short item, or a long one without telling n-grams, needs this many words (or numbers, or signs) of its own.
const MIN_OWN_WORDS: u32 = 2;
/// A question with so many words of its own names its item even when the benchmark asks it twice.
const MIN_UNIQUE_WORDS: u32 = 4;
/// Words with a meaning that an item needs to be found whatever its numbers: formulas of one shape are not one item.
const MIN_MASKED_CONTENT: usize = 5;
/// Words that any question may be made of.
const GENERIC_WORDS: &[&str] = &[
    "a",
    "all",
    "an",
    "and",
    "any",
    "are",
    "as",
    "at",
    "be",
    "been",
    "best",
    "by",
    "can",
    "correct",
    "described",
    "describes",
    "did",
    "do",
    "does",
    "example",
    "false",
    "following",
    "for",
    "from",
    "has",
    "have",
    "how",
    "in",
    "is",
    "it",
    "its",
    "likely",
    "many",
    "most",
    "much",
    "not",
    "of",
    "on",
    "one",
    "or",
    "statement",
    "statements",
    "that",
    "the",
    "there",
    "these",
    "this",
    "those",
    "to",
    "true",
    "was",
    "were",
    "what",
    "when",
    "where",
    "which",
    "who",
    "why",
    "with",
    "would",
];
/// Longest evidence, in words.
const MAX_EVIDENCE_WORDS: usize = 40;

/// Where a leaked text comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// The benchmark file, or the name of a built-in set.
    pub source: String,
    /// The item's position in the file, from 0.
    pub index: usize,
    /// The words that the row shares with it.
    pub span: String,
    /// Whether numbers had to be masked to find it.
    pub other_numbers: bool,
}

impl std::fmt::Display for Leak {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = if self.other_numbers { " with other numbers" } else { "" };
        write!(formatter, "{} item {}{how}: \"{}\"", self.source, self.index, self.span)
    }
}

/// Gathers benchmark texts; [`Self::build`] makes them searchable.
pub struct IndexBuilder {
    n: usize,
    sources: Vec<String>,
    texts: Vec<TextKey>,
    /// (hash, text) of every n-gram.
    ngrams: Vec<(u64, u32)>,
    masked: Vec<(u64, u32)>,
    whole: WholeItems,
    whole_masked: WholeItems,
}

/// What is kept of a text.
#[derive(Clone)]
struct TextKey {
    /// Number of its source, and its place there.
    source: u32,
    index: u32,
    /// Hashes of the words of the question and of the answer.
    question: u64,
    answer: u64,
    /// Hash of its units and of its signs.
    units: u64,
    signs: Signs,
    words: u32,
    own_words: u32,
    /// Hash and length in units of each choice, where the words of the question name no item.
    choices: Vec<(u64, u32)>,
}

impl IndexBuilder {
    /// `n` words per n-gram.
    pub fn new(n: usize) -> Self {
        Self {
            n,
            sources: Vec::new(),
            texts: Vec::new(),
            ngrams: Vec::new(),
            masked: Vec::new(),
            whole: WholeItems::default(),
            whole_masked: WholeItems::default(),
        }
    }

    /// Adds one text. Texts of one source come one after the other.
    pub fn add(&mut self, text: &BenchmarkText) {
        if self.sources.last() != Some(&text.source) {
            self.sources.push(text.source.clone());
        }
        let mut words = Words::of(&text.question);
        let question_words = words.len();
        if question_words == 0 {
            return;
        }
        let answer = text.answer.as_deref().unwrap_or_default();
        let number = u32::try_from(self.texts.len()).expect("fewer than 2^32 benchmark texts");
        let units = Units::exact(&words);
        let own_words = own_words(&words);
        self.texts.push(TextKey {
            source: (self.sources.len() - 1) as u32,
            index: text.index as u32,
            question: hash_sequence(words.hashes()),
            answer: hash_sequence(Words::of(answer).hashes()),
            units: units.hash(),
            signs: Signs::of(&words, 0, question_words),
            words: question_words as u32,
            own_words,
            choices: if own_words < MIN_UNIQUE_WORDS { choice_keys(&text.choices) } else { Vec::new() },
        });
        let can_have_other_numbers = item_words(&text.question) >= MIN_MASKED_WORDS;
        let content = (0..words.len()).filter(|&place| words.is_content(place)).count();
        let masked_units = (can_have_other_numbers && content >= MIN_MASKED_CONTENT).then(|| Units::masked(&words));
        words.push_text(answer);
        let row = RowWords::new(&words);
        let has_telling = (0..(question_words + 1).saturating_sub(self.n)).any(|at| row.is_telling(at, at + self.n));
        if !has_telling || !can_have_other_numbers {
            self.whole.add(&units, number);
        }
        if let Some(units) = masked_units {
            self.whole_masked.add(&units, number);
        }
        for start in 0..(words.len() + 1).saturating_sub(self.n) {
            let end = start + self.n;
            // A short question is looked for whole, with its numbers; part of its formula would be found without them.
            if row.is_telling(start, end) && (can_have_other_numbers || end > question_words) {
                self.ngrams.push((row.plain.hash(start, end), number));
                // Solutions share turns of phrase ("subtracting 8 from both sides we get"); their numbers tell them apart.
                if can_have_other_numbers && end <= question_words && row.is_telling_when_masked(start, end) {
                    self.masked.push((row.masked.hash(start, end), number));
                }
            }
        }
    }

    /// The finished index.
    pub fn build(self) -> BenchmarkIndex {
        let mut texts = self.texts;
        let generic = generic_questions(&texts);
        let question_of = |text: u32| texts[text as usize].question;
        let (ngrams, common) = NgramTable::build(self.ngrams, MAX_ITEMS_PER_NGRAM, question_of);
        let (masked, masked_common) = NgramTable::build(self.masked, MAX_ITEMS_PER_NGRAM, question_of);
        for text in &mut texts {
            if text.own_words < MIN_UNIQUE_WORDS && generic.contains(&text.question) {
                text.own_words = 0;
            }
        }
        let counts = IndexCounts {
            texts: texts.len(),
            ngrams: ngrams.len(),
            masked_ngrams: masked.len(),
            short_texts: self.whole.len(),
            masked_texts: self.whole_masked.len(),
            dropped_as_common: common + masked_common,
        };
        let (whole, whole_masked) = (self.whole, self.whole_masked);
        BenchmarkIndex { n: self.n, sources: self.sources, texts, ngrams, masked, whole, whole_masked, counts }
    }
}

/// Words, numbers and signs that not every question is made of. A formula of "not", "and", "true" is all its own.
fn own_words(words: &Words) -> u32 {
    let own = words.iter().filter(|word| !GENERIC_WORDS.contains(word)).count();
    let is_logic = |word: &&str| matches!(*word, "not" | "and" | "or" | "true" | "false");
    let is_formula = 2 * words.iter().filter(is_logic).count() > words.len();
    let is_series = words.iter().all(|word| !is_content(word) && !is_sign(word));
    match (is_formula, is_series) {
        (true, _) => MIN_UNIQUE_WORDS,
        (_, true) => 0,
        _ => own as u32,
    }
}

fn choice_keys(choices: &[String]) -> Vec<(u64, u32)> {
    let units = choices.iter().map(|choice| Units::exact(&Words::of(choice)));
    units.filter(|units| !units.is_empty()).map(|units| (units.hash(), units.len() as u32)).collect()
}

/// Questions that one file asks more than once with different answers: they name no item.
fn generic_questions(texts: &[TextKey]) -> HashSet<u64> {
    let mut keys: Vec<(u32, u64, u64)> = texts.iter().map(|text| (text.source, text.question, text.answer)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.windows(2).filter(|pair| pair[0].0 == pair[1].0 && pair[0].1 == pair[1].1).map(|pair| pair[0].1).collect()
}

/// How large the index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct IndexCounts {
    /// Texts of items.
    pub texts: usize,
    /// Different n-grams.
    pub ngrams: usize,
    /// Different n-grams with their numbers masked.
    pub masked_ngrams: usize,
    /// Items looked for whole, with their exact numbers.
    pub short_texts: usize,
    /// Items looked for whole, whatever their numbers.
    pub masked_texts: usize,
    /// N-grams left out because too many items share them.
    pub dropped_as_common: usize,
}

/// All benchmark texts, searchable. Holds hashes, not texts.
pub struct BenchmarkIndex {
    n: usize,
    sources: Vec<String>,
    texts: Vec<TextKey>,
    ngrams: NgramTable,
    masked: NgramTable,
    whole: WholeItems,
    whole_masked: WholeItems,
    counts: IndexCounts,
}

impl BenchmarkIndex {
    /// How large the index is.
    pub fn counts(&self) -> IndexCounts {
        self.counts
    }

    /// The first benchmark text that a row holds; `question` is all that the user asks.
    pub fn find(&self, question: &Words, conversation: &Conversation) -> Option<Leak> {
        let all = &conversation.words;
        let row = RowWords::new(all);
        let units = Units::exact(all);
        self.find_ngram(all, &row, &row.plain, &self.ngrams, false)
            .or_else(|| self.find_asked(question))
            .or_else(|| self.find_whole(conversation, &units))
            .or_else(|| self.find_ngram(all, &row, &row.masked, &self.masked, true))
            .or_else(|| self.find_masked(all, &units))
    }

    fn find_ngram(
        &self,
        words: &Words,
        row: &RowWords,
        hashes: &Rolling,
        table: &NgramTable,
        masked: bool,
    ) -> Option<Leak> {
        let hit = |start: usize| {
            let end = start + self.n;
            let is_worth_it = if masked { row.is_telling_when_masked(start, end) } else { row.is_telling(start, end) };
            if end <= words.len() && is_worth_it { table.find(hashes.hash(start, end)) } else { None }
        };
        let (start, text) =
            (0..(words.len() + 1).saturating_sub(self.n)).find_map(|start| Some((start, hit(start)?)))?;
        let mut last = start;
        while last + 1 + self.n <= words.len() && last - start + self.n < MAX_EVIDENCE_WORDS && hit(last + 1).is_some()
        {
            last += 1;
        }
        Some(self.leak(text, words, start..last + self.n, masked))
    }

    /// An item that is the user's whole question: then nothing is too short or too general.
    fn find_asked(&self, question: &Words) -> Option<Leak> {
        let signs = Signs::of(question, 0, question.len());
        let units = Units::exact(question);
        let is_same = |text: &&u32| signs.agree(&self.texts[**text as usize].signs);
        let &text = self.whole.same(&units).iter().find(is_same).filter(|_| !units.is_empty())?;
        Some(self.leak(text, question, 0..question.len(), false))
    }

    /// An item, with its exact numbers, as a part of the row.
    fn find_whole(&self, conversation: &Conversation, units: &Units) -> Option<Leak> {
        let Conversation { words: all, turns } = conversation;
        self.whole.find(units, |texts, start, end| {
            let turn = turns.iter().find(|turn| turn.words.start <= start && end <= turn.words.end)?;
            let signs = Signs::around(all, start, end, &turn.words);
            let is_item = |text: &&u32| {
                let key = &self.texts[**text as usize];
                let words = key.words as usize;
                let is_own = words >= MIN_EMBEDDED_WORDS && key.own_words >= MIN_OWN_WORDS;
                (words >= MIN_ANSWER_WORDS || turn.is_user)
                    && signs.agree(&key.signs)
                    && (is_own || has_choices(units, &key.choices))
            };
            let &text = texts.iter().find(is_item)?;
            Some(self.leak(text, all, start..end, false))
        })
    }

    /// An item, whatever its numbers, as a part of the row.
    fn find_masked(&self, words: &Words, units: &Units) -> Option<Leak> {
        self.whole_masked.find(&Units::masked(words), |texts, start, end| {
            // "What is 5 divided by 2" has the form of many a long sum.
            if end - start < MIN_MASKED_WORDS {
                return None;
            }
            let (hash, signs) = (units.hash_of(start, end), Signs::of(words, start, end));
            let fit = || texts.iter().filter(|&&text| signs.agree(&self.texts[text as usize].signs));
            let same = fit().find(|&&text| self.texts[text as usize].units == hash);
            let &text = same.or(fit().next())?;
            Some(self.leak(text, words, start..end, same.is_none()))
        })
    }

    fn leak(&self, text: u32, words: &Words, span: Range<usize>, other_numbers: bool) -> Leak {
        let key = &self.texts[text as usize];
        let span = words.join(span.start, span.end.min(span.start + MAX_EVIDENCE_WORDS));
        Leak { source: self.sources[key.source as usize].clone(), index: key.index as usize, span, other_numbers }
    }
}

/// Whether a row names the item by its choices, in any order: two of them, and half of all.
fn has_choices(units: &Units, choices: &[(u64, u32)]) -> bool {
    let found = choices.iter().filter(|&&(hash, length)| units.contain(hash, length as usize)).count();
    found >= 2 && 2 * found >= choices.len()
}
