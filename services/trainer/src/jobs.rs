//! The API's logic: create, read, list, pause, resume, cancel, follow.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tailor_blobs::{Creation, Store};
use tailor_domain::{
    AdapterName, BaseManifest, BaseName, DatasetKind, DatasetName, Invalid, JobEvent, JobId, JobSpec, JobState,
    LogEntry, LogKind,
};
use tailor_domain::{QuantCode, Recipe, Version};
use tailor_pb::{common, dataset, registry};
use tailor_queue::{Class, JobQueue};
use tailor_serverkit::settings;
use tokio::sync::Mutex;
use tonic::Streaming;

use crate::attempt::Clients;
use crate::calibrations::Calibrations;
use crate::checkpoints::{Checkpoints, Saved};
use crate::error::{Error, Result};
use crate::journal::{Journal, KeyRecord, now_ms};
use crate::matching::class_of;
use crate::planner::{PlanRequest, Planner};
use crate::predictions::Predictions;
use crate::view::View;
use crate::waiting::{Absence, Absences, Word, waits};

/// Views kept in memory; past this all are forgotten and read again when asked for.
const MAX_VIEWS: usize = 10_000;
/// Longest idempotency key.
const MAX_KEY_BYTES: usize = 256;

#[derive(Clone)]
pub struct Jobs {
    journal: Journal,
    store: Store,
    queue: Arc<dyn JobQueue>,
    clients: Clients,
    /// 0: any number.
    max_ranks: u32,
    views: Arc<Mutex<HashMap<JobId, View>>>,
    absences: Absences,
}

/// A request to create a job, its names checked.
pub struct NewJob {
    pub base: BaseName,
    pub dataset: DatasetName,
    /// None: the latest, pinned now.
    pub dataset_version: Option<Version>,
    pub adapter: AdapterName,
    pub recipe: Recipe,
    pub idempotency_key: Option<String>,
}

/// A job with its state.
pub struct JobRecord {
    pub id: JobId,
    pub spec: JobSpec,
    pub view: View,
    pub adapter_version: Option<Version>,
    pub attempts: u64,
    /// Why nobody will take it for now, where that is known.
    pub waiting: Option<String>,
}

/// A job in a listing.
pub enum Listed {
    Whole(Box<JobRecord>),
    /// Something of it is damaged, or of another version.
    Unreadable(Box<Unreadable>),
}

/// What can be said of a job that cannot be read.
pub struct Unreadable {
    pub id: JobId,
    /// What was asked, where it is something else that is damaged.
    pub spec: Option<JobSpec>,
    pub error: Error,
}

impl Jobs {
    pub fn new(
        journal: Journal,
        store: Store,
        queue: Arc<dyn JobQueue>,
        clients: Clients,
        settings: &settings::Trainer,
    ) -> Self {
        let absences = Absences::of(Calibrations::of(&store));
        Self { journal, store, queue, clients, max_ranks: settings.max_ranks, views: Arc::default(), absences }
    }

    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    pub async fn create(&self, new: NewJob) -> Result<JobRecord> {
        new.recipe.validate()?;
        check_ranks(new.recipe.train.ranks, self.max_ranks)?;
        if let Some(key) = new.idempotency_key.as_ref().filter(|key| key.len() > MAX_KEY_BYTES) {
            let problem = format!("{} bytes; the limit is {MAX_KEY_BYTES}", key.len());
            return Err(Invalid::new("idempotency_key", problem).into());
        }
        let spec = self.resolve(&new).await?;
        let job = JobId::from_parts(now_ms(), rand::random::<u128>() >> 48);
        let job = match &new.idempotency_key {
            None => job,
            Some(key) => self.claim(key, job, &spec).await?,
        };
        // After a crash between key and spec the retried request completes what the first one began.
        if self.journal.create(&job, &spec).await?.is_created() {
            self.journal.append(&job, 0, LogKind::Note, &first_word(&spec)).await?;
            if let Err(error) = self.tell_who_is_missing(&job, &spec).await {
                tracing::warn!(%job, %error, "its owner is told later what the job waits for");
            }
        }
        if let Err(error) = self.queue.enqueue(&job, class_of(&spec.recipe), spec.traceparent.clone()).await {
            tracing::warn!(%job, %error, "job is stored, but the queue did not take it; it will be offered again");
        }
        self.get(&job).await
    }

    /// What only a GPU can do may wait long for one, and its owner need not find that out by waiting. Of other jobs the
    /// reconciler tells it after a while.
    async fn tell_who_is_missing(&self, job: &JobId, spec: &JobSpec) -> Result<()> {
        match self.absence(class_of(&spec.recipe)).await {
            Some(absence) if absence.class == Class::Gpu => self.tell(job, 0, waits(absence, now_ms())).await,
            Some(_) | None => Ok(()),
        }
    }

