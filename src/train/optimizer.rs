//! AdamW over an arena, with weight decay on matrices only and clipping by global norm; its moments in f32, or in 8 bits
//! where a tensor is large.

use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use glan_kernels::{adamw, adamw_8bit, fill_zero, to_vec};

use crate::{
    config::{OptimizerKind, TrainConfig},
    model::{Layout, NamedTensor},
};

/// Tensors with fewer values keep moments in f32, as in bitsandbytes: norms and biases are sensitive and cost little.
const MIN_8BIT_VALUES: usize = 4096;

/// Optimizer state of an arena: that of a model, or of an adapter.
pub struct Optimizer {
    /// First moments in f32.
    first: Tensor,
    /// Second moments in f32.
    second: Tensor,
    /// Moments in 8 bits, tensor by tensor.
    blocks: Vec<adamw_8bit::Moments>,
    /// Steps taken.
    pub step: usize,
    runs: Vec<Run>,
}

/// Consecutive values of the arena that are treated alike.
struct Run {
    offset: usize,
    len: usize,
    decays: bool,
    moments: Place,
}

/// Where a run's moments are.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// In f32, from this value on.
    F32(usize),
    /// This one of the 8-bit ones.
    Blocks(usize),
}

/// Whether a tensor's moments are held in 8 bits.
fn is_8bit(tensor: &NamedTensor, kind: OptimizerKind) -> bool {
    kind == OptimizerKind::Adamw8bit && tensor.len() >= MIN_8BIT_VALUES
}

impl Optimizer {
    /// Fresh state for an arena of this layout.
    pub fn new(layout: &Layout, kind: OptimizerKind) -> Result<Self> {
        let (mut runs, mut blocks, mut len_f32): (Vec<Run>, Vec<_>, usize) = (Vec::new(), Vec::new(), 0);
        for tensor in layout.tensors.iter() {
            let (len, decays) = (tensor.len(), tensor.decays());
            if is_8bit(tensor, kind) {
                runs.push(Run { offset: tensor.offset, len, decays, moments: Place::Blocks(blocks.len()) });
                blocks.push(adamw_8bit::Moments::zeros(len));
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.decays == decays && matches!(run.moments, Place::F32(_)) => run.len += len,
                _ => runs.push(Run { offset: tensor.offset, len, decays, moments: Place::F32(len_f32) }),
            }
            len_f32 += len;
        }
        let zeros = || Tensor::zeros(len_f32, DType::F32, &Device::Cpu);
        Ok(Self { first: zeros()?, second: zeros()?, blocks, step: 0, runs })
    }

    /// Bytes of the state for an arena of this layout.
    pub fn bytes(layout: &Layout, kind: OptimizerKind) -> usize {
        let of = |tensor: &NamedTensor| {
            if is_8bit(tensor, kind) { adamw_8bit::Moments::bytes(tensor.len()) } else { 8 * tensor.len() }
        };
        layout.tensors.iter().map(of).sum()
    }

    /// Clips, updates `parameters [P]` in place, clears `gradients [P]`. Returns the norm before clipping.
    pub fn update(
        &mut self,
        parameters: &Tensor,
        gradients: &Tensor,
        config: &TrainConfig,
        learning_rate: f64,
    ) -> Result<f64> {
        let norm = adamw::norm(gradients)?;
        let clips = config.max_grad_norm > 0.0 && norm > config.max_grad_norm;
        self.step += 1;
        for &Run { offset, len, decays, moments } in &self.runs {
            let with = adamw::AdamW {
                learning_rate,
                beta1: config.adam_beta1,
                beta2: config.adam_beta2,
                eps: config.adam_epsilon,
                weight_decay: if decays { config.weight_decay } else { 0.0 },
                step: self.step,
                gradient_scale: if clips { config.max_grad_norm / norm } else { 1.0 },
            };
            let (parameters, gradients) = (parameters.narrow(0, offset, len)?, gradients.narrow(0, offset, len)?);
            match moments {
                Place::F32(start) => {
                    let (first, second) = (self.first.narrow(0, start, len)?, self.second.narrow(0, start, len)?);
                    adamw::step(&parameters, &gradients, &first, &second, &with)?;
                }
                Place::Blocks(index) => {
                    adamw_8bit::step(&parameters, &gradients, &mut self.blocks[index], &with)?;
                }
            }
        }
        fill_zero(gradients)?;
        Ok(norm)
    }

