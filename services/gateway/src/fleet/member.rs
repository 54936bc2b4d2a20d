//! One engine of the fleet, as this edge knows it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tailor_pb::inference as pb;
use tailor_pb::inference::adapter_admin_client::AdapterAdminClient;
use tailor_pb::inference::engine_service_client::EngineServiceClient;
use tailor_serverkit::client::Client;
use tailor_serverkit::{connect, server};

use super::choice::{Has, View};
use crate::error::Result;

pub struct Member {
    pub url: String,
    client: Client,
    said: Mutex<Said>,
    /// Requests of this edge that it works on: known at once, not with the next report.
    ours: AtomicU64,
}

/// What it last reported.
#[derive(Default)]
struct Said {
    serving: bool,
    load: u64,
    adapters: HashMap<String, Has>,
}

/// A request of ours at an engine, until it is dropped.
pub struct AtWork(Arc<Member>);

impl Member {
    pub fn new(url: &str, token: Option<&str>) -> Result<Self> {
        let client = connect("engine", url, token)?;
        Ok(Self { url: url.to_owned(), client, said: Mutex::default(), ours: AtomicU64::new(0) })
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
        let mut said = self.said();
        said.serving = report.serving;
        said.load = report.running + report.waiting;
        for digest in &report.gone {
            said.adapters.remove(digest);
        }
        said.adapters.extend(report.in_memory.into_iter().map(|digest| (digest, Has::InMemory)));
        said.adapters.extend(report.on_device.into_iter().map(|digest| (digest, Has::OnDevice)));
    }

    /// It says nothing any more: what it holds is not known.
    pub fn is_silent(&self) {
        *self.said() = Said::default();
    }

    pub fn view(&self) -> View {
        self.look("")
    }

    /// As a request for an adapter sees it.
    pub fn look(&self, digest: &str) -> View {
        let said = self.said();
        View {
            name: self.url.clone(),
            serving: said.serving,
            load: said.load.max(self.ours.load(Ordering::Relaxed)),
            has: said.adapters.get(digest).copied().unwrap_or_default(),
        }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.ours.fetch_sub(1, Ordering::Relaxed);
    }
}
