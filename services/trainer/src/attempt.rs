//! One attempt at a job: prepare, train, evaluate, publish.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tailor_blobs::Store;
use tailor_domain::{
    BaseManifest, Digest, JobEvent, JobId, JobSpec, JobState, LogKind, MAX_PREDICTIONS_BYTES, Predicted, Version,
};
use tailor_pb::dataset::dataset_service_client::DatasetServiceClient;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_pb::{dataset, registry};
use tailor_queue::JobQueue;
use tailor_serverkit::client::Client;
use tailor_serverkit::{JobMeter, Settings, connect, server};
use tailor_text::Tokenizer;
use tailor_train::Checkpoint;
use tokio::sync::{Mutex, mpsc, oneshot};

use crate::allowance::Allowance;
use crate::checkpoints::Checkpoints;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::keeper::{Halt, HaltFlag};
use crate::planner::counted;
use crate::predictions::{Lines, Predictions};
use crate::progress::Progress;
use crate::ranks::Party;
use crate::shards::{HeldOut, ShardCache, learnable};
use crate::training::{Given, Reporter, Start, Trained, Training};
use crate::view::View;

/// Reports under way from the device thread to the log.
const TICKS: usize = 1024;
/// First and longest pause between two tries of a call that can succeed later.
const PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// Between two looks whether an attempt that waits must end.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The services that a job needs.
#[derive(Clone)]
pub struct Clients {
    dataset: Client,
    registry: Client,
}

impl Clients {
    pub fn connect(settings: &Settings) -> Result<Self> {
        let token = settings.auth.token.as_deref();
        Ok(Self {
            dataset: connect("dataset", &settings.services.dataset, token)?,
            registry: connect("registry", &settings.services.registry, token)?,
        })
    }

    pub fn dataset(&self) -> DatasetServiceClient<Client> {
        let limit = server::max_message_bytes();
        DatasetServiceClient::new(self.dataset.clone())
            .max_encoding_message_size(limit)
            .max_decoding_message_size(limit)
    }

    pub fn registry(&self) -> AdapterRegistryClient<Client> {
        AdapterRegistryClient::new(self.registry.clone())
    }
}

/// How an attempt ended without an error.
pub enum Ended {
    Published(Version),
    Halted(Halt),
}

pub struct Attempt<'a> {
    pub journal: &'a Journal,
    pub queue: &'a dyn JobQueue,
    pub store: &'a Store,
    pub clients: &'a Clients,
    pub cache_dir: &'a Path,
    pub device: &'a Device,
    /// Held while a base is brought to the cache.
    pub fetching: &'a Mutex<()>,
    pub job: &'a JobId,
    pub spec: &'a JobSpec,
    pub fence: u64,
    pub halt: HaltFlag,
    pub checkpoint_every: Duration,
    /// The workers that train it together with this one.
    pub party: Option<Arc<Party>>,
    /// Other jobs may have the device in turns with this one.
    pub shares: bool,
}

/// What training needs, on local disk.
pub struct Prepared {
    pub start: Start,
    shards: dataset::PrepareShardsResponse,
    prompts: HeldOut,
}

