//! TrainingService on the wire: parse, call, convert, return.

use std::time::Duration;

use tailor_domain::{Invalid, JobSpec, JobState, LogEntry, LogKind, Version};
use tailor_pb::common;
use tailor_pb::convert::take_recipe;
use tailor_pb::training as pb;
use tailor_pb::training::training_service_server::TrainingService;
use tailor_serverkit::status;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::checkpoints::Saved;
use crate::error::Result;
use crate::jobs::{JobRecord, Jobs, Listed, NewJob};
use crate::planner::PlanRequest;
use crate::view::View;

const DEFAULT_PAGE: u32 = 100;
/// Cards in one plan.
const MAX_CARDS: usize = 64;
const MAX_PAGE: u32 = 1000;
/// How long a watcher sleeps without a hint from the queue before it looks at the log again.
const POLL: Duration = Duration::from_secs(1);
/// In the place of a state, of a job that cannot be read.
const UNREADABLE: &str = "UNREADABLE";
/// Events on their way to one watcher.
const WATCH_BUFFER: usize = 64;

pub struct Api {
    jobs: Jobs,
    stop: CancellationToken,
}

impl Api {
    pub fn new(jobs: Jobs, stop: CancellationToken) -> Self {
        Self { jobs, stop }
    }
}

#[tonic::async_trait]
impl TrainingService for Api {
    async fn plan_job(&self, request: Request<pb::PlanJobRequest>) -> Result<Response<pb::Plan>, Status> {
        let request = parse_plan(request.into_inner()).map_err(|error| status(&error))?;
        let (plan, waiting) = self.jobs.plan(&request).await.map_err(|error| status(&error))?;
        Ok(Response::new(wire_plan(&plan, waiting)))
    }

    async fn create_job(&self, request: Request<pb::CreateJobRequest>) -> Result<Response<pb::Job>, Status> {
        let new = parse_new(request.into_inner()).map_err(|error| status(&error))?;
        let job = self.jobs.create(new).await.map_err(|error| status(&error))?;
        Ok(Response::new(wire_job(&job)))
    }

    async fn get_job(&self, request: Request<pb::GetJobRequest>) -> Result<Response<pb::Job>, Status> {
        let id = request.into_inner().id.parse().map_err(|error| status(&error))?;
        let job = self.jobs.get(&id).await.map_err(|error| status(&error))?;
        Ok(Response::new(wire_job(&job)))
    }

    async fn list_jobs(&self, request: Request<pb::ListJobsRequest>) -> Result<Response<pb::ListJobsResponse>, Status> {
        let (size, token) = page_of(request.into_inner().page);
        let (jobs, next) = self.jobs.list(size as usize, &token).await.map_err(|error| status(&error))?;
        let next_page_token = next.map(String::from).unwrap_or_default();
        Ok(Response::new(pb::ListJobsResponse { jobs: jobs.iter().map(wire_listed).collect(), next_page_token }))
    }

    async fn cancel_job(&self, request: Request<pb::CancelJobRequest>) -> Result<Response<pb::Job>, Status> {
        let id = request.into_inner().id.parse().map_err(|error| status(&error))?;
        let job = self.jobs.cancel(&id).await.map_err(|error| status(&error))?;
        Ok(Response::new(wire_job(&job)))
    }

    async fn pause_job(&self, request: Request<pb::PauseJobRequest>) -> Result<Response<pb::Job>, Status> {
        let id = request.into_inner().id.parse().map_err(|error| status(&error))?;
        let job = self.jobs.pause(&id).await.map_err(|error| status(&error))?;
        Ok(Response::new(wire_job(&job)))
    }

    async fn resume_job(&self, request: Request<pb::ResumeJobRequest>) -> Result<Response<pb::Job>, Status> {
        let id = request.into_inner().id.parse().map_err(|error| status(&error))?;
        let job = self.jobs.resume(&id).await.map_err(|error| status(&error))?;
        Ok(Response::new(wire_job(&job)))
    }

    type WatchJobStream = ReceiverStream<Result<pb::JobEvent, Status>>;

