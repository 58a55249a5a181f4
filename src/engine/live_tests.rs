//! Tests of driving the engine from outside, on a model that a wrong table would betray.

use std::{collections::BTreeMap, ops::Range};

use proptest::prelude::*;

use super::{
    live::{Event, Live},
    test_support::{Toy, ToyRunner},
};
use crate::language_model::{Completion, LanguageModel, Prompt, Request, SamplingParams};

fn request(prompt: &str, max_new_tokens: usize, n: usize) -> Request {
    let seed = prompt.len() as u64;
    let sampling = SamplingParams { max_new_tokens, temperature: 0.8, n, seed, ..SamplingParams::default() };
    Request { id: prompt.into(), prompt: Prompt::Text(prompt.into()), sampling }
}

/// Steps until idle; the completions by sequence, each with its streamed text.
fn drain(live: &mut Live<ToyRunner>) -> BTreeMap<u64, (Completion, String)> {
    let (mut texts, mut finished) = (BTreeMap::<u64, String>::new(), BTreeMap::new());
    while !live.is_idle() {
        for event in live.step().unwrap() {
            match event {
                Event::Progress { sequence_id, text, .. } => texts.entry(sequence_id).or_default().push_str(&text),
                Event::Finished { sequence_id, completion, rest } => {
                    let text = texts.remove(&sequence_id).unwrap_or_default() + &rest;
                    finished.insert(sequence_id, (completion, text));
                }
            }
        }
    }
    finished
}

fn alone(request: &Request) -> Vec<Completion> {
    let mut completions = Vec::new();
    let mut one = std::iter::once(request.clone());
    let mut keep = |completion| {
        completions.push(completion);
        Ok(())
    };
    Toy::default().engine().generate(&mut one, &mut keep).unwrap();
    completions.sort_by_key(|completion| completion.index);
    completions
}

#[test]
fn requests_that_join_a_running_batch_are_answered_as_if_alone() {
    let mut live = Live::new(Toy::default().engine());
    let requests = [request("first", 20, 1), request("the second", 12, 3), request("3", 25, 1)];
    let mut finished = BTreeMap::new();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for request in &requests {
        ranges.push(live.submit(request, true).unwrap());
        for event in live.step().unwrap().into_iter().chain(live.step().unwrap()) {
            assert!(matches!(event, Event::Progress { .. }), "nothing ends so soon: {event:?}");
        }
    }
    finished.append(&mut drain(&mut live));
    for (request, range) in requests.iter().zip(ranges) {
        let found: Vec<Completion> = range.map(|id| finished[&id].0.clone()).collect();
        assert_eq!(found, alone(request));
    }
}

#[test]
fn streamed_text_and_rest_are_the_whole_text() {
    let mut live = Live::new(Toy { eos_bonus: -100.0, ..Toy::default() }.engine());
    let mut asked = request("stream", 30, 2);
    asked.sampling.stop = vec!["zz".into(), "\u{1}".into()];
    asked.sampling.logprobs = Some(2);
    let ids = live.submit(&asked, true).unwrap();
    let mut logprobs = BTreeMap::<u64, Vec<_>>::new();
    let mut texts = BTreeMap::<u64, String>::new();
    while !live.is_idle() {
        for event in live.step().unwrap() {
            match event {
                Event::Progress { sequence_id, num_tokens, text, logprobs: new } => {
                    assert_eq!((num_tokens, new.len()), (1, 1));
                    logprobs.entry(sequence_id).or_default().extend(new);
                    texts.entry(sequence_id).or_default().push_str(&text);
                }
                Event::Finished { sequence_id, completion, rest } => {
                    assert_eq!(texts.remove(&sequence_id).unwrap() + &rest, completion.text);
                    assert_eq!(logprobs.remove(&sequence_id), completion.logprobs);
                }
            }
        }
    }
    assert!(texts.is_empty() && ids.count() == 2, "both answers came");
    assert_eq!(live.load().generation_tokens, live.load().prompt_tokens / 6 * 30, "nothing ended early");
}

#[test]
fn a_request_that_cannot_be_served_queues_nothing() {
    let mut live = Live::new(Toy::default().engine());
    let error = live.submit(&request(&"x".repeat(60), 1, 4), false).unwrap_err();
    assert!(error.to_string().contains("the context of 60"), "{error}");
    assert!(live.is_idle());
    assert_eq!(live.load().num_waiting, 0);
}

proptest! {
    #[test]
    fn cancelling_anything_at_any_time_changes_no_other_answer_and_frees_every_block(
        plan in prop::collection::vec((1usize..30, 1usize..20, 1usize..3, 0usize..4, any::<bool>()), 1..12),
    ) {
        // A pool so small that sequences are preempted, too.
        let toy = Toy { num_blocks: 18, ..Toy::default() };
        let mut live = Live::new(toy.engine());
        let mut finished = BTreeMap::new();
        let (mut kept, mut cancelled) = (Vec::new(), Vec::new());
        for (length, max_new_tokens, n, steps, is_cancelled) in plan {
            let asked = request(&"p".repeat(length), max_new_tokens, n);
            let ids = live.submit(&asked, false).unwrap();
            for _ in 0..steps {
                if live.is_idle() {
                    break;
                }
                for event in live.step().unwrap() {
                    if let Event::Finished { sequence_id, completion, .. } = event {
                        finished.insert(sequence_id, completion);
                    }
                }
            }
            if is_cancelled {
                ids.clone().for_each(|id| live.cancel(id));
                cancelled.extend(ids.filter(|id| !finished.contains_key(id)));
            } else {
                kept.push((asked, ids));
            }
        }
        finished.extend(drain(&mut live).into_iter().map(|(id, (completion, _))| (id, completion)));
        prop_assert_eq!(live.load().num_blocks_used, 0);
        prop_assert!(cancelled.iter().all(|id| !finished.contains_key(id)));
        for (asked, ids) in kept {
            let found: Vec<Completion> = ids.map(|id| finished[&id].clone()).collect();
            prop_assert_eq!(found, alone(&asked));
        }
    }
}
