//! Keeps evaluation items out of the training rows.
//!
//! An item counts as leaked when a row (all its turns, as the words of [`super::normalize`]) holds
//! * any run of `n` words of the item's question, or of its question followed by its answer (the n-gram test of GPT-3
//!   and most since; `n` is 13 by default), also with every number masked, so that the same text with other numbers is
//!   found;
//! * or the whole of an item of fewer than `n` words, numbers and arithmetic signs included: from eight words on
//!   anywhere, from four on in what the user asks, and below that only as the user's whole question.
//!
//! What many items share is no evidence of any of them, so these are left out:
//! * an n-gram of more than [`MAX_ITEMS_PER_NGRAM`] different texts (task instructions, templates);
//! * an n-gram of which fewer than half the words mean anything: "10 - 8 = 2" stands in many solutions, the alphabet
//!   and the counting numbers in many texts. An item made of such n-grams alone (a long sum) counts as a whole;
//! * a short question with fewer than two words of its own ("Which of the following statements is true?"), or with
//!   fewer than four that one file asks twice with different answers.
//!
//! Measured on 300 to 500 items each of seven public benchmarks, planted in five disguises, and on the training splits
//! of three of them as innocent rows: see `docs/pipeline.md`.

use std::collections::{HashMap, HashSet};

use super::{
    benchmarks::BenchmarkText,
    ngram_table::NgramTable,
    normalize::{Words, hash_sequence, hash_word, is_number, is_sign, mix},
    row_words::{Conversation, Rolling, RowWords, Turn},
};

/// Different texts that may share an n-gram before it counts as boiler-plate. Benchmarks ask up to seven questions
/// about one passage and templates make dozens of items; ten lies between.
pub const MAX_ITEMS_PER_NGRAM: usize = 10;
/// Items shorter than this match only a row's whole question: "Who won?" is part of many innocent texts.
const MIN_EMBEDDED_WORDS: usize = 4;
/// Items shorter than this are looked for only in what the user asks: answers say "The moon is full" by themselves.
const MIN_ANSWER_WORDS: usize = 8;
/// A short item, or a long one without telling n-grams, needs this many words (or numbers, or signs) of its own.
const MIN_OWN_WORDS: usize = 2;
/// A question with so many words of its own names its item even when the benchmark asks it twice.
const MIN_UNIQUE_WORDS: usize = 4;
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

/// A text that is looked for as a whole.
struct ShortText {
    hash: u64,
    head: u64,
    text: u32,
    words: u32,
    own_words: usize,
}

/// Gathers benchmark texts; [`Self::build`] makes them searchable.
pub struct IndexBuilder {
    n: usize,
    sources: Vec<String>,
    /// Per text: source, index in the source, hash of the question's words, hash of the answer's words.
    texts: Vec<TextKey>,
    /// (hash, text) of every n-gram.
    ngrams: Vec<(u64, u32)>,
    masked: Vec<(u64, u32)>,
    /// Every short text.
    short: Vec<ShortText>,
}

#[derive(Clone, Copy)]
struct TextKey {
    source: u32,
    index: u32,
    question: u64,
    answer: u64,
}

impl IndexBuilder {
    /// `n` words per n-gram.
    pub fn new(n: usize) -> Self {
        Self { n, sources: Vec::new(), texts: Vec::new(), ngrams: Vec::new(), masked: Vec::new(), short: Vec::new() }
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
        self.texts.push(TextKey {
            source: (self.sources.len() - 1) as u32,
            index: text.index as u32,
            question: hash_sequence(words.iter().map(hash_word)),
            answer: hash_sequence(Words::of(answer).iter().map(hash_word)),
        });
        let own_words = words.iter().filter(|word| !GENERIC_WORDS.contains(word)).count();
        let rolling = Rolling::new(words.iter().map(hash_word));
        let whole = rolling.hash(0, question_words);
        let head = rolling.hash(0, question_words.min(MIN_EMBEDDED_WORDS));
        words.push_text(answer);
        let row = RowWords::new(&words);
        let has_telling = (0..(question_words + 1).saturating_sub(self.n)).any(|at| row.is_telling(at, at + self.n));
        let is_series = row.content_before[question_words] + row.signs_before[question_words] == 0;
        let is_own = question_words < MIN_EMBEDDED_WORDS || (own_words >= MIN_OWN_WORDS && !is_series);
        if !has_telling && is_own {
            self.short.push(ShortText { hash: whole, head, text: number, words: question_words as u32, own_words });
        }
        for start in 0..(words.len() + 1).saturating_sub(self.n) {
            let end = start + self.n;
            if row.is_telling(start, end) {
                self.ngrams.push((row.plain.hash(start, end), number));
                // Solutions share turns of phrase ("subtracting 8 from both sides we get"); their numbers tell them apart.
                if end <= question_words && row.is_telling_when_masked(start, end) {
                    self.masked.push((row.masked.hash(start, end), number));
                }
            }
        }
    }

