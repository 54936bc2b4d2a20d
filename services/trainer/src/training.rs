//! A job on the device, turn by turn: its base, its steps, its answers to the held-out rows without and with the adapter.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tailor_domain::spec::Precision;
use tailor_domain::{BaseManifest, JobSpec, StepMetrics, TuningMetrics};
use tailor_models::{Base, Compute};
use tailor_peft::Adapter;
use tailor_train::{Checkpoint, Examples, Observer, Outcome, Predictor, Prompts, Ranks, Session, Summary};
use tokio::sync::{mpsc, oneshot};

use crate::allowance::Allowance;
use crate::checkpoints::Record;
use crate::device::Task;
use crate::error::Result;
use crate::keeper::{Halt, HaltFlag};
use crate::progress::Tick;
use crate::ranks::Party;
use crate::resident::{Bases, Found};
use crate::shards::HeldOut;

/// What a run begins from, on local disk.
pub struct Start {
    pub spec: JobSpec,
    pub base: BaseManifest,
    pub folder: PathBuf,
    pub train: Examples<'static>,
    /// Where an attempt before this one got to.
    pub checkpoint: Option<(Record, Checkpoint)>,
}

impl Start {
    /// The base from memory or from the cache.
    ///
    /// # Errors
    /// The cache holds no base that can be loaded; the run is to halt.
    pub fn base(&self, bases: &mut Bases, halt: &HaltFlag) -> Result<Found> {
        let compute = match self.spec.recipe.train.precision {
            Precision::Base => self.base.dtype.parse()?,
            Precision::Bf16 => Compute::Bf16,
            Precision::F32 => Compute::F32,
        };
        bases.get(&self.base.fingerprint, compute, &self.folder, &|| halt.raised().is_some())
    }

    /// All that stands before the first step, as one of `ranks`; anew where the checkpoint is of no use.
    ///
    /// # Errors
    /// As [`tailor_train::resume_among`].
    pub fn session(
        self,
        base: &Rc<Base>,
        ranks: &Ranks,
        observer: &mut dyn Observer,
    ) -> Result<Session<'static, Rc<Base>>> {
        let mut begin = |from: Option<&Checkpoint>| {
            let (recipe, name) = (&self.spec.recipe, self.spec.base.as_str());
            Session::begin(Rc::clone(base), recipe, self.train.clone(), name, from, ranks, observer)
        };
        match begin(self.checkpoint.as_ref().map(|(_, checkpoint)| checkpoint)) {
            Err(tailor_train::Error::Checkpoint(problem)) => {
                tracing::warn!(problem, "the checkpoint is of no use; training begins anew");
                Ok(begin(None)?)
            }
            begun => Ok(begun?),
        }
    }
}

/// What a job brings to the device.
pub struct Given {
    pub start: Start,
    pub prompts: HeldOut,
    /// Memory that the answers may take.
    pub allowance: Allowance,
    /// The workers that train it together with this one, and the number of this attempt.
    pub party: Option<(Arc<Party>, u64)>,
}

/// What the device thread brings back.
pub struct Trained {
    pub adapter: Adapter,
    pub summary: Summary,
    /// The held-out rows, and one answer for each; without and with the adapter. Fewer when the run was halted.
    pub rows: Vec<u32>,
    pub base_answers: Vec<Vec<u32>>,
    pub answers: Vec<Vec<u32>>,
}

pub struct Training {
    spec: JobSpec,
    prompts: HeldOut,
    allowance: Allowance,
    reporter: Reporter,
    /// Told when training is over and predicting begins.
    announce: Option<oneshot::Sender<()>>,
    stage: Stage,
}

enum Stage {
    /// Neither base nor parameters are in memory.
    Waiting(Box<Waiting>),
    Steps {
        base: Rc<Base>,
        session: Box<Session<'static, Rc<Base>>>,
    },
    Answers(Box<Answers>),
    Over,
}

