//! What a step has to do, in units that a device has a rate for, and how long it takes at these rates.
//!
//! Multiply-adds through a frozen weight are done twice, forward and for the gradient of its input (four FLOP a parameter
//! and token; a third time where layers run again and have kept no more than their input); the weight is dequantised as
//! often. The rest moves bytes: what the layers keep is a measure of it.

use serde::{Deserialize, Serialize};

use crate::adapter::Adapter;
use crate::memory::activations::{length, made_again, of_block, tokens};
use crate::settings::Settings;
use crate::shape::{Shape, Stream};

/// One optimizer step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    pub flop: f64,
    /// Values that are dequantised.
    pub dequantised: f64,
    /// Bytes that everything but matrix products reads and writes.
    pub moved: f64,
}

/// What a device does in a second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    pub flop: f64,
    pub dequantised: f64,
    pub moved: f64,
}

impl Work {
    /// `passes` passes like that of the settings, and the update.
    pub fn of_step(shape: &Shape, adapter: &Adapter, settings: &Settings, passes: f64) -> Self {
        let pass = &settings.pass;
        let again = if settings.checkpointing.makes_products_again() { 1.0 } else { 0.0 };
        let reference = if pass.reference { 1.0 } else { 0.0 };
        let rounds = 2.0 + again + reference;
        let mut work = Self::default();
        // Blocks hold their linear layers in a row, beginning with q.
        let mut stream = Stream::Input;
        for (at, linear) in shape.linears.iter().enumerate() {
            if let Some(block) = shape.blocks.iter().find(|block| block.attention.linears[0] == at) {
                stream = block.stream;
            }
            let cross_input = linear.path.contains("EncDecAttention.k") || linear.path.contains("EncDecAttention.v");
            let rows = tokens(pass, if cross_input { Stream::Input } else { stream }).0 as f64;
            work.flop += 2.0 * rows * linear.values() as f64 * rounds;
            work.flop += 6.0 * rows * (adapter.rank(at) * (linear.input + linear.out)) as f64;
            if linear.coded && settings.code != tailor_domain::QuantCode::None {
                work.dequantised += linear.values() as f64 * rounds;
            }
        }
        for block in &shape.blocks {
            let side = length(pass, block.stream) as f64;
            let width = (block.attention.heads * block.attention.head_dim) as f64;
            // Scores and their sum, of which half is masked; five products backward for two forward.
            work.flop += pass.sequences as f64 * 2.0 * side * side * width * (1.0 + 2.5 + again);
            let product = settings.compute.bytes();
            work.moved += of_block(shape, adapter, block, settings, product).0 as f64 * (2.0 + reference);
            work.moved += made_again(shape, adapter, block, settings, product).0 as f64;
        }
        let labels = pass.labels as f64;
        work.flop += 2.0 * labels * (shape.vocab * shape.hidden) as f64 * (2.0 + reference);
        work.moved += labels * shape.vocab as f64 * 16.0;
        let update = adapter.values() as f64 * 4.0 * 12.0;
        Self { flop: work.flop * passes, dequantised: work.dequantised * passes, moved: work.moved * passes + update }
    }

    /// The same with the weights trained: their own gradient is a third product.
    pub fn of_full_step(self) -> Self {
        Self { flop: self.flop * 1.5, dequantised: 0.0, ..self }
    }

    pub fn seconds(&self, rates: &Rates) -> f64 {
        self.flop / rates.flop + self.dequantised / rates.dequantised + self.moved / rates.moved
    }
}
