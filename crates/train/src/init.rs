//! The first values of an adapter. LoRA's: A from kaiming_uniform(a = √5), B zero, so that training starts at the base.
//!
//! With a = √5 the bound √6/√((1 + a²)·fan_in) is 1/√fan_in, as PEFT's A has it. Our own generator draws the numbers,
//! so the same seed gives the same adapter whatever torch does.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Keeps the numbers of initialisation apart from those of shuffling under one seed.
const STREAM: u64 = u64::MAX;

pub struct Init {
    random: ChaCha8Rng,
}

impl Init {
    pub fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(STREAM);
        Self { random }
    }

    /// Values of A `[R, in]`.
    pub fn lora_a(&mut self, rank: usize, in_features: usize) -> Vec<f32> {
        self.uniform(rank * in_features, 1.0 / (in_features as f32).sqrt())
    }

    /// `count` values between -`bound` and `bound`.
    pub fn uniform(&mut self, count: usize, bound: f32) -> Vec<f32> {
        (0..count).map(|_| self.random.random_range(-bound..=bound)).collect()
    }

    /// `count` tokens of a vocabulary, with replacement.
    pub fn tokens(&mut self, count: usize, vocab: u32) -> Vec<u32> {
        (0..count).map(|_| self.random.random_range(0..vocab.max(1))).collect()
    }

    /// Values of B `[out, R]`.
    pub fn lora_b(&mut self, out_features: usize, rank: usize) -> Vec<f32> {
        vec![0.0; out_features * rank]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_is_uniform_within_one_over_root_fan_in_and_b_is_zero() {
        let a = Init::new(7).lora_a(16, 256);
        let bound = 1.0 / 16.0;
        assert!(a.iter().all(|value| value.abs() <= bound));
        let variance = a.iter().map(|value| value * value).sum::<f32>() / a.len() as f32;
        assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.1, "variance {variance}");
        assert!(Init::new(7).lora_b(4, 2).iter().all(|value| *value == 0.0));
    }

    #[test]
    fn the_seed_decides_a() {
        assert_eq!(Init::new(7).lora_a(2, 8), Init::new(7).lora_a(2, 8));
        assert_ne!(Init::new(7).lora_a(2, 8), Init::new(8).lora_a(2, 8));
    }
}
