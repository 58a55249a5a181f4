//! Attention and its cache: paged decode and prefill, shared prefixes, packed sequences.

use candle_core::Result;
use glan_kernels::{
    attention::{self, Heads, PagedRows, Rotary},
    gpu::{
        self, Array, Float,
        attention::{PackedWork, PagedWork},
        cache::{Cache, Places},
        rope::Tables,
    },
};
use half::bf16;

use crate::host::{array, close, on_every_dialect, random, rounded, tensor, values};

const BLOCK_SIZE: usize = 16;

/// A norm's rounding, the rotation's and attention's own: two or three times 2^-9 in bf16.
fn tolerance<F: Float>() -> f32 {
    if size_of::<F>() == 4 { 5e-6 } else { 1e-2 }
}

struct Batch {
    /// Rows and context of each sequence.
    lengths: Vec<(usize, usize)>,
    tables: Vec<Vec<u32>>,
    num_blocks: usize,
}

impl Batch {
    fn sequences(&self) -> Vec<PagedRows<'_>> {
        let rows = self.lengths.iter().zip(&self.tables);
        rows.map(|(&(query_len, context_len), block_table)| PagedRows { query_len, context_len, block_table }).collect()
    }

    fn positions(&self) -> Vec<u32> {
        self.lengths.iter().flat_map(|&(rows, context)| (context - rows) as u32..context as u32).collect()
    }

    fn slots(&self) -> Vec<u32> {
        let of_sequence = |(&(rows, context), table): (&(usize, usize), &Vec<u32>)| -> Vec<u32> {
            (context - rows..context).map(|at| table[at / BLOCK_SIZE] * 16 + (at % BLOCK_SIZE) as u32).collect()
        };
        self.lengths.iter().zip(&self.tables).flat_map(of_sequence).collect()
    }
}

/// Keys of the CPU's cache `[P, K, D, Z]` as the GPU has them `[P, K, Z, D]`, and back.
fn turned(keys: &[f32], dim: usize) -> Vec<f32> {
    keys.chunks_exact(dim * BLOCK_SIZE)
        .flat_map(|tile| (0..dim * BLOCK_SIZE).map(|at| tile[at % dim * BLOCK_SIZE + at / dim]))
        .collect()
}

fn paged_case<F: Float>(batch: &Batch, heads: &Heads, with_norm: bool, wants_parts: bool) -> Result<()> {
    let positions = batch.positions();
    let num_rows = positions.len();
    let (half, cache_len) = (heads.dim / 2, batch.num_blocks * BLOCK_SIZE * heads.key_value * heads.dim);
    let qkv = rounded::<F>(&random(num_rows * heads.qkv_width(), 1));
    // What earlier steps left in the cache.
    let (keys, old_values) = (rounded::<F>(&random(cache_len, 2)), rounded::<F>(&random(cache_len, 3)));
    let norms = [rounded::<F>(&random(heads.dim, 4)), rounded::<F>(&random(heads.dim, 5))];
    let angles: Vec<f32> = (0..1024).flat_map(|p| (0..half).map(move |i| p as f32 * 0.7f32.powi(i as i32))).collect();
    let angles = tensor(&angles, (1024, half))?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);

    let shape = (batch.num_blocks * BLOCK_SIZE, heads.key_value * heads.dim);
    let on_cpu = tensor(&qkv, (num_rows, heads.qkv_width()))?;
    let (cpu_keys, cpu_values) = (tensor(&keys, shape)?, tensor(&old_values, shape)?);
    let norm_tensors = [tensor(&norms[0], heads.dim)?, tensor(&norms[1], heads.dim)?];
    let qk_norm = with_norm.then_some((&norm_tensors[0], &norm_tensors[1], 1e-6));
    let rotary = Rotary { qk_norm, cos: &cos, sin: &sin, positions: &positions };
    let slots = batch.slots();
    attention::write_cache(&on_cpu, Some(rotary), (&cpu_keys, &cpu_values), &slots, BLOCK_SIZE, heads)?;
    let o = attention::paged(&on_cpu, &cpu_keys, &cpu_values, &batch.sequences(), BLOCK_SIZE, heads)?;
    let queries = on_cpu.narrow(1, 0, heads.query * heads.dim)?.contiguous()?;
    let expected = [values(&o)?, values(&queries)?, turned(&values(&cpu_keys)?, heads.dim), values(&cpu_values)?];

    let (cos, sin) = (values(&cos)?, values(&sin)?);
    let results = on_every_dialect(|gpu| {
        let on_gpu = array::<F>(gpu, &qkv)?;
        let cache = Cache::<F>::new(gpu, batch.num_blocks, BLOCK_SIZE, heads)?;
        let round = |values: &[f32]| values.iter().map(|it| F::from_f32(*it)).collect::<Vec<_>>();
        cache.arrays().0.write(&round(&turned(&keys, heads.dim)))?;
        cache.arrays().1.write(&round(&old_values))?;
        let tables = Tables { cos: Array::from_slice(gpu, &cos)?, sin: Array::from_slice(gpu, &sin)?, half };
        let places = Places::new(gpu, &positions, &slots, &tables)?;
        let norms = [array::<F>(gpu, &norms[0])?, array::<F>(gpu, &norms[1])?];
        let qk_norm = with_norm.then_some((&norms[0], &norms[1], 1e-6));
        gpu::cache::write(&on_gpu, &cache, qk_norm, &tables, &places, heads)?;
        let work = PagedWork::new(gpu, &batch.sequences(), BLOCK_SIZE, batch.num_blocks, heads)?;
        assert_eq!(work.has_parts(), wants_parts);
        let o = Array::<F>::uninit(gpu, num_rows * heads.query * heads.dim)?;
        gpu::attention::paged(&o, &on_gpu, &cache, &work, heads)?;
        let after = on_gpu.to_vec()?;
        let queries =
            after.chunks_exact(heads.qkv_width()).flat_map(|row| row[..heads.query * heads.dim].to_vec()).collect();
        let (keys, values) = cache.arrays();
        Ok([o.to_vec()?, queries, keys.to_vec()?, values.to_vec()?].concat())
    })?;
    let what = format!("paged {heads:?} {:?}", batch.lengths);
    for result in &results {
        let mut rest = &result[..];
        for expected in &expected {
            let (part, after) = rest.split_at(expected.len());
            close::<F>(&what, &[part.to_vec()], expected, tolerance::<F>());
            rest = after;
        }
    }
    Ok(())
}

