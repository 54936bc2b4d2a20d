//! One sequence on its way: what it was asked, how far it is in the cache, and what it is for.

use std::rc::Rc;
use std::time::Instant;

use tailor_models::{BLOCK_TOKENS, LoraSet};

use crate::answering::Answering;
use crate::blocks::{Name, names, next_name, root};
use crate::error::Error;
use crate::job::{Event, Events, GenerateJob, Lease, ScoreJob, ScoresTo};
use crate::options::EngineInfo;
use crate::residency::Resident;
use crate::sampler::Sampler;
use crate::scoring::Scoring;
use crate::trace::Trace;

pub struct Sequence {
    /// The decoder's side: a decoder's prompt or an encoder-decoder's start token, then the answer, or what is scored.
    pub tokens: Vec<u32>,
    /// Of them, those that were known from the start.
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
    /// Whether its reader knows that work on it has begun.
    announced: bool,
    adapter: Option<Rc<Resident>>,
    deadline: Option<Instant>,
    root: Name,
    pub goal: Goal,
    trace: Trace,
    _lease: Lease,
}

/// What a sequence is for.
pub enum Goal {
    Answer(Box<Answering>),
    Scores(Scoring),
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

/// How a sequence begins, whatever it is for.
struct Beginning {
    tokens: Vec<u32>,
    encoder: Option<EncoderSide>,
    /// Of the decoder's tokens, the adapter's virtual ones, which stand first.
    virtual_tokens: usize,
    root: Name,
}

impl Beginning {
    /// `start`: an encoder-decoder's start token; None for a decoder. `rest` follows a decoder's prompt or the start token.
    fn of(prompt: &[u32], rest: &[u32], start: Option<u32>, digest: Option<&str>, adapter: Option<&Resident>) -> Self {
        // What virtual tokens are follows from the adapter's digest.
        let virtual_tokens = adapter.map_or(0, |resident| resident.set.virtual_tokens());
        let input = [&vec![0; virtual_tokens], prompt].concat();
        match start {
            None => {
                let tokens = [&input, rest].concat();
                Self { tokens, encoder: None, virtual_tokens, root: root("decoder", digest) }
            }
            Some(start) => {
                let side = EncoderSide::new(input, digest);
                // What a decoder computes depends on the encoder's input too.
                let root = side.names.first().map_or_else(|| root("decoder", digest), |first| next_name(first, &[]));
                Self { tokens: [&[start], rest].concat(), encoder: Some(side), virtual_tokens: 0, root }
            }
        }
    }

    fn to(
        self,
        goal: Goal,
        adapter: Option<Rc<Resident>>,
        deadline: Option<Instant>,
        lease: Lease,
        trace: Trace,
    ) -> Sequence {
        Sequence {
            prompt: self.tokens.len(),
            computed: 0,
            blocks: Vec::new(),
            names: names(&self.root, &self.tokens),
            named: 0,
            encoder: self.encoder,
            promised: 0,
            begun: false,
            cached: 0,
            announced: false,
            adapter,
            deadline,
            root: self.root,
            tokens: self.tokens,
            goal,
            trace,
            _lease: lease,
        }
    }
}

impl Sequence {
    /// One that answers. `start`: an encoder-decoder's start token; None for a decoder.
    pub fn answering(job: GenerateJob, start: Option<u32>, adapter: Option<Rc<Resident>>, events: Events) -> Self {
        let digest = job.adapter.as_ref().map(|digest| digest.as_str());
        let beginning = Beginning::of(&job.prompt_ids, &[], start, digest, adapter.as_deref());
        let sampler = Sampler::new(job.sampling, &beginning.tokens[beginning.virtual_tokens..]);
        let goal = Goal::Answer(Box::new(Answering {
            sampler,
            constraint: job.constraint,
            stop_ids: job.stop_ids,
            top_logprobs: job.top_logprobs,
            max_new_tokens: job.max_new_tokens as usize,
            made: 0,
            events,
        }));
        beginning.to(goal, adapter, job.deadline, job.lease, Trace::new(job.span, true))
    }

