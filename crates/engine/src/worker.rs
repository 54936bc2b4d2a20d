//! The thread that owns the model. Between two steps it takes commands, scores, and lets sequences in and out.

use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;

use tailor_models::{Base, LoadOptions};
use tailor_torch::guarded;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::batch::Batch;
use crate::error::Error;
use crate::handle::Shown;
use crate::job::{Command, Events, GenerateJob, Queued, ScoreJob};
use crate::options::{EngineInfo, EngineOptions};
use crate::residency::{Residency, Resident};
use crate::score::score;
use crate::sequence::Sequence;

pub struct Worker {
    base: Base,
    options: EngineOptions,
    inbox: mpsc::Receiver<Command>,
    residency: Residency,
    /// Accepted, their adapters found, not begun. Bounded by the handles' permits.
    waiting: VecDeque<(Sequence, tokio::sync::OwnedSemaphorePermit)>,
    scoring: VecDeque<Scoring>,
    batch: Batch,
}

struct Scoring {
    queued: Queued<ScoreJob, Vec<Option<f32>>>,
    adapter: Option<Rc<Resident>>,
}

impl Worker {
    /// Loads the base on the calling thread.
    ///
    /// # Errors
    /// The folder is no base that can be loaded.
    pub fn load(
        folder: &Path,
        options: EngineOptions,
        inbox: mpsc::Receiver<Command>,
        shown: Shown,
    ) -> Result<Self, Error> {
        if options.threads > 0 {
            tch::set_num_threads(options.threads as i32);
        }
        let load = LoadOptions { compute: options.compute, ..LoadOptions::default() };
        let base = guarded(|| Base::load(folder, &load)).map_err(|error| Error::Base {
            folder: folder.display().to_string(),
            code: error.code(),
            problem: error.to_string(),
        })?;
        Ok(Self {
            base,
            options,
            inbox,
            residency: Residency::new(shown),
            waiting: VecDeque::new(),
            scoring: VecDeque::new(),
            batch: Batch::default(),
        })
    }

    pub fn info(&self) -> EngineInfo {
        let config = self.base.config();
        let positions = config.max_positions().map_or(usize::MAX, |positions| positions as usize);
        EngineInfo {
            family: self.base.family(),
            resident_bytes: self.base.resident_bytes() as u64,
            max_context: positions.min(self.options.max_context),
            vocab_size: config.vocab_size() as usize,
            eos_ids: config.eos_token_ids().to_vec(),
        }
    }

    /// Works until the last handle is gone.
    pub fn run(mut self) {
        let _no_grad = tch::no_grad_guard();
        while self.take_commands() {
            self.score_one();
            self.admit();
            self.batch.step(&self.base);
            self.residency.let_go();
        }
        self.batch.abort(&Error::Stopped);
        self.waiting.iter().for_each(|(sequence, _)| sequence.fail(Error::Stopped));
    }

    /// Takes what has come, and waits for something when there is nothing to do. False when nobody can ask any more.
    fn take_commands(&mut self) -> bool {
        let idle = self.batch.is_empty() && self.waiting.is_empty() && self.scoring.is_empty();
        if idle {
            match self.inbox.blocking_recv() {
                Some(command) => self.obey(command),
                None => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Answers at once or puts into a queue. Who asked may be gone: then an answer is lost and nothing else.
    fn obey(&mut self, command: Command) {
        match command {
            Command::Load { digest, adapter, reply } => {
                let _ = reply.send(self.residency.load(&self.base, digest, &adapter));
            }
            Command::Unload { digest, reply } => self.residency.unload(&digest, reply),
            Command::Generate(queued, events) => self.accept(queued, events),
            Command::Score(queued) => match self.residency.find(queued.job.adapter.as_ref()) {
                Ok(adapter) => self.scoring.push_back(Scoring { queued, adapter }),
                Err(error) => drop(queued.reply.send(Err(error))),
            },
        }
    }

    fn accept(&mut self, queued: Queued<GenerateJob, ()>, events: Events) {
        let Queued { job, place, reply } = queued;
        match self.residency.find(job.adapter.as_ref()) {
            Ok(resident) => {
                if reply.send(Ok(())).is_ok() {
                    self.waiting.push_back((Sequence::new(job, resident, events), place));
                }
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// One at a time, so that scoring never holds up the sequences for longer than one pass.
    fn score_one(&mut self) {
        let Some(Scoring { queued, adapter }) = self.scoring.pop_front() else { return };
        let Queued { job, place, reply } = queued;
        drop(place);
        if reply.is_closed() {
            return;
        }
        let set = adapter.as_ref().map(|resident| &resident.set);
        let scores = guarded(|| score(&self.base, &job, set)).map_err(|error| Error::model(&error));
        let _ = reply.send(scores.and_then(finite));
    }

    fn admit(&mut self) {
        let room = self.options.max_batch.saturating_sub(self.batch.len()).min(self.waiting.len());
        let begun = self.waiting.drain(..room).map(|(sequence, _place)| sequence);
        let fresh: Vec<Sequence> = begun.filter(|sequence| !sequence.is_abandoned()).collect();
        if !fresh.is_empty() {
            self.batch.admit(&self.base, fresh);
        }
    }
}

fn finite(scores: Vec<Option<f32>>) -> Result<Vec<Option<f32>>, Error> {
    if scores.iter().flatten().any(|score| score.is_nan()) {
        return Err(Error::Step("its logits are not finite; the adapter's weights may be too large".into()));
    }
    Ok(scores)
}
