//! Where each checkpoint tensor lies in a flat arena, and the (fused) views that the layers compute with.

use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::Tensor;
use glan_kernels::matmul::QuantizedWeight;

use super::{
    DecoderConfig,
    matrix::{MATRICES, Matrix},
};

/// One tensor of a checkpoint and its place in an arena.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTensor {
    /// Name in Hugging Face checkpoints.
    pub name: String,
    /// Shape in Hugging Face checkpoints.
    pub shape: Vec<usize>,
    /// First value in the arena.
    pub offset: usize,
}

impl NamedTensor {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether weight decay applies: matrices only, not norms and biases.
    pub fn decays(&self) -> bool {
        self.shape.len() > 1
    }
}

/// The order of a model's tensors in an arena. q, k, v and gate, up are neighbours, so that their fusion is a view.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// All tensors, by offset.
    pub tensors: Arc<Vec<NamedTensor>>,
    /// Values in the arena.
    pub len: usize,
}

impl Layout {
    /// The layout of a model's parameters.
    pub fn new(config: &DecoderConfig) -> Self {
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        let query = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let mut list: Vec<(String, Vec<usize>)> =
            vec![("model.embed_tokens.weight".into(), vec![config.vocab_size, hidden])];
        for layer in 0..config.num_hidden_layers {
            let mut push =
                |name: &str, shape: &[usize]| list.push((format!("model.layers.{layer}.{name}"), shape.into()));
            push("input_layernorm.weight", &[hidden]);
            push("self_attn.q_proj.weight", &[query, hidden]);
            push("self_attn.k_proj.weight", &[kv, hidden]);
            push("self_attn.v_proj.weight", &[kv, hidden]);
            if config.attention_bias {
                push("self_attn.q_proj.bias", &[query]);
                push("self_attn.k_proj.bias", &[kv]);
                push("self_attn.v_proj.bias", &[kv]);
            }
            if config.qk_norm {
                push("self_attn.q_norm.weight", &[config.head_dim]);
                push("self_attn.k_norm.weight", &[config.head_dim]);
            }
            push("self_attn.o_proj.weight", &[hidden, query]);
            if config.attention_output_bias {
                push("self_attn.o_proj.bias", &[hidden]);
            }
            push("post_attention_layernorm.weight", &[hidden]);
            push("mlp.gate_proj.weight", &[ffn, hidden]);
            push("mlp.up_proj.weight", &[ffn, hidden]);
            push("mlp.down_proj.weight", &[hidden, ffn]);
        }
        list.push(("model.norm.weight".into(), vec![hidden]));
        if !config.tie_word_embeddings {
            list.push(("lm_head.weight".into(), vec![config.vocab_size, hidden]));
        }
        Self::of(list)
    }

    /// The same without the blocks' matrices, which a quantised model holds elsewhere.
    pub(super) fn without_matrices(config: &DecoderConfig) -> Self {
        let whole = Self::new(config);
        let rest = whole.tensors.iter().filter(|tensor| !tensor.name.ends_with("_proj.weight"));
        Self::of(rest.map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect())
    }

    /// Tensors one after another.
    pub(super) fn of(list: Vec<(String, Vec<usize>)>) -> Self {
        let mut len = 0;
        let place = |(name, shape): (String, Vec<usize>)| {
            let tensor = NamedTensor { name, shape, offset: len };
            len += tensor.len();
            tensor
        };
        let tensors = Arc::new(list.into_iter().map(place).collect());
        Self { tensors, len }
    }

    /// `count` consecutive tensors, from `first` on.
    pub(super) fn neighbours(&self, first: &str, count: usize) -> Result<&[NamedTensor]> {
        let start = self
            .tensors
            .iter()
            .position(|tensor| tensor.name == first)
            .with_context(|| format!("the layout has no tensor `{first}`"))?;
        Ok(&self.tensors[start..start + count])
    }

