//! What sharing saves, and that it changes nothing: counted on the toy model, compared to the bit on a real decoder.

use proptest::prelude::*;

use super::{
    engine_tests::{request, run, score},
    loader::tests::shape,
    test_support::{EOS, Toy},
    *,
};
use crate::{
    device::DtypeChoice,
    language_model::{Constraint, SamplingParams, TokenLogprob},
    model::{Decoder, DecoderConfig, InferenceDecoder},
    tokenizer::toy,
};

fn plain(max_new_tokens: usize) -> SamplingParams {
    SamplingParams { max_new_tokens, ignore_eos: true, ..SamplingParams::default() }
}

fn score_request(id: usize, context: &[u32], continuation: &[u32]) -> ScoreRequest {
    ScoreRequest {
        id: id.to_string(),
        context_token_ids: context.to_vec(),
        continuation_token_ids: continuation.to_vec(),
    }
}

#[test]
fn interleaved_prompts_are_each_read_once() {
    // Three beginnings of 40 tokens in turn; four seats and hardly more blocks than two of them need.
    let prompts: Vec<Vec<u32>> = (0..30).map(|which| [vec![which % 3; 40], vec![100 + which; 2]].concat()).collect();
    let requests: Vec<Request> = prompts.iter().enumerate().map(|(id, prompt)| request(id, prompt, plain(3))).collect();
    let tight = Toy { num_blocks: 26, max_num_seqs: 4, ..Toy::default() };
    let mut engine = tight.engine();
    let shared = run(&mut engine, requests.clone());
    let counters = engine.counters();
    assert_eq!(counters.computed_prompt_tokens, 3 * 40 + 30 * 2, "{counters:?}");
    assert_eq!(counters.prefix_cache_hit_tokens, 27 * 40);
    let mut engine = Toy { enable_prefix_caching: false, ..tight }.engine();
    assert_eq!(run(&mut engine, requests), shared);
    assert_eq!(engine.counters().prefix_cache_hit_tokens, 0);
    assert!(engine.counters().computed_prompt_tokens >= 30 * 42);
}

#[test]
fn the_answers_of_a_prompt_read_it_once() {
    let mut engine = Toy::default().engine();
    let sampling = SamplingParams { n: 5, temperature: 1.0, seed: 3, ..plain(6) };
    let answers = run(&mut engine, vec![request(0, &[7; 21], sampling)]);
    assert_eq!(engine.counters().computed_prompt_tokens, 21);
    assert!(answers.windows(2).any(|pair| pair[0].token_ids != pair[1].token_ids), "each has its own random stream");
    // Again, and from the cache: only the block that was never full is read.
    let again =
        run(&mut engine, vec![request(0, &[7; 21], SamplingParams { n: 5, temperature: 1.0, seed: 3, ..plain(6) })]);
    assert_eq!(again, answers);
    assert_eq!(engine.counters().computed_prompt_tokens, 21 + 1);
}

#[test]
fn the_continuations_of_a_context_read_it_once_and_choices_of_one_token_need_one_step() {
    let mut engine = Toy::default().engine();
    let context = [5; 23];
    let choices = (0..4).map(|id| score_request(id, &context, &[10 + id as u32])).collect();
    score(&mut engine, choices);
    assert_eq!((engine.counters().computed_prompt_tokens, engine.counters().steps), (23, 1));
    assert_eq!(engine.runner.largest.2, 1, "one row of logits for all four");
    let context = [6; 23];
    score(&mut engine, (0..4).map(|id| score_request(id, &context, &[10 + id as u32, 11, 12])).collect());
    assert_eq!(engine.counters().computed_prompt_tokens, 23 + 23 + 4 * 2, "then two tokens of each");
}

#[test]
fn continuations_that_begin_alike_are_read_once_too() {
    let context = [5; 23];
    let continuations = [[10, 11, 20], [10, 11, 21], [10, 14, 20], [16, 11, 20], [16, 11, 21], [16, 12, 20]];
    let requests = || (0..).zip(&continuations).map(|(id, it)| score_request(id, &context, it)).collect();
    let mut engine = Toy::default().engine();
    let shared = score(&mut engine, requests());
    // What is read of them: 10 11, 14 after 10, 16 11, 12 after 16.
    assert_eq!(engine.counters().computed_prompt_tokens, 23 + 6);
    let mut engine = Toy { enable_prefix_caching: false, ..Toy::default() }.engine();
    assert_eq!(score(&mut engine, requests()), shared);
}

#[test]
fn contexts_that_part_in_a_block_that_is_never_full_share_it_too() {
    let contexts = |choice: u32| [vec![5; 9], vec![choice; 3], vec![7; 2]].concat();
    let requests = || (0..3).map(|id| score_request(id, &contexts(10 + id as u32), &[8, 9])).collect::<Vec<_>>();
    let toy = Toy { block_size: 16, num_blocks: 40, ..Toy::default() };
    let mut engine = toy.engine();
    let shared = score(&mut engine, requests());
    // 15 tokens are read of the first, and of the others those behind the nine that are the same.
    assert_eq!(engine.counters().computed_prompt_tokens, 15 + 2 * 6);
    assert_eq!(score(&mut engine, requests()), shared);
    let mut engine = Toy { enable_prefix_caching: false, ..toy }.engine();
    assert_eq!(score(&mut engine, requests()), shared);
}

