//! The whole engine against a naive loop under random loads: arrivals between steps, several answers per prompt,
//! scorings, constraints, cancellations, tiny pools, and prompts that begin alike.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    engine_tests::naive,
    grammar::{Grammar, GrammarFactory},
    sampler::{Sampler, score_row},
    test_support::{EOS, Toy, ToyModel, ToyRunner},
    *,
};
use crate::{
    language_model::{Constraint, FinishReason, Prompt, SamplingParams},
    tokenizer::toy,
};

/// What happens between two steps.
#[derive(Debug, Clone)]
enum Event {
    Ask {
        prompt: Vec<u32>,
        sampling: SamplingParams,
    },
    Score {
        context: Vec<u32>,
        continuation: Vec<u32>,
    },
    /// Drops a sequence of those ever queued.
    Cancel(prop::sample::Index),
    Step(usize),
}

/// Prompts are made of a few pieces, so that they share beginnings of all lengths and are sometimes equal.
fn pieces(most: usize) -> impl Strategy<Value = Vec<u32>> {
    let piece = prop::sample::select(vec![&[1u32, 2, 3, 4, 5][..], &[9; 7], &[7], &[8, 8]]);
    prop::collection::vec(piece, 1..most).prop_map(|pieces| pieces.concat())
}

fn constraint() -> impl Strategy<Value = Option<Constraint>> {
    let schema = serde_json::json!({
        "type": "object",
        "properties": {"hello": {"type": "boolean"}, "he": {"enum": ["a", "hello"]}},
        "required": ["hello", "he"], "additionalProperties": false,
    });
    prop_oneof![
        4 => Just(None),
        1 => Just(Some(Constraint::JsonSchema(schema))),
        1 => Just(Some(Constraint::Regex("h[a-z]{1,5}hello!*".into()))),
        1 => Just(Some(Constraint::Choice(vec!["hello".into()]))),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let sampling = (1usize..24, prop_oneof![Just(0.0f32), Just(1.0)], 0u64..9, 1usize..5, any::<bool>(), constraint());
    let sampling = sampling.prop_map(|(max_new_tokens, temperature, seed, n, ignore_eos, constraint)| SamplingParams {
        max_new_tokens,
        temperature,
        seed,
        n,
        ignore_eos,
        constraint,
        ..SamplingParams::default()
    });
    prop_oneof![
        4 => (pieces(4), sampling).prop_map(|(prompt, sampling)| Event::Ask { prompt, sampling }),
        2 => (pieces(4), pieces(3)).prop_map(|(context, continuation)| Event::Score { context, continuation }),
        1 => any::<prop::sample::Index>().prop_map(Event::Cancel),
        4 => (1usize..6).prop_map(Event::Step),
    ]
}

fn toy() -> impl Strategy<Value = Toy> {
    (1usize..6, 1usize..8, 1usize..40, 0usize..16, any::<bool>()).prop_map(
        |(block_size, max_num_seqs, max_num_batched_tokens, spare_blocks, enable_prefix_caching)| Toy {
            block_size,
            max_num_seqs,
            max_num_batched_tokens,
            num_blocks: 45usize.div_ceil(block_size) + spare_blocks,
            max_model_len: 45,
            enable_prefix_caching,
            ..Toy::default()
        },
    )
}

/// What an answer must be: its tokens and its end.
fn expected_answer(model: ToyModel, request: &Request, index: usize, max_model_len: usize) -> (Vec<u32>, FinishReason) {
    let Some(constraint) = &request.sampling.constraint else { return naive(model, request, index, max_model_len) };
    let Prompt::TokenIds(prompt) = &request.prompt else { unreachable!("tests send ids") };
    let tokenizer = toy::byte_level(None, "<|endoftext|>");
    let factory = GrammarFactory::new(&tokenizer, &[EOS]).unwrap();
    let mut state = Grammar::compile(constraint, &factory).unwrap().start();
    let mut sampler = Sampler::new(&request.sampling, index, prompt);
    let limit = request.sampling.max_new_tokens.min(max_model_len - prompt.len());
    let mut output = Vec::new();
    loop {
        let mask = state.allowed().unwrap();
        let history = [prompt.as_slice(), &output].concat();
        let (token_id, _) = sampler.sample(&model.logits(&history), Some(&mask)).unwrap();
        output.push(token_id);
        if token_id == EOS || state.accept(token_id).unwrap() {
            return (output, FinishReason::Stop);
        }
        if output.len() == limit {
            return (output, FinishReason::Length);
        }
    }
}

fn expected_score(model: ToyModel, context: &[u32], continuation: &[u32]) -> (Vec<f32>, bool) {
    let whole = [context, continuation].concat();
    let rows: Vec<Vec<f32>> = (context.len()..whole.len()).map(|end| model.logits(&whole[..end])).collect();
    let scores = rows.iter().zip(continuation).map(|(row, &id)| score_row(row, id).unwrap());
    let (logprobs, are_greedy): (Vec<f32>, Vec<bool>) = scores.unzip();
    (logprobs, are_greedy.into_iter().all(|it| it))
}

/// A load on its way through an engine.
struct Run {
    engine: Engine<ToyRunner>,
    model: ToyModel,
    max_model_len: usize,
    /// What is still to come: per request id and answer.
    answers: BTreeMap<(String, usize), (Vec<u32>, FinishReason)>,
    scores: BTreeMap<String, (Vec<f32>, bool)>,
    /// Which answer (or, without an index, which score) a sequence makes.
    sequences: Vec<(u64, String, Option<usize>)>,
}

impl Run {
    fn event(&mut self, number: usize, event: Event) -> Result<(), TestCaseError> {
        let first = self.engine.next_sequence_id;
        let id = number.to_string();
        let outcomes = match event {
            Event::Ask { prompt, sampling } => {
                let request = Request { id: id.clone(), prompt: Prompt::TokenIds(prompt), sampling };
                for index in 0..request.sampling.n {
                    let expected = expected_answer(self.model, &request, index, self.max_model_len);
                    self.answers.insert((id.clone(), index), expected);
                    self.sequences.push((first + index as u64, id.clone(), Some(index)));
                }
                self.engine.admit(Incoming::Generate { request, is_streamed: false })
            }
            Event::Score { context, continuation } => {
                self.scores.insert(id.clone(), expected_score(self.model, &context, &continuation));
                self.sequences.push((first, id.clone(), None));
                self.engine.admit(Incoming::Score(ScoreRequest {
                    id,
                    context_token_ids: context,
                    continuation_token_ids: continuation,
                }))
            }
            Event::Cancel(index) => {
                if self.sequences.is_empty() {
                    return Ok(());
                }
                let (sequence, id, answer) = index.get(&self.sequences);
                let was_pending = match answer {
                    Some(answer) => self.answers.remove(&(id.clone(), *answer)).is_some(),
                    None => self.scores.remove(id).is_some(),
                };
                prop_assert_eq!(self.engine.scheduler.cancel(*sequence), was_pending);
                return Ok(());
            }
            Event::Step(num_steps) => {
                let mut outcomes = Vec::new();
                for _ in 0..num_steps {
                    if !self.engine.scheduler.is_idle() {
                        outcomes.extend(self.engine.step().map_err(|error| TestCaseError::fail(error.to_string()))?);
                    }
                }
                outcomes
            }
        };
        self.check(outcomes)
    }

    fn check(&mut self, outcomes: Vec<Outcome>) -> Result<(), TestCaseError> {
        for outcome in outcomes {
            match outcome {
                Outcome::Completion(got) => {
                    let expected = self.answers.remove(&(got.id.clone(), got.index));
                    prop_assert_eq!(Some((got.token_ids, got.finish_reason)), expected, "{}: {:?}", got.id, got.error);
                }
                Outcome::Score(got) => {
                    let expected = self.scores.remove(&got.id);
                    prop_assert_eq!(Some((got.token_logprobs, got.is_greedy)), expected, "{}: {:?}", got.id, got.error);
                }
                Outcome::Text(text) => prop_assert!(false, "nothing is streamed: {}", text),
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn the_engine_does_what_a_naive_loop_does_whatever_happens_meanwhile(
        toy in toy(),
        events in prop::collection::vec(event(), 1..40),
    ) {
        let mut run = Run {
            engine: toy.engine(),
            model: ToyModel { eos_bonus: toy.eos_bonus },
            max_model_len: toy.max_model_len,
            answers: BTreeMap::new(),
            scores: BTreeMap::new(),
            sequences: Vec::new(),
        };
        for (number, event) in events.into_iter().enumerate() {
            run.event(number, event)?;
        }
        run.event(usize::MAX, Event::Step(10_000))?;
        prop_assert!(run.engine.scheduler.is_idle());
        prop_assert!(run.answers.is_empty() && run.scores.is_empty(), "{:?} {:?}", run.answers, run.scores);
        prop_assert_eq!(run.engine.scheduler.pool().num_free(), toy.num_blocks);
        prop_assert!(run.engine.runner.largest.0 <= toy.max_num_batched_tokens);
        prop_assert!(run.engine.runner.largest.1 <= toy.max_num_seqs);
        prop_assert!(toy.enable_prefix_caching || run.engine.counters().prefix_cache_hit_tokens == 0);
    }
}
