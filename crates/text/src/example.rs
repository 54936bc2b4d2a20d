//! A row as a model learns from it: token ids, and which of them count in the loss.
//!
//! The prompt's ids in training are exactly those that serving makes of the same question ([`ExampleBuilder::prompt`]), so
//! what was learnt is what is asked for. The ids do not depend on what counts in the loss.
//!
//! - Decoder with a chat template: the prompt is the user's message, the target the assistant's; a conversation is
//!   rendered as it is, and its last turn is the answer.
//! - Decoder without: begin token, prompt, target, end token.
//! - Encoder-decoder: the encoder reads the prompt and the end token; the labels are the answer and the end token.

mod builder;
mod mask;

use tailor_domain::Family;

pub use builder::{ExampleBuilder, Prompt};

/// One row, tokenised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Example {
    /// `in_loss[i]` says whether predicting `ids[i]` from what stands before it counts; never for the first, which nothing
    /// predicts.
    Decoder { ids: Vec<u32>, in_loss: Vec<bool> },
    /// All labels count.
    EncoderDecoder { encoder: Vec<u32>, labels: Vec<u32> },
}

impl Example {
    /// A prompt and what follows it; of a decoder's tokens only those after the prompt count.
    pub(crate) fn answered(family: Family, prompt: Vec<u32>, answer: Vec<u32>) -> Self {
        match family {
            Family::EncoderDecoder => Self::EncoderDecoder { encoder: prompt, labels: answer },
            Family::Decoder => {
                let mut in_loss = vec![false; prompt.len()];
                in_loss.resize(prompt.len() + answer.len(), true);
                Self::Decoder { ids: prompt.into_iter().chain(answer).collect(), in_loss }
            }
        }
    }

    pub(crate) fn is_decoder(&self) -> bool {
        matches!(self, Self::Decoder { .. })
    }

    /// Tokens of prompt and target together.
    pub fn tokens(&self) -> usize {
        match self {
            Self::Decoder { ids, .. } => ids.len(),
            Self::EncoderDecoder { encoder, labels } => encoder.len() + labels.len(),
        }
    }

    /// Tokens that something is learnt from: a decoder's first is predicted from nothing, whether it counts or not.
    pub fn targets(&self) -> usize {
        match self {
            Self::Decoder { in_loss, .. } => in_loss.iter().skip(1).filter(|counts| **counts).count(),
            Self::EncoderDecoder { labels, .. } => labels.len(),
        }
    }

    /// Tokens that count in the loss.
    pub fn tokens_in_loss(&self) -> usize {
        match self {
            Self::Decoder { in_loss, .. } => in_loss.iter().filter(|counts| **counts).count(),
            Self::EncoderDecoder { labels, .. } => labels.len(),
        }
    }
}

/// A prompt with two answers, of which one is the better. In both only the answer with its end token counts in the loss,
/// and what stands before it is the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preference {
    pub chosen: Example,
    pub rejected: Example,
}

impl Preference {
    /// Tokens that the two together have.
    pub fn tokens(&self) -> usize {
        self.chosen.tokens() + self.rejected.tokens()
    }

    /// Prompt, chosen and rejected, unless the two are no pair: of one family, of one prompt, with an answer each.
    pub(crate) fn parts(&self) -> Option<[&[u32]; 3]> {
        let (prompt, chosen) = halves(&self.chosen)?;
        let (same, rejected) = halves(&self.rejected)?;
        let is_one_family = std::mem::discriminant(&self.chosen) == std::mem::discriminant(&self.rejected);
        let is_pair = is_one_family && prompt == same && !chosen.is_empty() && !rejected.is_empty();
        is_pair.then_some([prompt, chosen, rejected])
    }
}

/// Prompt and answer, where all of the answer counts and nothing else.
fn halves(example: &Example) -> Option<(&[u32], &[u32])> {
    match example {
        Example::EncoderDecoder { encoder, labels } => Some((encoder, labels)),
        Example::Decoder { ids, in_loss } => {
            let (prompt, answer) = ids.split_at_checked(in_loss.iter().position(|counts| *counts)?)?;
            let (_, counted) = in_loss.split_at_checked(prompt.len())?;
            (counted.len() == answer.len() && counted.iter().all(|counts| *counts)).then_some((prompt, answer))
        }
    }
}

#[cfg(test)]
mod tests;
