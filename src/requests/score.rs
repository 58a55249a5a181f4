//! Lines of `glan score`, and how a pair of texts becomes token ids.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    fields::Fields,
    job::{Job, OnAnswer, Tally},
    lines::Line,
};
use crate::{
    chat_template::encode_prompt,
    language_model::{LanguageModel, Score, ScoreRequest},
    tokenizer::Tokenizer,
};

/// One score, as a line of the output. Numbers are `null` where the request could not be served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreRow {
    /// The request's id, as given; `null` where the line had none.
    pub id: Value,
    /// Sum of the natural-log probabilities of the continuation's tokens.
    pub logprob: Option<f64>,
    /// Whether every token of the continuation is the likeliest at its place.
    pub is_greedy: Option<bool>,
    /// Tokens of the continuation.
    pub num_tokens: usize,
    /// One log-probability per token.
    pub token_logprobs: Vec<f32>,
    /// What went wrong with this request alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a line asks for.
pub enum Pair {
    /// Two texts, tokenised together.
    Text {
        /// Before the continuation.
        context: String,
        /// What is scored.
        continuation: String,
    },
    /// Ids, taken as they are.
    TokenIds {
        /// Before the continuation.
        context: Vec<u32>,
        /// What is scored.
        continuation: Vec<u32>,
    },
}

/// `glan score`.
pub struct ScoreJob;

impl Job for ScoreJob {
    type Parsed = Pair;
    type Request = ScoreRequest;
    type Answer = Score;
    type Row = ScoreRow;
    type Frame = ();

    fn parse(_: &Value, fields: &mut Fields) -> Result<Pair> {
        let context = fields.take_string("context")?;
        let continuation = fields.take_string("continuation")?;
        let context_ids = fields.take_token_ids("context_token_ids")?;
        let continuation_ids = fields.take_token_ids("continuation_token_ids")?;
        match (continuation, continuation_ids) {
            (Some(continuation), None) if context_ids.is_none() => {
                Ok(Pair::Text { context: context.context("field `context` is missing")?, continuation })
            }
            (None, Some(continuation)) if context.is_none() => {
                let context = context_ids.context("field `context_token_ids` is missing")?;
                Ok(Pair::TokenIds { context, continuation })
            }
            (None, None) => bail!("field `continuation` is missing (or `continuation_token_ids`)"),
            _ => bail!("texts and token ids are mixed; give both as one or both as the other"),
        }
    }

    fn num_answers(_: &Pair) -> usize {
        1
    }

    fn frame(_: &Line<Pair>) {}

    fn prepare(pair: Pair, id: String, tokenizer: &Tokenizer) -> Result<Vec<ScoreRequest>> {
        let (context_token_ids, continuation_token_ids) = match pair {
            Pair::Text { context, continuation } => encode_pair(tokenizer, &context, &continuation)?,
            Pair::TokenIds { context, continuation } => (context, continuation),
        };
        Ok(vec![ScoreRequest { id, context_token_ids, continuation_token_ids }])
    }

    fn serve(
        model: &mut dyn LanguageModel,
        requests: &mut dyn Iterator<Item = ScoreRequest>,
        on_answer: &mut OnAnswer<Score>,
    ) -> Result<()> {
        model.score(requests, &mut |score| {
            let id = score.id.clone();
            on_answer(&id, 0, score)
        })
    }

    fn rows(id: Value, (): (), answers: Vec<Score>, _: &Tokenizer) -> Vec<ScoreRow> {
        let row = |answer: Score| ScoreRow {
            id: id.clone(),
            logprob: answer.error.is_none().then_some(answer.logprob),
            is_greedy: answer.error.is_none().then_some(answer.is_greedy),
            num_tokens: answer.token_logprobs.len(),
            token_logprobs: answer.token_logprobs,
            error: answer.error,
        };
        answers.into_iter().map(row).collect()
    }

    fn failed(line_number: usize, error: &anyhow::Error) -> Score {
        Score {
            id: String::new(),
            logprob: f64::NEG_INFINITY,
            is_greedy: false,
            token_logprobs: Vec::new(),
            error: Some(format!("line {line_number}: {error:#}")),
        }
    }

