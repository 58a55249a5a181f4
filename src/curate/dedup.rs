//! Duplicates among the rows: the first of a kind is kept, later ones name it.
//!
//! *Exact*: the same question after [`super::normalize`] (case, white space and punctuation gone), whatever the answer:
//! two answers to one question would contradict each other in training. *Near*: the sets of word 3-grams of two
//! questions have a Jaccard similarity of at least the threshold. MinHash proposes pairs, the sets decide.
//!
//! One changed word makes a short question a different one ("the capital of France", "… of Spain"), so questions of
//! fewer than [`SHORT_QUESTION_WORDS`] words must also have the same numbers and signs in the same order, and the words
//! of one must contain the other's: added politeness or another order is a near-duplicate, a replaced word is not.
//! From 25 words on one replaced word leaves a similarity of 0.8 or more and says little.

use std::collections::HashMap;

use super::{
    minhash::{Identity, LshIndex, MinHash, jaccard},
    normalize::{Words, hash_sequence, mix},
};

/// Words below which one word decides what a question asks.
pub const SHORT_QUESTION_WORDS: usize = 25;
/// Words per shingle.
const SHINGLE_WORDS: usize = 3;

/// What duplicate search keeps of a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Fingerprint {
    /// Hash of all words, and of the system prompt: the same question under another system prompt is another row.
    pub exact: u64,
    /// Hash of the system prompt.
    scope: u64,
    /// Hash of the system prompt and of the question's numbers and signs in order.
    scope_and_numbers: u64,
    is_short: bool,
    /// Sorted hashes of the words of a short question; empty for a long one.
    short_words: Vec<u32>,
    /// Sorted, distinct hashes of the word 3-grams. 32 bits: two sets of 100 agree by chance once in 400,000 pairs on
    /// one shingle, which moves the similarity by 1 %.
    shingles: Vec<u32>,
    signature: Vec<u32>,
}

impl Fingerprint {
    /// The fingerprint of a question; `scope` is the system prompt. Without `minhash` only exact duplicates are found.
    pub fn new(question: &Words, scope: &Words, minhash: Option<MinHash>) -> Self {
        let hashes: Vec<u64> = question.hashes().collect();
        let scope = hash_sequence(scope.hashes());
        let exact = hash_sequence(hashes.iter().copied().chain([scope]));
        let is_kept = |&place: &usize| question.is_number(place) || question.is_sign(place);
        let numbers = (0..question.len()).filter(is_kept).map(|place| question.hash(place));
        let mut fingerprint = Self {
            exact,
            scope,
            scope_and_numbers: hash_sequence(std::iter::once(scope).chain(numbers)),
            is_short: hashes.len() < SHORT_QUESTION_WORDS,
            short_words: Vec::new(),
            shingles: Vec::new(),
            signature: Vec::new(),
        };
        if let Some(minhash) = minhash {
            fingerprint.shingles = shingles(&hashes);
            fingerprint.signature = minhash.signature(&fingerprint.shingles);
            if fingerprint.is_short {
                fingerprint.short_words = hashes.iter().map(|&hash| (hash >> 32) as u32).collect();
                fingerprint.short_words.sort_unstable();
            }
        }
        fingerprint
    }
}

/// Hashes of all runs of three words, sorted and distinct; of the whole text when it is shorter.
fn shingles(hashes: &[u64]) -> Vec<u32> {
    let mut shingles: Vec<u32> = hashes
        .windows(SHINGLE_WORDS.min(hashes.len()).max(1))
        .map(|run| (hash_sequence(run.iter().copied()) >> 32) as u32)
        .collect();
    shingles.sort_unstable();
    shingles.dedup();
    shingles
}

/// What the search found.
#[derive(Debug, Clone, PartialEq)]
pub enum Duplicate {
    /// The same question as this kept row.
    Exact(usize),
    /// Nearly the same question as this kept row, with the exact Jaccard similarity.
    Near(usize, f64),
}

/// The kept rows so far. Holds hashes alone: some 250 bytes per row and 4 per word of its question.
pub struct Dedup {
    threshold: f64,
    minhash: Option<MinHash>,
    exact: HashMap<u64, u32, std::hash::BuildHasherDefault<Identity>>,
    /// Where near-duplicates are looked for; `None` when they are not.
    lsh: Option<LshIndex>,
    /// Row of each entry of `lsh`.
    rows: Vec<u32>,
    sets: Sets,
    kept: u32,
}

