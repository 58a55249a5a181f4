//! Which cached blocks begin like the tokens that follow a cached beginning.
//!
//! Whole blocks are found by their names ([`super::prefix_hash`]). Where two inputs part within a block, the tokens
//! before that place are the same all the same: a sequence takes a copy of the block and goes on behind them. For
//! inputs of some ten tokens behind a common beginning (questions behind the same examples) this is a tenth of the work.
//!
//! **Source**: SGLang's RadixAttention shares to the token; here the pages stay pages, and one copy makes up for it.

use std::collections::BTreeSet;

use smallvec::SmallVec;

use super::prefix_hash::BlockHash;

/// Tokens that a block holds from its first on; in place for blocks of up to 16, because memory of their own would lie
/// scattered among what lives shorter.
type Tokens = SmallVec<[u32; 16]>;

/// A known block: what stands before it, its tokens, its number. In this order those that begin alike are neighbours.
type Entry = (Option<BlockHash>, Tokens, u32);

/// A block that begins with the tokens asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// The block.
    pub block: u32,
    /// How many of its tokens are the same; at least 1.
    pub num_tokens: usize,
}

/// The known blocks of a pool by what stands before them and how they begin.
#[derive(Debug, Clone)]
pub struct PartIndex {
    filled: BTreeSet<Entry>,
    /// Those that this step fills.
    promised: BTreeSet<Entry>,
    /// Per block: what stands before it and its tokens, where it is known.
    known: Vec<Option<(Option<BlockHash>, Tokens)>>,
}

impl PartIndex {
    /// An empty index for `num_blocks` blocks.
    pub fn new(num_blocks: usize) -> Self {
        Self { filled: BTreeSet::new(), promised: BTreeSet::new(), known: vec![None; num_blocks] }
    }

    /// What was entered so far is filled from here on.
    pub fn begin_step(&mut self) {
        self.filled.extend(std::mem::take(&mut self.promised));
    }

    /// Enters a block that this step fills with `token_ids` (`[1..=Z]`) behind `parent`, in place of what was known of it.
    pub fn insert(&mut self, block: u32, parent: Option<BlockHash>, token_ids: &[u32]) {
        self.remove(block);
        let tokens = Tokens::from_slice(token_ids);
        self.known[block as usize] = Some((parent, tokens.clone()));
        self.promised.insert((parent, tokens, block));
    }

    /// Takes a block out, if it is here.
    pub fn remove(&mut self, block: u32) {
        let Some((parent, token_ids)) = self.known[block as usize].take() else { return };
        let entry = (parent, token_ids, block);
        if !self.filled.remove(&entry) {
            self.promised.remove(&entry);
        }
    }

    /// How many tokens of a block are known.
    pub fn num_tokens(&self, block: u32) -> usize {
        self.known[block as usize].as_ref().map_or(0, |(_, token_ids)| token_ids.len())
    }

    /// Takes all blocks out.
    pub fn clear(&mut self) {
        self.filled.clear();
        self.promised.clear();
        self.known.fill(None);
    }

    /// The block behind `parent` that has most tokens in common with `token_ids`: among those that are filled, and among
    /// those that this step is to fill.
    pub fn longest(&self, parent: Option<BlockHash>, token_ids: &[u32]) -> (Option<Part>, Option<Part>) {
        let sought = (parent, Tokens::from_slice(token_ids), 0);
        let longest = |entries: &BTreeSet<Entry>| {
            let neighbours = [entries.range(&sought..).next(), entries.range(..&sought).next_back()];
            let parts = neighbours.into_iter().flatten().filter(|entry| entry.0 == parent).map(|(_, held, block)| {
                let num_tokens = held.iter().zip(token_ids).take_while(|(one, other)| one == other).count();
                Part { block: *block, num_tokens }
            });
            parts.filter(|part| part.num_tokens > 0).max_by_key(|part| part.num_tokens)
        };
        (longest(&self.filled), longest(&self.promised))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_common_beginning_behind_the_same_parent_is_found_and_promises_are_told_apart() {
        let mut index = PartIndex::new(8);
        let (parent, other) = (Some(BlockHash::of(None, &[1])), Some(BlockHash::of(None, &[2])));
        index.insert(0, parent, &[7, 8, 9, 9]);
        index.insert(1, other, &[7, 8, 5, 4]);
        index.insert(2, parent, &[6, 8, 5, 4]);
        index.begin_step();
        index.insert(3, parent, &[7, 8, 5, 9]);
        let part = |block, num_tokens| Some(Part { block, num_tokens });
        assert_eq!(index.longest(parent, &[7, 8, 5, 4]), (part(0, 2), part(3, 3)));
        assert_eq!(index.longest(parent, &[7]), (part(0, 1), part(3, 1)), "no more than was asked for");
        assert_eq!(index.longest(parent, &[4, 8]), (None, None));
        assert_eq!(index.longest(None, &[7, 8]), (None, None));
        assert_eq!(index.longest(parent, &[]), (None, None));
        index.begin_step();
        assert_eq!(index.longest(parent, &[7, 8, 5, 4]), (part(3, 3), None));
        index.insert(4, parent, &[7, 8]);
        assert_eq!(index.longest(parent, &[7, 8, 5, 4]).1, part(4, 2), "a block need not be full");
        index.insert(4, parent, &[7, 8, 5, 4]);
        assert_eq!((index.longest(parent, &[7, 8, 5, 4]).1, index.num_tokens(4)), (part(4, 4), 4), "it has grown");
        index.remove(4);
        index.remove(3);
        index.remove(3);
        assert_eq!(index.longest(parent, &[7, 8, 5, 4]), (part(0, 2), None));
        index.clear();
        assert_eq!(index.longest(parent, &[7, 8, 5, 4]), (None, None));
    }
}
