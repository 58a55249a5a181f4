//! MinHash with locality-sensitive hashing: which earlier rows *may* be near-duplicates of this one.
//!
//! The sketch only proposes candidates; [`super::dedup`] decides by the exact Jaccard similarity of the shingle sets.
//! So there are no false positives, and the stated error is one of recall: a pair whose similarity is exactly the
//! threshold is proposed with a probability of at least 99 %, a more similar pair more often still.
//!
//! **Source**: Broder 1997 (MinHash); Leskovec, Rajaraman, Ullman, *Mining of Massive Datasets*, section 3.4 (bands).

use std::sync::LazyLock;

use super::normalize::{hash_sequence, hash_word, mix};

/// Most bands of a signature where rows of more than one hash do: 12 bands reach 99 % recall with 5 hashes each at a
/// threshold of 0.8. More bands of more hashes would propose less chaff, which costs less than their memory.
const MAX_BANDS: usize = 12;
/// Bands below the least threshold for which [`MAX_BANDS`] of one hash each reach the recall.
const MAX_SINGLE_BANDS: usize = 32;
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
    bands: usize,
    rows_per_band: usize,
}

impl MinHash {
    /// The longest bands whose recall at `threshold` is still [`RECALL_AT_THRESHOLD`] (longer bands propose less chaff),
    /// and no more of them than that takes.
    pub fn for_threshold(threshold: f64) -> Self {
        let reaches = |minhash: &Self| minhash.probability(threshold) >= RECALL_AT_THRESHOLD;
        let fewest =
            |rows_per_band: usize, most: usize| (1..=most).map(|bands| Self { bands, rows_per_band }).find(reaches);
        (1..=MAX_ROWS_PER_BAND)
            .rev()
            .find_map(|rows| fewest(rows, MAX_BANDS))
            .or_else(|| fewest(1, MAX_SINGLE_BANDS))
            .unwrap_or(Self { bands: MAX_SINGLE_BANDS, rows_per_band: 1 })
    }

    /// Probability that a pair of this similarity is proposed: `1 - (1 - s^r)^b`.
    pub fn probability(self, similarity: f64) -> f64 {
        let agree = similarity.powi(self.rows_per_band as i32);
        1.0 - (1.0 - agree).powi(self.bands as i32)
    }

    /// Number of bands.
    pub fn bands(self) -> usize {
        self.bands
    }

    /// Hashes per band.
    pub fn rows_per_band(self) -> usize {
        self.rows_per_band
    }

