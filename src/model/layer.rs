//! One decoder block, forward and backward.
//!
//! `h = x + o(attend(rope(qkv(norm(x)))))`, `y = h + down(swiglu(gate_up(norm(h))))`. The backward mirrors it line by
//! line, from the values that [`Saved`] kept; what is cheap (the SwiGLU product) is computed again.

use candle_core::{Result, Tensor};
use glan_kernels::{
    attention::{self, Heads},
    matmul::{bias_backward, linear, linear_backward_input, linear_backward_weight},
    rms_norm, rope, swiglu,
};

use super::layout::LayerWeights;

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
}

struct SavedQkNorm {
    before: Tensor, // [N, (H + 2K)·D], before the norms
    q_rstd: Tensor, // [N, H]
    k_rstd: Tensor, // [N, K]
}

/// One block forward over packed sequences: `x [N, C]` → `[N, C]`; fills `saved` when it is asked for.
pub fn forward(
    x: &Tensor,
    weights: &LayerWeights,
    heads: &Heads,
    pass: &Pass,
    cu_seqlens: &[usize],
    saved: Option<&mut Vec<Saved>>,
) -> Result<Tensor> {
    let (x_norm, x_rstd) = rms_norm::forward(x, &weights.input_norm, pass.eps)?;
    let qkv = linear(&x_norm, &weights.qkv, weights.qkv_bias.as_ref(), None)?; // [N, (H + 2K)·D]
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
    let (o, lse) = attention::forward(&qkv, cu_seqlens, heads)?;
    let h = linear(&o, &weights.o, weights.o_bias.as_ref(), Some(x))?; // [N, C]
    let (h_norm, h_rstd) = rms_norm::forward(&h, &weights.post_norm, pass.eps)?;
    let gate_up = linear(&h_norm, &weights.gate_up, None, None)?; // [N, 2F]
    let y = linear(&swiglu::forward(&gate_up)?, &weights.down, None, Some(&h))?;
    if let Some(saved) = saved {
        let x = x.clone();
        saved.push(Saved { x, x_rstd, x_norm, qk_norm, qkv, o, lse, h, h_rstd, h_norm, gate_up });
    }
    Ok(y)
}

/// One block backward: `dy [N, C]` → `dx [N, C]`; adds to `gradients` in place.
pub fn backward(
    dy: &Tensor,
    saved: &Saved,
    weights: &LayerWeights,
    gradients: &LayerWeights,
    heads: &Heads,
    pass: &Pass,
    cu_seqlens: &[usize],
) -> Result<Tensor> {
    linear_backward_weight(&gradients.down, dy, &swiglu::forward(&saved.gate_up)?)?;
    let d_gate_up = swiglu::backward(&linear_backward_input(dy, &weights.down)?, &saved.gate_up)?;
    linear_backward_weight(&gradients.gate_up, &d_gate_up, &saved.h_norm)?;
    let dh_norm = linear_backward_input(&d_gate_up, &weights.gate_up)?;
    let dh = rms_norm::backward(&dh_norm, &saved.h, &weights.post_norm, &saved.h_rstd, &gradients.post_norm, Some(dy))?;

    linear_backward_weight(&gradients.o, &dh, &saved.o)?;
    if let Some(o_bias) = &gradients.o_bias {
        bias_backward(o_bias, &dh)?;
    }
    let d_o = linear_backward_input(&dh, &weights.o)?;
    let dqkv = attention::backward(&d_o, &saved.o, &saved.lse, &saved.qkv, cu_seqlens, heads)?;
    rope::in_place(&dqkv, pass.cos, pass.sin, pass.positions, heads.query + heads.key_value, true)?;
    if let (Some((q_norm, k_norm)), Some((dq_norm, dk_norm)), Some(saved)) =
        (&weights.qk_norm, &gradients.qk_norm, &saved.qk_norm)
    {
        rms_norm::heads_backward_in_place(&dqkv, &saved.before, q_norm, &saved.q_rstd, dq_norm, 0)?;
        rms_norm::heads_backward_in_place(&dqkv, &saved.before, k_norm, &saved.k_rstd, dk_norm, heads.query)?;
    }
    linear_backward_weight(&gradients.qkv, &dqkv, &saved.x_norm)?;
    if let Some(qkv_bias) = &gradients.qkv_bias {
        bias_backward(qkv_bias, &dqkv)?;
    }
    let dx_norm = linear_backward_input(&dqkv, &weights.qkv)?;
    rms_norm::backward(&dx_norm, &saved.x, &weights.input_norm, &saved.x_rstd, &gradients.input_norm, Some(&dh))
}
