//! What is measured, as OTLP metrics: docs/metrics.md lists them. Without a receiver they cost nothing.

mod answers;
mod engines;
mod job;
mod labels;

pub use answers::{AnswerMeter, Answers, Asked};
pub use engines::{EngineReading, Engines, ResidentReading};
pub use job::JobMeter;
