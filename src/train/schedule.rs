//! The learning rate of every step.

use crate::config::{LrSchedule, TrainConfig};

/// Warm-up and decay over a known number of steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    kind: LrSchedule,
    peak: f64,
    floor: f64,
    warmup_steps: usize,
    /// First step of the decay: the end of warm-up, or later where the peak is held.
    decay_start: usize,
    total_steps: usize,
}

impl Schedule {
    /// The schedule of a run of `total_steps`.
    pub fn new(config: &TrainConfig, total_steps: usize) -> Self {
        let warmup_steps = if config.warmup_steps > 0 {
            config.warmup_steps
        } else {
            (config.warmup_ratio * total_steps as f64).ceil() as usize
        };
        let decay_steps = match config.num_decay_steps {
            0 => total_steps.div_ceil(10),
            steps => steps,
        };
        let decay_start = match config.lr_scheduler_type {
            LrSchedule::WarmupStableDecay => warmup_steps.max(total_steps.saturating_sub(decay_steps)),
            _ => warmup_steps,
        };
        Self {
            kind: config.lr_scheduler_type,
            peak: config.learning_rate,
            floor: config.learning_rate * config.min_lr_ratio,
            warmup_steps,
            decay_start,
            total_steps,
        }
    }

    /// Learning rate of step `step` (from 0), as transformers' schedulers: `step / warmup` of the peak while warming up.
    pub fn learning_rate(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            let progress = step as f64 / self.warmup_steps as f64;
            // transformers' warm-up starts at the floor in this schedule, at zero in the others.
            let start = if self.kind == LrSchedule::WarmupStableDecay { self.floor } else { 0.0 };
            return start + (self.peak - start) * progress;
        }
        let span = self.total_steps.saturating_sub(self.decay_start).max(1);
        let progress = (step.saturating_sub(self.decay_start) as f64 / span as f64).min(1.0);
        let share = match self.kind {
            LrSchedule::Cosine | LrSchedule::WarmupStableDecay => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            LrSchedule::Linear => 1.0 - progress,
            LrSchedule::Constant => 1.0,
        };
        self.floor + (self.peak - self.floor) * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_from_zero_and_ends_at_the_floor() {
        let config = TrainConfig { learning_rate: 2.0, min_lr_ratio: 0.1, warmup_steps: 4, ..TrainConfig::default() };
        let schedule = Schedule::new(&config, 24);
        assert_eq!(schedule.learning_rate(0), 0.0);
        assert_eq!(schedule.learning_rate(2), 1.0);
        assert_eq!(schedule.learning_rate(4), 2.0);
        assert!((schedule.learning_rate(14) - 1.1).abs() < 1e-12);
        assert!((schedule.learning_rate(24) - 0.2).abs() < 1e-12);
    }

    /// Against `torch.optim.lr_scheduler.LambdaLR` of transformers 5.23: `get_wsd_schedule(num_warmup_steps=3,
    /// num_decay_steps=4, num_training_steps=12, min_lr_ratio=0.1)` and its like, base rate 1.
    #[test]
    fn schedules_are_those_of_transformers() {
        let at = |kind, floor: f64, decay: usize| -> Vec<f64> {
            let config = TrainConfig {
                learning_rate: 1.0,
                min_lr_ratio: floor,
                lr_scheduler_type: kind,
                warmup_steps: 3,
                num_decay_steps: decay,
                ..TrainConfig::default()
            };
            let schedule = Schedule::new(&config, 12);
            (0..=12).map(|step| schedule.learning_rate(step)).collect()
        };
        for (kind, floor, decay, expected) in EXPECTED {
            for (step, (got, expected)) in at(kind, floor, decay).into_iter().zip(expected).enumerate() {
                assert!((got - expected).abs() < 1e-6, "{kind:?} step {step}: {got} against {expected}");
            }
        }
    }

    const EXPECTED: [(LrSchedule, f64, usize, [f64; 13]); 4] = [
        (
            LrSchedule::WarmupStableDecay,
            0.1,
            4,
            [0.1, 0.4, 0.7, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.868198052, 0.55, 0.231801948, 0.1],
        ),
        (
            LrSchedule::Cosine,
            0.1,
            0,
            [
                0.0,
                0.333333333,
                0.666666667,
                1.0,
                0.972861679,
                0.894719999,
                0.775,
                0.62814168,
                0.47185832,
                0.325,
                0.205280001,
                0.127138321,
                0.1,
            ],
        ),
        (
            LrSchedule::Linear,
            0.0,
            0,
            [
                0.0,
                0.333333333,
                0.666666667,
                1.0,
                0.888888889,
                0.777777778,
                0.666666667,
                0.555555556,
                0.444444444,
                0.333333333,
                0.222222222,
                0.111111111,
                0.0,
            ],
        ),
        (
            LrSchedule::Constant,
            0.0,
            0,
            [0.0, 0.333333333, 0.666666667, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        ),
    ];
}