    /// The view of consecutive tensors, from `first` on, stacked along their first dimension.
    fn view(&self, arena: &Tensor, first: &str, count: usize) -> Result<Tensor> {
        let parts = self.neighbours(first, count)?;
        let len = parts.iter().map(NamedTensor::len).sum();
        let mut shape = parts[0].shape.clone();
        shape[0] = parts.iter().map(|part| part.shape[0]).sum();
        Ok(arena.narrow(0, parts[0].offset, len)?.reshape(shape)?)
    }
}

/// Views into an arena: the parameters, or their gradients.
#[derive(Debug, Clone)]
pub struct Weights {
    /// The whole arena, `[P]`.
    pub arena: Tensor,
    /// `[V, C]`
    pub embed_tokens: Tensor,
    /// The decoder blocks.
    pub layers: Vec<LayerWeights>,
    /// `[C]`
    pub norm: Tensor,
    /// `[V, C]`; the embedding's own view when tied.
    pub lm_head: Tensor,
}

/// One decoder block's views.
#[derive(Debug, Clone)]
pub struct LayerWeights {
    /// `[C]`
    pub input_norm: Tensor,
    /// `[(H + 2K)·D, C]`
    pub qkv: Matrix,
    /// `[(H + 2K)·D]`
    pub qkv_bias: Option<Tensor>,
    /// q and k norms, `[D]` each.
    pub qk_norm: Option<(Tensor, Tensor)>,
    /// `[C, H·D]`
    pub o: Matrix,
    /// `[C]`
    pub o_bias: Option<Tensor>,
    /// `[C]`
    pub post_norm: Tensor,
    /// `[2F, C]`
    pub gate_up: Matrix,
    /// `[C, F]`
    pub down: Matrix,
}

impl Weights {
    /// The views of `arena [P]`.
    pub fn new(config: &DecoderConfig, layout: &Layout, arena: Tensor) -> Result<Self> {
        Self::with_matrices(config, layout, arena, &[])
    }

    /// The same with the blocks' matrices from elsewhere, in the order of [`MATRICES`], layer by layer; none are those of
    /// the arena.
    pub(super) fn with_matrices(
        config: &DecoderConfig,
        layout: &Layout,
        arena: Tensor,
        matrices: &[Vec<Matrix>],
    ) -> Result<Self> {
        let view = |first: &str, count: usize| layout.view(&arena, first, count);
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                let view = |name: &str, count: usize| view(&format!("model.layers.{layer}.{name}"), count);
                let when = |on: bool, name: &str, count: usize| on.then(|| view(name, count)).transpose();
                let matrix = |index: usize| -> Result<Matrix> {
                    match matrices.get(layer).and_then(|matrices| matrices.get(index)) {
                        Some(matrix) => Ok(matrix.clone()),
                        None => Ok(Matrix::Dense(view(MATRICES[index].0, MATRICES[index].1)?)),
                    }
                };
                Ok(LayerWeights {
                    input_norm: view("input_layernorm.weight", 1)?,
                    qkv: matrix(0)?,
                    qkv_bias: when(config.attention_bias, "self_attn.q_proj.bias", 3)?,
                    qk_norm: when(config.qk_norm, "self_attn.q_norm.weight", 1)?.zip(when(
                        config.qk_norm,
                        "self_attn.k_norm.weight",
                        1,
                    )?),
                    o: matrix(1)?,
                    o_bias: when(config.attention_output_bias, "self_attn.o_proj.bias", 1)?,
                    post_norm: view("post_attention_layernorm.weight", 1)?,
                    gate_up: matrix(2)?,
                    down: matrix(3)?,
                })
            })
            .collect::<Result<_>>()?;
        let head = if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        Ok(Self {
            embed_tokens: view("model.embed_tokens.weight", 1)?,
            layers,
            norm: view("model.norm.weight", 1)?,
            lm_head: view(head, 1)?,
            arena,
        })
    }

    /// The quantised matrices; none where everything is in the arena.
    pub fn blocks(&self) -> impl Iterator<Item = &QuantizedWeight> {
        self.layers.iter().flat_map(move |layer| [&layer.qkv, &layer.o, &layer.gate_up, &layer.down]).filter_map(
            |matrix| match matrix {
                Matrix::Dense(_) => None,
                Matrix::Blocks(blocks) => Some(blocks.as_ref()),
            },
        )
    }
}
