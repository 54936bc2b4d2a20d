//! Peak memory of a training run, added up part by part.
//!
//! The parts are those of the QLoRA paper (arXiv 2305.14314 §4, figure 6): the 4-bit weights, the embeddings in the type
//! of the arithmetic, the adapter with its gradients and the optimizer's states, the activations that the checkpointing
//! policy keeps (arXiv 1604.06174), and what one layer, the head or the update needs for a moment. The dequantised weight
//! is in the last: it is made again for each pass and never kept.
//!
//! `cargo xtask bench memory` holds the sum against measured peaks.

pub(crate) mod activations;
mod answers;

use serde::{Deserialize, Serialize};
use tailor_domain::QuantCode;

use crate::adapter::Adapter;
use crate::device::DeviceKind;
use crate::settings::{Compute, Settings};
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
    /// A and B in f32, what else is trained, and what PiSSA takes off the weights.
    pub adapter: u64,
    pub gradients: u64,
    /// Moments, and on a CPU the copy of the best state, which is in the host's memory.
    pub optimizer: u64,
    /// What is kept from the forward pass for the backward pass.
    pub activations: u64,
    /// What the costliest moment needs on top: one layer, the head, the update, or an answer to a held-out row.
    pub working_set: u64,
}

impl Memory {
    pub fn total(&self) -> u64 {
        self.parts().iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
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

    /// Bytes that are free for answers to held-out rows once training is over: base and adapter stay.
    pub fn for_answers(&self) -> u64 {
        self.own().saturating_add(self.activations).saturating_add(self.working_set)
    }

    /// Those of them that nobody else counts on between this job's turns.
    pub fn own(&self) -> u64 {
        self.gradients.saturating_add(self.optimizer)
    }

    /// What training with these settings takes on a device of this kind, and then answering a held-out row at a time.
    pub fn of(shape: &Shape, adapter: &Adapter, settings: &Settings, kind: DeviceKind) -> Self {
        const F32: u64 = 4;
        let settings = &settings.on(kind);
        let element = settings.compute.bytes();
        let trained = adapter.values();
        let product = kind.product_bytes(settings.compute);
        let kept = activations::kept(shape, adapter, settings, product).0;
        let moment = activations::moment(shape, adapter, settings, product).0;
        let moment = moment.max(update(trained, settings, kind).saturating_sub(kept));
        let mut memory = Self {
            runtime: kind.runtime_bytes(),
            weights: shape.weight_bytes(settings.code, element),
            embeddings: shape.embedding_bytes(element),
            adapter: trained * F32 * if settings.takes_off { 2 } else { 1 },
            gradients: trained * F32,
            optimizer: optimizer(trained, settings, kind),
            activations: kept,
            working_set: moment.saturating_add(scratch(shape, settings, kind)),
        };
        let (prompt, new) = settings.answer;
        let beyond = shape.answer_bytes(prompt, new, element).saturating_sub(memory.for_answers());
        memory.working_set = memory.working_set.saturating_add(beyond);
        memory
    }
}

fn optimizer(trained: u64, settings: &Settings, kind: DeviceKind) -> u64 {
    const F32: u64 = 4;
    let moments = match (settings.optimizer.is_paged(), settings.optimizer.in_8_bits()) {
        // They leave a GPU where room is needed.
        (true, _) if kind == DeviceKind::Gpu => 0,
        (_, false) => 2 * trained * F32,
        // One byte each, and an f32 scale for 256 of them.
        (_, true) => 2 * (trained + trained.div_ceil(256) * F32),
    };
    // Learning rates of their own are a factor for each value.
    let rates = if settings.own_rates { trained * F32 } else { 0 };
    let best = if settings.measures && kind != DeviceKind::Gpu { trained * F32 } else { 0 };
    moments + rates + best
}

/// The update's temporaries: the gradient in one piece, and of each value its scaled gradient, two new moments and what is
/// made of them. In 8 bits a slice of 2 Mi values is open at a time. On a GPU one launch does it all in registers.
///
/// At the end two copies of the adapter are on their way out, which is more where little is open at a time; on a GPU they
/// are in the host's memory.
fn update(trained: u64, settings: &Settings, kind: DeviceKind) -> u64 {
    const F32: u64 = 4;
    const SLICE: u64 = 1 << 21;
    // Of each value the step's rate, correction and decay.
    let factors = if settings.own_rates || settings.unfreezes { 3 * trained * F32 } else { 0 };
    let gathered = trained * F32;
    if kind == DeviceKind::Gpu {
        return gathered + factors;
    }
    let at_once = if settings.optimizer.in_8_bits() { trained.min(SLICE) } else { trained };
    (gathered + 6 * at_once * F32 + factors).max(2 * trained * F32)
}

/// The buffer that weights are brought into before they are multiplied: as large as the largest. On a host that multiplies bf16
/// some two thousand rows may be put beside each other instead, for a product with the packed weight.
fn scratch(shape: &Shape, settings: &Settings, kind: DeviceKind) -> u64 {
    // As `tailor_quant::Panels` takes at a time at most.
    const ROWS: u64 = 2240;
    let product = kind.product_bytes(settings.compute);
    if settings.code == QuantCode::None {
        let converted = product != settings.compute.bytes();
        return if converted { shape.largest_coded() * product } else { 0 };
    }
    let weights = shape.largest_coded() * product;
    if kind != DeviceKind::Cpu || settings.compute != Compute::Bf16 {
        return weights;
    }
    let rows = settings.pass.sequences * settings.pass.input.max(settings.pass.target);
    weights.max(rows.min(ROWS) * shape.widest_coded() * product)
}
