//! Our side: a base in bf16 compute, its pages, and steps over them.

use std::path::Path;
use std::time::Instant;

use tailor_models::{BLOCK_TOKENS, Base, Compute, KvPool, LoadOptions, Lora, LoraSet, Segment};
use tailor_testkit::LlamaShape;
use tch::{Device, Kind, Tensor};

use crate::Failure;

/// Tokens of each sequence before those that are timed.
const WARM_UP: usize = 4;
/// Blocks of a sequence's room.
const BLOCKS: usize = 32;

/// What is wanted of a step of decoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The likeliest token: greedy decoding.
    Likeliest,
    /// All logits, to sample from them.
    Logits,
}

pub struct Ours {
    base: Base,
    pool: KvPool,
    vocab: usize,
}

impl Ours {
    pub fn load(folder: &Path, vocab: usize) -> Result<Self, Failure> {
        let mut base = Base::load(folder, &LoadOptions { compute: Compute::Bf16, ..LoadOptions::default() })?;
        base.prepare_to_serve();
        let pool = base.kv_pool(32 * BLOCKS)?;
        Ok(Self { base, pool, vocab })
    }

    /// Weights of this shape made on the device.
    pub fn random(shape: &LlamaShape, device: Device) -> Result<Self, Failure> {
        let base =
            Base::random_four_bit(shape.config().as_bytes(), &LoadOptions { compute: Compute::Bf16, device }, 1)?;
        let pool = base.kv_pool(32 * BLOCKS)?;
        Ok(Self { base, pool, vocab: shape.vocab })
    }

    /// Bytes of weights that a step reads: all but the embedding, of which it needs a row a token. Of what tells the likeliest token
    /// the rows that are looked at besides are not counted.
    pub fn bytes(&self, wanted: Wanted) -> usize {
        let table = self.base.embedding_size() * self.vocab * 2;
        let layers = self.base.resident_bytes() - self.base.prepared_bytes() - 2 * table;
        let (whole, likeliest) = self.base.head_bytes();
        layers + if wanted == Wanted::Logits { whole } else { likeliest }
    }

    /// Seconds of `steps` steps of one token for each of `sets`.
    pub fn decode(&self, sets: &[Option<&LoraSet>], steps: usize, wanted: Wanted) -> Result<f64, Failure> {
        let mut seconds = 0.0;
        for at in 0..WARM_UP + steps {
            let tokens: Vec<[u32; 1]> = (0..sets.len()).map(|i| [((at * 7 + i) % self.vocab) as u32]).collect();
            let blocks: Vec<Vec<u32>> = (0..sets.len()).map(|i| self.blocks(i, at + 1)).collect();
            let segments = tokens.iter().zip(&blocks).zip(sets).map(|((tokens, blocks), set)| Segment {
                tokens,
                past: at,
                blocks,
                cross: None,
                adapter: *set,
                logits: 1,
                likeliest: wanted == Wanted::Likeliest,
            });
            let segments: Vec<Segment<'_>> = segments.collect();
            let start = Instant::now();
            let next = self.base.next(&segments, &self.pool)?;
            // A GPU is waited for, and its result brought, as sampling does.
            std::hint::black_box(&next.logits.f_to_device(Device::Cpu)?);
            if at >= WARM_UP {
                seconds += start.elapsed().as_secs_f64();
            }
        }
        Ok(seconds)
    }

    /// Seconds for a prompt of so many tokens.
    pub fn prefill(&self, count: usize) -> Result<f64, Failure> {
        let tokens: Vec<u32> = (0..count).map(|i| (i % self.vocab) as u32).collect();
        let blocks = self.blocks(0, count);
        let whole = Segment {
            tokens: &tokens,
            past: 0,
            blocks: &blocks,
            cross: None,
            adapter: None,
            logits: 1,
            likeliest: false,
        };
        let start = Instant::now();
        let logits = self.base.advance(&[whole], &self.pool)?;
        std::hint::black_box(&logits.f_to_device(Device::Cpu)?);
        Ok(start.elapsed().as_secs_f64())
    }

    /// Random factors on every linear layer, as serving keeps them.
    pub fn adapter(&self, rank: i64, seed: i64) -> Result<LoraSet, Failure> {
        tch::manual_seed(seed);
        let mut set = LoraSet::empty(&self.base);
        for linear in self.base.linears() {
            let random = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, self.base.device())) * 0.01;
            let (a, b) = (random([rank, linear.in_features]), random([linear.out_features, rank]));
            set.insert(&linear.path, Lora { a, b, scale: 2.0, dropout: 0.0 })?;
        }
        set.serve(&self.base)?;
        Ok(set)
    }

    fn blocks(&self, sequence: usize, tokens: usize) -> Vec<u32> {
        let first = sequence * BLOCKS;
        (first..first + tokens.div_ceil(BLOCK_TOKENS)).map(|block| block as u32).collect()
    }
}
