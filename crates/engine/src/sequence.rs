//! One sequence on its way: what it was asked, what it has said, how far it is in the cache, and where its events go.

use std::rc::Rc;
use std::time::Instant;

use tailor_models::{BLOCK_TOKENS, LoraSet};

use crate::blocks::{Name, names, next_name, root};
use crate::constraint::Constraint;
use crate::error::Error;
use crate::job::{EndReason, Event, Events, GenerateJob};
use crate::logprobs::Logprobs;
use crate::options::EngineInfo;
use crate::residency::Resident;
use crate::sampler::Sampler;
use crate::trace::Trace;

pub struct Sequence {
    /// The decoder's side: a decoder's prompt or an encoder-decoder's start token, then the answer.
    pub tokens: Vec<u32>,
    /// Of them, what stood before the answer.
    prompt: usize,
    /// Of them, those whose keys and values are in the blocks.
    pub computed: usize,
    pub blocks: Vec<u32>,
    /// Names of the full blocks, as far as they are known; and how many blocks bear theirs.
    names: Vec<Name>,
    named: usize,
    pub encoder: Option<EncoderSide>,
    /// Blocks promised and not taken.
    pub promised: usize,
    /// Whether its tokens have begun to go through the model.
    pub begun: bool,
    /// Prompt tokens that were found in the cache.
    pub cached: usize,
    adapter: Option<Rc<Resident>>,
    sampler: Sampler,
    constraint: Option<Box<dyn Constraint>>,
    stop_ids: Vec<u32>,
    top_logprobs: Option<u8>,
    max_new_tokens: usize,
    deadline: Option<Instant>,
    events: Events,
    root: Name,
    trace: Trace,
}

/// What an encoder-decoder's decoder looks at.
pub struct EncoderSide {
    pub tokens: Vec<u32>,
    pub blocks: Vec<u32>,
    /// Whether the blocks are filled.
    pub ready: bool,
    /// Of each block: an encoder sees all its input, so a name stands for all of it.
    pub names: Vec<Name>,
}

impl Sequence {
    /// `start`: an encoder-decoder's start token; None for a decoder.
    pub fn new(job: GenerateJob, start: Option<u32>, adapter: Option<Rc<Resident>>, events: Events) -> Self {
        let digest = job.adapter.as_ref().map(|digest| digest.as_str().to_owned());
        let digest = digest.as_deref();
        // Virtual tokens stand first; what they are follows from the adapter's digest.
        let virtual_tokens = adapter.as_ref().map_or(0, |resident| resident.set.virtual_tokens());
        let input = [vec![0; virtual_tokens], job.prompt_ids].concat();
        let (tokens, encoder) = match start {
            None => (input, None),
            Some(start) => (vec![start], Some(EncoderSide::new(input, digest))),
        };
        let said = if start.is_some() { &tokens[..] } else { &tokens[virtual_tokens..] };
        let sampler = Sampler::new(job.sampling, said);
        // What a decoder computes depends on the encoder's input too.
        let root = match encoder.as_ref().and_then(|side| side.names.first()) {
            None => root("decoder", digest),
            Some(first) => next_name(first, &[]),
        };
        Self {
            prompt: tokens.len(),
            computed: 0,
            blocks: Vec::new(),
            names: names(&root, &tokens),
            named: 0,
            encoder,
            promised: 0,
            begun: false,
            cached: 0,
            adapter,
            sampler,
            constraint: job.constraint,
            stop_ids: job.stop_ids,
            top_logprobs: job.top_logprobs,
            max_new_tokens: job.max_new_tokens as usize,
            deadline: job.deadline,
            events,
            root,
            tokens,
            trace: Trace::new(job.span),
        }
    }

    /// It has been promised its room and takes part from the next step on.
    pub fn admitted(&mut self) {
        self.promised = self.need();
        self.trace.admitted(self.prompt + self.encoder.as_ref().map_or(0, |side| side.tokens.len()));
    }

    pub fn set(&self) -> Option<&LoraSet> {
        self.adapter.as_ref().map(|resident| &resident.set)
    }

    /// What the job's own check could not know: an adapter's virtual tokens take places too.
    pub fn check_length(&self, info: &EngineInfo) -> Result<(), String> {
        let encoder = self.encoder.as_ref().map_or(0, |side| side.tokens.len());
        let longest = encoder.max(self.prompt + self.max_new_tokens - usize::from(self.encoder.is_some()));
        if longest <= info.max_context {
            return Ok(());
        }
        Err(format!(
            "{longest} tokens, the adapter's virtual ones among them, exceed the context of {}; shorten the prompt or ask \
             for fewer",
            info.max_context
        ))
    }

