//! The loop: batches in, one optimizer step each, until the budget is used up, the loss is acceptable, nothing gets
//! better, or someone stops it.
//!
//! The gradient of a step is that of the mean loss over ALL unmasked tokens of its batch, however the batch is cut into
//! passes: a long row in a small pass weighs no more than in a large one.

mod run;

use std::ops::Deref;
use std::time::Instant;

use sha2::{Digest as _, Sha256};
use tailor_domain::{Invalid, Recipe, TrainSpec, spec};
use tailor_models::Base;
use tailor_peft::layer_number;
use tailor_torch::guarded;

use self::run::{BEFORE_THE_FIRST_STEP, Beginning, Run};
use crate::batches::Batches;
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::examples::Examples;
use crate::method::Method;
use crate::ranks::Ranks;
use crate::rows::Rows;
use crate::schedule::Schedule;
use crate::summary::{Observer, Outcome, Summary};

/// What a run leaves behind.
#[derive(Debug)]
pub struct Trained {
    pub adapter: tailor_peft::Adapter,
    pub summary: Summary,
}

/// Trains an adapter for `base`. Runs on the calling thread to the end.
///
/// On the CPU the same base, rows, settings and number of threads give the same bits.
///
/// # Errors
/// A setting outside its limits or a module the base lacks; a row that was not made for this base, or no row that can be
/// used; a loss or gradient that is not finite before anything good was measured; a failure of the device. Never a panic.
pub fn train<'a>(
    base: &Base,
    recipe: &Recipe,
    examples: impl Into<Examples<'a>>,
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
pub fn resume<'a>(
    base: &Base,
    recipe: &Recipe,
    examples: impl Into<Examples<'a>>,
    base_name: &str,
    from: Option<&Checkpoint>,
    observer: &mut dyn Observer,
) -> Result<Trained, Error> {
    resume_among(base, recipe, examples, base_name, from, &Ranks::alone(), observer)
}

/// As [`resume`], as one of the ranks of a run: all of them call it with the same base, recipe, rows and checkpoint, and each
/// gets the same adapter. Checkpoints, steps and measurements are told to rank 0's observer as if it were alone, and it is
/// rank 0's that ends the run or asks for a checkpoint; another rank's can only leave, which interrupts the run.
///
/// On the CPU the same number of ranks on machines of one kind gives the same bits.
///
/// # Errors
/// As [`resume`]; `train.ranks` is another number than that of the ranks here; [`Error::Ranks`]: another rank ended, leaves or
/// cannot be reached.
pub fn resume_among<'a>(
    base: &Base,
    recipe: &Recipe,
    examples: impl Into<Examples<'a>>,
    base_name: &str,
    from: Option<&Checkpoint>,
    ranks: &Ranks,
    observer: &mut dyn Observer,
) -> Result<Trained, Error> {
    let mut session = Session::begin(base, recipe, examples, base_name, from, ranks, observer)?;
    loop {
        if let Some(trained) = session.turn(observer)? {
            return Ok(trained);
        }
    }
}

/// A run that is made turn by turn, so that others can have theirs in between. Each draws from libtorch's generator, of which
/// there is one: whoever lets runs take turns keeps its state for each ([`tailor_torch::Surroundings`]).
///
/// `B` is how the base is held: borrowed, or shared with other runs.
pub struct Session<'a, B> {
    method: Method,
    run: Run<'a, B>,
    batches: Batches,
    /// The step of the last checkpoint that was given.
    saved: u64,
}

