//! Which cached blocks begin like the tokens that follow a cached beginning.
//!
//! Whole blocks are found by their names ([`super::prefix_hash`]). Where two inputs part within a block, the tokens
//! before that place are the same all the same: a sequence takes a copy of the block and goes on behind them. For
//! inputs of some ten tokens behind a common beginning (questions behind the same examples) this is a tenth of the work.
//!
//! **Source**: SGLang's RadixAttention shares to the token; here the pages stay pages, and one copy makes up for it.

use std::collections::HashMap;

use super::prefix_hash::BlockHash;

/// Blocks looked at for one beginning at most, youngest first.
const MAX_CANDIDATES: usize = 64;

/// Where a block stands: behind which beginning, and with which first token.
type Place = (Option<BlockHash>, u32);

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
    by_place: HashMap<Place, Vec<u32>>,
    /// `[P, Z]`: the tokens of the known blocks.
    token_ids: Vec<u32>,
    /// Per block: what stands before it, and the step that fills it. `None`: not known.
    known: Vec<Option<(Option<BlockHash>, u64)>>,
    block_size: usize,
    step: u64,
}

impl PartIndex {
    /// An empty index for `num_blocks` blocks of `block_size` tokens.
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        Self {
            by_place: HashMap::new(),
            token_ids: vec![0; num_blocks * block_size],
            known: vec![None; num_blocks],
            block_size,
            step: 0,
        }
    }

    /// What was entered so far is filled from here on.
    pub fn begin_step(&mut self) {
        self.step += 1;
    }

    /// Enters a block that this step fills with `token_ids` (`[Z]`) behind `parent`.
    pub fn insert(&mut self, block: u32, parent: Option<BlockHash>, token_ids: &[u32]) {
        let start = block as usize * self.block_size;
        self.token_ids[start..start + self.block_size].copy_from_slice(token_ids);
        self.known[block as usize] = Some((parent, self.step));
        self.by_place.entry((parent, token_ids[0])).or_default().push(block);
    }

    /// Takes a block out, if it is here.
    pub fn remove(&mut self, block: u32) {
        let Some((parent, _)) = self.known[block as usize].take() else { return };
        let place = (parent, self.token_ids[block as usize * self.block_size]);
        if let Some(blocks) = self.by_place.get_mut(&place) {
            blocks.retain(|&other| other != block);
            if blocks.is_empty() {
                self.by_place.remove(&place);
            }
        }
    }

    /// Takes all blocks out.
    pub fn clear(&mut self) {
        self.by_place.clear();
        self.known.fill(None);
    }

    /// The block behind `parent` that has most tokens in common with `token_ids`: among those that are filled, and among
    /// those that this step is to fill.
    pub fn longest(&self, parent: Option<BlockHash>, token_ids: &[u32]) -> (Option<Part>, Option<Part>) {
        let (mut filled, mut promised) = (None::<Part>, None::<Part>);
        let candidates = token_ids.first().and_then(|&first| self.by_place.get(&(parent, first)));
        for &block in candidates.into_iter().flatten().rev().take(MAX_CANDIDATES) {
            let held = &self.token_ids[block as usize * self.block_size..][..self.block_size];
            let num_tokens = held.iter().zip(token_ids).take_while(|(one, other)| one == other).count();
            let is_filled = self.known[block as usize].is_some_and(|(_, step)| step < self.step);
            let best = if is_filled { &mut filled } else { &mut promised };
            if best.is_none_or(|best| best.num_tokens < num_tokens) {
                *best = Some(Part { block, num_tokens });
            }
        }
        (filled, promised)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_common_beginning_behind_the_same_parent_is_found_and_promises_are_told_apart() {
        let mut index = PartIndex::new(8, 4);
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
        index.remove(3);
        index.remove(3);
        assert_eq!(index.longest(parent, &[7, 8, 5, 4]), (part(0, 2), None));
        index.clear();
        assert_eq!(index.longest(parent, &[7, 8, 5, 4]), (None, None));
    }
}
