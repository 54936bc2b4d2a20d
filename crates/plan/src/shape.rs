//! A base as a plan sees it: its linear layers, what stays dense, and the blocks that activations pass through.
//!
//! Read from config.json alone, so that it can be planned for a base nobody has loaded. `tailor-train`'s tests hold it
//! against the layers of real bases.

mod config;

use tailor_domain::{Family, QuantCode};

use crate::Result;

/// Largest number of blocks, as in the models' own reading.
pub(crate) const MAX_LAYERS: u64 = 1024;

#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    pub model_type: String,
    pub family: Family,
    /// D.
    pub hidden: u64,
    /// V.
    pub vocab: u64,
    /// The head is the embedding.
    pub tied: bool,
    /// Logits go through a cap (Gemma 2).
    pub capped_logits: bool,
    /// Every linear layer but the head, block after block.
    pub linears: Vec<Linear>,
    pub blocks: Vec<Block>,
    /// Values of what is neither a linear layer nor embedding nor head: norms, biases, T5's positions.
    pub other_values: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linear {
    /// As in the checkpoint, without `.weight`.
    pub path: String,
    pub input: u64,
    pub out: u64,
    /// Whether it is put in 4 bits: all but T5's `wo`.
    pub coded: bool,
}

/// Which of a row's two streams a block works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// A decoder's tokens, or the encoder's.
    Input,
    /// An encoder-decoder's answer.
    Target,
}

/// Its linear layers by their place in [`Shape::linears`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub stream: Stream,
    pub attention: Attention,
    /// Over the encoder's states.
    pub cross: Option<Attention>,
    /// Gate (or the only one), up where gated, down.
    pub gate: usize,
    pub up: Option<usize>,
    pub down: usize,
    /// Norms after attention and feed-forward as well as before (Gemma 2 and 3).
    pub post_norms: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// q, k, v, o.
    pub linears: [usize; 4],
    /// H, K and Dh.
    pub heads: u64,
    pub kv_heads: u64,
    pub head_dim: u64,
    /// Each head's queries and keys are normed.
    pub normed: bool,
    /// Scores are capped, for which there is no fused kernel: all are in memory.
    pub capped: bool,
    /// Tokens a query looks back on; the mask is a tensor then.
    pub window: Option<u64>,
}

impl Shape {
    /// # Errors
    /// config.json is no JSON object, of a family that is not supported, or lacks a size.
    pub fn parse(config_json: &[u8]) -> Result<Self> {
        config::parse(config_json)
    }

    /// Values in linear layers that are put in 4 bits.
    pub fn coded_values(&self) -> u64 {
        self.linears.iter().filter(|linear| linear.coded).map(Linear::values).sum()
    }

    /// Values that keep the type of the arithmetic, whatever the code: the embedding and what is not in a linear layer.
    pub fn embedding_values(&self) -> u64 {
        let tables = if self.tied { 1 } else { 2 };
        tables * self.vocab * self.hidden
    }

    /// Values in linear layers that are never put in 4 bits.
    pub fn dense_linear_values(&self) -> u64 {
        self.linears.iter().filter(|linear| !linear.coded).map(Linear::values).sum()
    }

    pub fn parameters(&self) -> u64 {
        self.linears.iter().map(Linear::values).sum::<u64>() + self.embedding_values() + self.other_values
    }

    /// Bytes of everything that is frozen, apart from embedding and head: the linear layers and the norms.
    pub fn weight_bytes(&self, code: QuantCode, element: u64) -> u64 {
        let coded: u64 =
            self.linears.iter().filter(|linear| linear.coded).map(|linear| linear.bytes(code, element)).sum();
        coded + (self.dense_linear_values() + self.other_values) * element
    }

    pub fn embedding_bytes(&self, element: u64) -> u64 {
        self.embedding_values() * element
    }

    /// Values of the largest weight that is dequantised.
    pub fn largest_coded(&self) -> u64 {
        self.linears.iter().filter(|linear| linear.coded).map(Linear::values).max().unwrap_or(0)
    }

    /// Values of a row of the widest input or output of one.
    pub fn widest_coded(&self) -> u64 {
        self.linears.iter().filter(|linear| linear.coded).map(|linear| linear.input.max(linear.out)).max().unwrap_or(0)
    }
}

impl Linear {
    pub fn values(&self) -> u64 {
        self.input * self.out
    }

    /// In blocks of 64, as bitsandbytes stores them; `element` bytes a value where nothing is coded.
    fn bytes(&self, code: QuantCode, element: u64) -> u64 {
        const BLOCK: u64 = 64;
        const NESTED_BLOCK: u64 = 256;
        const CODE_BOOK: u64 = 16 * 4;
        let values = self.values();
        let blocks = values.div_ceil(BLOCK);
        let packed = values.div_ceil(2);
        match code {
            QuantCode::Nf4 => packed + blocks + blocks.div_ceil(NESTED_BLOCK) * 4 + 256 * 4 + CODE_BOOK,
            QuantCode::Nf4Single | QuantCode::Fp4 => packed + blocks * 4 + CODE_BOOK,
            QuantCode::Uniform4 => packed + blocks * 8,
            QuantCode::None => values * element,
        }
    }
}

#[cfg(test)]
mod tests;
