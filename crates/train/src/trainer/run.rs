//! The run itself: steps, measurements, when it ends.

mod measuring;
mod saving;

use std::ops::Deref;
use std::time::Instant;

use tailor_domain::{ErrorCode, Recipe, StepMetrics, TrainSpec};
use tailor_models::{Base, LoraSet};
use tailor_torch::guarded;
use tch::Tensor;

use self::measuring::Measuring;
use super::frozen_steps;
use crate::batches::Batches;
use crate::checkpoint::State;
use crate::error::Error;
use crate::loss::Sum;
use crate::method::Method;
use crate::micro_batch;
use crate::modules::Taken;
use crate::objective::{Objective, Prepared, Whole};
use crate::optimizer::{AdamW, Initial};
use crate::ranks::{Ranks, Wishes};
use crate::rows::Rows;
use crate::schedule::Schedule;
use crate::summary::{Observer, Outcome, RecentLoss, Summary};

/// A place in a run, for errors.
pub(super) const BEFORE_THE_FIRST_STEP: &str = "before the first step";

/// Where a run stands, and what it takes to go on.
pub(super) struct Run<'a, B> {
    base: B,
    recipe: Recipe,
    pub(super) rows: Rows<'a>,
    schedule: Schedule,
    pub(super) ranks: Ranks,
    /// The adapter in the model: the optimizer's leaves under their modules' paths.
    adapter: LoraSet,
    pub(super) optimizer: AdamW,
    pub(super) taken: Taken,
    /// Where the run is; its `recent_losses` stand in `recent`.
    pub(super) state: State,
    recent: RecentLoss,
    /// The parameters of the best measurement.
    best: Vec<f32>,
    measuring: Option<Measuring>,
    /// The sequences of the next step, and its first pass where that is ready.
    upcoming: Option<Vec<usize>>,
    ahead: Option<Ahead>,
    /// Time spent before this attempt, in its turns before the present one, and when that one began.
    seconds_before: f64,
    pub(super) seconds_here: f64,
    pub(super) started: Instant,
}

/// Parameters before the first step.
pub(super) struct Beginning<'m> {
    method: &'m Method,
    initial: Vec<Initial>,
    taken: Taken,
}

impl<'m> Beginning<'m> {
    /// None where the observer stopped it.
    pub fn of(
        method: &'m Method,
        base: &Base,
        spec: &TrainSpec,
        schedule: &Schedule,
        observer: &mut dyn Observer,
    ) -> tailor_models::Result<Option<Self>> {
        // Dropout and noise draw from torch's generator.
        tch::manual_seed(spec.seed as i64);
        let frozen_steps = |path: &str| frozen_steps(spec, schedule, path);
        let made = method.initial(base, spec.seed, frozen_steps, &mut || observer.should_stop())?;
        Ok(made.map(|(initial, taken)| Self { method, initial, taken }))
    }
}

/// A pass that was read and collated while a GPU was at work on what comes before it.
struct Ahead {
    sequences: Vec<usize>,
    rows: Prepared,
}

/// What one step's passes summed up to.
struct StepSums {
    loss: f64,
    tokens: u64,
    grad_norm: f64,
}

impl<'a, B: Deref<Target = Base>> Run<'a, B> {
    pub(super) fn new(
        base: B,
        recipe: &Recipe,
        rows: Rows<'a>,
        beginning: Beginning<'_>,
        schedule: Schedule,
        identity: &str,
        ranks: &Ranks,
    ) -> tailor_models::Result<Self> {
        let spec = &recipe.train;
        let Beginning { method, initial, taken } = beginning;
        let optimizer = AdamW::new(&initial, spec.optimizer, spec.weight_decay, base.device())?;
        let adapter = method.attach(&base, &optimizer, &taken)?;
        let share = ranks.largest_share(u64::from(spec.batch_rows));
        let micro_batch = if spec.micro_batch_rows == 0 { share } else { u64::from(spec.micro_batch_rows).min(share) };
        Ok(Self {
            base,
            recipe: recipe.clone(),
            rows,
            schedule,
            ranks: ranks.clone(),
            adapter,
            optimizer,
            taken,
            state: State::new(identity, micro_batch),
            recent: RecentLoss::default(),
            best: Vec::new(),
            measuring: None,
            upcoming: None,
            ahead: None,
            seconds_before: 0.0,
            seconds_here: 0.0,
            started: Instant::now(),
        })
    }

