//! The paged cache of keys and values: what a step writes into it.
//!
//! **Layout**, per block and head: keys `[P, K, D, Z]` (16 keys lie in one register), values `[P, K, Z, D]`.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::Heads;
use crate::{
    host::{SharedMut, read, write},
    rms_norm,
    rope::rotate_heads,
};

/// What happens to queries and keys before they meet.
#[derive(Debug, Clone, Copy)]
pub struct Rotary<'a> {
    /// Norms of each query head and each key head `[D]`, before the rotation (Qwen3), with their epsilon.
    pub qk_norm: Option<(&'a Tensor, &'a Tensor, f64)>,
    /// `[max positions, D/2]`
    pub cos: &'a Tensor,
    /// `[max positions, D/2]`
    pub sin: &'a Tensor,
    /// `[N]`
    pub positions: &'a [u32],
}

/// Normalises and rotates queries and keys of the first `N` rows of `qkv` in place, and writes keys and values into the
/// cache at `slots`: one pass over the rows. `rotary` may be left out where that has been done.
///
/// **Shapes**: `qkv [≥ N, (H + 2K)·D]`, `keys` and `values [P·Z, K·D]` (three storages), `slots [N]`, all different.
pub fn write_cache(
    qkv: &Tensor,
    rotary: Option<Rotary>,
    (keys, values): (&Tensor, &Tensor),
    slots: &[u32],
    block_size: usize,
    heads: &Heads,
) -> Result<()> {
    let (capacity, cache_width) = keys.dims2()?;
    let kv = heads.key_value * heads.dim;
    if heads.check(qkv)? < slots.len() || values.dims2()? != (capacity, cache_width) || cache_width != kv {
        bail!("write_cache: {} rows of {:?}, cache {:?} and {:?}", slots.len(), qkv.dims(), keys.dims(), values.dims())
    }
    check_slots(slots, capacity)?;
    let width = heads.qkv_width();
    let rotation = rotary.map(|rotary| Rotation::new(rotary, slots.len(), heads)).transpose()?;
    let rotation = rotation.as_ref();
    write(qkv, |qkv| {
        write(keys, |keys| {
            write(values, |values| {
                let (keys, values) = (SharedMut::new(keys), SharedMut::new(values));
                let row = |(index, row): (usize, &mut [f32])| {
                    if let Some(rotation) = rotation {
                        rotation.apply(row, index, heads);
                    }
                    let (key, value) = row[heads.query * heads.dim..].split_at(kv);
                    // SAFETY: slots are inside of the cache and all different, so no two rows touch the same values.
                    unsafe { store((key, value), (&keys, &values), slots[index] as usize, block_size, heads.dim) };
                };
                // Neighbours share cache lines of the keys: runs of rows, not single ones.
                const RUN: usize = 16;
                qkv[..slots.len() * width].par_chunks_exact_mut(width).with_min_len(RUN).enumerate().for_each(row);
                Ok(())
            })
        })
    })
}

/// Copies whole blocks of a cache `[P·Z, K·D]`, from and to, one after the other.
pub fn copy_blocks(cache: &Tensor, copies: &[(u32, u32)], block_size: usize) -> Result<()> {
    let (capacity, width) = cache.dims2()?;
    let block = block_size * width;
    if copies.iter().any(|&(from, to)| (from.max(to) as usize + 1) * block_size > capacity) {
        bail!("copy_blocks: {copies:?} are outside of a cache of {capacity} slots in blocks of {block_size}")
    }
    write(cache, |cache| {
        for &(from, to) in copies {
            cache.copy_within(from as usize * block..(from as usize + 1) * block, to as usize * block);
        }
        Ok(())
    })
}

fn check_slots(slots: &[u32], capacity: usize) -> Result<()> {
    let mut sorted = slots.to_vec();
    sorted.sort_unstable();
    if sorted.last().is_some_and(|&slot| slot as usize >= capacity) {
        bail!("write_cache: slot {} is outside of a cache of {capacity}", sorted[sorted.len() - 1])
    }
    if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("write_cache: two rows go into slot {}", twice[0])
    }
    Ok(())
}

/// [`Rotary`]'s values.
struct Rotation<'a, G> {
    qk_norm: Option<(G, G, f32)>,
    cos: G,
    sin: G,
    positions: &'a [u32],
}

impl<'a> Rotation<'a, ()> {
    fn new(
        rotary: Rotary<'a>,
        rows: usize,
        heads: &Heads,
    ) -> Result<Rotation<'a, impl std::ops::Deref<Target = [f32]> + Sync>> {
        let (max_positions, half) = rotary.cos.dims2()?;
        if rotary.positions.len() != rows || 2 * half != heads.dim || rotary.sin.dims2()? != (max_positions, half) {
            bail!("rope: {} positions of {} dimensions for {rows} rows of {heads:?}", rotary.positions.len(), 2 * half)
        }
        if let Some(position) = rotary.positions.iter().find(|&&position| position as usize >= max_positions) {
            bail!("rope: position {position} is past the last one ({})", max_positions - 1)
        }
        let qk_norm = match rotary.qk_norm {
            Some((q, k, eps)) => {
                if q.dims1()? != heads.dim || k.dims1()? != heads.dim {
                    bail!("rms_norm: heads of {}, norms {:?} and {:?}", heads.dim, q.dims(), k.dims())
                }
                Some((read(q)?, read(k)?, eps as f32))
            }
            None => None,
        };
        Ok(Rotation { qk_norm, cos: read(rotary.cos)?, sin: read(rotary.sin)?, positions: rotary.positions })
    }
}

impl<G: std::ops::Deref<Target = [f32]>> Rotation<'_, G> {
    fn apply(&self, row: &mut [f32], index: usize, heads: &Heads) {
        let (queries, rest) = row.split_at_mut(heads.query * heads.dim);
        let keys = &mut rest[..heads.key_value * heads.dim];
        if let Some((q_norm, k_norm, eps)) = &self.qk_norm {
            rms_norm::rows_in_place(queries, q_norm, *eps);
            rms_norm::rows_in_place(keys, k_norm, *eps);
        }
        let half = heads.dim / 2;
        let table = self.positions[index] as usize * half..(self.positions[index] as usize + 1) * half;
        rotate_heads(queries, &self.cos[table.clone()], &self.sin[table.clone()], false);
        rotate_heads(keys, &self.cos[table.clone()], &self.sin[table], false);
    }
}

/// One token's keys and values `[K·D]` into its slot.
///
/// # Safety
///
/// The slot lies in the cache, and nobody else touches it.
unsafe fn store(
    (key, value): (&[f32], &[f32]),
    (keys, values): (&SharedMut, &SharedMut),
    slot: usize,
    block_size: usize,
    dim: usize,
) {
    let block = slot / block_size * block_size * key.len();
    let at = slot % block_size;
    for (head, (key, value)) in key.chunks_exact(dim).zip(value.chunks_exact(dim)).enumerate() {
        let tile = block + head * block_size * dim;
        for (d, key) in key.iter().enumerate() {
            // SAFETY: by this function's contract.
            unsafe { keys.set(tile + d * block_size + at, *key) };
        }
        // SAFETY: as above.
        unsafe { values.slice(tile + at * dim, dim) }.copy_from_slice(value);
    }
}
