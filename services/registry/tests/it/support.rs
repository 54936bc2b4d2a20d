//! A running registry, and the smallest base and adapters that are real ones.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tailor_blobs::Store;
use tailor_domain::{Digest, JobId};
use tailor_pb::common::FileRef;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_pb::registry::upload_blob_request::Part;
use tailor_pb::registry::{
    AdapterVersion, BlobHeader, PublishVersionRequest, RegisterBaseRequest, SetAliasRequest, UploadBlobRequest,
};
use tailor_peft::{Adapter, AdapterConfig, LoraPair};
use tailor_quant::{Code, Float, QuantState};
use tailor_serverkit::{Client, Settings, connect};
use tailor_testkit::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code as Grpc, Status};

pub const BASE: &str = "tiny-llama";
pub const QUANTISED: &str = "model.layers.0.self_attn.q_proj";
/// [out, in] of the quantised layer; packed, it is one column of bytes.
const SHAPE: [usize; 2] = [8, 16];

/// A registry that ends with the test.
pub struct Service {
    pub client: AdapterRegistryClient<Client>,
    pub store: Store,
    channel: Client,
    folder: TempDir,
    stop: DropGuard,
}

impl Service {
    pub async fn start() -> Self {
        Self::over(Store::memory()).await
    }

    pub async fn over(store: Store) -> Self {
        Self::with(store, |_| {}).await
    }

