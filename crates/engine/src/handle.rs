//! The engine's handle: cloneable, async, and the only way to the thread that owns the model.
//!
//! Everything is bounded: requests that wait hold a place each, and the next one is refused; a stream's channel holds as many
//! events as its job can make, so that a slow reader never holds the device.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;

use tailor_domain::Digest;
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;
use crate::job::{Command, Event, GenerateJob, Queued, ScoreJob, Scores};
use crate::loader::{Loader, Wanted};
use crate::meter::{Meter, Usage};
use crate::options::{EngineInfo, EngineOptions, ResidentAdapter};
use crate::places::{Held, Place, Places};
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
    /// None only while dropping: it holds the way to the other thread open, and ends first.
    loader: Option<Loader>,
    /// None only while dropping: closing it is what ends the thread.
    commands: Option<mpsc::Sender<Command>>,
    /// Of requests that have not been started yet.
    places: Arc<Places>,
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
                    if ready.send(Ok((worker.info(), worker.outline()))).is_ok() {
                        worker.run();
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            })
            .map_err(|error| Error::Step(format!("cannot start the engine's thread: {error}")))?;
        let (info, outline) = loaded.await.map_err(|_| Error::Stopped)??;
        let loader = Loader::start(outline, commands.clone(), Arc::clone(&resident), Arc::clone(&meter))?;
        Ok(Self {
            inner: Arc::new(Inner {
                loader: Some(loader),
                commands: Some(commands),
                places: Arc::new(Places::new(max_queue, max_queue_tokens)),
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
        let Held { requests: waiting, tokens: waiting_tokens } = self.inner.places.held();
        Usage { waiting, waiting_tokens, ..self.inner.meter.usage() }
    }

    /// Whether the thread is gone, so that nothing will ever be answered again.
    pub fn has_ended(&self) -> bool {
        self.inner.commands.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    /// Makes an adapter resident under its digest. Idempotent. It is prepared beside the steps, not between them; if the caller
    /// goes away before that has begun, it is not loaded.
    ///
    /// # Errors
    /// It does not fit the base (the message says where), or it is being unloaded.
    pub async fn load(&self, digest: Digest, adapter: tailor_peft::Adapter) -> Result<ResidentAdapter, Error> {
        let (reply, answer) = oneshot::channel();
        let loader = self.inner.loader.as_ref().ok_or(Error::Stopped)?;
        loader.send(Wanted { digest, adapter: Box::new(adapter), reply }).await?;
        answer.await.map_err(|_| Error::Stopped)?
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
        // The beginning, every token and the end: the thread never waits for a reader.
        let (events, stream) = mpsc::channel(job.max_new_tokens as usize + 2);
        let place = self.queue_up(&job.tenant, job.cost())?;
        self.ask(|reply| Command::Generate(Queued { job, place, reply }, events)).await?;
        Ok(stream)
    }

    /// Natural log-probability of each of `token_ids`, given what stands before it.
    ///
    /// # Errors
    /// As for [`Self::generate`].
    pub async fn score(&self, job: ScoreJob) -> Result<Scores, Error> {
        job.validate(&self.inner.info)?;
        let (scores, mut stream) = mpsc::channel(1);
        let place = self.queue_up(&job.tenant, job.cost())?;
        self.ask(|reply| Command::Score(Queued { job, place, reply }, scores)).await?;
        stream.recv().await.ok_or(Error::Stopped)?
    }

    fn queue_up(&self, tenant: &str, tokens: usize) -> Result<Place, Error> {
        self.inner.places.take(tenant, tokens, |waiting| self.inner.meter.retry_after(waiting))
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
    /// Ends the threads (after what they are in the middle of) and waits for them, so that the device is free when the last
    /// handle is gone.
    fn drop(&mut self) {
        drop(self.loader.take());
        drop(self.commands.take());
        let thread = self.thread.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(thread) = thread {
            // Its own guard has already turned a panic into errors for those who waited.
            let _ = thread.join();
        }
    }
}