    /// That no worker is there which could run jobs of this class, if it is known that none is.
    pub async fn absence(&self, class: Class) -> Option<Absence> {
        self.absences.of_class(class).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "which workers are there is not known");
            None
        })
    }

    /// Says in a job's log what it waits for; `fence` is of the attempt under way.
    pub async fn tell(&self, job: &JobId, fence: u64, word: Word) -> Result<()> {
        match word {
            Word::Waiting { is_there, message } => {
                self.journal.append(job, 0, LogKind::Waiting { is_there }, &message).await?;
            }
            Word::Lost(message) => {
                self.journal.event(job, fence, JobEvent::LeaseLost, &message).await?;
            }
            Word::GivenUp(message) => {
                self.journal.event(job, 0, JobEvent::Unclaimed, &message).await?;
                // A worker may have been faster, and goes on from them.
                if self.view(job).await?.state == JobState::Failed {
                    self.forget_checkpoints(job).await;
                }
            }
        }
        self.notify(job).await;
        Ok(())
    }

    /// Of a job that has ended while no worker had it, so that none will come by to do it.
    async fn forget_checkpoints(&self, job: &JobId) {
        if let Err(error) = Checkpoints::of(&self.store, job).remove().await {
            tracing::warn!(%job, %error, "its checkpoints stay in the store");
        }
    }

    /// Checks that base and dataset exist and are what the job needs, the kind of its rows too, and pins the dataset's
    /// version.
    async fn resolve(&self, new: &NewJob) -> Result<JobSpec> {
        let base = registry::GetBaseRequest { name: new.base.to_string() };
        let base = self.clients.registry().get_base(base).await.map_err(Error::service("registry"))?.into_inner();
        if let Some(code) = new.recipe.train.quantization {
            check_code(code, &base)?;
        }
        let version = new.dataset_version.map_or(0, |version| version.0);
        let request = dataset::GetDatasetRequest { name: new.dataset.to_string(), version };
        let found = self.clients.dataset().get_dataset(request).await.map_err(Error::service("dataset"))?.into_inner();
        let train = &new.recipe.train;
        let kind = if found.kind.is_empty() { DatasetKind::default() } else { found.kind.parse()? };
        kind.check(train.objective, train.loss_on, tailor_pb::convert::family(&base.family)?)?;
        self.planner().require_fit(BaseManifest::try_from(base)?, new, found.version).await?;
        Ok(JobSpec {
            base: new.base.clone(),
            dataset: new.dataset.clone(),
            dataset_version: Version(found.version),
            adapter: new.adapter.clone(),
            recipe: new.recipe.clone(),
            traceparent: tailor_serverkit::trace::current_traceparent(),
            created_at_ms: now_ms(),
        })
    }

    fn planner(&self) -> Planner<'_> {
        Planner { store: &self.store, clients: &self.clients }
    }

    /// What a job would take, and why nobody would take it for now, where that is known.
    ///
    /// # Errors
    /// As [`Planner::plan`].
    pub async fn plan(&self, request: &PlanRequest) -> Result<(tailor_plan::Plan, Option<String>)> {
        let plan = self.planner().plan(request).await?;
        let absence = self.absence(class_of(&request.recipe)).await;
        Ok((plan, absence.map(|absence| absence.words(now_ms()))))
    }

    async fn claim(&self, key: &str, job: JobId, spec: &JobSpec) -> Result<JobId> {
        let record = KeyRecord { job: job.clone(), spec: spec.clone() };
        match self.journal.claim_key(key, &record).await? {
            Creation::Created => Ok(job),
            Creation::AlreadyExists(first) if same_request(&first.spec, spec) => Ok(first.job),
            Creation::AlreadyExists(first) => Err(Error::KeyReused { key: key.to_owned(), job: first.job }),
        }
    }

    pub async fn get(&self, job: &JobId) -> Result<JobRecord> {
        let spec = self.journal.spec(job).await?;
        let view = self.view(job).await?;
        let outcome = if view.state == JobState::Succeeded { self.journal.outcome(job).await? } else { None };
        let attempts = self.journal.newest_attempt(job).await?;
        let adapter_version = outcome.map(|outcome| outcome.adapter_version);
        let is_queued = view.state == JobState::Queued;
        let absence = if is_queued { self.absence(class_of(&spec.recipe)).await } else { None };
        let waiting = absence.map(|absence| absence.words(now_ms()));
        Ok(JobRecord { id: job.clone(), spec, view, adapter_version, attempts, waiting })
    }

    /// The job's state now: what was known, and the log since.
    pub async fn view(&self, job: &JobId) -> Result<View> {
        let mut view = self.views.lock().await.get(job).cloned().unwrap_or_default();
        if view.state.is_final() {
            return Ok(view);
        }
        for entry in self.journal.log(job, view.seq + 1).await? {
            view.apply(&entry);
        }
        let mut views = self.views.lock().await;
        if views.len() >= MAX_VIEWS {
            views.clear();
        }
        let newest = views.entry(job.clone()).or_default();
        if newest.seq < view.seq {
            *newest = view.clone();
        }
        Ok(view)
    }

    /// One page, newest first. The token is the last id of the page before.
    pub async fn list(&self, size: usize, token: &str) -> Result<(Vec<Listed>, Option<JobId>)> {
        let unknown = |_| Invalid::new("page.token", "it is no token of ours; send next_page_token as it came");
        let before = if token.is_empty() { None } else { Some(JobId::try_new(token).map_err(unknown)?) };
        let mut ids = self.journal.jobs().await?;
        ids.reverse();
        let rest = ids.into_iter().skip_while(|id| before.as_ref().is_some_and(|before| id >= before));
        let page: Vec<_> = rest.take(size + 1).collect();
        let more = page.len() > size;
        let mut listed = Vec::with_capacity(size);
        for id in page.iter().take(size) {
            match self.get(id).await {
                Ok(record) => listed.push(Listed::Whole(Box::new(record))),
                // A folder without a spec is a job whose creation was cut short; it was never acknowledged.
                Err(Error::NoSuchJob(_)) => {}
                // The store is away, for the jobs behind it too.
                Err(error) if error.retryable() => return Err(error),
                Err(error) => listed.push(Listed::Unreadable(Box::new(self.unreadable(id, error).await))),
            }
        }
        let next = if more { page.get(size - 1).cloned() } else { None };
        Ok((listed, next))
    }

    /// One damaged record hides no other job, nor that there is a job.
    async fn unreadable(&self, job: &JobId, error: Error) -> Unreadable {
        tracing::warn!(%job, %error, "the job cannot be read; it is listed as far as it can");
        Unreadable { id: job.clone(), spec: self.journal.spec(job).await.ok(), error }
    }

    pub async fn cancel(&self, job: &JobId) -> Result<JobRecord> {
        self.journal.spec(job).await?;
        let before = self.view(job).await?.state;
        match before {
            JobState::Cancelled => return self.get(job).await,
            JobState::Succeeded | JobState::Failed => {
                return Err(Error::Finished { job: job.clone(), state: before.as_str() });
            }
            JobState::Queued
            | JobState::Leased
            | JobState::Preparing
            | JobState::Training
            | JobState::Paused
            | JobState::Evaluating
            | JobState::Publishing => {}
        }
        self.journal.event(job, 0, JobEvent::Cancel, "cancelled by its owner").await?;
        self.notify(job).await;
        if matches!(before, JobState::Paused | JobState::Queued) {
            self.forget_checkpoints(job).await;
        }
        let after = self.get(job).await?;
        match after.view.state {
            // It came to its end between our look and our word.
            state @ (JobState::Succeeded | JobState::Failed) => {
                Err(Error::Finished { job: job.clone(), state: state.as_str() })
            }
            _ => Ok(after),
        }
    }

    /// The job as it is after the call, and where the call moved it, moved for good.
    pub async fn pause(&self, job: &JobId) -> Result<JobRecord> {
        self.journal.spec(job).await?;
        let state = match self.view(job).await?.state {
            JobState::Queued | JobState::Leased | JobState::Preparing | JobState::Training => {
                self.journal.event(job, 0, JobEvent::Pause, "paused by its owner").await?;
                self.notify(job).await;
                // It may have been trained to its end between our look and our word; then the word moved nothing.
                self.view(job).await?.state
            }
            state @ (JobState::Paused
            | JobState::Evaluating
            | JobState::Publishing
            | JobState::Succeeded
            | JobState::Failed
            | JobState::Cancelled) => state,
        };
        match state {
            JobState::Evaluating
            | JobState::Publishing
            | JobState::Succeeded
            | JobState::Failed
            | JobState::Cancelled => Err(Error::PastPausing { job: job.clone(), state: state.as_str() }),
            // Or resumed by another caller in the meantime.
            JobState::Queued | JobState::Leased | JobState::Preparing | JobState::Training | JobState::Paused => {
                self.get(job).await
            }
        }
    }

    pub async fn resume(&self, job: &JobId) -> Result<JobRecord> {
        let spec = self.journal.spec(job).await?;
        match self.view(job).await?.state {
            JobState::Paused => {
                self.journal.event(job, 0, JobEvent::Resume, "resumed by its owner").await?;
                self.notify(job).await;
                // No-op while the paused attempt still winds down; its worker puts the job back then.
                if let Err(error) = self.queue.enqueue(job, class_of(&spec.recipe), spec.traceparent).await {
                    tracing::warn!(%job, %error, "resumed, but the queue did not take it; it will be offered again");
                }
            }
            state @ (JobState::Succeeded | JobState::Failed | JobState::Cancelled) => {
                return Err(Error::PastResuming { job: job.clone(), state: state.as_str() });
            }
            JobState::Queued
            | JobState::Leased
            | JobState::Preparing
            | JobState::Training
            | JobState::Evaluating
            | JobState::Publishing => {}
        }
        self.get(job).await
    }

    /// The log from `from` on, waiting up to `patience` for it to grow when there is nothing new.
    pub async fn follow(&self, job: &JobId, from: u64, patience: Duration) -> Result<Vec<LogEntry>> {
        let entries = self.journal.log(job, from).await?;
        if !entries.is_empty() {
            return Ok(entries);
        }
        // Only a hint: when the queue is away we look again a little later.
        if self.queue.wait_changed(job, patience).await.is_err() {
            tokio::time::sleep(patience).await;
        }
        self.journal.log(job, from).await
    }

    /// One page of what the job has saved, newest first. The token is the number of the last one of the page before.
    pub async fn checkpoints(&self, job: &JobId, size: u64, token: &str) -> Result<(Vec<Saved>, String)> {
        let unknown = |_| Invalid::new("page.token", "it is no token of ours; send next_page_token as it came");
        let before = if token.is_empty() { None } else { Some(token.parse::<u64>().map_err(unknown)?) };
        self.journal.spec(job).await?;
        let (saved, next) = Checkpoints::of(&self.store, job).list(size, before).await?;
        Ok((saved, next.map(|next| next.to_string()).unwrap_or_default()))
    }

    /// What the attempt that published has answered, with the targets, as the dataset service sends it.
    pub async fn predictions(
        &self,
        job: &JobId,
        filter: Option<common::PredictionFilter>,
    ) -> Result<Streaming<common::PredictedRow>> {
        self.journal.spec(job).await?;
        let state = self.view(job).await?.state;
        // A job that may go on must not be able to see what it is judged by.
        let outcome = match self.journal.outcome(job).await? {
            Some(outcome) if state == JobState::Succeeded => outcome,
            Some(_) | None => return Err(Error::NotSucceeded { job: job.clone(), state: state.as_str() }),
        };
        if Predictions::of(&self.store, job).find(outcome.fence).await?.is_none() {
            return Err(Error::NoPredictions(job.clone()));
        }
        let request = dataset::RevealPredictionsRequest { job_id: job.to_string(), fence: outcome.fence, filter };
        let answer = self.clients.dataset().reveal_predictions(request).await.map_err(Error::service("dataset"))?;
        Ok(answer.into_inner())
    }

    pub async fn notify(&self, job: &JobId) {
        if let Err(error) = self.queue.notify(job).await {
            tracing::debug!(%job, %error, "watchers will see the change a second later");
        }
    }
}

