//! MinHash with locality-sensitive hashing: which earlier rows *may* be near-duplicates of this one.
//!
//! The sketch only proposes candidates; [`super::dedup`] decides by the exact Jaccard similarity of the shingle sets.
//! So there are no false positives, and the stated error is one of recall: a pair whose similarity is exactly the
//! threshold is proposed with a probability of at least 99 %, a more similar pair more often still.
//!
//! **Source**: Broder 1997 (MinHash); Leskovec, Rajaraman, Ullman, *Mining of Massive Datasets*, section 3.4 (bands).

use std::{collections::HashMap, sync::LazyLock};

use super::normalize::{hash_sequence, hash_word, mix};

/// Bands of a signature. 16 bands reach 99 % recall with 6 rows each at a threshold of 0.8.
const BANDS: usize = 16;
/// Most rows per band: beyond, more hashing buys nothing, as exact verification weeds out chance candidates.
const MAX_ROWS_PER_BAND: usize = 8;
/// Most hash functions of a signature.
pub const MAX_FUNCTIONS: usize = 256;
/// Probability that a pair right at the threshold is proposed.
const RECALL_AT_THRESHOLD: f64 = 0.99;
/// Most candidates looked at per band, latest first. Bounds the work on long rows made from one template, where
/// thousands of different questions share most of their shingles (recall among those is lower than stated).
const MAX_CANDIDATES_PER_BAND: usize = 512;

/// How signatures are made and cut into bands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MinHash {
    rows_per_band: usize,
}

impl MinHash {
    /// The longest bands whose recall at `threshold` is still [`RECALL_AT_THRESHOLD`]; longer bands propose less chaff.
    pub fn for_threshold(threshold: f64) -> Self {
        let rows_per_band = (1..=MAX_ROWS_PER_BAND)
            .rev()
            .find(|&rows| Self { rows_per_band: rows }.probability(threshold) >= RECALL_AT_THRESHOLD)
            .unwrap_or(1);
        Self { rows_per_band }
    }

    /// Probability that a pair of this similarity is proposed: `1 - (1 - s^r)^b`.
    pub fn probability(self, similarity: f64) -> f64 {
        let agree = similarity.powi(self.rows_per_band as i32);
        1.0 - (1.0 - agree).powi(BANDS as i32)
    }

    /// Number of bands.
    pub fn bands(self) -> usize {
        BANDS
    }

    /// Hashes per band.
    pub fn rows_per_band(self) -> usize {
        self.rows_per_band
    }

    /// The signature of a set: for each of `bands * rows_per_band` hash functions the least hash of its members.
    pub fn signature(self, shingles: &[u32]) -> Vec<u32> {
        signature(shingles, BANDS * self.rows_per_band)
    }
}

/// The least hash of a set's members under each of the first `functions` hash functions (at most [`MAX_FUNCTIONS`]).
pub fn signature(shingles: &[u32], functions: usize) -> Vec<u32> {
    static PARAMETERS: LazyLock<[Vec<u32>; 2]> = LazyLock::new(|| {
        let numbers =
            |salt: u64| (0..MAX_FUNCTIONS as u64).map(move |function| (mix(2 * function + salt) >> 32) as u32);
        // Odd multipliers are bijections.
        [numbers(1).map(|number| number | 1).collect(), numbers(2).collect()]
    });
    let [multipliers, offsets] = &*PARAMETERS;
    let mut signature = vec![0; functions];
    glan_kernels::minhash::signature(shingles, &multipliers[..functions], &offsets[..functions], &mut signature);
    signature
}

/// Hashes of all runs of `length` words of a text, as white space separates them, sorted and distinct; of the whole text
/// when it is shorter. What other programs call word shingles.
pub fn word_shingles(text: &str, length: usize) -> Vec<u32> {
    let words: Vec<u64> = text.split_whitespace().map(hash_word).collect();
    let mut shingles: Vec<u32> = words
        .windows(length.min(words.len()).max(1))
        .map(|run| (hash_sequence(run.iter().copied()) >> 32) as u32)
        .collect();
    shingles.sort_unstable();
    shingles.dedup();
    shingles
}

/// Share of places where two signatures agree: an estimate of the sets' Jaccard similarity with a standard error of
/// `sqrt(J (1 - J) / k)` for `k` hash functions.
pub fn estimate(left: &[u32], right: &[u32]) -> f64 {
    debug_assert_eq!(left.len(), right.len(), "signatures of the same MinHash");
    let agree = left.iter().zip(right).filter(|(left, right)| left == right).count();
    agree as f64 / left.len().max(1) as f64
}

/// The exact Jaccard similarity of two sorted sets; two empty sets are the same set.
pub fn jaccard(left: &[u32], right: &[u32]) -> f64 {
    let (mut i, mut j, mut common) = (0, 0, 0usize);
    while i < left.len() && j < right.len() {
        match left[i].cmp(&right[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                common += 1;
                i += 1;
                j += 1;
            }
        }
    }
    let union = left.len() + right.len() - common;
    if union == 0 { 1.0 } else { common as f64 / union as f64 }
}

