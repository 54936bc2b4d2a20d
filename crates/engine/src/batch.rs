//! The sequences that are worked on together, whatever adapters they use. They come and go between steps.
//!
//! A step takes one token of everybody who answers, and fills up with pieces of the prompts of those who have come, so that
//! a long prompt holds up nobody's answer (Sarathi, arXiv 2308.16369). All of it is one flat batch: nothing is padded,
//! neither to the longest prompt nor to the largest rank.
//!
//! A step that fails is nobody's verdict: each of its sequences goes again alone, and only those that fail alone are given
//! up. A sequence never sees what else is in the batch.

use std::collections::HashSet;
use std::time::Instant;

use tailor_models::{BLOCK_TOKENS, Base, EncoderInput, KvPool, Next, Segment};
use tailor_torch::guarded;
use tch::Tensor;

use crate::blocks::{Blocks, Name};
use crate::error::Error;
use crate::meter::Usage;
use crate::sequence::{Goal, Sequence};

/// Logits of what is scored in one step: 64 MiB of f32.
const MAX_LOGITS: usize = 1 << 24;

pub struct Batch {
    sequences: Vec<Sequence>,
    pool: KvPool,
    blocks: Blocks,
    max_batch: usize,
    /// Tokens in one step, but for one of each that answers.
    max_step_tokens: usize,
    /// Of them, scored ones.
    max_scored: usize,
    done: Done,
}

/// What has been done since it was last asked for.
#[derive(Default)]
pub struct Done {
    pub steps: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub made_tokens: u64,
    /// What the sequences that ended might have come to, in tokens.
    pub released_tokens: usize,
}

/// New tokens of one sequence in a step.
struct Piece {
    sequence: usize,
    count: usize,
}

