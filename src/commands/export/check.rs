//! Whether a written model is its source.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use serde::Serialize;

use crate::{
    chat_template::ChatTemplate,
    device::DtypeChoice,
    gguf::{TensorType, error_bound},
    model::{self, GgufTensors, InferenceDecoder, Layout, PagedBatch, PagedSequence},
    tokenizer::{SAMPLES, Tokenizer},
};

/// Positions of the prompt whose logits are compared.
const POSITIONS: usize = 32;
/// Logits that nothing was rounded for may still differ by the last bit of a parameter of the configuration.
const UNROUNDED_LOGITS: f32 = 1e-3;
/// What the prompt is made of.
const PROMPT: &str = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. \
                      One day, she asked: what is 12 + 7? def f(x): return x";

/// The comparison of a written model with its source.
#[derive(Debug, Clone, Serialize)]
pub struct Checks {
    /// Tensors by type; every one lies within its format's bound.
    pub tensors: Vec<TensorCheck>,
    /// Sample texts.
    pub texts: usize,
    /// Those that get the same tokens: all of them.
    pub texts_equal: usize,
    /// Positions of the prompt.
    pub positions: usize,
    /// Largest difference of a logit.
    pub logits_max_abs_diff: f32,
    /// Largest logit of the source.
    pub logits_max_abs: f32,
    /// Positions at which the most probable token is the same.
    pub top1_agree: usize,
}

/// The tensors of one type.
#[derive(Debug, Clone, Serialize)]
pub struct TensorCheck {
    /// Their type.
    pub kind: String,
    /// How many there are.
    pub count: usize,
    /// Largest difference of a value.
    pub max_abs_diff: f32,
    /// Norm of the difference over the norm of the source.
    pub relative_error: f64,
}

#[derive(Default)]
struct Sums {
    count: usize,
    max: f32,
    difference: f64,
    source: f64,
}

impl Sums {
    fn add(&mut self, source: &[f32], written: &[f32]) {
        self.count += 1;
        for (source, written) in source.iter().zip(written) {
            let difference = source - written;
            self.max = self.max.max(difference.abs());
            self.difference += f64::from(difference).powi(2);
            self.source += f64::from(*source).powi(2);
        }
    }

    fn finish(self, kind: String) -> TensorCheck {
        let relative_error = (self.difference / self.source.max(f64::MIN_POSITIVE)).sqrt();
        TensorCheck { kind, count: self.count, max_abs_diff: self.max, relative_error }
    }
}

/// Every tensor of a GGUF file against the arena that it was written from.
///
/// **Errors**: a value that lies outside of its format's bound, or that is missing.
pub(super) fn gguf_tensors(path: &Path, layout: &Layout, arena: &Tensor) -> Result<Vec<TensorCheck>> {
    let file = GgufTensors::open(path)?;
    let mut sums: BTreeMap<TensorType, Sums> = BTreeMap::new();
    for tensor in layout.tensors.iter() {
        let info = file.find(tensor)?.with_context(|| format!("`{}` was not written", tensor.name))?;
        let kind = info.kind;
        let source = super::values_of(arena, tensor)?;
        let mut written = vec![0f32; tensor.len()];
        file.read_rows(tensor, 0, &mut written)?;
        within_bound(kind, &source, &written)
            .with_context(|| format!("`{}` came back from {} changed", tensor.name, kind.name()))?;
        sums.entry(kind).or_default().add(&source, &written);
    }
    Ok(sums.into_iter().map(|(kind, sums)| sums.finish(kind.name())).collect())
}

/// Every value of every block within what packing may do to it.
fn within_bound(kind: TensorType, source: &[f32], written: &[f32]) -> Result<()> {
    let (len, _) = kind.block().with_context(|| format!("{} is not known", kind.name()))?;
    for (block, (source, written)) in source.chunks(len).zip(written.chunks(len)).enumerate() {
        let bound = error_bound(kind, source);
        for (at, (source, written)) in source.iter().zip(written).enumerate() {
            // Written so that NaN does not pass.
            let is_close = (source - written).abs() <= bound;
            if !is_close {
                bail!("value {} is {written}, the source has {source}, at most {bound} apart", block * len + at);
            }
        }
    }
    Ok(())
}

