//! Where tensors live: the CPU, or a GPU in builds that carry its kernels.

use anyhow::Result;
use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::error::usage;

/// The device that a user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The best one that this binary and this machine have.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU.
    Metal,
}

impl DeviceKind {
    /// Opens the device.
    ///
    /// **Errors**: a usage error when this binary does not carry the device's kernels.
    pub fn open(self) -> Result<Device> {
        match self {
            DeviceKind::Auto | DeviceKind::Cpu => Ok(Device::Cpu),
            DeviceKind::Cuda => Err(usage(
                "device `cuda` was asked for, but this build of glan carries no CUDA kernels; use `device = \"cpu\"`",
            )),
            DeviceKind::Metal => Err(usage(
                "device `metal` was asked for, but this build of glan carries no Metal kernels; use `device = \"cpu\"`",
            )),
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
