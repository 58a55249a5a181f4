//! A conversation as decontamination looks at it: hashes of every run of its words, and which words mean anything.

use std::ops::Range;

use super::normalize::{Words, hash_word, is_content, is_number, mix};
use crate::language_model::Message;

/// The words of all turns of a row.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// All words in order.
    pub words: Words,
    /// The turns, in order; their ranges cover `words`.
    pub turns: Vec<Turn>,
}

/// One turn among the words of its conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Its words.
    pub words: Range<usize>,
    /// Whether the user speaks.
    pub is_user: bool,
}

impl Conversation {
    /// The words of these turns.
    pub fn of(messages: &[Message]) -> Self {
        let mut conversation = Self::default();
        for message in messages {
            let start = conversation.words.len();
            conversation.words.push_text(&message.content);
            conversation.turns.push(Turn { words: start..conversation.words.len(), is_user: message.role == "user" });
        }
        conversation
    }
}

/// What the search needs of a text's words.
pub(super) struct RowWords {
    /// Of the words themselves.
    pub plain: Rolling,
    /// Of the words with every number replaced by one mark.
    pub masked: Rolling,
    /// Words before each place that have a meaning; that hold a digit.
    content_before: Vec<u32>,
    numbers_before: Vec<u32>,
}

impl RowWords {
    /// Prepares a text.
    pub fn new(words: &Words) -> Self {
        let mask = hash_word("#");
        let running = |kind: &dyn Fn(&str) -> bool| {
            let mut sum = 0;
            std::iter::once(0)
                .chain(words.iter().map(|word| {
                    sum += u32::from(kind(word));
                    sum
                }))
                .collect()
        };
        Self {
            plain: Rolling::new(words.iter().map(hash_word)),
            masked: Rolling::new(words.iter().map(|word| if is_number(word) { mask } else { hash_word(word) })),
            content_before: running(&is_content),
            numbers_before: running(&is_number),
        }
    }

    /// Whether half of the words have a meaning.
    pub fn is_telling(&self, start: usize, end: usize) -> bool {
        2 * (self.content_before[end] - self.content_before[start]) as usize >= end - start
    }

    /// With its numbers masked, an n-gram must hold a number, and two words in three must have a meaning: formulas of
    /// one shape are not one item.
    pub fn is_telling_when_masked(&self, start: usize, end: usize) -> bool {
        let content = (self.content_before[end] - self.content_before[start]) as usize;
        self.numbers_before[end] > self.numbers_before[start] && 3 * content >= 2 * (end - start)
    }
}

/// Polynomial hashes of all runs of words of a text, each in constant time (Rabin-Karp modulo the prime 2^61 - 1).
pub(super) struct Rolling {
    prefix: Vec<u64>,
    power: Vec<u64>,
}

const PRIME: u64 = (1 << 61) - 1;
const BASE: u64 = 0x1234_5678_9abc_def1 % PRIME;

impl Rolling {
    /// The hashes of a sequence of word hashes.
    pub fn new(hashes: impl Iterator<Item = u64>) -> Self {
        let (mut prefix, mut power) = (vec![0], vec![1]);
        for (place, hash) in hashes.enumerate() {
            prefix.push((multiply(prefix[place], BASE) + hash % PRIME) % PRIME);
            power.push(multiply(power[place], BASE));
        }
        Self { prefix, power }
    }

    /// The hash of words `start..end`, spread over 64 bits.
    pub fn hash(&self, start: usize, end: usize) -> u64 {
        mix((self.prefix[end] + PRIME - multiply(self.prefix[start], self.power[end - start])) % PRIME)
    }
}

fn multiply(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    let folded = (product & u128::from(PRIME)) as u64 + (product >> 61) as u64;
    if folded >= PRIME { folded - PRIME } else { folded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rolling_hashes_depend_on_the_run_alone() {
        let hashes = [3u64, u64::MAX, 7, 3, u64::MAX, 7, 9];
        let rolling = Rolling::new(hashes.into_iter());
        assert_eq!(rolling.hash(0, 3), rolling.hash(3, 6));
        assert_ne!(rolling.hash(0, 3), rolling.hash(1, 4));
    }

    #[test]
    fn turns_cover_the_words() {
        let conversation =
            Conversation::of(&[Message::user("one two"), Message::assistant(""), Message::user("three")]);
        let ranges: Vec<_> = conversation.turns.iter().map(|turn| (turn.words.clone(), turn.is_user)).collect();
        assert_eq!(ranges, [(0..2, true), (2..2, false), (2..3, true)]);
    }
}
