//! What a job shows while it runs.

use std::collections::BTreeMap;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge};
use tailor_domain::{JobId, JobSpec, StepMetrics, TuningMetrics};

/// The instruments of one job.
pub struct JobMeter {
    attributes: Vec<KeyValue>,
    steps: Counter<u64>,
    tokens: Counter<u64>,
    loss: Gauge<f64>,
    grad_norm: Gauge<f64>,
    learning_rate: Gauge<f64>,
    tokens_per_second: Gauge<f64>,
    tuning_loss: Gauge<f64>,
    tuning_accuracy: Gauge<f64>,
    held_out: Gauge<f64>,
}

impl JobMeter {
    pub fn of(job: &JobId, spec: &JobSpec) -> Self {
        let meter = opentelemetry::global::meter("tailor");
        let gauge = |name: &'static str, unit: &'static str, about: &'static str| {
            meter.f64_gauge(name).with_unit(unit).with_description(about).build()
        };
        let counter = |name: &'static str, unit: &'static str, about: &'static str| {
            meter.u64_counter(name).with_unit(unit).with_description(about).build()
        };
        Self {
            attributes: vec![
                KeyValue::new("tailor.job", job.to_string()),
                KeyValue::new("tailor.base", spec.base.to_string()),
                KeyValue::new("tailor.adapter", spec.adapter.to_string()),
                KeyValue::new("tailor.dataset", format!("{}@{}", spec.dataset, spec.dataset_version)),
            ],
            steps: counter("tailor.train.steps", "{step}", "Optimizer steps done."),
            tokens: counter("tailor.train.tokens", "{token}", "Tokens trained on, padding not counted."),
            loss: gauge("tailor.train.loss", "nat", "Mean cross-entropy of the last step's unmasked tokens."),
            grad_norm: gauge("tailor.train.grad_norm", "1", "Norm of the adapter's gradient before clipping."),
            learning_rate: gauge("tailor.train.learning_rate", "1", "Learning rate of the last step."),
            tokens_per_second: gauge("tailor.train.tokens_per_second", "{token}/s", "Speed of the last step."),
            tuning_loss: gauge("tailor.tuning.loss", "nat", "Mean cross-entropy on the tuning rows."),
            tuning_accuracy: gauge("tailor.tuning.token_accuracy", "1", "Share of the tuning tokens that are right."),
            held_out: gauge("tailor.held_out", "1", "Figures on the held-out rows; tailor.metric names each."),
        }
    }

    pub fn step(&self, step: &StepMetrics) {
        self.steps.add(1, &self.attributes);
        self.tokens.add(step.tokens, &self.attributes);
        self.loss.record(step.loss, &self.attributes);
        self.grad_norm.record(step.grad_norm, &self.attributes);
        self.learning_rate.record(step.learning_rate, &self.attributes);
        self.tokens_per_second.record(step.tokens_per_second, &self.attributes);
    }

    pub fn tuning(&self, measured: &TuningMetrics) {
        self.tuning_loss.record(measured.loss, &self.attributes);
        self.tuning_accuracy.record(measured.token_accuracy, &self.attributes);
    }

    pub fn held_out(&self, metrics: &BTreeMap<String, f64>) {
        for (name, value) in metrics {
            let mut attributes = self.attributes.clone();
            attributes.push(KeyValue::new("tailor.metric", name.clone()));
            self.held_out.record(*value, &attributes);
        }
    }
}