#[test]
fn after_an_error_nothing_cached_is_trusted() {
    let mut engine = Toy::default().engine();
    let requests: Vec<Request> = (0..3).map(|id| request(id, &[7; 20], plain(9))).collect();
    let expected = run(&mut Toy::default().engine(), requests.clone());
    // One token a step too many for the receiver: the error comes while sequences are under way.
    let mut num_results = 0;
    let mut receiver = |_| {
        num_results += 1;
        anyhow::bail!("disk full")
    };
    let short = request(9, &[7; 20], plain(2));
    let stream = requests.clone().into_iter().chain([short]);
    assert!(engine.generate(&mut stream.into_iter(), &mut receiver).is_err());
    assert_eq!(engine.scheduler.pool().num_cached(), 0);
    assert_eq!(run(&mut engine, requests), expected);
}

#[test]
fn a_constraint_that_leaves_no_choice_never_asks_the_model() {
    let mut engine = Toy::default().engine();
    let only = |logprobs| SamplingParams {
        constraint: Some(Constraint::Choice(vec!["hello world".into()])),
        logprobs,
        ..SamplingParams::default()
    };
    let free = run(&mut engine, vec![request(0, &[7; 5], only(None))]).remove(0);
    assert_eq!((free.text.as_str(), engine.counters().steps), ("hello world", 0));
    let asked = run(&mut engine, vec![request(0, &[7; 5], only(Some(0)))]).remove(0);
    assert_eq!(asked.token_ids, free.token_ids, "log-probabilities need the model, which changes no token");
    assert_eq!(asked.logprobs.unwrap().len(), asked.token_ids.len());
    assert_eq!(engine.counters().steps as usize, asked.token_ids.len());
}

/// Four layers with grouped queries and a sliding window in two of them.
fn decoder() -> InferenceDecoder {
    let config = DecoderConfig {
        vocab_size: super::test_support::VOCAB_SIZE,
        hidden_size: 32,
        intermediate_size: 48,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 16,
        max_position_embeddings: 128,
        sliding_window: vec![None, Some(9), None, Some(20)],
        initializer_range: 0.4,
        ..shape()
    };
    InferenceDecoder::from_decoder(&Decoder::random(config, 3).unwrap(), DtypeChoice::F32).unwrap()
}

fn real_engine(config: &EngineConfig, num_blocks: usize) -> Engine<ModelRunner> {
    let runner = ModelRunner::with_blocks(decoder(), num_blocks, config.block_size).unwrap();
    let parts = EngineParts {
        vocabulary: Vocabulary { tokenizer: toy::byte_level(None, "<|endoftext|>"), eos_token_ids: vec![EOS] },
        chat_template: None,
        identity: ModelIdentity { name: "random".into(), hash: String::new(), num_parameters: 0, dtype: "f32".into() },
        prefix_token_id: Some(EOS),
        max_model_len: 80,
    };
    Engine::new(runner, config, parts)
}

/// Tokens and the bits of their log-probabilities.
fn bits(completions: Vec<Completion>) -> Vec<(Vec<u32>, Vec<u32>)> {
    let bits = |logprobs: Vec<TokenLogprob>| logprobs.iter().map(|one| one.logprob.to_bits()).collect();
    completions.into_iter().map(|one| (one.token_ids, bits(one.logprobs.unwrap()))).collect()
}

fn generate(engine: &mut Engine<ModelRunner>, requests: &[Request]) -> Vec<Completion> {
    let mut completions = Vec::new();
    let take = &mut |completion| {
        completions.push(completion);
        Ok(())
    };
    engine.generate(&mut requests.iter().cloned(), take).unwrap();
    completions.sort_by_key(|completion| (completion.id.parse::<usize>().unwrap(), completion.index));
    completions
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_real_decoder_gives_the_same_bits_with_and_without_sharing(
        (block_size, max_num_seqs, max_num_batched_tokens, spare_blocks) in (1usize..20, 1usize..9, 5usize..90, 0usize..9),
        work in prop::collection::vec((0usize..3, 0usize..30, 1usize..4, 1usize..12), 1..10),
    ) {
        let requests: Vec<Request> = work
            .iter()
            .enumerate()
            .map(|(id, &(beginning, own, n, max_new_tokens))| {
                let prompt = [vec![beginning as u32 * 7 + 1; 33], (0..own as u32).collect()].concat();
                let sampling = SamplingParams {
                    n, temperature: 1.0, seed: id as u64, logprobs: Some(0), ..plain(max_new_tokens)
                };
                request(id, &prompt, sampling)
            })
            .collect();
        let alone = EngineConfig { max_num_seqs: 1, enable_prefix_caching: false, ..EngineConfig::default() };
        let expected = bits(generate(&mut real_engine(&alone, 5), &requests));
        let shared = EngineConfig { max_num_seqs, max_num_batched_tokens, block_size, ..EngineConfig::default() };
        let mut engine = real_engine(&shared, 80usize.div_ceil(block_size) + spare_blocks);
        prop_assert_eq!(&bits(generate(&mut engine, &requests)), &expected);
        prop_assert_eq!(&bits(generate(&mut engine, &requests)), &expected, "from a warm cache");
    }
}
