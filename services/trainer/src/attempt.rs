//! One attempt at a job: prepare, train, evaluate, publish.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tailor_blobs::Store;
use tailor_domain::spec::{Objective, Precision};
use tailor_domain::{
    BaseManifest, Digest, JobEvent, JobId, JobSpec, JobState, LogKind, Predicted, StepMetrics, TuningMetrics, Version,
};
use tailor_models::{Base, Compute, LoadOptions};
use tailor_pb::dataset::dataset_service_client::DatasetServiceClient;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_pb::{dataset, registry};
use tailor_peft::Adapter;
use tailor_queue::JobQueue;
use tailor_serverkit::client::Client;
use tailor_serverkit::{JobMeter, Settings, connect, server};
use tailor_text::{Example, Preference, Tokenizer};
use tailor_train::{Checkpoint, Examples, Observer, Outcome, Ranks, Summary};
use tokio::sync::{mpsc, oneshot};

use crate::checkpoints::{Checkpoints, Record};
use crate::device;
use crate::error::{Error, Result};
use crate::journal::Journal;
use crate::keeper::{Halt, HaltFlag};
use crate::predictions::Predictions;
use crate::progress::{Progress, Tick};
use crate::ranks::Party;
use crate::shards::{HeldOut, read_examples, read_preferences, read_prompts};
use crate::view::View;

/// Reports under way from the device thread to the log.
const TICKS: usize = 1024;
/// First and longest pause between two tries of a call that can succeed later.
const PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(10);

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
    pub job: &'a JobId,
    pub spec: &'a JobSpec,
    pub fence: u64,
    pub halt: HaltFlag,
    pub checkpoint_every: Duration,
    /// The workers that train it together with this one.
    pub party: Option<Arc<Party>>,
}

/// What training needs, on local disk and in memory.
pub struct Prepared {
    base: BaseManifest,
    folder: PathBuf,
    shards: dataset::PrepareShardsResponse,
    /// For sft; empty for dpo.
    train: Vec<Example>,
    /// For dpo; empty for sft.
    pairs: Vec<Preference>,
    prompts: Vec<HeldOut>,
    /// Where an attempt before this one got to.
    pub checkpoint: Option<(Record, Checkpoint)>,
}

impl Prepared {
    /// Maps the base's weights.
    pub fn load(&self, spec: &JobSpec) -> Result<Base> {
        let compute = match spec.recipe.train.precision {
            Precision::Base => self.base.dtype.parse()?,
            Precision::Bf16 => Compute::Bf16,
            Precision::F32 => Compute::F32,
        };
        Ok(Base::load(&self.folder, &LoadOptions { compute, ..LoadOptions::default() })?)
    }

    /// Trains from the checkpoint on, as one of `ranks`; anew where the checkpoint is of no use.
    pub fn train(
        &self,
        base: &Base,
        spec: &JobSpec,
        ranks: &Ranks,
        observer: &mut dyn Observer,
    ) -> Result<tailor_train::Trained> {
        let mut train = |from: Option<&Checkpoint>| {
            let examples = match spec.recipe.train.objective {
                Objective::Sft => Examples::Single(&self.train),
                Objective::Dpo => Examples::Pairs(&self.pairs),
            };
            tailor_train::resume_among(base, &spec.recipe, examples, spec.base.as_str(), from, ranks, observer)
        };
        match train(self.checkpoint.as_ref().map(|(_, checkpoint)| checkpoint)) {
            Err(tailor_train::Error::Checkpoint(problem)) => {
                tracing::warn!(problem, "the checkpoint is of no use; training begins anew");
                Ok(train(None)?)
            }
            trained => Ok(trained?),
        }
    }
}

/// What the device thread brings back.
struct Trained {
    adapter: Adapter,
    summary: Summary,
    /// The held-out rows, and one answer for each; without and with the adapter. Fewer when the run was halted.
    rows: Vec<u32>,
    base_answers: Vec<Vec<u32>>,
    answers: Vec<Vec<u32>>,
}

