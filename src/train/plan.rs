//! Which rows make up which step: shuffled, grouped by length, or packed into rows of one length.

use std::collections::BTreeMap;

use anyhow::Result;
use rand::seq::SliceRandom;

use super::dataset::Dataset;
use crate::{config::TrainConfig, model::Microbatch, seed};

/// Batches that are sorted by length together, as transformers' length-grouped sampler does.
const BATCHES_PER_GROUP: usize = 50;

/// What a batch is counted in.
#[derive(Debug, Clone, PartialEq)]
enum Units {
    /// Single rows, so many.
    Rows(usize),
    /// Rows packed together: those of unit `i` are `rows[starts[i]..starts[i + 1]]`.
    Packed { rows: Vec<u32>, starts: Vec<u32> },
}

impl Units {
    fn len(&self) -> usize {
        match self {
            Self::Rows(rows) => *rows,
            Self::Packed { starts, .. } => starts.len() - 1,
        }
    }

    fn rows(&self, unit: usize) -> Vec<usize> {
        match self {
            Self::Rows(_) => vec![unit],
            Self::Packed { rows, starts } => {
                rows[starts[unit] as usize..starts[unit + 1] as usize].iter().map(|&row| row as usize).collect()
            }
        }
    }
}

/// How the rows are cut into steps. Holds a few bytes a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    units: Units,
    /// Tokens of each unit, where batches are grouped by it.
    lengths: Vec<u32>,
    batch: usize,
    group_by_length: bool,
    /// Optimizer steps of the run.
    pub total_steps: usize,
}

impl Plan {
    /// The plan for a data set; `max_length` is what packed rows hold at most.
    pub fn new(data: &Dataset, settings: &TrainConfig, max_length: usize) -> Self {
        let units = if settings.packing {
            let rows: Vec<u32> = (0..data.len()).map(|row| data.row_tokens(row) as u32).collect();
            let bins = best_fit_decreasing(&rows, max_length);
            let mut starts = vec![0];
            let mut packed = Vec::with_capacity(rows.len());
            for bin in bins {
                packed.extend(bin);
                starts.push(packed.len() as u32);
            }
            Units::Packed { rows: packed, starts }
        } else {
            Units::Rows(data.len())
        };
        let length = |unit: usize| units.rows(unit).into_iter().map(|row| data.row_tokens(row) as u32).sum();
        let lengths = if settings.group_by_length { (0..units.len()).map(length).collect() } else { Vec::new() };
        if settings.packing {
            let fill = data.num_tokens() as f64 / (units.len() * max_length) as f64;
            tracing::info!(
                "packed {} rows into {} of {max_length} tokens, {:.1} % full",
                data.len(),
                units.len(),
                100.0 * fill
            );
        }
        let batch = settings.train_batch_size.min(units.len());
        let mut plan = Self { units, lengths, batch, group_by_length: settings.group_by_length, total_steps: 0 };
        plan.total_steps = match settings.max_steps {
            0 => (plan.steps_per_epoch() as f64 * settings.num_train_epochs).ceil() as usize,
            steps => steps,
        };
        plan
    }

    /// Steps of one pass over the rows.
    pub fn steps_per_epoch(&self) -> usize {
        self.units.len().div_ceil(self.batch)
    }

    /// The rows of step `step` (from 0): every epoch has its own order, which `order` keeps between calls.
    pub fn batch_rows(&self, run_seed: u64, step: usize, order: &mut (usize, Vec<u32>)) -> Vec<usize> {
        let (epoch, at) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        if order.1.is_empty() || order.0 != epoch {
            *order = (epoch, self.epoch_order(run_seed, epoch));
        }
        let units = &order.1[at * self.batch..((at + 1) * self.batch).min(order.1.len())];
        units.iter().flat_map(|&unit| self.units.rows(unit as usize)).collect()
    }

