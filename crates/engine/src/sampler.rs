//! From one row of logits to a token, by transformers' logits processors in transformers' order: bias, repetition penalty,
//! then temperature, top-k, nucleus (arXiv 1904.09751) and min-p; OpenAI's penalties stand after repetition's.
//!
//! Plain slices, no tensors: the same seed and logits give the same token on every device.

use std::cmp::Ordering;
use std::collections::HashMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::sampling::Sampling;

/// One sequence's sampler: its settings, what it has seen and its own random numbers.
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// Tokens of prompt and answer; how often the answer has each.
    seen: HashMap<u32, u32>,
}

impl Sampler {
    /// # Arguments
    /// `context`: what stands before the answer on the decoder's side.
    pub fn new(sampling: Sampling, context: &[u32]) -> Self {
        let seed = sampling.seed.unwrap_or_else(rand::random);
        let seen = context.iter().map(|token| (*token, 0)).collect();
        Self { sampling, random: ChaCha8Rng::seed_from_u64(seed), seen }
    }

    /// The next token, or None when no logit is a number. The logits are changed by bias and penalties.
    pub fn pick(&mut self, logits: &mut [f32]) -> Option<u32> {
        self.process(logits);
        if self.sampling.temperature == 0.0 {
            return greedy(logits);
        }
        let kept = self.candidates(logits);
        let mass: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let mut point = self.random.random::<f64>() * mass;
        for (token, weight) in &kept {
            point -= f64::from(*weight);
            if point <= 0.0 {
                return Some(*token);
            }
        }
        kept.last().map(|(token, _)| *token)
    }

    /// Whether the next token is the first of the likeliest, whatever the logits are.
    pub fn is_greedy(&self) -> bool {
        let Sampling { temperature, logit_bias, .. } = &self.sampling;
        *temperature == 0.0 && logit_bias.is_empty() && !self.sampling.has_penalties()
    }

    /// Takes note of a token of the answer.
    pub fn note(&mut self, token: u32) {
        *self.seen.entry(token).or_default() += 1;
    }

    /// Bias and penalties.
    fn process(&self, logits: &mut [f32]) {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, logit_bias, .. } = &self.sampling;
        for (token, bias) in logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        if !self.sampling.has_penalties() {
            return;
        }
        let repeats = self.sampling.penalises_repetition();
        for (token, count) in &self.seen {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            if repeats {
                *logit = if *logit < 0.0 { *logit * repetition_penalty } else { *logit / repetition_penalty };
            }
            if *count > 0 {
                *logit -= presence_penalty + frequency_penalty * *count as f32;
            }
        }
    }

    /// What may be drawn, with weights relative to the likeliest's 1.
    fn candidates(&self, logits: &[f32]) -> Vec<(u32, f32)> {
        let mut kept = self.likeliest(logits);
        let top = kept.iter().map(|(_, logit)| *logit).fold(f32::NEG_INFINITY, f32::max);
        for (_, logit) in &mut kept {
            *logit = ((*logit - top) / self.sampling.temperature).exp();
        }
        if let Some(top_p) = self.top_p() {
            kept.truncate(nucleus(&kept, top_p));
        }
        kept.retain(|(_, weight)| *weight >= self.sampling.min_p);
        kept
    }

    /// None where nothing is cut by it.
    fn top_p(&self) -> Option<f64> {
        let top_p = f64::from(self.sampling.top_p);
        (top_p > 0.0 && top_p < 1.0).then_some(top_p)
    }

    /// Finite logits with their tokens: the `top_k` likeliest and what equals the last of them. In order only where the
    /// nucleus needs it: sorting a whole vocabulary takes longer than all the rest.
    fn likeliest(&self, logits: &[f32]) -> Vec<(u32, f32)> {
        let descending = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let mut kept: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).filter(|(_, l)| l.is_finite()).collect();
        let k = self.sampling.top_k as usize;
        if k > 0 && k < kept.len() {
            let (_, last, _) = kept.select_nth_unstable_by(k - 1, descending);
            let least = last.1;
            kept.retain(|(_, logit)| *logit >= least);
        }
        if k > 0 || self.top_p().is_some() {
            kept.sort_unstable_by(descending);
        }
        kept
    }
}

/// How many of `kept` (weights, likeliest first) reach `top_p`; at least one.
fn nucleus(kept: &[(u32, f32)], top_p: f64) -> usize {
    // In f64 and from the largest down, so that the sum does not depend on how many small ones follow.
    let total: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let mut sum = 0.0;
    for (index, (_, weight)) in kept.iter().enumerate() {
        sum += f64::from(*weight);
        if sum >= top_p * total {
            return index + 1;
        }
    }
    kept.len()
}

/// The first of the largest logits; None when all are NaN or there are none.
fn greedy(logits: &[f32]) -> Option<u32> {
    let comparable = (0u32..).zip(logits.iter().copied()).filter(|(_, logit)| !logit.is_nan());
    // `max_by` keeps the last of equals; reversing the tie on the token keeps the first, as torch's argmax does.
    let best = comparable.max_by(|a, b| match a.1.total_cmp(&b.1) {
        Ordering::Equal => b.0.cmp(&a.0),
        unequal => unequal,
    });
    best.map(|(token, _)| token)
}

#[cfg(test)]
mod tests;