#[test]
fn paged_attention_and_its_cache_equal_the_cpu() -> Result<()> {
    // Decode beside a prompt and a chunk of one; blocks out of order.
    let mixed = Batch {
        lengths: vec![(1, 40), (7, 7), (5, 21), (1, 1)],
        tables: vec![vec![9, 3, 5], vec![0], vec![2, 8], vec![7, 1]],
        num_blocks: 10,
    };
    let cases = [
        (Heads { query: 4, key_value: 2, dim: 8, window: None }, false),
        (Heads { query: 14, key_value: 2, dim: 64, window: None }, true),
        (Heads { query: 3, key_value: 3, dim: 20, window: Some(6) }, false),
        (Heads { query: 20, key_value: 1, dim: 36, window: None }, true),
    ];
    for (heads, with_norm) in cases {
        paged_case::<f32>(&mixed, &heads, with_norm, false)?;
        paged_case::<bf16>(&mixed, &heads, with_norm, false)?;
    }
    Ok(())
}

#[test]
fn parts_of_a_context_and_shared_prefixes_come_together() -> Result<()> {
    let heads = Heads { query: 6, key_value: 2, dim: 32, window: None };
    // Alone and long: cut into pieces.
    let long = Batch { lengths: vec![(2, 700)], tables: vec![(0..44).rev().collect()], num_blocks: 44 };
    paged_case::<f32>(&long, &heads, true, true)?;
    paged_case::<bf16>(&long, &heads, false, true)?;
    paged_case::<f32>(&long, &Heads { window: Some(300), ..heads }, false, true)?;
    // Three of four sequences begin with the same blocks.
    let shared = Batch {
        lengths: vec![(1, 70), (1, 33), (3, 67), (1, 50)],
        tables: vec![vec![4, 2, 0, 1, 5], vec![6, 7, 8], vec![4, 2, 0, 9, 10], vec![4, 2, 0, 11]],
        num_blocks: 12,
    };
    paged_case::<f32>(&shared, &heads, false, true)?;
    paged_case::<bf16>(&shared, &heads, true, true)
}

