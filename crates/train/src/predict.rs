//! Greedy answers to many prompts: rows of like length together, all rows of a batch in one step. A batch takes no more
//! memory than the caller gives, which is what the training step took (`tailor-plan`'s `Memory::for_answers`).

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tailor_domain::ErrorCode;
use tailor_models::{Answering, Base, Compute, Greedy, LoraSet};
use tailor_plan::Shape;
use tailor_text::shard::{Content, ShardFile};
use tailor_text::{Column, Sorter};
use tailor_torch::guarded;

use crate::error::Error;
use crate::rows::{RELEASE_EVERY, on_disk};

/// Rows in one batch.
const MAX_ROWS: usize = 64;
/// Positions (prompt and answer) in one batch.
const MAX_POSITIONS: usize = 1 << 15;
/// After this long others have their turn, at the latest after the token that is being made.
const TURN: Duration = Duration::from_millis(50);

/// What is asked: in memory, or in a shard of which the prompts of one batch are read.
#[derive(Debug, Clone)]
pub enum Prompts<'a> {
    Memory(&'a [Vec<u32>]),
    /// The first `count` rows.
    Shard {
        file: Arc<ShardFile>,
        count: usize,
    },
}

impl Prompts<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::Memory(prompts) => prompts.len(),
            Self::Shard { file, count } => file.rows().min(*count),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn tokens(&self, at: usize) -> usize {
        match self {
            Self::Memory(prompts) => prompts[at].len(),
            Self::Shard { file, .. } => file.tokens(at),
        }
    }

    fn read(&self, at: usize) -> Result<Vec<u32>, Error> {
        match self {
            Self::Memory(prompts) => Ok(prompts[at].clone()),
            Self::Shard { file, .. } => match file.read(at)?.content {
                Content::Prompt(ids) => Ok(ids),
                Content::Example(_) | Content::Preference(_) => {
                    let problem = "it has targets; held-out rows must hide them".into();
                    Err(tailor_text::Error::Shard { problem }.into())
                }
            },
        }
    }

    /// Places, the shortest prompt first; of one length in their order.
    fn order(&self) -> Result<Column, Error> {
        let folder = match self {
            Self::Memory(_) => None,
            Self::Shard { file, .. } => Some(file.folder()),
        };
        let mut by_length = Sorter::new(folder).map_err(on_disk)?;
        for at in 0..self.len() {
            if at % RELEASE_EVERY == 0 {
                self.release();
            }
            by_length.push([self.tokens(at) as u64, at as u64]).map_err(on_disk)?;
        }
        self.release();
        let mut order = Column::zeros(self.len(), folder).map_err(on_disk)?;
        for (place, next) in by_length.finish().map_err(on_disk)?.enumerate() {
            let [_, at] = next.map_err(on_disk)?;
            order.put(place, at as u32);
        }
        order.release();
        Ok(order)
    }

    /// Gives back the memory of what was looked up on disk.
    fn release(&self) {
        if let Self::Shard { file, .. } = self {
            file.release();
        }
    }
}

/// The greedy answer to each prompt, without its end token.
///
/// `progress` is told how many prompts are done after each batch; when it returns false the work stops and no answer is
/// returned. For a device with room for [`MAX_POSITIONS`] positions.
///
/// # Errors
/// The adapter does not fit the base, a prompt cannot be taken, or the device failed.
pub fn predict(
    base: &Base,
    adapter: Option<&tailor_peft::Adapter>,
    prompts: &[Vec<u32>],
    max_new_tokens: usize,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Vec<Vec<u32>>, Error> {
    let mut predictor = Predictor::new(base, adapter, Prompts::Memory(prompts), max_new_tokens, u64::MAX)?;
    let mut told = 0;
    while !predictor.turn()? {
        let done = predictor.done();
        if done > told && !progress(done, prompts.len()) {
            return Ok(Vec::new());
        }
        told = done;
    }
    Ok(predictor.into_answers())
}

/// [`predict`] a few tokens a turn, so that others can have theirs in between.
pub struct Predictor<'a, B> {
    base: B,
    set: Option<LoraSet>,
    prompts: Prompts<'a>,
    greedy: Greedy,
    order: Column,
    answers: Vec<Vec<u32>>,
    done: usize,
    limits: Limits,
    /// The batch that is being answered: as many of the order as it has rows, from `done` on.
    under_way: Option<(Vec<u32>, Answering)>,
    note: Option<String>,
}

impl<'a, B: Deref<Target = Base>> Predictor<'a, B> {
    /// `room`: bytes that a batch's cache and its passes may take. A single row is answered whatever it takes.
    ///
    /// # Errors
    /// The adapter does not fit the base.
    pub fn new(
        base: B,
        adapter: Option<&tailor_peft::Adapter>,
        prompts: Prompts<'a>,
        max_new_tokens: usize,
        room: u64,
    ) -> Result<Self, Error> {
        let before = "before the first prediction";
        let set = adapter.map(|adapter| guarded(|| LoraSet::from_adapter(&base, adapter))).transpose();
        let set = set.map_err(Error::at(before))?;
        let greedy = Greedy { max_new: max_new_tokens, eos: base.config().eos_token_ids().to_vec() };
        let order = prompts.order()?;
        let shape = Shape::parse(base.config_text())
            .map_err(|error| Error::at(before)(tailor_models::Error::Request(error.to_string())))?;
        let limits = Limits { rows: MAX_ROWS, room, bytes_a_value: bytes(base.compute()), shape };
        let answers = vec![Vec::new(); prompts.len()];
        Ok(Self { base, set, greedy, order, answers, prompts, done: 0, limits, under_way: None, note: None })
    }

