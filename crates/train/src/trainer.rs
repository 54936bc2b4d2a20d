//! The loop: batches in, one optimizer step each, until the budget is used up, the loss is acceptable, or someone stops it.
//!
//! The gradient of a step is that of the mean loss over ALL unmasked tokens of its batch, however the batch is cut into
//! passes: a long row in a small pass weighs no more than in a large one.

use std::time::Instant;

use sha2::{Digest as _, Sha256};
use tailor_domain::{LoraSpec, Recipe, StepMetrics, TrainSpec};
use tailor_models::{Base, Config, Lora, LoraSet, Pass};
use tailor_torch::guarded;

use crate::batches::Batches;
use crate::checkpoint::{Checkpoint, State};
use crate::collate::MicroBatch;
use crate::error::Error;
use crate::init::Init;
use crate::loss;
use crate::modules::Modules;
use crate::optimizer::AdamW;
use crate::rows::{Rows, targets};
use crate::schedule::Schedule;
use crate::summary::{Observer, Outcome, RecentLoss, Summary};

/// What a run leaves behind.
#[derive(Debug)]
pub struct Trained {
    pub adapter: tailor_peft::Adapter,
    pub summary: Summary,
}

/// Trains a LoRA adapter for `base`. Runs on the calling thread to the end.
///
/// On the CPU the same base, rows, settings and number of threads give the same bits.
///
/// # Errors
/// A setting outside its limits or a module the base lacks; a row that was not made for this base, or no row that can be
/// used; a loss or gradient that is not finite; a failure of the device. Never a panic.
pub fn train(
    base: &Base,
    recipe: &Recipe,
    examples: &[tailor_text::Example],
    base_name: &str,
    observer: &mut dyn Observer,
) -> Result<Trained, Error> {
    resume(base, recipe, examples, base_name, None, observer)
}

/// As [`train`], from a checkpoint of the same run on: with the same number of threads what comes out is the same to the
/// bit as if it had never been stopped. Steps before it are not reported again.
///
/// # Errors
/// As [`train`]; a checkpoint of another run.
pub fn resume(
    base: &Base,
    recipe: &Recipe,
    examples: &[tailor_text::Example],
    base_name: &str,
    from: Option<&Checkpoint>,
    observer: &mut dyn Observer,
) -> Result<Trained, Error> {
    recipe.validate()?;
    let (lora, spec) = (&recipe.lora, &recipe.train);
    let rows = Rows::usable(base, spec, examples)?;
    let modules = Modules::choose(base, lora, base_name)?;
    let identity = identity(lora, spec, &rows, &modules);
    if let Some(from) = from.filter(|from| from.state.run != identity) {
        let problem = "is of another run: the settings, the rows or the base are not those it was taken with";
        return Err(Error::Checkpoint(format!("of step {} {problem}", from.step())));
    }
    let mut run =
        guarded(|| Run::new(base, lora, spec, &rows, &modules)).map_err(Error::at("before the first step"))?;
    run.identity = identity;
    run.target_loss = recipe.stop.target_loss;
    let summary = run.run(from, observer)?;
    let values = run.optimizer.values().map_err(|error| Error::at("after the last step")(error.into()))?;
    Ok(Trained { adapter: modules.adapter(values)?, summary })
}

/// What makes two runs the same: everything that decides their bits, but the number of threads.
fn identity(lora: &LoraSpec, spec: &TrainSpec, rows: &Rows<'_>, modules: &Modules) -> String {
    let mut hasher = Sha256::new();
    let shapes: Vec<_> = modules.shapes.iter().map(|(path, at)| (path, at.in_features, at.out_features)).collect();
    hasher.update(format!("{lora:?}\n{spec:?}\n{shapes:?}\n"));
    for at in 0..rows.lengths().len() {
        hasher.update(format!("{:?}\n", rows.example(at)));
    }
    format!("{:x}", hasher.finalize())
}

struct Run<'a> {
    base: &'a Base,
    spec: &'a TrainSpec,
    rows: &'a Rows<'a>,
    /// The adapter in the model: the optimizer's leaves under their modules' paths.
    adapter: LoraSet,
    optimizer: AdamW,
    identity: String,
    target_loss: f64,
}

