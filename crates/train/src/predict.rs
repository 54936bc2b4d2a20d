//! Greedy answers to many prompts: rows of like length together, all rows of a batch in one step.

use std::ops::Deref;
use std::sync::Arc;

use tailor_models::{Base, Greedy, LoraSet};
use tailor_text::Column;
use tailor_text::shard::{Content, ShardFile};
use tailor_torch::guarded;

use crate::error::Error;
use crate::rows::on_disk;

/// Rows in one batch.
const MAX_ROWS: usize = 64;
/// Positions (prompt and answer) in one batch: what its cache may hold.
const MAX_POSITIONS: usize = 1 << 15;

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
        let mut order = Column::counting(self.len(), folder).map_err(on_disk)?;
        order.sort_by_key(|at| self.tokens(*at as usize));
        order.release();
        if let Self::Shard { file, .. } = self {
            file.release();
        }
        Ok(order)
    }
}

/// The greedy answer to each prompt, without its end token.
///
/// `progress` is told how many prompts are done after each batch; when it returns false the work stops and no answer is
/// returned.
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
    let mut predictor = Predictor::new(base, adapter, Prompts::Memory(prompts), max_new_tokens)?;
    while !predictor.turn()? {
        if !progress(predictor.done(), prompts.len()) {
            return Ok(Vec::new());
        }
    }
    Ok(predictor.into_answers())
}

/// [`predict`] batch by batch, so that others can have their turn in between.
pub struct Predictor<'a, B> {
    base: B,
    set: Option<LoraSet>,
    prompts: Prompts<'a>,
    greedy: Greedy,
    order: Column,
    answers: Vec<Vec<u32>>,
    done: usize,
}

impl<'a, B: Deref<Target = Base>> Predictor<'a, B> {
    /// # Errors
    /// The adapter does not fit the base.
    pub fn new(
        base: B,
        adapter: Option<&tailor_peft::Adapter>,
        prompts: Prompts<'a>,
        max_new_tokens: usize,
    ) -> Result<Self, Error> {
        let set = adapter.map(|adapter| guarded(|| LoraSet::from_adapter(&base, adapter))).transpose();
        let set = set.map_err(Error::at("before the first prediction"))?;
        let greedy = Greedy { max_new: max_new_tokens, eos: base.config().eos_token_ids().to_vec() };
        let order = prompts.order()?;
        Ok(Self { base, set, greedy, order, answers: vec![Vec::new(); prompts.len()], prompts, done: 0 })
    }

    /// Answers that are made.
    pub fn done(&self) -> usize {
        self.done
    }

    /// One batch; true once there is none left.
    ///
    /// # Errors
    /// A prompt cannot be taken, or the device failed.
    pub fn turn(&mut self) -> Result<bool, Error> {
        let left = self.order.get(self.done..).unwrap_or_default();
        if left.is_empty() {
            return Ok(true);
        }
        let size = |at: u32| self.prompts.tokens(at as usize) + self.greedy.max_new;
        let rows = left[..first_batch(left, size)].to_vec();
        let batch = rows.iter().map(|at| self.prompts.read(*at as usize)).collect::<Result<Vec<_>, _>>()?;
        let place = format!("predictions {} to {}", self.done + 1, self.done + rows.len());
        let (base, greedy, set) = (&self.base, &self.greedy, self.set.as_ref());
        let outcome = guarded(|| tch::no_grad(|| base.generate_greedy(&batch, greedy, set)));
        for (row, answer) in rows.iter().zip(outcome.map_err(Error::at(place))?) {
            self.answers[*row as usize] = answer;
        }
        self.done += rows.len();
        Ok(false)
    }

    /// In the order of the prompts; an empty one for each that was not answered.
    pub fn into_answers(self) -> Vec<Vec<u32>> {
        self.answers
    }
}

/// How many of these rows (sorted by size) go into one batch within [`MAX_ROWS`] and [`MAX_POSITIONS`]; a row over the limit
/// goes alone.
fn first_batch(rows: &[u32], size: impl Fn(u32) -> usize) -> usize {
    let fits = |(before, row): (usize, &u32)| before < MAX_ROWS && size(*row) * (before + 1) <= MAX_POSITIONS;
    rows.iter().enumerate().take_while(|(before, row)| *before == 0 || fits((*before, row))).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_row_once_and_keep_their_limits() {
        let sizes: Vec<usize> = (0..300).map(|row| 10 + row * row).collect();
        let order: Vec<u32> = (0..300).collect();
        let mut left = order.as_slice();
        while !left.is_empty() {
            let (batch, rest) = left.split_at(first_batch(left, |row| sizes[row as usize]));
            let longest = batch.iter().map(|row| sizes[*row as usize]).max().expect("a batch has a row");
            assert!(batch.len() == 1 || (batch.len() <= MAX_ROWS && batch.len() * longest <= MAX_POSITIONS));
            // It is as large as it can be.
            let next = rest.first().map_or(usize::MAX, |row| sizes[*row as usize] * (batch.len() + 1));
            assert!(batch.len() == MAX_ROWS || next > MAX_POSITIONS, "{batch:?}");
            left = rest;
        }
    }
}
