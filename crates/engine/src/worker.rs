//! The thread that owns the model. Between two steps it takes commands, scores, and lets sequences in and out.

use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tailor_models::{Base, Config, LoadOptions};
use tailor_torch::guarded;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::batch::Batch;
use crate::error::Error;
use crate::fair::FairQueue;
use crate::handle::Shown;
use crate::job::{Command, Events, GenerateJob, Place, Queued, ScoreJob};
use crate::meter::{Meter, Rate};
use crate::options::{EngineInfo, EngineOptions};
use crate::residency::{Residency, Resident};
use crate::score::score;
use crate::sequence::Sequence;

pub struct Worker {
    base: Base,
    info: EngineInfo,
    inbox: mpsc::Receiver<Command>,
    residency: Residency,
    /// Accepted, their adapters found, not begun. Bounded by the handles' permits.
    waiting: FairQueue<(Sequence, Place)>,
    scoring: VecDeque<Scoring>,
    batch: Batch,
    meter: Arc<Meter>,
    rate: Rate,
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
        meter: Arc<Meter>,
    ) -> Result<Self, Error> {
        if options.threads > 0 {
            tch::set_num_threads(options.threads as i32);
        }
        let refused = |error: tailor_models::Error| Error::Base {
            folder: folder.display().to_string(),
            code: error.code(),
            problem: error.to_string(),
        };
        let base = guarded(|| {
            let load = LoadOptions { compute: options.compute, device: tailor_models::chosen_device()? };
            Base::load(folder, &load)
        });
        let base = base.map_err(refused)?;
        let info = info(&base, options.max_context);
        let blocks = options.kv_blocks(&info, base.block_bytes());
        let pool = guarded(|| base.kv_pool(blocks)).map_err(refused)?;
        Ok(Self {
            base,
            info,
            inbox,
            residency: Residency::new(shown),
            waiting: FairQueue::default(),
            scoring: VecDeque::new(),
            batch: Batch::new(pool, options.max_batch, options.max_step_tokens),
            meter,
            rate: Rate::new(),
        })
    }

    pub fn info(&self) -> EngineInfo {
        self.info.clone()
    }

    /// Works until the last handle is gone.
    pub fn run(mut self) {
        let _no_grad = tch::no_grad_guard();
        while self.take_commands() {
            self.score_one();
            self.admit();
            self.batch.step(&self.base);
            self.residency.let_go();
            self.measure();
        }
        self.batch.abort(&Error::Stopped);
        for (sequence, _) in self.waiting.remove_unless(|_| false) {
            sequence.fail(Error::Stopped);
        }
    }

    /// Takes what has come, and waits for something when there is nothing to do. False when nobody can ask any more.
    fn take_commands(&mut self) -> bool {
        let idle = self.batch.is_empty() && self.waiting.is_empty() && self.scoring.is_empty();
        if idle {
            self.rate.pause();
            self.meter.idle();
            let command = self.inbox.blocking_recv();
            self.meter.at_work();
            match command {
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
                let start = match self.base.config() {
                    Config::Decoder(_) => None,
                    Config::T5(config) => Some(config.decoder_start_token_id),
                };
                let tenant = job.tenant.clone();
                let sequence = Sequence::new(job, start, resident, events);
                if let Err(problem) = sequence.check_length(&self.info) {
                    return drop(reply.send(Err(Error::Invalid(problem))));
                }
                if !self.batch.could_take(&sequence) {
                    let problem = format!("{} tokens do not fit the cache; raise kv_bytes", sequence.cost());
                    return drop(reply.send(Err(Error::Invalid(problem))));
                }
                if reply.send(Ok(())).is_ok() {
                    self.waiting.push(&tenant, sequence.cost() as u64, (sequence, place));
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
        let now = Instant::now();
        let stays = |(sequence, _): &(Sequence, Place)| !sequence.is_abandoned() && !sequence.is_late(now);
        for (sequence, _) in self.waiting.remove_unless(stays) {
            sequence.fail(Error::Deadline);
        }
        // Whoever is next and does not fit yet is waited for: room that the small ones took would never come to the large.
        while self.waiting.peek().is_some_and(|(sequence, _)| self.batch.promise(sequence)) {
            if let Some((sequence, _place)) = self.waiting.pop() {
                self.batch.admit(sequence);
            }
        }
    }

    fn measure(&mut self) {
        self.meter.at_work();
        let done = self.batch.done();
        let drain_rate = self.rate.done(done.released_tokens, Instant::now());
        self.meter.update(|usage| {
            self.batch.show(usage);
            usage.steps += done.steps;
            usage.prompt_tokens += done.prompt_tokens;
            usage.cached_tokens += done.cached_tokens;
            usage.made_tokens += done.made_tokens;
            usage.drain_rate = drain_rate;
        });
    }
}

fn info(base: &Base, max_context: usize) -> EngineInfo {
    let config = base.config();
    let positions = config.max_positions().map_or(usize::MAX, |positions| positions as usize);
    EngineInfo {
        family: base.family(),
        resident_bytes: base.resident_bytes() as u64,
        max_context: positions.min(max_context),
        vocab_size: config.vocab_size() as usize,
        eos_ids: config.eos_token_ids().to_vec(),
    }
}

fn finite(scores: Vec<Option<f32>>) -> Result<Vec<Option<f32>>, Error> {
    if scores.iter().flatten().any(|score| score.is_nan()) {
        return Err(Error::Step("its logits are not finite; the adapter's weights may be too large".into()));
    }
    Ok(scores)
}