impl Batch {
    pub fn new(pool: KvPool, max_batch: usize, max_step_tokens: usize, vocab_size: usize) -> Self {
        let blocks = Blocks::new(pool.blocks());
        let max_scored = (MAX_LOGITS / vocab_size.max(1)).max(1);
        Self { sequences: Vec::new(), pool, blocks, max_batch, max_step_tokens, max_scored, done: Done::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Whether a sequence could ever be taken in, if it were alone.
    pub fn could_take(&self, sequence: &Sequence) -> bool {
        sequence.need() <= self.blocks.total()
    }

    /// Promises a sequence all the room that it may need. False where there is not so much now.
    pub fn promise(&mut self, sequence: &Sequence) -> bool {
        self.sequences.len() < self.max_batch && self.blocks.reserve(sequence.need())
    }

    /// Takes in a sequence that was promised its room.
    pub fn admit(&mut self, mut sequence: Sequence) {
        sequence.admitted();
        self.sequences.push(sequence);
    }

    /// One token for every sequence that answers, a piece of the prompt of others.
    pub fn step(&mut self, base: &Base) {
        let now = Instant::now();
        self.keep(|sequence| {
            if sequence.is_late(now) {
                sequence.fail(Error::Deadline);
                return false;
            }
            !sequence.is_abandoned()
        });
        self.encode(base);
        let pieces = self.plan();
        if pieces.is_empty() {
            return;
        }
        self.done.steps += 1;
        let mut over = HashSet::new();
        match self.run(base, &pieces) {
            Ok(next) => self.take_in(base, &pieces, &next, &mut over),
            Err(error) if pieces.len() > 1 => {
                tracing::warn!(%error, sequences = pieces.len(), "a step failed; its sequences go again one by one");
                for piece in pieces {
                    let alone = [piece];
                    match self.run(base, &alone) {
                        Ok(next) => self.take_in(base, &alone, &next, &mut over),
                        Err(error) => self.give_up(alone[0].sequence, error, &mut over),
                    }
                }
            }
            Err(error) => self.give_up(pieces[0].sequence, error, &mut over),
        }
        let mut number = 0..;
        self.keep(|_| number.next().is_some_and(|at| !over.contains(&at)));
    }

    /// Fails every sequence, e.g. when the engine stops.
    pub fn abort(&mut self, error: &Error) {
        self.keep(|sequence| {
            sequence.fail(error.clone());
            false
        });
    }

    pub fn done(&mut self) -> Done {
        std::mem::take(&mut self.done)
    }

    pub fn show(&self, usage: &mut Usage) {
        usage.running = self.sequences.len();
        usage.kv_blocks = self.blocks.total();
        usage.kv_blocks_held = self.blocks.held();
    }

    /// Who goes through the model in this step, and with how many tokens.
    fn plan(&mut self) -> Vec<Piece> {
        let (mut left, mut left_scored) = (self.max_step_tokens, self.max_scored);
        // What those who read are on their way to compute: whoever begins the same waits for it.
        let reading = self.sequences.iter().filter(|sequence| sequence.begun && sequence.is_reading());
        let mut coming: HashSet<Name> = reading.flat_map(|sequence| sequence.upcoming()).copied().collect();
        let mut pieces = Vec::new();
        for at in 0..self.sequences.len() {
            let sequence = &self.sequences[at];
            if !sequence.is_encoded() {
                continue;
            }
            if sequence.is_reading() && left == 0 {
                continue;
            }
            if !sequence.begun && !self.begin(at, &mut coming) {
                continue;
            }
            let sequence = &self.sequences[at];
            let count = if sequence.is_reading() { sequence.pending().min(left) } else { sequence.pending() };
            let count = sequence.within(count, left_scored);
            left = left.saturating_sub(count);
            if let Goal::Scores(_) = &sequence.goal {
                left_scored -= sequence.wanted(count);
            }
            if count > 0 && self.make_room(at, count) {
                pieces.push(Piece { sequence: at, count });
            }
        }
        pieces
    }

    /// Takes over what is in the cache of a sequence's beginning. False where another is just computing what comes next.
    fn begin(&mut self, at: usize, coming: &mut HashSet<Name>) -> bool {
        let sequence = &mut self.sequences[at];
        let known = sequence.shareable().iter().take_while(|name| self.blocks.knows(name)).count();
        if sequence.shareable().get(known).is_some_and(|next| coming.contains(next)) {
            return false;
        }
        let names: Vec<Name> = sequence.shareable()[..known].to_vec();
        sequence.blocks = names.iter().filter_map(|name| self.blocks.share(name)).collect();
        sequence.promised -= sequence.blocks.len();
        sequence.found(sequence.blocks.len());
        sequence.begun = true;
        sequence.announce();
        self.done.cached_tokens += sequence.computed as u64;
        coming.extend(sequence.upcoming());
        true
    }

    /// Sees to it that the next `count` tokens of a sequence have their places.
    fn make_room(&mut self, at: usize, count: usize) -> bool {
        let sequence = &mut self.sequences[at];
        let needed = (sequence.computed + count).div_ceil(BLOCK_TOKENS);
        while sequence.blocks.len() < needed {
            let Some(block) = self.blocks.take() else { return false };
            sequence.promised = sequence.promised.saturating_sub(1);
            sequence.blocks.push(block);
        }
        true
    }

    /// One guarded pass, each sequence with its own adapter: the likeliest token or logits (M, V) of each whose prompt has been
    /// read, and logits for each token that is scored.
    fn run(&self, base: &Base, pieces: &[Piece]) -> Result<Next, Error> {
        let segments = pieces.iter().map(|piece| {
            let sequence = &self.sequences[piece.sequence];
            let end = sequence.computed + piece.count;
            Segment {
                tokens: &sequence.tokens[sequence.computed..end],
                past: sequence.computed,
                blocks: &sequence.blocks,
                cross: sequence.encoder.as_ref().map(|side| (side.blocks.as_slice(), side.tokens.len())),
                adapter: sequence.set(),
                logits: sequence.wanted(piece.count),
                likeliest: sequence.wants_likeliest(piece.count),
            }
        });
        let segments: Vec<Segment<'_>> = segments.collect();
        guarded(|| base.next(&segments, &self.pool)).map_err(|error| Error::model(&error))
    }

    /// Lets each sequence take its token or logits; notes who is over.
    fn take_in(&mut self, base: &Base, pieces: &[Piece], next: &Next, over: &mut HashSet<usize>) {
        let logits = &next.logits;
        let rows = match self.answers(pieces, next) {
            Ok(rows) => rows,
            Err(error) => return pieces.iter().for_each(|piece| self.give_up(piece.sequence, error.clone(), over)),
        };
        let eos = base.config().eos_token_ids();
        let (mut rows, mut row) = (rows.into_iter(), 0);
        for (piece, likeliest) in pieces.iter().zip(&next.likeliest) {
            let sequence = &mut self.sequences[piece.sequence];
            let wanted = if likeliest.is_some() { 0 } else { sequence.wanted(piece.count) };
            let own = row..row + wanted;
            row = own.end;
            if sequence.is_reading() {
                self.done.prompt_tokens += piece.count as u64;
            }
            for (block, name) in sequence.computed(piece.count) {
                self.blocks.name(block, name);
            }
            let is_complete = sequence.pending() == 0;
            let goes_on = match &mut sequence.goal {
                Goal::Scores(scoring) => {
                    let taken = match wanted {
                        0 => Ok(()),
                        _ => {
                            let own = logits.narrow(0, own.start as i64, wanted as i64);
                            scoring.take(sequence.computed - wanted, &own)
                        }
                    };
                    if is_complete && taken.is_ok() {
                        scoring.end();
                    }
                    taken.map(|()| !is_complete)
                }
                Goal::Answer(answering) if is_complete => {
                    let token = match likeliest {
                        Some(token) => Ok(answering.advance_to(*token, eos)),
                        None => {
                            let Some(mut row) = rows.next() else { continue };
                            answering.advance(&mut row, eos)
                        }
                    };
                    self.done.made_tokens += 1;
                    token.map(|token| token.map(|token| sequence.tokens.push(token)).is_some())
                }
                Goal::Answer(_) => Ok(true),
            };
            match goes_on {
                Ok(true) => {}
                Ok(false) => drop(over.insert(piece.sequence)),
                Err(error) => self.give_up(piece.sequence, error, over),
            }
        }
    }

    /// The rows of those that answer and have their logits, on the host.
    fn answers(&self, pieces: &[Piece], Next { logits, likeliest }: &Next) -> Result<Vec<Vec<f32>>, Error> {
        let (mut rows, mut row) = (Vec::new(), 0);
        for (piece, _) in pieces.iter().zip(likeliest).filter(|(_, likeliest)| likeliest.is_none()) {
            let sequence = &self.sequences[piece.sequence];
            let wanted = sequence.wanted(piece.count) as i64;
            if let Goal::Answer(_) = &sequence.goal {
                rows.extend(row..row + wanted);
            }
            row += wanted;
        }
        let read = || match rows.len() as i64 {
            0 => Ok::<_, tailor_torch::Error>(Vec::new()),
            all if all == row => Ok(Vec::<Vec<f32>>::try_from(logits)?),
            _ => {
                let rows = Tensor::f_from_slice(&rows)?.f_to_device(logits.device())?;
                Ok(Vec::<Vec<f32>>::try_from(&logits.f_index_select(0, &rows)?)?)
            }
        };
        guarded(read).map_err(|error| Error::device(&error))
    }

    fn give_up(&mut self, at: usize, error: Error, over: &mut HashSet<usize>) {
        self.sequences[at].fail(error);
        over.insert(at);
    }

    /// Runs the encoder for those who wait for it, as many as a step may hold.
    fn encode(&mut self, base: &Base) {
        let mut fresh = Vec::new();
        let (mut tokens, mut first_names) = (0, HashSet::new());
        for (at, sequence) in self.sequences.iter_mut().enumerate() {
            let Some(side) = sequence.encoder.as_mut().filter(|side| !side.ready) else { continue };
            if side.blocks.is_empty() && side.names.iter().all(|name| self.blocks.knows(name)) {
                side.blocks = side.names.iter().filter_map(|name| self.blocks.share(name)).collect();
                sequence.promised = sequence.promised.saturating_sub(side.blocks.len());
                sequence.cached = side.tokens.len();
                self.done.cached_tokens += side.tokens.len() as u64;
                side.ready = true;
                sequence.announce();
                continue;
            }
            let full = tokens > 0 && tokens + side.tokens.len() > self.max_step_tokens;
            // The same input once: the others find it in the cache in the next step.
            if full || side.names.first().is_some_and(|name| !first_names.insert(*name)) {
                continue;
            }
            while side.blocks.len() < side.names.len() {
                let Some(block) = self.blocks.take() else { break };
                sequence.promised = sequence.promised.saturating_sub(1);
                side.blocks.push(block);
            }
            tokens += side.tokens.len();
            sequence.announce();
            fresh.push(at);
        }
        if fresh.is_empty() {
            return;
        }
        self.done.prompt_tokens += tokens as u64;
        let mut over = HashSet::new();
        if self.run_encoder(base, &fresh).is_err() {
            for at in fresh.clone() {
                if let Err(error) = self.run_encoder(base, &[at]) {
                    self.give_up(at, error, &mut over);
                }
            }
        }
        for at in fresh {
            let Some(side) = self.sequences[at].encoder.as_mut().filter(|_| !over.contains(&at)) else { continue };
            side.ready = true;
            side.blocks.iter().zip(&side.names).for_each(|(block, name)| self.blocks.name(*block, *name));
        }
        let mut number = 0..;
        self.keep(|_| number.next().is_some_and(|at| !over.contains(&at)));
    }

    fn run_encoder(&self, base: &Base, fresh: &[usize]) -> Result<(), Error> {
        let inputs = fresh.iter().filter_map(|&at| {
            let sequence = &self.sequences[at];
            let side = sequence.encoder.as_ref()?;
            Some(EncoderInput { tokens: &side.tokens, blocks: &side.blocks, adapter: sequence.set() })
        });
        let inputs: Vec<EncoderInput<'_>> = inputs.collect();
        guarded(|| base.encode_pages(&inputs, &self.pool)).map_err(|error| Error::model(&error))
    }

    /// Lets go of the sequences that do not stay, and of all that they held.
    fn keep(&mut self, mut stays: impl FnMut(&Sequence) -> bool) {
        let (blocks, done) = (&mut self.blocks, &mut self.done);
        self.sequences.retain_mut(|sequence| {
            if stays(sequence) {
                return true;
            }
            let encoder = sequence.encoder.iter().flat_map(|side| &side.blocks);
            // From the end, so that beginnings stay in the cache longest.
            sequence.blocks.iter().rev().chain(encoder).for_each(|block| blocks.release(*block));
            blocks.unreserve(sequence.promised);
            done.released_tokens += sequence.cost();
            false
        });
    }
}
