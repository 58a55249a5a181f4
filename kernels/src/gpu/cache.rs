//! The paged cache on a device, and launches of `cache`.
//!
//! **Layout**, per block and head: keys and values `[P, K, Z, D]`.

use candle_core::{Result, bail};

use super::{Arg, Array, Float, Gpu, Launch, check_len, launch, rope::Tables, rows_of};
use crate::attention::Heads;

/// Widest head (`MOST_PAIRS` in `cache.cu`).
const MOST_DIM: usize = 512;

/// Keys and values of one layer.
#[derive(Debug, Clone)]
pub struct Cache<F> {
    pub(super) keys: Array<F>,
    pub(super) values: Array<F>,
    pub(super) block_size: usize,
    num_blocks: usize,
}

impl<F: Float> Cache<F> {
    /// Zeros for `num_blocks` blocks of `block_size` tokens.
    pub fn new(gpu: &Gpu, num_blocks: usize, block_size: usize, heads: &Heads) -> Result<Self> {
        let len = num_blocks * block_size * heads.key_value * heads.dim;
        let block_bytes = len / num_blocks.max(1) * size_of::<F>();
        if !block_bytes.is_multiple_of(16) {
            bail!("a cache of blocks of {block_bytes} bytes: expected a multiple of 16")
        }
        Ok(Self { keys: Array::zeros(gpu, len)?, values: Array::zeros(gpu, len)?, block_size, num_blocks })
    }

    /// `P`
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Keys and values, `[P, K, Z, D]` each.
    pub fn arrays(&self) -> (&Array<F>, &Array<F>) {
        (&self.keys, &self.values)
    }

    /// Copies whole blocks, from and to, one after the other.
    pub fn copy_blocks(&self, copies: &[(u32, u32)]) -> Result<()> {
        if copies.iter().any(|&(from, to)| from.max(to) as usize >= self.num_blocks) {
            bail!("copy_blocks: {copies:?} are outside of a cache of {} blocks", self.num_blocks)
        }
        let mut rest = copies;
        while !rest.is_empty() {
            // Copies that touch no block that one before them writes, nor write one that is read, happen at once.
            let touches = |copy: &(u32, u32), others: &[(u32, u32)]| {
                others.iter().any(|(from, to)| *to == copy.0 || *to == copy.1 || *from == copy.1)
            };
            let count = (1..rest.len()).find(|&next| touches(&rest[next], &rest[..next])).unwrap_or(rest.len());
            let (at_once, after) = rest.split_at(count);
            self.copy_at_once(at_once)?;
            rest = after;
        }
        Ok(())
    }

    fn copy_at_once(&self, copies: &[(u32, u32)]) -> Result<()> {
        let gpu = self.keys.gpu();
        let pairs: Vec<i32> = copies.iter().flat_map(|&(from, to)| [from as i32, to as i32]).collect();
        let pairs = Array::from_slice(gpu, &pairs)?;
        let words = self.keys.len() / self.num_blocks * size_of::<F>() / 16;
        for half in [&self.keys, &self.values] {
            let launched = Launch {
                module: "cache",
                kernel: "copy_blocks",
                blocks: [copies.len(), 1, 1],
                threads: 256,
                shared_bytes: 0,
                args: &[half.into(), (&pairs).into(), words.into()],
            };
            // SAFETY: the blocks are inside of the cache, and no copy waits for another.
            unsafe { launch(gpu, launched)? };
        }
        Ok(())
    }
}

/// Where a step's rows stand and where they go.
#[derive(Debug, Clone)]
pub struct Places {
    positions: Array<i32>,
    slots: Array<i32>,
    end_slot: usize,
}

impl Places {
    /// Uploads a step's positions and slots `[N]`.
    ///
    /// **Errors**: a position beyond the tables, a slot that two rows want.
    pub fn new(gpu: &Gpu, positions: &[u32], slots: &[u32], tables: &Tables) -> Result<Self> {
        let positions: Vec<i32> = positions.iter().map(|&position| position as i32).collect();
        tables.check(&positions)?;
        let mut sorted = slots.to_vec();
        sorted.sort_unstable();
        if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("write_cache: two rows go into slot {}", twice[0])
        }
        if positions.len() != slots.len() {
            bail!("write_cache: {} positions and {} slots", positions.len(), slots.len())
        }
        let end_slot = sorted.last().map_or(0, |slot| *slot as usize + 1);
        let slots: Vec<i32> = slots.iter().map(|&slot| slot as i32).collect();
        Ok(Self { positions: Array::from_slice(gpu, &positions)?, slots: Array::from_slice(gpu, &slots)?, end_slot })
    }
}

/// Normalises (where `qk_norm` is given: both weights `[D]` and their epsilon) and rotates queries in place, and writes
/// normalised and rotated keys, and values, into the cache.
///
/// **Shapes**: `qkv [N, (H + 2K)·D]`; its keys stay as they are.
pub fn write<F: Float>(
    qkv: &Array<F>,
    cache: &Cache<F>,
    qk_norm: Option<(&Array<F>, &Array<F>, f32)>,
    tables: &Tables,
    places: &Places,
    heads: &Heads,
) -> Result<()> {
    let rows = rows_of("write_cache", qkv, heads.qkv_width())?;
    check_len("write_cache: slots", &places.slots, rows)?;
    if heads.dim != 2 * tables.half || heads.dim > MOST_DIM {
        bail!("write_cache: heads of {} with tables of {}, at most {MOST_DIM}", heads.dim, 2 * tables.half)
    }
    if places.end_slot > cache.num_blocks * cache.block_size {
        bail!("write_cache: slot {} is outside of {} blocks", places.end_slot - 1, cache.num_blocks)
    }
    if let Some((q_norm, k_norm, _)) = qk_norm {
        check_len("write_cache: q_norm", q_norm, heads.dim)?;
        check_len("write_cache: k_norm", k_norm, heads.dim)?;
    }
    let norm = |pick: fn((&Array<F>, &Array<F>)) -> Arg| qk_norm.map_or_else(|| qkv.into(), |(q, k, _)| pick((q, k)));
    let launched = Launch {
        module: "cache",
        kernel: F::kernel("write_cache_f32", "write_cache_bf16"),
        blocks: [rows, 1, 1],
        threads: (32 * (heads.query + 2 * heads.key_value)).min(256),
        shared_bytes: 0,
        args: &[
            qkv.into(),
            (&cache.keys).into(),
            (&cache.values).into(),
            norm(|(q, _)| q.into()),
            norm(|(_, k)| k.into()),
            (&tables.cos).into(),
            (&tables.sin).into(),
            (&places.positions).into(),
            (&places.slots).into(),
            heads.query.into(),
            heads.key_value.into(),
            tables.half.into(),
            cache.block_size.into(),
            qk_norm.map_or(0.0, |(_, _, eps)| eps).into(),
            qk_norm.is_some().into(),
        ],
    };
    // SAFETY: positions were checked against the tables, slots against the cache, and no two rows share one.
    unsafe { launch(qkv.gpu(), launched) }
}
