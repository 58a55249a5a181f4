//! What the engine keeps about a sequence whose likelihood is asked for.
//!
//! Conventions are lm-evaluation-harness's: the model reads context and continuation without the last token, sequences
//! that are too long lose tokens on the left, an empty context is replaced by the prefix token.

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;

use super::sampler::score_row;
use crate::language_model::{Score, ScoreRequest};

/// The state of one scoring.
#[derive(Debug, Clone)]
pub struct Scoring {
    request_id: String,
    /// The continuation: `targets[i]` is predicted by the `i`-th wanted row.
    targets: Vec<u32>,
    token_logprobs: Vec<f32>,
    is_greedy: bool,
    error: Option<String>,
}

impl Scoring {
    /// A scoring, with the tokens that the model reads for it and the first position whose logits are wanted.
    ///
    /// **Errors**: an empty continuation, one that fills more than the model's context, an empty context without a
    /// prefix token, ids outside the vocabulary.
    pub fn prepare(
        request: ScoreRequest,
        prefix_token_id: Option<u32>,
        max_model_len: usize,
        vocab_size: usize,
    ) -> Result<(Self, Vec<u32>, usize)> {
        let targets = request.continuation_token_ids;
        ensure!(!targets.is_empty(), "the continuation is empty; there is nothing to score");
        ensure!(
            targets.len() <= max_model_len,
            "the continuation alone has {} tokens, the model's context {max_model_len}",
            targets.len()
        );
        let mut input = request.context_token_ids;
        if input.is_empty() {
            let Some(prefix) = prefix_token_id else {
                bail!("the context is empty and the model names no BOS or EOS token to stand in for it");
            };
            input.push(prefix);
        }
        input.extend_from_slice(&targets[..targets.len() - 1]);
        let too_many = input.len().saturating_sub(max_model_len);
        input.drain(..too_many);
        if let Some(foreign) = input.iter().chain(&targets).find(|&&id| id as usize >= vocab_size) {
            bail!("token id {foreign} is outside the model's vocabulary of {vocab_size}");
        }
        let first_wanted = input.len() - targets.len();
        let scoring = Self {
            request_id: request.id,
            token_logprobs: Vec::with_capacity(targets.len()),
            targets,
            is_greedy: true,
            error: None,
        };
        Ok((scoring, input, first_wanted))
    }

    /// Takes the next rows of logits (`[rows, V]`, in order of position).
    pub fn take_rows(&mut self, logits: &[f32], vocab_size: usize) {
        let targets = &self.targets[self.token_logprobs.len()..];
        let scored: Result<Vec<_>, _> = logits
            .par_chunks_exact(vocab_size)
            .zip(targets.par_iter())
            .map(|(row, &target)| score_row(row, target))
            .collect();
        match scored {
            Ok(scored) => {
                self.is_greedy &= scored.iter().all(|&(_, is_greedy)| is_greedy);
                self.token_logprobs.extend(scored.iter().map(|&(logprob, _)| logprob));
            }
            Err(error) => self.error = Some(error.to_string()),
        }
    }

    /// Whether every token is scored or nothing more can come of it.
    pub fn is_finished(&self) -> bool {
        self.error.is_some() || self.token_logprobs.len() == self.targets.len()
    }

    /// The result.
    pub fn into_score(self) -> Score {
        if let Some(error) = self.error {
            return failed(self.request_id, error);
        }
        Score {
            id: self.request_id,
            logprob: self.token_logprobs.iter().map(|&logprob| f64::from(logprob)).sum(),
            is_greedy: self.is_greedy,
            token_logprobs: self.token_logprobs,
            error: None,
        }
    }
}

/// The result of a request that could not be served.
pub fn failed(id: String, error: String) -> Score {
    Score { id, logprob: f64::NEG_INFINITY, is_greedy: false, token_logprobs: Vec::new(), error: Some(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare(context: &[u32], continuation: &[u32], max_model_len: usize) -> Result<(Vec<u32>, usize)> {
        let request = ScoreRequest {
            id: "a".into(),
            context_token_ids: context.to_vec(),
            continuation_token_ids: continuation.to_vec(),
        };
        Scoring::prepare(request, Some(1), max_model_len, 50).map(|(_, input, first)| (input, first))
    }

    #[test]
    fn the_model_reads_all_but_the_last_token() {
        assert_eq!(prepare(&[2, 3], &[4, 5], 8).unwrap(), (vec![2, 3, 4], 1));
        assert_eq!(prepare(&[], &[4, 5], 8).unwrap(), (vec![1, 4], 0), "the prefix token stands in");
    }

    #[test]
    fn long_contexts_are_cut_on_the_left_and_long_continuations_refused() {
        assert_eq!(prepare(&[2, 3, 4, 5], &[6, 7], 3).unwrap(), (vec![4, 5, 6], 1));
        assert_eq!(prepare(&[2, 3, 4, 5], &[6, 7, 8], 3).unwrap(), (vec![5, 6, 7], 0));
        assert!(prepare(&[2], &[6, 7, 8, 9], 3).unwrap_err().to_string().contains("4 tokens"));
        assert!(prepare(&[2], &[], 3).is_err());
        assert!(prepare(&[2], &[50], 3).unwrap_err().to_string().contains("vocabulary of 50"));
    }
}
