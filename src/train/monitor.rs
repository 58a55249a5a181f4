//! What one sees of a run: `metrics.jsonl`, rates on stderr, TensorBoard's curves, and the rules that stop it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{checkpoint::TrainerState, dataset::Dataset, tensorboard::EventWriter};
use crate::{
    config::{ReportTo, TrainConfig},
    records::{JsonlWriter, read_partial_jsonl, write_atomic},
    telemetry::Progress,
};

/// Steps before the spike rule counts: the loss of the first ones says little.
const SPIKE_WARMUP_STEPS: usize = 20;
/// Weight of the newest loss in the running mean.
const NEWEST_SHARE: f64 = 0.05;

/// One line of `metrics.jsonl`. Holds nothing that depends on the clock: a resumed run writes the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct MetricsRow {
    step: usize,
    epoch: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    loss: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eval_loss: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    learning_rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grad_norm: Option<f64>,
    tokens: usize,
}

/// What one step gave.
#[derive(Debug, Clone, Copy)]
pub struct StepMetrics {
    pub loss: f64,
    pub grad_norm: f64,
    pub learning_rate: f64,
    pub tokens: usize,
    pub took: Duration,
}

/// Everything that is told about a run.
pub struct Monitor {
    metrics: JsonlWriter,
    events: Option<EventWriter>,
    progress: Progress,
    total_steps: usize,
    /// Operations per token of this run, and what this machine does per second.
    flops: Option<(f64, f64)>,
    busy: (Duration, usize),
    begun: (Instant, usize),
}

impl Monitor {
    /// Opens the files of a run that goes on from `step`.
    pub fn new(
        output: &Path,
        settings: &TrainConfig,
        step: usize,
        total_steps: usize,
        flops: Option<(f64, f64)>,
    ) -> Result<Self> {
        let events = match settings.report_to {
            ReportTo::None => None,
            ReportTo::Tensorboard => Some(EventWriter::create(&output.join("tensorboard"), step)?),
        };
        Ok(Self {
            metrics: reopen(&output.join("metrics.jsonl"), |row: &MetricsRow| row.step <= step)?,
            events,
            progress: Progress::new("train", step as u64, total_steps as u64),
            total_steps,
            flops,
            busy: (Duration::ZERO, 0),
            begun: (Instant::now(), step),
        })
    }

    /// Tells of a step; `writes` says whether it is one that the files name.
    pub fn step(&mut self, state: &TrainerState, step: &StepMetrics, writes: bool) -> Result<()> {
        self.busy = (self.busy.0 + step.took, self.busy.1 + step.tokens);
        let tokens_per_second = self.busy.1 as f64 / self.busy.0.as_secs_f64();
        let utilisation = self.flops.map(|(per_token, peak)| per_token * tokens_per_second / peak);
        if writes {
            self.metrics.write(&MetricsRow {
                step: state.global_step,
                epoch: state.epoch,
                loss: Some(step.loss),
                eval_loss: None,
                learning_rate: Some(step.learning_rate),
                grad_norm: Some(step.grad_norm),
                tokens: state.num_input_tokens_seen,
            })?;
            if let Some(events) = &mut self.events {
                let mut values = vec![
                    ("train/loss", step.loss),
                    ("train/learning_rate", step.learning_rate),
                    ("train/grad_norm", step.grad_norm),
                    ("train/epoch", state.epoch),
                    ("train/tokens_per_second", step.tokens as f64 / step.took.as_secs_f64()),
                ];
                values.extend(utilisation.map(|share| ("train/mfu", share)));
                events.write(state.global_step, &values)?;
            }
        }
        let done = state.global_step - self.begun.1;
        let per_step = self.begun.0.elapsed().as_secs_f64() / done.max(1) as f64;
        let left = per_step * (self.total_steps - state.global_step) as f64;
        let utilisation = utilisation.map_or_else(String::new, |share| format!(" · MFU {:.0} %", 100.0 * share));
        let note =
            format!("loss {:.3} · {tokens_per_second:.0} tokens/s{utilisation} · {} left", step.loss, duration(left));
        self.progress.advance(1, &note);
        Ok(())
    }

