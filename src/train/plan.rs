//! Which rows make up which step: shuffled, grouped by length, or packed into rows of one length.

use std::collections::BTreeMap;

use rand::seq::SliceRandom;

use super::dataset::Dataset;
use crate::{config::TrainConfig, model::Microbatch, seed};

/// Batches that are sorted by length together, as transformers' length-grouped sampler does.
const BATCHES_PER_GROUP: usize = 50;

/// How the rows are cut into steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// What a batch is counted in: single rows, or rows packed together.
    units: Vec<Vec<usize>>,
    /// Tokens of each unit.
    lengths: Vec<usize>,
    batch: usize,
    group_by_length: bool,
    /// Optimizer steps of the run.
    pub total_steps: usize,
}

impl Plan {
    /// The plan for a data set; `max_length` is what packed rows hold at most.
    pub fn new(data: &Dataset, settings: &TrainConfig, max_length: usize) -> Self {
        let rows: Vec<usize> = data.examples.iter().map(|example| example.token_ids.len()).collect();
        let units = if settings.packing {
            best_fit_decreasing(&rows, max_length)
        } else {
            (0..rows.len()).map(|row| vec![row]).collect()
        };
        let lengths: Vec<usize> = units.iter().map(|unit| unit.iter().map(|&row| rows[row]).sum()).collect();
        if settings.packing {
            let fill = lengths.iter().sum::<usize>() as f64 / (units.len() * max_length) as f64;
            tracing::info!(
                "packed {} rows into {} of {max_length} tokens, {:.1} % full",
                rows.len(),
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
    pub fn batch_rows(&self, run_seed: u64, step: usize, order: &mut (usize, Vec<usize>)) -> Vec<usize> {
        let (epoch, at) = (step / self.steps_per_epoch(), step % self.steps_per_epoch());
        if order.1.is_empty() || order.0 != epoch {
            *order = (epoch, self.epoch_order(run_seed, epoch));
        }
        let units = &order.1[at * self.batch..((at + 1) * self.batch).min(order.1.len())];
        units.iter().flat_map(|&unit| self.units[unit].iter().copied()).collect()
    }

    fn epoch_order(&self, run_seed: u64, epoch: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.units.len()).collect();
        order.shuffle(&mut seed::stream(run_seed, "train", &format!("epoch-{epoch}")));
        if self.group_by_length {
            // Within a group of many batches only: the batches of an epoch must not go from long to short.
            for group in order.chunks_mut(self.batch * BATCHES_PER_GROUP) {
                group.sort_by_key(|&unit| std::cmp::Reverse(self.lengths[unit]));
                let mut batches: Vec<Vec<usize>> = group.chunks(self.batch).map(<[usize]>::to_vec).collect();
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
fn best_fit_decreasing(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut items: Vec<usize> = (0..lengths.len()).collect();
    items.sort_by_key(|&item| std::cmp::Reverse(lengths[item]));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for item in items {
        let len = lengths[item];
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

/// Packs rows, in order, into micro-batches of at most `max_tokens` (a longer row stands alone).
pub fn micro_batches(data: &Dataset, rows: &[usize], max_tokens: usize) -> Vec<Microbatch> {
    let mut batches: Vec<Microbatch> = Vec::new();
    let mut tokens = 0;
    for &row in rows {
        let example = &data.examples[row];
        let fits = batches.last().is_some_and(|batch| batch.token_ids.len() + example.token_ids.len() <= max_tokens);
        if !fits {
            batches.push(Microbatch { first_token: tokens, ..Microbatch::default() });
        }
        if let Some(batch) = batches.last_mut() {
            batch.push(&example.token_ids, &example.trained);
        }
        tokens += example.token_ids.len();
    }
    batches
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;
    use crate::train::Example;

    fn data(lengths: &[usize]) -> Dataset {
        let example = |(row, &len): (usize, &usize)| Example {
            id: format!("row-{row}"),
            token_ids: vec![row as u32 % 90; len],
            trained: vec![true; len],
        };
        Dataset { examples: lengths.iter().enumerate().map(example).collect(), ..Dataset::default() }
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
        let lengths = realistic(3000);
        let bins = best_fit_decreasing(&lengths, 1024);
        let tokens = |bin: &Vec<usize>| bin.iter().map(|&item| lengths[item]).sum::<usize>();
        assert!(bins.iter().all(|bin| tokens(bin) <= 1024));
        let fill = lengths.iter().sum::<usize>() as f64 / (bins.len() * 1024) as f64;
        assert!(fill >= 0.98, "{fill}");
        let mut items = bins.concat();
        items.sort_unstable();
        assert_eq!(items, (0..3000).collect::<Vec<_>>());
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
        assert_eq!(batches.iter().map(|batch| batch.token_ids.len()).collect::<Vec<_>>(), [11, 4, 20]);
        assert_eq!(batches[0].cu_seqlens, [0, 5, 11]);
    }
}