    fn tally(row: &ScoreRow) -> Tally<'_> {
        Tally {
            id: &row.id,
            index: None,
            is_error: row.error.is_some(),
            prompt_tokens: 0,
            completion_tokens: row.num_tokens,
        }
    }
}

/// Token ids of a context and of the continuation after it, as lm-evaluation-harness makes them.
///
/// The continuation is tokenised in its context: white space at the context's end moves to it, both are encoded as one
/// text, and what lies past the context's own number of tokens is the continuation. An empty context becomes the prefix
/// token (BOS, else EOS); a tokenizer that names neither leaves it empty, for the engine to decide.
///
/// **Source**: lm-evaluation-harness, `TemplateLM.loglikelihood` and `_encode_pair`.
pub fn encode_pair(tokenizer: &Tokenizer, context: &str, continuation: &str) -> Result<(Vec<u32>, Vec<u32>)> {
    if context.is_empty() {
        let mut continuation = tokenizer.encode(continuation, false)?;
        let prefix = tokenizer.bos_token_id().or(tokenizer.eos_token_id());
        // A continuation that brings the prefix token along must not get it twice.
        if continuation.len() > 1 && continuation.first().copied() == prefix {
            continuation.remove(0);
        }
        return Ok((prefix.into_iter().collect(), continuation));
    }
    let stripped = context.trim_end();
    let whole = encode_prompt(tokenizer, &format!("{context}{continuation}"))?;
    let context = encode_prompt(tokenizer, stripped)?;
    let continuation = whole.get(context.len()..).unwrap_or_default().to_vec();
    Ok((context, continuation))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::toy;

    #[test]
    fn white_space_moves_to_the_continuation_which_is_tokenised_in_context() {
        let tokenizer = toy::byte_level(None, "<|endoftext|>");
        let (context, continuation) = encode_pair(&tokenizer, "a ", "b").unwrap();
        assert_eq!((context, continuation), (vec![97], vec![32, 98]));
        // `h` + `e` merge across the joint into one token: the count decides, and nothing is left to score.
        let (context, continuation) = encode_pair(&tokenizer, "h", "e").unwrap();
        assert_eq!((context.len(), continuation.len()), (1, 0));
    }

    #[test]
    fn an_empty_context_becomes_the_prefix_token() {
        let without_bos = toy::byte_level(None, "<|endoftext|>");
        assert_eq!(encode_pair(&without_bos, "", "b").unwrap(), (vec![259], vec![98]));
        let with_bos = toy::byte_level(Some("<s>"), "</s>");
        assert_eq!(encode_pair(&with_bos, "", "b").unwrap(), (vec![262], vec![98]));
        assert_eq!(encode_pair(&with_bos, "", "<s>b").unwrap(), (vec![262], vec![98]), "not doubled");
    }

    #[test]
    fn a_tokenizer_that_adds_bos_adds_it_once_and_to_the_context() {
        let tokenizer = toy::sentencepiece();
        let (context, continuation) = encode_pair(&tokenizer, "a b", " c").unwrap();
        assert_eq!(context[0], 1);
        assert!(!continuation.contains(&1));
        assert_eq!(encode_prompt(&tokenizer, "<s>a").unwrap().iter().filter(|&&id| id == 1).count(), 1);
    }

    #[test]
    fn texts_and_ids_are_not_mixed() {
        let parse = |line: &str| ScoreJob::parse(&Value::Null, &mut Fields::parse(line.as_bytes())?);
        assert!(matches!(parse(r#"{"context": "a", "continuation": "b"}"#), Ok(Pair::Text { .. })));
        assert!(matches!(
            parse(r#"{"context_token_ids": [], "continuation_token_ids": [1]}"#),
            Ok(Pair::TokenIds { .. })
        ));
        for (line, expected) in [
            (r#"{"context": "a", "continuation_token_ids": [1]}"#, "mixed"),
            (r#"{"context_token_ids": [1], "continuation": "b"}"#, "mixed"),
            (r#"{"continuation": "b"}"#, "field `context` is missing"),
            (r#"{"context": "b"}"#, "field `continuation` is missing"),
            (r#"{"context": 3, "continuation": "b"}"#, "field `context`"),
        ] {
            let error = parse(line).err().expect(line).to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
