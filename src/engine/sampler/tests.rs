//! Tests of the sampler: frequencies, filters, seeds.

use proptest::prelude::*;

use super::{
    super::grammar::{Grammar, GrammarFactory},
    *,
};
use crate::{language_model::Constraint, tokenizer::toy};

fn params(temperature: f32) -> SamplingParams {
    SamplingParams { temperature, ..SamplingParams::default() }
}

fn softmax(row: &[f32], temperature: f32) -> Vec<f64> {
    let weights: Vec<f64> = row.iter().map(|&logit| (f64::from(logit) / f64::from(temperature)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

fn draws(sampling: &SamplingParams, row: &[f32], count: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(sampling, 0, &[]);
    (0..count).map(|_| sampler.sample(row, None).unwrap().0).collect()
}

/// Asserts that draws follow `expected`, at a chance of about one in a million of failing by accident.
fn assert_frequencies(drawn: &[u32], expected: &[f64]) {
    let mut chi_square = 0.0;
    let mut degrees = -1.0f64;
    for (id, &probability) in expected.iter().enumerate() {
        let observed = drawn.iter().filter(|&&token| token as usize == id).count() as f64;
        if probability == 0.0 {
            assert_eq!(observed, 0.0, "token {id} must never be drawn");
            continue;
        }
        let mean = probability * drawn.len() as f64;
        chi_square += (observed - mean).powi(2) / mean;
        degrees += 1.0;
    }
    // Wilson-Hilferty: the cube root of chi-square over its degrees of freedom is nearly normal.
    let spread = 2.0 / (9.0 * degrees);
    let z = ((chi_square / degrees).cbrt() - (1.0 - spread)) / spread.sqrt();
    assert!(z < 4.75, "chi-square {chi_square} at {degrees} degrees of freedom");
}

const ROW: [f32; 6] = [1.0, 2.5, -1.0, 2.0, 0.0, 1.0];

#[test]
fn frequencies_follow_the_softmax_at_every_temperature() {
    for temperature in [0.5, 1.0, 2.0] {
        assert_frequencies(&draws(&params(temperature), &ROW, 20_000), &softmax(&ROW, temperature));
    }
}

#[test]
fn frequencies_follow_the_filtered_distribution() {
    let renormalised = |keep: &[usize]| {
        let full = softmax(&ROW, 1.0);
        let total: f64 = keep.iter().map(|&id| full[id]).sum();
        (0..ROW.len()).map(|id| if keep.contains(&id) { full[id] / total } else { 0.0 }).collect::<Vec<_>>()
    };
    // Probabilities: 0.110, 0.492, 0.015, 0.298, 0.040, 0.110 (ids 0 to 5... of which 0 and 5 are equal).
    let top_k = SamplingParams { top_k: 3, ..params(1.0) };
    assert_frequencies(&draws(&top_k, &ROW, 20_000), &renormalised(&[0, 1, 3]));
    let top_p = SamplingParams { top_p: 0.7, ..params(1.0) };
    assert_frequencies(&draws(&top_p, &ROW, 20_000), &renormalised(&[1, 3]));
    let min_p = SamplingParams { min_p: 0.2, ..params(1.0) };
    assert_frequencies(&draws(&min_p, &ROW, 20_000), &renormalised(&[0, 1, 3, 5]));
}

#[test]
fn greedy_takes_the_lowest_of_equal_ids() {
    let mut sampler = Sampler::new(&params(0.0), 0, &[]);
    assert_eq!(sampler.sample(&[0.0, 3.0, 3.0], None).unwrap().0, 1);
}

#[test]
fn the_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens() {
    let mut row = [2.0, -2.0, 2.0, -2.0];
    penalise(&mut row, &HashSet::from([0, 1]), 2.0);
    assert_eq!(row, [1.0, -4.0, 2.0, -2.0]);
    let sampling = SamplingParams { repetition_penalty: 4.0, ..params(0.0) };
    let mut sampler = Sampler::new(&sampling, 0, &[0]);
    let tokens: Vec<u32> = (0..3).map(|_| sampler.sample(&[4.0, 3.0, 2.0], None).unwrap().0).collect();
    assert_eq!(tokens, [1, 2, 0], "prompt and output are both penalised, and only once each");
}

#[test]
fn a_mask_is_obeyed_and_an_empty_one_reported() {
    let tokenizer = toy::byte_level(None, "<|endoftext|>");
    let factory = GrammarFactory::new(&tokenizer, &[259]).unwrap();
    let grammar = Grammar::compile(&Constraint::Choice(vec!["cat".into()]), &factory).unwrap();
    let mask = grammar.start().allowed().unwrap();
    let mut sampler = Sampler::new(&params(1.0), 0, &[]);
    assert_eq!(sampler.sample(&[0.0; 280], Some(&mask)).unwrap().0, u32::from(b'c'));
    assert_eq!(sampler.sample(&ROW, Some(&mask)), Err(SamplerError::NothingAllowed), "a row that ends before `c`");
}

#[test]
fn damaged_logits_are_reported() {
    let mut sampler = Sampler::new(&params(1.0), 0, &[]);
    for damaged in [[0.0, f32::NAN], [0.0, f32::INFINITY], [f32::NEG_INFINITY, f32::NEG_INFINITY]] {
        assert_eq!(sampler.sample(&damaged, None), Err(SamplerError::NotFinite));
    }
    assert!(score_row(&[0.0, f32::NAN], 0).is_err());
}

#[test]
fn logprobs_are_those_of_the_raw_row() {
    let sampling = SamplingParams { logprobs: Some(2), top_k: 1, repetition_penalty: 9.0, ..params(0.3) };
    let (token_id, logprob) = Sampler::new(&sampling, 0, &[1]).sample(&ROW, None).unwrap();
    let logprob = logprob.unwrap();
    assert_eq!((token_id, logprob.token_id), (3, 3), "the penalty pushes token 1 down");
    let expected = softmax(&ROW, 1.0);
    assert!((f64::from(logprob.logprob) - expected[3].ln()).abs() < 1e-6);
    assert_eq!(logprob.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 3]);
    assert!((f64::from(logprob.top[0].1) - expected[1].ln()).abs() < 1e-6);
}

#[test]
fn answers_of_one_request_differ_and_seeds_repeat() {
    let row = vec![0.0; 1000];
    let sequence = |seed, index| {
        let mut sampler = Sampler::new(&SamplingParams { seed, ..params(1.0) }, index, &[]);
        (0..8).map(|_| sampler.sample(&row, None).unwrap().0).collect::<Vec<_>>()
    };
    assert_eq!(sequence(1, 0), sequence(1, 0));
    assert_ne!(sequence(1, 0), sequence(1, 1));
    assert_ne!(sequence(1, 0), sequence(2, 0));
}

proptest! {
    #[test]
    fn the_nucleus_is_the_smallest_set_with_enough_weight(
        weights in prop::collection::vec(1e-6f32..1.0, 1..300),
        top_p in 0.01f32..1.0,
    ) {
        let mut candidates: Vec<Candidate> =
            weights.iter().zip(0..).map(|(&weight, id)| Candidate { id, weight }).collect();
        let mut sorted = candidates.clone();
        keep_nucleus(&mut candidates, top_p);
        sorted.sort_by(Candidate::by_weight);
        prop_assert_eq!(&candidates[..], &sorted[..candidates.len()], "the heaviest, in order");
        let wanted = weights.iter().map(|&weight| f64::from(weight)).sum::<f64>() * f64::from(top_p);
        let mass = |kept: &[Candidate]| kept.iter().map(|kept| f64::from(kept.weight)).sum::<f64>();
        prop_assert!(mass(&candidates) >= wanted - 1e-9);
        prop_assert!(mass(&candidates[..candidates.len() - 1]) < wanted);
    }

    #[test]
    fn top_agrees_with_a_full_sort(row in prop::collection::vec((-9i32..9).prop_map(|x| x as f32), 1..200), k in 1usize..220) {
        let mut sorted: Vec<(u32, f32)> = row.iter().zip(0..).map(|(&logit, id)| (id, logit)).collect();
        sorted.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
        sorted.truncate(k);
        prop_assert_eq!(top(&row, k), sorted);
        prop_assert_eq!(top(&row, 1)[0].0 as usize, largest(&row).unwrap().0);
    }

    #[test]
    fn a_token_depends_only_on_its_row_and_its_stream(
        row in prop::collection::vec(-5.0f32..5.0, 2..60),
        seed in any::<u64>(),
        top_p in 0.1f32..=1.0,
        top_k in 0usize..70,
        min_p in 0.0f32..0.9,
    ) {
        let sampling = SamplingParams { seed, top_p, top_k, min_p, ..params(0.8) };
        let tokens = draws(&sampling, &row, 5);
        prop_assert_eq!(&tokens, &draws(&sampling, &row, 5));
        // A filter changes which token a number maps to, never how many numbers are used: the last draws of a stream
        // agree again once the row is plain.
        let plain = SamplingParams { seed, ..params(0.8) };
        let mut filtered = Sampler::new(&sampling, 0, &[]);
        let mut unfiltered = Sampler::new(&plain, 0, &[]);
        for _ in 0..5 {
            filtered.sample(&row, None).unwrap();
            unfiltered.sample(&row, None).unwrap();
        }
        prop_assert_eq!(filtered.rng.get_word_pos(), unfiltered.rng.get_word_pos());
    }
}
