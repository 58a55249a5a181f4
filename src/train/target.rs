//! What the optimizer changes: all weights of the student, or an adapter beside them.

use anyhow::{Result, bail};
use candle_core::{DType, Device, Tensor};

use crate::{
    config::{TrainConfig, TrainMethod},
    error::usage,
    model::{Adapter, AdapterShape, Decoder, Layout, Microbatch, Projection, Trained, Weights, evaluate_adapted_loss},
};

/// The trained parameters and their gradients.
pub enum Target {
    /// All weights.
    Full {
        /// In the model's layout.
        gradients: Weights,
    },
    /// An adapter; the weights are frozen.
    Lora {
        /// Its values.
        adapter: Adapter,
        /// In the adapter's layout.
        gradients: Adapter,
    },
}

impl Target {
    /// What the configuration asks for, at its start.
    pub fn new(model: &Decoder, settings: &TrainConfig, run_seed: u64) -> Result<Self> {
        Ok(match settings.method {
            TrainMethod::Full => {
                let zeros = Tensor::zeros(model.layout.len, DType::F32, &Device::Cpu)?;
                Self::Full { gradients: Weights::new(&model.config, &model.layout, zeros)? }
            }
            TrainMethod::Lora | TrainMethod::QLora => {
                let shape = adapter_shape(settings, model.config.num_hidden_layers)?;
                Self::Lora {
                    gradients: Adapter::zeros(&model.config, shape.clone())?,
                    adapter: Adapter::new(&model.config, &model.weights, shape, run_seed)?,
                }
            }
        })
    }

    /// The arena that the optimizer changes.
    pub fn parameters<'a>(&'a self, model: &'a Decoder) -> &'a Tensor {
        match self {
            Self::Full { .. } => &model.weights.arena,
            Self::Lora { adapter, .. } => &adapter.arena,
        }
    }

    /// The gradients' arena.
    pub fn gradients(&self) -> &Tensor {
        match self {
            Self::Full { gradients } => &gradients.arena,
            Self::Lora { gradients, .. } => &gradients.arena,
        }
    }

    /// The layout of both arenas.
    pub fn layout<'a>(&'a self, model: &'a Decoder) -> &'a Layout {
        match self {
            Self::Full { .. } => &model.layout,
            Self::Lora { adapter, .. } => &adapter.layout,
        }
    }

    /// The adapter, where that is what is trained.
    pub fn adapter(&self) -> Option<&Adapter> {
        match self {
            Self::Full { .. } => None,
            Self::Lora { adapter, .. } => Some(adapter),
        }
    }

    /// For a pass over a micro-batch.
    pub fn trained(&self) -> Trained<'_> {
        match self {
            Self::Full { gradients } => Trained::Full(gradients),
            Self::Lora { adapter, gradients } => Trained::Adapter { adapter, gradients },
        }
    }

    /// Takes up the values of a checkpoint.
    pub fn restore(&mut self, model: &mut Decoder, arena: Tensor) -> Result<()> {
        let (found, expected) = (arena.elem_count(), self.layout(model).len);
        if found != expected {
            bail!("the checkpoint holds {found} values, the run trains {expected}");
        }
        match self {
            Self::Full { .. } => model.weights = Weights::new(&model.config, &model.layout, arena)?,
            Self::Lora { adapter, .. } => {
                *adapter = Adapter::from_arena(&model.config, adapter.shape.clone(), arena)?;
            }
        }
        Ok(())
    }

    /// Sum of the losses of a micro-batch's trained tokens, without noise.
    pub fn evaluate(&self, model: &Decoder, batch: &Microbatch) -> Result<f64> {
        evaluate_adapted_loss(model, self.adapter(), batch)
    }
}

/// The adapter that `train.lora_*` describe, for a model of so many layers.
///
/// **Errors**: usage, where `lora_target_modules` names something else than projections of a block.
pub fn adapter_shape(settings: &TrainConfig, layers: usize) -> Result<AdapterShape> {
    let mut projections = Vec::new();
    for name in &settings.lora_target_modules {
        match Projection::ALL.into_iter().find(|projection| projection.name() == name) {
            Some(projection) => projections.push(projection),
            None if name == "all-linear" => projections.extend(Projection::ALL),
            None => {
                return Err(usage(format!(
                    "`train.lora_target_modules` names `{name}`; expected \"all-linear\" or some of {}",
                    Projection::ALL.map(Projection::name).join(", ")
                )));
            }
        }
    }
    projections.sort_unstable();
    projections.dedup();
    if projections.is_empty() {
        bail!(usage("`train.lora_target_modules` is empty: nothing would be trained"));
    }
    let targets =
        (0..layers).flat_map(|layer| projections.iter().map(move |projection| (layer, *projection))).collect();
    Ok(AdapterShape {
        r: settings.lora_r,
        lora_alpha: settings.lora_alpha,
        use_rslora: settings.use_rslora,
        use_dora: settings.use_dora,
        targets,
    })
}
