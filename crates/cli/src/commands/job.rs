//! `tailor job list|show|watch|pause|resume|cancel|checkpoints`, and the live view that `tailor train` shares.

pub mod evaluation;
mod history;
mod plot;
mod predictions;
mod tensorboard;

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tailor_pb::common::PredictionFilter;
use tailor_pb::convert::take_recipe;
use tailor_pb::training as pb;

use crate::args::Job;
use crate::connect::Endpoints;
use crate::output::{Output, bytes, time};
use crate::table;

/// How long a broken stream is taken up again before we give up.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run(endpoints: &Endpoints, command: &Job, output: &Output) -> anyhow::Result<()> {
    match command {
        Job::List => list(endpoints, output).await,
        Job::Show { id } => show(&get(endpoints, id).await?, output),
        Job::Watch { id, from } => {
            let job = watch(endpoints, id, *from, output).await?;
            report(&job, output)
        }
        Job::Pause { id } => {
            let job = endpoints.trainer()?.pause_job(pb::PauseJobRequest { id: id.clone() }).await?.into_inner();
            output.show(&describe(&job), || println!("paused {}; `tailor job resume {}` lets it go on", job.id, job.id))
        }
        Job::Resume { id } => {
            let job = endpoints.trainer()?.resume_job(pb::ResumeJobRequest { id: id.clone() }).await?.into_inner();
            output.show(&describe(&job), || println!("{} is {}", job.id, job.state))
        }
        Job::Cancel { id } => {
            let job = endpoints.trainer()?.cancel_job(pb::CancelJobRequest { id: id.clone() }).await?.into_inner();
            output.show(&describe(&job), || println!("cancelled {}", job.id))
        }
        Job::Checkpoints { id } => checkpoints(endpoints, id, output).await,
        Job::Predictions { id, wrong, changed, limit } => {
            let filter = PredictionFilter { wrong: *wrong, changed: *changed, limit: *limit };
            predictions::list(endpoints, id, filter, output).await
        }
        Job::Plot { id, file } => plot::draw(endpoints, id, file, output).await,
        Job::Tensorboard { id, dir, no_follow } => tensorboard::write(endpoints, id, dir, *no_follow, output).await,
    }
}

async fn list(endpoints: &Endpoints, output: &Output) -> anyhow::Result<()> {
    let mut client = endpoints.trainer()?;
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let page = Some(tailor_pb::common::Page { size: 0, token });
        let answer = client.list_jobs(pb::ListJobsRequest { page }).await?.into_inner();
        all.extend(answer.jobs);
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    output.show(&all.iter().map(describe).collect::<Vec<_>>(), || {
        let rows: Vec<_> = all
            .iter()
            .map(|job| {
                let published =
                    if job.adapter_version > 0 { format!("@{}", job.adapter_version) } else { String::new() };
                let step = job.last_step.as_ref().map(|s| format!("{}/{}", s.step, s.total_steps)).unwrap_or_default();
                // Of a job that cannot be read not even this may be known.
                let version = if job.dataset_version > 0 { format!("@{}", job.dataset_version) } else { String::new() };
                vec![
                    job.id.clone(),
                    job.state.clone(),
                    job.base.clone(),
                    format!("{}{version}", job.dataset),
                    format!("{}{published}", job.adapter),
                    step,
                    time(job.created_at_ms),
                ]
            })
            .collect();
        table::print(&["job", "state", "base", "dataset", "adapter", "step", "created"], &rows);
        all.iter().filter(|job| !job.waiting.is_empty()).for_each(|job| println!("{} waits: {}", job.id, job.waiting));
        let unreadable = all.iter().filter(|job| job.state == "UNREADABLE");
        unreadable.for_each(|job| println!("{} cannot be read: {}", job.id, job.error));
    })
}

async fn checkpoints(endpoints: &Endpoints, id: &str, output: &Output) -> anyhow::Result<()> {
    let mut client = endpoints.trainer()?;
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let page = Some(tailor_pb::common::Page { size: 0, token });
        let request = pb::ListCheckpointsRequest { job_id: id.to_owned(), page };
        let answer = client.list_checkpoints(request).await?.into_inner();
        all.extend(answer.checkpoints);
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let document = |saved: &pb::Checkpoint| {
        json!({
            "number": saved.number, "step": saved.step, "fence": saved.fence, "digest": saved.digest,
            "size_bytes": saved.size_bytes, "created_at_ms": saved.created_at_ms, "kept": saved.kept,
        })
    };
    output.show(&all.iter().map(document).collect::<Vec<_>>(), || {
        let row = |saved: &pb::Checkpoint| {
            let kept = if saved.kept { "kept" } else { "gone" };
            let (size, created) = (bytes(saved.size_bytes), time(saved.created_at_ms));
            vec![saved.step.to_string(), saved.fence.to_string(), size, kept.to_owned(), created]
        };
        table::print(&["step", "attempt", "size", "bytes", "saved"], &all.iter().map(row).collect::<Vec<_>>());
    })
}

