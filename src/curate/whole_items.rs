//! Finds whole benchmark items in a text, however it is spaced and punctuated.
//!
//! Words are the wrong unit for that: "well-known" without its hyphen is one word, `x^2` without its signs is `x2`. So
//! texts are compared as *units*: every letter, and every number as a whole. Two forms of them are indexed:
//! * *exact*, for items too short for an n-gram or made of formulas: the numbers count, and so do the arithmetic signs
//!   unless the row has none there (whoever strips punctuation strips them too);
//! * *masked*, for items of [`MIN_MASKED_WORDS`] words or more: every run of numbers is one mark, so that the same text
//!   with other numbers is found, formulas included.
//!
//! A match begins and ends at words of the row. It is looked up by its first 4, 8, 16 or 32 units and then by its length.

use std::{collections::HashMap, hash::BuildHasherDefault, ops::Range, sync::LazyLock};

use super::{
    minhash::Identity,
    normalize::{Words, hash_sequence, hash_word, mix},
    row_words::Rolling,
};

/// Items with fewer words match on their exact numbers alone.
pub const MIN_MASKED_WORDS: usize = 13;
/// Lengths in units of the beginnings by which items are looked up.
const HEADS: [usize; 4] = [4, 8, 16, 32];
/// Bits of the table that spares most look-ups.
const FILTER_BITS: u32 = 21;

/// A text as units.
pub struct Units {
    /// Hash of each run of units.
    rolling: Rolling,
    /// Units before each word; arithmetic signs have none, and all numbers of a masked run one.
    before: Vec<u32>,
    masked: bool,
}

impl Units {
    /// Letters, and numbers as they are.
    pub fn exact(words: &Words) -> Self {
        Self::of(words, false)
    }

    /// Letters, and one mark for every run of numbers.
    pub fn masked(words: &Words) -> Self {
        Self::of(words, true)
    }

    fn of(words: &Words, masked: bool) -> Self {
        const MARK: u64 = 1;
        let mut units: Vec<u64> = Vec::with_capacity(5 * words.len());
        let mut before = Vec::with_capacity(words.len() + 1);
        for (place, word) in words.iter().enumerate() {
            before.push(units.len() as u32);
            if words.is_sign(place) {
                continue;
            }
            if word.is_ascii() && !words.is_number(place) {
                units.extend(word.bytes().map(|letter| letter_unit(char::from(letter))));
                continue;
            }
            let mut rest = word;
            while let Some(first) = rest.chars().next() {
                let length = if first.is_ascii_digit() {
                    let is_inner = |char: char| char.is_ascii_digit() || char == '.';
                    rest.find(|char| !is_inner(char)).unwrap_or(rest.len())
                } else {
                    first.len_utf8()
                };
                let unit = match (first.is_ascii_digit(), masked) {
                    (true, true) => MARK,
                    (true, false) => hash_word(&rest[..length]),
                    (false, _) => letter_unit(first),
                };
                if unit != MARK || units.last() != Some(&MARK) {
                    units.push(unit);
                }
                rest = &rest[length..];
            }
        }
        before.push(units.len() as u32);
        Self { rolling: Rolling::new(units.into_iter()), before, masked }
    }

    /// Number of units.
    pub fn len(&self) -> usize {
        self.before.last().map_or(0, |&units| units as usize)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hash of all units.
    pub fn hash(&self) -> u64 {
        self.rolling.hash(0, self.len())
    }

    /// After which word a match that ends with unit `end` ends: with a masked run of numbers all of them, otherwise no
    /// sign behind it. `None` in the middle of a word.
    fn last_word(&self, end: usize) -> Option<usize> {
        let first = self.before.partition_point(|&before| (before as usize) < end);
        let behind = self.before.partition_point(|&before| (before as usize) <= end);
        (first < behind).then_some(if self.masked { behind - 1 } else { first })
    }

    /// Whether a run of whole words has this hash; `length` is its number of units.
    pub fn contain(&self, hash: u64, length: usize) -> bool {
        self.before.iter().any(|&start| {
            let end = start as usize + length;
            end <= self.len()
                && self.rolling.hash(start as usize, end) == hash
                && self.before.binary_search(&(end as u32)).is_ok()
        })
    }

    /// Hash of the units of words `start..end`.
    pub fn hash_of(&self, start: usize, end: usize) -> u64 {
        self.rolling.hash(self.before[start] as usize, self.before[end] as usize)
    }
}

/// The unit of a letter.
fn letter_unit(letter: char) -> u64 {
    static ASCII: LazyLock<[u64; 128]> = LazyLock::new(|| std::array::from_fn(|letter| mix(letter as u64 + 2)));
    ASCII.get(letter as usize).copied().unwrap_or_else(|| mix(u64::from(u32::from(letter)) + 2))
}

/// The arithmetic signs of a run of words, by hash. An equals sign at an end only asks for the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signs {
    before: Option<u64>,
    among: Option<u64>,
    after: Option<u64>,
}

