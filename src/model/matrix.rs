//! A block's matrices: in f32, or frozen in blocks of few bits that no one ever holds whole in f32.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, bail};
use candle_core::{Result as TensorResult, Tensor, bail as tensor_bail};
use glan_kernels::matmul::{BlockFormat, Precision, QuantizedWeight, linear, linear_backward_input};

use super::{
    DecoderConfig, Layout, NamedTensor, Weights,
    loader::{self, TensorSource},
};
use crate::{
    error::usage,
    gguf::{TensorType, quantize},
};

/// A matrix `[O, I]` of a block, or its gradient.
#[derive(Debug, Clone)]
pub enum Matrix {
    /// A view into the arena.
    Dense(Tensor),
    /// Frozen blocks.
    Blocks(Arc<QuantizedWeight>),
}

impl Matrix {
    /// The linear layer: `x [N, I]`, `bias [O]`, `residual [N, O]` → `[N, O]`.
    pub fn linear(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        residual: Option<&Tensor>,
        precision: Precision,
    ) -> TensorResult<Tensor> {
        match self {
            Self::Dense(w) => linear(x, w, bias, residual, precision),
            Self::Blocks(w) => w.forward(x, bias, residual, precision),
        }
    }

    /// Gradient of the linear layer's input: `dy [N, O]` → `[N, I]`.
    pub fn backward_input(&self, dy: &Tensor, precision: Precision) -> TensorResult<Tensor> {
        match self {
            Self::Dense(w) => linear_backward_input(dy, w, precision),
            Self::Blocks(w) => w.backward_input(dy, precision),
        }
    }

    /// Rows `[count, I]`: a view, or unpacked.
    pub fn rows(&self, first: usize, count: usize) -> TensorResult<Tensor> {
        match self {
            Self::Dense(w) => w.narrow(0, first, count),
            Self::Blocks(w) => w.rows(first, count),
        }
    }

    /// The view into the arena.
    ///
    /// **Errors**: the matrix is quantised, so nothing can be added to it.
    pub fn dense(&self) -> TensorResult<&Tensor> {
        match self {
            Self::Dense(w) => Ok(w),
            Self::Blocks(_) => tensor_bail!("a quantised matrix is frozen; train an adapter beside it"),
        }
    }
}

/// The names of a block's fused matrices: the first tensor, and how many.
pub(super) const MATRICES: [(&str, usize); 4] = [
    ("self_attn.q_proj.weight", 3),
    ("self_attn.o_proj.weight", 1),
    ("mlp.gate_proj.weight", 2),
    ("mlp.down_proj.weight", 1),
];

/// A model whose blocks' matrices are quantised while they are read, a few rows at a time; what else there is stays f32. A
/// GGUF file's blocks are taken as they are where they have the format.
///
/// **Errors**: as [`loader::open`]; usage, where the rows of a matrix are no whole number of blocks.
pub(super) fn load(model: &Path, config: &DecoderConfig, format: BlockFormat) -> Result<(Layout, Weights)> {
    let (whole, rest) = (Layout::new(config), Layout::without_matrices(config));
    let source = loader::open(model, &whole)?;
    let arena = loader::read_arena(source.as_ref(), &rest)?;
    let mut layers = Vec::with_capacity(config.num_hidden_layers);
    for layer in 0..config.num_hidden_layers {
        let mut matrices = Vec::with_capacity(MATRICES.len());
        for (first, count) in MATRICES {
            let parts = whole.neighbours(&format!("model.layers.{layer}.{first}"), count)?;
            matrices.push(Matrix::Blocks(Arc::new(stacked(source.as_ref(), parts, format)?)));
        }
        layers.push(matrices);
    }
    let weights = Weights::with_matrices(config, &rest, arena, &layers)?;
    Ok((rest, weights))
}

/// Tensors one on top of another, quantised.
fn stacked(source: &dyn TensorSource, parts: &[NamedTensor], format: BlockFormat) -> Result<QuantizedWeight> {
    let out = parts.iter().map(|part| part.shape[0]).sum();
    let inner = parts[0].shape[1];
    let (block, _) = format.block();
    let kind = match format {
        BlockFormat::Nf4 => {
            return QuantizedWeight::nf4((out, inner), |first, rows| read_stacked(source, parts, first, rows));
        }
        BlockFormat::Q8_0 => TensorType::Q8_0,
        BlockFormat::Q4K => TensorType::Q4K,
    };
    if !inner.is_multiple_of(block) {
        return Err(usage(format!(
            "`{}` has rows of {inner} values, which blocks of {block} do not fill; set `train.base_quantization` to \
             \"nf4\"{}",
            parts[0].name,
            if inner.is_multiple_of(32) { " or \"q8_0\"" } else { "" }
        )));
    }
    let mut bytes = Vec::new();
    for part in parts {
        match source.read_blocks(part, kind)? {
            Some(blocks) => bytes.extend(blocks),
            None => {
                // One tensor at a time in f32.
                let mut values = vec![0f32; part.len()];
                source.read_rows(part, 0, &mut values)?;
                bytes.extend(quantize(kind, &values, inner).with_context(|| format!("cannot pack `{}`", part.name))?);
            }
        }
    }
    Ok(QuantizedWeight::from_blocks(format, (out, inner), bytes)?)
}

/// Rows of stacked tensors, from `first` on.
fn read_stacked(source: &dyn TensorSource, parts: &[NamedTensor], first: usize, mut rows: &mut [f32]) -> Result<()> {
    let mut start = 0;
    for part in parts {
        let (height, width) = (part.shape[0], part.shape[1]);
        let from = first.max(start);
        if !rows.is_empty() && from < start + height {
            let count = (start + height - from).min(rows.len() / width);
            let (these, rest) = rows.split_at_mut(count * width);
            source.read_rows(part, from - start, these)?;
            rows = rest;
        }
        start += height;
    }
    if !rows.is_empty() {
        bail!("rows past the end of `{}`", parts[0].name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Numbered;

    impl TensorSource for Numbered {
        fn read_rows(&self, tensor: &NamedTensor, first_row: usize, values: &mut [f32]) -> Result<()> {
            values.iter_mut().zip(tensor.offset + first_row * tensor.shape[1]..).for_each(|(v, i)| *v = i as f32);
            Ok(())
        }
    }

    #[test]
    fn rows_of_stacked_tensors_are_read_across_their_borders_and_not_past_the_end() -> Result<()> {
        let tensors = Layout::of(vec![("a".into(), vec![2, 3]), ("b".into(), vec![4, 3]), ("c".into(), vec![1, 3])]);
        for first in 0..7 {
            for count in 1..=7 - first {
                let mut rows = vec![0.0; 3 * count];
                read_stacked(&Numbered, &tensors.tensors, first, &mut rows)?;
                let expected: Vec<f32> = (3 * first..3 * (first + count)).map(|i| i as f32).collect();
                assert_eq!(rows, expected, "{first} {count}");
            }
        }
        assert!(read_stacked(&Numbered, &tensors.tensors, 6, &mut [0.0; 6]).is_err());
        Ok(())
    }
}
