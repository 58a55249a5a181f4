//! A decoder out of a GGUF file, and into it: configuration, names of tensors, the order of rows.
//!
//! The configuration is first turned into the `config.json` that the model had, and read as such: so a key that
//! changes the arithmetic in a way that this program does not have is refused in one place.
//!
//! **Source**: `convert_hf_to_gguf.py` of llama.cpp for names of keys and tensors.

mod read;
mod rope_factors;
mod write;

pub use self::{
    read::GgufTensors,
    write::{GgufPlan, Quantization},
};

/// Architectures of GGUF files that are read and written; Mistral's files say `llama`.
const ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// Per-frequency divisors of Llama 3.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// The name in GGUF files of a tensor of a Hugging Face checkpoint.
fn tensor_name(name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let module = match module {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.{kind}"))
}

/// Whether llama.cpp keeps the rows of this tensor in the order of interleaved rotary pairs.
///
/// Llama alone: its rotation pairs neighbours there, while Hugging Face pairs row `i` with row `i + D/2` of a head.
fn is_permuted(architecture: &str, name: &str) -> bool {
    architecture == "llama"
        && [".q_proj.weight", ".k_proj.weight", ".q_proj.bias", ".k_proj.bias"].iter().any(|end| name.ends_with(end))
}

/// Where row `row` of a Hugging Face tensor lies in the GGUF tensor, within heads of `head_dim` rows.
fn permuted_row(row: usize, head_dim: usize) -> usize {
    let (head, at) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (at % half) + at / half
}

#[cfg(test)]
mod tests;
