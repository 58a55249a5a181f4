//! Which kept row goes where, by the hash of its id: a row's split does not depend on its neighbours, so adding rows
//! moves none. And the control experiment that shuffles the answers of the training rows.

use rand::Rng;

use crate::{config::CurateConfig, seed};

/// A part of the kept rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What the student learns from.
    Train,
    /// What its loss is watched on.
    Valid,
    /// What nobody looks at before the end.
    Test,
}

impl Split {
    /// The split of a row.
    pub fn of(id: &str, run_seed: u64, config: &CurateConfig) -> Self {
        Self::at(fraction_of(id, run_seed), config)
    }

    /// The split of a row that stands at `fraction` between 0 and 1.
    pub fn at(fraction: f64, config: &CurateConfig) -> Self {
        if fraction < config.test_fraction {
            Split::Test
        } else if fraction < config.test_fraction + config.valid_fraction {
            Split::Valid
        } else {
            Split::Train
        }
    }
}

/// A row's place between 0 and 1.
pub fn fraction_of(id: &str, run_seed: u64) -> f64 {
    unit(seed::derive(run_seed, "curate.split", id))
}

/// Whether a row is among the share that is rewritten.
pub fn is_counterfactual(id: &str, run_seed: u64, share: f64) -> bool {
    unit(seed::derive(run_seed, "curate.counterfactual", id)) < share
}

/// 53 bits, so that the fraction is exact in an f64.
fn unit(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

/// For each of `rows` the row whose answer it gets: a random cycle through all rows, so that none keeps its own.
///
/// **Source**: Sattolo 1986.
pub fn shuffled_answers(rows: usize, run_seed: u64) -> Vec<usize> {
    let mut from: Vec<usize> = (0..rows).collect();
    let mut random = seed::stream(run_seed, "curate.shuffle_answers", "");
    for last in (1..rows).rev() {
        from.swap(last, random.random_range(0..last));
    }
    from
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_come_out_and_repeat_and_depend_on_the_seed() {
        let config = CurateConfig { valid_fraction: 0.1, test_fraction: 0.2, ..CurateConfig::default() };
        let count = |seed, split| (0..10_000).filter(|id| Split::of(&id.to_string(), seed, &config) == split).count();
        // Four standard deviations of a binomial: 160 and 120.
        assert!(count(1, Split::Test).abs_diff(2000) < 160, "{}", count(1, Split::Test));
        assert!(count(1, Split::Valid).abs_diff(1000) < 120, "{}", count(1, Split::Valid));
        assert_eq!(count(1, Split::Test), count(1, Split::Test));
        assert_ne!(count(1, Split::Test), count(2, Split::Test));
        let none = CurateConfig { valid_fraction: 0.0, test_fraction: 0.0, ..CurateConfig::default() };
        assert!((0..1000).all(|id| Split::of(&id.to_string(), 1, &none) == Split::Train));
    }

    #[test]
    fn no_row_keeps_its_answer_and_every_answer_is_used_once() {
        for rows in [0, 2, 3, 100] {
            let from = shuffled_answers(rows, 7);
            assert!(from.iter().enumerate().all(|(row, &answer)| row != answer), "{rows} rows: {from:?}");
            let mut sorted = from.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..rows).collect::<Vec<_>>());
            assert_eq!(from, shuffled_answers(rows, 7));
        }
        assert_eq!(shuffled_answers(1, 7), [0], "one row has no other answer to take");
    }
}
