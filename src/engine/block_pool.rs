//! Who owns which block of the key/value cache, and what the free ones still hold. Numbers only: the cache itself lives
//! in the model runner.
//!
//! Blocks make the cache paged: a sequence grows by whole blocks wherever they happen to lie, so no memory is lost to
//! longest-case reservations and a finished sequence leaves no hole. A block may have several owners, all of which only
//! read it: sequences with the same beginning share its blocks. A full block is known by its content
//! ([`BlockHash`]); when its last owner leaves it is free, but keeps its content until somebody needs the room. Then the
//! one that was left longest ago goes first, of one sequence's the last block before the first.
//!
//! **Source**: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (2023);
//! vLLM's prefix caching for the content hashes and the order of eviction.

use std::collections::HashMap;

use super::{
    part_index::{Part, PartIndex},
    prefix_hash::BlockHash,
};

/// No neighbour in the list of free blocks.
const NONE: u32 = u32::MAX;

/// One block's book-keeping.
#[derive(Debug, Clone, Copy)]
struct Block {
    /// Tables that the block stands in. 0 is free.
    num_owners: u32,
    /// What it holds, once it is full and known. Exactly then `by_hash` leads here.
    hash: Option<BlockHash>,
    /// Neighbours in the list of free blocks.
    previous: u32,
    next: u32,
}

/// The blocks of a cache of fixed size.
#[derive(Debug, Clone)]
pub struct BlockPool {
    blocks: Vec<Block>,
    /// Free blocks as a doubly linked list: handed out from the front, given back at the front when they hold nothing,
    /// at the back when they do.
    first_free: u32,
    last_free: u32,
    num_free: usize,
    /// The one of them that holds something and was left longest ago, and how many hold something. All behind it do.
    first_idle: u32,
    num_idle: usize,
    max_idle: usize,
    by_hash: HashMap<BlockHash, u32>,
    /// The same blocks by how they begin.
    parts: PartIndex,
    block_size: usize,
}

impl BlockPool {
    /// A pool of `num_blocks` blocks of `block_size` tokens, all free and empty.
    pub fn new(num_blocks: usize, block_size: usize) -> Self {
        assert!(num_blocks > 0 && block_size > 0, "a pool needs blocks, and blocks need room");
        let num = u32::try_from(num_blocks).expect("slots are 32-bit, so the caller keeps blocks below 2^32");
        assert!(num < NONE, "the last number stands for no block");
        let empty = Block { num_owners: 0, hash: None, previous: NONE, next: NONE };
        let mut pool = Self {
            blocks: vec![empty; num_blocks],
            first_free: NONE,
            last_free: NONE,
            num_free: 0,
            first_idle: NONE,
            num_idle: 0,
            max_idle: usize::MAX,
            by_hash: HashMap::new(),
            parts: PartIndex::new(num_blocks),
            block_size,
        };
        (0..num).for_each(|block| pool.link_last(block));
        pool
    }

    /// Lets at most so many free blocks keep what they hold; the others are used again before any that never was, so that
    /// memory that the system has not given yet stays with it.
    pub fn keep_idle(&mut self, max_idle: usize) {
        self.max_idle = max_idle;
    }

    /// Tokens per block (`Z`).
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks in all (`P`).
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody owns, whether they hold something or not.
    pub fn num_free(&self) -> usize {
        self.num_free
    }

    /// Full blocks whose content is known, owned or free.
    pub fn num_cached(&self) -> usize {
        self.by_hash.len()
    }

    /// Blocks that `num_tokens` tokens take.
    pub fn blocks_for(&self, num_tokens: usize) -> usize {
        num_tokens.div_ceil(self.block_size)
    }

    /// How many tables a block stands in.
    pub fn num_owners(&self, block: u32) -> u32 {
        self.blocks[block as usize].num_owners
    }

    /// Extends `block_table` until it has room for `num_tokens` tokens. All or nothing: `false` leaves both unchanged.
    #[must_use]
    pub fn grow(&mut self, block_table: &mut Vec<u32>, num_tokens: usize) -> bool {
        let missing = self.blocks_for(num_tokens).saturating_sub(block_table.len());
        if missing > self.num_free {
            return false;
        }
        block_table.extend((0..missing).map(|_| self.take_free()));
        true
    }

    /// Replaces one shared block of a table by a fresh one of its own; the caller copies the content. Needs a free
    /// block.
    pub fn split_off(&mut self, block: &mut u32) {
        debug_assert!(self.num_owners(*block) > 1, "a block with one owner needs no copy");
        let fresh = self.take_free();
        self.leave(*block);
        *block = fresh;
    }

