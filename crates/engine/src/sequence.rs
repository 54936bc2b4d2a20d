//! One sequence on its way: what it was asked, what it has said, and where its events go.

use std::rc::Rc;

use tailor_models::LoraSet;

use crate::error::Error;
use crate::job::{EndReason, Event, Events, GenerateJob};
use crate::residency::Resident;
use crate::sampling::Sampler;

pub struct Sequence {
    pub prompt: Vec<u32>,
    /// Tokens made so far; the last one is not in the cache yet.
    pub made: Vec<u32>,
    adapter: Option<Rc<Resident>>,
    sampler: Sampler,
    max_new_tokens: usize,
    events: Events,
}

impl Sequence {
    pub fn new(job: GenerateJob, adapter: Option<Rc<Resident>>, events: Events) -> Self {
        Self {
            prompt: job.prompt_ids,
            made: Vec::new(),
            adapter,
            sampler: Sampler::new(job.sampling),
            max_new_tokens: job.max_new_tokens as usize,
            events,
        }
    }

    pub fn set(&self) -> Option<&LoraSet> {
        self.adapter.as_ref().map(|resident| &resident.set)
    }

    /// Whether nobody listens any more.
    pub fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Takes the logits of the next token. False when the sequence is over.
    pub fn advance(&mut self, logits: &[f32], eos: &[u32]) -> bool {
        let broken = logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY);
        let token = if broken { None } else { self.sampler.pick(logits) };
        let Some(token) = token else {
            self.fail(Error::Step("its logits are not finite; the adapter's weights may be too large".into()));
            return false;
        };
        if eos.contains(&token) {
            self.send(Event::End { reason: EndReason::Stop });
            return false;
        }
        self.made.push(token);
        self.send(Event::Token { id: token });
        if self.made.len() >= self.max_new_tokens {
            self.send(Event::End { reason: EndReason::Length });
            return false;
        }
        true
    }

    pub fn fail(&self, error: Error) {
        tracing::warn!(%error, prompt_tokens = self.prompt.len(), made = self.made.len(), "a sequence failed");
        // The channel holds every event of the job, so this fails only when nobody listens.
        let _ = self.events.try_send(Err(error));
    }

    fn send(&self, event: Event) {
        let _ = self.events.try_send(Ok(event));
    }
}
