//! The gradients of one batch, micro-batch by micro-batch, in as few as the memory takes.
//!
//! A device that runs out of memory says so (a processor's does not: the system ends the process, which is why
//! [`super::Forecast`] refuses before the start). The step then begins again with micro-batches of half the size. The loss
//! is averaged over the trained tokens of the whole batch, and noise hangs on a token's place in it: the cut changes
//! nothing but rounding.

use anyhow::{Context, Result};

use super::{
    dataset::Dataset,
    plan::{MicroBatchRows, micro_batches},
};
use crate::model::Microbatch;

/// What computes micro-batches: the model on its device.
pub trait Pass {
    /// Adds the gradients of a micro-batch, whose loss counts with `weight`; returns its weighted loss.
    fn run(&mut self, batch: &Microbatch, weight: f64) -> Result<f64>;

    /// Forgets the gradients of a step that is begun again.
    fn clear(&mut self) -> Result<()>;
}

/// Adds the gradients of `rows`; returns the mean loss of their trained tokens. `max_tokens` falls where the device runs
/// out of memory.
///
/// **Errors**: those of the pass; out of memory where a micro-batch holds a single row.
pub fn accumulate(pass: &mut impl Pass, data: &Dataset, rows: &[usize], max_tokens: &mut usize) -> Result<f64> {
    let trained: usize = rows.iter().map(|&row| data.row_trained_tokens(row)).sum();
    let weight = 1.0 / trained as f64;
    loop {
        let batches = micro_batches(data, rows, *max_tokens);
        let failed = match run_all(pass, data, &batches, weight) {
            Ok(loss) => return Ok(loss),
            Err(error) if is_out_of_memory(&error) => error,
            Err(error) => return Err(error),
        };
        let largest = batches.iter().filter(|batch| batch.rows.len() > 1).map(|batch| batch.tokens).max();
        let Some(largest) = largest else {
            return Err(failed).with_context(|| {
                let longest = batches.iter().map(|batch| batch.tokens).max().unwrap_or(0);
                format!(
                    "the device's memory does not take a row of {longest} tokens by itself; set \
                     `train.activation_checkpointing = \"block\"`, or `train.max_length` below {longest}"
                )
            });
        };
        *max_tokens = largest / 2;
        tracing::warn!(
            "the device is out of memory: the step begins again with micro-batches of at most {max_tokens} tokens, and \
             the run goes on with them (the batch stays as it is): {failed:#}"
        );
        pass.clear()?;
    }
}

fn run_all(pass: &mut impl Pass, data: &Dataset, batches: &[MicroBatchRows], weight: f64) -> Result<f64> {
    batches.iter().try_fold(0.0, |loss, batch| Ok(loss + pass.run(&batch.load(data)?, weight)?))
}

