//! Where the services are: flags, then the environment, then a running `tailor up`, then the usual ports.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tailor_pb::dataset::dataset_service_client::DatasetServiceClient;
use tailor_pb::inference::inference_service_client::InferenceServiceClient;
use tailor_pb::inference::rollout_admin_client::RolloutAdminClient;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_pb::training::training_service_client::TrainingServiceClient;
use tailor_serverkit::client::{Client, Error};
use tailor_serverkit::server::max_message_bytes;
use tailor_serverkit::{connect, settings};
use tailor_trust::Trusted;

use crate::args::Cli;

#[derive(Debug, Clone)]
pub struct Endpoints {
    addresses: Addresses,
    token: Option<String>,
    pub state: PathBuf,
    /// Whose signatures count for what is downloaded; none: nothing is checked.
    pub trusted: Trusted,
}

/// What `tailor up` leaves in its state folder while it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Addresses {
    pub dataset: String,
    pub trainer: String,
    pub registry: String,
    pub gateway: String,
}

impl Addresses {
    fn file(state: &Path) -> PathBuf {
        state.join("endpoints.json")
    }

    pub fn save(&self, state: &Path) -> anyhow::Result<()> {
        Ok(std::fs::write(Self::file(state), serde_json::to_vec_pretty(self)?)?)
    }

    pub fn forget(state: &Path) {
        // Gone already is as good.
        let _ = std::fs::remove_file(Self::file(state));
    }

    fn load(state: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(Self::file(state)).ok()?).ok()
    }
}

impl Endpoints {
    pub fn new(addresses: Addresses, token: Option<String>, state: PathBuf) -> Self {
        Self { addresses, token, state, trusted: Trusted::default() }
    }

    pub fn find(cli: &Cli) -> Self {
        let usual = settings::Services::default();
        let running = Addresses::load(&cli.state).unwrap_or(Addresses {
            dataset: usual.dataset,
            trainer: usual.trainer,
            registry: usual.registry,
            gateway: usual.gateway,
        });
        let addresses = Addresses {
            dataset: cli.dataset_url.clone().unwrap_or(running.dataset),
            trainer: cli.trainer_url.clone().unwrap_or(running.trainer),
            registry: cli.registry_url.clone().unwrap_or(running.registry),
            gateway: cli.gateway_url.clone().unwrap_or(running.gateway),
        };
        Self::new(addresses, cli.token.clone(), cli.state.clone())
    }

    #[must_use]
    pub fn trusting(self, trusted: Trusted) -> Self {
        Self { trusted, ..self }
    }

    /// Where models of a hub are kept.
    pub fn hub_cache(&self) -> PathBuf {
        self.state.join("hub")
    }

    fn channel(&self, service: &'static str, url: &str) -> Result<Client, Error> {
        connect(service, url, self.token.as_deref())
    }

    pub fn dataset(&self) -> Result<DatasetServiceClient<Client>, Error> {
        let client = DatasetServiceClient::new(self.channel("dataset", &self.addresses.dataset)?);
        Ok(client.max_decoding_message_size(max_message_bytes()))
    }

    pub fn trainer(&self) -> Result<TrainingServiceClient<Client>, Error> {
        Ok(TrainingServiceClient::new(self.channel("trainer", &self.addresses.trainer)?))
    }

    pub fn registry(&self) -> Result<AdapterRegistryClient<Client>, Error> {
        let client = AdapterRegistryClient::new(self.channel("registry", &self.addresses.registry)?);
        Ok(client.max_decoding_message_size(max_message_bytes()))
    }

    pub fn rollouts(&self) -> Result<RolloutAdminClient<Client>, Error> {
        Ok(RolloutAdminClient::new(self.channel("gateway", &self.addresses.gateway)?))
    }

    pub fn inference(&self) -> Result<InferenceServiceClient<Client>, Error> {
        Ok(InferenceServiceClient::new(self.channel("gateway", &self.addresses.gateway)?))
    }
}
