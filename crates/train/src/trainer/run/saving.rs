//! What a run keeps of itself: checkpoints, and which parameters are published.

use std::collections::BTreeMap;
use std::ops::Deref;

use tailor_domain::TuningMetrics;
use tailor_models::Base;
use tailor_torch::guarded;

use super::Run;
use crate::checkpoint::{Checkpoint, Values};
use crate::error::Error;
use crate::summary::{Observer, Outcome};

const BEST: &str = "best";
const RANDOM: &str = "random";

impl<B: Deref<Target = Base>> Run<'_, B> {
    /// All ranks are in the same state, so one of them saves it.
    pub(super) fn save(&mut self, observer: &mut dyn Observer) -> Result<(), Error> {
        if self.ranks.is_first() {
            observer.on_checkpoint(self.checkpoint()?);
        }
        Ok(())
    }

    pub(super) fn checkpoint(&mut self) -> Result<Checkpoint, Error> {
        // The copies of parameters and moments stand where a pass had its activations, not beside them.
        tailor_torch::drop_pool();
        self.state.seconds = self.seconds();
        self.state.recent_losses = self.recent.losses();
        guarded(|| -> tailor_models::Result<_> {
            let mut tensors: BTreeMap<_, _> = self.optimizer.state()?.into_iter().collect();
            tensors.insert(RANDOM.to_owned(), Values::U8(tailor_torch::rng_state()?));
            if !self.best.is_empty() {
                tensors.insert(BEST.to_owned(), Values::F32(self.best.clone()));
            }
            Ok(Checkpoint { state: self.state.clone(), tensors })
        })
        .map_err(Error::at(format!("checkpoint of step {}", self.state.step)))
    }

    pub(in crate::trainer) fn restore(&mut self, from: &Checkpoint) -> tailor_models::Result<()> {
        let lacks = |name: &str| tailor_models::Error::Request(format!("the checkpoint has no {name}"));
        self.optimizer.restore(from.step(), &|name| from.tensor(name))?;
        if self.recipe.lora.dora {
            self.adapter.refresh_magnitudes(&self.base)?;
        }
        let Some(Values::U8(random)) = from.tensors.get(RANDOM) else { return Err(lacks(RANDOM)) };
        tailor_torch::set_rng_state(random)?;
        self.best = match (from.tensors.get(BEST), from.state.best) {
            (Some(Values::F32(best)), Some(_)) => best.clone(),
            (_, None) => Vec::new(),
            (_, Some(_)) => return Err(lacks(BEST)),
        };
        self.state = from.state.clone();
        self.seconds_before = from.state.seconds;
        from.state.recent_losses.iter().for_each(|loss| self.recent.push(*loss));
        Ok(())
    }

    /// The measurement whose state is kept in the place of the last one.
    pub(super) fn kept_measurement(&self, outcome: Outcome) -> Option<TuningMetrics> {
        let wanted = self.recipe.stop.keep_best || outcome == Outcome::Diverged;
        self.state.best.filter(|best| wanted && best.step < self.state.step)
    }

    /// The parameters that are published.
    pub(in crate::trainer) fn kept(&self, outcome: Outcome) -> tailor_models::Result<Vec<f32>> {
        match self.kept_measurement(outcome) {
            Some(_) => Ok(self.best.clone()),
            None => Ok(self.optimizer.flat_values()?),
        }
    }
}
