//! Log-probabilities of a token and of those that might have stood in its place: of the model's own logits, before bias,
//! penalties and temperature.

use std::cmp::Ordering;

/// Most alternatives that can be asked for; OpenAI's limit too.
pub const MAX_TOP_LOGPROBS: u8 = 20;

#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// ln p of the token itself.
    pub chosen: f32,
    /// The likeliest tokens with theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// None where the token is not of the vocabulary.
    pub fn of(logits: &[f32], token: u32, top: u8) -> Option<Self> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
        let log_sum = f64::from(largest) + sum.ln();
        let of = |logit: f32| (f64::from(logit) - log_sum) as f32;
        Some(Self {
            chosen: of(*logits.get(token as usize)?),
            top: likeliest(logits, top.into()).into_iter().map(|(token, logit)| (token, of(logit))).collect(),
        })
    }
}

fn likeliest(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let descending = |a: &(u32, f32), b: &(u32, f32)| -> Ordering { b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)) };
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    let count = count.min(all.len());
    if count == 0 {
        return Vec::new();
    }
    all.select_nth_unstable_by(count - 1, descending);
    all.truncate(count);
    all.sort_unstable_by(descending);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_the_log_softmax_with_the_likeliest_first() {
        let logits = [1f32.ln() + 50.0, 4f32.ln() + 50.0, 3f32.ln() + 50.0, f32::NEG_INFINITY];
        let found = Logprobs::of(&logits, 0, 2).expect("in the vocabulary");
        assert!((found.chosen - 0.125f32.ln()).abs() < 1e-5);
        assert_eq!(found.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2]);
        assert!((found.top[0].1 - 0.5f32.ln()).abs() < 1e-5);
        assert!(Logprobs::of(&logits, 4, 2).is_none());
        assert_eq!(Logprobs::of(&logits, 1, 20).expect("found").top.len(), 4);
        assert!(Logprobs::of(&logits, 1, 0).expect("found").top.is_empty());
    }
}