    async fn watch_job(&self, request: Request<pb::WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let request = request.into_inner();
        let id = request.id.parse().map_err(|error| status(&error))?;
        self.jobs.journal().spec(&id).await.map_err(|error| status(&error))?;
        let (events, stream) = mpsc::channel(WATCH_BUFFER);
        let (jobs, stop) = (self.jobs.clone(), self.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {
                    let gone = Status::unavailable("the service is stopping; watch again from the next sequence number");
                    let _ = events.send(Err(gone)).await;
                }
                outcome = follow(&jobs, &id, &request, &events) => {
                    if let Err(error) = outcome {
                        let _ = events.send(Err(status(&error))).await;
                    }
                }
                () = events.closed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn list_checkpoints(
        &self,
        request: Request<pb::ListCheckpointsRequest>,
    ) -> Result<Response<pb::ListCheckpointsResponse>, Status> {
        let pb::ListCheckpointsRequest { job_id, page } = request.into_inner();
        let id = job_id.parse().map_err(|error| status(&error))?;
        let (size, token) = page_of(page);
        let listed = self.jobs.checkpoints(&id, size.into(), &token).await;
        let (saved, next_page_token) = listed.map_err(|error| status(&error))?;
        let checkpoints = saved.into_iter().map(wire_checkpoint).collect();
        Ok(Response::new(pb::ListCheckpointsResponse { checkpoints, next_page_token }))
    }

    type ListPredictionsStream = Streaming<common::PredictedRow>;

    async fn list_predictions(
        &self,
        request: Request<pb::ListPredictionsRequest>,
    ) -> Result<Response<Self::ListPredictionsStream>, Status> {
        let request = request.into_inner();
        let id = request.job_id.parse().map_err(|error| status(&error))?;
        let rows = self.jobs.predictions(&id, request.filter).await.map_err(|error| status(&error))?;
        Ok(Response::new(rows))
    }
}

/// Entries of a page, and its token.
fn page_of(page: Option<common::Page>) -> (u32, String) {
    let common::Page { size, token } = page.unwrap_or_default();
    (if size == 0 { DEFAULT_PAGE } else { size.min(MAX_PAGE) }, token)
}

fn wire_checkpoint(Saved { number, record, kept }: Saved) -> pb::Checkpoint {
    pb::Checkpoint {
        number,
        step: record.step,
        fence: record.fence,
        digest: record.digest.to_string(),
        size_bytes: record.size_bytes,
        created_at_ms: record.at_ms,
        kept,
    }
}

/// Sends the log until its end, now or for good, or the watcher's. Reads from the first entry, since the state that an
/// event leaves depends on all before it.
async fn follow(
    jobs: &Jobs,
    id: &tailor_domain::JobId,
    request: &pb::WatchJobRequest,
    events: &mpsc::Sender<Result<pb::JobEvent, Status>>,
) -> Result<()> {
    let mut view = View::default();
    loop {
        let next = view.seq + 1;
        let entries = match request.no_follow {
            true => jobs.journal().log(id, next).await?,
            false => jobs.follow(id, next, POLL).await?,
        };
        for entry in entries {
            view.apply(&entry);
            if entry.seq >= request.from_sequence && events.send(Ok(wire_event(&entry, view.state))).await.is_err() {
                return Ok(());
            }
        }
        if view.state.is_final() || request.no_follow {
            return Ok(());
        }
    }
}

fn parse_new(mut request: pb::CreateJobRequest) -> Result<NewJob> {
    let version = request.dataset_version;
    Ok(NewJob {
        recipe: take_recipe(&mut request)?,
        base: request.base.parse()?,
        dataset: request.dataset.parse()?,
        dataset_version: (version > 0).then_some(Version(version)),
        adapter: request.adapter.parse()?,
        idempotency_key: Some(request.idempotency_key).filter(|key| !key.is_empty()),
    })
}

fn parse_plan(request: pb::PlanJobRequest) -> Result<PlanRequest> {
    let mut job = request.job.unwrap_or_default();
    let version = job.dataset_version;
    let recipe = take_recipe(&mut job)?;
    let price = request.price_per_hour;
    if !(price.is_finite() && price >= 0.0) {
        return Err(Invalid::new("price_per_hour", format!("{price} is no price")).into());
    }
    let cards = request.cards.len();
    if cards > MAX_CARDS {
        let problem = format!("{cards}; a plan compares at most {MAX_CARDS}, name fewer");
        return Err(Invalid::new("cards", problem).into());
    }
    let card = |card: pb::Card| tailor_plan::Device::gpu(&card.name, card.memory_bytes);
    Ok(PlanRequest {
        base: job.base.parse()?,
        dataset: job.dataset.parse()?,
        dataset_version: (version > 0).then_some(Version(version)),
        price_per_hour: if price > 0.0 { price } else { recipe.stop.price_per_hour },
        recipe,
        cards: request.cards.into_iter().map(card).collect(),
    })
}

fn wire_plan(plan: &tailor_plan::Plan, waiting: Option<String>) -> pb::Plan {
    let fit = |fit: &tailor_plan::Fit| pb::Fit {
        device: fit.device.name.clone(),
        own: fit.own,
        memory_bytes: fit.device.memory_bytes,
        needed_bytes: fit.memory.total(),
        parts: fit.memory.parts().map(|(name, bytes)| pb::MemoryPart { name: name.into(), bytes }).into(),
        micro_batch: fit.micro_batch,
        fits: fit.fits,
        seconds: fit.seconds,
        cost: fit.cost,
    };
    let way = |way: &tailor_plan::Way| pb::Way {
        name: way.name.into(),
        needed_bytes: way.bytes,
        seconds: way.seconds,
        cost: way.cost,
        smallest_card: way.smallest.clone().unwrap_or_default(),
    };
    let change = |change: &tailor_plan::Change| pb::Change {
        settings: change
            .settings
            .iter()
            .map(|(field, value)| pb::Setting { field: field.clone(), value: value.clone() })
            .collect(),
        needed_bytes: change.bytes,
    };
    pb::Plan {
        parameters: plan.parameters,
        trainable: plan.trainable,
        compute: plan.compute.as_str().into(),
        steps: plan.steps,
        tokens: plan.tokens,
        fits: plan.fits.iter().map(fit).collect(),
        fits_a_trainer: plan.fits_a_trainer,
        ways: plan.ways.iter().map(way).collect(),
        nearest: plan.nearest.iter().map(change).collect(),
        waiting: waiting.unwrap_or_default(),
    }
}

fn wire_listed(listed: &Listed) -> pb::Job {
    match listed {
        Listed::Whole(job) => wire_job(job),
        Listed::Unreadable(job) => pb::Job {
            id: job.id.to_string(),
            state: UNREADABLE.into(),
            error: job.error.to_string(),
            created_at_ms: job.id.created_at_ms(),
            updated_at_ms: job.id.created_at_ms(),
            ..job.spec.as_ref().map(wire_spec).unwrap_or_default()
        },
    }
}

fn wire_job(job: &JobRecord) -> pb::Job {
    pb::Job {
        id: job.id.to_string(),
        state: job.view.state.to_string(),
        updated_at_ms: job.view.updated_at_ms.max(job.spec.created_at_ms),
        error: job.view.error.clone().unwrap_or_default(),
        adapter_version: job.adapter_version.map_or(0, |version| version.0),
        metrics: job.view.metrics.clone().into_iter().collect(),
        last_step: job.view.last_step.as_ref().map(Into::into),
        attempts: job.attempts,
        last_tuning: job.view.last_tuning.as_ref().map(Into::into),
        waiting: job.waiting.clone().unwrap_or_default(),
        ..wire_spec(&job.spec)
    }
}

/// What was asked; nothing of what became of it.
fn wire_spec(spec: &JobSpec) -> pb::Job {
    let recipe = &spec.recipe;
    pb::Job {
        base: spec.base.to_string(),
        dataset: spec.dataset.to_string(),
        dataset_version: spec.dataset_version.0,
        adapter: spec.adapter.to_string(),
        lora: Some((&recipe.lora).into()),
        training: Some((&recipe.train).into()),
        evaluation: Some((&recipe.evaluate).into()),
        stopping: Some((&recipe.stop).into()),
        preference: Some((&recipe.preference).into()),
        prompt_tuning: Some((&recipe.prompt_tuning).into()),
        created_at_ms: spec.created_at_ms,
        ..Default::default()
    }
}

fn wire_event(entry: &LogEntry, state: JobState) -> pb::JobEvent {
    let mut event = pb::JobEvent {
        sequence: entry.seq,
        at_ms: entry.at_ms,
        state: state.to_string(),
        message: entry.message.clone(),
        ..Default::default()
    };
    match &entry.kind {
        LogKind::State { .. } | LogKind::Note | LogKind::Waiting { .. } => {}
        LogKind::Progress { steps } => event.steps = steps.iter().map(Into::into).collect(),
        LogKind::Tuning { measured } => event.tuning = Some(measured.into()),
        LogKind::Evaluation { done, total } => (event.evaluated_rows, event.evaluation_rows) = (*done, *total),
        LogKind::Metrics { metrics } => event.metrics = metrics.clone().into_iter().collect(),
    }
    event
}

#[cfg(test)]
mod tests {
    use tailor_domain::JobId;

    use super::*;
    use crate::Error;
    use crate::fixtures::spec;
    use crate::jobs::Unreadable;

    #[test]
    fn a_job_that_cannot_be_read_says_so_with_its_id_and_what_was_asked() {
        let id = JobId::from_parts(1_700_000_000_000, 1);
        let listed = |spec| {
            // Any that is no state of the job's.
            let error = Error::DeviceGone;
            wire_listed(&Listed::Unreadable(Box::new(Unreadable { id: id.clone(), spec, error })))
        };
        let job = listed(Some(spec()));
        assert_eq!((job.id.as_str(), job.state.as_str()), (id.as_str(), "UNREADABLE"));
        assert_eq!((job.base.as_str(), job.dataset_version), ("base", 1));
        assert_eq!((job.created_at_ms, job.error), (1_700_000_000_000, Error::DeviceGone.to_string()));
        let job = listed(None);
        assert_eq!((job.id.as_str(), job.base.as_str(), job.created_at_ms), (id.as_str(), "", 1_700_000_000_000));
    }

    fn plan(cards: usize) -> Result<PlanRequest> {
        let job = pb::CreateJobRequest {
            base: "base".into(),
            dataset: "rows".into(),
            adapter: "a".into(),
            ..Default::default()
        };
        let card = pb::Card { name: "mine".into(), memory_bytes: 1 << 30 };
        parse_plan(pb::PlanJobRequest { job: Some(job), cards: vec![card; cards], ..Default::default() })
    }

    #[test]
    fn a_plan_compares_so_many_cards_and_no_more() {
        assert_eq!(plan(MAX_CARDS).expect("as many as are allowed").cards.len(), MAX_CARDS);
        let refused = plan(MAX_CARDS + 1).err().expect("one too many").to_string();
        assert!(refused.contains("65; a plan compares at most 64"), "{refused}");
    }
}