/// What one step's passes summed up to.
struct StepSums {
    loss: f64,
    tokens: u64,
    grad_norm: f64,
}

impl<'a> Run<'a> {
    fn new(
        base: &'a Base,
        lora: &LoraSpec,
        spec: &'a TrainSpec,
        rows: &'a Rows<'a>,
        modules: &Modules,
    ) -> tailor_models::Result<Self> {
        // Dropout draws from torch's generator.
        tch::manual_seed(spec.seed as i64);
        let rank = i64::from(lora.rank);
        let mut init = Init::new(spec.seed);
        let mut initial = Vec::with_capacity(2 * modules.shapes.len());
        for shape in modules.shapes.values() {
            let (input, out) = (shape.in_features, shape.out_features);
            initial.push((init.lora_a(rank as usize, input), vec![rank, input as i64]));
            initial.push((init.lora_b(out, rank as usize), vec![out as i64, rank]));
        }
        let optimizer = AdamW::new(&initial, spec.weight_decay, base.device())?;
        let mut adapter = LoraSet::empty(base);
        for (path, pair) in modules.shapes.keys().zip(optimizer.leaves().chunks_exact(2)) {
            let scale = modules.config.scale_for(path);
            let (a, b) = (pair[0].shallow_clone(), pair[1].shallow_clone());
            adapter.insert(path, Lora { a, b, scale, dropout: f64::from(lora.dropout) })?;
        }
        Ok(Self { base, spec, rows, adapter, optimizer, identity: String::new(), target_loss: 0.0 })
    }

    fn run(&mut self, from: Option<&Checkpoint>, observer: &mut dyn Observer) -> Result<Summary, Error> {
        let mut batches = Batches::new(self.rows.lengths(), self.spec.batch_rows as usize, self.spec.seed);
        let schedule = Schedule::new(self.spec, batches.per_epoch());
        let mut recent = RecentLoss::default();
        let (mut steps, mut tokens, mut seconds_before) = (0, 0, 0.0);
        if let Some(from) = from {
            guarded(|| self.restore(from)).map_err(Error::at("going on from the checkpoint"))?;
            (steps, tokens, seconds_before) = (from.state.step, from.state.tokens, from.state.seconds);
            batches.skip(steps);
            from.state.recent_losses.iter().for_each(|loss| recent.push(*loss));
        }
        let started = Instant::now();
        let mut saved = steps;
        let outcome = loop {
            if recent.reached(self.target_loss) {
                break Outcome::TargetLoss;
            }
            if observer.should_stop() {
                break Outcome::Stopped;
            }
            if steps >= schedule.total_steps {
                break Outcome::Finished;
            }
            if steps > saved && observer.wants_checkpoint() {
                let state = self.state(steps, tokens, seconds_before + started.elapsed().as_secs_f64(), &recent);
                observer.on_checkpoint(self.checkpoint(state)?);
                saved = steps;
            }
            steps += 1;
            let learning_rate = schedule.learning_rate(steps);
            let step_started = Instant::now();
            let sums = self.step(steps, &batches.next_batch(), learning_rate)?;
            recent.push(sums.loss);
            tokens += sums.tokens;
            observer.on_step(&StepMetrics {
                step: steps,
                total_steps: schedule.total_steps,
                loss: sums.loss,
                grad_norm: sums.grad_norm,
                learning_rate,
                tokens: sums.tokens,
                tokens_per_second: per_second(sums.tokens, step_started.elapsed().as_secs_f64()),
            });
        };
        let seconds = seconds_before + started.elapsed().as_secs_f64();
        if steps > saved && outcome != Outcome::Stopped {
            // What comes after training may be stopped too, and must not cost the training.
            observer.on_checkpoint(self.checkpoint(self.state(steps, tokens, seconds, &recent))?);
        }
        Ok(Summary {
            steps,
            tokens,
            final_loss: recent.mean(),
            seconds,
            tokens_per_second: per_second(tokens, seconds),
            outcome,
            peak_memory_bytes: tailor_torch::Memory::now().map_or(0, |memory| memory.peak_bytes),
            rows_left_out: self.rows.left_out(),
        })
    }

