//! The engine's settings, and what it says about itself.

use tailor_domain::{Digest, Family};
use tailor_models::Compute;

use crate::error::Error;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Requests that may wait for the device; the next one is refused.
    pub max_queue: usize,
    /// Sequences in one step.
    pub max_batch: usize,
    /// Longest sequence in tokens, where the base itself sets no lower limit.
    pub max_context: usize,
    /// Threads of a CPU operation; 0 leaves torch's choice.
    pub threads: usize,
    /// The type of activations and of dequantised weights.
    pub compute: Compute,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { max_queue: 256, max_batch: 32, max_context: 8192, threads: 0, compute: Compute::default() }
    }
}

impl EngineOptions {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        if !(1..=4096).contains(&self.max_batch) {
            return Err(Error::Invalid(format!("max_batch {} is outside 1 to 4096", self.max_batch)));
        }
        if !(1..=1 << 20).contains(&self.max_queue) {
            return Err(Error::Invalid(format!("max_queue {} is outside 1 to {}", self.max_queue, 1 << 20)));
        }
        if !(8..=1 << 20).contains(&self.max_context) {
            return Err(Error::Invalid(format!("max_context {} is outside 8 to {}", self.max_context, 1 << 20)));
        }
        if self.threads > 1024 {
            return Err(Error::Invalid(format!("threads {} is outside 0 to 1024", self.threads)));
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    pub family: Family,
    /// Bytes of the base on the device.
    pub resident_bytes: u64,
    /// Longest sequence in tokens; for an encoder-decoder of either side.
    pub max_context: usize,
    pub vocab_size: usize,
    pub eos_ids: Vec<u32>,
}

impl EngineInfo {
    pub(crate) fn is_encoder_decoder(&self) -> bool {
        self.family == Family::EncoderDecoder
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResidentAdapter {
    pub digest: Digest,
    pub size_bytes: u64,
    /// The largest rank of its matrices.
    pub rank: u32,
}
