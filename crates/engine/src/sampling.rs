//! From one row of logits to a token: greedy, or temperature with top-k and nucleus (arXiv 1904.09751) cuts.
//!
//! Plain slices, no tensors: the same seed and logits give the same token on every device.

use std::cmp::Ordering;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keeps the fewest tokens whose probabilities reach this sum; 1 (or 0, unset) is off.
    pub top_p: f32,
    /// Keeps the k likeliest tokens; 0 is off.
    pub top_k: u32,
    /// None draws a seed.
    pub seed: Option<u64>,
}

impl Sampling {
    pub const GREEDY: Self = Self { temperature: 0.0, top_p: 1.0, top_k: 0, seed: None };

    /// # Errors
    /// Names the field, its value and its limits.
    pub fn validate(&self) -> Result<(), String> {
        // Written so that a NaN fails too.
        if !(self.temperature >= 0.0 && self.temperature <= 100.0) {
            return Err(format!("temperature {} is outside 0 to 100", self.temperature));
        }
        if !(self.top_p >= 0.0 && self.top_p <= 1.0) {
            return Err(format!("top_p {} is outside 0 to 1", self.top_p));
        }
        Ok(())
    }
}

/// One sequence's sampler: its settings and its own random numbers.
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    pub fn new(sampling: Sampling) -> Self {
        let seed = sampling.seed.unwrap_or_else(rand::random);
        Self { sampling, random: ChaCha8Rng::seed_from_u64(seed) }
    }

    pub fn is_greedy(&self) -> bool {
        self.sampling.temperature == 0.0
    }

    /// The next token, or None when no logit is a number.
    pub fn pick(&mut self, logits: &[f32]) -> Option<u32> {
        if self.is_greedy() {
            return greedy(logits);
        }
        let mut kept = self.likeliest(logits);
        let top = kept.first()?.1;
        let temperature = self.sampling.temperature;
        // In f64 and from the largest down, so that the sum does not depend on how many small ones follow.
        let mut total = 0.0;
        for (_, logit) in &mut kept {
            *logit = ((*logit - top) / temperature).exp();
            total += f64::from(*logit);
        }
        let nucleus = self.nucleus(&kept, total);
        let kept = &kept[..nucleus];
        let mass: f64 = kept.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let mut point = self.random.random::<f64>() * mass;
        for (token, weight) in kept {
            point -= f64::from(*weight);
            if point <= 0.0 {
                return Some(*token);
            }
        }
        kept.last().map(|(token, _)| *token)
    }

    /// Finite logits with their tokens, likeliest first, no more than `top_k`.
    fn likeliest(&self, logits: &[f32]) -> Vec<(u32, f32)> {
        let descending = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let mut kept: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).filter(|(_, l)| l.is_finite()).collect();
        let k = self.sampling.top_k as usize;
        if k > 0 && k < kept.len() {
            kept.select_nth_unstable_by(k - 1, descending);
            kept.truncate(k);
        }
        kept.sort_unstable_by(descending);
        kept
    }

    /// How many of `kept` (weights, likeliest first) reach `top_p`; at least one.
    fn nucleus(&self, kept: &[(u32, f32)], total: f64) -> usize {
        let top_p = f64::from(self.sampling.top_p);
        if top_p <= 0.0 || top_p >= 1.0 {
            return kept.len();
        }
        let mut sum = 0.0;
        for (index, (_, weight)) in kept.iter().enumerate() {
            sum += f64::from(*weight);
            if sum >= top_p * total {
                return index + 1;
            }
        }
        kept.len()
    }
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
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_p: f32, top_k: u32) -> Sampling {
        Sampling { temperature, top_p, top_k, seed: Some(11) }
    }

    fn shares(sampling: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(sampling);
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.pick(logits).expect("a token") as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest_and_never_a_nan() {
        assert_eq!(greedy(&[0.0, 2.0, f32::NAN, 2.0]), Some(1));
        assert_eq!(greedy(&[f32::NAN]), None);
        assert_eq!(greedy(&[]), None);
        assert_eq!(Sampler::new(Sampling::GREEDY).pick(&[f32::NEG_INFINITY, -1.0]), Some(1));
    }

    #[test]
    fn draws_follow_the_softmax_at_the_temperature() {
        let shares = shares(sampling(2.0, 1.0, 0), &[0.0, 2.0 * 3f32.ln(), f32::NEG_INFINITY]);
        assert!((shares[0] - 0.25).abs() < 0.01 && (shares[1] - 0.75).abs() < 0.01, "{shares:?}");
        assert_eq!(shares[2], 0.0);
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [4f32.ln(), 1f32.ln(), 3f32.ln(), 2f32.ln()];
        assert_eq!(shares(sampling(1.0, 1.0, 2), &logits).iter().filter(|s| **s > 0.0).count(), 2);
        let nucleus = shares(sampling(1.0, 0.69, 0), &logits);
        assert!(nucleus[0] > 0.0 && nucleus[2] > 0.0 && nucleus[1] == 0.0 && nucleus[3] == 0.0, "{nucleus:?}");
        let least = shares(sampling(1.0, 1e-6, 0), &logits);
        assert!(least[0] > 0.0 && least[1..].iter().all(|share| *share == 0.0), "the likeliest is always kept");
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let draw = || {
            let mut sampler = Sampler::new(sampling(1.0, 1.0, 0));
            (0..50).filter_map(|_| sampler.pick(&[0.1, 0.2, 0.3, 0.4])).collect::<Vec<_>>()
        };
        assert_eq!(draw(), draw());
    }

    #[test]
    fn settings_outside_their_limits_are_refused() {
        assert!(sampling(f32::NAN, 1.0, 0).validate().is_err());
        assert!(sampling(-1.0, 1.0, 0).validate().is_err());
        assert!(sampling(1.0, 1.5, 0).validate().is_err());
        assert!(sampling(0.0, 0.0, 0).validate().is_ok());
    }
}
