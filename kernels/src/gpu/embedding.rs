//! Launches of `embedding`: tokens are known to the host, which sorts them for the gradient.

use candle_core::{Result, bail};

use super::{Array, Float, Gpu, Launch, check_len, launch, rows_of, threads_for, values_at_once};

/// The tokens of a step on the device, and which rows belong to which.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// `[N]`
    pub ids: Array<i32>,
    /// Rows by token, in order `[N]`; where each token's rows begin `[U + 1]`; the tokens `[U]`. For the gradient alone.
    by_token: Option<(Array<i32>, Array<i32>, Array<i32>)>,
    vocab_size: usize,
}

impl Tokens {
    /// Uploads tokens; `sorted` prepares the gradient.
    ///
    /// **Errors**: a token past the end of the vocabulary.
    pub fn new(gpu: &Gpu, tokens: &[u32], vocab_size: usize, sorted: bool) -> Result<Self> {
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
            bail!("row {token} is past the end of a table of {vocab_size} rows")
        }
        let ids: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
        let by_token = sorted.then(|| by_token(gpu, &ids)).transpose()?;
        Ok(Self { ids: Array::from_slice(gpu, &ids)?, by_token, vocab_size })
    }
}

fn by_token(gpu: &Gpu, ids: &[i32]) -> Result<(Array<i32>, Array<i32>, Array<i32>)> {
    let mut order: Vec<i32> = (0..ids.len() as i32).collect();
    // Stable: the rows of a token keep their order, and so does its sum.
    order.sort_by_key(|&row| ids[row as usize]);
    let mut starts = Vec::new();
    let mut different = Vec::new();
    for (place, &row) in order.iter().enumerate() {
        if different.last() != Some(&ids[row as usize]) {
            different.push(ids[row as usize]);
            starts.push(place as i32);
        }
    }
    starts.push(order.len() as i32);
    Ok((Array::from_slice(gpu, &order)?, Array::from_slice(gpu, &starts)?, Array::from_slice(gpu, &different)?))
}

/// Gathers rows.
///
/// **Shapes**: `table [V, C]` → `y [N, C]`.
pub fn forward<F: Float>(y: &Array<F>, table: &Array<F>, tokens: &Tokens) -> Result<()> {
    let width = table.len() / tokens.vocab_size;
    rows_of("embedding", table, width)?;
    check_len("embedding: y", y, tokens.ids.len() * width)?;
    let launched = Launch {
        module: "embedding",
        kernel: F::kernel("embedding_f32", "embedding_bf16"),
        blocks: [tokens.ids.len(), 1, 1],
        threads: threads_for(width, values_at_once(width, &[y, table]), 512),
        shared_bytes: 0,
        args: &[y.into(), table.into(), (&tokens.ids).into(), width.into()],
    };
    // SAFETY: the tokens were checked against the table's rows.
    unsafe { launch(y.gpu(), launched) }
}

/// Adds `dy [N, C]` to the rows of `dtable [V, C]`, in the order of the tokens.
pub fn backward<F: Float>(dtable: &Array<f32>, dy: &Array<F>, tokens: &Tokens) -> Result<()> {
    let width = dtable.len() / tokens.vocab_size;
    rows_of("embedding", dtable, width)?;
    check_len("embedding: dy", dy, tokens.ids.len() * width)?;
    let Some((order, starts, different)) = &tokens.by_token else { bail!("embedding: the tokens were not sorted") };
    let launched = Launch {
        module: "embedding",
        kernel: F::kernel("embedding_backward_f32", "embedding_backward_bf16"),
        blocks: [different.len(), 1, 1],
        threads: threads_for(width, 1, 512),
        shared_bytes: 0,
        args: &[dtable.into(), dy.into(), order.into(), starts.into(), different.into(), width.into()],
    };
    // SAFETY: as above; every row is in exactly one token's part of `order`.
    unsafe { launch(dy.gpu(), launched) }
}
