//! `tailor job plot`: losses, learning rate and gradient norm over the steps.

use std::path::Path;

use serde_json::json;
use tailor_pb::training as pb;
use tailor_plot::{Chart, Mark, Panel, Series, smoothed};

use crate::commands::job::get;
use crate::commands::job::history::History;
use crate::connect::Endpoints;
use crate::output::Output;
use crate::picture::Format;

const BLUE: (u8, u8, u8) = (0x3b, 0x6e, 0xa8);
const RED: (u8, u8, u8) = (0xc8, 0x44, 0x2b);
const GREEN: (u8, u8, u8) = (0x2f, 0x7d, 0x4f);
const GREY: (u8, u8, u8) = (0x55, 0x55, 0x55);
/// A mean reaches over this share of the run to each side.
const SMOOTHING: usize = 60;

pub async fn draw(endpoints: &Endpoints, id: &str, file: &Path, output: &Output) -> anyhow::Result<()> {
    let format = Format::of(file)?;
    let (job, history) = (get(endpoints, id).await?, History::read(endpoints, id).await?);
    anyhow::ensure!(!history.steps.is_empty(), "job {} is {} and has made no step yet", job.id, job.state);
    format.write(&chart(&job, &history).draw(), file)?;
    let document = json!({ "job": job.id, "plot": file, "steps": history.steps.len(), "tuning": history.tuning.len() });
    output.show(&document, || println!("plot in {}", file.display()))
}

fn chart(job: &pb::Job, history: &History) -> Chart {
    let over = |value: fn(&pb::Step) -> f64| -> Vec<(f64, f64)> {
        history.steps.values().map(|step| (step.step as f64, value(step))).collect()
    };
    let loss = over(|step| step.loss);
    let reach = (loss.len() / SMOOTHING).max(1);
    let single = |mark, colour, points| vec![Series { name: String::new(), mark, colour, points }];
    let mut series = vec![
        Series { name: "training, each step".into(), mark: Mark::Thin, colour: BLUE, points: loss.clone() },
        Series {
            name: format!("training, mean of {} steps", 2 * reach + 1),
            mark: Mark::Bold,
            colour: BLUE,
            points: smoothed(&loss, reach),
        },
    ];
    let tuning: Vec<_> = history.tuning.values().map(|tuning| (tuning.step as f64, tuning.loss)).collect();
    if !tuning.is_empty() {
        series.push(Series { name: "tuning rows".into(), mark: Mark::Dots, colour: RED, points: tuning });
    }
    if let Some(best) = history.best() {
        series.push(Series {
            name: format!("best: {:.4} after step {}", best.loss, best.step),
            mark: Mark::Star,
            colour: GREEN,
            points: vec![(best.step as f64, best.loss)],
        });
    }
    let about = [
        format!("job {}", job.id),
        format!("{}@{} on {}", job.dataset, job.dataset_version, job.base),
        job.state.to_lowercase(),
    ];
    Chart {
        title: match job.adapter_version {
            0 => format!("Training of {}", job.adapter),
            version => format!("Training of {}@{version}", job.adapter),
        },
        about: about.join("   ·   "),
        x_label: "optimizer steps".into(),
        panels: vec![
            Panel::new(loss_title(job), 290.0, series),
            Panel::new("Learning rate", 88.0, single(Mark::Bold, GREY, over(|step| step.learning_rate))),
            Panel::new("Gradient norm (L2, before clipping)", 110.0, {
                let norms = over(|step| step.grad_norm);
                let mut both = single(Mark::Thin, BLUE, norms.clone());
                both.extend(single(Mark::Bold, BLUE, smoothed(&norms, reach)));
                both
            }),
        ],
    }
}

fn loss_title(job: &pb::Job) -> &'static str {
    match job.training.as_ref().map(|training| training.objective.as_str()) {
        Some("dpo") => "Loss, nats per pair",
        _ => "Loss, nats per token",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_names_the_job_and_marks_the_best_measurement() {
        let mut history = History::default();
        for step in 1..=200 {
            let loss = 3.0 / (1.0 + step as f64 / 20.0);
            let step = pb::Step { step, loss, grad_norm: 0.5, learning_rate: 1e-3, ..Default::default() };
            history.steps.insert(step.step, step);
        }
        for (step, loss) in [(50, 1.2), (100, 0.6), (150, 0.7)] {
            history.tuning.insert(step, pb::Tuning { step, loss, ..Default::default() });
        }
        let job = pb::Job {
            id: "01abc".into(),
            base: "tiny-t5".into(),
            dataset: "grammar".into(),
            dataset_version: 2,
            adapter: "polish".into(),
            adapter_version: 3,
            state: "SUCCEEDED".into(),
            ..Default::default()
        };
        let svg = chart(&job, &history).draw().to_svg();
        for part in [
            "Training of polish@3",
            "job 01abc",
            "grammar@2 on tiny-t5",
            "Loss, nats per token",
            "best: 0.6000 after step 100",
            "mean of 7 steps",
            "optimizer steps",
            "Learning rate",
            "Gradient norm",
        ] {
            assert!(svg.contains(part), "{part:?} is missing");
        }
        assert_eq!(svg.matches("<circle").count(), 3 + 1 + 2, "measurements, the best one, and the legend's two");
    }
}
