//! Low-rank adapters: LoRA, rsLoRA and DoRA beside the frozen projections of a decoder.
//!
//! A projection `y = x·Wᵀ + b` becomes `g ⊙ (x·Wᵀ + s·drop(x)·Aᵀ·Bᵀ) + b`. `A [r, I]` and `B [O, r]` are trained, and so
//! is DoRA's magnitude `m [O]`, with `g = m / ‖W + s·B·A‖` by rows; otherwise `g` is 1. The norm counts as a constant in
//! the backward. All of an adapter lies in one arena, whose tensors carry PEFT's names.
//! Source: Hu et al. 2021; Kalajdzievski 2023 (rsLoRA: `s = α / √r`); Liu et al. 2024 (DoRA).

use anyhow::{Context as _, Result};
use candle_core::{DType, Device, Result as TensorResult, Tensor};
use glan_kernels::{
    lora::{add_column_dots, add_columns, columns, row_norms, scale_columns, scale_rows},
    matmul::{Precision, linear, linear_backward_input, linear_backward_weight},
    noise::{Noise, dropout},
    to_vec,
};
use rand::Rng;

use super::{DecoderConfig, Layout, NamedTensor, Weights, layout::LayerWeights, matrix::Matrix};
use crate::seed;

/// A projection that can have an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Projection {
    /// `self_attn.q_proj`
    Q,
    /// `self_attn.k_proj`
    K,
    /// `self_attn.v_proj`
    V,
    /// `self_attn.o_proj`
    O,
    /// `mlp.gate_proj`
    Gate,
    /// `mlp.up_proj`
    Up,
    /// `mlp.down_proj`
    Down,
}

impl Projection {
    /// All of them, in the order of a block.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The name in a block, such as `self_attn.q_proj`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// The last part of the name, as `target_modules` gives it.
    pub fn name(self) -> &'static str {
        self.path().split_once('.').map_or("", |(_, name)| name)
    }

    /// `(O, I)` of its weight.
    pub fn shape(self, config: &DecoderConfig) -> (usize, usize) {
        let query = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        match self {
            Self::Q => (query, config.hidden_size),
            Self::K | Self::V => (kv, config.hidden_size),
            Self::O => (config.hidden_size, query),
            Self::Gate | Self::Up => (config.intermediate_size, config.hidden_size),
            Self::Down => (config.hidden_size, config.intermediate_size),
        }
    }

    /// The product that computes it and its first column there.
    fn place(self, config: &DecoderConfig) -> (Product, usize) {
        let (query, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        match self {
            Self::Q => (Product::Qkv, 0),
            Self::K => (Product::Qkv, query),
            Self::V => (Product::Qkv, query + kv),
            Self::O => (Product::O, 0),
            Self::Gate => (Product::GateUp, 0),
            Self::Up => (Product::GateUp, config.intermediate_size),
            Self::Down => (Product::Down, 0),
        }
    }
}

/// The four (fused) products of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// q, k and v.
    Qkv,
    /// The output projection of attention.
    O,
    /// gate and up.
    GateUp,
    /// Back to the hidden size.
    Down,
}

/// What an adapter looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterShape {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Scale by `α / √r` instead of `α / r`.
    pub use_rslora: bool,
    /// Train magnitudes too.
    pub use_dora: bool,
    /// Which projections of which layer, ascending.
    pub targets: Vec<(usize, Projection)>,
}

impl AdapterShape {
    /// `s`
    pub fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }
    }

    /// The adapter's tensors in its arena; the names are those of PEFT's files.
    pub fn layout(&self, config: &DecoderConfig) -> Layout {
        let mut list = Vec::new();
        for &(layer, projection) in &self.targets {
            let (out, inner) = projection.shape(config);
            let name = |part: &str| format!("base_model.model.model.layers.{layer}.{}.{part}", projection.path());
            list.push((name("lora_A.weight"), vec![self.r, inner]));
            list.push((name("lora_B.weight"), vec![out, self.r]));
            if self.use_dora {
                list.push((name("lora_magnitude_vector"), vec![out]));
            }
        }
        Layout::of(list)
    }
}

/// An adapter's values, or their gradients.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Rank, scale, targets.
    pub shape: AdapterShape,
    /// Where its tensors lie.
    pub layout: Layout,
    /// All of them, `[P]`.
    pub arena: Tensor,
    /// Per layer of the decoder.
    layers: Vec<Vec<Factors>>,
}

/// The adapter of one projection: views into the arena.
#[derive(Debug, Clone)]
struct Factors {
    projection: Projection,
    product: Product,
    /// First column in the product's output.
    start: usize,
    width: usize,
    a: Tensor,                 // [r, I]
    b: Tensor,                 // [O, r]
    magnitude: Option<Tensor>, // [O]
}

