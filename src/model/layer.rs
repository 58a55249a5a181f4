//! One decoder block, forward and backward.
//!
//! `h = x + o(attend(rope(qkv(norm(x)))))`, `y = h + down(swiglu(gate_up(norm(h))))`. The backward mirrors it line by
//! line, from the values that [`Saved`] kept; what is cheap (the SwiGLU product) is computed again.

use candle_core::{Result, Tensor};
use glan_kernels::{
    attention::{self, Heads},
    bf16,
    matmul::{Precision, bias_backward, linear_backward_weight},
    rms_norm, rope, swiglu,
};

use super::{
    layout::LayerWeights,
    lora::{LayerAdapter, LayerGradients, Product},
    matrix::Matrix,
};

/// What every block of one pass shares.
pub struct Pass<'a> {
    /// `[N]`
    pub positions: &'a [u32],
    /// `[max positions, D/2]`
    pub cos: &'a Tensor,
    /// `[max positions, D/2]`
    pub sin: &'a Tensor,
    /// Epsilon of the norms.
    pub eps: f64,
    /// What the products multiply.
    pub precision: Precision,
}

/// What a block's forward sees beside its weights.
pub struct Context<'a> {
    /// Sequence starts and the end; attention stays inside each.
    pub cu_seqlens: &'a [usize],
    /// What is added to the frozen projections.
    pub adapter: Option<LayerAdapter<'a>>,
}

impl Context<'_> {
    /// Adds the adapter's part, where there is one, to a product's output; its low-rank values.
    fn adapt(&self, product: Product, x: &Tensor, w: &Matrix, y: &Tensor) -> Result<Option<Tensor>> {
        self.adapter.as_ref().map_or(Ok(None), |adapter| adapter.add(product, x, w, y))
    }
}

/// What a block's backward adds to.
pub enum Gradients<'a> {
    /// The gradients of all weights, from products of this precision.
    Full(&'a LayerWeights, Precision),
    /// Those of the adapter alone; the block's own weights are frozen.
    Adapter(LayerAdapter<'a>, LayerGradients<'a>),
}

