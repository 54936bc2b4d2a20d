//! Ids, specs, manifests and the job's transition table: what every part of Tailor agrees on.
//!
//! Plain data and pure functions. Nothing here does I/O, knows a clock, or depends on a runtime.

pub mod adapter;
pub mod base;
pub mod dataset;
pub mod error;
pub mod ids;
pub mod job;
pub mod policy;
pub mod prediction;
pub mod rollout;
pub mod spec;

pub use adapter::{AdapterManifest, AdapterRef, AliasMove, Envelope, Selector, Signature};
pub use base::{BaseManifest, Family, FileRef, MergedFrom, QuantCode};
pub use dataset::{DatasetKind, DatasetManifest, DropReason, Report};
pub use error::{ErrorCode, Invalid};
pub use ids::{AdapterName, AliasName, BaseName, DatasetName, Digest, JobId, Version};
pub use job::{JobEvent, JobState, LogEntry, LogKind, StepMetrics, TuningMetrics};
pub use policy::{Approval, Gates, Policy};
pub use prediction::{MAX_PREDICTIONS_BYTES, Predicted};
pub use rollout::{Rollout, RolloutState};
pub use spec::{EvaluateSpec, JobSpec, LoraSpec, PreferenceSpec, PromptTuningSpec, Recipe, StopSpec, TrainSpec};
