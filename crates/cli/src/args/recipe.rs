//! The settings of a job that people change most, as flags. They win over the job file.

use clap::Args;

#[derive(Debug, Default, Args)]
pub struct RecipeFlags {
    /// Rows of A and columns of B; 16.
    #[arg(long)]
    pub rank: Option<u32>,
    /// Passes over the training rows; 3.
    #[arg(long, allow_negative_numbers = true)]
    pub epochs: Option<f64>,
    /// Optimizer steps at most.
    #[arg(long)]
    pub max_steps: Option<u64>,
    /// Rows in one optimizer step.
    #[arg(long)]
    pub batch: Option<u32>,
    /// Rows in one forward pass; 0 finds the most that fit into memory.
    #[arg(long)]
    pub micro_batch: Option<u32>,
    /// Workers that train the job together, each a share of every batch; 1.
    #[arg(long)]
    pub ranks: Option<u32>,
    /// Longest row; longer ones are left out and counted.
    #[arg(long)]
    pub max_tokens: Option<u32>,
}