    fn state(&self, step: u64, tokens: u64, seconds: f64, recent: &RecentLoss) -> State {
        State::new(&self.identity, step, tokens, seconds, recent.losses())
    }

    fn checkpoint(&self, state: State) -> Result<Checkpoint, Error> {
        let step = state.step;
        guarded(|| -> tailor_models::Result<_> {
            let [parameters, first_moment, second_moment] = self.optimizer.state()?;
            let random = tailor_torch::rng_state()?;
            Ok(Checkpoint { state, parameters, first_moment, second_moment, random })
        })
        .map_err(Error::at(format!("checkpoint of step {step}")))
    }

    fn restore(&mut self, from: &Checkpoint) -> tailor_models::Result<()> {
        let Checkpoint { state, parameters, first_moment, second_moment, random } = from;
        self.optimizer.restore(state.step, [parameters, first_moment, second_moment])?;
        Ok(tailor_torch::set_rng_state(random)?)
    }

    /// Gradient of the batch, clipped, and one update.
    fn step(&mut self, step: u64, batch: &[usize], learning_rate: f64) -> Result<StepSums, Error> {
        let place = || format!("step {step}");
        let examples: Vec<_> = batch.iter().map(|at| self.rows.example(*at)).collect();
        let in_loss: usize = examples.iter().map(|example| targets(example)).sum();
        let scale = 1.0 / in_loss.max(1) as f64;
        let not_finite = |what, loss, grad_norm, rows: &[usize]| {
            Err(Error::NotFinite { step, what, loss, grad_norm, rows: self.rows.name(rows) })
        };

        let micro_rows =
            if self.spec.micro_batch_rows == 0 { batch.len() } else { self.spec.micro_batch_rows as usize };
        let mut loss = 0.0;
        for (rows, examples) in batch.chunks(micro_rows).zip(examples.chunks(micro_rows)) {
            let sum = guarded(|| self.accumulate(examples, scale)).map_err(Error::at(place()))?;
            if !sum.is_finite() {
                return not_finite("the loss", sum, f64::NAN, rows);
            }
            loss += sum * scale;
        }
        let (gradient, grad_norm) = guarded(|| -> tailor_models::Result<_> {
            let gradient = self.optimizer.gathered_gradient()?;
            let norm = f64::try_from(gradient.f_norm()?)?;
            Ok((gradient, norm))
        })
        .map_err(Error::at(place()))?;
        if !grad_norm.is_finite() {
            return not_finite("the gradient", loss, grad_norm, batch);
        }
        let clip = (self.spec.max_grad_norm / (grad_norm + 1e-6)).min(1.0);
        guarded(|| -> tailor_models::Result<()> {
            self.optimizer.update(&gradient, clip, learning_rate)?;
            self.optimizer.zero_gradients();
            Ok(())
        })
        .map_err(Error::at(place()))?;
        let tokens = examples.iter().map(|example| example.tokens() as u64).sum();
        Ok(StepSums { loss, tokens, grad_norm })
    }

    /// One forward and backward pass. Returns the summed loss.
    fn accumulate(&self, examples: &[&tailor_text::Example], scale: f64) -> tailor_models::Result<f64> {
        let start = match self.base.config() {
            Config::T5(config) => config.decoder_start_token_id,
            Config::Decoder(_) => 0, // has no decoder apart
        };
        let batch = MicroBatch::new(examples, start, self.base.device())?;
        let pass = Pass::training(&self.adapter);
        let hidden = self.base.hidden(&batch.input(), &pass)?; // (B, T, D)
        let vocab = self.base.config().vocab_size();
        loss::backward(&hidden, &|hidden| Ok(self.base.head(hidden, &pass)), vocab, &batch.targets, scale)
    }
}

fn per_second(tokens: u64, seconds: f64) -> f64 {
    tokens as f64 / seconds.max(1e-9)
}
