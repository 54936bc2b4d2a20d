//! One engine of the fleet, as this edge knows it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tailor_pb::inference as pb;
use tailor_pb::inference::adapter_admin_client::AdapterAdminClient;
use tailor_pb::inference::engine_service_client::EngineServiceClient;
use tailor_serverkit::client::Client;
use tailor_serverkit::{connect, server};
use tokio::sync::watch;
use tonic::Status;

use super::choice::{Has, View};
use crate::error::Result as Checked;

/// An engine that is there reports several times a second.
pub const SILENCE: Duration = Duration::from_secs(2);

pub struct Member {
    pub url: String,
    client: Client,
    said: Mutex<Said>,
    /// Requests of this edge that it works on: known at once, not with the next report.
    ours: AtomicU64,
    /// Whether it is connected and does not say a word.
    hangs: watch::Sender<bool>,
}

/// What it last reported.
#[derive(Default)]
struct Said {
    serving: bool,
    load: u64,
    bases: HashSet<String>,
    adapters: HashMap<String, Has>,
}

/// A request of ours at an engine, until it is dropped.
pub struct AtWork(Arc<Member>);

impl Member {
    pub fn new(url: &str, token: Option<&str>) -> Checked<Self> {
        let client = connect("engine", url, token)?;
        Ok(Self {
            url: url.to_owned(),
            client,
            said: Mutex::default(),
            ours: AtomicU64::new(0),
            hangs: watch::Sender::new(false),
        })
    }

    pub fn engine(&self) -> EngineServiceClient<Client> {
        EngineServiceClient::new(self.client.clone()).max_decoding_message_size(server::max_message_bytes())
    }

    pub fn admin(&self) -> AdapterAdminClient<Client> {
        AdapterAdminClient::new(self.client.clone())
    }

    pub fn begin(self: &Arc<Self>) -> AtWork {
        self.ours.fetch_add(1, Ordering::Relaxed);
        AtWork(self.clone())
    }

    /// Takes in a report.
    pub fn says(&self, report: pb::EngineReport) {
        self.hangs.send_replace(false);
        let mut said = self.said();
        said.serving = report.serving;
        said.load = report.running + report.waiting;
        said.bases = report.bases.into_iter().collect();
        for digest in &report.gone {
            said.adapters.remove(digest);
        }
        said.adapters.extend(report.in_memory.into_iter().map(|digest| (digest, Has::InMemory)));
        said.adapters.extend(report.on_device.into_iter().map(|digest| (digest, Has::OnDevice)));
    }

    /// What it holds is not known any more.
    pub fn forget(&self) {
        *self.said() = Said::default();
    }

    /// It has not said a word for so long that what it was asked may be asked elsewhere.
    pub fn is_silent(&self) {
        self.hangs.send_replace(true);
        self.forget();
    }

    /// What it answers, or that it hangs: a process that is stopped keeps its connections, and nothing else would say so for
    /// long. `elsewhere`: whether there is another that could be asked; without one there is nothing better than to wait.
    ///
    /// # Errors
    /// What it says; UNAVAILABLE where it hangs.
    pub async fn or_silence<T>(
        &self,
        elsewhere: bool,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let mut hangs = self.hangs.subscribe();
        let silence = async {
            if !elsewhere {
                std::future::pending::<()>().await;
            }
            // One that was silent before may only just have come back.
            let comes_back = tokio::time::timeout(SILENCE, hangs.wait_for(|hangs| !hangs)).await;
            if comes_back.is_ok_and(|there| there.is_ok()) {
                let _ = hangs.wait_for(|hangs| *hangs).await;
            }
        };
        tokio::select! {
            answer = answer => answer,
            () = silence => Err(silent()),
        }
    }

    pub fn view(&self) -> View {
        self.look("", "")
    }

    /// As a request for an adapter sees it; neither name has to be known.
    pub fn look(&self, base: &str, digest: &str) -> View {
        let said = self.said();
        View {
            name: self.url.clone(),
            serving: said.serving,
            load: said.load.max(self.ours.load(Ordering::Relaxed)),
            has_base: base.is_empty() || said.bases.contains(base),
            has: said.adapters.get(digest).copied().unwrap_or_default(),
        }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of an engine that is connected and does not say a word.
pub fn silent() -> Status {
    Status::unavailable(format!("no word for {} s", SILENCE.as_secs()))
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.ours.fetch_sub(1, Ordering::Relaxed);
    }
}
