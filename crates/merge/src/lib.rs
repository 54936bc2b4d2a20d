//! A base and an adapter as one Hugging Face folder.
//!
//! What an adapter does to a linear layer (crates/models/src/change.rs) is put into its weight: W' = g·(W + s·B·A), with
//! g = 1 but for DoRA. W are the dequantised weights, rounded to the type that the base computes in: those that the adapter
//! was trained against, not the original ones. The sums are made in f32; what is written is rounded once, and
//! [`MergeReport`] says what that rounding took from the update.
//!
//! One tensor is worked on at a time, a few rows of it in memory, straight from the mapped base. The folder appears whole
//! or not at all. No tensor library.

mod biases;
mod difference;
mod error;
mod folder;
mod plan;
mod shards;
mod weight;

pub use difference::Difference;
pub use error::{Error, Result};
pub use folder::{MergeOptions, MergeReport, Progress, Stage, merge_folder};