    /// Tells of a validation loss.
    pub fn evaluation(&mut self, state: &TrainerState, eval_loss: f64) -> Result<()> {
        tracing::info!("step {}: validation loss {eval_loss:.4}", state.global_step);
        if let Some(events) = &mut self.events {
            events.write(state.global_step, &[("eval/loss", eval_loss)])?;
        }
        self.metrics.write(&MetricsRow {
            step: state.global_step,
            epoch: state.epoch,
            loss: None,
            eval_loss: Some(eval_loss),
            learning_rate: None,
            grad_norm: None,
            tokens: state.num_input_tokens_seen,
        })
    }

    /// Ends the bar and hands the files to the disk; tokens trained on and seconds since the start.
    pub fn finish(self) -> Result<(usize, f64)> {
        self.progress.finish();
        self.metrics.sync()?;
        Ok((self.busy.1, self.begun.0.elapsed().as_secs_f64()))
    }
}

/// A time span as people say it.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

/// A file of a run that goes on, with the rows that `keeps` says.
pub fn reopen<T: Serialize + DeserializeOwned>(path: &Path, keeps: impl Fn(&T) -> bool) -> Result<JsonlWriter> {
    let mut kept = Vec::new();
    for row in read_partial_jsonl::<T>(path)?.iter().filter(|row| keeps(row)) {
        serde_json::to_writer(&mut kept, row)?;
        kept.push(b'\n');
    }
    write_atomic(path, &kept)?;
    JsonlWriter::append(path)
}

/// Stops at a loss or gradient that is no number, and at a loss far above the running mean; else takes the loss into it.
///
/// **Errors**: name the step, the values and the rows of the batch.
pub fn check_loss(
    state: &mut TrainerState,
    settings: &TrainConfig,
    loss: f64,
    grad_norm: f64,
    rows: impl FnOnce() -> String,
) -> Result<()> {
    let step = state.global_step;
    if !(loss.is_finite() && grad_norm.is_finite()) {
        anyhow::bail!(
            "step {step}: loss {loss}, gradient norm {grad_norm}; the last checkpoint is kept. Lower \
             `train.learning_rate`, or look at the rows of this batch: {}",
            rows()
        );
    }
    let factor = settings.loss_spike_factor;
    if factor > 0.0 && step >= SPIKE_WARMUP_STEPS && loss > factor * state.loss_average {
        anyhow::bail!(
            "step {step}: loss {loss:.4} is above {factor} times the running mean of {:.4} \
             (`train.loss_spike_factor`); the last checkpoint is kept. Look at the rows of this batch: {}",
            state.loss_average,
            rows()
        );
    }
    state.loss_average = if step == 0 { loss } else { state.loss_average + NEWEST_SHARE * (loss - state.loss_average) };
    Ok(())
}

/// The first ids of a batch.
pub fn row_ids(data: &Dataset, rows: &[usize]) -> String {
    let id = |&row: &usize| data.example(row).map_or_else(|_| format!("row {row}"), |example| example.id);
    let ids: Vec<String> = rows.iter().take(8).map(id).collect();
    format!("{}{}", ids.join(", "), if rows.len() > 8 { ", …" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_stops_the_run_with_the_rows_of_its_batch_and_an_ordinary_loss_does_not() -> Result<()> {
        let settings = TrainConfig { loss_spike_factor: 3.0, ..TrainConfig::default() };
        let mut state = TrainerState::default();
        let step = |state: &mut TrainerState, settings: &TrainConfig, loss: f64| {
            let checked = check_loss(state, settings, loss, 1.0, || "row-1, row-2".into());
            state.global_step += 1;
            checked
        };
        step(&mut state, &settings, 9.0)?;
        step(&mut state, &settings, 40.0)?;
        for _ in 0..60 {
            step(&mut state, &settings, 2.0)?;
        }
        step(&mut state, &settings, 4.0)?;
        let error = step(&mut state.clone(), &settings, 30.0).expect_err("30 after 2").to_string();
        assert!(error.contains("row-1, row-2") && error.contains("step 63"), "{error}");
        step(&mut state.clone(), &TrainConfig::default(), 30.0)?;
        for (loss, norm) in [(f64::NAN, 1.0), (1.0, f64::INFINITY)] {
            assert!(check_loss(&mut state, &TrainConfig::default(), loss, norm, || "row-1".into()).is_err());
        }
        Ok(())
    }

    #[test]
    fn time_is_told_in_the_units_that_matter() {
        assert_eq!(duration(42.4), "42 s");
        assert_eq!(duration(125.0), "2 min 05 s");
        assert_eq!(duration(7384.0), "2 h 03 min");
    }
}