impl Adapter {
    /// The adapter whose values are `arena`.
    pub fn from_arena(config: &DecoderConfig, shape: AdapterShape, arena: Tensor) -> Result<Self> {
        let layout = shape.layout(config);
        let mut layers = vec![Vec::new(); config.num_hidden_layers];
        let parts = if shape.use_dora { 3 } else { 2 };
        for (&(layer, projection), tensors) in shape.targets.iter().zip(layout.tensors.chunks(parts)) {
            let view = |tensor: &NamedTensor| arena.narrow(0, tensor.offset, tensor.len())?.reshape(&tensor.shape[..]);
            let (product, start) = projection.place(config);
            let factors = Factors {
                projection,
                product,
                start,
                width: projection.shape(config).0,
                a: view(&tensors[0])?,
                b: view(&tensors[1])?,
                magnitude: tensors.get(2).map(view).transpose()?,
            };
            let count = config.num_hidden_layers;
            layers
                .get_mut(layer)
                .with_context(|| format!("the adapter speaks of layer {layer}, the model has {count}"))?
                .push(factors);
        }
        Ok(Self { shape, layout, arena, layers })
    }

    /// All zeros: room for gradients.
    pub fn zeros(config: &DecoderConfig, shape: AdapterShape) -> Result<Self> {
        let len = shape.layout(config).len;
        Self::from_arena(config, shape, Tensor::zeros(len, DType::F32, &Device::Cpu)?)
    }

    /// A fresh adapter, which changes nothing yet: `A` uniform within `± 1/√I` (PEFT's Kaiming start), `B` zero,
    /// magnitudes the norms of the frozen rows. Every tensor has its own stream of the seed.
    pub fn new(config: &DecoderConfig, weights: &Weights, shape: AdapterShape, run_seed: u64) -> Result<Self> {
        let layout = shape.layout(config);
        let mut values = vec![0f32; layout.len];
        for tensor in layout.tensors.iter().filter(|tensor| tensor.name.ends_with("lora_A.weight")) {
            let bound = 1.0 / (tensor.shape[1] as f64).sqrt();
            let mut random = seed::stream(run_seed, "lora", &tensor.name);
            for value in &mut values[tensor.offset..tensor.offset + tensor.len()] {
                *value = ((2.0 * random.random::<f64>() - 1.0) * bound) as f32;
            }
        }
        if shape.use_dora {
            let names = layout.tensors.iter().filter(|tensor| tensor.name.ends_with("lora_magnitude_vector"));
            for (tensor, &(layer, projection)) in names.zip(&shape.targets) {
                let (product, start) = projection.place(config);
                let w = product_weight(&weights.layers[layer], product).rows(start, tensor.len())?;
                let norms = row_norms(&w, &w.zeros_like()?, 0.0)?;
                values[tensor.offset..tensor.offset + tensor.len()].copy_from_slice(&norms);
            }
        }
        let len = layout.len;
        Self::from_arena(config, shape, Tensor::from_vec(values, len, &Device::Cpu)?)
    }

    /// Number of trained values.
    pub fn num_parameters(&self) -> usize {
        self.layout.len
    }

    /// Folds the adapter into the base weights of `arena` (laid out by `layout`) in place: `W ← g ⊙ (W + s·B·A)`.
    pub fn merge_into(&self, config: &DecoderConfig, layout: &Layout, arena: &Tensor) -> Result<()> {
        let weights = Weights::new(config, layout, arena.clone())?;
        let scale = self.shape.scale() as f32;
        for (layer, factors) in weights.layers.iter().zip(&self.layers) {
            for factors in factors {
                let w = product_weight(layer, factors.product).dense()?.narrow(0, factors.start, factors.width)?;
                let g = factors.gain(&w, scale)?;
                add_columns(&w, 0, &factors.delta()?, &[scale])?;
                if let Some(Gain { g, .. }) = g {
                    scale_rows(&w, &g)?;
                }
            }
        }
        Ok(())
    }

    /// The adapter of one layer, with what a pass needs beside it.
    pub(super) fn layer(&self, index: usize, dropout: Option<(f32, Noise)>, precision: Precision) -> LayerAdapter<'_> {
        LayerAdapter {
            factors: &self.layers[index],
            scale: self.shape.scale() as f32,
            dropout: dropout.map(|(p, noise)| (p, noise.with(index as u64))),
            precision,
        }
    }

    pub(super) fn layer_gradients(&self, index: usize) -> LayerGradients<'_> {
        LayerGradients(&self.layers[index])
    }
}

fn product_weight(layer: &LayerWeights, product: Product) -> &Matrix {
    match product {
        Product::Qkv => &layer.qkv,
        Product::O => &layer.o,
        Product::GateUp => &layer.gate_up,
        Product::Down => &layer.down,
    }
}

/// DoRA's factor per row, and one over the norm.
struct Gain {
    g: Vec<f32>,
    per_norm: Vec<f32>,
}

impl Factors {
    /// `B·A`, `[O, I]`
    fn delta(&self) -> TensorResult<Tensor> {
        linear_backward_input(&self.b, &self.a, Precision::F32)
    }

