//! The paged form against the packed one, to the bit.

use candle_core::{DType, Device};

use super::{
    super::{
        cache::{copy_blocks, write_cache},
        forward,
    },
    *,
};

/// Random `[rows, (H + 2K)·D]`.
fn random(rows: usize, heads: &Heads) -> Result<Tensor> {
    Tensor::randn(0f32, 1f32, (rows, heads.qkv_width()), &Device::Cpu)
}

/// A cache of `num_blocks` blocks full of NaN: whatever is read by mistake shows.
fn poisoned(num_blocks: usize, block_size: usize, heads: &Heads) -> Result<Tensor> {
    let shape = (num_blocks * block_size, heads.key_value * heads.dim);
    Tensor::full(f32::NAN, shape, &Device::Cpu)
}

fn slots(block_table: &[u32], positions: Range<usize>, block_size: usize) -> Vec<u32> {
    positions.map(|p| block_table[p / block_size] * block_size as u32 + (p % block_size) as u32).collect()
}

fn bits(tensor: &Tensor) -> Result<Vec<Vec<u32>>> {
    Ok(tensor.to_vec2::<f32>()?.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()).collect())
}

const CASES: [Heads; 5] = [
    Heads { query: 4, key_value: 2, dim: 8, window: None },
    Heads { query: 4, key_value: 4, dim: 64, window: None },
    Heads { query: 6, key_value: 1, dim: 48, window: None },
    Heads { query: 2, key_value: 2, dim: 80, window: Some(7) },
    Heads { query: 3, key_value: 3, dim: 5, window: Some(20) },
];

#[test]
fn a_row_has_the_packed_bits_wherever_the_prompt_is_cut_and_whatever_the_block_size() -> Result<()> {
    let len = 53;
    for heads in CASES {
        let qkv = random(len, &heads)?;
        let (o, _) = forward(&qkv, &[0, len], &heads)?;
        let mut whole: Option<Vec<Vec<u32>>> = None;
        for (block_size, cuts) in [
            (16, vec![53]),
            (4, vec![1, 53]),
            (5, vec![10, 11, 53]),
            (32, vec![16, 53]),
            (24, vec![20, 53]),
            (16, (1..=53).collect()),
        ] {
            let num_blocks = len.div_ceil(block_size);
            let block_table: Vec<u32> = (0..num_blocks as u32).rev().collect();
            let (keys, values) = (poisoned(num_blocks, block_size, &heads)?, poisoned(num_blocks, block_size, &heads)?);
            let (mut start, mut rows_so_far) = (0, Vec::new());
            for end in cuts {
                let part = qkv.narrow(0, start, end - start)?.contiguous()?;
                write_cache(
                    &part,
                    None,
                    (&keys, &values),
                    &slots(&block_table, start..end, block_size),
                    block_size,
                    &heads,
                )?;
                let rows = PagedRows { query_len: end - start, context_len: end, block_table: &block_table };
                rows_so_far.extend(bits(&paged(&part, &keys, &values, &[rows], block_size, &heads)?)?);
                start = end;
            }
            // The packed form sums the dimensions past the last full register in another way.
            if heads.dim % LANES == 0 {
                assert_eq!(rows_so_far, bits(&o)?, "{heads:?}, blocks of {block_size}");
            }
            assert_eq!(*whole.get_or_insert(rows_so_far.clone()), rows_so_far, "{heads:?}, blocks of {block_size}");
        }
        let got = Tensor::from_vec(
            whole.into_iter().flatten().flatten().map(f32::from_bits).collect::<Vec<_>>(),
            o.shape(),
            &Device::Cpu,
        )?;
        let error = (got - &o)?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(error < 2e-5, "{error}");
    }
    Ok(())
}