fn show(job: &pb::Job, output: &Output) -> anyhow::Result<()> {
    output.show(&describe(job), || {
        let step = job.last_step.unwrap_or_default();
        table::fields(&[
            ("job", job.id.clone()),
            ("state", job.state.clone()),
            ("error", job.error.clone()),
            ("waits", job.waiting.clone()),
            ("base", job.base.clone()),
            ("dataset", format!("{}@{}", job.dataset, job.dataset_version)),
            (
                "adapter",
                match job.adapter_version {
                    0 => job.adapter.clone(),
                    version => format!("{}@{version}", job.adapter),
                },
            ),
            ("attempts", job.attempts.to_string()),
            ("step", format!("{} of {}", step.step, step.total_steps)),
            ("loss", format!("{:.4}", step.loss)),
            ("grad norm", format!("{:.4}", step.grad_norm)),
            ("tuning", job.last_tuning.as_ref().map(tuning_line).unwrap_or_default()),
            ("metrics", metrics_line(&evaluation::apart(&job.metrics))),
            ("created", time(job.created_at_ms)),
            ("updated", time(job.updated_at_ms)),
        ]);
        evaluation::print(&job.metrics);
    })
}

fn tuning_line(tuning: &pb::Tuning) -> String {
    let best = if tuning.best { ", the best so far" } else { "" };
    let (loss, accuracy) = (tuning.loss, tuning.token_accuracy * 100.0);
    format!("after step {}: loss {loss:.4}, token accuracy {accuracy:.1} %{best}", tuning.step)
}

pub fn metrics_line(metrics: &std::collections::HashMap<String, f64>) -> String {
    let mut pairs: Vec<_> = metrics.iter().collect();
    pairs.sort_by(|a, b| a.0.cmp(b.0));
    pairs.iter().map(|(name, value)| format!("{name} {value:.4}")).collect::<Vec<_>>().join(", ")
}

/// Says how a watched job ended, with the figures; an error when it did not succeed.
pub fn report(job: &pb::Job, output: &Output) -> anyhow::Result<()> {
    conclude(job, output)?;
    if !output.json {
        evaluation::print(&job.metrics);
    }
    Ok(())
}

/// Says in a line how a job ended; an error when it did not succeed.
pub fn conclude(job: &pb::Job, output: &Output) -> anyhow::Result<()> {
    if job.state == "SUCCEEDED" {
        return output.show(&describe(job), || println!("published {}@{}", job.adapter, job.adapter_version));
    }
    if output.json {
        println!("{}", describe(job));
    }
    match job.state.as_str() {
        "CANCELLED" => anyhow::bail!("job {} was cancelled", job.id),
        _ => anyhow::bail!("job {} failed: {}", job.id, job.error),
    }
}

/// Follows a job to its end with a progress bar; takes a broken stream up where it broke.
pub async fn watch(endpoints: &Endpoints, id: &str, from: u64, output: &Output) -> anyhow::Result<pb::Job> {
    let mut screen = Screen::new(output);
    follow(endpoints, id, from, |event| {
        screen.event(event);
        Ok(())
    })
    .await?;
    screen.finish();
    get(endpoints, id).await
}

async fn get(endpoints: &Endpoints, id: &str) -> anyhow::Result<pb::Job> {
    Ok(endpoints.trainer()?.get_job(pb::GetJobRequest { id: id.to_owned() }).await?.into_inner())
}