    /// The finished index.
    pub fn build(mut self) -> BenchmarkIndex {
        let texts = self.texts;
        let generic = generic_questions(&texts);
        let question_of = |text: u32| texts[text as usize].question;
        let (ngrams, common) = NgramTable::build(self.ngrams, MAX_ITEMS_PER_NGRAM, question_of);
        let (masked, masked_common) = NgramTable::build(self.masked, MAX_ITEMS_PER_NGRAM, question_of);
        self.short.retain(|short| short.own_words >= MIN_UNIQUE_WORDS || !generic.contains(&question_of(short.text)));
        let mut heads: HashMap<u64, Vec<usize>> = HashMap::new();
        for short in &self.short {
            let lengths = heads.entry(short.head).or_default();
            if !lengths.contains(&(short.words as usize)) {
                lengths.push(short.words as usize);
            }
        }
        let short =
            self.short.into_iter().map(|short| (short_key(short.hash, short.words as usize), short.text)).collect();
        let (short, _) = NgramTable::build(short, usize::MAX, question_of);
        let counts = IndexCounts {
            texts: texts.len(),
            ngrams: ngrams.len(),
            masked_ngrams: masked.len(),
            short_texts: short.len(),
            dropped_as_common: common + masked_common + generic.len(),
        };
        BenchmarkIndex { n: self.n, sources: self.sources, texts, ngrams, masked, short, heads, counts }
    }
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
    /// Items shorter than an n-gram.
    pub short_texts: usize,
    /// N-grams and short questions left out because too many items share them.
    pub dropped_as_common: usize,
}

/// All benchmark texts, searchable. Holds hashes, not texts.
pub struct BenchmarkIndex {
    n: usize,
    sources: Vec<String>,
    texts: Vec<TextKey>,
    ngrams: NgramTable,
    masked: NgramTable,
    short: NgramTable,
    /// First words of the short texts -> how many words such texts have. Spares a look-up per length at every place.
    heads: HashMap<u64, Vec<usize>>,
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
        self.find_ngram(all, &row, &row.plain, &self.ngrams, false)
            .or_else(|| self.find_short(question, conversation, &row))
            .or_else(|| self.find_ngram(all, &row, &row.masked, &self.masked, true))
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
        Some(self.leak(text, words.join(start, last + self.n), masked))
    }

    fn find_short(&self, question: &Words, conversation: &Conversation, row: &RowWords) -> Option<Leak> {
        let Conversation { words: all, turns } = conversation;
        // "What is 3 + 4" is no leak in "what is 3 + 4 * 5"; in "what is 3 + 4 = ?", or before the answer "-7", it is.
        let is_sign = |index: usize| is_sign(all.word(index)) && all.word(index) != "=";
        let is_formula_cut = |place: usize| {
            place > 0
                && place < all.len()
                && !turns.iter().any(|turn| turn.words.end == place)
                && (is_sign(place) && is_number(all.word(place - 1))
                    || is_sign(place - 1) && is_number(all.word(place)))
        };
        let asked = question.len();
        if (1..MIN_EMBEDDED_WORDS).contains(&asked) {
            let hash = Rolling::new(question.iter().map(hash_word)).hash(0, asked);
            if let Some(text) = self.short.find(short_key(hash, asked)) {
                return Some(self.leak(text, question.join(0, asked), false));
            }
        }
        for start in 0..(all.len() + 1).saturating_sub(MIN_EMBEDDED_WORDS) {
            let Some(lengths) = self.heads.get(&row.plain.hash(start, start + MIN_EMBEDDED_WORDS)) else { continue };
            for &length in lengths {
                let end = start + length;
                let is_asked = |turn: &Turn| turn.is_user && turn.words.start <= start && end <= turn.words.end;
                let is_out_of_place = length < MIN_ANSWER_WORDS && !turns.iter().any(is_asked);
                if end > all.len() || is_out_of_place || is_formula_cut(start) || is_formula_cut(end) {
                    continue;
                }
                if let Some(text) = self.short.find(short_key(row.plain.hash(start, end), length)) {
                    return Some(self.leak(text, all.join(start, end), false));
                }
            }
        }
        None
    }

    fn leak(&self, text: u32, span: String, other_numbers: bool) -> Leak {
        let key = self.texts[text as usize];
        Leak { source: self.sources[key.source as usize].clone(), index: key.index as usize, span, other_numbers }
    }
}