    /// Takes all blocks of a table back.
    pub fn release(&mut self, block_table: &mut Vec<u32>) {
        // Last block first: it is evicted first, so that what stays cached is a beginning.
        for block in block_table.drain(..).rev() {
            self.leave(block);
        }
    }

    /// How many of `hashes` are cached from the first on, and how many of these blocks are free.
    pub fn longest_cached(&self, hashes: &[BlockHash]) -> (usize, usize) {
        let found = hashes.iter().map_while(|hash| self.by_hash.get(hash));
        found.fold((0, 0), |(num, num_free), &block| (num + 1, num_free + usize::from(self.num_owners(block) == 0)))
    }

    /// Adds the cached blocks of `hashes` to an empty table. All of them must be cached.
    pub fn share_cached(&mut self, block_table: &mut Vec<u32>, hashes: &[BlockHash]) {
        debug_assert!(block_table.is_empty());
        for hash in hashes {
            let block = *self.by_hash.get(hash).expect("the caller has asked `longest_cached`");
            self.join(block);
            block_table.push(block);
        }
    }

    /// Makes a copy of the beginning of another table: its blocks have one owner more.
    pub fn share_table(&mut self, blocks: &[u32]) -> Vec<u32> {
        blocks.iter().for_each(|&block| self.join(block));
        blocks.to_vec()
    }

    /// The cached block behind `parent` that has most tokens in common with `token_ids`: among those that are filled,
    /// and among those that were remembered since [`BlockPool::begin_step`].
    pub fn longest_part(&self, parent: Option<BlockHash>, token_ids: &[u32]) -> (Option<Part>, Option<Part>) {
        self.parts.longest(parent, token_ids)
    }

    /// What was remembered so far is filled from here on.
    pub fn begin_step(&mut self) {
        self.parts.begin_step();
    }

    /// Says what a full block will hold after this step: `token_ids` (`[Z]`) behind the block `parent`, together named
    /// `hash`. Of two blocks with one content the first stays known.
    pub fn remember(&mut self, block: u32, hash: BlockHash, parent: Option<BlockHash>, token_ids: &[u32]) {
        let known = &mut self.blocks[block as usize].hash;
        if known.is_none() {
            self.by_hash.entry(hash).or_insert_with(|| {
                *known = Some(hash);
                self.parts.insert(block, parent, token_ids);
                block
            });
        }
        debug_assert!(known.is_none_or(|known| known == hash), "block {block} was overwritten while it was known");
    }

    /// Says what the first tokens of a block that is not full will be after this step: `token_ids` (`[< Z]`) behind the
    /// block `parent`. They stay so until [`BlockPool::forget_from`].
    pub fn remember_part(&mut self, block: u32, parent: Option<BlockHash>, token_ids: &[u32]) {
        debug_assert!(self.blocks[block as usize].hash.is_none(), "block {block} is known as a full one");
        self.parts.insert(block, parent, token_ids);
    }

    /// Forgets what a block holds, because it is about to be overwritten.
    pub fn forget(&mut self, block: u32) {
        self.forget_from(block, 0);
    }

    /// The same where it is overwritten from its token `first` on: what is known of fewer tokens stays true.
    pub fn forget_from(&mut self, block: u32, first: usize) {
        if let Some(hash) = self.blocks[block as usize].hash.take() {
            self.by_hash.remove(&hash);
        }
        if self.parts.num_tokens(block) > first {
            self.parts.remove(block);
        }
    }

    /// Forgets what all blocks hold, as when the cache behind them cannot be trusted any more.
    pub fn forget_all(&mut self) {
        self.by_hash.clear();
        self.parts.clear();
        (self.first_idle, self.num_idle) = (NONE, 0);
        self.blocks.iter_mut().for_each(|block| block.hash = None);
    }

    fn join(&mut self, block: u32) {
        if self.blocks[block as usize].num_owners == 0 {
            self.unlink(block);
        }
        self.blocks[block as usize].num_owners += 1;
    }

    fn leave(&mut self, block: u32) {
        let state = &mut self.blocks[block as usize];
        assert!(state.num_owners > 0, "block {block} was released twice");
        state.num_owners -= 1;
        if state.num_owners > 0 {
            return;
        }
        if self.parts.num_tokens(block) == 0 {
            return self.link_first(block);
        }
        self.link_last(block);
        self.num_idle += 1;
        if self.first_idle == NONE {
            self.first_idle = block;
        }
        if self.num_idle > self.max_idle {
            let oldest = self.first_idle;
            self.unlink(oldest);
            self.forget(oldest);
            self.link_first(oldest);
        }
    }

