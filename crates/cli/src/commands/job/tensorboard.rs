//! `tailor job tensorboard`: a job's log as an event file that grows with it.

use std::path::Path;

use serde_json::json;
use tailor_pb::training as pb;
use tailor_tensorboard::EventFile;

use crate::commands::job::history::History;
use crate::commands::job::{follow, get};
use crate::connect::Endpoints;
use crate::output::Output;

pub async fn write(
    endpoints: &Endpoints,
    id: &str,
    dir: &Path,
    no_follow: bool,
    output: &Output,
) -> anyhow::Result<()> {
    let job = get(endpoints, id).await?;
    let folder = dir.join(&job.id);
    let mut run = Run { file: EventFile::create(&folder, "tailor", job.created_at_ms)?, history: History::default() };
    output.say(format!("writing {}; look with: tensorboard --logdir {}", run.file.path().display(), dir.display()));
    if no_follow {
        let request = pb::WatchJobRequest { id: job.id.clone(), from_sequence: 1, no_follow };
        let mut stream = endpoints.trainer()?.watch_job(request).await?.into_inner();
        while let Some(event) = stream.message().await? {
            run.event(&event)?;
        }
    } else {
        follow(endpoints, &job.id, 1, |event| run.event(event)).await?;
    }
    let steps = run.history.steps.len();
    let document = json!({ "job": job.id, "file": run.file.path(), "steps": steps });
    output.show(&document, || println!("{steps} steps"))
}

struct Run {
    file: EventFile,
    history: History,
}

impl Run {
    fn event(&mut self, event: &pb::JobEvent) -> anyhow::Result<()> {
        if let Some(step) = self.history.add(event) {
            self.file.restart(event.at_ms, step)?;
        }
        for step in &event.steps {
            let values = [
                ("train/loss", step.loss),
                ("train/grad_norm", step.grad_norm),
                ("train/learning_rate", step.learning_rate),
                ("train/tokens_per_second", step.tokens_per_second),
            ];
            self.file.scalars(event.at_ms, step.step, &values)?;
        }
        if let Some(tuning) = &event.tuning {
            let values = [("tuning/loss", tuning.loss), ("tuning/token_accuracy", tuning.token_accuracy)];
            self.file.scalars(event.at_ms, tuning.step, &values)?;
        }
        if !event.metrics.is_empty() {
            let last = self.history.steps.last_key_value().map_or(0, |(step, _)| *step);
            let mut named: Vec<_> = event.metrics.iter().map(|(name, value)| (tag(name), *value)).collect();
            named.sort_by(|left, right| left.0.cmp(&right.0));
            let values: Vec<(&str, f64)> = named.iter().map(|(tag, value)| (tag.as_str(), *value)).collect();
            self.file.scalars(event.at_ms, last, &values)?;
        }
        Ok(())
    }
}

/// TensorBoard makes a section of what stands before the slash.
fn tag(metric: &str) -> String {
    const OF_TRAINING: [&str; 3] = ["train_", "tuning_", "kept_"];
    match metric.strip_prefix("base_") {
        Some(name) => format!("held_out_base/{name}"),
        None if metric.contains("_difference") => format!("held_out_difference/{metric}"),
        None if OF_TRAINING.iter().any(|prefix| metric.starts_with(prefix)) => format!("summary/{metric}"),
        None => format!("held_out/{metric}"),
    }
}