struct Waiting {
    start: Start,
    party: Option<(Arc<Party>, u64)>,
}

struct Answers {
    base: Rc<Base>,
    adapter: Adapter,
    summary: Summary,
    predictor: Predictor<'static, Rc<Base>>,
    /// Of the predictor, as far as they are told.
    done: usize,
    /// Those with the adapter, once the base's own are being made.
    adapted: Option<Vec<Vec<u32>>>,
}

impl Training {
    pub fn new(given: Given, reporter: Reporter, announce: oneshot::Sender<()>) -> Self {
        let Given { start, prompts, allowance, party } = given;
        let spec = start.spec.clone();
        let stage = Stage::Waiting(Box::new(Waiting { start, party }));
        Self { spec, prompts, allowance, reporter, announce: Some(announce), stage }
    }

    /// The base, the other ranks, and all that stands before the first step.
    fn begin(&mut self, waiting: Waiting, bases: &mut Bases) -> Result<Stage> {
        let Waiting { start, party } = waiting;
        if let Some((party, fence)) = &party {
            party.announce(*fence, start.checkpoint.as_ref().map(|(record, _)| &record.digest))?;
        }
        let halt = self.reporter.halt.clone();
        let found = start.base(bases, &halt)?;
        if found.shared {
            self.reporter.note(&format!("base {} is in memory already and shared with another job", start.base.name));
        }
        let ranks = match &party {
            Some((party, _)) => party.connect(&|| halt.raised().is_some())?,
            None => Ranks::alone(),
        };
        let session = start.session(&found.base, &ranks, &mut self.reporter)?;
        Ok(Stage::Steps { base: found.base, session: Box::new(session) })
    }

    /// Training is over: the answers with the adapter come first.
    fn answer(&mut self, base: Rc<Base>, trained: tailor_train::Trained) -> Result<Stage> {
        if let Some(why) = why_it_ended(&trained.summary) {
            self.reporter.note(&why);
        }
        if let Some(announce) = self.announce.take() {
            // Nobody listens any more once the attempt is given up.
            let _ = announce.send(());
        }
        let (adapter, summary) = (trained.adapter, trained.summary);
        let predictor = self.predictor(&base, Some(&adapter), &summary)?;
        Ok(Stage::Answers(Box::new(Answers { base, adapter, summary, predictor, done: 0, adapted: None })))
    }

    fn predictor(
        &self,
        base: &Rc<Base>,
        adapter: Option<&Adapter>,
        summary: &Summary,
    ) -> Result<Predictor<'static, Rc<Base>>> {
        let prompts = Prompts::Shard { file: Arc::clone(&self.prompts.file), count: self.prompts.count };
        let longest = self.spec.recipe.evaluate.max_new_tokens as usize;
        let room = self.allowance.bytes(base, summary.micro_batch)?;
        Ok(Predictor::new(Rc::clone(base), adapter, prompts, longest, room)?)
    }

    /// Some tokens of a batch of answers, and what comes after it.
    fn predict(&mut self, mut answers: Box<Answers>) -> Result<Turned> {
        let total = 2 * self.prompts.count as u64;
        let finished = answers.predictor.turn()?;
        let before = if answers.adapted.is_some() { total / 2 } else { 0 };
        if let Some(note) = answers.predictor.take_note() {
            self.reporter.note(&note);
        }
        let done = answers.predictor.done();
        if !finished && done > answers.done {
            answers.done = done;
            self.reporter.tell(Tick::Evaluated { done: before + done as u64, total });
        }
        let halted = self.reporter.halt.raised().is_some();
        if !finished && !halted {
            return Ok(Turned::Stage(Stage::Answers(answers)));
        }
        let Answers { base, adapter, summary, predictor, adapted, .. } = *answers;
        let made = if halted { Vec::new() } else { predictor.into_answers() };
        let (answers, base_answers) = match adapted {
            None if !halted => {
                let predictor = self.predictor(&base, None, &summary)?;
                let next = Answers { base, adapter, summary, predictor, done: 0, adapted: Some(made) };
                return Ok(Turned::Stage(Stage::Answers(Box::new(next))));
            }
            None => (made, Vec::new()),
            Some(adapted) => (adapted, made),
        };
        let rows = self.prompts.rows()?;
        Ok(Turned::Trained(Box::new(Trained { adapter, summary, rows, base_answers, answers })))
    }
}