    /// The signature of a set: for each of `bands * rows_per_band` hash functions the least hash of its members.
    pub fn signature(self, shingles: &[u32]) -> Vec<u32> {
        signature(shingles, self.bands * self.rows_per_band)
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
/// A bucket is a chain: the table holds its latest entry, and each entry the one before it in the same bucket. Buckets
/// are as many as entries, so a chain may hold several hashes; its entries know theirs. 8 bytes per entry and band, and
/// 4 to 8 for the table (about 160 MB for a million entries at a threshold of 0.8).
pub struct LshIndex {
    minhash: MinHash,
    /// `[bands, buckets]`: the latest entry of each bucket, or [`NONE`].
    latest: Vec<u32>,
    /// Buckets per band: a power of two.
    buckets: usize,
    /// Of [`CHUNK`] entries each, `[entries, bands]`: chunks never move, so growing needs no second copy.
    links: Vec<Vec<Link>>,
    entries: u32,
}

/// One band of one entry.
#[derive(Clone, Copy)]
struct Link {
    hash: u32,
    /// The entry before in the same bucket, or [`NONE`].
    previous: u32,
}

const NONE: u32 = u32::MAX;
/// Entries of a chunk.
const CHUNK: usize = 1 << 14;
/// Buckets per band in the beginning.
const FIRST_BUCKETS: usize = 1 << 10;

impl LshIndex {
    /// An empty index.
    pub fn new(minhash: MinHash) -> Self {
        let latest = vec![NONE; minhash.bands * FIRST_BUCKETS];
        Self { minhash, latest, buckets: FIRST_BUCKETS, links: Vec::new(), entries: 0 }
    }

    /// Calls `accept` on earlier entries of the same group that share a band, until it returns true; gives that entry
    /// back. An entry may be offered once per shared band; the order depends only on the entries and is latest first.
    pub fn find(&self, group: u64, signature: &[u32], mut accept: impl FnMut(u32) -> bool) -> Option<u32> {
        for band in 0..self.minhash.bands {
            let hash = self.band_hash(group, signature, band);
            let mut entry = self.latest[self.bucket(band, hash)];
            let mut candidates = 0;
            while entry != NONE && candidates < MAX_CANDIDATES_PER_BAND {
                let link = self.link(entry, band);
                if link.hash == hash {
                    candidates += 1;
                    if accept(entry) {
                        return Some(entry);
                    }
                }
                entry = link.previous;
            }
        }
        None
    }

    /// Adds the next entry; entries count from 0.
    pub fn push(&mut self, group: u64, signature: &[u32]) {
        if self.entries as usize == self.buckets {
            self.grow();
        }
        let (entry, bands) = (self.entries, self.minhash.bands);
        if (entry as usize).is_multiple_of(CHUNK) {
            self.links.push(Vec::with_capacity(CHUNK * bands));
        }
        for band in 0..bands {
            let hash = self.band_hash(group, signature, band);
            let bucket = self.bucket(band, hash);
            let previous = std::mem::replace(&mut self.latest[bucket], entry);
            self.links[entry as usize / CHUNK].push(Link { hash, previous });
        }
        self.entries = entry.checked_add(1).filter(|&entries| entries != NONE).expect("fewer than 2^32 - 1 entries");
    }

    /// Twice the buckets, each with its entries in the same order.
    fn grow(&mut self) {
        self.buckets *= 2;
        self.latest.clear();
        self.latest.resize(self.minhash.bands * self.buckets, NONE);
        for entry in 0..self.entries {
            for band in 0..self.minhash.bands {
                let hash = self.link(entry, band).hash;
                let bucket = self.bucket(band, hash);
                let previous = std::mem::replace(&mut self.latest[bucket], entry);
                self.links[entry as usize / CHUNK][entry as usize % CHUNK * self.minhash.bands + band].previous =
                    previous;
            }
        }
    }

    fn link(&self, entry: u32, band: usize) -> Link {
        self.links[entry as usize / CHUNK][entry as usize % CHUNK * self.minhash.bands + band]
    }

    fn bucket(&self, band: usize, hash: u32) -> usize {
        band * self.buckets + (hash as usize & (self.buckets - 1))
    }

    fn band_hash(&self, group: u64, signature: &[u32], band: usize) -> u32 {
        let length = self.minhash.rows_per_band;
        let rows = &signature[band * length..(band + 1) * length];
        (hash_sequence(std::iter::once(group).chain(rows.iter().map(|&row| u64::from(row)))) >> 32) as u32
    }
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
            let minhash = MinHash { bands: 16, rows_per_band: 8 };
            let exact = jaccard(&left, &right);
            let estimated = estimate(&minhash.signature(&left), &minhash.signature(&right));
            let functions = 128.0;
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
        assert_eq!(MinHash::for_threshold(0.8), MinHash { bands: 12, rows_per_band: 5 });
    }

    #[test]
    fn buckets_hand_out_every_entry_of_the_group_that_shares_a_band_latest_first() {
        let minhash = MinHash::for_threshold(0.8);
        let same = minhash.signature(&[1, 2, 3]);
        let other = minhash.signature(&[7, 8, 9]);
        let mut index = LshIndex::new(minhash);
        for (group, signature) in [(0, &same), (0, &other), (0, &same), (1, &same)] {
            index.push(group, signature);
        }
        let mut offered = Vec::new();
        index.find(0, &same, |entry| {
            offered.push(entry);
            false
        });
        assert_eq!(&offered[..2], [2, 0]);
        assert!(!offered.contains(&1) && !offered.contains(&3));
        assert_eq!(index.find(0, &other, |_| true), Some(1));
        // More entries than the first buckets and than a chunk hold.
        for number in 0..CHUNK as u32 + 10 {
            index.push(2, &minhash.signature(&[number, number + 100_000]));
        }
        index.push(0, &same);
        offered.clear();
        index.find(0, &same, |entry| {
            offered.push(entry);
            false
        });
        assert_eq!(&offered[..3], [CHUNK as u32 + 14, 2, 0]);
        assert_eq!(index.find(2, &minhash.signature(&[7, 100_007]), |_| true), Some(11));
    }
}
