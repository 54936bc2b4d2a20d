//! Generation and scoring for many adapters on one resident 4-bit base.
//!
//! [`Engine`] is an async handle; one named OS thread owns the model and everything on its device. Sequences with different
//! adapters are decoded in one step (continuous batching): they join after their prompt is read and leave when they end,
//! fail, or nobody listens any more. One of them failing hurts no other.
//!
//! ```text
//! Engine ──commands (bounded)──▶ thread: take commands → score one → admit → step → free adapters ─┐
//!   ▲                                ▲                                                             │
//!   └──events, one channel a job─────┴─────────────────────────────────────────────────────────────┘
//! ```

mod batch;
mod error;
mod handle;
mod job;
mod options;
mod residency;
mod sampling;
mod score;
mod sequence;
mod worker;

pub use error::Error;
pub use handle::Engine;
pub use job::{EndReason, Event, GenerateJob, ScoreJob};
pub use options::{EngineInfo, EngineOptions, ResidentAdapter};
pub use sampling::Sampling;
pub use tailor_models::Compute;