    /// Blocks it may come to need.
    pub fn need(&self) -> usize {
        let encoder = self.encoder.as_ref().map_or(0, |side| side.tokens.len().div_ceil(BLOCK_TOKENS));
        // The last token is never computed.
        (self.prompt + self.max_new_tokens).saturating_sub(1).div_ceil(BLOCK_TOKENS) + encoder
    }

    /// Tokens that it may come to.
    pub fn cost(&self) -> usize {
        self.prompt + self.max_new_tokens + self.encoder.as_ref().map_or(0, |side| side.tokens.len())
    }

    /// Tokens that are to go through the model; at least one.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether the encoder's side, where there must be one, is there.
    pub fn is_encoded(&self) -> bool {
        self.encoder.as_ref().is_none_or(|side| side.ready)
    }

    pub fn is_reading(&self) -> bool {
        self.computed < self.prompt
    }

    /// Names of the prompt's full blocks that another may have computed: one token at least is left to compute.
    pub fn shareable(&self) -> &[Name] {
        &self.names[..self.names.len().min(self.prompt.saturating_sub(1) / BLOCK_TOKENS)]
    }

    /// Names of blocks that it is about to compute, or is computing.
    pub fn upcoming(&self) -> &[Name] {
        &self.names[(self.computed / BLOCK_TOKENS).min(self.names.len())..]
    }

    /// Takes in that the first `count` blocks hold what they should.
    pub fn found(&mut self, count: usize) {
        self.computed = count * BLOCK_TOKENS;
        self.cached += self.computed;
        self.named = count;
    }

    /// Takes in `count` computed tokens; gives the blocks that are full by that, with their names.
    pub fn computed(&mut self, count: usize) -> Vec<(u32, Name)> {
        self.computed += count;
        self.trace.stepped(count, self.cached, self.computed < self.prompt);
        let full = self.computed / BLOCK_TOKENS;
        while self.names.len() < full {
            let from = self.names.len() * BLOCK_TOKENS;
            let before = self.names.last().unwrap_or(&self.root);
            self.names.push(next_name(before, &self.tokens[from..from + BLOCK_TOKENS]));
        }
        let fresh = (self.named..full).map(|at| (self.blocks[at], self.names[at])).collect();
        self.named = self.named.max(full);
        fresh
    }

    /// Whether nobody listens any more.
    pub fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    pub fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Takes the logits of the next token. False when the sequence is over.
    pub fn advance(&mut self, logits: &mut [f32], eos: &[u32]) -> bool {
        if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            self.fail(Error::Step("its logits are not finite; the adapter's weights may be too large".into()));
            return false;
        }
        let plain = self.top_logprobs.map(|top| (top, logits.to_vec()));
        if let Some(Err(problem)) = self.constraint.as_mut().map(|constraint| constraint.mask(logits)) {
            self.fail(Error::Constraint(problem));
            return false;
        }
        let Some(token) = self.sampler.pick(logits) else {
            self.fail(Error::Step("no token may come next; loosen logit_bias or the format of the answer".into()));
            return false;
        };
        if eos.contains(&token) || self.stop_ids.contains(&token) {
            self.end(EndReason::Stop);
            return false;
        }
        let goes_on = match self.constraint.as_mut().map_or(Ok(true), |constraint| constraint.accept(token)) {
            Ok(goes_on) => goes_on,
            Err(problem) => {
                self.fail(Error::Constraint(problem));
                return false;
            }
        };
        self.sampler.note(token);
        self.tokens.push(token);
        let logprobs = plain.and_then(|(top, logits)| Logprobs::of(&logits, token, top)).map(Box::new);
        self.send(Event::Token { id: token, logprobs });
        if !goes_on {
            self.end(EndReason::Stop);
            return false;
        }
        if self.tokens.len() - self.prompt >= self.max_new_tokens {
            self.end(EndReason::Length);
            return false;
        }
        true
    }

    pub fn fail(&self, error: Error) {
        let made = self.tokens.len() - self.prompt;
        tracing::warn!(%error, prompt_tokens = self.prompt, made, "a sequence failed");
        // The channel holds every event of the job, so this fails only when nobody listens.
        let _ = self.events.try_send(Err(error));
    }

    fn end(&self, reason: EndReason) {
        self.send(Event::End { reason, cached_tokens: self.cached as u32 });
    }

    fn send(&self, event: Event) {
        let _ = self.events.try_send(Ok(event));
    }
}

impl EncoderSide {
    fn new(tokens: Vec<u32>, digest: Option<&str>) -> Self {
        let whole = next_name(&root("encoder", digest), &tokens);
        let count = tokens.len().div_ceil(BLOCK_TOKENS) as u32;
        let names = (0..count).map(|number| next_name(&whole, &[number])).collect();
        Self { tokens, blocks: Vec::new(), ready: false, names }
    }
}