impl Signs {
    /// The signs of words `start..end`: those in front, at the end and between the others.
    pub fn of(words: &Words, start: usize, end: usize) -> Self {
        let is_word = |place: &usize| !words.is_sign(*place);
        let first = (start..end).find(is_word).unwrap_or(end);
        let last = (first..end).rev().find(is_word).map_or(end, |place| place + 1);
        Self::around(words, first, last, &(start..end))
    }

    /// The signs among words `start..end`, and those next to them within `turn`.
    pub fn around(words: &Words, start: usize, end: usize, turn: &Range<usize>) -> Self {
        let sign = |place: usize| (words.is_sign(place) && words.word(place) != "=").then(|| words.hash(place));
        let mut among = (start..end).filter(|&place| words.is_sign(place)).map(|place| words.hash(place)).peekable();
        Self {
            before: if start > turn.start { sign(start - 1) } else { None },
            among: among.peek().is_some().then(|| hash_sequence(among)),
            after: if end < turn.end { sign(end) } else { None },
        }
    }

    /// Whether a row's signs are the item's. A row without any has lost them with its punctuation; "3 + 4 * 5" is
    /// another formula than "3 + 4".
    pub fn agree(&self, item: &Self) -> bool {
        let is_same = |own: Option<u64>, item: Option<u64>| own.is_none() || own == item;
        is_same(self.before, item.before) && is_same(self.among, item.among) && is_same(self.after, item.after)
    }
}

/// Whole items by their units.
#[derive(Default)]
pub struct WholeItems {
    /// First units -> lengths in units of the items that begin so.
    heads: HashMap<u64, Vec<u32>, BuildHasherDefault<Identity>>,
    /// Which heads may be there: one bit per hash. Items with a longer head have a bit for its beginnings of 8 and 16
    /// units too, so that where the shorter is not there the longer need not be looked for.
    filter: Vec<u64>,
    /// Whether any item has a head of four units.
    has_least: bool,
    /// All units -> texts, in order.
    items: HashMap<u64, Vec<u32>, BuildHasherDefault<Identity>>,
}

impl WholeItems {
    /// Adds a text; fewer than four units have no head and are found by [`Self::same`] alone.
    pub fn add(&mut self, units: &Units, text: u32) {
        let length = units.len();
        let same = self.items.entry(key(units.hash(), length)).or_default();
        if same.last() != Some(&text) {
            same.push(text);
        }
        let Some(longest) = HEADS.iter().rposition(|&head| head <= length) else { return };
        if self.filter.is_empty() {
            self.filter = vec![0; 1 << (FILTER_BITS - 6)];
        }
        self.has_least |= longest == 0;
        for &head in &HEADS[longest.min(1)..=longest] {
            let (place, bit) = filter_bit(key(units.rolling.hash(0, head), head));
            self.filter[place] |= bit;
        }
        let hash = key(units.rolling.hash(0, HEADS[longest]), HEADS[longest]);
        let lengths = self.heads.entry(hash).or_default();
        if let Err(place) = lengths.binary_search(&(length as u32)) {
            lengths.insert(place, length as u32);
        }
    }

    /// Number of different items.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// The texts whose units are just these.
    pub fn same(&self, units: &Units) -> &[u32] {
        self.items.get(&key(units.hash(), units.len())).map_or(&[], Vec::as_slice)
    }

    /// Hands every item that stands among the words of a text to `accept`, as its texts and its range of words, until
    /// one is accepted.
    pub fn find<T>(&self, units: &Units, mut accept: impl FnMut(&[u32], usize, usize) -> Option<T>) -> Option<T> {
        if self.filter.is_empty() {
            return None;
        }
        let total = units.len();
        for word in 0..units.before.len() - 1 {
            let start = units.before[word] as usize;
            if start == units.before[word + 1] as usize {
                continue;
            }
            for hash in self.heads_at(units, start).into_iter().rev().flatten() {
                for &length in self.heads.get(&hash).map_or(&[][..], Vec::as_slice) {
                    let end = start + length as usize;
                    if end > total {
                        break;
                    }
                    let Some(last) = units.last_word(end) else { continue };
                    let Some(texts) = self.items.get(&key(units.rolling.hash(start, end), length as usize)) else {
                        continue;
                    };
                    if let Some(found) = accept(texts, word, last) {
                        return Some(found);
                    }
                }
            }
        }
        None
    }
}