enum Turned {
    Stage(Stage),
    Trained(Box<Trained>),
}

impl Task for Training {
    type Answer = Trained;

    fn turn(&mut self, bases: &mut Bases) -> Result<Option<Trained>> {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Waiting(waiting) => self.begin(*waiting, bases)?,
            Stage::Steps { base, mut session } => match session.turn(&mut self.reporter)? {
                None => Stage::Steps { base, session },
                Some(trained) => {
                    // The optimizer's moments go before the answers' cache comes, and the other ranks are done.
                    drop(session);
                    self.answer(base, trained)?
                }
            },
            Stage::Answers(answers) => match self.predict(answers)? {
                Turned::Stage(stage) => stage,
                Turned::Trained(trained) => return Ok(Some(*trained)),
            },
            Stage::Over => return Err(crate::Error::DeviceGone),
        };
        Ok(None)
    }
}

/// What a person should know of an end that is not that of the budget of steps, and of the state that is published.
fn why_it_ended(summary: &Summary) -> Option<String> {
    let why = match summary.outcome {
        Outcome::Finished | Outcome::Diverged | Outcome::Stopped => None, // known, or said already
        Outcome::TargetLoss => Some(format!("the loss of {:.4} is acceptable", summary.final_loss)),
        Outcome::NoImprovement => Some("the loss on the tuning rows got no better".to_owned()),
        Outcome::OutOfBudget => Some(format!("the budget is used up after {:.0} s", summary.seconds)),
    };
    let kept = (summary.kept_step < summary.steps)
        .then(|| format!("the state after step {} is published, the best on the tuning rows", summary.kept_step));
    let why = why.map(|why| format!("training ended after step {}: {why}", summary.steps));
    match (why, kept) {
        (Some(why), Some(kept)) => Some(format!("{why}; {kept}")),
        (why, kept) => why.or(kept),
    }
}

/// The training loop's eyes and ears on the device thread.
pub struct Reporter {
    ticks: mpsc::Sender<Tick>,
    halt: HaltFlag,
    checkpoint_every: Duration,
    last_checkpoint: Instant,
}

impl Reporter {
    pub fn new(ticks: mpsc::Sender<Tick>, halt: HaltFlag, checkpoint_every: Duration) -> Self {
        Self { ticks, halt, checkpoint_every, last_checkpoint: Instant::now() }
    }

    fn tell(&self, tick: Tick) {
        // Fails only when nobody reads any more, and then the halt flag is up.
        let _ = self.ticks.blocking_send(tick);
    }

    fn note(&self, note: &str) {
        self.tell(Tick::Note(note.to_owned()));
    }
}

impl Observer for Reporter {
    fn on_step(&mut self, step: &StepMetrics) {
        self.tell(Tick::Step(*step));
    }

    fn should_stop(&mut self) -> bool {
        self.halt.raised().is_some()
    }

    fn wants_checkpoint(&mut self) -> bool {
        // Whoever goes on later goes on from here.
        matches!(self.halt.raised(), Some(Halt::Paused | Halt::ShuttingDown))
            || self.last_checkpoint.elapsed() >= self.checkpoint_every
    }

    fn on_tuning(&mut self, measured: &TuningMetrics) {
        self.tell(Tick::Tuning(*measured));
    }

    fn on_note(&mut self, note: &str) {
        self.note(note);
    }

    fn on_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.last_checkpoint = Instant::now();
        self.tell(Tick::Checkpoint(Box::new(checkpoint)));
    }
}
