//! `/v1/fine_tuning/jobs`: a job of the TrainingService under OpenAI's names.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use tailor_pb::{common, training};

use super::Http;
use super::error::ApiError;
use super::extract::{Body, Name, Params};
use super::listing::Paging;

/// What a learning rate multiplier of 1 stands for.
const LEARNING_RATE: f64 = 2e-4;

#[derive(Debug, Deserialize)]
pub struct JobRequest {
    /// The base.
    model: String,
    /// A file's id, which is a dataset's name.
    training_file: String,
    validation_file: Option<String>,
    /// The adapter's name; without one it is the file's.
    suffix: Option<String>,
    seed: Option<u64>,
    hyperparameters: Option<Hyperparameters>,
    method: Option<Method>,
    #[serde(default)]
    integrations: Value,
    #[serde(default)]
    metadata: Value,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Hyperparameters {
    n_epochs: Option<Setting<f64>>,
    batch_size: Option<Setting<u32>>,
    learning_rate_multiplier: Option<Setting<f64>>,
    beta: Option<Setting<f64>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Setting<T> {
    Given(T),
    /// `auto`
    Left(String),
}

#[derive(Debug, Deserialize)]
struct Method {
    #[serde(rename = "type")]
    kind: String,
    supervised: Option<MethodSettings>,
    dpo: Option<MethodSettings>,
}

#[derive(Debug, Deserialize)]
struct MethodSettings {
    hyperparameters: Option<Hyperparameters>,
}

fn given<T: Copy>(setting: &Option<Setting<T>>, name: &str) -> Result<Option<T>, ApiError> {
    match setting {
        None => Ok(None),
        Some(Setting::Given(value)) => Ok(Some(*value)),
        Some(Setting::Left(word)) if word == "auto" => Ok(None),
        Some(Setting::Left(word)) => Err(ApiError::param(name, format!("{word:?} is neither a number nor \"auto\""))),
    }
}

pub async fn create(State(http): State<Http>, Body(request): Body<JobRequest>) -> Result<Json<Value>, ApiError> {
    if request.validation_file.is_some() {
        let problem = "rows are held out of the training file by the dataset service; leave it out";
        return Err(ApiError::param("validation_file", problem));
    }
    let remedy = "watch the job by its events, or in TensorBoard (`tailor job tensorboard`)";
    ApiError::unserved("integrations", &request.integrations, remedy)?;
    ApiError::unserved("metadata", &request.metadata, "a job keeps none; keep it under the job's id")?;
    let (objective, settings) = objective(&request)?;
    let multiplier = given(&settings.learning_rate_multiplier, "learning_rate_multiplier")?;
    let job = training::CreateJobRequest {
        base: request.model.strip_prefix("ft:").unwrap_or(&request.model).to_owned(),
        adapter: request.suffix.clone().unwrap_or_else(|| request.training_file.clone()),
        dataset: request.training_file,
        training: Some(training::Training {
            objective: objective.into(),
            epochs: given(&settings.n_epochs, "n_epochs")?,
            batch_rows: given(&settings.batch_size, "batch_size")?,
            learning_rate: multiplier.map(|multiplier| multiplier * LEARNING_RATE),
            seed: request.seed,
            ..Default::default()
        }),
        preference: Some(training::Preference { beta: given(&settings.beta, "beta")?, ..Default::default() }),
        ..Default::default()
    };
    Ok(Json(card(&http.trainer().create_job(job).await?.into_inner())))
}

/// The TrainingService's name of the method, and the method's settings.
fn objective(request: &JobRequest) -> Result<(&'static str, Hyperparameters), ApiError> {
    let plain = request.hyperparameters.clone().unwrap_or_default();
    let Some(method) = &request.method else { return Ok(("", plain)) };
    let (objective, settings) = match method.kind.as_str() {
        "supervised" => ("sft", &method.supervised),
        "dpo" => ("dpo", &method.dpo),
        other => {
            let problem = format!("{other:?} is not known; the methods are supervised and dpo");
            return Err(ApiError::param("method", problem));
        }
    };
    let own = settings.as_ref().and_then(|settings| settings.hyperparameters.clone());
    Ok((objective, own.unwrap_or(plain)))
}

pub async fn list(State(http): State<Http>, Params(params): Params) -> Result<Json<Value>, ApiError> {
    let paging = Paging::of(&params)?;
    let (mut jobs, mut token) = (Vec::new(), String::new());
    loop {
        let page = Some(common::Page { size: 1000, token });
        let answer = http.trainer().list_jobs(training::ListJobsRequest { page }).await?.into_inner();
        jobs.extend(answer.jobs.iter().map(card));
        token = answer.next_page_token;
        if token.is_empty() {
            return Ok(Json(paging.page(jobs, 20)));
        }
    }
}

pub async fn retrieve(State(http): State<Http>, Name(job): Name) -> Result<Json<Value>, ApiError> {
    Ok(Json(card(&get(&http, job).await?)))
}

async fn get(http: &Http, id: String) -> Result<training::Job, ApiError> {
    Ok(http.trainer().get_job(training::GetJobRequest { id }).await?.into_inner())
}

pub async fn cancel(State(http): State<Http>, Name(id): Name) -> Result<Json<Value>, ApiError> {
    let job = http.trainer().cancel_job(training::CancelJobRequest { id }).await?.into_inner();
    Ok(Json(card(&job)))
}

pub async fn pause(State(http): State<Http>, Name(id): Name) -> Result<Json<Value>, ApiError> {
    let job = http.trainer().pause_job(training::PauseJobRequest { id }).await?.into_inner();
    Ok(Json(card(&job)))
}

pub async fn resume(State(http): State<Http>, Name(id): Name) -> Result<Json<Value>, ApiError> {
    let job = http.trainer().resume_job(training::ResumeJobRequest { id }).await?.into_inner();
    Ok(Json(card(&job)))
}

/// Newest first, as OpenAI gives them.
pub async fn events(State(http): State<Http>, Name(id): Name, Params(params): Params) -> Result<Json<Value>, ApiError> {
    let paging = Paging::of(&params)?;
    let mut events: Vec<Value> = log(&http, &id).await?.iter().flat_map(|event| event_cards(&id, event)).collect();
    events.reverse();
    Ok(Json(paging.page(events, 20)))
}

/// A job's log up to now.
async fn log(http: &Http, id: &str) -> Result<Vec<training::JobEvent>, ApiError> {
    let request = training::WatchJobRequest { id: id.to_owned(), from_sequence: 1, no_follow: true };
    let mut log = http.trainer().watch_job(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(event) = log.message().await? {
        events.push(event);
    }
    Ok(events)
}

/// What can be asked for answers: of a job that has succeeded the version that it published. What a trainer saves on the way
/// is there to go on from, and no model.
pub async fn checkpoints(
    State(http): State<Http>,
    Name(id): Name,
    Params(params): Params,
) -> Result<Json<Value>, ApiError> {
    let paging = Paging::of(&params)?;
    let job = get(&http, id).await?;
    let found = match model(&job) {
        Some(model) => vec![checkpoint(&job, &model, &log(&http, &job.id).await?)],
        None => Vec::new(),
    };
    Ok(Json(paging.page(found, 10)))
}

/// The published state, which need not be that of the last step: by default it is the best on the tuning rows.
fn checkpoint(job: &training::Job, model: &str, log: &[training::JobEvent]) -> Value {
    let keeps_best = job.stopping.as_ref().and_then(|stopping| stopping.keep_best).unwrap_or(true);
    let best = log.iter().rev().filter_map(|event| event.tuning).find(|tuning| keeps_best && tuning.best);
    let last = job.last_step.unwrap_or_default();
    let kept = best.map_or(last.step, |best| best.step);
    let steps = log.iter().rev().flat_map(|event| event.steps.iter().rev());
    let step = steps.copied().find(|step| step.step == kept).unwrap_or(last);
    let tuning = best.or(job.last_tuning);
    let (loss, accuracy) = (tuning.map(|tuning| tuning.loss), tuning.map(|tuning| tuning.token_accuracy));
    json!({
        "id": format!("ftckpt-{}", job.id), "object": "fine_tuning.job.checkpoint",
        "created_at": job.updated_at_ms / 1000, "fine_tuned_model_checkpoint": model, "fine_tuning_job_id": job.id,
        "metrics": {
            "step": kept, "train_loss": step.loss, "valid_loss": loss, "valid_mean_token_accuracy": accuracy,
            "full_valid_loss": loss, "full_valid_mean_token_accuracy": accuracy,
        },
        "step_number": kept,
    })
}

/// `base:adapter@version`, once it is published.
fn model(job: &training::Job) -> Option<String> {
    (job.adapter_version > 0).then(|| format!("ft:{}:{}@{}", job.base, job.adapter, job.adapter_version))
}

fn status(state: &str) -> &'static str {
    match state {
        "PREPARING" => "validating_files",
        "TRAINING" | "EVALUATING" | "PUBLISHING" => "running",
        "PAUSED" => "paused",
        "SUCCEEDED" => "succeeded",
        // OpenAI's word that comes nearest; the error says what it is.
        "FAILED" | "UNREADABLE" => "failed",
        "CANCELLED" => "cancelled",
        _ => "queued",
    }
}

fn card(job: &training::Job) -> Value {
    let settings = job.training.clone().unwrap_or_default();
    let hyperparameters = json!({
        "n_epochs": settings.epochs, "batch_size": settings.batch_rows,
        "learning_rate_multiplier": settings.learning_rate.map(|rate| rate / LEARNING_RATE),
    });
    let kind = if settings.objective == "dpo" { "dpo" } else { "supervised" };
    let ended = ["SUCCEEDED", "FAILED", "CANCELLED"].contains(&job.state.as_str());
    let code = if job.state == "UNREADABLE" { "job_unreadable" } else { "job_failed" };
    let error = json!({ "code": code, "message": job.error, "param": null });
    let failed = !job.error.is_empty();
    json!({
        "id": job.id, "object": "fine_tuning.job", "created_at": job.created_at_ms / 1000,
        "finished_at": ended.then_some(job.updated_at_ms / 1000), "model": job.base, "fine_tuned_model": model(job),
        "organization_id": "tailor", "status": status(&job.state), "training_file": job.dataset,
        "validation_file": null, "result_files": [], "integrations": [], "seed": settings.seed.unwrap_or(0),
        "trained_tokens": job.last_step.as_ref().map(|step| step.tokens), "estimated_finish": null,
        "hyperparameters": hyperparameters.clone(),
        "method": { "type": kind, kind: { "hyperparameters": hyperparameters } },
        "error": failed.then_some(error), "user_provided_suffix": job.adapter,
    })
}

/// An entry of the log as OpenAI's events: each step by itself, then what the entry says.
fn event_cards(job: &str, event: &training::JobEvent) -> Vec<Value> {
    let card = |number: usize, level: &str, message: String, kind: &str, data: Value| {
        json!({
            "id": format!("ftevent-{job}-{}-{number}", event.sequence), "object": "fine_tuning.job.event",
            "created_at": event.at_ms / 1000, "level": level, "message": message, "type": kind, "data": data,
        })
    };
    let steps = event.steps.iter().enumerate().map(|(number, step)| {
        let data = json!({
            "step": step.step, "total_steps": step.total_steps, "train_loss": step.loss,
            "learning_rate": step.learning_rate, "grad_norm": step.grad_norm,
        });
        let message = format!("Step {}/{}: training loss={:.4}", step.step, step.total_steps, step.loss);
        card(number + 1, "info", message, "metrics", data)
    });
    let tuning = event.tuning.iter().map(|tuning| {
        let data = json!({
            "step": tuning.step, "valid_loss": tuning.loss, "valid_mean_token_accuracy": tuning.token_accuracy,
        });
        let message = format!("Step {}: validation loss={:.4}", tuning.step, tuning.loss);
        card(event.steps.len() + 1, "info", message, "metrics", data)
    });
    let said = (!event.message.is_empty()).then(|| {
        let level = if event.state == "FAILED" { "error" } else { "info" };
        card(0, level, event.message.clone(), "message", json!({ "state": event.state }))
    });
    steps.chain(tuning).chain(said).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_openais_states_and_its_model_once_it_is_published() {
        let job = |state: &str, version| training::Job {
            id: "01".into(),
            base: "little".into(),
            adapter: "grammar".into(),
            state: state.into(),
            adapter_version: version,
            ..Default::default()
        };
        let running = card(&job("TRAINING", 0));
        assert_eq!((&running["status"], &running["fine_tuned_model"]), (&json!("running"), &Value::Null));
        assert_eq!(running["finished_at"], Value::Null);
        let done = card(&job("SUCCEEDED", 3));
        assert_eq!((&done["status"], &done["fine_tuned_model"]), (&json!("succeeded"), &json!("ft:little:grammar@3")));
        assert_eq!(card(&job("QUEUED", 0))["status"], "queued");
        assert_eq!(card(&job("PAUSED", 0))["status"], "paused");
        assert_eq!(card(&job("PREPARING", 0))["status"], "validating_files");
        let damaged = card(&training::Job { error: "cannot be read".into(), ..job("UNREADABLE", 0) });
        assert_eq!((&damaged["status"], &damaged["error"]["code"]), (&json!("failed"), &json!("job_unreadable")));
    }

    #[test]
    fn every_step_of_an_entry_is_an_event_of_its_own() {
        let step = |step| training::Step { step, total_steps: 9, loss: 1.5, ..Default::default() };
        let event = training::JobEvent {
            sequence: 4,
            state: "TRAINING".into(),
            message: "going on".into(),
            steps: vec![step(1), step(2)],
            ..Default::default()
        };
        let cards = event_cards("01", &event);
        let mut ids: Vec<_> = cards.iter().map(|card| card["id"].to_string()).collect();
        assert_eq!((cards.len(), &cards[1]["data"]["step"], &cards[1]["type"]), (3, &json!(2), &json!("metrics")));
        ids.dedup();
        assert_eq!(ids.len(), 3, "ids differ");
    }

    #[test]
    fn a_checkpoint_is_of_the_step_whose_state_was_published() {
        let step = |step: u64| training::Step { step, loss: 9.0 - step as f64, ..Default::default() };
        let tuning =
            |step, loss, best| training::Tuning { step, loss, best, token_accuracy: 0.5, ..Default::default() };
        let event = |steps, tuning| training::JobEvent { steps, tuning: Some(tuning), ..Default::default() };
        let log = [
            event(vec![step(1), step(2)], tuning(2, 3.0, true)),
            event(vec![step(3), step(4)], tuning(4, 2.0, true)),
            event(vec![step(5), step(6)], tuning(6, 2.5, false)),
        ];
        let job = |keep_best| training::Job {
            id: "01".into(),
            last_step: Some(step(6)),
            last_tuning: Some(tuning(6, 2.5, false)),
            stopping: Some(training::Stopping { keep_best, ..Default::default() }),
            ..Default::default()
        };
        let best = checkpoint(&job(None), "ft:little:a@1", &log);
        assert_eq!((&best["step_number"], &best["metrics"]["step"]), (&json!(4), &json!(4)));
        assert_eq!((&best["metrics"]["train_loss"], &best["metrics"]["valid_loss"]), (&json!(5.0), &json!(2.0)));
        assert_eq!(best["fine_tuned_model_checkpoint"], "ft:little:a@1");
        let last = checkpoint(&job(Some(false)), "ft:little:a@1", &log);
        assert_eq!((&last["step_number"], &last["metrics"]["full_valid_loss"]), (&json!(6), &json!(2.5)));
        let unmeasured = checkpoint(&job(None), "ft:little:a@1", &[]);
        assert_eq!((&unmeasured["step_number"], &unmeasured["metrics"]["train_loss"]), (&json!(6), &json!(3.0)));
    }

    #[test]
    fn settings_are_numbers_or_left_to_us() {
        let read = |text: &str| serde_json::from_str::<Hyperparameters>(text).expect("JSON");
        let settings = read(r#"{"n_epochs": "auto", "batch_size": 8, "learning_rate_multiplier": 0.5}"#);
        assert_eq!(given(&settings.n_epochs, "n_epochs").expect("auto"), None);
        assert_eq!(given(&settings.batch_size, "batch_size").expect("a number"), Some(8));
        assert_eq!(given(&settings.learning_rate_multiplier, "x").expect("a number"), Some(0.5));
        assert!(given(&read(r#"{"n_epochs": "many"}"#).n_epochs, "n_epochs").is_err());
    }
}
