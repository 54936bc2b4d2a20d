//! The engine's handle: cloneable, async, and the only way to the thread that owns the model.
//!
//! Everything is bounded: requests that wait hold a permit each, and one for each token they may come to, and the next
//! one is refused; a stream's channel holds
//! as many events as its job can make, so that a slow reader never holds the device.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;

use tailor_domain::Digest;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::error::Error;
use crate::job::{Command, Event, GenerateJob, Place, Queued, ScoreJob};
use crate::meter::{Meter, Usage};
use crate::options::{EngineInfo, EngineOptions, ResidentAdapter};
use crate::worker::Worker;

/// Commands on their way to the thread. It takes them between steps, so few are ever here.
const COMMAND_SLOTS: usize = 64;

/// What the thread shows to handles without being asked.
pub(crate) type Shown = Arc<RwLock<BTreeMap<Digest, ResidentAdapter>>>;

#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    /// None only while dropping: closing it is what ends the thread.
    commands: Option<mpsc::Sender<Command>>,
    /// One permit for each request that has not been started yet.
    waiting: Arc<Semaphore>,
    max_queue: usize,
    /// One permit for each token that those may come to.
    waiting_tokens: Arc<Semaphore>,
    max_queue_tokens: usize,
    meter: Arc<Meter>,
    info: EngineInfo,
    resident: Shown,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Starts the thread and loads the base on it; returns when the base is resident.
    ///
    /// # Errors
    /// The options are out of their limits, or the folder is no base that can be loaded.
    pub async fn start(base_dir: PathBuf, options: EngineOptions) -> Result<Self, Error> {
        options.validate()?;
        let EngineOptions { max_queue, max_queue_tokens, .. } = options;
        let (commands, inbox) = mpsc::channel(COMMAND_SLOTS);
        let (ready, loaded) = oneshot::channel();
        let resident = Shown::default();
        let shown = Arc::clone(&resident);
        let meter = Arc::new(Meter::default());
        let measured = Arc::clone(&meter);
        let thread = std::thread::Builder::new()
            .name("tailor-engine".into())
            .spawn(move || match Worker::load(&base_dir, options, inbox, shown, measured) {
                Ok(worker) => {
                    if ready.send(Ok(worker.info())).is_ok() {
                        worker.run();
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            })
            .map_err(|error| Error::Step(format!("cannot start the engine's thread: {error}")))?;
        let info = loaded.await.map_err(|_| Error::Stopped)??;
        Ok(Self {
            inner: Arc::new(Inner {
                commands: Some(commands),
                waiting: Arc::new(Semaphore::new(max_queue)),
                max_queue,
                waiting_tokens: Arc::new(Semaphore::new(max_queue_tokens)),
                max_queue_tokens,
                meter,
                info,
                resident,
                thread: Mutex::new(Some(thread)),
            }),
        })
    }

    pub fn info(&self) -> EngineInfo {
        self.inner.info.clone()
    }

    /// What it holds and has done by now.
    pub fn usage(&self) -> Usage {
        let waiting = self.inner.max_queue - self.inner.waiting.available_permits();
        let waiting_tokens = self.inner.max_queue_tokens - self.inner.waiting_tokens.available_permits();
        Usage { waiting, waiting_tokens, ..self.inner.meter.usage() }
    }

    /// Whether the thread is gone, so that nothing will ever be answered again.
    pub fn has_ended(&self) -> bool {
        self.inner.commands.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    /// Makes an adapter resident under its digest. Idempotent.
    ///
    /// # Errors
    /// It does not fit the base (the message says where), or it is being unloaded.
    pub async fn load(&self, digest: Digest, adapter: tailor_peft::Adapter) -> Result<ResidentAdapter, Error> {
        self.ask(|reply| Command::Load { digest, adapter: Box::new(adapter), reply }).await
    }

    /// Drops an adapter; returns when its last sequence has ended.
    ///
    /// # Errors
    /// It is not resident.
    pub async fn unload(&self, digest: &Digest) -> Result<(), Error> {
        let digest = digest.clone();
        self.ask(|reply| Command::Unload { digest, reply }).await
    }

    /// What is resident, by digest.
    pub fn resident(&self) -> Vec<ResidentAdapter> {
        let resident = self.inner.resident.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        resident.values().cloned().collect()
    }

    /// Starts a sequence. Dropping the receiver stops it within a step.
    ///
    /// # Errors
    /// The job is out of its limits, the adapter is not resident, or the queue is full.
    pub async fn generate(&self, job: GenerateJob) -> Result<mpsc::Receiver<Result<Event, Error>>, Error> {
        job.validate(&self.inner.info)?;
        // Every token and the end: the thread never waits for a reader.
        let (events, stream) = mpsc::channel(job.max_new_tokens as usize + 1);
        let place = self.queue_up(job.cost())?;
        self.ask(|reply| Command::Generate(Queued { job, place, reply }, events)).await?;
        Ok(stream)
    }

    /// Natural log-probability of each of `token_ids`, given what stands before it.
    ///
    /// # Errors
    /// As for [`Self::generate`].
    pub async fn score(&self, job: ScoreJob) -> Result<Vec<Option<f32>>, Error> {
        job.validate(&self.inner.info)?;
        let place = self.queue_up(job.prompt_ids.len() + job.token_ids.len())?;
        self.ask(|reply| Command::Score(Queued { job, place, reply })).await
    }

    fn queue_up(&self, tokens: usize) -> Result<Place, Error> {
        let Inner { max_queue, max_queue_tokens, .. } = *self.inner;
        let waiting = max_queue_tokens - self.inner.waiting_tokens.available_permits();
        let retry_after = self.inner.meter.retry_after(waiting);
        let request = Arc::clone(&self.inner.waiting).try_acquire_owned().map_err(|_| {
            let waiting = max_queue - self.inner.waiting.available_permits();
            Error::QueueFull { waiting, limit: max_queue, retry_after }
        })?;
        // A single request of any length may wait if nothing else does.
        let permits = u32::try_from(tokens.min(max_queue_tokens)).unwrap_or(u32::MAX);
        let tokens = Arc::clone(&self.inner.waiting_tokens)
            .try_acquire_many_owned(permits)
            .map_err(|_| Error::TokensFull { waiting, asked: tokens, limit: max_queue_tokens, retry_after })?;
        Ok(Place { _request: request, _tokens: tokens })
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let commands = self.inner.commands.as_ref().ok_or(Error::Stopped)?;
        // Also a thread that never takes it shows by that.
        self.inner.meter.asked();
        commands.send(command(reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.map_err(|_| Error::Stopped)?
    }
}

impl Drop for Inner {
    /// Ends the thread (after the step it is in) and waits for it, so that the device is free when the last handle is gone.
    fn drop(&mut self) {
        drop(self.commands.take());
        let thread = self.thread.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(thread) = thread {
            // Its own guard has already turned a panic into errors for those who waited.
            let _ = thread.join();
        }
    }
}
