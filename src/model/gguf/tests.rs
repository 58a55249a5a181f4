//! Names, order of rows, and the divisors of Llama 3.

use super::*;
use crate::model::RopeScaling;

#[test]
fn rows_go_to_interleaved_pairs_and_every_row_has_one_place() {
    // Within a head of 4: rows 0 and 2 are a pair, then 1 and 3.
    assert_eq!((0..8).map(|row| permuted_row(row, 4)).collect::<Vec<_>>(), [0, 2, 1, 3, 4, 6, 5, 7]);
    let mut places: Vec<usize> = (0..96).map(|row| permuted_row(row, 12)).collect();
    places.sort_unstable();
    assert_eq!(places, (0..96).collect::<Vec<_>>());
}

#[test]
fn only_q_and_k_of_llama_are_permuted() {
    assert!(is_permuted("llama", "model.layers.0.self_attn.q_proj.weight"));
    assert!(is_permuted("llama", "model.layers.0.self_attn.k_proj.bias"));
    assert!(!is_permuted("llama", "model.layers.0.self_attn.v_proj.weight"));
    assert!(!is_permuted("qwen2", "model.layers.0.self_attn.q_proj.weight"));
}

#[test]
fn names_are_llama_cpps() {
    for (ours, theirs) in [
        ("model.embed_tokens.weight", Some("token_embd.weight")),
        ("lm_head.weight", Some("output.weight")),
        ("model.layers.11.self_attn.q_proj.bias", Some("blk.11.attn_q.bias")),
        ("model.layers.3.self_attn.k_norm.weight", Some("blk.3.attn_k_norm.weight")),
        ("model.layers.3.mlp.down_proj.weight", Some("blk.3.ffn_down.weight")),
        ("model.layers.3.mlp.experts.0.weight", None),
        ("transformer.h.0.weight", None),
    ] {
        assert_eq!(tensor_name(ours).as_deref(), theirs, "{ours}");
    }
}

#[test]
fn the_parameters_behind_llama_3s_divisors_are_found_again() {
    let llama3 = |factor: f64, original: usize| RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: original,
    };
    // Llama 3.1 8B, Llama 3.2 1B, the fixture of the tests.
    for (asked, theta, head_dim) in
        [(llama3(8.0, 8192), 5e5, 128), (llama3(32.0, 8192), 5e5, 64), (llama3(4.0, 64), 1000.0, 12)]
    {
        let divisors = rope_factors::divisors(&asked, theta, head_dim).unwrap();
        assert_eq!(rope_factors::scaling(&divisors, theta, head_dim), Some(asked));
    }
    assert_eq!(rope_factors::divisors(&RopeScaling::None, 1e4, 64), None);
    assert_eq!(rope_factors::scaling(&[1.0; 8], 1e4, 16), Some(RopeScaling::None));
    assert_eq!(rope_factors::scaling(&[1.0, 3.0, 1.5, 2.0, 1.0, 7.0, 2.0, 8.0], 1e4, 16), None, "no ramp");
    assert_eq!(rope_factors::scaling(&[1.0; 4], 1e4, 16), None, "too few");
}
