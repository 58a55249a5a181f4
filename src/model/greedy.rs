//! Continues prompts on the training weights, to look at a run on its way.
//!
//! A token costs a pass over the whole sequence: slower than the engine, but without a second copy of the weights and
//! without a cache, whatever is trained. Nothing is drawn, so no random stream moves.

use anyhow::Result;
use glan_kernels::{embedding, matmul::linear, rms_norm};

use super::{
    Adapter, Decoder,
    layer::{self, Context},
};

/// The likeliest continuations of `prompts`: of each at most `max_new_tokens`, up to a token of `eos_token_ids` (which is
/// left out), or to the model's longest sequence. An empty prompt gets none.
pub fn greedy(
    model: &Decoder,
    adapter: Option<&Adapter>,
    prompts: &[Vec<u32>],
    max_new_tokens: usize,
    eos_token_ids: &[u32],
) -> Result<Vec<Vec<u32>>> {
    let mut sequences: Vec<Vec<u32>> = prompts.to_vec();
    let context = model.config.max_position_embeddings;
    let mut open: Vec<usize> = (0..prompts.len()).filter(|&i| !prompts[i].is_empty()).collect();
    for _ in 0..max_new_tokens {
        open.retain(|&i| sequences[i].len() < context);
        if open.is_empty() {
            break;
        }
        let next = next_tokens(model, adapter, &open.iter().map(|&i| sequences[i].as_slice()).collect::<Vec<_>>())?;
        let mut still_open = Vec::with_capacity(open.len());
        for (&i, token) in open.iter().zip(next) {
            if !eos_token_ids.contains(&token) {
                sequences[i].push(token);
                still_open.push(i);
            }
        }
        open = still_open;
    }
    Ok(sequences.into_iter().zip(prompts).map(|(mut sequence, prompt)| sequence.split_off(prompt.len())).collect())
}

/// The likeliest next token of each sequence; of equal ones the first.
fn next_tokens(model: &Decoder, adapter: Option<&Adapter>, sequences: &[&[u32]]) -> Result<Vec<u32>> {
    let token_ids = sequences.concat(); // [N]
    let mut cu_seqlens = vec![0];
    let mut positions = Vec::with_capacity(token_ids.len());
    let mut last_rows = Vec::with_capacity(sequences.len());
    for sequence in sequences {
        positions.extend(0..sequence.len() as u32);
        cu_seqlens.push(positions.len());
        last_rows.push(positions.len() as u32 - 1);
    }
    let pass = model.pass(&positions);
    let mut x = embedding::forward(&model.weights.embed_tokens, &token_ids)?; // [N, C]
    for (index, weights) in model.weights.layers.iter().enumerate() {
        let context = Context {
            cu_seqlens: &cu_seqlens,
            adapter: adapter.map(|adapter| adapter.layer(index, None, model.precision)),
        };
        x = layer::forward(&x, weights, &model.config.heads(index), &pass, &context, None)?;
    }
    let rows = embedding::forward(&x, &last_rows)?; // [sequences, C]
    let (normed, _) = rms_norm::forward(&rows, &model.weights.norm, model.config.rms_norm_eps)?;
    let logits = glan_kernels::to_vec(&linear(&normed, &model.weights.lm_head, None, None, model.precision)?)?; // [sequences, V]
    Ok(logits.chunks_exact(model.config.vocab_size).map(largest).collect())
}

fn largest(values: &[f32]) -> u32 {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::*;
    use crate::device::DtypeChoice;

    #[test]
    fn continuations_are_transformers_own_whatever_stands_beside_them() -> Result<()> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama");
        let model = Decoder::load(&folder, &Device::Cpu, DtypeChoice::F32)?;
        let expected: serde_json::Value = crate::records::read_json(&folder.join("expected.json"))?;
        let lists = |key: &str| -> Result<Vec<Vec<u32>>> { Ok(serde_json::from_value(expected[key].clone())?) };
        let (prompts, wanted) = (lists("prompts")?, lists("greedy")?);
        assert_eq!(greedy(&model, None, &prompts, 24, &[])?, wanted);
        assert_eq!(greedy(&model, None, &prompts[1..2], 24, &[])?, wanted[1..2]);
        let eos: Vec<u32> = serde_json::from_value(expected["eos_token_ids"].clone())?;
        assert_eq!(greedy(&model, None, &prompts, 24, &eos)?, lists("greedy_before_eos")?);
        let context = model.config.max_position_embeddings;
        let long = vec![5; context - 2];
        assert_eq!(greedy(&model, None, &[long, Vec::new()], 9, &[])?.iter().map(Vec::len).collect::<Vec<_>>(), [2, 0]);
        Ok(())
    }
}
