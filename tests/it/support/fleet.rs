//! Registries and gateways as processes over one folder: what serving needs, without Redis, S3 or a trainer.

use std::path::{Path, PathBuf};

use tailor_pb::inference::adapter_admin_client::AdapterAdminClient;
use tailor_pb::inference::rollout_admin_client::RolloutAdminClient;
use tailor_testkit::{LlamaShape, TempDir, free_port};
use tonic::transport::Channel;

use super::clients::{Addresses, channel};
use super::cluster::{ONE_THREAD, health};
use super::process::{Process, command};
use super::{Cli, Family, eventually};

pub struct Fleet {
    // Dropped first: the processes before the folder.
    registries: Vec<(String, Process)>,
    gateways: Vec<(String, Process)>,
    engines: Vec<(String, Process)>,
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
        let none = Vec::new;
        let mut fleet = Self { registries: none(), gateways: none(), engines: none(), settings: all, folder };
        for _ in 0..registries {
            let url = new_url();
            let process = fleet.spawn("tailor-registry", &url, &[]);
            fleet.registries.push((url, process));
        }
        for registry in gateways {
            let url = new_url();
            let process =
                fleet.spawn("tailor-gateway", &url, &[("SERVICES__REGISTRY", &fleet.registries[*registry].0)]);
            fleet.gateways.push((url, process));
        }
        for (url, process) in fleet.registries.iter_mut().chain(&mut fleet.gateways) {
            serving(url, process).await;
        }
        fleet
    }

    /// One registry, so many engines, and one edge (gateway 0) before them.
    pub async fn with_engines(engines: usize, settings: &[(&str, &str)]) -> Self {
        let mut fleet = Self::start(1, &[], settings).await;
        for _ in 0..engines {
            let url = new_url();
            let process = fleet.spawn_engine(&url);
            fleet.engines.push((url, process));
        }
        let urls: Vec<_> = fleet.engines.iter().map(|(url, _)| url.as_str()).collect();
        let (registry, urls, edge) = (fleet.registries[0].0.clone(), urls.join(","), new_url());
        let role =
            [("GATEWAY__ROLE", "edge"), ("GATEWAY__ENGINES", urls.as_str()), ("SERVICES__REGISTRY", registry.as_str())];
        let process = fleet.spawn("tailor-gateway", &edge, &role);
        fleet.gateways.push((edge, process));
        for (url, process) in fleet.engines.iter_mut().chain(&mut fleet.gateways) {
            serving(url, process).await;
        }
        fleet
    }

    fn spawn_engine(&self, url: &str) -> Process {
        let registry = self.registries[0].0.clone();
        self.spawn("tailor-gateway", url, &[("GATEWAY__ROLE", "engine"), ("SERVICES__REGISTRY", &registry)])
    }

    fn spawn(&self, program: &str, url: &str, settings: &[(&str, &str)]) -> Process {
        let address = url.trim_start_matches("http://");
        let name = name(program, url);
        let mut command = command(program);
        command.args(["--listen", address]).envs(self.settings.iter().cloned());
        command.env("TAILOR__CACHE_DIR", self.cache(program, url));
        command.envs(settings.iter().map(|(key, value)| (format!("TAILOR__{key}"), *value))).envs(ONE_THREAD);
        Process::spawn(&name, command, self.folder.path())
    }

    fn cache(&self, program: &str, url: &str) -> PathBuf {
        self.folder.join(name(program, url))
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

    pub fn engine(&mut self, engine: usize) -> &mut Process {
        &mut self.engines[engine].1
    }

    pub fn engine_url(&self, engine: usize) -> &str {
        &self.engines[engine].0
    }

    pub fn gateway(&mut self, gateway: usize) -> &mut Process {
        &mut self.gateways[gateway].1
    }

    pub fn gateway_url(&self, gateway: usize) -> &str {
        &self.gateways[gateway].0
    }

    pub fn engine_admin(&self, engine: usize) -> AdapterAdminClient<Channel> {
        AdapterAdminClient::new(channel(&self.engines[engine].0))
    }

    /// A new process at an ended one's address, serving.
    pub async fn restart_engine(&mut self, engine: usize) {
        let url = self.engines[engine].0.clone();
        let mut process = self.spawn_engine(&url);
        serving(&url, &mut process).await;
        self.engines[engine].1 = process;
    }

    /// Where a gateway keeps what it may lose.
    pub fn cache_of_gateway(&self, gateway: usize) -> PathBuf {
        self.cache("tailor-gateway", &self.gateways[gateway].0)
    }

    /// One more process, edge and engine in one, on the same store.
    pub async fn another_gateway(&self) -> Another {
        self.another_gateway_with(&[]).await
    }

    /// As [`Self::another_gateway`], with settings of its own.
    pub async fn another_gateway_with(&self, settings: &[(&str, &str)]) -> Another {
        let url = new_url();
        let registry = self.registries[0].0.clone();
        let settings = [&[("SERVICES__REGISTRY", registry.as_str())][..], settings].concat();
        let mut process = self.spawn("tailor-gateway", &url, &settings);
        serving(&url, &mut process).await;
        let nowhere = || "http://127.0.0.1:9".to_owned();
        let addresses = Addresses { dataset: nowhere(), trainer: nowhere(), registry, gateway: url };
        Another { addresses, _process: process }
    }

    pub fn cli(&self, registry: usize, gateway: usize) -> Cli {
        let cli = Cli::new(self.folder.path()).at(&self.at(registry, gateway)).env("USER", "ops");
        cli.env("TAILOR_STATE", self.folder.join("state").display().to_string())
    }

    pub fn registry(&mut self, registry: usize) -> &mut Process {
        &mut self.registries[registry].1
    }

    /// SIGKILL: no last word.
    pub fn kill_registry(&mut self, registry: usize) {
        self.registries[registry].1.kill();
    }

    /// A new process at a killed one's address, serving.
    pub async fn restart_registry(&mut self, registry: usize) {
        let url = self.registries[registry].0.clone();
        let mut process = self.spawn("tailor-registry", &url, &[]);
        serving(&url, &mut process).await;
        self.registries[registry].1 = process;
    }

    /// Ends a gateway and starts another at its address.
    pub async fn replace_gateway(&mut self, gateway: usize, registry: usize) {
        self.replace_gateway_with(gateway, registry, &[]).await;
    }

    /// As [`Self::replace_gateway`], with settings of its own.
    pub async fn replace_gateway_with(&mut self, gateway: usize, registry: usize, settings: &[(&str, &str)]) {
        self.gateways[gateway].1.kill();
        let url = self.gateways[gateway].0.clone();
        let registry = self.registries[registry].0.clone();
        let settings = [&[("SERVICES__REGISTRY", registry.as_str())][..], settings].concat();
        let mut process = self.spawn("tailor-gateway", &url, &settings);
        serving(&url, &mut process).await;
        self.gateways[gateway].1 = process;
    }

    /// One more decoder with random weights, about as large as the others and like none of them.
    pub fn add_base(&self, name: &str, feed_forward: usize) {
        let shape = LlamaShape { vocab: 128, context: 512, feed_forward, ..LlamaShape::default() };
        let base = Family::write_llama(&self.folder.join(name), &shape).display().to_string();
        self.cli(0, 0).text(&["base", "add", &base, "--name", name, "--dtype", "f32"]);
    }

    /// A base with random weights and so many versions of adapter `grammar` on it, each with other weights.
    pub fn publish(&self, versions: u32) {
        self.publish_on(Family::Llama, versions);
    }

    pub fn publish_on(&self, family: Family, versions: u32) {
        let cli = self.cli(0, 0);
        let base = family.write(self.folder.path()).display().to_string();
        cli.text(&["base", "add", &base, "--name", family.base(), "--dtype", "f32"]);
        for seed in 1..=versions {
            let folder = self.folder.join(format!("adapter-{seed}"));
            write_adapter(family, &folder, seed);
            let folder = folder.display().to_string();
            cli.text(&["adapter", "import", &folder, "--name", "grammar", "--base", family.base()]);
        }
    }
}