fn packed_backward_case<F: Float>(bounds: &[usize], heads: &Heads) -> Result<()> {
    let (rows, width, out) = (bounds[bounds.len() - 1], heads.qkv_width(), heads.query * heads.dim);
    let (qkv, d_o) = (rounded::<F>(&random(rows * width, 8)), rounded::<F>(&random(rows * out, 9)));
    let on_cpu = (tensor(&qkv, (rows, width))?, tensor(&d_o, (rows, out))?);
    let (o, lse) = attention::forward(&on_cpu.0, bounds, heads)?;
    let o = tensor(&rounded::<F>(&values(&o)?), (rows, out))?;
    let expected = attention::backward(&on_cpu.1, &o, &lse, &on_cpu.0, bounds, heads)?;
    let (o, lse) = (values(&o)?, values(&lse)?);
    let results = on_every_dialect(|gpu| {
        let work = PackedWork::new(gpu, bounds, heads)?;
        let dqkv = Array::<F>::uninit(gpu, rows * width)?;
        let (d_o, o, qkv) = (array::<F>(gpu, &d_o)?, array::<F>(gpu, &o)?, array::<F>(gpu, &qkv)?);
        let lse = Array::from_slice(gpu, &lse)?;
        let given = gpu::attention_backward::Given { d_o: &d_o, o: &o, lse: &lse, qkv: &qkv };
        gpu::attention_backward::backward(&dqkv, given, &work, heads)?;
        dqkv.to_vec()
    })?;
    close::<F>(&format!("packed backward {heads:?}"), &results, &values(&expected)?, tolerance::<F>());
    Ok(())
}

#[test]
fn gradients_of_packed_attention_equal_the_cpu() -> Result<()> {
    for (query, key_value, window, dim) in [(4, 2, None, 8), (6, 2, Some(5), 36), (3, 3, None, 64), (18, 1, None, 12)] {
        let heads = Heads { query, key_value, dim, window };
        packed_backward_case::<f32>(&[0, 1, 12, 53], &heads)?;
        packed_backward_case::<bf16>(&[0, 1, 12, 53], &heads)?;
    }
    Ok(())
}

fn packed_case<F: Float>(bounds: &[usize], heads: &Heads) -> Result<()> {
    let rows = bounds[bounds.len() - 1];
    let qkv = rounded::<F>(&random(rows * heads.qkv_width(), 6));
    let (o, lse) = attention::forward(&tensor(&qkv, (rows, heads.qkv_width()))?, bounds, heads)?;
    let results = on_every_dialect(|gpu| {
        let work = PackedWork::new(gpu, bounds, heads)?;
        let qkv = array::<F>(gpu, &qkv)?;
        let o = Array::<F>::uninit(gpu, rows * heads.query * heads.dim)?;
        let kept = Array::<f32>::uninit(gpu, rows * heads.query)?;
        gpu::attention::packed(&o, &kept, &qkv, &work, heads)?;
        close::<f32>("lse", &[kept.to_vec()?], &values(&lse)?, 2e-6);
        o.to_vec()
    })?;
    close::<F>("packed", &results, &values(&o)?, tolerance::<F>());
    Ok(())
}

#[test]
fn packed_attention_equals_the_cpu() -> Result<()> {
    for (window, dim) in [(None, 8), (Some(5), 36), (None, 128)] {
        let heads = Heads { query: 4, key_value: 2, dim, window };
        packed_case::<f32>(&[0, 1, 12, 77], &heads)?;
        packed_case::<bf16>(&[0, 1, 12, 77], &heads)?;
    }
    Ok(())
}

#[test]
fn blocks_are_copied_whole_and_ill_work_is_refused() -> Result<()> {
    let heads = Heads { query: 2, key_value: 2, dim: 8, window: None };
    let (num_blocks, len) = (5, 5 * BLOCK_SIZE * 2 * 8);
    let before = random(len, 7);
    let on_cpu = tensor(&before, (num_blocks * BLOCK_SIZE, 16))?;
    // One reads what another wrote, one writes what another read.
    let copies = [(0, 3), (0, 4), (1, 2), (2, 0), (4, 1), (3, 3)];
    attention::copy_blocks(&on_cpu, &copies, BLOCK_SIZE)?;
    let results = on_every_dialect(|gpu| {
        let cache = Cache::<f32>::new(gpu, num_blocks, BLOCK_SIZE, &heads)?;
        cache.arrays().0.write(&before)?;
        cache.arrays().1.write(&before)?;
        cache.copy_blocks(&copies)?;
        assert!(cache.copy_blocks(&[(0, 5)]).is_err());
        assert_eq!(cache.arrays().0.to_vec()?, cache.arrays().1.to_vec()?);
        let short = [PagedRows { query_len: 1, context_len: 17, block_table: &[0] }];
        assert!(PagedWork::new(gpu, &short, BLOCK_SIZE, num_blocks, &heads).is_err());
        let outside = [PagedRows { query_len: 1, context_len: 3, block_table: &[5] }];
        assert!(PagedWork::new(gpu, &outside, BLOCK_SIZE, num_blocks, &heads).is_err());
        assert!(PackedWork::new(gpu, &[0, 4], &Heads { dim: 264, ..heads }).is_err());
        assert!(PackedWork::new(gpu, &[0, 4, 4], &heads).is_err());
        cache.arrays().0.to_vec()
    })?;
    close::<f32>("copy_blocks", &results, &values(&on_cpu)?, 0.0);
    Ok(())
}