impl Attempt<'_> {
    pub async fn run(&self) -> Result<Ended> {
        self.say(JobEvent::Prepare, "fetching base and shards").await?;
        let prepared = self.prepare().await?;
        if let Some(halt) = self.halt.raised() {
            return Ok(Ended::Halted(halt));
        }
        let mut message = format!(
            "{} rows, {} tokens to train on; {} rows held out; {} rows longer than {} tokens left out",
            prepared.train.len() + prepared.pairs.len(),
            prepared.shards.train_tokens,
            prepared.prompts.len(),
            prepared.shards.rows_too_long,
            self.spec.recipe.train.max_tokens
        );
        if prepared.shards.rows_refused > 0 {
            message +=
                &format!("; {} rows left out because nothing of them could be learnt", prepared.shards.rows_refused);
        }
        if let Some((record, _)) = &prepared.checkpoint {
            message += &format!("; going on after step {}, which attempt {} saved", record.step, record.fence);
        }
        self.say(JobEvent::Train, &message).await?;
        let folder = prepared.folder.clone();
        let (base, shards) = (prepared.base.clone(), prepared.shards.clone());
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
        self.patiently(|| async { Ok(self.store.fetch_folder(&base.files, &folder).await?) }).await?;
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
        let bytes = self.blob(&Digest::try_new(&shards.train_digest)?).await?;
        let (train, pairs) = match self.spec.recipe.train.objective {
            Objective::Sft => (read_examples(&bytes)?, Vec::new()),
            Objective::Dpo => (Vec::new(), read_preferences(&bytes)?),
        };
        let mut prompts = read_prompts(&self.blob(&Digest::try_new(&shards.validation_digest)?).await?)?;
        let limit = self.spec.recipe.evaluate.max_validation_rows as usize;
        if limit > 0 {
            prompts.truncate(limit);
        }
        let checkpoint = self.patiently(|| async { self.checkpoints().newest(Checkpoint::from_bytes).await }).await?;
        Ok(Prepared { base, folder, shards, train, pairs, prompts, checkpoint })
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
        let checkpoint_every = self.checkpoint_every;
        let (spec, halt) = (self.spec.clone(), self.halt.clone());
        let (party, fence) = (self.party.clone(), self.fence);
        let (announce, evaluating) = oneshot::channel();
        let work = move || {
            if let Some(party) = &party {
                party.announce(fence, prepared.checkpoint.as_ref().map(|(record, _)| &record.digest))?;
            }
            let base = prepared.load(&spec)?;
            let mut reporter = Reporter {
                ticks: ticks.clone(),
                halt: halt.clone(),
                checkpoint_every,
                last_checkpoint: Instant::now(),
            };
            let ranks = match &party {
                Some(party) => party.connect(&|| halt.raised().is_some())?,
                None => Ranks::alone(),
            };
            let trained = prepared.train(&base, &spec, &ranks, &mut reporter)?;
            // The other ranks are done; what follows is this one's.
            drop((ranks, party));
            if let Some(why) = why_it_ended(&trained.summary) {
                let _ = ticks.blocking_send(Tick::Note(why));
            }
            let _ = announce.send(());
            let (rows, prompts): (Vec<_>, Vec<_>) =
                prepared.prompts.into_iter().map(|held_out| (held_out.row, held_out.ids)).unzip();
            let total = 2 * prompts.len() as u64;
            let predict = |adapter: Option<&Adapter>, offset: u64| {
                let mut report = |done: usize, _: usize| {
                    let _ = ticks.blocking_send(Tick::Evaluated { done: offset + done as u64, total });
                    halt.raised().is_none()
                };
                let longest = spec.recipe.evaluate.max_new_tokens as usize;
                tailor_train::predict(&base, adapter, &prompts, longest, &mut report)
            };
            let answers = predict(Some(&trained.adapter), 0)?;
            let base_answers = predict(None, total / 2)?;
            Ok(Trained { adapter: trained.adapter, summary: trained.summary, rows, base_answers, answers })
        };
        let training = device::run("tailor-device", tracing::Span::current(), work);
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
        let mut predicted = Vec::with_capacity(trained.rows.len());
        for ((row, base), adapter) in trained.rows.iter().zip(&trained.base_answers).zip(&trained.answers) {
            let (base, adapter) = (tokenizer.decode(base, true)?, tokenizer.decode(adapter, true)?);
            predicted.push(Predicted { row: *row, base, adapter });
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
        metrics.extend(scored.metrics);
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

/// What a person should know of an end that is not that of the budget of steps, and of the state that is published.
fn why_it_ended(summary: &Summary) -> Option<String> {
    let why = match summary.outcome {
        Outcome::Finished | Outcome::Diverged | Outcome::Stopped => None, // known, or said already
        Outcome::TargetLoss => Some(format!("the loss of {:.4} is acceptable", summary.final_loss)),
        Outcome::NoImprovement => Some("the loss on the tuning rows got no better".to_owned()),
        Outcome::OutOfBudget => Some(format!("the budget is used up after {:.0} s", summary.seconds)),
    };
    let kept = (summary.kept_step < summary.steps)
        .then(|| format!("the state after step {} is published, the best on the tuning rows", summary.kept_step));
    let why = why.map(|why| format!("training ended after step {}: {why}", summary.steps));
    match (why, kept) {
        (Some(why), Some(kept)) => Some(format!("{why}; {kept}")),
        (why, kept) => why.or(kept),
    }
}

/// The training loop's eyes and ears on the device thread.
struct Reporter {
    ticks: mpsc::Sender<Tick>,
    halt: HaltFlag,
    checkpoint_every: Duration,
    last_checkpoint: Instant,
}

impl Observer for Reporter {
    fn on_step(&mut self, step: &StepMetrics) {
        // Fails only when nobody reads any more, and then the halt flag is up.
        let _ = self.ticks.blocking_send(Tick::Step(*step));
    }

    fn should_stop(&mut self) -> bool {
        self.halt.raised().is_some()
    }

    fn wants_checkpoint(&mut self) -> bool {
        // Whoever goes on later goes on from here.
        matches!(self.halt.raised(), Some(Halt::Paused | Halt::ShuttingDown))
            || self.last_checkpoint.elapsed() >= self.checkpoint_every
    }

    fn on_tuning(&mut self, measured: &TuningMetrics) {
        let _ = self.ticks.blocking_send(Tick::Tuning(*measured));
    }

    fn on_note(&mut self, note: &str) {
        let _ = self.ticks.blocking_send(Tick::Note(note.to_owned()));
    }

    fn on_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.last_checkpoint = Instant::now();
        let _ = self.ticks.blocking_send(Tick::Checkpoint(Box::new(checkpoint)));
    }
}