/// A gateway beside the others, until it is dropped.
pub struct Another {
    pub addresses: Addresses,
    _process: Process,
}

fn name(program: &str, url: &str) -> String {
    format!("{program}-{}", url.rsplit(':').next().unwrap_or_default())
}

fn new_url() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

async fn serving(url: &str, process: &mut Process) {
    eventually(&format!("{url} serves"), async || {
        let ended = process.has_ended();
        assert!(ended.is_none(), "{url} ended with {ended:?}:\n{}", process.log());
        (health(url).await.as_deref() == Some("SERVING")).then_some(())
    })
    .await;
}

/// Rank 2 on the output projection of the last layer's attention (of an encoder-decoder, that of what the encoder made), strong
/// enough that other weights give other answers.
pub fn write_adapter(family: Family, folder: &Path, seed: u32) {
    write_padded_adapter(family, folder, seed, 0);
}

/// As [`write_adapter`], with so many bytes more in the file's header, which says nothing by them.
pub fn write_padded_adapter(family: Family, folder: &Path, seed: u32, padding: usize) {
    const CROSS: &str = "decoder.block.1.layer.1.EncDecAttention.o";
    std::fs::create_dir(folder).expect("a folder");
    let (task, module, targets) = match family {
        Family::Llama => {
            let targets = r#"["o_proj"],"layers_to_transform":[1]"#.to_owned();
            ("CAUSAL_LM", "model.layers.1.self_attn.o_proj", targets)
        }
        Family::T5 => ("SEQ_2_SEQ_LM", CROSS, format!(r#"["{CROSS}"]"#)),
    };
    let config =
        format!(r#"{{"peft_type":"LORA","task_type":"{task}","r":2,"lora_alpha":4,"target_modules":{targets}}}"#);
    std::fs::write(folder.join("adapter_config.json"), config).expect("write");
    let name = format!("base_model.model.{module}.lora");
    let header = format!(
        r#"{{"{name}_A.weight":{{"dtype":"F32","shape":[2,64],"data_offsets":[0,512]}},"{name}_B.weight":{{"dtype":"F32",
"shape":[64,2],"data_offsets":[512,1024]}}}}"#
    );
    let header = header + &" ".repeat(padding);
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
