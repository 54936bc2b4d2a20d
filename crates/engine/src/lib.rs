//! Generation and scoring for many adapters on one resident 4-bit base.
//!
//! [`Engine`] is an async handle; one named OS thread owns the model and everything on its device. Sequences with different
//! adapters are decoded in one step (continuous batching) over one paged cache: they join between steps, read their prompt
//! in pieces beside the answers of others, share what their prompts have in common under the same adapter, and leave when
//! they end, fail, or nobody listens any more. One of them failing hurts no other. Text that is scored goes the same way.
//!
//! ```text
//!   ┌──adapters──▶ loader: check, read, round ──┐
//!   │                                           ▼
//! Engine ──commands (bounded)──▶ thread: take commands → load one → admit → step → free what ended ─┐
//!   ▲                                ▲                                                            │
//!   └──events, one channel a job─────┴────────────────────────────────────────────────────────────┘
//! ```

mod answering;
mod batch;
mod blocks;
mod constraint;
mod demand;
mod error;
mod fair;
mod handle;
mod job;
mod loader;
mod logprobs;
mod meter;
mod options;
mod places;
mod residency;
mod sampler;
mod sampling;
mod scoring;
mod sequence;
mod trace;
mod worker;

pub use constraint::Constraint;
pub use demand::{demand, device_bytes};
pub use error::Error;
pub use handle::Engine;
pub use job::{EndReason, Event, GenerateJob, Lease, ScoreJob, Scores};
pub use logprobs::{Logprobs, MAX_TOP_LOGPROBS};
pub use meter::Usage;
pub use options::{EngineInfo, EngineOptions, ResidentAdapter};
pub use sampling::Sampling;
pub use tailor_models::Compute;