    /// Answers that are made.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Something that a person should read, once.
    pub fn take_note(&mut self) -> Option<String> {
        self.note.take()
    }

    /// A few tokens more of each row of a batch; true once no prompt is left. A batch without memory is answered anew in
    /// halves.
    ///
    /// # Errors
    /// A prompt cannot be taken, or the device failed.
    pub fn turn(&mut self) -> Result<bool, Error> {
        let (rows, answering) = match self.under_way.take() {
            Some((rows, answering)) => (rows, Ok(answering)),
            None => {
                let rows = self.next_batch();
                if rows.is_empty() {
                    return Ok(true);
                }
                let answering = self.begin(&rows)?;
                (rows, answering)
            }
        };
        let (base, set) = (&self.base, self.set.as_ref());
        let go_on = |mut answering: Answering| {
            guarded(|| -> tailor_models::Result<_> {
                let until = Instant::now() + TURN;
                loop {
                    let ended = tch::no_grad(|| answering.step(base, set))?;
                    if ended || Instant::now() >= until {
                        return Ok((ended, answering));
                    }
                }
            })
        };
        match answering.and_then(go_on) {
            Ok((false, answering)) => self.under_way = Some((rows, answering)),
            Ok((true, answering)) => {
                for (row, answer) in rows.iter().zip(answering.into_answers()) {
                    self.answers[*row as usize] = answer;
                }
                self.done += rows.len();
            }
            Err(error) if error.code() == ErrorCode::ResourceExhausted && rows.len() > 1 => {
                self.limits.rows = rows.len() / 2;
                let (had, half) = (rows.len(), self.limits.rows);
                self.note = Some(format!("no memory for {had} answers at once; made with {half} from here on"));
            }
            Err(error) => {
                let place = format!("predictions {} to {}", self.done + 1, self.done + rows.len());
                return Err(Error::at(place)(error));
            }
        }
        Ok(false)
    }

    fn next_batch(&self) -> Vec<u32> {
        let left = self.order.get(self.done..).unwrap_or_default();
        let tokens = |at: u32| self.prompts.tokens(at as usize);
        let batch = left[..self.limits.first_batch(left, tokens, self.greedy.max_new)].to_vec();
        self.order.release();
        self.prompts.release();
        batch
    }

    /// Outside: a prompt cannot be read. Inside: the device failed.
    fn begin(&self, rows: &[u32]) -> Result<tailor_models::Result<Answering>, Error> {
        let batch = rows.iter().map(|at| self.prompts.read(*at as usize)).collect::<Result<Vec<_>, _>>()?;
        let (base, greedy, set) = (&self.base, &self.greedy, self.set.as_ref());
        Ok(guarded(|| tch::no_grad(|| base.begin_greedy(&batch, greedy, set))))
    }

    /// In the order of the prompts; an empty one for each that was not answered.
    pub fn into_answers(self) -> Vec<Vec<u32>> {
        self.answers
    }
}

fn bytes(compute: Compute) -> u64 {
    match compute {
        Compute::Bf16 => tailor_plan::Compute::Bf16.bytes(),
        Compute::F32 => tailor_plan::Compute::F32.bytes(),
    }
}

/// What a batch may be.
struct Limits {
    rows: usize,
    /// Bytes.
    room: u64,
    bytes_a_value: u64,
    shape: Shape,
}

impl Limits {
    /// How many of these rows, sorted by their prompts' `tokens`, go into one batch. A row over a limit goes alone.
    fn first_batch(&self, rows: &[u32], tokens: impl Fn(u32) -> usize, new: usize) -> usize {
        let fits = |(before, row): (usize, &u32)| {
            let (count, prompt) = (before + 1, tokens(*row));
            let bytes = self.shape.answer_bytes(prompt as u64, new as u64, self.bytes_a_value);
            let all = bytes.saturating_mul(count as u64);
            count <= self.rows && (prompt + new) * count <= MAX_POSITIONS && all <= self.room
        };
        rows.iter().enumerate().take_while(|(before, row)| *before == 0 || fits((*before, row))).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: usize = 4;

    fn limits(rows: usize, room: u64) -> Limits {
        let config = r#"{"model_type":"llama","hidden_size":64,"intermediate_size":128,"num_hidden_layers":2,
            "num_attention_heads":4,"num_key_value_heads":2,"vocab_size":96}"#;
        let shape = Shape::parse(config.as_bytes()).expect("a known family");
        Limits { rows, room, bytes_a_value: 2, shape }
    }

    #[test]
    fn batches_hold_every_row_once_and_keep_their_limits() {
        let prompts: Vec<usize> = (0..300).map(|row| 10 + row * row).collect();
        let order: Vec<u32> = (0..300).collect();
        for limits in [limits(MAX_ROWS, u64::MAX), limits(MAX_ROWS, 4 << 20), limits(3, u64::MAX), limits(9, 0)] {
            let allows = |longest: usize, rows: usize| {
                let bytes = limits.shape.answer_bytes(longest as u64, NEW as u64, 2) * rows as u64;
                rows <= limits.rows && rows * (longest + NEW) <= MAX_POSITIONS && bytes <= limits.room
            };
            let mut left = order.as_slice();
            while !left.is_empty() {
                let size = limits.first_batch(left, |row| prompts[row as usize], NEW);
                let (batch, rest) = left.split_at(size);
                let longest = batch.iter().map(|row| prompts[*row as usize]).max().expect("a batch has a row");
                assert!(batch.len() == 1 || allows(longest, batch.len()), "{batch:?}");
                // It is as large as it can be.
                let next = rest.first().map(|row| prompts[*row as usize]);
                assert!(next.is_none_or(|longest| !allows(longest, batch.len() + 1)), "{batch:?}");
                left = rest;
            }
        }
    }
}
