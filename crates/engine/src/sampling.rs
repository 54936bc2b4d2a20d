//! How the next token is chosen: the settings of a request and their limits.
//!
//! Names and meanings are those of transformers' generation config; presence and frequency penalties are OpenAI's.

/// Entries of a logit bias; OpenAI's own limit is lower.
const MAX_BIASES: usize = 1024;

#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keeps the fewest tokens whose probabilities reach this sum; 1 (or 0, unset) is off.
    pub top_p: f32,
    /// Keeps the k likeliest tokens and what equals the last of them; 0 is off.
    pub top_k: u32,
    /// Keeps tokens at least so likely as this share of the likeliest (arXiv 2407.01082); 0 is off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that stand in prompt or answer (CTRL, arXiv 1909.05858
    /// §4.1); 1 (or 0, unset) is off.
    pub repetition_penalty: f32,
    /// Taken off the logit of each token that the answer has.
    pub presence_penalty: f32,
    /// Taken off the logit of a token for each time that the answer has it.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// None draws a seed.
    pub seed: Option<u64>,
}

impl Sampling {
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: Vec::new(),
        seed: None,
    };

    /// Whether logits depend on what stands before.
    pub(crate) fn has_penalties(&self) -> bool {
        self.penalises_repetition() || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    pub(crate) fn penalises_repetition(&self) -> bool {
        self.repetition_penalty != 1.0 && self.repetition_penalty != 0.0
    }

    /// # Errors
    /// Names the field, its value and its limits.
    pub fn validate(&self) -> Result<(), String> {
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.0, 100.0)?;
        within("presence_penalty", self.presence_penalty, -100.0, 100.0)?;
        within("frequency_penalty", self.frequency_penalty, -100.0, 100.0)?;
        if self.logit_bias.len() > MAX_BIASES {
            return Err(format!("logit_bias has {} tokens, the limit is {MAX_BIASES}", self.logit_bias.len()));
        }
        self.logit_bias.iter().try_for_each(|(token, bias)| {
            within("logit_bias", *bias, -1000.0, 1000.0).map_err(|problem| format!("{problem} (of token {token})"))
        })
    }
}

fn within(field: &str, value: f32, least: f32, most: f32) -> Result<(), String> {
    // Written so that a NaN fails too.
    if value >= least && value <= most {
        return Ok(());
    }
    Err(format!("{field} {value} is outside {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_outside_their_limits_are_refused_by_name() {
        assert!(Sampling::GREEDY.validate().is_ok());
        let refused = |change: fn(&mut Sampling)| {
            let mut sampling = Sampling::GREEDY;
            change(&mut sampling);
            sampling.validate().expect_err("refused")
        };
        assert_eq!(refused(|s| s.temperature = f32::NAN), "temperature NaN is outside 0 to 100");
        assert_eq!(refused(|s| s.temperature = -1.0), "temperature -1 is outside 0 to 100");
        assert_eq!(refused(|s| s.top_p = 1.5), "top_p 1.5 is outside 0 to 1");
        assert_eq!(refused(|s| s.min_p = 2.0), "min_p 2 is outside 0 to 1");
        assert_eq!(refused(|s| s.repetition_penalty = -1.0), "repetition_penalty -1 is outside 0 to 100");
        assert!(refused(|s| s.presence_penalty = f32::INFINITY).contains("presence_penalty"));
        assert!(refused(|s| s.frequency_penalty = 101.0).contains("frequency_penalty"));
        assert!(refused(|s| s.logit_bias = vec![(7, f32::NAN)]).contains("of token 7"));
        assert!(refused(|s| s.logit_bias = vec![(7, 0.0); 1025]).contains("1025 tokens"));
    }
}
