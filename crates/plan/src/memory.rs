//! Peak memory of a training run, added up part by part.
//!
//! The parts are those of the QLoRA paper (arXiv 2305.14314 §4, figure 6): the 4-bit weights, the embeddings in the type
//! of the arithmetic, the adapter with its gradients and the optimizer's states, the activations that the checkpointing
//! policy keeps (arXiv 1604.06174), and what one layer, the head or the update needs for a moment. The dequantised weight
//! is in the last: it is made again for each pass and never kept.
//!
//! `cargo xtask bench memory` holds the sum against measured peaks.

pub(crate) mod activations;

use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::device::DeviceKind;
use crate::settings::Settings;
use crate::shape::Shape;

/// Bytes by part; they add up to the peak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The libraries, before anything is loaded.
    pub runtime: u64,
    /// Linear layers in their code, norms beside them.
    pub weights: u64,
    /// Embedding and head.
    pub embeddings: u64,
    /// A and B in f32, and what else is trained.
    pub adapter: u64,
    pub gradients: u64,
    /// Moments, and the copy of the best state.
    pub optimizer: u64,
    /// What is kept from the forward pass for the backward pass.
    pub activations: u64,
    /// What the costliest moment needs on top: one layer, the head or the update.
    pub working_set: u64,
}

impl Memory {
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// By name, in the order in which they come into being.
    pub fn parts(&self) -> [(&'static str, u64); 8] {
        [
            ("runtime", self.runtime),
            ("weights", self.weights),
            ("embeddings", self.embeddings),
            ("adapter", self.adapter),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("activations", self.activations),
            ("working set", self.working_set),
        ]
    }

    /// What training with these settings takes on a device of this kind.
    pub fn of(shape: &Shape, adapter: &Adapter, settings: &Settings, kind: DeviceKind) -> Self {
        const F32: u64 = 4;
        // A GPU's attention goes by where texts begin, whatever shares a sequence.
        let mut settings = settings.clone();
        settings.pass.masked &= kind != DeviceKind::Gpu;
        let settings = &settings;
        let element = settings.compute.bytes();
        let trained = adapter.values();
        // In 8 bits one byte each, and an f32 scale for 256 of them. Paged ones are counted as if none had left.
        let moments = match settings.optimizer.in_8_bits() {
            false => 2 * trained * F32,
            true => 2 * (trained + trained.div_ceil(256) * F32),
        };
        let best = if settings.measures { trained * F32 } else { 0 };
        let product = kind.product_bytes(settings.compute);
        let kept = activations::kept(shape, adapter, settings, product);
        let moment = activations::moment(shape, adapter, settings, product);
        let moment = moment.max(update(trained, settings).saturating_sub(kept));
        Self {
            runtime: kind.runtime_bytes(),
            weights: shape.weight_bytes(settings.code, element),
            embeddings: shape.embedding_bytes(element),
            adapter: trained * F32,
            gradients: trained * F32,
            optimizer: moments + best,
            activations: kept,
            working_set: moment + scratch(shape, settings, product),
        }
    }
}

/// The update's temporaries: the gradient in one piece, and of each value its scaled gradient, two new moments and what is
/// made of them. In 8 bits a slice of 2 Mi values is open at a time.
///
/// At the end two copies of the adapter are on their way out, which is more where little is open at a time.
fn update(trained: u64, settings: &Settings) -> u64 {
    const F32: u64 = 4;
    const SLICE: u64 = 1 << 21;
    let at_once = if settings.optimizer.in_8_bits() { trained.min(SLICE) } else { trained };
    (trained * F32 + 6 * at_once * F32).max(2 * trained * F32)
}

/// The buffer that weights are brought into before they are multiplied: as large as the largest, `product` bytes a value.
fn scratch(shape: &Shape, settings: &Settings, product: u64) -> u64 {
    match settings.code {
        tailor_domain::QuantCode::None if product == settings.compute.bytes() => 0,
        _ => shape.largest_coded() * product,
    }
}