/// The shingles and the words of all kept rows, in chunks that never move: growing needs no second copy.
#[derive(Default)]
struct Sets {
    chunks: Vec<Vec<u32>>,
    /// Per row: its chunk, where it begins there, its shingles, its words.
    places: Vec<[u32; 4]>,
}

/// Hashes of a chunk of [`Sets`]; a longer row has one of its own.
const CHUNK: usize = 1 << 18;

impl Sets {
    fn push(&mut self, shingles: &[u32], words: &[u32]) {
        let length = shingles.len() + words.len();
        if self.chunks.last().is_none_or(|chunk| chunk.len() + length > chunk.capacity()) {
            self.chunks.push(Vec::with_capacity(CHUNK.max(length)));
        }
        let last = self.chunks.len() - 1;
        let chunk = &mut self.chunks[last];
        let place = [last, chunk.len(), shingles.len(), words.len()];
        chunk.extend_from_slice(shingles);
        chunk.extend_from_slice(words);
        self.places.push(place.map(|number| u32::try_from(number).expect("a question has fewer than 2^32 words")));
    }

    /// The shingles and the words of a row.
    fn of(&self, row: usize) -> (&[u32], &[u32]) {
        let [chunk, start, shingles, words] = self.places[row].map(|number| number as usize);
        self.chunks[chunk][start..start + shingles + words].split_at(shingles)
    }
}

impl Dedup {
    /// `threshold` 1 (or more) looks for exact duplicates alone.
    pub fn new(threshold: f64) -> Self {
        let minhash = (threshold < 1.0).then(|| MinHash::for_threshold(threshold));
        Self {
            threshold,
            minhash,
            exact: HashMap::default(),
            lsh: minhash.map(LshIndex::new),
            rows: Vec::new(),
            sets: Sets::default(),
            kept: 0,
        }
    }

    /// How candidates are found; `None` when only exact duplicates are looked for.
    pub fn minhash(&self) -> Option<MinHash> {
        self.minhash
    }

    /// Takes the next row: the kept row that it repeats, or `None`, and then it is kept under the next number from 0.
    pub fn push(&mut self, row: &Fingerprint) -> Option<Duplicate> {
        if let Some(&kept) = self.exact.get(&row.exact) {
            return Some(Duplicate::Exact(kept as usize));
        }
        if let Some((kept, similarity)) = self.near(row) {
            return Some(Duplicate::Near(kept, similarity));
        }
        let groups = self.groups(row);
        if let Some(lsh) = &mut self.lsh {
            for group in groups {
                lsh.push(group, &row.signature);
                self.rows.push(self.kept);
            }
            self.sets.push(&row.shingles, &row.short_words);
        }
        self.exact.insert(row.exact, self.kept);
        self.kept += 1;
        None
    }

    /// The groups in which a row can have near-duplicates: a short row among rows with the same numbers, a long row
    /// among long rows, and also among those with the same numbers when it is near enough to short ones in size (the
    /// Jaccard similarity of two sets is at most the ratio of their sizes).
    fn groups(&self, row: &Fingerprint) -> impl Iterator<Item = u64> + use<> {
        let most_short_shingles = (SHORT_QUESTION_WORDS - SHINGLE_WORDS) as f64;
        let is_near_short = self.threshold * row.shingles.len() as f64 <= most_short_shingles;
        let by_numbers = (row.is_short || is_near_short).then_some(row.scope_and_numbers);
        // The two groups never mix, even when a question has no numbers.
        let among_long = (!row.is_short).then(|| mix(row.scope ^ 1));
        among_long.into_iter().chain(by_numbers)
    }

    fn near(&self, row: &Fingerprint) -> Option<(usize, f64)> {
        let lsh = self.lsh.as_ref()?;
        let mut similarity = 0.0;
        let mut accept = |entry: u32| {
            let kept = self.rows[entry as usize] as usize;
            let (shingles, words) = self.sets.of(kept);
            let (small, large) = (shingles.len().min(row.shingles.len()), shingles.len().max(row.shingles.len()));
            if (small as f64) < self.threshold * large as f64 {
                return false;
            }
            if !words.is_empty() && !row.short_words.is_empty() && !one_contains_the_other(words, &row.short_words) {
                return false;
            }
            similarity = jaccard(shingles, &row.shingles);
            similarity >= self.threshold
        };
        let entry = self.groups(row).find_map(|group| lsh.find(group, &row.signature, &mut accept))?;
        Some((self.rows[entry as usize] as usize, similarity))
    }
}

