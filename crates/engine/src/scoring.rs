//! Log-probabilities of given tokens: a sequence whose tokens are all known goes through the model in pieces as a prompt does,
//! and what each position says of the token after it is kept.

use tailor_torch::guarded;
use tch::{Kind, Tensor};

use crate::error::Error;
use crate::job::{Scores, ScoresTo};

pub struct Scoring {
    /// What is scored, from the first that has a score on: the token after each position from `first` on.
    targets: Vec<u32>,
    /// The first position of the sequence whose logits are wanted.
    first: usize,
    scores: Scores,
    to: ScoresTo,
}

impl Scoring {
    /// `targets`: of `tokens` all that have something before them.
    pub fn new(first: usize, targets: Vec<u32>, tokens: usize, to: ScoresTo) -> Self {
        Self { scores: vec![None; tokens - targets.len()], targets, first, to }
    }

    pub fn first(&self) -> usize {
        self.first
    }

    /// After how many of the last tokens of a piece logits are wanted, when `end` tokens have been computed with it.
    pub fn wanted(&self, end: usize, count: usize) -> usize {
        end.saturating_sub(self.first).min(count)
    }

    /// Takes in the logits after some positions, which begin at `from`.
    ///
    /// # Shapes
    /// `logits` [n, V]
    ///
    /// # Errors
    /// The device's; they are not finite.
    pub fn take(&mut self, from: usize, logits: &Tensor) -> Result<(), Error> {
        let read = || {
            let count = logits.size()[0] as usize;
            let targets = &self.targets[from - self.first..][..count];
            let targets: Vec<i64> = targets.iter().map(|id| i64::from(*id)).collect();
            let targets = Tensor::f_from_slice(&targets)?.f_to_device(logits.device())?.f_unsqueeze(1)?; // [n, 1]
            let chosen = logits.f_log_softmax(-1, Kind::Float)?.f_gather(1, &targets, false)?.f_squeeze_dim(1)?;
            Ok::<_, tailor_torch::Error>(Vec::<f32>::try_from(&chosen)?)
        };
        let chosen = guarded(read).map_err(|error| Error::device(&error))?;
        if chosen.iter().any(|score| score.is_nan()) {
            return Err(Error::not_finite());
        }
        self.scores.extend(chosen.into_iter().map(Some));
        Ok(())
    }

    /// Sends what there is, once all is there.
    pub fn end(&mut self) {
        let scores = std::mem::take(&mut self.scores);
        let _ = self.to.try_send(Ok(scores));
    }

    pub fn is_abandoned(&self) -> bool {
        self.to.is_closed()
    }

    pub fn fail(&self, error: Error) {
        let _ = self.to.try_send(Err(error));
    }
}
