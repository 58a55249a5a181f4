//! Names of cache blocks by what they hold.
//!
//! The key and value of a token depend on the tokens up to it and on nothing else, so a full block is named by the hash
//! of its own tokens and of the block before it: equal names, equal contents.
//!
//! **Source**: vLLM, "Automatic Prefix Caching" (hash chain over blocks).

/// The name of a full block. 128 bits of BLAKE3: two contents under one name are not to be expected in the life of the
/// universe, so that tokens need not be compared on a hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockHash(u128);

impl BlockHash {
    /// The name of a block that holds `token_ids` behind the block `parent` (`None`: at the start).
    pub fn of(parent: Option<Self>, token_ids: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        // No block has the name 0 in front of it by accident: the flag tells the first block from all others.
        hasher.update(&[u8::from(parent.is_some())]);
        hasher.update(&parent.map_or(0, |parent| parent.0).to_le_bytes());
        for token_id in token_ids {
            hasher.update(&token_id.to_le_bytes());
        }
        let mut name = [0; 16];
        name.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(u128::from_le_bytes(name))
    }
}

/// Extends `names` to all full blocks of `token_ids`.
pub fn extend(names: &mut Vec<BlockHash>, token_ids: &[u32], block_size: usize) {
    for block in token_ids.chunks_exact(block_size).skip(names.len()) {
        let name = BlockHash::of(names.last().copied(), block);
        names.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_depends_on_the_whole_prefix_and_only_full_blocks_have_one() {
        let names = |token_ids: &[u32]| {
            let mut names = Vec::new();
            extend(&mut names, token_ids, 2);
            names
        };
        let base = names(&[1, 2, 3, 4, 5]);
        assert_eq!(base.len(), 2);
        assert_eq!(names(&[1, 2, 3, 4, 9, 9])[..2], base);
        assert_ne!(names(&[9, 2, 3, 4])[1], base[1], "another first block");
        assert_ne!(names(&[3, 4])[0], base[1], "the same tokens at the start");
        let mut grown = names(&[1, 2]);
        extend(&mut grown, &[1, 2, 3, 4], 2);
        assert_eq!(grown, base);
    }
}
