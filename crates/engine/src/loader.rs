//! The thread that prepares adapters. What grows with an adapter is done here: between two steps the device only takes over what
//! lies ready, and answers go on in the meantime.
//!
//! One at a time, so that a thousand that come at once take neither the cores nor the memory that steps need.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tailor_domain::Digest;
use tailor_models::{Outline, Prepared};
use tailor_torch::guarded;
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;
use crate::handle::Shown;
use crate::job::{Command, Load};
use crate::meter::Meter;
use crate::options::ResidentAdapter;

/// Adapters on their way to the thread. Whoever brings more waits.
const SLOTS: usize = 8;

/// An adapter as it comes.
pub struct Wanted {
    pub digest: Digest,
    pub adapter: Box<tailor_peft::Adapter>,
    pub reply: oneshot::Sender<Result<ResidentAdapter, Error>>,
}

pub struct Loader {
    /// None only while dropping: closing it is what ends the thread.
    inbox: Option<mpsc::Sender<Wanted>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Work {
    inbox: mpsc::Receiver<Wanted>,
    outline: Outline,
    /// To the thread that owns the model.
    commands: mpsc::Sender<Command>,
    shown: Shown,
    meter: Arc<Meter>,
}

impl Loader {
    /// # Errors
    /// No thread can be had.
    pub fn start(
        outline: Outline,
        commands: mpsc::Sender<Command>,
        shown: Shown,
        meter: Arc<Meter>,
    ) -> Result<Self, Error> {
        let (sender, inbox) = mpsc::channel(SLOTS);
        let work = Work { inbox, outline, commands, shown, meter };
        let thread = std::thread::Builder::new()
            .name("tailor-loader".into())
            .spawn(move || work.run())
            .map_err(|error| Error::Step(format!("cannot start the thread that prepares adapters: {error}")))?;
        Ok(Self { inbox: Some(sender), thread: Mutex::new(Some(thread)) })
    }

    pub async fn send(&self, wanted: Wanted) -> Result<(), Error> {
        let inbox = self.inbox.as_ref().ok_or(Error::Stopped)?;
        inbox.send(wanted).await.map_err(|_| Error::Stopped)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        drop(self.inbox.take());
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // What it may have panicked with was said to whoever waited: their replies were dropped.
            let _ = thread.join();
        }
    }
}

impl Work {
    fn run(mut self) {
        while let Some(wanted) = self.inbox.blocking_recv() {
            self.prepare(wanted);
        }
    }

    fn prepare(&self, wanted: Wanted) {
        let Wanted { digest, adapter, reply } = wanted;
        // Nobody would know that it is there.
        if reply.is_closed() {
            return;
        }
        if let Some(resident) = self.resident(&digest) {
            let _ = reply.send(Ok(resident));
            return;
        }
        match guarded(|| Prepared::for_serving(&self.outline, &adapter)) {
            Ok(prepared) => {
                let load = Load { rank: adapter.max_rank() as u32, prepared: Box::new(prepared), digest, reply };
                drop(adapter);
                self.meter.asked();
                // Where the other thread is gone the reply goes with the command, and that says so.
                let _ = self.commands.blocking_send(Command::Load(load));
            }
            // Whoever asked may have gone in the meantime.
            Err(error) => drop(reply.send(Err(Error::adapter(&digest, error)))),
        }
    }

    fn resident(&self, digest: &Digest) -> Option<ResidentAdapter> {
        self.shown.read().unwrap_or_else(PoisonError::into_inner).get(digest).cloned()
    }
}