    fn epoch_order(&self, run_seed: u64, epoch: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.units.len() as u32).collect();
        order.shuffle(&mut seed::stream(run_seed, "train", &format!("epoch-{epoch}")));
        if self.group_by_length {
            // Within a group of many batches only: the batches of an epoch must not go from long to short.
            for group in order.chunks_mut(self.batch * BATCHES_PER_GROUP) {
                group.sort_by_key(|&unit| std::cmp::Reverse(self.lengths[unit as usize]));
                let mut batches: Vec<Vec<u32>> = group.chunks(self.batch).map(<[u32]>::to_vec).collect();
                // A short last batch stays last, as the next group begins at a multiple of the batch.
                let whole = batches.len() - usize::from(group.len() % self.batch != 0);
                batches[..whole].shuffle(&mut seed::stream(run_seed, "train", &format!("groups-{epoch}-{}", group[0])));
                for (place, unit) in group.iter_mut().zip(batches.concat()) {
                    *place = unit;
                }
            }
        }
        order
    }
}

/// Bins of at most `capacity`, each item (longest first, ties in order) into the fullest bin that it fits.
///
/// An item above the capacity has a bin to itself. Items of a bin are in ascending order.
fn best_fit_decreasing(lengths: &[u32], capacity: usize) -> Vec<Vec<u32>> {
    let mut items: Vec<u32> = (0..lengths.len() as u32).collect();
    items.sort_by_key(|&item| std::cmp::Reverse(lengths[item as usize]));
    let mut bins: Vec<Vec<u32>> = Vec::new();
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for item in items {
        let len = lengths[item as usize] as usize;
        let found = by_room.range_mut(len..).next().and_then(|(&room, bins)| Some((room, bins.pop()?)));
        let (room, bin) = match found {
            Some((room, bin)) => {
                if by_room.get(&room).is_some_and(Vec::is_empty) {
                    by_room.remove(&room);
                }
                (room, bin)
            }
            None => {
                bins.push(Vec::new());
                (capacity.max(len), bins.len() - 1)
            }
        };
        bins[bin].push(item);
        by_room.entry(room - len).or_default().push(bin);
    }
    for bin in &mut bins {
        bin.sort_unstable();
    }
    bins
}

/// Rows of one micro-batch, not yet read.
#[derive(Debug, Clone, PartialEq)]
pub struct MicroBatchRows {
    /// In order.
    pub rows: Vec<usize>,
    /// Tokens of the step's rows before these.
    pub first_token: usize,
    /// Tokens of these.
    pub tokens: usize,
}

impl MicroBatchRows {
    /// Reads the rows.
    pub fn load(&self, data: &Dataset) -> Result<Microbatch> {
        let mut batch = Microbatch { first_token: self.first_token, ..Microbatch::default() };
        for &row in &self.rows {
            let example = data.example(row)?;
            batch.push(&example.token_ids, &example.trained);
        }
        Ok(batch)
    }
}