    /// The state as named tensors, for a checkpoint: f32 moments, and codes (`u8`) with their scales where there are any.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>> {
        let mut state =
            vec![("exp_avg".to_owned(), self.first.clone()), ("exp_avg_sq".to_owned(), self.second.clone())];
        for (index, moments) in self.blocks.iter().enumerate() {
            let of = [
                ("exp_avg", &moments.first, &moments.first_absmax),
                ("exp_avg_sq", &moments.second, &moments.second_absmax),
            ];
            for (name, codes, absmax) in of {
                state.push((format!("{name}.{index}.codes"), Tensor::new(codes.as_slice(), &Device::Cpu)?));
                state.push((format!("{name}.{index}.absmax"), Tensor::new(absmax.as_slice(), &Device::Cpu)?));
            }
        }
        Ok(state)
    }

    /// Takes up what [`state`](Self::state) gave, tensor by tensor, and the number of steps taken.
    ///
    /// **Errors**: that of `read`; a tensor of another length.
    pub fn restore(&mut self, step: usize, read: impl Fn(&str) -> Result<Tensor>) -> Result<()> {
        let read = |name: &str, len: usize| -> Result<Tensor> {
            let tensor = read(name)?;
            let found = tensor.elem_count();
            ensure!(found == len, "`{name}` holds {found} values, expected {len}");
            Ok(tensor)
        };
        let first = read("exp_avg", self.first.elem_count())?;
        let second = read("exp_avg_sq", self.second.elem_count())?;
        let codes = |name: &str, index: usize, len: usize| -> Result<Vec<u8>> {
            Ok(read(&format!("{name}.{index}.codes"), len)?.to_vec1()?)
        };
        let absmax = |name: &str, index: usize, len: usize| -> Result<Vec<f32>> {
            Ok(to_vec(&read(&format!("{name}.{index}.absmax"), len)?)?)
        };
        let mut blocks: Vec<adamw_8bit::Moments> = Vec::with_capacity(self.blocks.len());
        for (index, old) in self.blocks.iter().enumerate() {
            let (len, scales) = (old.first.len(), old.first_absmax.len());
            blocks.push(adamw_8bit::Moments {
                first: codes("exp_avg", index, len)?,
                first_absmax: absmax("exp_avg", index, scales)?,
                second: codes("exp_avg_sq", index, len)?,
                second_absmax: absmax("exp_avg_sq", index, scales)?,
            });
        }
        (self.first, self.second, self.blocks, self.step) = (first, second, blocks, step);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_tensors_have_8_bit_moments_and_the_state_comes_back_to_the_bit() -> Result<()> {
        let config = crate::model::DecoderConfig::load(
            &std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama"),
        )?;
        let layout = Layout::new(&config);
        let settings = TrainConfig { learning_rate: 1e-2, weight_decay: 0.1, ..TrainConfig::default() };
        let kind = OptimizerKind::Adamw8bit;
        let (small, large) = layout.tensors.iter().map(NamedTensor::len).partition::<Vec<_>, _>(|len| *len < 4096);
        assert!(!small.is_empty() && !large.is_empty());
        let parameters = || Tensor::zeros(layout.len, DType::F32, &Device::Cpu);
        let gradients =
            |step: usize| Tensor::from_iter((0..layout.len).map(|i| ((i * 7 + step) as f32).sin()), &Device::Cpu);
        let (p, mut optimizer) = (parameters()?, Optimizer::new(&layout, kind)?);
        let mut other = Optimizer::new(&layout, kind)?;
        for step in 0..2 {
            optimizer.update(&p, &gradients(step)?, &settings, 1e-2)?;
        }
        let state: std::collections::HashMap<_, _> = optimizer.state()?.into_iter().collect();
        let bytes: usize = state.values().map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum();
        assert_eq!(bytes, Optimizer::bytes(&layout, kind));
        assert!(bytes < Optimizer::bytes(&layout, OptimizerKind::Adamw));
        // Copies: the optimizer goes on writing into its own.
        other.restore(2, |name| Ok(state[name].copy()?))?;
        let again = p.copy()?;
        optimizer.update(&p, &gradients(2)?, &settings, 1e-2)?;
        other.update(&again, &gradients(2)?, &settings, 1e-2)?;
        assert!(to_vec(&p)? == to_vec(&again)? && to_vec(&p)?.iter().any(|value| *value != 0.0));
        assert!(other.restore(2, |_| Ok(Tensor::zeros(1, DType::F32, &Device::Cpu)?)).is_err());
        Ok(())
    }
}