impl WholeItems {
    /// Hashes of the heads that may begin at a unit, shortest first.
    fn heads_at(&self, units: &Units, start: usize) -> [Option<u64>; HEADS.len()] {
        let head_at = |head: usize| {
            let end = start + head;
            if end > units.len() {
                return None;
            }
            let hash = key(units.rolling.hash(start, end), head);
            let (place, bit) = filter_bit(hash);
            (self.filter[place] & bit != 0).then_some(hash)
        };
        let mut heads = [None; HEADS.len()];
        if self.has_least {
            heads[0] = head_at(HEADS[0]);
        }
        for (hash, &head) in heads.iter_mut().zip(&HEADS).skip(1) {
            *hash = head_at(head);
            if hash.is_none() {
                break;
            }
        }
        heads
    }
}

fn key(hash: u64, length: usize) -> u64 {
    mix(hash ^ length as u64)
}

fn filter_bit(hash: u64) -> (usize, u64) {
    let bit = hash >> (64 - FILTER_BITS);
    ((bit >> 6) as usize, 1 << (bit & 63))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(items: &[&str], text: &str, masked: bool) -> Vec<(u32, String)> {
        let units = |text: &str| {
            let words = Words::of(text);
            if masked { Units::masked(&words) } else { Units::exact(&words) }
        };
        let mut index = WholeItems::default();
        for (number, item) in items.iter().enumerate() {
            index.add(&units(item), number as u32);
        }
        let words = Words::of(text);
        let mut found = Vec::new();
        index.find(&units(text), |texts, start, end| -> Option<()> {
            found.extend(texts.iter().map(|&text| (text, words.join(start, end))));
            None
        });
        found
    }

    #[test]
    fn spaces_hyphens_and_signs_do_not_hide_an_item_but_numbers_do() {
        let item = ["A well-known sum: what is x^2 + 3x?"];
        for text in ["so a wellknown sum what is x2 3 x then", "A WELL KNOWN SUM -- what is x ^ 2 + 3 x"] {
            assert_eq!(spans(&item, text, false).len(), 1, "{text}");
        }
        for text in ["a well-known sum: what is x^2 + 4x", "a well-known sum: what is x^23x", "known sum what is x2 3x"]
        {
            assert_eq!(spans(&item, text, false), [], "{text}");
        }
    }

    #[test]
    fn a_match_is_made_of_whole_words() {
        assert_eq!(
            spans(&["the cat sat"], "bathe cat sat, the cat sat, the cat satin", false),
            [(0, "the cat sat".into())]
        );
        assert_eq!(spans(&["go"], "go", false), [], "too few units to be looked for inside a text");
    }

    #[test]
    fn masked_numbers_agree_whatever_their_value_and_number() {
        let found = spans(&["Find 3 + 4 of these"], "find -12.5 of these; find 1, 2, 3 of these; find of these", true);
        assert_eq!(found, [(0, "find 12.5 of these".into()), (0, "find 1 2 3 of these".into())]);
    }

    #[test]
    fn a_masked_match_takes_all_numbers_of_its_last_run() {
        assert_eq!(spans(&["sum up 1, 2, 3"], "now sum up 7, 8, 9, 10 for me", true), [(0, "sum up 7 8 9 10".into())]);
    }

    #[test]
    fn signs_are_compared_in_order_and_at_both_ends() {
        let agree = |row: &str, item: &str| {
            let of = |text: &str| {
                let words = Words::of(text);
                Signs::of(&words, 0, words.len())
            };
            of(row).agree(&of(item))
        };
        assert!(agree("1 + 2 - 3", "4 + 5 - 6") && agree("1 2 3", "1 + 2 - 3") && agree("1 + 2 =", "1 + 2"));
        assert!(!agree("1 + 2 - 3", "1 - 2 + 3") && !agree("-1 + 2", "1 + 2") && !agree("1 + 2", "12"));
        assert!(agree("1 + 2", "-1 + 2"), "a row may have lost a sign");
    }
}
