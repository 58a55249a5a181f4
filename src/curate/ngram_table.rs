//! A read-only map from 64-bit hashes to benchmark texts: one sorted array and a table of where each prefix begins.
//!
//! Millions of n-grams cost 12 bytes each instead of a hash map's 30 or more, and a look-up touches one short run.

/// Most bits of the hash that select a run. 2^20 runs of a ten-million-entry table hold about ten entries each; smaller
/// tables have fewer runs, which stay in the processor's caches.
const MAX_PREFIX_BITS: u32 = 20;

/// Hashes and the text that each comes from.
pub struct NgramTable {
    hashes: Vec<u64>,
    texts: Vec<u32>,
    /// Bits of the hash that select a run.
    prefix_bits: u32,
    /// `[2^prefix_bits + 1]`: where the hashes with each prefix begin.
    starts: Vec<u32>,
}

impl NgramTable {
    /// Keeps one entry per hash, that of the first text; hashes of more than `most` different texts are left out and
    /// counted. `identity_of` tells which texts are the same, so that copies of an item in several files count once.
    pub fn build(mut entries: Vec<(u64, u32)>, most: usize, identity_of: impl Fn(u32) -> u64) -> (Self, usize) {
        entries.sort_unstable();
        entries.dedup();
        let (mut hashes, mut texts, mut dropped) = (Vec::new(), Vec::new(), 0);
        let mut identities = Vec::new();
        for run in entries.chunk_by(|left, right| left.0 == right.0) {
            if run.len() > most {
                identities.clear();
                identities.extend(run.iter().map(|&(_, text)| identity_of(text)));
                identities.sort_unstable();
                identities.dedup();
                if identities.len() > most {
                    dropped += 1;
                    continue;
                }
            }
            hashes.push(run[0].0);
            texts.push(run[0].1);
        }
        let prefix_bits = (usize::BITS - hashes.len().leading_zeros()).clamp(1, MAX_PREFIX_BITS);
        let mut starts = vec![0; (1 << prefix_bits) + 1];
        for &hash in &hashes {
            starts[prefix(hash, prefix_bits) + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        (Self { hashes, texts, prefix_bits, starts }, dropped)
    }

    /// Number of hashes.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// The first text with this hash.
    pub fn find(&self, hash: u64) -> Option<u32> {
        let run = prefix(hash, self.prefix_bits);
        let (start, end) = (self.starts[run] as usize, self.starts[run + 1] as usize);
        let place = self.hashes[start..end].binary_search(&hash).ok()?;
        Some(self.texts[start + place])
    }
}

fn prefix(hash: u64, bits: u32) -> usize {
    (hash >> (64 - bits)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_text_of_a_hash_is_found_and_common_hashes_are_dropped() {
        let high = u64::MAX;
        let entries = vec![(high, 3), (high, 1), (5, 0), (5, 1), (5, 2), (7, 0), (7, 4), (7, 5), (high, 3)];
        // Texts 0, 4 and 5 are copies of one another.
        let (table, dropped) = NgramTable::build(entries, 2, |text| if text >= 4 { 0 } else { u64::from(text) });
        assert_eq!((table.len(), dropped), (2, 1));
        assert_eq!((table.find(high), table.find(7), table.find(5), table.find(6)), (Some(1), Some(0), None, None));
    }
}