    pub async fn with(store: Store, change: impl FnOnce(&mut Settings)) -> Self {
        let folder = TempDir::new();
        let mut settings = Settings { cache_dir: folder.join("cache"), ..Settings::default() };
        change(&mut settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("free port");
        let stop = CancellationToken::new();
        let serving =
            tailor_registry::start(&settings, store.clone(), listener, stop.clone()).await.expect("registry starts");
        let channel = connect("registry", &format!("http://{}", serving.address), None).expect("address");
        let client = AdapterRegistryClient::new(channel.clone());
        Self { client, store, channel, folder, stop: stop.drop_guard() }
    }

    /// For clients of its other services.
    pub fn channel(&self) -> Client {
        self.channel.clone()
    }

    /// Ends it now.
    pub fn stop(self) {
        drop(self.stop);
    }

    pub fn spool(&self) -> PathBuf {
        self.folder.join("cache/spool")
    }

    /// Files that wait in the spool: none once an upload has ended, however it ended.
    pub fn spooled(&self) -> usize {
        std::fs::read_dir(self.spool()).map_or(0, Iterator::count)
    }

    pub async fn upload(&self, bytes: &[u8]) -> String {
        let digest = Digest::of(bytes).to_string();
        self.upload_as(&digest, bytes.len() as u64, bytes).await.expect("uploaded")
    }

    pub async fn upload_as(&self, digest: &str, size_bytes: u64, bytes: &[u8]) -> Result<String, Status> {
        let header = Part::Header(BlobHeader { digest: digest.into(), size_bytes, offset: 0 });
        let chunks = bytes.chunks(1 << 20).map(|chunk| Part::Chunk(chunk.to_vec()));
        self.upload_parts(std::iter::once(header).chain(chunks).collect()).await
    }

    pub async fn upload_parts(&self, parts: Vec<Part>) -> Result<String, Status> {
        let messages: Vec<_> = parts.into_iter().map(|part| UploadBlobRequest { part: Some(part) }).collect();
        let answer = self.client.clone().upload_blob(tokio_stream::iter(messages)).await?;
        Ok(answer.into_inner().digest)
    }

    /// The request for a base whose files are uploaded.
    pub async fn base_request(&self) -> RegisterBaseRequest {
        let files = [
            ("config.json", br#"{"model_type": "llama", "hidden_size": 16}"#.to_vec()),
            ("tokenizer.json", br#"{"model": {}}"#.to_vec()),
            ("model.safetensors", base_weights()),
        ];
        let mut refs = Vec::new();
        for (name, bytes) in files {
            let digest = self.upload(&bytes).await;
            refs.push(FileRef { name: name.into(), digest, size_bytes: bytes.len() as u64 });
        }
        RegisterBaseRequest {
            name: BASE.into(),
            fingerprint: Digest::of(b"tiny-llama").to_string(),
            quant: "nf4-single".into(),
            dtype: "f32".into(),
            files: refs,
            parameters: 128,
        }
    }

    pub async fn register_base(&self) {
        let request = self.base_request().await;
        self.client.clone().register_base(request).await.expect("base registered");
    }

    /// A request that would publish a sound adapter, `seed` telling its weights from others'.
    pub async fn adapter_request(&self, adapter: &str, seed: u32) -> PublishVersionRequest {
        self.request_for(adapter, &sound_adapter(seed)).await
    }

    pub async fn request_for(&self, adapter: &str, content: &Adapter) -> PublishVersionRequest {
        let weights = content.weights_to_bytes().expect("weights");
        PublishVersionRequest {
            adapter: adapter.into(),
            base: BASE.into(),
            config_digest: self.upload(&content.config_to_bytes()).await,
            weights_digest: self.upload(&weights).await,
            prompt_template: "Correct the grammar: {input}".into(),
            ..Default::default()
        }
    }

    pub async fn publish(&self, request: PublishVersionRequest) -> Result<AdapterVersion, Status> {
        Ok(self.client.clone().publish_version(request).await?.into_inner())
    }

    /// A base, an adapter and so many versions of it.
    pub async fn with_versions(adapter: &str, count: u32) -> Self {
        let service = Self::start().await;
        service.register_base().await;
        for seed in 1..=count {
            let request = service.adapter_request(adapter, seed).await;
            service.publish(request).await.expect("published");
        }
        service
    }

    pub async fn set_alias(&self, version: u64, expected: Option<u64>) -> Result<u64, Status> {
        let request = SetAliasRequest {
            adapter: "grammar".into(),
            alias: "production".into(),
            version,
            expected_version: expected,
            who: "ops".into(),
            why: format!("version {version} is better"),
        };
        Ok(self.client.clone().set_alias(request).await?.into_inner().sequence)
    }

    /// Records the next attempt of a job, as a trainer does, and returns its number.
    pub async fn new_attempt(&self, job: &JobId) -> u64 {
        let prefix = format!("jobs/{job}/attempts");
        self.store.append_numbered(&prefix, |number| number).await.expect("attempt recorded")
    }
}

pub fn job(number: u128) -> JobId {
    JobId::from_parts(1_700_000_000_000, number)
}

pub fn expect_status<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Grpc, says: &[&str]) {
    let error = outcome.expect_err("must be refused");
    assert_eq!(error.code(), code, "{}", error.message());
    for words in says {
        assert!(error.message().contains(words), "{:?} must say {words:?}", error.message());
    }
}

pub fn sound_adapter(seed: u32) -> Adapter {
    let [out_features, in_features] = SHAPE;
    adapter_on(QUANTISED, pair(4, in_features, out_features, seed))
}

pub fn adapter_on(module: &str, pair: LoraPair) -> Adapter {
    let name = module.rsplit('.').next().expect("a name").to_owned();
    let config = AdapterConfig::new("CAUSAL_LM", pair.rank as u32, 8.0, 0.0, &[name]).expect("config");
    Adapter::new(config, BTreeMap::from([(module.to_owned(), pair)])).expect("well-formed adapter")
}

pub fn pair(rank: usize, in_features: usize, out_features: usize, seed: u32) -> LoraPair {
    let values = |count: usize| (0..count).map(|i| (i as f32 + seed as f32) * 0.125).collect();
    LoraPair { a: values(rank * in_features), b: values(rank * out_features), rank, in_features, out_features }
}

/// One packed layer, one plain head and one embedding, as a safetensors file.
fn base_weights() -> Vec<u8> {
    let state =
        QuantState { code: Code::Nf4, blocksize: 64, dtype: Float::F32, shape: SHAPE.to_vec(), nested: None }.encode();
    let packed_len = SHAPE[0] * SHAPE[1] / 2;
    let quantised = format!("{QUANTISED}.weight");
    safetensors(&[
        ("lm_head.weight", "F32", vec![4, 16], vec![0; 256]),
        ("model.embed_tokens.weight", "F32", vec![4, 16], vec![0; 256]),
        (&quantised, "U8", vec![packed_len, 1], vec![0x77; packed_len]),
        (&format!("{quantised}.absmax"), "F32", vec![2], vec![0; 8]),
        (&format!("{quantised}.quant_map"), "F32", vec![16], vec![0; 64]),
        (&format!("{quantised}.quant_state.bitsandbytes__nf4"), "U8", vec![state.len()], state.clone()),
    ])
}

pub fn safetensors(tensors: &[(&str, &str, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert((*name).to_owned(), entry);
    }
    let header = serde_json::Value::Object(header).to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}
