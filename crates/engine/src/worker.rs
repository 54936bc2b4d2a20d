//! The thread that owns the model. Between two steps it takes commands, puts an adapter that is prepared on the device, and lets
//! sequences in and out.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tailor_models::{Base, Config, LoadOptions, Outline};
use tailor_torch::guarded;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};

use crate::batch::Batch;
use crate::error::Error;
use crate::fair::FairQueue;
use crate::handle::Shown;
use crate::job::{Command, Load, Queued};
use crate::meter::{Meter, Rate};
use crate::options::{EngineInfo, EngineOptions};
use crate::places::Place;
use crate::residency::Residency;
use crate::sequence::{Goal, Sequence};

pub struct Worker {
    base: Base,
    info: EngineInfo,
    inbox: mpsc::Receiver<Command>,
    residency: Residency,
    /// Accepted, their adapters found, not begun. Bounded by the handles' places.
    waiting: FairQueue<(Sequence, Place)>,
    /// Adapters that lie ready, not on the device.
    loads: VecDeque<Load>,
    batch: Batch,
    meter: Arc<Meter>,
    rate: Rate,
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
            let mut base = Base::load(folder, &load)?;
            base.prepare_to_serve();
            Ok(base)
        });
        let base = base.map_err(refused)?;
        let (blocks, block_bytes) = options.kv_blocks(base.config());
        let info = info(&base, options.context(base.config()), (blocks * block_bytes) as u64);
        let pool = guarded(|| base.kv_pool(blocks)).map_err(refused)?;
        let vocab_size = info.vocab_size;
        Ok(Self {
            base,
            info,
            inbox,
            residency: Residency::new(shown),
            waiting: FairQueue::default(),
            loads: VecDeque::new(),
            batch: Batch::new(pool, options.max_batch, options.max_step_tokens, vocab_size),
            meter,
            rate: Rate::new(),
        })
    }

    pub fn info(&self) -> EngineInfo {
        self.info.clone()
    }

    pub fn outline(&self) -> Outline {
        self.base.outline()
    }

    /// Works until the last handle is gone.
    pub fn run(mut self) {
        let _no_grad = tch::no_grad_guard();
        while self.take_commands() {
            self.load_one();
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
        let idle = self.batch.is_empty() && self.waiting.is_empty() && self.loads.is_empty();
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
        let start = match self.base.config() {
            Config::Decoder(_) => None,
            Config::T5(config) => Some(config.decoder_start_token_id),
        };
        match command {
            Command::Load(load) => self.loads.push_back(load),
            Command::Unload { digest, reply } => self.residency.unload(&digest, reply),
            Command::Generate(Queued { job, place, reply }, events) => {
                match self.residency.find(job.adapter.as_ref()) {
                    Ok(adapter) => {
                        let tenant = job.tenant.clone();
                        self.accept(&tenant, Sequence::answering(job, start, adapter, events), place, reply);
                    }
                    Err(error) => drop(reply.send(Err(error))),
                }
            }
            Command::Score(Queued { job, place, reply }, scores) => match self.residency.find(job.adapter.as_ref()) {
                Ok(adapter) => {
                    let tenant = job.tenant.clone();
                    self.accept(&tenant, Sequence::scoring(job, start, adapter, scores), place, reply);
                }
                Err(error) => drop(reply.send(Err(error))),
            },
        }
    }

    fn accept(
        &mut self,
        tenant: &str,
        mut sequence: Sequence,
        place: Place,
        reply: oneshot::Sender<Result<(), Error>>,
    ) {
        if let Err(problem) = sequence.check_length(&self.info) {
            return drop(reply.send(Err(Error::Invalid(problem))));
        }
        if !self.batch.could_take(&sequence) {
            let problem = format!("{} tokens do not fit the cache; raise kv_bytes", sequence.cost());
            return drop(reply.send(Err(Error::Invalid(problem))));
        }
        let is_wanted = reply.send(Ok(())).is_ok();
        match &mut sequence.goal {
            Goal::Scores(scoring) if sequence.tokens.is_empty() => scoring.end(),
            _ if is_wanted => self.waiting.push(tenant, sequence.cost() as u64, (sequence, place)),
            _ => {}
        }
    }

    /// One between two steps: however many come at once, answers go on between them.
    fn load_one(&mut self) {
        let Some(Load { digest, rank, prepared, reply }) = self.loads.pop_front() else { return };
        let _ = reply.send(self.residency.load(&self.base, digest, rank, *prepared));
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

fn info(base: &Base, max_context: usize, kv_bytes: u64) -> EngineInfo {
    let config = base.config();
    EngineInfo {
        family: base.family(),
        resident_bytes: base.resident_bytes() as u64,
        kv_bytes,
        max_context,
        vocab_size: config.vocab_size() as usize,
        eos_ids: config.eos_token_ids().to_vec(),
    }
}