#[test]
fn rows_that_share_blocks_have_the_bits_of_rows_that_do_not() -> Result<()> {
    let (block_size, common, num) = (16, 48, 21);
    for heads in CASES {
        // Sequences of 48 common tokens and 1 to 21 of their own; the last rows are asked for.
        let lens: Vec<usize> = (0..num).map(|which| common + 1 + which).collect();
        let prefix = random(common, &heads)?;
        let tails = lens.iter().map(|len| random(len - common, &heads)).collect::<Result<Vec<_>>>()?;
        let num_own = 2;
        let blocks_of = |which: usize| -> Vec<u32> {
            let own = 3 + num_own * which as u32..3 + num_own * (which as u32 + 1);
            [2, 0, 1].into_iter().chain(own).collect()
        };
        let num_blocks = 3 + num_own as usize * num;
        let (keys, values) = (poisoned(num_blocks, block_size, &heads)?, poisoned(num_blocks, block_size, &heads)?);
        write_cache(&prefix, None, (&keys, &values), &slots(&blocks_of(0), 0..common, block_size), block_size, &heads)?;
        let tables: Vec<Vec<u32>> = (0..num).map(blocks_of).collect();
        for (table, (tail, &len)) in tables.iter().zip(tails.iter().zip(&lens)) {
            write_cache(tail, None, (&keys, &values), &slots(table, common..len, block_size), block_size, &heads)?;
        }
        // In an order in which neighbours are not the longest common ones: every second sequence, then the rest, and
        // of every third its last two rows.
        let order: Vec<usize> = (0..num).step_by(2).chain((1..num).step_by(2)).collect();
        let query_len = |which: usize| if which % 3 == 2 { 2 } else { 1 };
        let mut parts = Vec::new();
        let mut sequences = Vec::new();
        for &which in &order {
            let own = tails[which].dim(0)?;
            parts.push(tails[which].narrow(0, own - query_len(which), query_len(which))?);
            sequences.push(PagedRows {
                query_len: query_len(which),
                context_len: lens[which],
                block_table: &tables[which],
            });
        }
        let together = paged(&Tensor::cat(&parts, 0)?, &keys, &values, &sequences, block_size, &heads)?;
        let alone = parts
            .iter()
            .zip(&sequences)
            .map(|(part, rows)| paged(&part.contiguous()?, &keys, &values, &[*rows], block_size, &heads))
            .collect::<Result<Vec<_>>>()?;
        let whole = tails.iter().map(|tail| Tensor::cat(&[&prefix, tail], 0)).collect::<Result<Vec<_>>>()?;
        assert_eq!(bits(&together)?, bits(&Tensor::cat(&alone, 0)?)?, "{heads:?}");
        if heads.dim % LANES == 0 {
            let mut expected = Vec::new();
            for &which in &order {
                let (o, _) = forward(&whole[which], &[0, lens[which]], &heads)?;
                expected.push(o.narrow(0, lens[which] - query_len(which), query_len(which))?);
            }
            assert_eq!(bits(&together)?, bits(&Tensor::cat(&expected, 0)?)?, "{heads:?}");
        }
    }
    Ok(())
}

#[test]
fn units_cover_all_rows_once_in_order() {
    let tables: Vec<Vec<u32>> = (0..40).map(|which| vec![which / 10, which]).collect();
    let rows: Vec<Row> =
        (0..4000).map(|index| Row { index, position: (index * 7) % 3000, block_table: &tables[index / 100] }).collect();
    let units = split(&rows, 2);
    assert_eq!(units.concat().iter().map(|row| row.index).collect::<Vec<_>>(), (0..4000).collect::<Vec<_>>());
    for unit in units {
        let longest = unit.iter().map(|row| row.position + 1).max().unwrap_or(0);
        assert!(unit.len() * longest * 2 <= MAX_SCORES + 6000 || unit.len() <= MIN_ROWS + 1, "{}", unit.len());
    }
    assert!(split(&[], 1).is_empty());
}

#[test]
fn copied_blocks_hold_the_same_and_bad_places_are_refused() -> Result<()> {
    let cache = Tensor::arange(0f32, 24f32, &Device::Cpu)?.reshape((6, 4))?;
    copy_blocks(&cache, &[(0, 2), (1, 0)], 2)?;
    let rows = cache.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    assert_eq!([rows[4][0], rows[5][3], rows[0][0], rows[2][0]], [0.0, 7.0, 8.0, 8.0]);
    assert!(copy_blocks(&cache, &[(0, 3)], 2).is_err());
    Ok(())
}
