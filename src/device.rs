//! Where tensors live: the CPU, or a GPU in builds that carry its kernels.

use anyhow::Result;
use glan_kernels::gpu::{self, Gpu};
use serde::{Deserialize, Serialize};

use crate::error::usage;

/// The device that a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The processor, until inference on GPUs has been measured.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU.
    Metal,
}

/// A device that inference can run on.
#[derive(Debug, Clone)]
pub enum Device {
    /// The processor.
    Cpu,
    /// A GPU.
    Gpu(Gpu),
}

impl Device {
    /// Whether it is the processor.
    pub fn is_cpu(&self) -> bool {
        matches!(self, Device::Cpu)
    }
}

impl DeviceKind {
    /// Opens the device for inference. `Auto` stays on the CPU until the GPU path has been measured on a GPU.
    ///
    /// **Errors**: a usage error that says why there is no such device.
    pub fn open(self) -> Result<Device> {
        match self {
            DeviceKind::Auto | DeviceKind::Cpu => Ok(Device::Cpu),
            DeviceKind::Cuda => match gpu::cuda() {
                Ok(gpu) => Ok(Device::Gpu(gpu)),
                Err(reason) => Err(usage(format!("device `cuda` was asked for, but {reason}; use `device = \"cpu\"`"))),
            },
            DeviceKind::Metal => Err(usage(
                "device `metal` was asked for, but this build of glan carries no Metal kernels; use `device = \"cpu\"`",
            )),
        }
    }

    /// The same for whatever trains, or both trains and infers.
    ///
    /// **Errors**: a usage error for anything but the CPU.
    pub fn open_for_training(self) -> Result<candle_core::Device> {
        match self.open()? {
            Device::Cpu => Ok(candle_core::Device::Cpu),
            Device::Gpu(gpu) => {
                Err(usage(format!("training on {} is not there yet; use `device = \"cpu\"`", gpu.name())))
            }
        }
    }
}

/// The type in which weights are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DtypeChoice {
    /// f32 on the CPU, bf16 on a GPU.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16 weights. On the CPU, inference holds its matrices in bf16 and multiplies in bf16 where the processor can
    /// (sums are f32); training rounds the weights when they are loaded and stays in f32.
    Bf16,
}
