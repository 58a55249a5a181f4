//! Launches of `attention_backward`: the gradients of packed attention.

use candle_core::{Result, bail};

use super::{
    Arg, Array, Float, Launch,
    attention::{MOST_QUERIES, PAD, PackedWork, THREADS, TILE, chunk, head_args},
    check_len, launch, rows_of,
};
use crate::attention::Heads;

const MODULE: &str = "attention_backward";

/// What the forward left behind, and the gradient of its output.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a, F> {
    /// `[N, H·D]`
    pub d_o: &'a Array<F>,
    /// `[N, H·D]`
    pub o: &'a Array<F>,
    /// `[N, H]`
    pub lse: &'a Array<f32>,
    /// `[N, (H + 2K)·D]` after rope.
    pub qkv: &'a Array<F>,
}

/// Gradient of [`packed`](super::attention::packed): `dqkv [N, (H + 2K)·D]`.
pub fn backward<F: Float>(dqkv: &Array<F>, given: Given<F>, work: &PackedWork, heads: &Heads) -> Result<()> {
    let Given { d_o, o, lse, qkv } = given;
    let rows = rows_of("attention", qkv, heads.qkv_width())?;
    check_len("attention: dqkv", dqkv, qkv.len())?;
    check_len("attention: d_o", d_o, rows * heads.query * heads.dim)?;
    check_len("attention: o", o, d_o.len())?;
    check_len("attention: lse", lse, rows * heads.query)?;
    if rows != work.num_rows {
        bail!("attention: sequences of {} rows, got {rows}", work.num_rows)
    }
    let delta = Array::<f32>::uninit(qkv.gpu(), rows * heads.query)?;
    let deltas = Launch {
        module: MODULE,
        kernel: F::kernel("attention_delta_f32", "attention_delta_bf16"),
        blocks: [rows, 1, 1],
        threads: (32 * heads.query).min(256),
        shared_bytes: 0,
        args: &[(&delta).into(), d_o.into(), o.into(), heads.query.into(), heads.dim.into()],
    };
    let common: [Arg; 5] = [dqkv.into(), d_o.into(), qkv.into(), lse.into(), (&delta).into()];
    let scale = Arg::from(heads.scale());
    let mut query_args = common.to_vec();
    query_args.extend([Arg::from(&work.units), Arg::from(&work.rows)]);
    query_args.extend(head_args(heads));
    query_args.extend([Arg::from(chunk(heads)), scale]);
    let mut key_args = common.to_vec();
    key_args.push((&work.keys).into());
    key_args.extend(head_args(heads));
    key_args.push(scale);
    let shared_bytes = 2 * (MOST_QUERIES + TILE) * (heads.dim + PAD) * size_of::<f32>();
    let queries = Launch {
        module: MODULE,
        kernel: F::kernel("attention_backward_queries_f32", "attention_backward_queries_bf16"),
        blocks: [work.units.len() / 8, heads.key_value * heads.group().div_ceil(chunk(heads)), 1],
        threads: THREADS,
        shared_bytes,
        args: &query_args,
    };
    let keys = Launch {
        kernel: F::kernel("attention_backward_keys_f32", "attention_backward_keys_bf16"),
        blocks: [work.keys.len() / 4, heads.key_value, 1],
        args: &key_args,
        ..queries
    };
    for launched in [deltas, queries, keys] {
        // SAFETY: the work covers the rows of all arrays and no others.
        unsafe { launch(qkv.gpu(), launched)? };
    }
    Ok(())
}