impl<'a> Gradients<'a> {
    fn full(&self) -> Option<&'a LayerWeights> {
        match self {
            Self::Full(gradients, _) => Some(gradients),
            Self::Adapter(..) => None,
        }
    }

    /// Backward of one product: `dy [N, O]`, `x [N, I]`, `w [O, I]` → `[N, I]`; `dw` is the place for the weight's.
    fn product(
        &self,
        product: Product,
        dy: &Tensor,
        x: (&Tensor, Option<&Tensor>),
        w: &Matrix,
        dw: impl Fn(&'a LayerWeights) -> &'a Matrix,
    ) -> Result<Tensor> {
        let dx = self.product_and_input(product, dy, x, w, dw, true)?;
        dx.ok_or_else(|| candle_core::Error::msg("a product has no gradient of its input"))
    }

    /// [`Self::product`]; the gradient of the input is computed where it is wanted.
    fn product_and_input(
        &self,
        product: Product,
        dy: &Tensor,
        x: (&Tensor, Option<&Tensor>),
        w: &Matrix,
        dw: impl Fn(&'a LayerWeights) -> &'a Matrix,
        wants_input: bool,
    ) -> Result<Option<Tensor>> {
        match self {
            Self::Full(gradients, precision) => {
                linear_backward_weight(dw(gradients).dense()?, dy, x.0, *precision)?;
                wants_input.then(|| w.backward_input(dy, *precision)).transpose()
            }
            Self::Adapter(adapter, gradients) => adapter.backward(product, dy, x, w, gradients, wants_input),
        }
    }

    /// The place for a small weight's gradient; a throw-away one where the weight is frozen.
    fn small(&self, weight: &Tensor, dw: impl Fn(&'a LayerWeights) -> Option<&'a Tensor>) -> Result<Tensor> {
        self.full().and_then(dw).map_or_else(|| weight.zeros_like(), |dw| Ok(dw.clone()))
    }
}

/// What a block's backward needs.
pub struct Saved {
    x: Tensor,      // [N, C]
    x_rstd: Tensor, // [N]
    x_norm: Tensor, // [N, C]
    qk_norm: Option<SavedQkNorm>,
    qkv: Tensor,     // [N, (H + 2K)·D], after norm and rope
    o: Tensor,       // [N, H·D]
    lse: Tensor,     // [N, H]
    h: Tensor,       // [N, C]
    h_rstd: Tensor,  // [N]
    h_norm: Tensor,  // [N, C]
    gate_up: Tensor, // [N, 2F]
    /// Low-rank values of an adapter, by product in the order of [`Product`].
    low: [Option<Tensor>; 4],
}

struct SavedQkNorm {
    before: Tensor, // [N, (H + 2K)·D], before the norms
    q_rstd: Tensor, // [N, H]
    k_rstd: Tensor, // [N, K]
}

impl Saved {
    /// The same in half the memory; what is one value per row or head stays in f32.
    pub fn narrow(self) -> Result<Self> {
        self.map(bf16::narrow)
    }

    /// Back to f32.
    pub fn widen(self) -> Result<Self> {
        self.map(bf16::widen)
    }

    fn map(self, to: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let qk_norm = self.qk_norm.map(|it| to(&it.before).map(|before| SavedQkNorm { before, ..it })).transpose()?;
        Ok(Self {
            x: to(&self.x)?,
            x_norm: to(&self.x_norm)?,
            qk_norm,
            qkv: to(&self.qkv)?,
            o: to(&self.o)?,
            h: to(&self.h)?,
            h_norm: to(&self.h_norm)?,
            gate_up: to(&self.gate_up)?,
            ..self
        })
    }
}

/// One block forward over packed sequences: `x [N, C]` → `[N, C]`; fills `saved` when it is asked for.
pub fn forward(
    x: &Tensor,
    weights: &LayerWeights,
    heads: &Heads,
    pass: &Pass,
    context: &Context,
    saved: Option<&mut Vec<Saved>>,
) -> Result<Tensor> {
    let (x_norm, x_rstd) = rms_norm::forward(x, &weights.input_norm, pass.eps)?;
    let qkv = weights.qkv.linear(&x_norm, weights.qkv_bias.as_ref(), None, pass.precision)?; // [N, (H + 2K)·D]
    let low_qkv = context.adapt(Product::Qkv, &x_norm, &weights.qkv, &qkv)?;
    let qk_norm = match &weights.qk_norm {
        Some((q_norm, k_norm)) => {
            let before = if saved.is_some() { qkv.copy()? } else { qkv.clone() };
            let q_rstd = rms_norm::heads_in_place(&qkv, q_norm, 0, heads.query, pass.eps)?;
            let k_rstd = rms_norm::heads_in_place(&qkv, k_norm, heads.query, heads.key_value, pass.eps)?;
            Some(SavedQkNorm { before, q_rstd, k_rstd })
        }
        None => None,
    };
    rope::in_place(&qkv, pass.cos, pass.sin, pass.positions, heads.query + heads.key_value, false)?;
    if pass.precision == Precision::Bf16 {
        // The backward computes the attention's weights again from what was kept in bf16: from the same values, then.
        bf16::round_in_place(&qkv)?;
    }
    let (o, lse) = attention::forward(&qkv, context.cu_seqlens, heads)?;
    let h = weights.o.linear(&o, weights.o_bias.as_ref(), Some(x), pass.precision)?; // [N, C]
    let low_o = context.adapt(Product::O, &o, &weights.o, &h)?;
    let (h_norm, h_rstd) = rms_norm::forward(&h, &weights.post_norm, pass.eps)?;
    let gate_up = weights.gate_up.linear(&h_norm, None, None, pass.precision)?; // [N, 2F]
    let low_gate_up = context.adapt(Product::GateUp, &h_norm, &weights.gate_up, &gate_up)?;
    let hidden = swiglu::forward(&gate_up)?; // [N, F]
    let y = weights.down.linear(&hidden, None, Some(&h), pass.precision)?;
    let low_down = context.adapt(Product::Down, &hidden, &weights.down, &y)?;
    if let Some(saved) = saved {
        let x = x.clone();
        let low = [low_qkv, low_o, low_gate_up, low_down];
        saved.push(Saved { x, x_rstd, x_norm, qk_norm, qkv, o, lse, h, h_rstd, h_norm, gate_up, low });
    }
    Ok(y)
}

/// One block backward: `dy [N, C]` → `dx [N, C]` where that is wanted; adds to `gradients` in place.
#[allow(clippy::too_many_arguments, reason = "what a block is made of, and what it kept")]
pub fn backward(
    dy: &Tensor,
    saved: &Saved,
    weights: &LayerWeights,
    gradients: &Gradients,
    heads: &Heads,
    pass: &Pass,
    cu_seqlens: &[usize],
    wants_input: bool,
) -> Result<Option<Tensor>> {
    let [low_qkv, low_o, low_gate_up, low_down] = saved.low.each_ref().map(Option::as_ref);
    let hidden = swiglu::forward(&saved.gate_up)?;
    let d_hidden = gradients.product(Product::Down, dy, (&hidden, low_down), &weights.down, |full| &full.down)?;
    let d_gate_up = swiglu::backward(&d_hidden, &saved.gate_up)?;
    drop((hidden, d_hidden));
    let dh_norm =
        gradients.product(Product::GateUp, &d_gate_up, (&saved.h_norm, low_gate_up), &weights.gate_up, |full| {
            &full.gate_up
        })?;
    let post_norm = gradients.small(&weights.post_norm, |full| Some(&full.post_norm))?;
    let dh = rms_norm::backward(&dh_norm, &saved.h, &weights.post_norm, &saved.h_rstd, &post_norm, Some(dy))?;

    if let Some(o_bias) = gradients.full().and_then(|full| full.o_bias.as_ref()) {
        bias_backward(o_bias, &dh)?;
    }
    let d_o = gradients.product(Product::O, &dh, (&saved.o, low_o), &weights.o, |full| &full.o)?;
    let dqkv = attention::backward(&d_o, &saved.o, &saved.lse, &saved.qkv, cu_seqlens, heads)?;
    rope::in_place(&dqkv, pass.cos, pass.sin, pass.positions, heads.query + heads.key_value, true)?;
    if let (Some((q_norm, k_norm)), Some(saved)) = (&weights.qk_norm, &saved.qk_norm) {
        let dq_norm = gradients.small(q_norm, |full| full.qk_norm.as_ref().map(|(q_norm, _)| q_norm))?;
        let dk_norm = gradients.small(k_norm, |full| full.qk_norm.as_ref().map(|(_, k_norm)| k_norm))?;
        rms_norm::heads_backward_in_place(&dqkv, &saved.before, q_norm, &saved.q_rstd, &dq_norm, 0)?;
        rms_norm::heads_backward_in_place(&dqkv, &saved.before, k_norm, &saved.k_rstd, &dk_norm, heads.query)?;
    }
    if let Some(qkv_bias) = gradients.full().and_then(|full| full.qkv_bias.as_ref()) {
        bias_backward(qkv_bias, &dqkv)?;
    }
    let x_norm = (&saved.x_norm, low_qkv);
    let dx_norm =
        gradients.product_and_input(Product::Qkv, &dqkv, x_norm, &weights.qkv, |full| &full.qkv, wants_input)?;
    let Some(dx_norm) = dx_norm else { return Ok(None) };
    let input_norm = gradients.small(&weights.input_norm, |full| Some(&full.input_norm))?;
    rms_norm::backward(&dx_norm, &saved.x, &weights.input_norm, &saved.x_rstd, &input_norm, Some(&dh)).map(Some)
}
