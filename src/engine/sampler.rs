//! From a row of logits to the next token.
//!
//! Everything works on one f32 row on the host and sums in one fixed order, so a token depends on its own row, its own
//! history and its own random stream, never on batch mates. The order of the filters is vLLM's and transformers':
//! repetition penalty, constraint, temperature, top-k, top-p, min-p.

use std::{borrow::Cow, cmp::Ordering, collections::HashSet};

use glan_kernels::log_softmax;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use thiserror::Error;

use super::grammar::TokenMask;
use crate::language_model::{SamplingParams, TokenLogprob};

/// Why a row gives no token. The sequence fails, the run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SamplerError {
    /// The weights or the arithmetic are broken.
    #[error("the model's logits are not finite at this place (are its weights damaged?)")]
    NotFinite,
    /// The constraint and the vocabulary do not meet.
    #[error("no token of the vocabulary satisfies the constraint at this place")]
    NothingAllowed,
}

/// The sampling state of one sequence.
#[derive(Debug, Clone)]
pub struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    num_logprobs: Option<usize>,
    /// Tokens of prompt and output; kept only where the penalty needs them.
    seen: HashSet<u32>,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// The sampler of answer `index` of a request.
    pub fn new(params: &SamplingParams, index: usize, prompt: &[u32]) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(params.seed);
        rng.set_stream(index as u64);
        let penalised = params.repetition_penalty != 1.0;
        Self {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            repetition_penalty: params.repetition_penalty,
            num_logprobs: params.logprobs,
            seen: if penalised { prompt.iter().copied().collect() } else { HashSet::new() },
            rng,
        }
    }

    /// Draws the next token from `raw`, a row of the model's logits; with log-probabilities if asked for.
    ///
    /// Exactly one random number is drawn per token, except that temperature 0 draws none and takes the likeliest (of
    /// equals the lowest id).
    ///
    /// **Shapes**: `raw` `[V]`.
    pub fn sample(
        &mut self,
        raw: &[f32],
        mask: Option<&TokenMask>,
    ) -> Result<(u32, Option<TokenLogprob>), SamplerError> {
        let (mut best, mut max) = largest(raw)?;
        let raw_max = max;
        let mut row = Cow::Borrowed(raw);
        if self.repetition_penalty != 1.0 {
            penalise(row.to_mut(), &self.seen, self.repetition_penalty);
        }
        if let Some(mask) = mask {
            mask.apply(row.to_mut());
        }
        if let Cow::Owned(row) = &row {
            (best, max) = largest(row)?;
        }
        if max == f32::NEG_INFINITY {
            return Err(if mask.is_some() { SamplerError::NothingAllowed } else { SamplerError::NotFinite });
        }
        let token_id = if self.temperature == 0.0 { best as u32 } else { self.draw(&row, max) };
        if self.repetition_penalty != 1.0 {
            self.seen.insert(token_id);
        }
        let logprob = self.num_logprobs.map(|count| {
            let log_softmax = LogSoftmax::below(raw, raw_max);
            let top = top(raw, count).into_iter().map(|(id, logit)| (id, log_softmax.at(logit))).collect();
            TokenLogprob { token_id, logprob: log_softmax.at(raw[token_id as usize]), top }
        });
        Ok((token_id, logprob))
    }

    /// Takes a token that no other could have been in place of, without its logits: what [`Sampler::sample`] would do
    /// with a mask of this token alone.
    pub fn force(&mut self, token_id: u32) {
        if self.temperature != 0.0 {
            let _: f64 = self.rng.random();
        }
        if self.repetition_penalty != 1.0 {
            self.seen.insert(token_id);
        }
    }

    /// Inverse-transform sampling over what the filters leave.
    fn draw(&mut self, row: &[f32], best: f32) -> u32 {
        let uniform: f64 = self.rng.random();
        // The difference first: the likeliest keeps weight 1 however small the temperature is.
        let candidate = |id: u32, logit: f32| Candidate { id, weight: ((logit - best) / self.temperature).exp() };
        let mut candidates: Vec<Candidate> = if self.top_k > 0 && self.top_k < row.len() {
            top(row, self.top_k).into_iter().map(|(id, logit)| candidate(id, logit)).collect()
        } else {
            row.iter().zip(0..).map(|(&logit, id)| candidate(id, logit)).collect()
        };
        candidates.retain(|candidate| candidate.weight > 0.0);
        if self.top_p < 1.0 {
            keep_nucleus(&mut candidates, self.top_p);
        }
        if self.min_p > 0.0 {
            candidates.retain(|candidate| candidate.weight >= self.min_p);
        }
        pick(&candidates, uniform)
    }
}

