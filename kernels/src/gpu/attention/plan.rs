//! What is computed together: the units of work of a step over the paged cache.

use std::ops::Range;

use super::{MOST_QUERIES, TILE, chunk};
use crate::attention::{Heads, PagedRows};

/// Keys of a piece of a context at least: below, merging costs more than the cut gains.
const MIN_PIECE: usize = 8 * TILE;
/// Blocks that sequences must share for their prefix to be worth units of its own.
const MIN_SHARED_BLOCKS: usize = 2;
/// Units that each multiprocessor should have, so that the last ones to end do not count.
const UNITS_EACH: usize = 4;

/// A row of the batch and its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub index: usize,
    pub position: usize,
}

/// Rows against a range of keys. Each row still sees only the keys up to its own position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    pub rows: Vec<Row>,
    /// Where the keys lie: the block table's place among all tables, or the sequence's first row.
    pub place: usize,
    pub keys: Range<usize>,
}

/// Rows that fit a unit.
pub(super) fn in_unit(heads: &Heads) -> usize {
    (MOST_QUERIES / chunk(heads)).max(1)
}

/// Units that together show every row all of its keys exactly once. `places` are those of the block tables.
pub(super) fn plan(
    sequences: &[PagedRows],
    places: &[usize],
    block_size: usize,
    heads: &Heads,
    multiprocessors: usize,
) -> Vec<Unit> {
    let mut first_row = 0;
    let placed: Vec<Placed> = sequences
        .iter()
        .zip(places)
        .map(|(sequence, &place)| {
            let start = sequence.context_len - sequence.query_len;
            let rows = (0..sequence.query_len).map(|i| Row { index: first_row + i, position: start + i }).collect();
            first_row += sequence.query_len;
            Placed { rows, start, place, blocks: &sequence.block_table[..start / block_size] }
        })
        .collect();
    let mut whole = Vec::new();
    for (group, shared) in groups(placed, heads.window.is_none()) {
        let shared_keys = shared * block_size;
        if shared_keys > 0 {
            let rows: Vec<Row> = group.iter().flat_map(|sequence| sequence.rows.iter().copied()).collect();
            whole.extend(units(&rows, group[0].place, 0..shared_keys, heads));
        }
        for sequence in &group {
            let end = sequence.start + sequence.rows.len();
            whole.extend(units(&sequence.rows, sequence.place, shared_keys..end, heads));
        }
    }
    cut(whole, heads.key_value * multiprocessors)
}

/// A sequence of the batch.
struct Placed<'a> {
    rows: Vec<Row>,
    /// Position of its first row.
    start: usize,
    place: usize,
    /// The blocks that all of its rows see as a whole.
    blocks: &'a [u32],
}

/// Sequences that begin with the same blocks, and how many blocks.
fn groups(mut sequences: Vec<Placed>, may_share: bool) -> Vec<(Vec<Placed>, usize)> {
    sequences.sort_by(|one, other| one.blocks.cmp(other.blocks));
    let mut groups: Vec<(Vec<Placed>, usize)> = Vec::new();
    for sequence in sequences {
        if let Some((group, shared)) = groups.last_mut().filter(|_| may_share) {
            let common = group[0].blocks.iter().zip(sequence.blocks).take_while(|(one, other)| one == other).count();
            // One more member is worth at most half of what the others share.
            let keeps = if group.len() == 1 { MIN_SHARED_BLOCKS } else { shared.div_ceil(2).max(MIN_SHARED_BLOCKS) };
            if common >= keeps {
                *shared = if group.len() == 1 { common } else { common.min(*shared) };
                group.push(sequence);
                continue;
            }
        }
        groups.push((vec![sequence], 0));
    }
    groups
}

/// Rows, as many as fit a unit at a time, against the keys of `keys` that some of them see.
fn units(rows: &[Row], place: usize, keys: Range<usize>, heads: &Heads) -> Vec<Unit> {
    rows.chunks(in_unit(heads))
        .map(|rows| {
            let first = rows.iter().map(|row| heads.first_key(row.position)).min().unwrap_or(0);
            let end = rows.iter().map(|row| row.position + 1).max().unwrap_or(0);
            Unit { rows: rows.to_vec(), place, keys: keys.start.max(first)..keys.end.min(end) }
        })
        .collect()
}

/// Cuts long ranges of keys so that there are enough units, in the order of the keys.
fn cut(units: Vec<Unit>, lanes: usize) -> Vec<Unit> {
    let all_keys: usize = units.iter().map(|unit| unit.keys.len()).sum();
    let longest = (all_keys / (UNITS_EACH * lanes)).next_multiple_of(TILE).max(MIN_PIECE);
    let mut pieces = Vec::with_capacity(units.len());
    for unit in units {
        for start in unit.keys.clone().step_by(longest) {
            let keys = start..unit.keys.end.min(start + longest);
            pieces.push(Unit { rows: unit.rows.clone(), place: unit.place, keys });
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { query: 8, key_value: 2, dim: 64, window: None };

    /// How often each row's unit lists show each position to it.
    fn seen(units: &[Unit], rows: usize, keys: usize, heads: &Heads) -> Vec<Vec<usize>> {
        let mut seen = vec![vec![0; keys]; rows];
        for unit in units {
            for row in &unit.rows {
                let visible = heads.first_key(row.position)..row.position + 1;
                for key in unit.keys.clone().filter(|key| visible.contains(key)) {
                    seen[row.index][key] += 1;
                }
            }
        }
        seen
    }

    #[test]
    fn every_row_sees_each_of_its_keys_once_and_shared_blocks_are_read_once() {
        let tables: [Vec<u32>; 4] =
            [(0..40).collect(), (0..30).chain(50..60).collect(), vec![70, 71], (0..20).chain(90..95).collect()];
        let sequences: Vec<PagedRows> = [(1, 640), (3, 630), (17, 20), (1, 390)]
            .iter()
            .zip(&tables)
            .map(|(&(query_len, context_len), block_table)| PagedRows { query_len, context_len, block_table })
            .collect();
        for window in [None, Some(100)] {
            let heads = Heads { window, ..HEADS };
            let units = plan(&sequences, &[0, 40, 80, 82], 16, &heads, 8);
            let seen = seen(&units, 22, 640, &heads);
            let positions = [639].into_iter().chain(627..630).chain(3..20).chain([389]);
            for (row, position) in positions.enumerate() {
                for (key, times) in seen[row].iter().enumerate() {
                    let visible = key <= position && key >= heads.first_key(position);
                    assert_eq!(*times, usize::from(visible), "row {row} at {position}, key {key}, {window:?}");
                }
            }
            assert!(units.iter().all(|unit| !unit.rows.is_empty() && unit.rows.len() <= in_unit(&heads)));
            let across = units.iter().filter(|unit| unit.rows.iter().any(|row| row.index == 0) && unit.rows.len() > 1);
            assert_eq!(across.count() > 0, window.is_none());
        }
    }

    #[test]
    fn a_long_context_alone_is_cut_for_all_multiprocessors() {
        let table: Vec<u32> = (0..1000).collect();
        let alone = [PagedRows { query_len: 1, context_len: 16_000, block_table: &table }];
        let units = plan(&alone, &[0], 16, &HEADS, 16);
        assert!(units.len() >= 60, "{}", units.len());
        assert_eq!(plan(&[PagedRows { context_len: 200, ..alone[0] }], &[0], 16, &HEADS, 16).len(), 1);
    }
}
