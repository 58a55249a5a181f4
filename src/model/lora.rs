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
    matmul::{
        ColumnRange, Precision, add_linear, add_linear_backward_input, add_linear_backward_weight, linear,
        linear_backward_input,
    },
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

    /// The lowest layer that has a part of the adapter; below it nothing is trained.
    pub(super) fn first_layer(&self) -> usize {
        self.layers.iter().position(|factors| !factors.is_empty()).unwrap_or(self.layers.len())
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
    /// The columns of this factor, the `place`-th of its product, in low-rank values `[N, factors · r]`.
    fn part_of<'a>(&self, low: &'a Tensor, place: usize) -> TensorResult<ColumnRange<'a>> {
        let r = self.a.dim(0)?;
        ColumnRange::new(low, place * r, r)
    }

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

    /// Adds the adapter's part to a product's output in place. What comes back is for the backward: the low-rank values of the
    /// product's factors side by side, scaled; none where it has none.
    ///
    /// **Shapes**: `x [N, I]`, `w [O, I]` the product's frozen weight, `y [N, O]` → `[N, factors · r]`.
    pub fn add(&self, product: Product, x: &Tensor, w: &Matrix, y: &Tensor) -> TensorResult<Option<Tensor>> {
        let Some(low) = self.low(product, x)? else { return Ok(None) };
        for (place, (_, factors)) in self.of(product).enumerate() {
            let low = factors.part_of(&low, place)?;
            let Some(w) = factors.magnitude.as_ref().map(|_| w.rows(factors.start, factors.width)).transpose()? else {
                add_linear(ColumnRange::new(y, factors.start, factors.width)?, low, &factors.b, self.precision)?;
                continue;
            };
            let Some(Gain { g, .. }) = factors.gain(&w, self.scale)? else { continue };
            // The output may hold a residual and a bias already, so the frozen part is computed once more.
            let rest: Vec<f32> = g.iter().map(|g| g - 1.0).collect();
            add_columns(y, factors.start, &linear(x, &w, None, None, self.precision)?, &rest)?;
            let part = Tensor::zeros((x.dim(0)?, factors.width), DType::F32, &Device::Cpu)?;
            add_linear(ColumnRange::all(&part)?, low, &factors.b, self.precision)?;
            add_columns(y, factors.start, &part, &g)?;
        }
        Ok(Some(low))
    }

    /// `s · drop(x) · Aᵀ` of all factors of a product, side by side.
    fn low(&self, product: Product, x: &Tensor) -> TensorResult<Option<Tensor>> {
        let Some(stacked) = self.stacked(product)? else { return Ok(None) };
        let low = match self.dropout {
            None => linear(x, &stacked, None, None, self.precision)?,
            Some(_) => {
                let low = Tensor::zeros((x.dim(0)?, stacked.dim(0)?), DType::F32, &Device::Cpu)?;
                for (place, (_, factors)) in self.of(product).enumerate() {
                    let dropped = self.dropped(x, factors)?;
                    add_linear(factors.part_of(&low, place)?, ColumnRange::all(&dropped)?, &factors.a, self.precision)?;
                }
                low
            }
        };
        low.affine(f64::from(self.scale), 0.0).map(Some)
    }

    /// The matrices `A` of a product's factors, one on top of another: `[factors · r, I]`.
    fn stacked(&self, product: Product) -> TensorResult<Option<Tensor>> {
        let all: Vec<&Tensor> = self.of(product).map(|(_, factors)| &factors.a).collect();
        if all.is_empty() { Ok(None) } else { Tensor::cat(&all, 0).map(Some) }
    }

    /// Adds the gradients of a product's adapter to `gradients`; the gradient of its input where that is wanted.
    ///
    /// **Shapes**: `dy [N, O]`, `x [N, I]`, `w [O, I]`, `low` what [`Self::add`] gave → `[N, I]`.
    pub fn backward(
        &self,
        product: Product,
        dy: &Tensor,
        (x, low): (&Tensor, Option<&Tensor>),
        w: &Matrix,
        gradients: &LayerGradients,
        wants_input: bool,
    ) -> TensorResult<Option<Tensor>> {
        let (Some(low), Some(stacked)) = (low, self.stacked(product)?) else {
            return wants_input.then(|| w.backward_input(dy, self.precision)).transpose();
        };
        let dy = self.through_gains(product, dy, (x, low), w, gradients)?;
        let dlow = low.zeros_like()?;
        for (place, (index, factors)) in self.of(product).enumerate() {
            let part = ColumnRange::new(&dy, factors.start, factors.width)?;
            let low = factors.part_of(low, place)?;
            add_linear_backward_weight(&gradients.0[index].b, part, low, self.precision)?;
            add_linear_backward_input(factors.part_of(&dlow, place)?, part, &factors.b, self.precision)?;
        }
        let dlow = dlow.affine(f64::from(self.scale), 0.0)?;
        self.add_down_gradients(product, &dlow, x, gradients)?;
        if !wants_input {
            return Ok(None);
        }
        let dx = w.backward_input(&dy, self.precision)?;
        let all = ColumnRange::all(&dx)?;
        match self.dropout {
            None => add_linear_backward_input(all, ColumnRange::all(&dlow)?, &stacked, self.precision)?,
            Some(_) => {
                for (place, (_, factors)) in self.of(product).enumerate() {
                    let part = dx.zeros_like()?;
                    let dlow = factors.part_of(&dlow, place)?;
                    add_linear_backward_input(ColumnRange::all(&part)?, dlow, &factors.a, self.precision)?;
                    add_columns(&dx, 0, &self.dropped(&part, factors)?, &[1.0])?;
                }
            }
        }
        Ok(Some(dx))
    }

    /// Adds the gradients of the matrices `A`: `dlow [N, factors · r]`, `x [N, I]`.
    fn add_down_gradients(
        &self,
        product: Product,
        dlow: &Tensor,
        x: &Tensor,
        gradients: &LayerGradients,
    ) -> TensorResult<()> {
        if self.dropout.is_none() {
            // One product for all: the input is packed once.
            let da = Tensor::zeros((dlow.dim(1)?, x.dim(1)?), DType::F32, &Device::Cpu)?;
            add_linear_backward_weight(&da, ColumnRange::all(dlow)?, ColumnRange::all(x)?, self.precision)?;
            for (place, (index, factors)) in self.of(product).enumerate() {
                let r = factors.a.dim(0)?;
                add_columns(&gradients.0[index].a, 0, &da.narrow(0, place * r, r)?, &[1.0])?;
            }
            return Ok(());
        }
        for (place, (index, factors)) in self.of(product).enumerate() {
            let dropped = self.dropped(x, factors)?;
            let dlow = factors.part_of(dlow, place)?;
            add_linear_backward_weight(&gradients.0[index].a, dlow, ColumnRange::all(&dropped)?, self.precision)?;
        }
        Ok(())
    }

    /// DoRA's way back: adds the gradients of the magnitudes, and scales the columns of a copy of `dy` by the gains.
    fn through_gains(
        &self,
        product: Product,
        dy: &Tensor,
        (x, low): (&Tensor, &Tensor),
        w: &Matrix,
        gradients: &LayerGradients,
    ) -> TensorResult<Tensor> {
        if self.of(product).all(|(_, factors)| factors.magnitude.is_none()) {
            return Ok(dy.clone());
        }
        // The caller's own is still needed as it is.
        let dy = dy.copy()?;
        for (place, (index, factors)) in self.of(product).enumerate() {
            let Some(magnitude) = &gradients.0[index].magnitude else { continue };
            let w = w.rows(factors.start, factors.width)?;
            let Some(Gain { g, per_norm }) = factors.gain(&w, self.scale)? else { continue };
            let z = linear(x, &w, None, None, self.precision)?;
            add_linear(ColumnRange::all(&z)?, factors.part_of(low, place)?, &factors.b, self.precision)?;
            add_column_dots(magnitude, &columns(&dy, factors.start, factors.width)?, &z, &per_norm)?;
            scale_columns(&dy, factors.start, &g)?;
        }
        Ok(dy)
    }
}