impl<'a, B: Deref<Target = Base>> Session<'a, B> {
    /// Everything before the first step: rows chosen, parameters made or taken from the checkpoint.
    ///
    /// # Errors
    /// As [`resume_among`]; [`Error::Stopped`]: the observer did not want to wait for parameters that take long to make,
    /// or for passes that show how many rows fit into memory.
    pub fn begin(
        base: B,
        recipe: &Recipe,
        examples: impl Into<Examples<'a>>,
        base_name: &str,
        from: Option<&Checkpoint>,
        ranks: &Ranks,
        observer: &mut dyn Observer,
    ) -> Result<Self, Error> {
        recipe.validate()?;
        if recipe.train.ranks != ranks.world() {
            let problem = format!("{}, and this run has {}", recipe.train.ranks, ranks.world());
            return Err(Invalid::new("train.ranks", problem).into());
        }
        recipe.train.check_device(base.device().is_cuda())?;
        let examples = examples.into();
        check_objective(recipe.train.objective, &examples)?;
        let rows = Rows::usable(&base, &recipe.train, &recipe.evaluate, examples)?;
        let method = Method::choose(&base, recipe, base_name)?;
        let identity = identity(recipe, &rows, &method);
        if let Some(from) = from.filter(|from| from.state.run != identity) {
            let problem = "is of another run: the settings, the rows or the base are not those it was taken with";
            return Err(Error::Checkpoint(format!("of step {} {problem}", from.step())));
        }
        let folder = rows.examples().folder();
        let mut batches =
            Batches::new(rows.lengths().len(), recipe.train.batch_rows as usize, recipe.train.seed, folder)?;
        let mut tokens = 0;
        rows.lengths().each(|_, length| tokens += u64::from(length));
        let schedule = Schedule::new(&recipe.train, batches.per_epoch(), tokens);
        method.check_unfreezing(recipe, |path| frozen_steps(&recipe.train, &schedule, path))?;
        let at = BEFORE_THE_FIRST_STEP;
        let beginning = guarded(|| Beginning::of(&method, &base, &recipe.train, &schedule, observer));
        let beginning = beginning.map_err(Error::at(at))?.ok_or(Error::Stopped { at })?;
        let mut run =
            guarded(|| Run::new(base, recipe, rows, beginning, schedule, &identity, ranks)).map_err(Error::at(at))?;
        if let Some(from) = from {
            guarded(|| run.restore(from)).map_err(Error::at("going on from the checkpoint"))?;
            batches.skip(run.state.step, run.rows.lengths());
        } else if recipe.train.micro_batch_rows == 0 {
            run.find_micro_batch(observer)?;
            run.state.micro_batch = run.ranks.least(run.state.micro_batch)?;
        }
        run.ranks.begin(&run.state.run, run.optimizer.flat())?;
        Ok(Self { saved: run.state.step, method, run, batches })
    }

    /// One step with its reports, or the end. A run that has ended takes no more turns.
    ///
    /// # Errors
    /// As [`train`]; the run is over then.
    pub fn turn(&mut self, observer: &mut dyn Observer) -> Result<Option<Trained>, Error> {
        self.run.started = Instant::now();
        let ended = self.run.turn(&mut self.batches, &mut self.saved, observer)?;
        self.run.seconds_here += self.run.started.elapsed().as_secs_f64();
        self.run.rows.release();
        ended.map(|outcome| self.finish(outcome)).transpose()
    }

    fn finish(&mut self, outcome: Outcome) -> Result<Trained, Error> {
        // What the passes needed is free before the adapter is copied, which for a large one would be a peak of its own.
        tailor_torch::drop_scratch();
        tailor_torch::drop_pool();
        let run = &self.run;
        let kept = run.kept(outcome).map_err(Error::at("after the last step"))?;
        let adapter = self.method.adapter(run.optimizer.cut(&kept), &run.taken)?;
        Ok(Trained { adapter, summary: run.summary(outcome) })
    }
}

/// What makes two runs the same: everything that decides their bits, but the number of threads.
fn identity(recipe: &Recipe, rows: &Rows<'_>, method: &Method) -> String {
    let mut hasher = Sha256::new();
    // Which rows are learnt from, in which sequences, follows from these.
    hasher.update(format!("{recipe:?}\n{:?}\n{:?}\n{}\n", method.shapes(), rows.tuning(), rows.examples().name()));
    format!("{:x}", hasher.finalize())
}

fn check_objective(objective: spec::Objective, examples: &Examples<'_>) -> Result<(), Invalid> {
    let problem = match (objective, examples.are_pairs()) {
        (spec::Objective::Sft, false) | (spec::Objective::Dpo, true) => return Ok(()),
        (spec::Objective::Dpo, false) => "dpo needs preference pairs; these are single rows",
        (spec::Objective::Sft, true) => "sft learns from single rows; these are preference pairs",
    };
    Err(Invalid::new("train.objective", problem))
}

fn frozen_steps(spec: &TrainSpec, schedule: &Schedule, path: &str) -> u64 {
    let stage = spec.unfreeze.iter().find(|stage| layer_number(path).is_some_and(|at| stage.layers.contains(&at)));
    stage.map_or(0, |stage| schedule.steps_before(stage.from))
}
