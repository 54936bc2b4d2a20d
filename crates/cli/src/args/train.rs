//! `tailor train` and `tailor job …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{RecipeFlags, VersionedName};

/// Everything that can be set is in the job file; the flags are what people change most, and win over it.
#[derive(Debug, Args)]
#[command(
    override_usage = "tailor train -f FILE [OPTIONS]\n       tailor train --base BASE --dataset NAME[@VERSION] --adapter NAME [OPTIONS]"
)]
#[command(after_help = "Examples:\n  \
    tailor train --base tiny-t5 --dataset grammar --adapter grammar --epochs 2\n  \
    tailor train -f job.yaml --seed 7\n  \
    tailor train --schema > job.schema.json      for your editor: # yaml-language-server: $schema=job.schema.json")]
pub struct Train {
    /// Job file in YAML or JSON: base, dataset, adapter, lora, train, evaluate, stop …
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Print the JSON Schema of job files, and do nothing else.
    #[arg(long)]
    pub schema: bool,
    /// A registered base: `tailor base list`.
    #[arg(long, required_unless_present_any = ["file", "schema"])]
    pub base: Option<String>,
    /// name or name@version
    #[arg(long, required_unless_present_any = ["file", "schema"])]
    pub dataset: Option<VersionedName>,
    /// Name under which the result is published.
    #[arg(long, required_unless_present_any = ["file", "schema"])]
    pub adapter: Option<String>,
    #[command(flatten)]
    pub recipe: RecipeFlags,
    /// The update's strength is alpha over the rank; 32.
    #[arg(long, allow_negative_numbers = true)]
    pub alpha: Option<f32>,
    /// Share of each layer's inputs left out in training; 0.
    #[arg(long, allow_negative_numbers = true)]
    pub dropout: Option<f32>,
    /// Module name endings, e.g. q_proj,v_proj; every linear layer but the head when absent.
    #[arg(long, value_delimiter = ',')]
    pub targets: Vec<String>,
    /// The highest, after the warm-up; 0.002.
    #[arg(long, visible_alias = "lr", allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,
    /// Stop when the mean loss of the last 20 steps is at most this.
    #[arg(long, allow_negative_numbers = true)]
    pub target_loss: Option<f64>,
    /// Decides the order of rows, the first values and dropout.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Longest answer when held-out rows are predicted.
    #[arg(long)]
    pub max_new_tokens: Option<u32>,
    /// Held-out rows to predict: the first 1000 unless given; 0 means all.
    #[arg(long)]
    pub max_validation_rows: Option<u32>,
    /// The same key creates the job once, however often it is sent.
    #[arg(long)]
    pub idempotency_key: Option<String>,
    /// Return at once with the job's id.
    #[arg(long)]
    pub detach: bool,
}

#[derive(Debug, Subcommand)]
pub enum Job {
    /// Jobs, newest first
    List,
    /// One job: state, settings, last step, metrics
    Show { id: String },
    /// Follow a job to its end
    Watch {
        id: String,
        /// Sequence number to begin at.
        #[arg(long, default_value_t = 1)]
        from: u64,
    },
    /// Set a job aside; its worker saves it and is free for others
    Pause { id: String },
    /// Let a paused job go on from where it was, to the same result
    Resume { id: String },
    /// Stop a job between two steps
    Cancel { id: String },
    /// What a job has saved to go on from, newest first
    Checkpoints { id: String },
    /// What base and adapter answered to the held-out rows, beside the answers that were hidden from training
    ///
    /// What an answer has too much is marked [-so-], what it lacks {+so+}; colours where there is a terminal.
    #[command(after_help = "Example:\n  tailor job predictions 01k… --wrong --limit 20")]
    Predictions {
        id: String,
        /// Only rows that the adapter answers wrongly.
        #[arg(long)]
        wrong: bool,
        /// Only rows that base and adapter answer differently.
        #[arg(long)]
        changed: bool,
        /// At most this many rows; 0 means all.
        #[arg(long, default_value_t = 0)]
        limit: u32,
    },
    /// Draw losses, learning rate and gradient norm, for a report
    #[command(after_help = "Example:\n  tailor job plot 01k… -o loss.svg")]
    Plot {
        id: String,
        /// FILE.svg or FILE.png
        #[arg(short = 'o', long = "output", value_name = "FILE")]
        file: PathBuf,
    },
    /// Write a TensorBoard event file, following the job to its end
    #[command(after_help = "Example:\n  tailor job tensorboard 01k… runs & tensorboard --logdir runs")]
    Tensorboard {
        id: String,
        /// The run is written to DIR/ID.
        dir: PathBuf,
        /// Write what has happened until now, and end.
        #[arg(long)]
        no_follow: bool,
    },
}