    /// One whose tokens are scored: the last of them is never computed, and a decoder without a prompt has nothing to say of
    /// the first.
    pub fn scoring(job: ScoreJob, start: Option<u32>, adapter: Option<Rc<Resident>>, to: ScoresTo) -> Self {
        let digest = job.adapter.as_ref().map(|digest| digest.as_str());
        let count = job.token_ids.len();
        let before_last = &job.token_ids[..count.saturating_sub(1)];
        let beginning = Beginning::of(&job.prompt_ids, before_last, start, digest, adapter.as_deref());
        let has_start = start.is_some() || !job.prompt_ids.is_empty();
        let targets = job.token_ids[usize::from(!has_start).min(count)..].to_vec();
        let first = beginning.tokens.len() - targets.len();
        let goal = Goal::Scores(Scoring::new(first, targets, count, to));
        beginning.to(goal, adapter, job.deadline, job.lease, Trace::new(job.span, false))
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
        let longest = encoder.max(self.prompt + self.max_new_tokens() - usize::from(self.encoder.is_some()));
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
        (self.prompt + self.max_new_tokens()).saturating_sub(1).div_ceil(BLOCK_TOKENS) + encoder
    }

    /// Tokens that it may come to.
    pub fn cost(&self) -> usize {
        self.prompt + self.max_new_tokens() + self.encoder.as_ref().map_or(0, |side| side.tokens.len())
    }

    /// Tokens to come; the last of what is scored counts as one.
    fn max_new_tokens(&self) -> usize {
        match &self.goal {
            Goal::Answer(answering) => answering.max_new_tokens,
            Goal::Scores(_) => 1,
        }
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

    /// Names of the prompt's full blocks that another may have computed: what logits are wanted of is left to compute.
    pub fn shareable(&self) -> &[Name] {
        let first_wanted = match &self.goal {
            Goal::Answer(_) => self.prompt.saturating_sub(1),
            Goal::Scores(scoring) => scoring.first(),
        };
        &self.names[..self.names.len().min(first_wanted / BLOCK_TOKENS)]
    }

    /// After how many of the next `count` tokens' last ones logits are wanted.
    pub fn wanted(&self, count: usize) -> usize {
        let end = self.computed + count;
        match &self.goal {
            Goal::Answer(_) => usize::from(end == self.tokens.len()),
            Goal::Scores(scoring) => scoring.wanted(end, count),
        }
    }

    /// Whether the likeliest token is all that is wanted after the next `count` tokens.
    pub fn wants_likeliest(&self, count: usize) -> bool {
        matches!(&self.goal, Goal::Answer(answering) if answering.is_greedy()) && self.wanted(count) == 1
    }

    /// So many of the next `count` tokens that no more than `rows` logits of what is scored are wanted.
    pub fn within(&self, count: usize, rows: usize) -> usize {
        match &self.goal {
            Goal::Answer(_) => count,
            Goal::Scores(_) => count - self.wanted(count).saturating_sub(rows),
        }
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

    /// Tells the reader, once, that work on its prompt begins.
    pub fn announce(&mut self) {
        if let Goal::Answer(answering) = &self.goal
            && !std::mem::replace(&mut self.announced, true)
        {
            answering.send(Event::Begun { cached_tokens: self.cached as u32 });
        }
    }

    /// Whether nobody listens any more.
    pub fn is_abandoned(&self) -> bool {
        match &self.goal {
            Goal::Answer(answering) => answering.events.is_closed(),
            Goal::Scores(scoring) => scoring.is_abandoned(),
        }
    }

    pub fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }

    pub fn fail(&self, error: Error) {
        let made = self.tokens.len() - self.prompt;
        tracing::warn!(%error, prompt_tokens = self.prompt, made, "a sequence failed");
        match &self.goal {
            // The channel holds every event of the job, so this fails only when nobody listens.
            Goal::Answer(answering) => drop(answering.events.try_send(Err(error))),
            Goal::Scores(scoring) => scoring.fail(error),
        }
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
