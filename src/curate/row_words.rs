//! A row's texts as words, cut once, and as decontamination looks at them: hashes of every run of words, and which
//! words mean anything.

use std::{borrow::Cow, ops::Range, sync::LazyLock};

use super::normalize::{Words, hash_word, mix};
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
            conversation.push(&Words::of(&message.content), message.role == "user");
        }
        conversation
    }

    /// Adds a turn whose words are cut already.
    pub fn push(&mut self, words: &Words, is_user: bool) {
        let start = self.words.len();
        self.words.append(words);
        self.turns.push(Turn { words: start..self.words.len(), is_user });
    }
}

/// A row's texts, each cut into words once for all that look at them.
pub struct RowText<'a> {
    /// All user turns, one per line.
    pub question: Cow<'a, str>,
    /// All assistant turns, one per line.
    pub answer: Cow<'a, str>,
    /// The words of all user turns.
    pub asked: Words,
    /// The words of all assistant turns.
    pub answered: Words,
    /// The words of all system turns.
    pub system: Words,
    /// The words of all turns.
    pub conversation: Conversation,
    /// Every turn with its words.
    turns: Vec<(&'a Message, Words)>,
}

impl<'a> RowText<'a> {
    /// The texts of a conversation.
    pub fn of(messages: &'a [Message]) -> Self {
        let turns: Vec<(&Message, Words)> = messages.iter().map(|turn| (turn, Words::of(&turn.content))).collect();
        let (mut asked, mut answered, mut system) = (Words::default(), Words::default(), Words::default());
        let mut conversation = Conversation::default();
        for (turn, words) in &turns {
            match turn.role.as_str() {
                "user" => asked.append(words),
                "assistant" => answered.append(words),
                _ => system.append(words),
            }
            conversation.push(words, turn.role == "user");
        }
        let (question, answer) = (joined(messages, "user"), joined(messages, "assistant"));
        Self { question, answer, asked, answered, system, conversation, turns }
    }

    /// The text of every assistant turn with its words.
    pub fn answers(&self) -> impl Iterator<Item = (&'a str, &Words)> {
        let answers = self.turns.iter().filter(|(turn, _)| turn.role == "assistant");
        answers.map(|(turn, words)| (turn.content.as_str(), words))
    }

    /// The words of all turns but the system's.
    pub fn spoken(&self) -> Cow<'_, Words> {
        if self.system.is_empty() {
            return Cow::Borrowed(&self.conversation.words);
        }
        let mut spoken = Words::default();
        self.turns.iter().filter(|(turn, _)| turn.role != "system").for_each(|(_, words)| spoken.append(words));
        Cow::Owned(spoken)
    }
}

/// The turns of one role, one per line.
fn joined<'a>(messages: &'a [Message], role: &str) -> Cow<'a, str> {
    let mut turns = messages.iter().filter(|turn| turn.role == role).map(|turn| turn.content.as_str());
    let first = Cow::Borrowed(turns.next().unwrap_or_default());
    turns.fold(first, |text, turn| Cow::Owned(format!("{text}\n{turn}")))
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
        static MASK: LazyLock<u64> = LazyLock::new(|| hash_word("#"));
        let running = |is_kind: &dyn Fn(usize) -> bool| {
            let mut sum = 0;
            let sums = (0..words.len()).map(|place| {
                sum += u32::from(is_kind(place));
                sum
            });
            std::iter::once(0).chain(sums).collect()
        };
        let masked = |place| if words.is_number(place) { *MASK } else { words.hash(place) };
        Self {
            plain: Rolling::new(words.hashes()),
            masked: Rolling::new((0..words.len()).map(masked)),
            content_before: running(&|place| words.is_content(place)),
            numbers_before: running(&|place| words.is_number(place)),
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
}

const PRIME: u64 = (1 << 61) - 1;
const BASE: u64 = 0x1234_5678_9abc_def1 % PRIME;
/// Lengths of runs whose power of the base is kept ready; longer ones (whole items of a page) are computed.
const POWERS: usize = 1 << 12;

impl Rolling {
    /// The hashes of a sequence of word hashes.
    pub fn new(hashes: impl ExactSizeIterator<Item = u64>) -> Self {
        let mut prefix = Vec::with_capacity(hashes.len() + 1);
        let mut sum = 0;
        prefix.push(sum);
        for hash in hashes {
            sum = reduced(multiply(sum, BASE) + reduced((hash & PRIME) + (hash >> 61)));
            prefix.push(sum);
        }
        Self { prefix }
    }

    /// The hash of words `start..end`, spread over 64 bits.
    pub fn hash(&self, start: usize, end: usize) -> u64 {
        mix(reduced(self.prefix[end] + PRIME - multiply(self.prefix[start], power(end - start))))
    }
}

/// A power of the base.
fn power(exponent: usize) -> u64 {
    static TABLE: LazyLock<Vec<u64>> = LazyLock::new(|| {
        let next = |power: &u64| Some(multiply(*power, BASE));
        std::iter::successors(Some(1), next).take(POWERS).collect()
    });
    match TABLE.get(exponent) {
        Some(&power) => power,
        None => multiply(multiply(power(exponent / 2), power(exponent / 2)), power(exponent % 2)),
    }
}

/// A number below `2 * PRIME` modulo the prime.
fn reduced(value: u64) -> u64 {
    if value >= PRIME { value - PRIME } else { value }
}

fn multiply(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    reduced((product & u128::from(PRIME)) as u64 + (product >> 61) as u64)
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
        let long = Rolling::new((0..3 * POWERS).map(|place| (place % POWERS) as u64));
        assert_eq!(long.hash(0, 2 * POWERS), long.hash(POWERS, 3 * POWERS), "runs beyond the table of powers");
    }

    #[test]
    fn the_texts_of_a_row_are_those_of_its_turns() {
        let system = Message { role: "system".into(), ..Message::user("be brief") };
        let turns =
            [system, Message::user("One?"), Message::assistant("Two."), Message::user("3"), Message::assistant("4")];
        let text = RowText::of(&turns);
        assert_eq!((text.question.as_ref(), text.answer.as_ref()), ("One?\n3", "Two.\n4"));
        assert_eq!((&text.asked, &text.answered), (&Words::of("one 3"), &Words::of("two 4")));
        assert_eq!((text.spoken().as_ref(), &text.system), (&Words::of("one two 3 4"), &Words::of("be brief")));
        assert_eq!(text.conversation.words, Words::of("be brief one two 3 4"));
        let answers: Vec<_> = text.answers().map(|(answer, words)| (answer, words.len())).collect();
        assert_eq!(answers, [("Two.", 1), ("4", 1)]);
    }

    #[test]
    fn turns_cover_the_words() {
        let conversation =
            Conversation::of(&[Message::user("one two"), Message::assistant(""), Message::user("three")]);
        let ranges: Vec<_> = conversation.turns.iter().map(|turn| (turn.words.clone(), turn.is_user)).collect();
        assert_eq!(ranges, [(0..2, true), (2..2, false), (2..3, true)]);
    }
}
