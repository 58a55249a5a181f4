//! Lexical diversity: distinct n-grams of all rows, and of a sample what the sample repeats.
//!
//! **Source**: distinct-n, Li et al. 2016; n-gram diversity, compression ratio and self-repetition, Shaib et al. 2024
//! (2403.00553); Self-BLEU, Zhu et al. 2018 (Texygen), with BLEU-4 after Papineni et al. 2002.

use std::{
    collections::{HashMap, HashSet},
    io::Write,
};

use crate::curate::normalize::{HASH_START, Words, hash_next};

/// Longest n-grams counted.
pub const MAX_N: usize = 4;
/// Bits that select a register: 2^14 registers, a standard error of 0.8 %.
const REGISTER_BITS: u32 = 14;

/// How many different hashes were seen, in constant memory.
///
/// **Source**: HyperLogLog, Flajolet et al. 2007, with linear counting for small numbers.
#[derive(Clone, PartialEq)]
pub struct Distinct {
    registers: Vec<u8>,
}

impl Default for Distinct {
    fn default() -> Self {
        Self { registers: vec![0; 1 << REGISTER_BITS] }
    }
}

impl Distinct {
    /// Takes a well-mixed hash.
    pub fn add(&mut self, hash: u64) {
        let place = (hash >> (64 - REGISTER_BITS)) as usize;
        let rank = (hash << REGISTER_BITS | 1 << (REGISTER_BITS - 1)).leading_zeros() as u8 + 1;
        self.registers[place] = self.registers[place].max(rank);
    }

    /// Takes all that another one has seen.
    pub fn merge(&mut self, other: &Self) {
        for (own, other) in self.registers.iter_mut().zip(&other.registers) {
            *own = (*own).max(*other);
        }
    }

    /// The estimate.
    pub fn count(&self) -> f64 {
        let registers = self.registers.len() as f64;
        let sum: f64 = self.registers.iter().map(|&rank| 0.5f64.powi(i32::from(rank))).sum();
        let estimate = 0.7213 / (1.0 + 1.079 / registers) * registers * registers / sum;
        let empty = self.registers.iter().filter(|&&rank| rank == 0).count();
        if estimate <= 2.5 * registers && empty > 0 { registers * (registers / empty as f64).ln() } else { estimate }
    }
}

/// The n-grams of all rows, for n from 1 to [`MAX_N`].
#[derive(Clone, Default)]
pub struct Ngrams {
    distinct: [Distinct; MAX_N],
    total: [u64; MAX_N],
}

impl Ngrams {
    /// Takes the n-grams of a text, as [`ngram_hashes`] gives them.
    pub fn add(&mut self, hashes: &[Vec<u64>; MAX_N]) {
        for (n, hashes) in hashes.iter().enumerate() {
            self.total[n] += hashes.len() as u64;
            hashes.iter().for_each(|&hash| self.distinct[n].add(hash));
        }
    }

    /// Takes the n-grams of other rows.
    pub fn merge(&mut self, other: &Self) {
        for n in 0..MAX_N {
            self.distinct[n].merge(&other.distinct[n]);
            self.total[n] += other.total[n];
        }
    }

    /// distinct-n for each n: different n-grams over all of them.
    pub fn distinct_n(&self) -> [f64; MAX_N] {
        std::array::from_fn(|n| (self.distinct[n].count() / self.total[n].max(1) as f64).min(1.0))
    }
}

/// Hashes of all n-grams of a text, each that of the n-gram one word shorter carried on.
pub fn ngram_hashes(words: &Words) -> [Vec<u64>; MAX_N] {
    let hashes: Vec<u64> = words.hashes().collect();
    let mut sums = vec![HASH_START; hashes.len()];
    std::array::from_fn(|n| {
        sums.truncate(hashes.len().saturating_sub(n));
        sums.iter_mut().zip(&hashes[n.min(hashes.len())..]).for_each(|(sum, &hash)| *sum = hash_next(*sum, hash));
        sums.clone()
    })
}

/// Bytes of the texts over their bytes when packed with gzip; higher is more repetitive.
pub fn compression_ratio(texts: &[&str]) -> f64 {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    let mut bytes = 0;
    for text in texts {
        bytes += text.len() + 1;
        if packer.write_all(text.as_bytes()).and_then(|()| packer.write_all(b"\n")).is_err() {
            return 0.0;
        }
    }
    packer.finish().map_or(0.0, |packed| bytes as f64 / packed.len().max(1) as f64)
}

/// Mean over the texts of `ln(1 + the other texts that share each of their different 4-grams)`.
pub fn self_repetition(texts: &[Words]) -> f64 {
    let sets: Vec<HashSet<u64>> = texts.iter().map(|words| ngram_hashes(words)[3].iter().copied().collect()).collect();
    let mut texts_with: HashMap<u64, u32> = HashMap::new();
    sets.iter().flatten().for_each(|&gram| *texts_with.entry(gram).or_default() += 1);
    let sum: f64 =
        sets.iter().map(|set| f64::from(1 + set.iter().map(|gram| texts_with[gram] - 1).sum::<u32>()).ln()).sum();
    sum / texts.len().max(1) as f64
}

/// Mean BLEU-4 of each text against all others as references; higher is less diverse. Precisions without a match count
/// as one over twice the n-grams (smoothing 1 of Chen and Cherry 2014, with epsilon 1/2).
pub fn self_bleu(texts: &[Words]) -> f64 {
    type Counts = HashMap<u64, u32>;
    let counts: Vec<[Counts; MAX_N]> = texts
        .iter()
        .map(|words| {
            ngram_hashes(words).map(|hashes| {
                let mut counts = Counts::new();
                hashes.into_iter().for_each(|hash| *counts.entry(hash).or_default() += 1);
                counts
            })
        })
        .collect();
    // Per n-gram the two highest counts and whose the highest is: the most of all *other* texts is one of the two.
    let mut most: [HashMap<u64, (u32, usize, u32)>; MAX_N] = std::array::from_fn(|_| HashMap::new());
    for (text, counts) in counts.iter().enumerate() {
        for (n, counts) in counts.iter().enumerate() {
            for (&gram, &count) in counts {
                let entry = most[n].entry(gram).or_insert((0, text, 0));
                if count > entry.0 {
                    *entry = (count, text, entry.0);
                } else {
                    entry.2 = entry.2.max(count);
                }
            }
        }
    }
    let bleu = |text: usize| -> f64 {
        let length = texts[text].len();
        let others = (0..texts.len()).filter(|&other| other != text).map(|other| texts[other].len());
        let Some(reference) = others.min_by_key(|&other| (other.abs_diff(length), other)) else { return 0.0 };
        let logarithms: f64 = (0..MAX_N)
            .map(|n| {
                let total = f64::from(counts[text][n].values().sum::<u32>());
                let matches: u32 = counts[text][n]
                    .iter()
                    .map(|(gram, &count)| {
                        let (first, whose, second) = most[n][gram];
                        count.min(if whose == text { second } else { first })
                    })
                    .sum();
                (if matches == 0 { 0.5 } else { f64::from(matches) } / total.max(1.0)).ln()
            })
            .sum();
        let brevity = if length >= reference { 0.0 } else { 1.0 - reference as f64 / length.max(1) as f64 };
        (brevity + logarithms / MAX_N as f64).exp()
    };
    (0..texts.len()).map(bleu).sum::<f64>() / texts.len().max(1) as f64
}
