//! A running dataset service, files for it, and bases with the smallest tokenizer that is one.

use tailor_blobs::Store;
use tailor_domain::{BaseManifest, BaseName, Digest, Family, FileRef, QuantCode};
use tailor_pb::dataset::dataset_service_client::DatasetServiceClient;
use tailor_pb::dataset::upload_dataset_request::Part;
use tailor_pb::dataset::{
    Dataset, GetDatasetRequest, GetReportRequest, PrepareShardsRequest, PrepareShardsResponse, Report,
    UploadDatasetRequest, UploadDatasetResponse, UploadHeader,
};
use tailor_serverkit::{Client, Settings, connect};
use tailor_testkit::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status};

pub const NAME: &str = "errors";
pub const ROWS: usize = 40;

/// A dataset service that ends with the test.
pub struct Service {
    pub client: DatasetServiceClient<Client>,
    pub store: Store,
    folder: TempDir,
    _stop: DropGuard,
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
            tailor_dataset::start(&settings, store.clone(), listener, stop.clone()).await.expect("service starts");
        let channel = connect("dataset", &format!("http://{}", serving.address), None).expect("address");
        let client = DatasetServiceClient::new(channel).max_decoding_message_size(16 << 20);
        Self { client, store, folder, _stop: stop.drop_guard() }
    }

    /// A service that has one dataset of [`ROWS`] rows.
    pub async fn with_dataset() -> Self {
        let service = Self::start().await;
        service.upload(header(NAME), &csv(1, ROWS)).await.expect("uploaded");
        service
    }

    /// Temporary files that are left: none once a call has ended, however it ended.
    pub fn spooled(&self) -> usize {
        std::fs::read_dir(self.folder.join("cache/spool")).map_or(0, Iterator::count)
    }

    pub async fn upload(&self, header: UploadHeader, bytes: &[u8]) -> Result<UploadDatasetResponse, Status> {
        let chunks = bytes.chunks(1 << 20).map(|chunk| Part::Chunk(chunk.to_vec()));
        self.upload_parts(std::iter::once(Part::Header(header)).chain(chunks).collect()).await
    }

    pub async fn upload_parts(&self, parts: Vec<Part>) -> Result<UploadDatasetResponse, Status> {
        let messages: Vec<_> = parts.into_iter().map(|part| UploadDatasetRequest { part: Some(part) }).collect();
        Ok(self.client.clone().upload_dataset(tokio_stream::iter(messages)).await?.into_inner())
    }

    pub async fn get(&self, version: u64) -> Result<Dataset, Status> {
        let request = GetDatasetRequest { name: NAME.into(), version };
        Ok(self.client.clone().get_dataset(request).await?.into_inner())
    }

    pub async fn report(&self) -> Report {
        let request = GetReportRequest { name: NAME.into(), version: 0 };
        self.client.clone().get_report(request).await.expect("report").into_inner()
    }

    pub async fn shards(&self, base: &str, max_tokens: u32) -> Result<PrepareShardsResponse, Status> {
        self.shards_for(base, max_tokens, "", "").await
    }

    pub async fn shards_for(
        &self,
        base: &str,
        max_tokens: u32,
        loss_on: &str,
        objective: &str,
    ) -> Result<PrepareShardsResponse, Status> {
        let request = PrepareShardsRequest {
            name: NAME.into(),
            version: 0,
            base: base.into(),
            max_tokens,
            loss_on: loss_on.into(),
            objective: objective.into(),
        };
        Ok(self.client.clone().prepare_shards(request).await?.into_inner())
    }

    pub async fn blob(&self, digest: &str) -> Vec<u8> {
        self.store.get_blob(&Digest::try_new(digest).expect("a digest")).await.expect("a blob").to_vec()
    }

    /// Registers a base whose tokens are single characters.
    pub async fn add_base(&self, name: &str, family: Family, chat_template: Option<&str>) {
        let settings = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>",
                                          "unk_token": "<unk>", "chat_template": chat_template});
        let mut files = Vec::new();
        for (name, bytes) in
            [("tokenizer.json", tokenizer_json()), ("tokenizer_config.json", settings.to_string().into_bytes())]
        {
            let size_bytes = bytes.len() as u64;
            let digest = self.store.put_blob(bytes).await.expect("stored");
            files.push(FileRef { name: name.into(), digest, size_bytes });
        }
        let manifest = BaseManifest {
            merged_from: None,
            name: BaseName::try_new(name).expect("name"),
            fingerprint: Digest::of(name.as_bytes()),
            family,
            model_type: "test".into(),
            quant: QuantCode::Nf4,
            dtype: "f32".into(),
            parameters: 1,
            files,
            created_at_ms: 0,
        };
        self.store.create_json(&format!("bases/{name}/manifest.json"), &manifest).await.expect("registered");
    }
}

pub fn header(name: &str) -> UploadHeader {
    UploadHeader {
        name: name.into(),
        file_name: "errors.csv".into(),
        prompt_template: "Correct: {input}".into(),
        ..Default::default()
    }
}

/// Rows whose targets share no word with any input.
pub fn csv(seed: usize, rows: usize) -> Vec<u8> {
    let mut text = "id,language,text,expected text\n".to_owned();
    for row in 0..rows {
        text += &format!("{row},en,wrong {seed} {row},{}\n", target(seed, row));
    }
    text.into_bytes()
}

pub fn target(seed: usize, row: usize) -> String {
    format!("Right-{seed}-{row}!")
}

pub fn expect_status<T: std::fmt::Debug>(outcome: Result<T, Status>, code: Code, says: &[&str]) {
    let error = outcome.expect_err("must be refused");
    assert_eq!(error.code(), code, "{}", error.message());
    for words in says {
        assert!(error.message().contains(words), "{:?} must say {words:?}", error.message());
    }
}

const SPECIAL: [&str; 4] = ["<pad>", "<s>", "</s>", "<unk>"];
pub const EOS: u32 = 2;

/// The id of a printable ASCII character.
pub fn id_of(character: char) -> u32 {
    u32::from(character) - u32::from(' ') + SPECIAL.len() as u32
}

pub fn ids_of(text: &str) -> Vec<u32> {
    text.chars().map(id_of).collect()
}

fn tokenizer_json() -> Vec<u8> {
    let mut vocabulary = serde_json::Map::new();
    for token in SPECIAL.iter().map(|token| (*token).to_owned()).chain((' '..='~').map(String::from)) {
        let id = vocabulary.len();
        vocabulary.insert(token, id.into());
    }
    let added = |(id, content): (usize, &&str)| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                           "normalized": false, "special": true})
    };
    let added: Vec<_> = SPECIAL.iter().enumerate().map(added).collect();
    serde_json::json!({"version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null, "truncation": null, "padding": null,
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocabulary, "merges": []}})
    .to_string()
    .into_bytes()
}