    /// Some: the run is over.
    pub(super) fn turn(
        &mut self,
        batches: &mut Batches,
        saved: &mut u64,
        observer: &mut dyn Observer,
    ) -> Result<Option<Outcome>, Error> {
        let wishes = self.ranks.agree(self.wishes(*saved, observer))?;
        let outcome = match self.reason_to_stop(wishes) {
            Some(outcome) => outcome,
            None => {
                let is_due = self.measurement_is_due();
                // Whoever does not leave saves a state with its measurement.
                if self.state.step > *saved && (wishes.leaving || wishes.checkpoint && !is_due) {
                    self.save(observer)?;
                    *saved = self.state.step;
                }
                if wishes.leaving {
                    let (at, problem) =
                        (format!("after step {}", self.state.step), "another rank's worker is stopping");
                    return Err(Error::Ranks { at, problem: problem.into() });
                }
                let stepped = match is_due {
                    true => Ok(()),
                    false => {
                        let batch = self.next_batch(batches);
                        self.next_step(&batch, observer)
                    }
                };
                match stepped.and_then(|()| self.measure_if_due(observer)) {
                    Ok(()) => return Ok(None),
                    Err(error) if error.is_divergence() && self.state.best.is_some() => {
                        let kept = self.state.best.map_or(0, |best| best.step);
                        observer.on_note(&format!("{error}; training ends here, the state after step {kept} is kept"));
                        Outcome::Diverged
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        self.state.seconds = self.seconds();
        if self.state.step > *saved && (outcome != Outcome::Stopped || observer.wants_checkpoint()) {
            // What comes after training may be stopped too, and must not cost the training.
            self.save(observer)?;
        }
        Ok(Some(outcome))
    }

    /// What this rank would like before the next step.
    fn wishes(&self, saved: u64, observer: &mut dyn Observer) -> Wishes {
        let bound = self.recipe.stop.seconds(self.ranks.world());
        Wishes {
            stop: observer.should_stop(),
            over_budget: bound.is_some_and(|bound| self.state.step > 0 && self.seconds() >= bound),
            checkpoint: self.state.step > saved && observer.wants_checkpoint(),
            leaving: false,
        }
    }

    /// Where the host's memory would not hold a pass of the whole batch, fewer rows; see [`micro_batch`]. A pass of long rows
    /// takes long, so before each the observer is asked whether anybody waits for it.
    pub(super) fn find_micro_batch(&mut self, observer: &mut dyn Observer) -> Result<(), Error> {
        if self.base.device() != tch::Device::Cpu {
            return Ok(());
        }
        let sequences = self.rows.lengths().len();
        let (mut longest, mut tokens) = (0, 0);
        self.rows.lengths().each(|at, length| {
            if length >= tokens {
                (longest, tokens) = (at, length);
            }
        });
        let at = BEFORE_THE_FIRST_STEP;
        let before = Error::at(at);
        let random = tailor_torch::rng_state().map_err(|error| before(error.into()))?;
        self.optimizer.thaw();
        let batch = self.state.micro_batch as usize;
        let mut stopped = false;
        let fit = micro_batch::that_fits(batch.min(sequences), |rows| {
            stopped = stopped || observer.should_stop();
            if stopped {
                return false;
            }
            let batch = vec![longest; rows];
            let passed = self.gradient(0, &batch, &batch, rows).is_ok();
            self.optimizer.zero_gradients();
            passed
        });
        tailor_torch::set_rng_state(&random).map_err(|error| Error::at(at)(error.into()))?;
        if stopped {
            return Err(Error::Stopped { at });
        }
        if let Some(fit) = fit.filter(|fit| fit.rows < batch.min(sequences)) {
            self.state.micro_batch = fit.rows as u64;
            let (row, free) = (fit.row >> 20, fit.available >> 20);
            observer.on_note(&format!(
                "micro-batch {} of {batch} rows: the longest row takes {row} MiB of memory, {free} MiB are free",
                fit.rows
            ));
        }
        Ok(())
    }

    fn reason_to_stop(&self, wishes: Wishes) -> Option<Outcome> {
        if self.measurement_is_due() {
            // Every other reason is looked at once it is made.
            return wishes.stop.then_some(Outcome::Stopped);
        }
        let (stop, spec) = (&self.recipe.stop, &self.recipe.train);
        let tokens_used_up = spec.max_train_tokens > 0 && self.state.tokens >= spec.max_train_tokens;
        if self.recent.reached(stop.target_loss) {
            Some(Outcome::TargetLoss)
        } else if stop.patience > 0 && self.state.without_improvement >= stop.patience {
            Some(Outcome::NoImprovement)
        } else if wishes.over_budget {
            Some(Outcome::OutOfBudget)
        } else if wishes.stop {
            Some(Outcome::Stopped)
        } else if self.state.step >= self.schedule.total_steps || tokens_used_up {
            Some(Outcome::Finished)
        } else {
            None
        }
    }

    /// The sequences of this step. Those of the next are chosen with them, so that they can be read ahead.
    fn next_batch(&mut self, batches: &mut Batches) -> Vec<usize> {
        let batch = self.upcoming.take().unwrap_or_else(|| batches.next_batch(self.rows.lengths()));
        let goes_on = self.state.step + 1 < self.schedule.total_steps;
        self.upcoming = goes_on.then(|| batches.next_batch(self.rows.lengths()));
        batch
    }

    /// One step and its report.
    fn next_step(&mut self, batch: &[usize], observer: &mut dyn Observer) -> Result<(), Error> {
        let step = self.state.step + 1;
        let learning_rate = self.schedule.learning_rate(step);
        let started = Instant::now();
        let sums = self.step(step, batch, learning_rate, observer)?;
        self.state.step = step;
        self.state.tokens += sums.tokens;
        self.recent.push(sums.loss);
        observer.on_step(&StepMetrics {
            step,
            total_steps: self.schedule.total_steps,
            loss: sums.loss,
            grad_norm: sums.grad_norm,
            learning_rate,
            tokens: sums.tokens,
            tokens_per_second: per_second(sums.tokens, started.elapsed().as_secs_f64()),
        });
        Ok(())
    }

    fn objective(&self) -> Objective<'_> {
        Objective {
            base: &self.base,
            adapter: &self.adapter,
            checkpointing: self.recipe.train.checkpointing,
            noise: self.recipe.train.neftune_alpha,
            preference: &self.recipe.preference,
        }
    }

    /// Gradient of the batch, clipped, and one update.
    fn step(
        &mut self,
        step: u64,
        batch: &[usize],
        learning_rate: f64,
        observer: &mut dyn Observer,
    ) -> Result<StepSums, Error> {
        let place = || format!("step {step}");
        self.optimizer.thaw();
        self.ranks.seed(self.recipe.train.seed, step);
        let added = self.gradient_that_fits(step, batch, observer)?;
        let gradient = guarded(|| Ok::<_, tailor_models::Error>(self.optimizer.gathered_gradient()?))
            .map_err(Error::at(place()))?;
        let norm_of = |gradient: &Tensor| {
            guarded(|| -> tailor_models::Result<_> { Ok(gradient.f_norm()?) }).map_err(Error::at(place()))
        };
        let own_norm = norm_of(&gradient)?;
        // All of the gradient is launched: only from here on is a GPU waited for.
        self.look_ahead();
        let loss = self.added_up(step, self.ranks.share(batch), &added)?;
        let [loss] = self.ranks.sum([loss], &place())?;
        let rows = || self.rows.name(batch);
        if !loss.is_finite() {
            return Err(Error::NotFinite { step, what: "the loss", loss, grad_norm: f64::NAN, rows: rows() });
        }
        let norm = match self.ranks.world() {
            1 => own_norm,
            _ => {
                self.ranks.add_up(&gradient, &place())?;
                norm_of(&gradient)?
            }
        };
        let grad_norm =
            guarded(|| -> tailor_models::Result<_> { Ok(f64::try_from(&norm)?) }).map_err(Error::at(place()))?;
        if !grad_norm.is_finite() {
            return Err(Error::NotFinite { step, what: "the gradient", loss, grad_norm, rows: rows() });
        }
        if self.recent.is_spike(loss, self.recipe.stop.spike_factor) {
            return Err(Error::Spike { step, loss, mean: self.recent.mean(), grad_norm, rows: rows() });
        }
        let clip = (self.recipe.train.max_grad_norm / (grad_norm + 1e-6)).min(1.0);
        guarded(|| -> tailor_models::Result<()> {
            self.optimizer.update(&gradient, clip, learning_rate)?;
            self.optimizer.zero_gradients();
            if self.recipe.lora.dora {
                self.adapter.refresh_magnitudes(&self.base)?;
            }
            Ok(())
        })
        .map_err(Error::at(place()))?;
        let tokens = batch.iter().map(|at| u64::from(self.rows.lengths()[*at])).sum();
        Ok(StepSums { loss, tokens, grad_norm })
    }

    /// This rank's share of the batch's gradient in the leaves, and what its passes add to the loss. A micro-batch that does not
    /// fit into memory is halved and the whole gradient made again, from the same random numbers.
    fn gradient_that_fits(
        &mut self,
        step: u64,
        batch: &[usize],
        observer: &mut dyn Observer,
    ) -> Result<Vec<Sum>, Error> {
        let share = self.ranks.share(batch);
        loop {
            let random = tailor_torch::rng_state().map_err(|error| Error::at(format!("step {step}"))(error.into()))?;
            let micro = self.state.micro_batch as usize;
            match self.gradient(step, batch, share, micro) {
                Err(error) if error.code() == ErrorCode::ResourceExhausted && micro > 1 => {
                    // Of this batch, which may be smaller than a micro-batch, half.
                    let half = (micro.min(share.len()) / 2).max(1);
                    observer.on_note(&format!(
                        "step {step}: no memory for a micro-batch of {micro}; made again, and from here on, with {half}"
                    ));
                    self.state.micro_batch = half as u64;
                    self.optimizer.zero_gradients();
                    tailor_torch::set_rng_state(&random)
                        .map_err(|error| Error::at(format!("step {step}"))(error.into()))?;
                }
                outcome => return outcome,
            }
        }
    }

    /// The gradient of `share` as part of `batch`, in passes of `micro` sequences; a GPU may be at work on it yet. Each pass is
    /// collated while the GPU works on those before it. After a sum that is known to be no number there is no other pass.
    fn gradient(&mut self, step: u64, batch: &[usize], share: &[usize], micro: usize) -> Result<Vec<Sum>, Error> {
        let mut ahead = self.ahead.take();
        let rows = batch.iter().flat_map(|at| self.rows.sequence(*at));
        let whole = Whole::of(self.rows.examples(), rows.map(|row| *row as usize));
        let mut added = Vec::new();
        for part in share.chunks(micro.max(1)) {
            let rows = match ahead.take().filter(|ahead| ahead.sequences == part) {
                Some(ahead) => ahead.rows,
                None => self.prepare(step, part)?,
            };
            let objective = self.objective();
            let sum = guarded(|| objective.accumulate(&rows, whole)).map_err(Error::at(format!("step {step}")))?;
            let is_lost = sum.known().is_some_and(|sum| !sum.is_finite());
            added.push(sum);
            if is_lost {
                break;
            }
        }
        Ok(added)
    }

    /// Reads and collates the rows of a pass.
    fn prepare(&self, step: u64, sequences: &[usize]) -> Result<Prepared, Error> {
        let loaded = self.rows.examples().load(sequences.iter().map(|at| self.rows.sequence(*at)))?;
        guarded(|| self.objective().prepare(&loaded)).map_err(Error::at(format!("step {step}")))
    }

    /// Makes the first pass of the next step ready. What is wrong with it that step will find, and tell.
    fn look_ahead(&mut self) {
        let Some(batch) = &self.upcoming else { return };
        let mut passes = self.ranks.share(batch).chunks(self.state.micro_batch.max(1) as usize);
        let Some(sequences) = passes.next() else { return };
        let rows = self.prepare(self.state.step + 2, sequences).ok();
        self.ahead = rows.map(|rows| Ahead { sequences: sequences.to_vec(), rows });
    }

    /// This rank's share of the loss, once a GPU has come to it.
    fn added_up(&self, step: u64, share: &[usize], added: &[Sum]) -> Result<f64, Error> {
        let sums = guarded(|| Sum::read(added)).map_err(Error::at(format!("step {step}")))?;
        let mut loss = 0.0;
        for (part, sum) in share.chunks(self.state.micro_batch.max(1) as usize).zip(sums) {
            if !sum.is_finite() && self.ranks.world() > 1 {
                return Ok(sum); // the others are waiting, and must come to the same end
            }
            if !sum.is_finite() {
                let rows = self.rows.name(part);
                return Err(Error::NotFinite { step, what: "the loss", loss: sum, grad_norm: f64::NAN, rows });
            }
            loss += sum;
        }
        Ok(loss)
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.seconds_here + self.started.elapsed().as_secs_f64()
    }

    pub(super) fn summary(&self, outcome: Outcome) -> Summary {
        let state = &self.state;
        Summary {
            steps: state.step,
            tokens: state.tokens,
            final_loss: self.recent.mean(),
            seconds: state.seconds,
            tokens_per_second: per_second(state.tokens, state.seconds),
            outcome,
            peak_memory_bytes: tailor_torch::Memory::now().map_or(0, |memory| memory.peak_bytes),
            kept_step: self.kept_measurement(outcome).map_or(state.step, |best| best.step),
            best: state.best,
            last_tuning: state.last_tuning,
            tuning_rows: self.rows.tuning().len(),
            micro_batch: state.micro_batch as usize,
            rows_left_out: self.rows.left_out(),
        }
    }
}

fn per_second(tokens: u64, seconds: f64) -> f64 {
    tokens as f64 / seconds.max(1e-9)
}
