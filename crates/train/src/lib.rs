//! QLoRA training (arXiv 2305.14314): a frozen 4-bit base, a LoRA adapter in f32, and the loop that fits it to rows.
//!
//! [`train`] and [`predict`] run on the calling thread, which owns the device, and return when they are done; [`Session`] and
//! [`Predictor`] are the same turn by turn, for several jobs on one device. An
//! [`Observer`] sees every step and can end the run between two of them. A failure is an [`Error`], never a panic.
//!
//! One step: `batches` picks sequences of `rows`, `collate` pads them, `objective` lets the model make hidden states and
//! goes with `loss` forward through the output layer and backward through everything, `optimizer` clips and updates.
//! With several `ranks` each does so for its share of the batch, and the gradients are added up in between.

mod batches;
mod calibrate;
mod checkpoint;
mod collate;
mod error;
mod examples;
mod gradient;
mod init;
mod loss;
mod method;
mod micro_batch;
mod modules;
mod moments;
mod objective;
mod optimizer;
mod pissa;
mod predict;
mod prompt;
mod ranks;
mod rows;
mod schedule;
mod shuffle;
mod summary;
mod trainer;

pub use calibrate::{calibrate, device, host, threads};
pub use checkpoint::Checkpoint;
pub use error::Error;
pub use examples::{Examples, Shard};
pub use gradient::{Gradient, gradient};
pub use predict::{Predictor, Prompts, predict};
pub use ranks::Ranks;
pub use summary::{Observer, Outcome, Summary};
pub use tailor_text::{Example, Preference};
pub use tailor_torch::Meeting;
pub use trainer::{Session, Trained, resume, resume_among, train};
