//! What a job can run on, and how much memory that has. The table is a beginning: a request and the settings add to it.

use serde::{Deserialize, Serialize};

use crate::settings::Compute;

const GB: u64 = 1_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    Cpu,
    /// A CPU without bf16 instructions: bf16 tensors are multiplied in f32, and what a product reads and writes is in f32
    /// for that moment.
    CpuF32,
    Gpu,
}

impl DeviceKind {
    /// What is gone before anything is loaded: on a CPU the libraries with their buffers, on a GPU the context with the
    /// kernels and what the allocator loses to rounding.
    pub fn runtime_bytes(self) -> u64 {
        match self {
            Self::Cpu => 170 << 20,
            // Without the buffers of bf16 products.
            Self::CpuF32 => 150 << 20,
            Self::Gpu => 1 << 30,
        }
    }

    /// Bytes of a value while it is multiplied, of tensors in this type.
    pub fn product_bytes(self, compute: Compute) -> u64 {
        match self {
            Self::CpuF32 => Compute::F32.bytes(),
            Self::Cpu | Self::Gpu => compute.bytes(),
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu | Self::CpuF32 => "cpu",
            Self::Gpu => "gpu",
        }
    }
}

/// A card, or a machine without one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Device {
    pub name: String,
    pub kind: DeviceKind,
    pub memory_bytes: u64,
}

impl Device {
    pub fn gpu(name: &str, memory_bytes: u64) -> Self {
        Self { name: name.to_owned(), kind: DeviceKind::Gpu, memory_bytes }
    }

    /// `bf16`: it has instructions for products in bf16.
    pub fn cpu(name: &str, memory_bytes: u64, bf16: bool) -> Self {
        let kind = if bf16 { DeviceKind::Cpu } else { DeviceKind::CpuF32 };
        Self { name: name.to_owned(), kind, memory_bytes }
    }

    /// The usual cards by what their makers say they hold.
    pub fn cards() -> Vec<Self> {
        [
            ("24 GB (RTX 4090, L4, A10)", 24),
            ("40 GB (A100)", 40),
            ("48 GB (L40S, RTX 6000)", 48),
            ("80 GB (A100, H100)", 80),
            ("141 GB (H200)", 141),
        ]
        .map(|(name, gigabytes)| Self::gpu(name, gigabytes * GB))
        .into()
    }
}
