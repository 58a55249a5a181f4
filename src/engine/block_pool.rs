//! Who owns which block of the key/value cache. Numbers only: the cache itself lives in the model runner.
//!
//! Blocks make the cache paged: a sequence grows by whole blocks wherever they happen to lie, so no memory is lost to
//! longest-case reservations and a finished sequence leaves no hole.
//!
//! **Source**: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (2023).

/// The free blocks of a cache of fixed size.
#[derive(Debug, Clone)]
pub struct BlockPool {
    /// Blocks that nobody owns; the next one handed out is the last. With the owned ones it is always all of them.
    free: Vec<u32>,
    /// Per block: whether a sequence owns it. Catches a double release at its source.
    is_owned: Vec<bool>,
    block_size: usize,
}

impl BlockPool {
    /// A pool of `num_blocks` blocks of `block_size` tokens, all free.
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        assert!(num_blocks > 0 && block_size > 0, "a pool needs blocks, and blocks need room");
        let num_blocks_u32 =
            u32::try_from(num_blocks).expect("slots are 32-bit, so the caller keeps blocks below 2^32");
        Self { free: (0..num_blocks_u32).rev().collect(), is_owned: vec![false; num_blocks], block_size }
    }

    /// Tokens per block (`Z`).
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks in all (`P`).
    pub fn num_blocks(&self) -> usize {
        self.is_owned.len()
    }

    /// Blocks that nobody owns.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Blocks that `num_tokens` tokens take.
    pub fn blocks_for(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.block_size)
    }

    /// Extends `block_table` until it has room for `num_tokens` tokens. All or nothing: `false` leaves both unchanged.
    #[must_use]
    pub fn grow(&mut self, block_table: &mut Vec<u32>, num_tokens: usize) -> bool {
        let missing = self.blocks_for(num_tokens).saturating_sub(block_table.len());
        if missing > self.free.len() {
            return false;
        }
        for _ in 0..missing {
            let block = self.free.pop().expect("counted just above");
            debug_assert!(!self.is_owned[block as usize], "block {block} was free and owned at once");
            self.is_owned[block as usize] = true;
            block_table.push(block);
        }
        true
    }

    /// Takes all blocks of a table back.
    pub fn release(&mut self, block_table: &mut Vec<u32>) {
        // Last block first, so that the next sequence gets them in the same order.
        for block in block_table.drain(..).rev() {
            assert!(std::mem::take(&mut self.is_owned[block as usize]), "block {block} was released twice");
            self.free.push(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn growing_is_all_or_nothing() {
        let mut pool = BlockPool::new(3, 4);
        let mut table = Vec::new();
        assert!(pool.grow(&mut table, 5));
        assert_eq!((table.len(), pool.num_free()), (2, 1));
        assert!(pool.grow(&mut table, 8), "room for 8 is already there");
        assert!(!pool.grow(&mut table, 13));
        assert_eq!((table.len(), pool.num_free()), (2, 1));
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn a_double_release_is_caught() {
        let mut pool = BlockPool::new(2, 4);
        let mut table = Vec::new();
        assert!(pool.grow(&mut table, 4));
        let mut copy = table.clone();
        pool.release(&mut table);
        pool.release(&mut copy);
    }

    proptest! {
        #[test]
        fn no_block_is_owned_twice_and_all_come_home(
            num_blocks in 1usize..40,
            block_size in 1usize..9,
            operations in prop::collection::vec((0usize..6, 0usize..80), 0..200),
        ) {
            let mut pool = BlockPool::new(num_blocks, block_size);
            let mut tables = vec![Vec::new(); 6];
            for (who, num_tokens) in operations {
                if num_tokens == 0 {
                    pool.release(&mut tables[who]);
                } else if pool.grow(&mut tables[who], num_tokens) {
                    prop_assert!(tables[who].len() * block_size >= num_tokens);
                }
                let mut owned: Vec<u32> = tables.concat();
                prop_assert_eq!(owned.len() + pool.num_free(), num_blocks);
                owned.sort_unstable();
                owned.dedup();
                prop_assert_eq!(owned.len() + pool.num_free(), num_blocks);
            }
            tables.iter_mut().for_each(|table| pool.release(table));
            prop_assert_eq!(pool.num_free(), num_blocks);
        }
    }
}