    fn gain(&self, w: &Tensor, scale: f32) -> TensorResult<Option<Gain>> {
        let Some(magnitude) = &self.magnitude else { return Ok(None) };
        let norms = row_norms(w, &self.delta()?, scale)?;
        let g = to_vec(magnitude)?.iter().zip(&norms).map(|(m, norm)| m / norm).collect();
        Ok(Some(Gain { g, per_norm: norms.iter().map(|norm| 1.0 / norm).collect() }))
    }
}

/// One layer's adapter in a pass.
pub struct LayerAdapter<'a> {
    factors: &'a [Factors],
    scale: f32,
    dropout: Option<(f32, Noise)>,
    precision: Precision,
}

/// Where one layer's gradients go.
pub struct LayerGradients<'a>(&'a [Factors]);

impl LayerAdapter<'_> {
    fn of(&self, product: Product) -> impl Iterator<Item = (usize, &Factors)> {
        self.factors.iter().enumerate().filter(move |(_, factors)| factors.product == product)
    }

    fn dropped(&self, x: &Tensor, factors: &Factors) -> TensorResult<Tensor> {
        match self.dropout {
            Some((p, noise)) => dropout(x, p, noise.with(factors.projection as u64)),
            None => Ok(x.clone()),
        }
    }

    /// Adds the adapter's part to a product's output in place.
    ///
    /// **Shapes**: `x [N, I]`, `w [O, I]` the product's frozen weight, `y [N, O]`.
    pub fn add(&self, product: Product, x: &Tensor, w: &Matrix, y: &Tensor) -> TensorResult<()> {
        for (_, factors) in self.of(product) {
            let low = linear(&self.dropped(x, factors)?, &factors.a, None, None, self.precision)?; // [N, r]
            let part = linear(&low, &factors.b, None, None, self.precision)?; // [N, width]
            // Of a quantised weight the rows are unpacked: for DoRA alone.
            let w = factors.magnitude.as_ref().map(|_| w.rows(factors.start, factors.width)).transpose()?;
            let gain = w.as_ref().map(|w| factors.gain(w, self.scale)).transpose()?.flatten();
            match w.zip(gain) {
                None => add_columns(y, factors.start, &part, &[self.scale])?,
                Some((w, Gain { g, .. })) => {
                    // The output may hold a residual and a bias already, so the frozen part is computed once more.
                    let frozen = linear(x, &w, None, None, self.precision)?;
                    let (rest, scaled): (Vec<f32>, Vec<f32>) = g.iter().map(|g| (g - 1.0, g * self.scale)).unzip();
                    add_columns(y, factors.start, &frozen, &rest)?;
                    add_columns(y, factors.start, &part, &scaled)?;
                }
            }
        }
        Ok(())
    }

    /// Gradient of a product's input; adds those of the adapter to `gradients`.
    ///
    /// **Shapes**: `dy [N, O]`, `x [N, I]`, `w [O, I]` → `[N, I]`.
    pub fn backward(
        &self,
        product: Product,
        dy: &Tensor,
        x: &Tensor,
        w: &Matrix,
        gradients: &LayerGradients,
    ) -> TensorResult<Tensor> {
        // DoRA scales the columns of dy; the caller's own is still needed as it is.
        let has_gain = self.of(product).any(|(_, factors)| factors.magnitude.is_some());
        let dy = if has_gain { dy.copy()? } else { dy.clone() };
        let mut parts = Vec::new();
        for (index, factors) in self.of(product) {
            let gradient = &gradients.0[index];
            let dropped = self.dropped(x, factors)?;
            let low = linear(&dropped, &factors.a, None, None, self.precision)?; // [N, r]
            if let Some(magnitude) = &gradient.magnitude {
                let w = w.rows(factors.start, factors.width)?;
                if let Some(Gain { g, per_norm }) = factors.gain(&w, self.scale)? {
                    let z = linear(x, &w, None, None, self.precision)?;
                    add_columns(&z, 0, &linear(&low, &factors.b, None, None, self.precision)?, &[self.scale])?;
                    add_column_dots(magnitude, &columns(&dy, factors.start, factors.width)?, &z, &per_norm)?;
                    scale_columns(&dy, factors.start, &g)?;
                }
            }
            let dpart = columns(&dy, factors.start, factors.width)?;
            let scale = f64::from(self.scale);
            linear_backward_weight(&gradient.b, &dpart, &low.affine(scale, 0.0)?, self.precision)?;
            let dlow = linear_backward_input(&dpart, &factors.b, self.precision)?.affine(scale, 0.0)?; // [N, r]
            linear_backward_weight(&gradient.a, &dlow, &dropped, self.precision)?;
            let dx = linear_backward_input(&dlow, &factors.a, self.precision)?; // [N, I]
            parts.push(self.dropped(&dx, factors)?);
        }
        let dx = w.backward_input(&dy, self.precision)?;
        for part in parts {
            add_columns(&dx, 0, &part, &[1.0])?;
        }
        Ok(dx)
    }
}
