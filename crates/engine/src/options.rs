//! The engine's settings, and what it says about itself.

use tailor_domain::{Digest, Family};
use tailor_models::{Compute, Config};

use crate::error::Error;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Requests that may wait for the device; the next one is refused.
    pub max_queue: usize,
    /// Tokens that the requests that wait may come to, prompts and answers together.
    pub max_queue_tokens: usize,
    /// Sequences in one step.
    pub max_batch: usize,
    /// Prompt tokens in one step: fewer make long prompts slower and answers beside them steadier.
    pub max_step_tokens: usize,
    /// Memory for keys and values; one sequence of the greatest length fits always.
    pub kv_bytes: u64,
    /// Longest sequence in tokens, where the base itself sets no lower limit.
    pub max_context: usize,
    /// Threads of a CPU operation; 0 leaves torch's choice.
    pub threads: usize,
    /// The type of activations and of dequantised weights.
    pub compute: Compute,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_queue: 256,
            max_queue_tokens: 1 << 20,
            max_batch: 32,
            max_step_tokens: 512,
            kv_bytes: 4 << 30,
            max_context: 8192,
            threads: 0,
            compute: Compute::default(),
        }
    }
}

impl EngineOptions {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        within("max_batch", self.max_batch, 1..=4096)?;
        within("max_queue", self.max_queue, 1..=1 << 20)?;
        within("max_queue_tokens", self.max_queue_tokens, 1..=1 << 30)?;
        within("max_step_tokens", self.max_step_tokens, 1..=1 << 20)?;
        within("max_context", self.max_context, 8..=1 << 20)?;
        within("threads", self.threads, 0..=1024)
    }

    /// Longest sequence of a base in tokens.
    pub(crate) fn context(&self, config: &Config) -> usize {
        let positions = config.max_positions().map_or(usize::MAX, |positions| positions as usize);
        positions.min(self.max_context)
    }

    /// Blocks of the cache for a base, and the bytes of each: what fits the budget, never less than one longest sequence
    /// needs, and no more than would ever be of use.
    pub(crate) fn kv_blocks(&self, config: &Config) -> (usize, usize) {
        let block_bytes = config.block_bytes(self.compute);
        let sides = if config.family() == Family::EncoderDecoder { 2 } else { 1 };
        let longest = sides * self.context(config).div_ceil(tailor_models::BLOCK_TOKENS);
        let fitting = self.kv_bytes / block_bytes.max(1) as u64;
        let useful = longest.saturating_mul(self.max_batch).saturating_mul(2);
        (usize::try_from(fitting).unwrap_or(usize::MAX).min(useful).max(longest), block_bytes)
    }
}

fn within(field: &str, value: usize, limits: std::ops::RangeInclusive<usize>) -> Result<(), Error> {
    if limits.contains(&value) {
        return Ok(());
    }
    Err(Error::Invalid(format!("{field} {value} is outside {} to {}", limits.start(), limits.end())))
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineInfo {
    pub family: Family,
    /// Bytes of the base on the device.
    pub resident_bytes: u64,
    /// Bytes of its keys and values.
    pub kv_bytes: u64,
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