/// The bands of all entries so far.
///
/// A bucket is a chain: the map holds the latest entry of a band's hash and `previous` the one before it, which costs
/// about 20 bytes per entry and band (0.3 GB for a million entries).
pub struct LshIndex {
    /// Per band: hash of the band's rows -> latest entry.
    latest: Vec<HashMap<u32, u32, std::hash::BuildHasherDefault<Identity>>>,
    /// `[entries * BANDS]`: the entry before in the same bucket, or [`NONE`].
    previous: Vec<u32>,
}

const NONE: u32 = u32::MAX;

impl Default for LshIndex {
    fn default() -> Self {
        Self { latest: (0..BANDS).map(|_| HashMap::default()).collect(), previous: Vec::new() }
    }
}

impl LshIndex {
    /// Calls `accept` on earlier entries of the same group that share a band, until it returns true; gives that entry
    /// back. An entry may be offered once per shared band; the order depends only on the entries and is latest first.
    pub fn find(
        &self,
        minhash: MinHash,
        group: u64,
        signature: &[u32],
        mut accept: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        for (band, latest) in self.latest.iter().enumerate() {
            let mut entry = latest.get(&band_hash(minhash, group, signature, band)).copied().unwrap_or(NONE);
            for _ in 0..MAX_CANDIDATES_PER_BAND {
                if entry == NONE {
                    break;
                }
                if accept(entry) {
                    return Some(entry);
                }
                entry = self.previous[entry as usize * BANDS + band];
            }
        }
        None
    }

    /// Adds the next entry; entries count from 0.
    pub fn push(&mut self, minhash: MinHash, group: u64, signature: &[u32]) {
        let entry = u32::try_from(self.previous.len() / BANDS).expect("fewer than 2^32 entries");
        for band in 0..BANDS {
            let before = self.latest[band].insert(band_hash(minhash, group, signature, band), entry);
            self.previous.push(before.unwrap_or(NONE));
        }
    }
}

fn band_hash(minhash: MinHash, group: u64, signature: &[u32], band: usize) -> u32 {
    let rows = &signature[band * minhash.rows_per_band..(band + 1) * minhash.rows_per_band];
    (hash_sequence(std::iter::once(group).chain(rows.iter().map(|&row| u64::from(row)))) >> 32) as u32
}

/// Hashes that are already well mixed need no second hashing.
#[derive(Default)]
pub struct Identity(u64);

impl std::hash::Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 << 8) | u64::from(byte);
        }
    }

    fn write_u32(&mut self, value: u32) {
        // The map takes the slot from the low bits and a tag from the high ones.
        self.0 = (u64::from(value) << 32) | u64::from(value);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn sorted(set: &BTreeSet<u32>) -> Vec<u32> {
        set.iter().copied().collect()
    }

    proptest! {
        #[test]
        fn the_estimate_is_within_five_standard_errors_of_the_exact_jaccard(
            shared in prop::collection::btree_set(0u32..1_000_000, 1..120),
            left in prop::collection::btree_set(1_000_000u32..2_000_000, 0..60),
            right in prop::collection::btree_set(2_000_000u32..3_000_000, 0..60),
        ) {
            let left = sorted(&shared.union(&left).copied().collect());
            let right = sorted(&shared.union(&right).copied().collect());
            let minhash = MinHash { rows_per_band: MAX_ROWS_PER_BAND };
            let exact = jaccard(&left, &right);
            let estimated = estimate(&minhash.signature(&left), &minhash.signature(&right));
            let functions = (BANDS * MAX_ROWS_PER_BAND) as f64;
            // One function's worth of slack, because the estimate is a multiple of 1 / 128.
            let allowed = 5.0 * (exact * (1.0 - exact) / functions).sqrt() + 1.0 / functions;
            prop_assert!((exact - estimated).abs() <= allowed, "exact {exact}, estimated {estimated}");
        }

        #[test]
        fn jaccard_is_what_sets_say(
            left in prop::collection::btree_set(0u32..40, 0..30),
            right in prop::collection::btree_set(0u32..40, 0..30),
        ) {
            let union = left.union(&right).count();
            let expected =
                if union == 0 { 1.0 } else { left.intersection(&right).count() as f64 / union as f64 };
            prop_assert_eq!(jaccard(&sorted(&left), &sorted(&right)), expected);
        }
    }

    #[test]
    fn recall_at_the_threshold_is_99_percent_wherever_bands_allow_it() {
        for threshold in [0.3, 0.5, 0.7, 0.8, 0.9, 0.95] {
            let minhash = MinHash::for_threshold(threshold);
            assert!(minhash.probability(threshold) >= RECALL_AT_THRESHOLD, "{threshold}: {minhash:?}");
        }
        assert_eq!(MinHash::for_threshold(0.8).rows_per_band(), 6);
    }

    #[test]
    fn buckets_hand_out_every_entry_of_the_group_that_shares_a_band_latest_first() {
        let minhash = MinHash::for_threshold(0.8);
        let same = minhash.signature(&[1, 2, 3]);
        let other = minhash.signature(&[7, 8, 9]);
        let mut index = LshIndex::default();
        for (group, signature) in [(0, &same), (0, &other), (0, &same), (1, &same)] {
            index.push(minhash, group, signature);
        }
        let mut offered = Vec::new();
        index.find(minhash, 0, &same, |entry| {
            offered.push(entry);
            false
        });
        assert_eq!(&offered[..2], [2, 0]);
        assert!(!offered.contains(&1) && !offered.contains(&3));
        assert_eq!(index.find(minhash, 0, &other, |_| true), Some(1));
    }
}
