//! The learning rate of every step.

use crate::config::{LrSchedule, TrainConfig};

/// Warm-up and decay over a known number of steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    kind: LrSchedule,
    peak: f64,
    floor: f64,
    warmup_steps: usize,
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
        Self {
            kind: config.lr_scheduler_type,
            peak: config.learning_rate,
            floor: config.learning_rate * config.min_lr_ratio,
            warmup_steps,
            total_steps,
        }
    }

    /// Learning rate of step `step` (from 0), as transformers' schedulers: `step / warmup` of the peak while warming up.
    pub fn learning_rate(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / span as f64).min(1.0);
        let share = match self.kind {
            LrSchedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
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
}
