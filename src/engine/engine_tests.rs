//! The batched engine against a naive loop, on the toy model: the same tokens whatever the batch, the pool or the
//! preemptions.

use anyhow::{Result, bail};
use proptest::prelude::*;

use super::{
    sampler::{Sampler, score_row},
    test_support::{EOS, Toy, ToyModel, ToyRunner},
    *,
};
use crate::language_model::{Constraint, FinishReason, Prompt, SamplingParams};

pub(super) fn request(id: usize, prompt: &[u32], sampling: SamplingParams) -> Request {
    Request { id: id.to_string(), prompt: Prompt::TokenIds(prompt.to_vec()), sampling }
}

fn text_request(text: &str, sampling: SamplingParams) -> Request {
    Request { id: "a".into(), prompt: Prompt::Text(text.into()), sampling }
}

pub(super) fn run(engine: &mut Engine<ToyRunner>, requests: Vec<Request>) -> Vec<Completion> {
    let mut completions = Vec::new();
    let mut take = |completion| {
        completions.push(completion);
        Ok(())
    };
    engine.generate(&mut requests.into_iter(), &mut take).unwrap();
    completions.sort_by_key(|completion: &Completion| (completion.id.parse::<usize>().unwrap_or(0), completion.index));
    completions
}

pub(super) fn score(engine: &mut Engine<ToyRunner>, requests: Vec<ScoreRequest>) -> Vec<Score> {
    let mut scores = Vec::new();
    let mut take = |score| {
        scores.push(score);
        Ok(())
    };
    engine.score(&mut requests.into_iter(), &mut take).unwrap();
    scores.sort_by_key(|score: &Score| score.id.parse::<usize>().unwrap_or(0));
    scores
}

/// One token at a time, no cache, no batch.
pub(super) fn naive(
    model: ToyModel,
    request: &Request,
    index: usize,
    max_model_len: usize,
) -> (Vec<u32>, FinishReason) {
    let Prompt::TokenIds(prompt) = &request.prompt else { unreachable!("tests send ids") };
    let mut sampler = Sampler::new(&request.sampling, index, prompt);
    let mut history = prompt.clone();
    let limit = request.sampling.max_new_tokens.min(max_model_len - prompt.len());
    loop {
        let (token_id, _) = sampler.sample(&model.logits(&history), None).unwrap();
        history.push(token_id);
        let output = history[prompt.len()..].to_vec();
        if token_id == EOS && !request.sampling.ignore_eos {
            return (output, FinishReason::Stop);
        }
        if output.len() == limit {
            return (output, FinishReason::Length);
        }
    }
}

fn toy() -> impl Strategy<Value = Toy> {
    (1usize..5, 1usize..10, 1usize..40, 0usize..20, 0.0f32..4.0).prop_map(
        |(block_size, max_num_seqs, max_num_batched_tokens, spare_blocks, eos_bonus)| Toy {
            eos_bonus,
            block_size,
            max_num_seqs,
            max_num_batched_tokens,
            num_blocks: 40usize.div_ceil(block_size) + spare_blocks,
            max_model_len: 40,
            ..Toy::default()
        },
    )
}