/// What a job's log begins with.
fn first_word(spec: &JobSpec) -> String {
    let JobSpec { adapter, base, dataset, dataset_version, .. } = spec;
    let place = if class_of(&spec.recipe) == Class::Gpu { "; for a trainer with a GPU" } else { "" };
    format!("train {adapter} on {base} with {dataset}@{dataset_version}{place}")
}

fn check_ranks(ranks: u32, most: u32) -> Result<()> {
    if most == 0 || ranks <= most {
        return Ok(());
    }
    let problem = format!(
        "{ranks}, and no job here gets more than {most} (trainer.max_ranks; `tailor up` has one worker); \
         ranks take as many tailor-trainer processes that share a queue and a store"
    );
    Err(Invalid::new("train.ranks", problem).into())
}

fn check_code(wanted: QuantCode, base: &registry::Base) -> Result<()> {
    if base.quant == wanted.as_str() {
        return Ok(());
    }
    let (wanted, name, is) = (wanted.as_str(), &base.name, &base.quant);
    let problem = format!("{wanted}, but base {name} is in {is}; add it once more with --quant {wanted}");
    Err(Invalid::new("train.quantization", problem).into())
}

/// Whether two specs ask for the same, when and in whatever trace they were sent.
fn same_request(first: &JobSpec, second: &JobSpec) -> bool {
    let timeless = |spec: &JobSpec| JobSpec { created_at_ms: 0, traceparent: None, ..spec.clone() };
    timeless(first) == timeless(second)
}

#[cfg(test)]
mod tests;