/// Whether an error says that memory ran out: the system's, an allocation's, or that of a driver, which has only words.
fn is_out_of_memory(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let system = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let words = || cause.to_string().to_ascii_lowercase();
        system == Some(std::io::ErrorKind::OutOfMemory)
            || cause.is::<std::collections::TryReserveError>()
            || ["out of memory", "out_of_memory", "insufficient memory"].iter().any(|part| words().contains(part))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use anyhow::anyhow;
    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::{
        device::DtypeChoice,
        model::{Decoder, StepOptions, Trained, Weights, train_step},
        train::{Example, dataset::DatasetWriter},
    };

    fn data(lengths: &[usize]) -> Result<Dataset> {
        let mut data = DatasetWriter::create(&std::env::temp_dir(), usize::MAX)?;
        for (row, &len) in lengths.iter().enumerate() {
            let token_ids = (0..len).map(|i| 3 + ((row * 31 + i * 7) % 90) as u32).collect();
            data.push(Example { id: format!("row-{row}"), token_ids, trained: vec![true; len] })?;
        }
        data.finish()
    }

    /// A model on a device with room for micro-batches of so many tokens, which fails in the middle of a backward.
    struct Small {
        model: Decoder,
        gradients: Weights,
        room: usize,
        error: fn() -> anyhow::Error,
        sizes: Vec<usize>,
    }

    impl Small {
        fn new(room: usize) -> Result<Self> {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama");
            let model = Decoder::load(&folder, &Device::Cpu, DtypeChoice::F32)?;
            let zeros = Tensor::zeros(model.layout.len, DType::F32, &Device::Cpu)?;
            let gradients = Weights::new(&model.config, &model.layout, zeros)?;
            let error = || anyhow::Error::new(candle_core::Error::Msg("CUDA_ERROR_OUT_OF_MEMORY".into()));
            Ok(Self { model, gradients, room, error, sizes: Vec::new() })
        }
    }

    impl Pass for Small {
        fn run(&mut self, batch: &Microbatch, weight: f64) -> Result<f64> {
            let options = StepOptions { neftune_noise_alpha: 5.0, noise_key: 7, ..StepOptions::default() };
            let loss = train_step(&self.model, batch, weight, Trained::Full(&self.gradients), &options)?;
            self.sizes.push(batch.token_ids.len());
            if batch.token_ids.len() > self.room { Err((self.error)()) } else { Ok(loss) }
        }

        fn clear(&mut self) -> Result<()> {
            Ok(glan_kernels::fill_zero(&self.gradients.arena)?)
        }
    }

    #[test]
    fn out_of_memory_halves_the_micro_batches_and_changes_neither_batch_nor_result() -> Result<()> {
        let (data, rows) = (data(&[20, 20, 9, 20, 20, 12])?, [0, 1, 2, 3, 4, 5]);
        let run = |room: usize, max_tokens: usize| -> Result<(f64, Vec<f32>, usize, Vec<usize>)> {
            let (mut pass, mut left) = (Small::new(room)?, max_tokens);
            let loss = accumulate(&mut pass, &data, &rows, &mut left)?;
            Ok((loss, glan_kernels::to_vec(&pass.gradients.arena)?, left, pass.sizes))
        };
        let (loss, wanted, _, sizes) = run(usize::MAX, 101)?;
        assert_eq!(sizes, [101]);
        // 101 tokens, then 50 (49 + ...), then 24: rows of 20 stand alone, 9 goes with none of them.
        let (small_loss, found, left, sizes) = run(30, 101)?;
        assert_eq!(left, 24);
        assert_eq!(sizes, [101, 49, 20, 20, 9, 20, 20, 12]);
        assert!((loss - small_loss).abs() < 1e-5 * loss, "{loss} against {small_loss}");
        let (norm, off) = wanted
            .iter()
            .zip(&found)
            .fold((0f64, 0f64), |(norm, off), (a, b)| (norm + f64::from(*a).powi(2), off + f64::from(a - b).powi(2)));
        assert!(off.sqrt() < 1e-5 * norm.sqrt(), "{off} of {norm}");
        // To the bit what a run gives that was set to this size.
        let (set_loss, set, ..) = run(usize::MAX, 24)?;
        assert_eq!((set_loss.to_bits(), set), (small_loss.to_bits(), found));
        Ok(())
    }

    #[test]
    fn a_row_that_does_not_fit_alone_and_other_errors_end_the_step() -> Result<()> {
        let data = data(&[20, 20])?;
        let mut left = 100;
        let error = accumulate(&mut Small::new(10)?, &data, &[0, 1], &mut left).expect_err("20 tokens do not fit");
        let text = format!("{error:#}");
        assert!(text.contains("a row of 20 tokens") && text.contains("`train.max_length` below 20"), "{text}");
        let mut pass = Small { error: || anyhow!("the disk is gone"), ..Small::new(10)? };
        let error = accumulate(&mut pass, &data, &[0, 1], &mut 100).expect_err("another error");
        assert_eq!((error.to_string().as_str(), pass.sizes.len()), ("the disk is gone", 1));
        Ok(())
    }

    #[test]
    fn errors_that_speak_of_memory_are_told_from_others() {
        let system = std::io::Error::from_raw_os_error(12);
        assert_eq!(system.kind(), std::io::ErrorKind::OutOfMemory, "ENOMEM");
        assert!(is_out_of_memory(&anyhow::Error::new(system).context("the activations")));
        assert!(is_out_of_memory(&anyhow!("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")")));
        let reserve = Vec::<u64>::new().try_reserve(usize::MAX).expect_err("more than there is");
        assert!(is_out_of_memory(&anyhow::Error::new(reserve)));
        assert!(!is_out_of_memory(&anyhow!("cannot read the memory map")));
    }
}