fn sampling() -> impl Strategy<Value = SamplingParams> {
    (1usize..30, prop_oneof![Just(0.0f32), Just(1.0)], any::<u64>(), 1usize..3, any::<bool>(), 1.0f32..1.5).prop_map(
        |(max_new_tokens, temperature, seed, n, ignore_eos, repetition_penalty)| SamplingParams {
            max_new_tokens,
            temperature,
            seed,
            n,
            ignore_eos,
            repetition_penalty,
            ..SamplingParams::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_batched_engine_equals_a_naive_loop_token_for_token(
        toy in toy(),
        work in prop::collection::vec((prop::collection::vec(0u32..275, 1..30), sampling()), 1..16),
    ) {
        let requests: Vec<Request> =
            work.into_iter().enumerate().map(|(id, (prompt, sampling))| request(id, &prompt, sampling)).collect();
        let mut engine = toy.engine();
        let model = ToyModel { eos_bonus: toy.eos_bonus };
        let expected: Vec<_> = requests
            .iter()
            .flat_map(|request| (0..request.sampling.n).map(move |index| naive(model, request, index, toy.max_model_len)))
            .collect();
        let completions = run(&mut engine, requests);
        let got: Vec<_> =
            completions.into_iter().map(|completion| (completion.token_ids, completion.finish_reason)).collect();
        prop_assert_eq!(got, expected);
        prop_assert!(engine.runner.largest.0 <= toy.max_num_batched_tokens);
        prop_assert!(engine.runner.largest.1 <= toy.max_num_seqs);
        prop_assert_eq!(engine.scheduler.pool().num_free(), toy.num_blocks);
    }

    #[test]
    fn scores_equal_those_of_one_sequence_at_a_time(
        toy in toy(),
        work in prop::collection::vec(
            (prop::collection::vec(0u32..275, 0..50), prop::collection::vec(0u32..275, 1..20)), 1..10),
    ) {
        let model = ToyModel { eos_bonus: toy.eos_bonus };
        let mut expected = Vec::new();
        for (context, continuation) in &work {
            let mut whole = if context.is_empty() { vec![EOS] } else { context.clone() };
            whole.extend(continuation);
            whole.drain(..whole.len().saturating_sub(toy.max_model_len + 1));
            let first = whole.len() - continuation.len();
            let rows: Vec<Vec<f32>> = (first..whole.len()).map(|end| model.logits(&whole[..end])).collect();
            let scores = rows.iter().zip(continuation).map(|(row, &id)| score_row(row, id).unwrap());
            let (logprobs, are_greedy): (Vec<f32>, Vec<bool>) = scores.unzip();
            expected.push((logprobs, are_greedy.into_iter().all(|it| it)));
        }
        let requests = work.into_iter().enumerate().map(|(id, (context_token_ids, continuation_token_ids))| {
            ScoreRequest { id: id.to_string(), context_token_ids, continuation_token_ids }
        });
        let scores = score(&mut toy.engine(), requests.collect());
        let got: Vec<_> = scores.into_iter().map(|score| (score.token_logprobs, score.is_greedy)).collect();
        prop_assert_eq!(got, expected);
    }
}

#[test]
fn small_pools_preempt_and_still_give_the_same_tokens() {
    let sampling = SamplingParams { max_new_tokens: 40, ignore_eos: true, ..SamplingParams::default() };
    let requests: Vec<Request> = (0..6).map(|id| request(id, &[id as u32; 3], sampling.clone())).collect();
    let mut roomy = Toy { num_blocks: 200, ..Toy::default() }.engine();
    let mut tight = Toy { num_blocks: 15, ..Toy::default() }.engine();
    let expected = run(&mut roomy, requests.clone());
    assert_eq!(run(&mut tight, requests), expected);
    assert_eq!(roomy.counters().preemptions, 0);
    assert!(tight.counters().preemptions > 0, "the pool was meant to be too small");
}

#[test]
fn what_cannot_be_served_fails_alone() {
    let mut engine = Toy::default().engine();
    let plain = SamplingParams { max_new_tokens: 4, ignore_eos: true, ..SamplingParams::default() };
    let bad_schema = SamplingParams { constraint: Some(Constraint::Regex("(".into())), ..plain.clone() };
    let requests = vec![
        request(0, &[1; 60], plain.clone()),
        request(1, &[1; 59], plain.clone()),
        request(2, &[999], SamplingParams { n: 2, ..plain.clone() }),
        request(3, &[1], SamplingParams { top_p: 0.0, ..plain.clone() }),
        request(4, &[1], bad_schema),
        Request { prompt: Prompt::Messages(Vec::new()), ..request(5, &[], plain.clone()) },
        request(6, &[], plain),
    ];
    let completions = run(&mut engine, requests);
    let errors: Vec<&str> = completions.iter().map(|completion| completion.error.as_deref().unwrap_or("")).collect();
    assert!(errors[0].contains("60 tokens"), "{}", errors[0]);
    assert_eq!((errors[1], completions[1].token_ids.len()), ("", 1), "one new token fits");
    assert_eq!(completions[1].finish_reason, FinishReason::Length);
    assert!(errors[2].contains("token id 999") && errors[3] == errors[2], "one result per answer");
    assert_eq!((completions[2].index, completions[3].index), (0, 1));
    assert!(errors[4].contains("top_p is 0"), "{}", errors[4]);
    assert!(errors[5].contains("regular expression"), "{}", errors[5]);
    assert!(errors[6].contains("no chat template"), "{}", errors[6]);
    assert_eq!((errors[7], completions[7].token_ids.len()), ("", 4), "an empty prompt begins with the prefix token");
    assert!(completions.iter().all(|one| one.error.is_some() == (one.finish_reason == FinishReason::Error)));
}

#[test]
fn requests_are_pulled_only_when_a_seat_is_free() {
    let mut engine = Toy { max_num_seqs: 3, enable_prefix_caching: false, ..Toy::default() }.engine();
    let pulled = std::cell::Cell::new(0);
    let sampling = SamplingParams { max_new_tokens: 5, ..SamplingParams::default() };
    let mut requests = (0..50).map(|id| {
        pulled.set(pulled.get() + 1);
        request(id, &[id as u32], sampling.clone())
    });
    let mut finished = 0;
    let mut on_result = |_| {
        finished += 1;
        assert!(pulled.get() - finished < 3, "{} pulled, {finished} finished", pulled.get());
        Ok(())
    };
    engine.generate(&mut requests, &mut on_result).unwrap();
    assert_eq!(finished, 50);
}

#[test]
fn an_error_of_the_receiver_ends_the_run_and_leaves_the_engine_usable() {
    let mut engine = Toy::default().engine();
    let requests: Vec<Request> = (0..5).map(|id| request(id, &[7], SamplingParams::default())).collect();
    let failed: Result<()> = engine.generate(&mut requests.clone().into_iter(), &mut |_| bail!("disk full"));
    assert_eq!(failed.unwrap_err().to_string(), "disk full");
    assert_eq!(run(&mut engine, requests).len(), 5);
}

#[test]
fn the_stop_token_counts_but_has_no_text() {
    let mut engine = Toy { eos_bonus: 100.0, ..Toy::default() }.engine();
    let completion = &run(&mut engine, vec![text_request("hello", SamplingParams::default())])[0];
    assert_eq!((completion.token_ids.as_slice(), completion.text.as_str()), (&[EOS][..], ""));
    assert_eq!(completion.finish_reason, FinishReason::Stop);
    assert_eq!(completion.prompt_tokens, 4, "`he` is one token");
}

#[test]
fn constraints_are_obeyed_and_end_the_output() {
    let mut engine = Toy::default().engine();
    let choices = ["yes", "no", "yesterday"].map(String::from).to_vec();
    let request = |seed| {
        let constraint = Some(Constraint::Choice(choices.clone()));
        let sampling = SamplingParams { constraint, temperature: 1.0, seed, ..SamplingParams::default() };
        Request { id: seed.to_string(), ..text_request("?", sampling) }
    };
    let completions = run(&mut engine, (0..60).map(request).collect());
    for choice in &choices {
        assert!(completions.iter().any(|completion| completion.text == *choice), "`{choice}` never came");
    }
    assert!(completions.iter().all(|completion| choices.contains(&completion.text)));
    assert!(completions.iter().all(|completion| completion.finish_reason == FinishReason::Stop));
    let ended_by_eos = completions.iter().filter(|completion| completion.token_ids.ends_with(&[EOS]));
    assert!(ended_by_eos.into_iter().all(|completion| completion.text == "yes"), "where more could have come");
}

#[test]
fn a_stop_string_ends_the_output_and_is_cut_from_the_text() {
    let mut engine = Toy::default().engine();
    let free = SamplingParams { max_new_tokens: 30, ignore_eos: true, ..SamplingParams::default() };
    let whole = run(&mut engine, vec![text_request("hello", free.clone())]).remove(0);
    let stop: String = whole.text.chars().skip(6).take(2).collect();
    let place = whole.text.find(&stop).unwrap();
    let stopped = SamplingParams { stop: vec![stop], ..free };
    let completion = run(&mut engine, vec![text_request("hello", stopped.clone())]).remove(0);
    assert_eq!(completion.text, whole.text[..place]);
    assert_eq!(completion.finish_reason, FinishReason::Stop);
    assert!(whole.token_ids.starts_with(&completion.token_ids), "the tokens of the stop string are kept");
    let mut shown = String::new();
    let on_text = &mut |text: &str| {
        shown.push_str(text);
        Ok(())
    };
    let streamed = engine.generate_streaming(text_request("hello", stopped), on_text).unwrap();
    assert_eq!(streamed, [completion]);
    assert_eq!(shown, streamed[0].text);
}

#[test]
fn scores_that_cannot_be_made_fail_alone() {
    let mut engine = Toy::default().engine();
    let request = |id: usize, continuation: Vec<u32>| ScoreRequest {
        id: id.to_string(),
        context_token_ids: vec![1, 2],
        continuation_token_ids: continuation,
    };
    let scores = score(&mut engine, vec![request(0, vec![3; 61]), request(1, vec![3; 60]), request(2, Vec::new())]);
    assert!(scores[0].error.as_deref().unwrap().contains("61 tokens"));
    assert_eq!((scores[1].error.as_deref(), scores[1].token_logprobs.len()), (None, 60));
    assert!(scores[2].error.is_some());
}
