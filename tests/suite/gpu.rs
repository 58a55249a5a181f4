//! The decoder on a GPU that the host plays: transformers' logits and greedy tokens, with the launches of a real GPU.

use glan::{
    device::DtypeChoice,
    model::{GpuCache, GpuDecoder, PagedBatch, PagedSequence},
};
use glan_kernels::gpu::{Float, Gpu};
use half::bf16;

use crate::{
    parity::{Expected, FAMILIES, argmax, fixture, load_packed, read, step},
    support::glan,
    tolerance,
};

#[allow(
    dead_code,
    unsafe_code,
    clippy::print_stdout,
    reason = "shared with the kernels' own tests, which use all of it"
)]
#[path = "../../kernels/tests/dialects/host.rs"]
mod host;

const BLOCK_SIZE: usize = 16;
const NUM_BLOCKS: usize = 40;

#[allow(clippy::print_stdout, reason = "says what it skips")]
fn device() -> Option<Gpu> {
    let device = host::device(1);
    if device.is_none() {
        println!("skipped: no C++ compiler to run the GPU kernels with");
    }
    device
}

/// A batch of sequences, each some new tokens behind `start` others; block tables scattered over the pool.
fn batch(sequences: &[(&[u32], usize)], logit_rows: Vec<u32>) -> PagedBatch {
    let mut batch = PagedBatch { logit_rows, ..PagedBatch::default() };
    let blocks_each = NUM_BLOCKS / sequences.len();
    for (which, &(tokens, start)) in sequences.iter().enumerate() {
        let end = start + tokens.len();
        let block = |i: usize| ((which * blocks_each + i) * 7 % NUM_BLOCKS) as u32;
        let slot = |position: usize| block(position / BLOCK_SIZE) * 16 + (position % BLOCK_SIZE) as u32;
        batch.token_ids.extend(tokens);
        batch.positions.extend(start as u32..end as u32);
        batch.slot_mapping.extend((start..end).map(slot));
        let block_table = (0..end.div_ceil(BLOCK_SIZE)).map(block).collect();
        batch.sequences.push(PagedSequence { query_len: tokens.len(), context_len: end, block_table });
    }
    batch
}

fn open<F: Float>(family: &str, gpu: &Gpu) -> (GpuDecoder<F>, GpuCache<F>) {
    let decoder = GpuDecoder::load(&fixture(family), gpu).unwrap();
    let cache = decoder.kv_cache(NUM_BLOCKS, BLOCK_SIZE).unwrap();
    (decoder, cache)
}

#[test]
fn logits_and_greedy_tokens_are_those_of_transformers() {
    let Some(gpu) = device() else { return };
    for family in FAMILIES {
        let (decoder, mut cache) = open::<f32>(family, &gpu);
        let expected: Expected = read(family, "expected.json");
        for ((prompt, logits), greedy) in expected.prompts.iter().zip(&expected.logits).zip(&expected.greedy) {
            let all_rows = (0..prompt.len() as u32).collect();
            let got = decoder.forward_paged(&batch(&[(prompt, 0)], all_rows), &mut cache).unwrap();
            // Of long prompts the fixture keeps the last rows.
            let expected = logits.concat();
            tolerance::close(family, &got[got.len() - expected.len()..], &expected, tolerance::LOGITS);
            let mut row = got[got.len() - decoder.config.vocab_size..].to_vec();
            for (done, token) in greedy.iter().enumerate() {
                let best = argmax(&row);
                assert_eq!(best, *token, "{family}: token {done} after {prompt:?}");
                row = decoder.forward_paged(&batch(&[(&[best], prompt.len() + done)], vec![0]), &mut cache).unwrap();
            }
        }
    }
}

#[test]
fn a_mixed_batch_gives_each_sequence_what_it_gets_alone_and_bf16_is_near() {
    let Some(gpu) = device() else { return };
    for family in ["llama", "mistral_sliding", "qwen2", "qwen3"] {
        let prompts: [Vec<u32>; 2] = [(3..40).collect(), (5..25).collect()];
        let cpu = load_packed(family, DtypeChoice::F32);
        let mut alone = cpu.kv_cache(NUM_BLOCKS, BLOCK_SIZE).unwrap();
        let expected: Vec<f32> =
            prompts.iter().flat_map(|prompt| step(&cpu, &mut alone, prompt, 0).pop().unwrap()).collect();

        let run = |first: &dyn Fn(&PagedBatch) -> Vec<f32>| {
            // A whole prompt beside the first part of another; then that one's rest beside nothing.
            let both = batch(&[(&prompts[0][..30], 0), (&prompts[1], 0)], vec![49]);
            let second = first(&both);
            let rest = batch(&[(&prompts[0][30..], 30), (&[], 0)], vec![6]);
            [first(&PagedBatch { sequences: rest.sequences[..1].to_vec(), ..rest }), second].concat()
        };
        let (decoder, cache) = open::<f32>(family, &gpu);
        let cache = std::cell::RefCell::new(cache);
        let got = run(&|batch| decoder.forward_paged(batch, &mut cache.borrow_mut()).unwrap());
        tolerance::close(family, &got, &expected, tolerance::LOGITS);

        let (decoder, cache) = open::<bf16>(family, &gpu);
        let cache = std::cell::RefCell::new(cache);
        let got = run(&|batch| decoder.forward_paged(batch, &mut cache.borrow_mut()).unwrap());
        tolerance::close_norm(family, &got, &expected, tolerance::GPU_BF16_LOGITS);
    }
}

#[test]
fn a_device_that_is_not_there_is_a_usage_error_that_says_why() {
    let folder = tempfile::tempdir().unwrap();
    for (device, reason) in [("cuda", "device `cuda` was asked for, but"), ("metal", "carries no Metal kernels")] {
        let outcome = glan(folder.path(), &["selftest", "--device", device]);
        // Where there is a GPU: training is not on it yet.
        let parts: &[&str] = if outcome.stderr.contains("training on") { &["device"] } else { &[reason, "cpu"] };
        outcome.expect_code(2).expect_stderr(parts);
    }
}