impl Attempt<'_> {
    pub async fn run(&self) -> Result<Ended> {
        self.say(JobEvent::Prepare, "fetching base and shards").await?;
        let prepared = tokio::select! {
            prepared = self.prepare() => prepared,
            // A base may take long to come; what is here already stays in the cache.
            halt = self.halted() => return Ok(Ended::Halted(halt)),
        };
        if let Some(halt) = self.halt.raised() {
            return Ok(Ended::Halted(halt));
        }
        let prepared = prepared?;
        let mut message = format!(
            "{} rows, {} tokens to train on; {} rows held out; {} rows longer than {} tokens left out",
            prepared.start.train.len(),
            prepared.shards.train_tokens,
            prepared.prompts.len(),
            prepared.shards.rows_too_long,
            self.spec.recipe.train.max_tokens
        );
        if prepared.shards.rows_refused > 0 {
            message +=
                &format!("; {} rows left out because nothing of them could be learnt", prepared.shards.rows_refused);
        }
        if let Some((record, _)) = &prepared.start.checkpoint {
            message += &format!("; going on after step {}, which attempt {} saved", record.step, record.fence);
        }
        self.say(JobEvent::Train, &message).await?;
        let folder = prepared.start.folder.clone();
        let (base, shards) = (prepared.start.base.clone(), prepared.shards.clone());
        let trained = self.train(prepared).await;
        if let Some(halt) = self.halt.raised() {
            return Ok(Ended::Halted(halt));
        }
        let trained = trained?;
        let metrics = self.score(&folder, &trained).await?;
        if let Some(halt) = self.halt.raised() {
            return Ok(Ended::Halted(halt));
        }
        self.say(JobEvent::Publish, "publishing").await?;
        if let Some(halt) = self.forbidden().await? {
            return Ok(Ended::Halted(halt));
        }
        let version = self.publish(&base, &shards, &trained, metrics).await?;
        Ok(Ended::Published(version))
    }

    #[tracing::instrument(name = "job.prepare", skip_all)]
    pub async fn prepare(&self) -> Result<Prepared> {
        let request = registry::GetBaseRequest { name: self.spec.base.to_string() };
        let base = self
            .patiently(|| async {
                let answer = self.clients.registry().get_base(request.clone()).await;
                answer.map_err(Error::service("registry"))
            })
            .await?;
        let base = BaseManifest::try_from(base.into_inner())?;
        let folder = self.cache_dir.join("bases").join(base.fingerprint.hex());
        {
            // One at a time: jobs that begin together on one base fetch it once.
            let _fetching = self.fetching.lock().await;
            self.patiently(|| async { Ok(self.store.fetch_folder(&base.files, &folder).await?) }).await?;
        }
        let request = dataset::PrepareShardsRequest {
            name: self.spec.dataset.to_string(),
            version: self.spec.dataset_version.0,
            base: self.spec.base.to_string(),
            max_tokens: self.spec.recipe.train.max_tokens,
            loss_on: self.spec.recipe.train.loss_on.to_string(),
            objective: self.spec.recipe.train.objective.to_string(),
        };
        let shards = self
            .patiently(|| async {
                let answer = self.clients.dataset().prepare_shards(request.clone()).await;
                answer.map_err(Error::service("dataset"))
            })
            .await?
            .into_inner();
        let cache = ShardCache::in_folder(self.cache_dir);
        let train = self.patiently(|| cache.open(self.store, &shards.train_digest)).await?;
        let train = learnable(train, &shards.train_digest, self.spec.recipe.train.objective)?;
        let held_out = self.patiently(|| cache.open(self.store, &shards.validation_digest)).await?;
        let prompts = HeldOut::of(held_out, self.spec.recipe.evaluate.max_validation_rows as usize)?;
        let checkpoint = self.patiently(|| async { self.checkpoints().newest(Checkpoint::from_bytes).await }).await?;
        let start = Start { spec: self.spec.clone(), base, folder, train, checkpoint };
        Ok(Prepared { start, shards, prompts })
    }

    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::of(self.store, self.job)
    }

    fn predictions(&self) -> Predictions {
        Predictions::of(self.store, self.job)
    }

    pub async fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        self.patiently(|| async { Ok(self.store.get_blob(digest).await?.to_vec()) }).await
    }

    /// Trains and predicts on the device thread, while progress flows into the log.
    #[tracing::instrument(name = "job.train", skip_all)]
    async fn train(&self, prepared: Prepared) -> Result<Trained> {
        let (ticks, inbox) = mpsc::channel(TICKS);
        let progress = Progress {
            journal: self.journal,
            queue: self.queue,
            job: self.job,
            fence: self.fence,
            checkpoints: self.checkpoints(),
            meter: JobMeter::of(self.job, self.spec),
        };
        let (announce, evaluating) = oneshot::channel();
        let reporter = Reporter::new(ticks, self.halt.clone(), self.checkpoint_every);
        let party = self.party.clone().map(|party| (party, self.fence));
        let (recipe, base) = (&self.spec.recipe, &prepared.start.base);
        let allowance = Allowance {
            recipe: recipe.clone(),
            code: base.quant,
            dtype: base.dtype.clone(),
            rows: counted(&prepared.shards, recipe),
            shares: self.shares,
        };
        let given = Given { start: prepared.start, prompts: prepared.prompts, allowance, party };
        let training =
            self.device.run("training", tracing::Span::current(), move || Training::new(given, reporter, announce));
        // Waited for to its end: a log without this event takes none that comes after it.
        let say_evaluate = async {
            match evaluating.await {
                Ok(()) if self.halt.raised().is_none() => {
                    self.say(JobEvent::Evaluate, "predicting the held-out rows").await
                }
                // Halted, or the training failed and says so itself.
                Ok(()) | Err(_) => Ok(()),
            }
        };
        let ((), trained, said) = tokio::join!(progress.drain(inbox), training, say_evaluate);
        if self.halt.raised().is_none() {
            said?;
        }
        trained
    }

    /// Keeps the predictions, hands them in where the targets are and brings back the figures.
    #[tracing::instrument(name = "job.score", skip_all)]
    async fn score(&self, folder: &Path, trained: &Trained) -> Result<BTreeMap<String, f64>> {
        let mut metrics = BTreeMap::from([
            ("train_loss".to_owned(), trained.summary.final_loss),
            ("train_steps".to_owned(), trained.summary.steps as f64),
            ("train_tokens_per_second".to_owned(), trained.summary.tokens_per_second),
            ("kept_step".to_owned(), trained.summary.kept_step as f64),
        ]);
        if let Some(best) = &trained.summary.best {
            metrics.insert("tuning_loss".to_owned(), best.loss);
            metrics.insert("tuning_token_accuracy".to_owned(), best.token_accuracy);
        }
        if trained.answers.is_empty() {
            return Ok(metrics);
        }
        let tokenizer = Tokenizer::open(folder)?;
        let answers = trained.rows.iter().zip(trained.base_answers.iter().zip(&trained.answers));
        let predicted = answers.map(|(row, (base, adapter))| -> Result<Predicted> {
            let (base, adapter) = (tokenizer.decode(base, true)?, tokenizer.decode(adapter, true)?);
            Ok(Predicted { row: *row, base, adapter })
        });
        let predicted = Lines::of(predicted, MAX_PREDICTIONS_BYTES)?;
        let (rows, asked) = (predicted.rows(), trained.answers.len());
        if rows < asked {
            // What is learnt is not lost for want of room for all that it says.
            metrics.insert("answers_left_out".to_owned(), (asked - rows) as f64);
            let note = format!(
                "the first {rows} of {asked} answers are kept and scored: all together take more than {} MiB; lower \
                 evaluate.max_validation_rows or evaluate.max_new_tokens to answer no more than are kept",
                MAX_PREDICTIONS_BYTES >> 20
            );
            self.patiently(|| self.journal.append(self.job, self.fence, LogKind::Note, &note)).await?;
        }
        if rows == 0 {
            return Ok(metrics);
        }
        let kept = self.patiently(|| async { self.predictions().keep(self.fence, &predicted).await }).await?;
        let request = dataset::SubmitPredictionsRequest {
            name: self.spec.dataset.to_string(),
            version: self.spec.dataset_version.0,
            job_id: self.job.to_string(),
            fence: self.fence,
            predictions_digest: kept.to_string(),
        };
        let scored = self
            .patiently(|| async {
                let answer = self.clients.dataset().submit_predictions(request.clone()).await;
                answer.map_err(Error::service("dataset"))
            })
            .await?
            .into_inner();
        // The log could not be read again: JSON has no such numbers.
        metrics.extend(scored.metrics.into_iter().filter(|(_, value)| value.is_finite()));
        JobMeter::of(self.job, self.spec).held_out(&metrics);
        let entry = LogKind::Metrics { metrics: metrics.clone() };
        self.patiently(|| self.journal.append(self.job, self.fence, entry.clone(), "")).await?;
        self.notify().await;
        Ok(metrics)
    }

    #[tracing::instrument(name = "job.publish", skip_all)]
    async fn publish(
        &self,
        base: &BaseManifest,
        shards: &dataset::PrepareShardsResponse,
        trained: &Trained,
        metrics: BTreeMap<String, f64>,
    ) -> Result<Version> {
        let config = trained.adapter.config_to_bytes();
        let weights = trained.adapter.weights_to_bytes()?;
        let config = self.patiently(|| async { Ok(self.store.put_blob(config.clone()).await?) }).await?;
        let weights = self.patiently(|| async { Ok(self.store.put_blob(weights.clone()).await?) }).await?;
        let request = registry::PublishVersionRequest {
            adapter: self.spec.adapter.to_string(),
            base: base.name.to_string(),
            config_digest: config.to_string(),
            weights_digest: weights.to_string(),
            prompt_template: shards.prompt_template.clone(),
            dataset: format!("{}@{}", self.spec.dataset, self.spec.dataset_version),
            dataset_digest: shards.dataset_digest.clone(),
            job_id: self.job.to_string(),
            fence: self.fence,
            metrics: metrics.into_iter().collect(),
            notes: String::new(),
            code_commit: tailor_serverkit::CODE_COMMIT.into(),
            who: format!("job {}", self.job),
            ..Default::default()
        };
        let published = self
            .patiently(|| async {
                let answer = self.clients.registry().publish_version(request.clone()).await;
                answer.map_err(Error::service("registry"))
            })
            .await?;
        Ok(Version(published.into_inner().version))
    }

    async fn say(&self, event: JobEvent, message: &str) -> Result<()> {
        self.patiently(|| self.journal.event(self.job, self.fence, event, message)).await?;
        self.notify().await;
        Ok(())
    }

    /// Why the log does not let this attempt publish, if it does not: its owner's word came between, and nobody has told us.
    async fn forbidden(&self) -> Result<Option<Halt>> {
        let log = self.patiently(|| self.journal.log(self.job, 1)).await?;
        let mut view = View::default();
        log.iter().for_each(|entry| view.apply(entry));
        Ok(match view.state {
            JobState::Publishing if view.fence == self.fence => None,
            JobState::Paused | JobState::Queued => Some(Halt::Paused),
            JobState::Cancelled => Some(Halt::Cancelled),
            JobState::Leased
            | JobState::Preparing
            | JobState::Training
            | JobState::Evaluating
            | JobState::Publishing
            | JobState::Succeeded
            | JobState::Failed => Some(Halt::Superseded),
        })
    }

    async fn notify(&self) {
        // Only a hint.
        let _ = self.queue.notify(self.job).await;
    }

    /// Waits until this attempt must end.
    pub async fn halted(&self) -> Halt {
        loop {
            if let Some(halt) = self.halt.raised() {
                return halt;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Repeats a call that can succeed later for as long as this attempt may go on: a store or a service that is away
    /// for minutes costs minutes, not the job.
    async fn patiently<T, F: Future<Output = Result<T>>>(&self, call: impl Fn() -> F) -> Result<T> {
        let mut pause = PAUSE;
        loop {
            let error = match call().await {
                Ok(value) => return Ok(value),
                Err(error) if error.retryable() && self.halt.raised().is_none() => error,
                Err(error) => return Err(error),
            };
            tracing::warn!(job = %self.job, %error, ?pause, "trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use tailor_queue::InProcessQueue;

    use super::*;
    use crate::fixtures::spec;

    #[tokio::test]
    async fn an_attempt_that_must_end_waits_for_no_base() {
        let mut settings = Settings::default();
        // Where nobody listens.
        settings.services.registry = "http://127.0.0.1:1".into();
        let clients = Clients::connect(&settings).expect("addresses");
        let (store, queue, job, spec) =
            (Store::memory(), InProcessQueue::new(), JobId::from_parts(1_700_000_000_000, 1), spec());
        let (journal, device) = (Journal::new(store.clone()), Device::start("tailor-device-test").expect("a thread"));
        let (fetching, halt) = (Mutex::new(()), HaltFlag::default());
        let attempt = Attempt {
            journal: &journal,
            queue: &queue,
            store: &store,
            clients: &clients,
            cache_dir: Path::new("."),
            device: &device,
            fetching: &fetching,
            job: &job,
            spec: &spec,
            fence: 1,
            halt: halt.clone(),
            checkpoint_every: Duration::from_secs(60),
            party: None,
            shares: false,
        };
        let cancel = async {
            tokio::time::sleep(LOOK_EVERY).await;
            halt.raise(Halt::Cancelled);
        };
        let (ended, ()) = tokio::join!(attempt.run(), cancel);
        assert!(matches!(ended, Ok(Ended::Halted(Halt::Cancelled))), "{:?}", ended.map(drop));
    }
}