/// Whether every member of one sorted multiset is in the other.
fn one_contains_the_other(left: &[u32], right: &[u32]) -> bool {
    let (small, large) = if left.len() <= right.len() { (left, right) } else { (right, left) };
    let mut rest = large.iter();
    small.iter().all(|member| rest.by_ref().any(|other| other == member))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of each question, given those before it.
    fn outcomes(threshold: f64, questions: &[&str]) -> Vec<Option<Duplicate>> {
        let mut dedup = Dedup::new(threshold);
        let minhash = dedup.minhash();
        questions
            .iter()
            .map(|question| dedup.push(&Fingerprint::new(&Words::of(question), &Words::default(), minhash)))
            .collect()
    }

    #[test]
    fn the_same_question_in_other_case_and_punctuation_is_an_exact_duplicate() {
        let found = outcomes(1.0, &["What is rain?", "Why?", "what  is RAIN", "What is rain, then?"]);
        assert_eq!(found, [None, None, Some(Duplicate::Exact(0)), None]);
    }

    #[test]
    fn short_questions_that_differ_in_a_number_a_sign_or_a_word_are_all_kept() {
        let questions = [
            "What is 34 + 25?",
            "What is 34 + 26?",
            "What is 34 - 25?",
            "What is 25 + 34?",
            "In one short sentence, what is the capital city of the country France",
            "In one short sentence, what is the capital city of the country Spain",
            "Think of the whole numbers that come before 12 and say how many of them are even numbers",
            "Think of the whole numbers that come before 14 and say how many of them are even numbers",
        ];
        assert!(outcomes(0.5, &questions).iter().all(Option::is_none), "{:?}", outcomes(0.5, &questions));
    }

    #[test]
    fn added_words_and_long_questions_with_one_word_changed_are_near_duplicates() {
        let long = "A farmer has a rectangular field that is twice as long as it is wide and she wants to put a fence \
                    around all of it with posts every few steps so how should she plan her purchase of the material";
        let changed = long.replace("purchase", "buying");
        let polite = "Please explain to a child how a rainbow forms in the sky after the rain";
        let found = outcomes(0.8, &[long, &changed, polite, &polite.replace("Please ", "")]);
        assert!(matches!(found[1], Some(Duplicate::Near(0, similarity)) if similarity >= 0.8), "{found:?}");
        assert!(matches!(found[3], Some(Duplicate::Near(1, _))), "{found:?}");
        assert!(outcomes(1.0, &[long, &changed]).iter().all(Option::is_none), "a threshold of 1 is off");
    }

    #[test]
    fn a_short_and_a_long_question_with_the_same_numbers_meet() {
        let short =
            "On a field of 40 rows the crew plants 12 trees per row and wants to know how many trees that makes in all";
        let long = format!("{short} once they are done");
        let found = outcomes(0.8, &[short, &long, &long.replace("12", "13")]);
        assert!(matches!(found[1], Some(Duplicate::Near(0, _))), "{found:?}");
        assert_eq!(found[2], None, "other numbers make another question");
        assert!(matches!(outcomes(0.8, &[&long, short])[1], Some(Duplicate::Near(0, _))));
    }

    #[test]
    fn another_system_prompt_makes_another_row() {
        let mut dedup = Dedup::new(0.8);
        let question = Words::of("Tell me about the weather in the mountains");
        let mut push =
            |system| dedup.push(&Fingerprint::new(&question, &Words::of(system), Some(MinHash::for_threshold(0.8))));
        assert_eq!(push("Be brief."), None);
        assert_eq!(push("Be a pirate."), None);
        assert_eq!(push("be brief"), Some(Duplicate::Exact(0)));
    }

    #[test]
    fn containment_counts_repeated_words() {
        assert!(one_contains_the_other(&[1, 2, 2], &[1, 2, 2, 3]));
        assert!(!one_contains_the_other(&[1, 2, 2], &[1, 2, 3, 4]));
    }
}
