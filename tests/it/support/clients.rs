//! The generated clients, and the calls that most tests make.

use std::time::Duration;

use tailor_pb::dataset::dataset_service_client::DatasetServiceClient;
use tailor_pb::dataset::upload_dataset_request::Part;
use tailor_pb::inference::adapter_admin_client::AdapterAdminClient;
use tailor_pb::inference::inference_service_client::InferenceServiceClient;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_pb::training::training_service_client::TrainingServiceClient;
use tailor_pb::{dataset, training};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// A job of a test that lasts longer has failed.
const JOB_PATIENCE: Duration = Duration::from_secs(90);

/// Where the four services are.
#[derive(Debug, Clone)]
pub struct Addresses {
    pub dataset: String,
    pub trainer: String,
    pub registry: String,
    pub gateway: String,
}

pub fn channel(url: &str) -> Channel {
    Endpoint::from_shared(url.to_owned()).expect("address").connect_timeout(Duration::from_secs(5)).connect_lazy()
}

impl Addresses {
    pub fn all(&self) -> [(&'static str, &str); 4] {
        [
            ("tailor-dataset", &self.dataset),
            ("tailor-trainer", &self.trainer),
            ("tailor-registry", &self.registry),
            ("tailor-gateway", &self.gateway),
        ]
    }

    pub fn dataset(&self) -> DatasetServiceClient<Channel> {
        DatasetServiceClient::new(channel(&self.dataset))
    }

    pub fn trainer(&self) -> TrainingServiceClient<Channel> {
        TrainingServiceClient::new(channel(&self.trainer))
    }

    pub fn registry(&self) -> AdapterRegistryClient<Channel> {
        AdapterRegistryClient::new(channel(&self.registry))
    }

    pub fn gateway(&self) -> InferenceServiceClient<Channel> {
        InferenceServiceClient::new(channel(&self.gateway))
    }

    pub fn admin(&self) -> AdapterAdminClient<Channel> {
        AdapterAdminClient::new(channel(&self.gateway))
    }

    /// Uploads a CSV file under a name.
    ///
    /// # Errors
    /// What the service answered.
    pub async fn upload(&self, name: &str, bytes: &[u8]) -> Result<dataset::Dataset, Status> {
        let header = dataset::UploadHeader {
            name: name.into(),
            format: "csv".into(),
            file_name: "rows.csv".into(),
            prompt_template: "Correct: {input}".into(),
            ..Default::default()
        };
        self.upload_as(header, bytes).await
    }

    /// # Errors
    /// What the service answered.
    pub async fn upload_as(&self, header: dataset::UploadHeader, bytes: &[u8]) -> Result<dataset::Dataset, Status> {
        let chunks = bytes.chunks(256 << 10).map(|chunk| Part::Chunk(chunk.to_vec()));
        let parts: Vec<_> = std::iter::once(Part::Header(header)).chain(chunks).collect();
        let messages = parts.into_iter().map(|part| dataset::UploadDatasetRequest { part: Some(part) });
        let answer = self.dataset().upload_dataset(tokio_stream::iter(messages.collect::<Vec<_>>())).await?;
        Ok(answer.into_inner().dataset.unwrap_or_default())
    }

    pub async fn create(&self, job: &Training<'_>) -> training::Job {
        self.try_create(job).await.expect("job created")
    }

    /// # Errors
    /// What the service answered.
    pub async fn try_create(&self, job: &Training<'_>) -> Result<training::Job, Status> {
        Ok(self.trainer().create_job(job.request()).await?.into_inner())
    }

    pub async fn job(&self, id: &str) -> training::Job {
        let request = training::GetJobRequest { id: id.to_owned() };
        self.trainer().get_job(request).await.expect("job").into_inner()
    }

    /// Follows a job until an event is the wanted one; takes a broken stream up again, as a client should.
    pub async fn watch_until(&self, id: &str, mut wanted: impl FnMut(&training::JobEvent) -> bool) {
        let mut next = 1;
        let watching = async {
            loop {
                let request = training::WatchJobRequest { id: id.to_owned(), from_sequence: next, no_follow: false };
                if let Ok(stream) = self.trainer().watch_job(request).await {
                    let mut stream = stream.into_inner();
                    while let Ok(Some(event)) = stream.message().await {
                        assert_eq!(event.sequence, next, "the log has no gap and repeats nothing");
                        next += 1;
                        if wanted(&event) {
                            return;
                        }
                        let is_final = ["SUCCEEDED", "FAILED", "CANCELLED"].contains(&event.state.as_str());
                        assert!(!is_final, "the job ended too soon: {event:?}");
                    }
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let outcome = tokio::time::timeout(JOB_PATIENCE, watching).await;
        assert!(outcome.is_ok(), "job {id}: the event did not come within {JOB_PATIENCE:?}; last was {}", next - 1);
    }

    /// Waits until steps are being made.
    pub async fn wait_for_steps(&self, id: &str) {
        self.watch_until(id, |event| !event.steps.is_empty()).await;
    }

    /// Waits for a job's success.
    pub async fn succeeded(&self, id: &str) -> training::Job {
        self.watch_until(id, |event| {
            assert_ne!(event.state, "FAILED", "{event:?}");
            event.state == "SUCCEEDED"
        })
        .await;
        self.job(id).await
    }

    /// Points `grammar@production` at a version.
    pub async fn point(&self, version: u64, why: &str) {
        let request = tailor_pb::registry::SetAliasRequest {
            adapter: "grammar".into(),
            alias: "production".into(),
            version,
            who: "ops".into(),
            why: why.into(),
            ..Default::default()
        };
        self.registry().set_alias(request).await.expect("moved");
    }

    /// How many versions an adapter has.
    pub async fn versions(&self, adapter: &str) -> usize {
        let request =
            tailor_pb::registry::ListVersionsRequest { adapter: adapter.to_owned(), page: None, ..Default::default() };
        self.registry().list_versions(request).await.expect("versions").into_inner().versions.len()
    }
}

/// A small job.
#[derive(Debug, Clone)]
pub struct Training<'a> {
    pub base: &'a str,
    pub dataset: &'a str,
    pub adapter: &'a str,
    pub steps: u64,
    pub key: &'a str,
}

impl Training<'_> {
    pub fn request(&self) -> training::CreateJobRequest {
        training::CreateJobRequest {
            base: self.base.into(),
            dataset: self.dataset.into(),
            dataset_version: 0,
            adapter: self.adapter.into(),
            lora: Some(training::Lora { rank: Some(4), ..Default::default() }),
            training: Some(training::Training {
                max_steps: Some(self.steps),
                epochs: Some(1000.0),
                batch_rows: Some(8),
                micro_batch_rows: Some(8),
                ..Default::default()
            }),
            evaluation: Some(training::Evaluation {
                max_new_tokens: Some(8),
                max_validation_rows: Some(4),
                ..Default::default()
            }),
            idempotency_key: self.key.into(),
            ..Default::default()
        }
    }
}