/// Place and value of the largest logit, of equals the first.
fn largest(row: &[f32]) -> Result<(usize, f32), SamplerError> {
    log_softmax::largest(row).ok_or(SamplerError::NotFinite)
}

/// Divides positive and multiplies negative logits of tokens already seen.
///
/// **Source**: Keskar et al., "CTRL" (2019), as transformers' `RepetitionPenaltyLogitsProcessor` reads it.
fn penalise(row: &mut [f32], seen: &HashSet<u32>, penalty: f32) {
    for &token_id in seen {
        let logit = &mut row[token_id as usize];
        *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
    }
}

/// A token with its probability relative to the likeliest one's.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    id: u32,
    weight: f32,
}

impl Candidate {
    /// Heaviest first, of equals the lowest id first.
    fn by_weight(&self, other: &Self) -> Ordering {
        other.weight.total_cmp(&self.weight).then(self.id.cmp(&other.id))
    }
}

/// Keeps the smallest set of candidates whose share of the weight is at least `top_p`, heaviest first.
///
/// **Source**: Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020).
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f32) {
    let total: f64 = candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
    let wanted = total * f64::from(top_p);
    // A nucleus is mostly small: sorting a growing head is much cheaper than sorting 150,000 tokens.
    let mut head = 64;
    loop {
        head = head.min(candidates.len());
        if head < candidates.len() {
            candidates.select_nth_unstable_by(head - 1, Candidate::by_weight);
        }
        candidates[..head].sort_unstable_by(Candidate::by_weight);
        let mut cumulative = 0.0;
        let reached = candidates[..head].iter().position(|candidate| {
            cumulative += f64::from(candidate.weight);
            cumulative >= wanted
        });
        if let Some(last) = reached {
            candidates.truncate(last + 1);
            return;
        }
        if head == candidates.len() {
            return;
        }
        head *= 8;
    }
}

/// The candidate at `uniform` (in [0, 1)) of the cumulative weight.
fn pick(candidates: &[Candidate], uniform: f64) -> u32 {
    let total: f64 = candidates.iter().map(|candidate| f64::from(candidate.weight)).sum();
    let target = uniform * total;
    let mut cumulative = 0.0;
    let found = candidates.iter().find(|candidate| {
        cumulative += f64::from(candidate.weight);
        cumulative > target
    });
    // `uniform * total` may round up to `total`; then it is the last one.
    found.or(candidates.last()).expect("the likeliest token has weight 1 and passes every filter").id
}

/// The `count` largest logits with their ids, best first, of equals the lowest id first.
pub fn top(row: &[f32], count: usize) -> Vec<(u32, f32)> {
    let count = count.min(row.len());
    if count == 0 {
        return Vec::new();
    }
    let best_first =
        |a: &u32, b: &u32| row[*b as usize].partial_cmp(&row[*a as usize]).unwrap_or(Ordering::Equal).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..row.len() as u32).collect();
    if count < ids.len() {
        ids.select_nth_unstable_by(count - 1, best_first);
        ids.truncate(count);
    }
    ids.sort_unstable_by(best_first);
    ids.into_iter().map(|id| (id, row[id as usize])).collect()
}

/// `log softmax` of a row: exponentials in f32, their sum in f64, in one fixed order.
#[derive(Debug, Clone, Copy)]
pub struct LogSoftmax {
    max: f32,
    log_sum: f64,
}

impl LogSoftmax {
    /// Of a row `[V]` with this largest value, without NaN.
    fn below(row: &[f32], max: f32) -> Self {
        Self { max, log_sum: log_softmax::log_sum_exp_below(row, max) }
    }

    /// The natural-log probability of a token with this logit.
    pub fn at(&self, logit: f32) -> f32 {
        (f64::from(logit - self.max) - self.log_sum) as f32
    }
}

/// Log-probability of `token_id` in a row, and whether it is the likeliest (of equals the lowest id).
pub fn score_row(row: &[f32], token_id: u32) -> Result<(f32, bool), SamplerError> {
    let (best, max) = largest(row)?;
    if max == f32::NEG_INFINITY {
        return Err(SamplerError::NotFinite);
    }
    Ok((LogSoftmax::below(row, max).at(row[token_id as usize]), best == token_id as usize))
}

#[cfg(test)]
mod tests;
