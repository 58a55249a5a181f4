//! What a packed product multiplies with, computed while it is packed: a norm or a gate in front of a product needs no
//! memory of its own. The arithmetic is that of the ops by themselves, to the bit.

use candle_core::{Result, Tensor, bail};

use crate::{host::read, rms_norm, swiglu};

/// The activations `[N, I]` of a product.
#[derive(Debug, Clone, Copy)]
pub enum Input<'a> {
    /// As they are, `[N, I]`.
    Rows(&'a Tensor),
    /// Normalised: [`rms_norm::forward`] of `x [N, I]` with `w [I]`.
    RmsNorm {
        /// `[N, I]`
        x: &'a Tensor,
        /// `[I]`
        w: &'a Tensor,
        /// Added to the mean square.
        eps: f64,
    },
    /// [`swiglu::forward`] of `[gate | up]`, `[N, 2·I]`.
    SwiGlu(&'a Tensor),
}

impl Input<'_> {
    /// Hands the values and the number of rows to `body`.
    pub(super) fn with_rows<T>(self, inner: usize, body: impl FnOnce(Rows, usize) -> Result<T>) -> Result<T> {
        let (tensor, expected) = match self {
            Input::Rows(x) | Input::RmsNorm { x, .. } => (x, inner),
            Input::SwiGlu(gate_up) => (gate_up, 2 * inner),
        };
        let (rows, width) = tensor.dims2()?;
        if width != expected {
            bail!("linear: x has {width} columns, expected {expected}")
        }
        let values = read(tensor)?;
        match self {
            Input::Rows(_) => body(Rows::Plain(&values), rows),
            Input::SwiGlu(_) => body(Rows::SwiGlu(&values), rows),
            Input::RmsNorm { w, eps, .. } => {
                if w.dims1()? != inner {
                    bail!("linear: x has {width} columns, its norm {}", w.dims1()?)
                }
                body(Rows::RmsNorm { x: &values, w: &read(w)?, eps: eps as f32 }, rows)
            }
        }
    }
}

/// [`Input`]'s values.
pub(super) enum Rows<'a> {
    Plain(&'a [f32]),
    RmsNorm { x: &'a [f32], w: &'a [f32], eps: f32 },
    SwiGlu(&'a [f32]),
}

impl Rows<'_> {
    /// `count` rows from `first` on, `[count, inner]`; in `scratch` where they are computed.
    pub(super) fn rows<'s>(&'s self, first: usize, count: usize, inner: usize, scratch: &'s mut Vec<f32>) -> &'s [f32] {
        let span = first * inner..(first + count) * inner;
        match self {
            Rows::Plain(x) => &x[span],
            Rows::RmsNorm { x, w, eps } => {
                scratch.resize(count * inner, 0.0);
                rms_norm::rows_into(&x[span], w, *eps, scratch);
                scratch
            }
            Rows::SwiGlu(gate_up) => {
                scratch.resize(count * inner, 0.0);
                swiglu::forward_rows(&gate_up[2 * span.start..2 * span.end], inner, scratch);
                scratch
            }
        }
    }
}