    fn take_free(&mut self) -> u32 {
        let block = self.first_free;
        assert!(block != NONE, "the caller has counted the free blocks");
        self.unlink(block);
        let state = &mut self.blocks[block as usize];
        debug_assert!(state.num_owners == 0, "block {block} was free and owned at once");
        state.num_owners = 1;
        self.forget(block);
        block
    }

    fn link_first(&mut self, block: u32) {
        let first = std::mem::replace(&mut self.first_free, block);
        self.link(block, NONE, first);
    }

    fn link_last(&mut self, block: u32) {
        let last = std::mem::replace(&mut self.last_free, block);
        self.link(block, last, NONE);
    }

    fn link(&mut self, block: u32, previous: u32, next: u32) {
        (self.blocks[block as usize].previous, self.blocks[block as usize].next) = (previous, next);
        match previous {
            NONE => self.first_free = block,
            previous => self.blocks[previous as usize].next = block,
        }
        match next {
            NONE => self.last_free = block,
            next => self.blocks[next as usize].previous = block,
        }
        self.num_free += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Block { previous, next, .. } = self.blocks[block as usize];
        if self.parts.num_tokens(block) > 0 {
            self.num_idle -= 1;
            if self.first_idle == block {
                self.first_idle = next;
            }
        }
        match previous {
            NONE => self.first_free = next,
            previous => self.blocks[previous as usize].next = next,
        }
        match next {
            NONE => self.last_free = previous,
            next => self.blocks[next as usize].previous = previous,
        }
        self.num_free -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;

    use super::*;

    /// The name of a block that holds nothing but `content`.
    fn name(content: u32) -> BlockHash {
        BlockHash::of(None, &[content])
    }

    fn remember(pool: &mut BlockPool, block: u32, content: u32) {
        let token_ids = vec![content; pool.block_size()];
        pool.remember(block, name(content), None, &token_ids);
    }

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

    #[test]
    fn a_freed_block_is_found_again_until_its_room_is_needed_and_the_oldest_goes_first() {
        let mut pool = BlockPool::new(4, 1);
        let (mut old, mut young) = (Vec::new(), Vec::new());
        assert!(pool.grow(&mut old, 2) && pool.grow(&mut young, 1));
        for (&block, content) in old.iter().chain(&young).zip(0..) {
            remember(&mut pool, block, content);
        }
        pool.release(&mut old);
        pool.release(&mut young);
        assert_eq!((pool.num_free(), pool.longest_cached(&[name(0), name(1), name(9)])), (4, (2, 2)));
        let mut other = Vec::new();
        assert!(pool.grow(&mut other, 2), "the empty block, then the one left longest ago: the last of `old`");
        assert_eq!(pool.longest_cached(&[name(0), name(1)]), (1, 1));
        assert_eq!(pool.longest_cached(&[name(2)]), (1, 1));
        pool.share_cached(&mut old, &[name(0)]);
        assert_eq!((pool.num_free(), pool.num_owners(old[0])), (1, 1));
        assert!(pool.grow(&mut other, 3));
        assert_eq!(pool.longest_cached(&[name(2)]), (0, 0));
        assert_eq!(pool.longest_cached(&[name(0)]), (1, 0), "an owned block is never evicted");
    }

    #[derive(Debug, Clone)]
    enum Operation {
        Grow(usize, usize),
        Release(usize),
        Remember(usize, u32),
        Share(usize, Vec<u32>),
        Fork(usize, usize),
        Split(usize),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let who = 0usize..5;
        prop_oneof![
            (who.clone(), 1usize..40).prop_map(|(who, num_tokens)| Operation::Grow(who, num_tokens)),
            who.clone().prop_map(Operation::Release),
            (who.clone(), 0u32..12).prop_map(|(who, content)| Operation::Remember(who, content)),
            (who.clone(), prop::collection::vec(0u32..12, 1..4)).prop_map(|(who, names)| Operation::Share(who, names)),
            (who.clone(), who.clone()).prop_map(|(from, to)| Operation::Fork(from, to)),
            who.prop_map(Operation::Split),
        ]
    }

    /// A slow model of the pool: owners counted in the tables, contents in a map, free blocks in a queue.
    #[derive(Default)]
    struct Model {
        contents: BTreeMap<u32, u32>,
        free: VecDeque<u32>,
        max_idle: usize,
    }

    impl Model {
        fn freed(&mut self, block: u32) {
            if !self.contents.contains_key(&block) {
                return self.free.push_front(block);
            }
            self.free.push_back(block);
            let mut idle = (0..self.free.len()).filter(|&at| self.contents.contains_key(&self.free[at]));
            if let (Some(oldest), true) = (idle.next(), idle.count() + 1 > self.max_idle) {
                let oldest = self.free.remove(oldest).unwrap();
                self.contents.remove(&oldest);
                self.free.push_front(oldest);
            }
        }

        fn taken(&mut self) -> u32 {
            let block = self.free.pop_front().unwrap();
            self.contents.remove(&block);
            block
        }

        fn holder(&self, content: u32) -> Option<u32> {
            self.contents.iter().find(|(_, held)| **held == content).map(|(&block, _)| block)
        }
    }

    proptest! {
        #[test]
        fn the_pool_does_what_a_slow_model_of_it_does(
            num_blocks in 1usize..24,
            block_size in 1usize..5,
            max_idle in prop_oneof![Just(usize::MAX), 0usize..9],
            operations in prop::collection::vec(operation(), 0..200),
        ) {
            let mut pool = BlockPool::new(num_blocks, block_size);
            pool.keep_idle(max_idle);
            let mut model = Model { free: (0..num_blocks as u32).collect(), max_idle, ..Model::default() };
            let mut tables: Vec<Vec<u32>> = vec![Vec::new(); 5];
            let owners = |tables: &[Vec<u32>], block: u32| tables.iter().flatten().filter(|&&it| it == block).count();
            for operation in operations {
                match operation {
                    Operation::Grow(who, num_tokens) => {
                        let missing = num_tokens.div_ceil(block_size).saturating_sub(tables[who].len());
                        let mut expected = tables[who].clone();
                        let fits = missing <= model.free.len();
                        if fits {
                            expected.extend((0..missing).map(|_| model.taken()));
                        }
                        prop_assert_eq!(pool.grow(&mut tables[who], num_tokens), fits);
                        prop_assert_eq!(&tables[who], &expected);
                    }
                    Operation::Release(who) => {
                        let mut left = std::mem::take(&mut tables[who]);
                        pool.release(&mut left.clone());
                        while let Some(block) = left.pop() {
                            if owners(&tables, block) + left.iter().filter(|&&it| it == block).count() == 0 {
                                model.freed(block);
                            }
                        }
                    }
                    Operation::Remember(who, content) => {
                        let Some(&block) = tables[who].last() else { continue };
                        if model.contents.contains_key(&block) { continue }
                        remember(&mut pool, block, content);
                        if model.holder(content).is_none() {
                            model.contents.insert(block, content);
                        }
                    }
                    Operation::Share(who, contents) => {
                        if !tables[who].is_empty() { continue }
                        let held: Vec<u32> = contents.iter().map_while(|&content| model.holder(content)).collect();
                        let names: Vec<BlockHash> = contents.iter().map(|&content| name(content)).collect();
                        let num_free = held.iter().filter(|&&block| owners(&tables, block) == 0).count();
                        prop_assert_eq!(pool.longest_cached(&names), (held.len(), num_free));
                        pool.share_cached(&mut tables[who], &names[..held.len()]);
                        prop_assert_eq!(&tables[who], &held);
                        model.free.retain(|block| !held.contains(block));
                    }
                    Operation::Fork(from, to) => {
                        if !tables[to].is_empty() { continue }
                        tables[to] = pool.share_table(&tables[from]);
                    }
                    Operation::Split(who) => {
                        let Some(&block) = tables[who].last() else { continue };
                        if owners(&tables, block) < 2 || model.free.is_empty() { continue }
                        pool.split_off(tables[who].last_mut().unwrap());
                        prop_assert_eq!(*tables[who].last().unwrap(), model.taken());
                    }
                }
                prop_assert_eq!(pool.num_free(), model.free.len());
                prop_assert_eq!(pool.num_cached(), model.contents.len());
                for content in 0..12 {
                    let (_, found) = pool.longest_part(None, &[content]);
                    prop_assert_eq!(found.map(|part| part.block), model.holder(content));
                }
                for block in 0..num_blocks as u32 {
                    prop_assert_eq!(pool.num_owners(block) as usize, owners(&tables, block));
                }
            }
            tables.iter_mut().for_each(|table| pool.release(table));
            prop_assert_eq!(pool.num_free(), num_blocks);
            pool.forget_all();
            prop_assert_eq!(pool.num_cached(), 0);
        }
    }
}