/// Gives every event of a job's log from `from` on to `take`, until the job's end.
async fn follow(
    endpoints: &Endpoints,
    id: &str,
    from: u64,
    mut take: impl FnMut(&pb::JobEvent) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut client = endpoints.trainer()?;
    let mut next = from.max(1);
    let mut broken_since: Option<Instant> = None;
    loop {
        let request = pb::WatchJobRequest { id: id.to_owned(), from_sequence: next, no_follow: false };
        let outcome = async {
            let mut stream = client.watch_job(request).await?.into_inner();
            while let Some(event) = stream.message().await? {
                next = event.sequence + 1;
                broken_since = None;
                take(&event)?;
            }
            anyhow::Ok(())
        }
        .await;
        let Err(error) = outcome else { return Ok(()) };
        let is_away = error.downcast_ref::<tonic::Status>().is_some_and(|s| s.code() == tonic::Code::Unavailable);
        let since = *broken_since.get_or_insert_with(Instant::now);
        if !is_away || since.elapsed() > PATIENCE {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// What a person sees while a job runs: one line a state, one moving bar.
struct Screen {
    output: Output,
    bar: ProgressBar,
    state: String,
    /// Where there is no terminal, a line every so often instead of a bar.
    last_line: Instant,
    plain: bool,
}

impl Screen {
    fn new(output: &Output) -> Self {
        let plain = !std::io::stderr().is_terminal();
        let bar = if output.json || plain { ProgressBar::hidden() } else { ProgressBar::new(0) };
        Self { output: *output, bar, state: String::new(), last_line: Instant::now(), plain }
    }

    fn event(&mut self, event: &pb::JobEvent) {
        if self.output.json {
            println!("{}", describe_event(event));
            return;
        }
        if event.state != self.state {
            self.state.clone_from(&event.state);
            self.enter();
        }
        if !event.message.is_empty() {
            self.line(&format!("{:<11} {}", event.state.to_lowercase(), event.message));
        }
        if let Some(step) = event.steps.last() {
            self.step(step);
        }
        if let Some(tuning) = &event.tuning {
            self.line(&format!("tuning      {}", tuning_line(tuning)));
        }
        if event.evaluation_rows > 0 {
            self.bar.set_length(event.evaluation_rows);
            self.bar.set_position(event.evaluated_rows);
        }
    }

    fn enter(&self) {
        let template = match self.state.as_str() {
            "TRAINING" => "training    [{bar:30}] {pos}/{len} steps  {msg}  {eta} left",
            "EVALUATING" => "evaluating  [{bar:30}] {pos}/{len} held-out rows",
            _ => {
                return self
                    .bar
                    .set_style(ProgressStyle::with_template("").unwrap_or_else(|_| ProgressStyle::default_bar()));
            }
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.reset();
            self.bar.set_style(style.progress_chars("█▉ "));
        }
    }

    fn step(&mut self, step: &pb::Step) {
        self.bar.set_length(step.total_steps);
        self.bar.set_position(step.step);
        let figures =
            format!("loss {:.4}  grad norm {:.3}  {:.0} tok/s", step.loss, step.grad_norm, step.tokens_per_second);
        self.bar.set_message(figures.clone());
        let last = step.step == step.total_steps;
        if self.plain && (last || self.last_line.elapsed() > Duration::from_secs(5)) {
            self.last_line = Instant::now();
            eprintln!("training    step {}/{}  {figures}", step.step, step.total_steps);
        }
    }

    fn line(&self, text: &str) {
        if self.plain { eprintln!("{text}") } else { self.bar.println(text) }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn describe_step(step: &pb::Step) -> Value {
    json!({
        "step": step.step,
        "total_steps": step.total_steps,
        "loss": step.loss,
        "grad_norm": step.grad_norm,
        "learning_rate": step.learning_rate,
        "tokens": step.tokens,
        "tokens_per_second": step.tokens_per_second,
    })
}

fn describe_tuning(tuning: &pb::Tuning) -> Value {
    json!({
        "step": tuning.step,
        "loss": tuning.loss,
        "token_accuracy": tuning.token_accuracy,
        "tokens": tuning.tokens,
        "best": tuning.best,
    })
}

fn describe_event(event: &pb::JobEvent) -> Value {
    json!({
        "sequence": event.sequence,
        "at_ms": event.at_ms,
        "state": event.state,
        "message": event.message,
        "steps": event.steps.iter().map(describe_step).collect::<Vec<_>>(),
        "tuning": event.tuning.as_ref().map(describe_tuning),
        "evaluated_rows": event.evaluated_rows,
        "evaluation_rows": event.evaluation_rows,
        "metrics": event.metrics,
    })
}

pub fn describe(job: &pb::Job) -> Value {
    let mut document = json!({
        "id": job.id,
        "state": job.state,
        "error": job.error,
        "waiting": job.waiting,
        "base": job.base,
        "dataset": job.dataset,
        "dataset_version": job.dataset_version,
        "adapter": job.adapter,
        "adapter_version": job.adapter_version,
        "attempts": job.attempts,
        "metrics": job.metrics,
        "last_step": job.last_step.as_ref().map(describe_step),
        "last_tuning": job.last_tuning.as_ref().map(describe_tuning),
        "created_at_ms": job.created_at_ms,
        "updated_at_ms": job.updated_at_ms,
    });
    // The settings stand there as a job file has them.
    let mut settings = pb::CreateJobRequest {
        lora: job.lora.clone(),
        training: job.training.clone(),
        evaluation: job.evaluation,
        stopping: job.stopping,
        preference: job.preference,
        prompt_tuning: job.prompt_tuning.clone(),
        ..Default::default()
    };
    let recipe = take_recipe(&mut settings).ok().and_then(|recipe| serde_json::to_value(recipe).ok());
    if let (Some(document), Some(Value::Object(sections))) = (document.as_object_mut(), recipe) {
        document.extend(sections);
    }
    document
}