/// Texts of different lengths share one table.
fn short_key(hash: u64, words: usize) -> u64 {
    mix(hash ^ words as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language_model::Message;

    const LONG: &str = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. \
                        How many clips did Natalia sell altogether?";

    fn index(items: &[(&str, Option<&str>)]) -> BenchmarkIndex {
        let mut builder = IndexBuilder::new(13);
        for (index, (question, answer)) in items.iter().enumerate() {
            builder.add(&BenchmarkText {
                source: "planted.jsonl".into(),
                index,
                question: (*question).into(),
                answer: answer.map(str::to_owned),
            });
        }
        builder.build()
    }

    fn find(index: &BenchmarkIndex, question: &str, answer: &str) -> Option<Leak> {
        let turns = [Message::user(question), Message::assistant(answer)];
        index.find(&Words::of(question), &Conversation::of(&turns))
    }

    fn leaked_item(index: &BenchmarkIndex, question: &str, answer: &str) -> Option<usize> {
        find(index, question, answer).map(|leak| leak.index)
    }

    #[test]
    fn verbatim_recased_repunctuated_and_embedded_items_are_found() {
        let index = index(&[("What is the boiling point of water at sea level?", None), (LONG, Some("72"))]);
        let bare: String = LONG.chars().filter(|char| !char.is_ascii_punctuation()).collect();
        for planted in [LONG.to_owned(), LONG.to_uppercase(), bare, format!("Solve this! {LONG} Show your work.")] {
            assert_eq!(leaked_item(&index, &planted, "72"), Some(1), "{planted}");
        }
        assert_eq!(leaked_item(&index, "Write a riddle.", LONG), Some(1), "an answer leaks as well as a question");
        let short = "Tell me: WHAT IS the boiling-point of water, at sea level";
        assert_eq!(leaked_item(&index, short, "100 C"), Some(0));
    }

    #[test]
    fn the_same_text_with_other_numbers_is_found_and_says_so() {
        let index = index(&[(LONG, None)]);
        let numbers = find(&index, &LONG.replace("48", "1,250"), "").expect("a leak");
        assert_eq!(numbers.index, 0);
        let dense = "If 12 men dig 5 ditches in 7 days, how many ditches do 9 men dig in 21 days?";
        let index = super::tests::index(&[(dense, None)]);
        let other = dense.replace("12", "16").replace('5', "3").replace('9', "4").replace('7', "8");
        let leak = find(&index, &other, "").expect("a leak");
        assert!(leak.other_numbers && leak.to_string().contains("planted.jsonl item 0 with other numbers"), "{leak}");
    }

    #[test]
    fn innocent_look_alikes_are_kept() {
        let items = [
            (LONG, Some("72")),
            ("What is 34 + 25?", Some("59")),
            ("What is the capital of Australia?", Some("Canberra")),
            ("Who won?", None),
            ("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", None),
            ("a b c d e f g h i j k l m n o p", None),
        ];
        let index = index(&items);
        for (question, answer) in [
            ("What is 34 + 26?", "60"),
            ("What is 34 - 25?", "9"),
            ("What is 34 + 25 + 7?", "66"),
            ("What is the capital of Austria?", "Vienna"),
            ("Canberra is the capital of Australia. Who won the last election there?", "The count goes on."),
            ("Natalia baked pies for 48 of her friends in April. How many did she bake in May?", "24"),
            ("Count to fifteen.", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"),
            ("Recite the alphabet.", "A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P"),
        ] {
            assert_eq!(find(&index, question, answer), None, "{question}");
        }
        assert_eq!(leaked_item(&index, "Who won", "They did."), Some(3), "a tiny item is a leak as a whole question");
        for (question, answer) in
            [("Now, what is 34 + 25?", "59"), ("What is 34 + 25 = ?", "59"), ("What is 34 + 25", "-9")]
        {
            assert_eq!(leaked_item(&index, question, answer), Some(1), "{question} {answer}");
        }
    }

    #[test]
    fn what_many_items_share_is_evidence_of_none() {
        let rule = "Read the sentence below with care and then say whether its tone is glad or sad:";
        let words = ["kite", "lamp", "moss", "nail", "opal", "pear", "quay", "rope", "seed", "tide", "urn", "vase"];
        let items: Vec<String> = words
            .iter()
            .map(|word| format!("{rule} the {word} broke and all of us who saw it wept aloud {word}"))
            .collect();
        let items: Vec<_> = items.iter().map(|item| (item.as_str(), None)).collect();
        let index = index(&items);
        assert_eq!(find(&index, &format!("{rule} my dog came home."), "glad"), None);
        assert_eq!(leaked_item(&index, items[4].0, "sad"), Some(4));
        assert!(index.counts().dropped_as_common > 0);
    }

    #[test]
    fn a_short_question_asked_twice_with_different_answers_names_no_item_without_its_answer() {
        let index = index(&[
            ("Which of these is true?", Some("Whales breathe with lungs and come up to the surface for air")),
            ("Which of these is true?", Some("Iron rusts")),
            ("Which of these woods floats?", Some("Cork")),
            ("Which of these woods floats?", Some("Cork")),
        ]);
        assert_eq!(find(&index, "Which of these is true?", "Water is wet"), None);
        let answer = "Whales breathe with lungs and come up to the surface for air";
        assert_eq!(leaked_item(&index, "Which of these is true?", answer), Some(0));
        assert_eq!(leaked_item(&index, "Which of these woods floats?", "Wood"), Some(2), "a copy is no second item");
    }

    #[test]
    fn evidence_quotes_the_shared_words() {
        let index = index(&[(LONG, None)]);
        let leak = find(&index, &format!("Riddle. {LONG}"), "").expect("a leak");
        assert!(leak.span.starts_with("natalia sold clips to 48 of her friends in april and"), "{leak}");
        assert!(!leak.span.contains("riddle") && !leak.other_numbers, "{leak}");
    }
}
