//! What a sequence that answers does with the logits of its next token, and where its events go.

use crate::constraint::Constraint;
use crate::error::Error;
use crate::job::{EndReason, Event, Events};
use crate::logprobs::Logprobs;
use crate::sampler::Sampler;

pub struct Answering {
    pub sampler: Sampler,
    pub constraint: Option<Box<dyn Constraint>>,
    pub stop_ids: Vec<u32>,
    pub top_logprobs: Option<u8>,
    pub max_new_tokens: usize,
    pub made: usize,
    pub events: Events,
}

impl Answering {
    /// Whether nothing of the logits matters but which token is likeliest.
    pub fn is_greedy(&self) -> bool {
        self.sampler.is_greedy() && self.constraint.is_none() && self.top_logprobs.is_none()
    }

    /// Takes the next token of an answer that is greedy, as [`Self::advance`] would have found it.
    pub fn advance_to(&mut self, token: u32, eos: &[u32]) -> Option<u32> {
        if eos.contains(&token) || self.stop_ids.contains(&token) {
            return self.end(EndReason::Stop);
        }
        self.append(token, None, true)
    }

    /// Takes the logits of the next token. The token, if another is to come after it; None when the answer is complete.
    ///
    /// # Errors
    /// They are not finite, or nothing may come next.
    pub fn advance(&mut self, logits: &mut [f32], eos: &[u32]) -> Result<Option<u32>, Error> {
        if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return Err(Error::not_finite());
        }
        let plain = self.top_logprobs.map(|top| (top, logits.to_vec()));
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(logits).map_err(Error::Constraint)?;
        }
        let Some(token) = self.sampler.pick(logits) else {
            return Err(Error::Step("no token may come next; loosen logit_bias or the format of the answer".into()));
        };
        if eos.contains(&token) || self.stop_ids.contains(&token) {
            return Ok(self.end(EndReason::Stop));
        }
        let goes_on = match &mut self.constraint {
            None => true,
            Some(constraint) => constraint.accept(token).map_err(Error::Constraint)?,
        };
        let logprobs = plain.and_then(|(top, logits)| Logprobs::of(&logits, token, top)).map(Box::new);
        Ok(self.append(token, logprobs, goes_on))
    }

    /// Gives a token to the reader. It again, if another is to come after it.
    fn append(&mut self, token: u32, logprobs: Option<Box<Logprobs>>, goes_on: bool) -> Option<u32> {
        self.sampler.note(token);
        self.made += 1;
        self.send(Event::Token { id: token, logprobs });
        if !goes_on {
            return self.end(EndReason::Stop);
        }
        if self.made >= self.max_new_tokens {
            return self.end(EndReason::Length);
        }
        Some(token)
    }

    fn end(&self, reason: EndReason) -> Option<u32> {
        self.send(Event::End { reason });
        None
    }

    /// The channel holds every event of the job, so this fails only when nobody listens.
    pub fn send(&self, event: Event) {
        let _ = self.events.try_send(Ok(event));
    }
}