/// Packs rows, in order, into micro-batches of at most `max_tokens` (a longer row stands alone).
pub fn micro_batches(data: &Dataset, rows: &[usize], max_tokens: usize) -> Vec<MicroBatchRows> {
    let mut batches: Vec<MicroBatchRows> = Vec::new();
    let mut first_token = 0;
    for &row in rows {
        let len = data.row_tokens(row);
        match batches.last_mut() {
            Some(batch) if batch.tokens + len <= max_tokens => {
                batch.rows.push(row);
                batch.tokens += len;
            }
            _ => batches.push(MicroBatchRows { rows: vec![row], first_token, tokens: len }),
        }
        first_token += len;
    }
    batches
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;
    use crate::train::{Example, dataset::DatasetWriter};

    fn data(lengths: &[usize]) -> Dataset {
        let mut data = DatasetWriter::create(&std::env::temp_dir(), usize::MAX).unwrap();
        for (row, &len) in lengths.iter().enumerate() {
            let (token_ids, trained) = (vec![row as u32 % 90; len], vec![true; len]);
            data.push(Example { id: format!("row-{row}"), token_ids, trained }).unwrap();
        }
        data.finish().unwrap()
    }

    fn plan(lengths: &[usize], settings: &TrainConfig, max_length: usize) -> Plan {
        Plan::new(&data(lengths), settings, max_length)
    }

    /// Lengths as instruction data has them: most short, a long tail (log-normal, median 110).
    fn realistic(count: usize) -> Vec<usize> {
        let mut random = seed::stream(1, "test", "lengths");
        let normal = |random: &mut rand_chacha::ChaCha8Rng| (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0;
        (0..count).map(|_| ((4.7 + 0.8 * normal(&mut random)).exp() as usize).clamp(2, 1024)).collect()
    }

    #[test]
    fn every_epoch_visits_every_row_once_in_its_own_order() {
        let base = TrainConfig { train_batch_size: 4, num_train_epochs: 2.0, ..TrainConfig::default() };
        for settings in [
            base.clone(),
            TrainConfig { group_by_length: true, ..base.clone() },
            TrainConfig { packing: true, ..base.clone() },
            TrainConfig { packing: true, group_by_length: true, ..base },
        ] {
            let plan = plan(&realistic(530), &settings, 1024);
            assert_eq!(plan.total_steps, 2 * plan.steps_per_epoch());
            let mut order = (0, Vec::new());
            let steps: Vec<Vec<usize>> =
                (0..plan.total_steps).map(|step| plan.batch_rows(7, step, &mut order)).collect();
            let (first, second) = steps.split_at(plan.steps_per_epoch());
            assert_ne!(first, second);
            for epoch in [first, second] {
                let mut rows = epoch.concat();
                rows.sort_unstable();
                assert_eq!(rows, (0..530).collect::<Vec<_>>(), "{settings:?}");
            }
            // Jumping straight into the second epoch, as a resume does, gives the same batch.
            let step = plan.steps_per_epoch() + 1;
            assert_eq!(plan.batch_rows(7, step, &mut (0, Vec::new())), steps[step]);
        }
    }

    #[test]
    fn packed_rows_are_at_least_98_percent_full_and_never_too_long() {
        let lengths: Vec<u32> = realistic(3000).into_iter().map(|len| len as u32).collect();
        let bins = best_fit_decreasing(&lengths, 1024);
        let tokens = |bin: &Vec<u32>| bin.iter().map(|&item| lengths[item as usize]).sum::<u32>();
        assert!(bins.iter().all(|bin| tokens(bin) <= 1024));
        let fill = f64::from(lengths.iter().sum::<u32>()) / (bins.len() * 1024) as f64;
        assert!(fill >= 0.98, "{fill}");
        let mut items = bins.concat();
        items.sort_unstable();
        assert_eq!(items, (0..3000).collect::<Vec<u32>>());
        // 6+4 and 5+5 fill two bins; first fit in the given order would need three.
        assert_eq!(best_fit_decreasing(&[5, 4, 6, 5], 10), [vec![1, 2], vec![0, 3]]);
        assert_eq!(best_fit_decreasing(&[12, 3], 10), [vec![0], vec![1]]);
    }

    #[test]
    fn batches_grouped_by_length_hold_rows_of_similar_length() {
        let lengths = realistic(2000);
        let spread = |group_by_length: bool| -> usize {
            let settings = TrainConfig { train_batch_size: 8, group_by_length, ..TrainConfig::default() };
            let plan = plan(&lengths, &settings, 1024);
            let mut order = (0, Vec::new());
            let batches = (0..plan.steps_per_epoch()).map(|step| plan.batch_rows(7, step, &mut order));
            let of = |rows: &[usize]| rows.iter().map(|&row| lengths[row]).collect::<Vec<_>>();
            batches.map(|rows| of(&rows)).map(|of| of.iter().max().unwrap() - of.iter().min().unwrap()).sum()
        };
        assert!(spread(true) * 10 < spread(false), "{} {}", spread(true), spread(false));
    }

    #[test]
    fn micro_batches_know_how_many_tokens_came_before_them() {
        let data = data(&[5, 6, 4, 20]);
        let batches = micro_batches(&data, &[0, 1, 2, 3], 11);
        assert_eq!(batches.iter().map(|batch| batch.first_token).collect::<Vec<_>>(), [0, 11, 15]);
        assert_eq!(batches.iter().map(|batch| batch.tokens).collect::<Vec<_>>(), [11, 4, 20]);
        let first = batches[0].load(&data).unwrap();
        assert_eq!((first.cu_seqlens, first.token_ids.len()), (vec![0, 5, 11], 11));
        assert_eq!(batches[2].load(&data).unwrap().first_token, 15);
    }
}
