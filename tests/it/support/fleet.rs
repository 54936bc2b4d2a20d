//! Registries and gateways as processes over one folder: what serving needs, without Redis, S3 or a trainer.

use std::path::Path;

use tailor_pb::inference::adapter_admin_client::AdapterAdminClient;
use tailor_pb::inference::rollout_admin_client::RolloutAdminClient;
use tailor_testkit::{TempDir, free_port};
use tonic::transport::Channel;

use super::clients::{Addresses, channel};
use super::cluster::health;
use super::process::{Process, command};
use super::{Cli, Family, eventually};

const BASE: Family = Family::Llama;

pub struct Fleet {
    // Dropped first: the processes before the folder.
    registries: Vec<(String, Process)>,
    gateways: Vec<(String, Process)>,
    settings: Vec<(String, String)>,
    pub folder: TempDir,
}

impl Fleet {
    /// So many registries, and a gateway for each number of a registry.
    pub async fn start(registries: usize, gateways: &[usize], settings: &[(&str, &str)]) -> Self {
        let folder = TempDir::new();
        let mut all = vec![("TAILOR__STORE__URL".to_owned(), folder.join("store").display().to_string())];
        all.push(("TAILOR__LOG__FILTER".to_owned(), "info".to_owned()));
        all.extend(settings.iter().map(|(key, value)| (format!("TAILOR__{key}"), (*value).to_owned())));
        let (mut fleet, url) = (Self { registries: Vec::new(), gateways: Vec::new(), settings: all, folder }, || {
            format!("http://127.0.0.1:{}", free_port())
        });
        for _ in 0..registries {
            let url = url();
            let process = fleet.spawn("tailor-registry", &url, None);
            fleet.registries.push((url, process));
        }
        for registry in gateways {
            let url = url();
            let at = fleet.registries[*registry].0.clone();
            let process = fleet.spawn("tailor-gateway", &url, Some(&at));
            fleet.gateways.push((url, process));
        }
        for (url, process) in fleet.registries.iter_mut().chain(&mut fleet.gateways) {
            serving(url, process).await;
        }
        fleet
    }

    fn spawn(&self, program: &str, url: &str, registry: Option<&str>) -> Process {
        let address = url.trim_start_matches("http://");
        let name = format!("{program}-{}", address.rsplit(':').next().unwrap_or_default());
        let mut command = command(program);
        command.args(["--listen", address]).envs(self.settings.iter().cloned());
        command.env("TAILOR__CACHE_DIR", self.folder.join(&name));
        if let Some(registry) = registry {
            command.env("TAILOR__SERVICES__REGISTRY", registry);
        }
        Process::spawn(&name, command, self.folder.path())
    }

    /// Clients of one registry and one gateway.
    pub fn at(&self, registry: usize, gateway: usize) -> Addresses {
        let nowhere = || "http://127.0.0.1:9".to_owned();
        let (registry, gateway) = (self.registries[registry].0.clone(), self.gateways[gateway].0.clone());
        Addresses { dataset: nowhere(), trainer: nowhere(), registry, gateway }
    }

    pub fn rollouts(&self, gateway: usize) -> RolloutAdminClient<Channel> {
        RolloutAdminClient::new(channel(&self.gateways[gateway].0))
    }

    pub fn admin(&self, gateway: usize) -> AdapterAdminClient<Channel> {
        AdapterAdminClient::new(channel(&self.gateways[gateway].0))
    }

    pub fn cli(&self, registry: usize, gateway: usize) -> Cli {
        let cli = Cli::new(self.folder.path()).at(&self.at(registry, gateway)).env("USER", "ops");
        cli.env("TAILOR_STATE", self.folder.join("state").display().to_string())
    }

    /// SIGKILL: no last word.
    pub fn kill_registry(&mut self, registry: usize) {
        self.registries[registry].1.kill();
    }

    /// A new process at a killed one's address, serving.
    pub async fn restart_registry(&mut self, registry: usize) {
        let url = self.registries[registry].0.clone();
        let mut process = self.spawn("tailor-registry", &url, None);
        serving(&url, &mut process).await;
        self.registries[registry].1 = process;
    }

    /// Ends a gateway and starts another at its address.
    pub async fn replace_gateway(&mut self, gateway: usize, registry: usize) {
        self.gateways[gateway].1.kill();
        let url = self.gateways[gateway].0.clone();
        let mut process = self.spawn("tailor-gateway", &url, Some(&self.registries[registry].0));
        serving(&url, &mut process).await;
        self.gateways[gateway].1 = process;
    }

    /// A base with random weights and so many versions of adapter `grammar` on it, each with other weights.
    pub fn publish(&self, versions: u32) {
        let cli = self.cli(0, 0);
        let base = BASE.write(self.folder.path()).display().to_string();
        cli.text(&["base", "add", &base, "--name", BASE.base(), "--dtype", "f32"]);
        for seed in 1..=versions {
            let folder = self.folder.join(format!("adapter-{seed}"));
            write_adapter(&folder, seed);
            let folder = folder.display().to_string();
            cli.text(&["adapter", "import", &folder, "--name", "grammar", "--base", BASE.base()]);
        }
    }
}

async fn serving(url: &str, process: &mut Process) {
    eventually(&format!("{url} serves"), async || {
        let ended = process.has_ended();
        assert!(ended.is_none(), "{url} ended with {ended:?}:\n{}", process.log());
        (health(url).await.as_deref() == Some("SERVING")).then_some(())
    })
    .await;
}

/// Rank 2 on the last layer's output projection, strong enough that other weights give other answers.
fn write_adapter(folder: &Path, seed: u32) {
    std::fs::create_dir(folder).expect("a folder");
    let config = r#"{"peft_type":"LORA","task_type":"CAUSAL_LM","r":2,"lora_alpha":4,"target_modules":["o_proj"],
"layers_to_transform":[1]}"#;
    std::fs::write(folder.join("adapter_config.json"), config).expect("write");
    let name = "base_model.model.model.layers.1.self_attn.o_proj.lora";
    let header = format!(
        r#"{{"{name}_A.weight":{{"dtype":"F32","shape":[2,64],"data_offsets":[0,512]}},"{name}_B.weight":{{"dtype":"F32",
"shape":[64,2],"data_offsets":[512,1024]}}}}"#
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    // A linear congruence: values in ±4 that differ from seed to seed.
    let mut state = seed.wrapping_mul(2_654_435_761);
    bytes.extend((0..256).flat_map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 21) as f32 - 4.0).to_le_bytes()
    }));
    std::fs::write(folder.join("adapter_model.safetensors"), bytes).expect("write");
}