/// Every value of a directory against its source, rounded to the type of the directory.
pub(super) fn directory_tensors(
    source: &Path,
    written: &Path,
    layout: &Layout,
    dtype: Dtype,
) -> Result<Vec<TensorCheck>> {
    let (source, written) =
        (model::load_arena(source, layout, DtypeChoice::F32)?, model::load_arena(written, layout, DtypeChoice::F32)?);
    let round = |value: f32| match dtype {
        Dtype::F32 => value,
        Dtype::F16 => f16::from_f32(value).to_f32(),
        _ => bf16::from_f32(value).to_f32(),
    };
    let mut sums = Sums::default();
    for tensor in layout.tensors.iter() {
        let (source, written) = (super::values_of(&source, tensor)?, super::values_of(&written, tensor)?);
        if let Some(at) = (0..source.len()).find(|&at| !source[at].is_finite() || written[at] != round(source[at])) {
            bail!("value {at} of `{}` is {}, the source has {}", tensor.name, written[at], source[at]);
        }
        sums.add(&source, &written);
    }
    Ok(vec![sums.finish(format!("{dtype:?}"))])
}

/// Tokenizer, template and logits of a written model against its source.
///
/// **Errors**: a text that gets other tokens, another template; where nothing was `rounded`, other logits.
pub(super) fn model(source: &Path, written: &Path, tensors: Vec<TensorCheck>, is_exact: bool) -> Result<Checks> {
    let (before, after) = (Tokenizer::load(source)?, Tokenizer::load(written)?);
    let texts_equal = before.agreement(&after)?;
    if texts_equal < SAMPLES.len() {
        bail!("the written tokenizer gives other tokens for {} sample texts", SAMPLES.len() - texts_equal);
    }
    if before.named_tokens() != after.named_tokens() {
        bail!("special tokens were {:?} and are {:?}", before.named_tokens(), after.named_tokens());
    }
    let template = |path: &Path, tokenizer: &Tokenizer| -> Result<Option<String>> {
        Ok(ChatTemplate::load(path, tokenizer)?.map(|template| template.source().to_owned()))
    };
    if template(source, &before)? != template(written, &after)? {
        bail!("the chat template was not written as it was");
    }
    // One model at a time in memory.
    let expected = logits(source, &before)?;
    let got = logits(written, &before)?;
    let max_diff = max_difference(&expected.0, &got.0)?;
    if is_exact && max_diff > UNROUNDED_LOGITS {
        bail!("logits differ by up to {max_diff}, although no weight was rounded");
    }
    let rows = expected.0.chunks(expected.1).zip(got.0.chunks(got.1));
    let top1_agree = rows.clone().filter(|(expected, got)| argmax(expected) == argmax(got)).count();
    Ok(Checks {
        tensors,
        texts: SAMPLES.len(),
        texts_equal,
        positions: rows.count(),
        logits_max_abs_diff: max_diff,
        logits_max_abs: expected.0.iter().fold(0f32, |largest, value| largest.max(value.abs())),
        top1_agree,
    })
}

/// Logits of the prompt's positions, and how many there are per position.
fn logits(path: &Path, tokenizer: &Tokenizer) -> Result<(Vec<f32>, usize)> {
    const BLOCK: usize = 16;
    let model = InferenceDecoder::load(path, &Device::Cpu, DtypeChoice::F32)?;
    let vocab = model.config.vocab_size;
    let mut tokens = tokenizer.encode(PROMPT, true)?;
    tokens.truncate(POSITIONS.min(model.config.max_position_embeddings));
    // The word-level tokenizers of tests know none of the words.
    if tokens.iter().collect::<std::collections::HashSet<_>>().len() < 8 {
        let count = POSITIONS.min(model.config.max_position_embeddings);
        tokens = (0..count).map(|i| ((i * 13 + 5) % vocab) as u32).collect();
    }
    let blocks = tokens.len().div_ceil(BLOCK);
    let mut cache = model.kv_cache(blocks, BLOCK)?;
    let len = tokens.len();
    let batch = PagedBatch {
        positions: (0..len as u32).collect(),
        slot_mapping: (0..len as u32).collect(),
        sequences: vec![PagedSequence { query_len: len, context_len: len, block_table: (0..blocks as u32).collect() }],
        logit_rows: (0..len as u32).collect(),
        token_ids: tokens,
    };
    Ok((model.forward_paged(&batch, &mut cache)?, vocab))
}

fn max_difference(expected: &[f32], got: &[f32]) -> Result<f32> {
    if expected.len() != got.len() {
        bail!("{} logits became {}", expected.len(), got.len());
    }
    let mut largest = 0f32;
    for (expected, got) in expected.iter().zip(got) {
        let difference = (expected - got).abs();
        if !difference.is_finite() {
            bail!("a logit is {got}, the source has {expected}");
        }
        largest = largest.max(difference);
    }
    Ok(largest)
}

fn argmax(row: &[f32]) -> usize {
    (0..row.len()).fold(0, |best, at| if row[at] > row[best] { at } else { best })
}
