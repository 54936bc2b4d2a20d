//! What answering held-out rows takes when training is over: keys and values of prompt and answer, and one layer's pass over
//! the prompt, of which nothing is kept.

use crate::amount::Amount;
use crate::shape::{Attention, Block, Shape, Stream};

const F32: u64 = 4;
/// Positions by which a cache is cut.
const STEP: u64 = 32;

impl Shape {
    /// Bytes of one row with so many tokens of prompt and of answer, `c` bytes a value of keys, values and activations.
    pub fn answer_bytes(&self, prompt: u64, new: u64, c: u64) -> u64 {
        let logits = Amount(self.vocab) * (c + F32);
        let pass = self.blocks.iter().map(|block| self.pass(block, prompt, c)).max().unwrap_or_default();
        (self.cache(prompt, new, c) + pass + logits).0
    }

    fn cache(&self, prompt: u64, new: u64, c: u64) -> Amount {
        let has_encoder = self.blocks.iter().any(|block| block.stream == Stream::Target);
        let values = |attention: &Attention, positions: u64| {
            Amount(positions.next_multiple_of(STEP)) * 2 * attention.kv_heads * attention.head_dim * c
        };
        let of_block = |block: &Block| match (block.stream, &block.cross) {
            (Stream::Input, _) if has_encoder => Amount::default(),
            (Stream::Input, _) => values(&block.attention, prompt + new),
            (Stream::Target, cross) => {
                let seen = cross.as_ref().map(|cross| values(cross, prompt));
                values(&block.attention, new) + seen.unwrap_or_default()
            }
        };
        self.blocks.iter().map(of_block).sum()
    }

    /// One block's tensors while it runs. The prompts of a batch are padded, so attention takes a mask of all pairs.
    fn pass(&self, block: &Block, prompt: u64, c: u64) -> Amount {
        let tokens = match block.stream {
            Stream::Input => prompt,
            Stream::Target => 1, // the answer comes token by token
        };
        let Attention { heads, kv_heads, head_dim, capped, .. } = block.attention;
        let width = 4 * self.hidden + 2 * (heads + kv_heads) * head_dim + 3 * self.linears[block.gate].out;
        let scores = if capped { heads * (F32 + 2 * c) } else { 0 };
        Amount(tokens) * width * c + Amount(tokens) * tokens * (scores + 1 + c)
    }
}
