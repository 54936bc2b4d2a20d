//! When to stop before the budget of steps is used up.

use serde::{Deserialize, Serialize};

use super::{EvaluateSpec, within};
use crate::error::Invalid;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct StopSpec {
    /// Training stops when the mean loss of the last 20 steps is at most this ("acceptable"); 0 switches it off.
    pub target_loss: f64,
    /// Measurements on the tuning rows without a better loss after which training stops; 0 switches it off.
    pub patience: u32,
    /// A loss is better when it is lower by more than this share.
    pub min_improvement: f64,
    /// Whether the state with the lowest tuning loss is published, and not the last one.
    pub keep_best: bool,
    /// Seconds of training, over all attempts; 0 means no bound.
    pub max_seconds: f64,
    /// Money for training, in the currency of `price_per_hour`; 0 means no bound.
    pub max_cost: f64,
    /// What the machine costs an hour.
    pub price_per_hour: f64,
    /// A step's loss above this multiple of the last 20 steps' mean is a divergence; 0 switches it off. A loss or
    /// gradient that is no number always is one.
    pub spike_factor: f64,
}

impl Default for StopSpec {
    fn default() -> Self {
        Self {
            target_loss: 0.0,
            patience: 0,
            min_improvement: 0.0,
            keep_best: true,
            max_seconds: 0.0,
            max_cost: 0.0,
            price_per_hour: 0.0,
            spike_factor: 0.0,
        }
    }
}

impl StopSpec {
    /// Seconds that time and money allow to this many machines, each of which costs its price.
    pub fn seconds(&self, ranks: u32) -> Option<f64> {
        let price_per_hour = self.price_per_hour * f64::from(ranks.max(1));
        let by_cost = (self.max_cost > 0.0).then(|| self.max_cost / price_per_hour * 3600.0);
        let by_time = (self.max_seconds > 0.0).then_some(self.max_seconds);
        match (by_time, by_cost) {
            (Some(time), Some(cost)) => Some(time.min(cost)),
            (time, cost) => time.or(cost),
        }
    }

    /// # Errors
    /// Names the field, its value and its limits.
    pub fn validate(&self) -> Result<(), Invalid> {
        within("stop.target_loss", self.target_loss, 0.0, 1e3)?;
        within("stop.patience", self.patience, 0, 10_000)?;
        within("stop.min_improvement", self.min_improvement, 0.0, 0.5)?;
        within("stop.max_seconds", self.max_seconds, 0.0, 1e8)?;
        within("stop.max_cost", self.max_cost, 0.0, 1e9)?;
        within("stop.price_per_hour", self.price_per_hour, 0.0, 1e6)?;
        if self.max_cost > 0.0 && self.price_per_hour == 0.0 {
            return Err(Invalid::new("stop.max_cost", "needs stop.price_per_hour, what the machine costs an hour"));
        }
        if self.spike_factor != 0.0 {
            within("stop.spike_factor", self.spike_factor, 1.5, 1e6)?;
        }
        Ok(())
    }

    /// # Errors
    /// Patience without rows to measure on.
    pub fn validate_with(&self, evaluate: &EvaluateSpec) -> Result<(), Invalid> {
        if self.patience > 0 && evaluate.tuning_fraction == 0.0 {
            let problem = "needs rows to measure on; set evaluate.tuning_fraction above 0";
            return Err(Invalid::new("stop.patience", problem));
        }
        Ok(())
    }
}
