//! The words of the command line, and the help that teaches them.

mod adapter;
mod base;
mod dataset;
mod hub;
mod plan;
mod policy;
mod recipe;
mod rollout;
mod train;
mod values;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::adapter::{Adapter, Compress, Export, Keep, Merge};
pub use self::base::Base;
pub use self::dataset::{Dataset, Push};
pub use self::hub::Hub;
pub use self::plan::Plan;
pub use self::policy::{Policy, SetPolicy};
pub use self::recipe::RecipeFlags;
pub use self::rollout::{Rollout, SetRollout};
pub use self::train::{Job, Train};
pub use self::values::{ByteSize, VersionedName};

#[derive(Debug, Parser)]
#[command(
    name = "tailor",
    version,
    about = "Adapt a large language model to your own data: dataset in, 4-bit base, LoRA trained on it, versioned and served",
    after_help = "A first walk:\n  \
        tailor demo                                         the whole loop on shipped data, in minutes\n  \
        tailor up &                                         all four services on this machine\n  \
        tailor base add bases/tiny-t5 --name tiny-t5        quantise a Hugging Face folder once\n  \
        tailor dataset push data/grammar.csv --name grammar --target 'expected text'\n  \
        tailor train --base tiny-t5 --dataset grammar --adapter grammar\n  \
        tailor adapter set-alias grammar production 1\n  \
        tailor generate --adapter grammar@production 'She go to school every day.'\n\n\
        Environment: TAILOR_DATASET_URL, TAILOR_TRAINER_URL, TAILOR_REGISTRY_URL, TAILOR_GATEWAY_URL, TAILOR_TOKEN."
)]
pub struct Cli {
    /// Print JSON instead of tables; one document, or one a line where results stream.
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub json: bool,
    /// Folder of the embedded system (`tailor up`, `tailor demo`).
    #[arg(long, global = true, help_heading = "Everywhere", default_value = ".tailor", env = "TAILOR_STATE")]
    pub state: PathBuf,
    /// Settings in TOML; `TAILOR__SECTION__KEY` in the environment wins over it.
    #[arg(long, global = true, help_heading = "Everywhere", env = "TAILOR_CONFIG")]
    pub config: Option<PathBuf>,
    /// What to log to stderr, e.g. info or info,tailor_trainer=debug.
    #[arg(long, global = true, help_heading = "Everywhere", default_value = "warn", env = "TAILOR_LOG")]
    pub log: String,
    #[arg(long, global = true, env = "TAILOR_DATASET_URL", hide_env_values = true, help_heading = "Services")]
    pub dataset_url: Option<String>,
    #[arg(long, global = true, env = "TAILOR_TRAINER_URL", hide_env_values = true, help_heading = "Services")]
    pub trainer_url: Option<String>,
    #[arg(long, global = true, env = "TAILOR_REGISTRY_URL", hide_env_values = true, help_heading = "Services")]
    pub registry_url: Option<String>,
    #[arg(long, global = true, env = "TAILOR_GATEWAY_URL", hide_env_values = true, help_heading = "Services")]
    pub gateway_url: Option<String>,
    /// Sent as `authorization: Bearer …`.
    #[arg(long, global = true, env = "TAILOR_TOKEN", hide_env_values = true, help_heading = "Services")]
    pub token: Option<String>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run all four services in this process; prints their addresses
    Up(Up),
    /// The whole loop on the shipped data and base, before and after shown
    Demo(Demo),
    /// Rows of (input, expected output): push, look, remove
    #[command(subcommand)]
    Dataset(Dataset),
    /// Base models, quantised once
    #[command(subcommand)]
    Base(Base),
    /// Models fetched from a hub: look, clear away
    #[command(subcommand)]
    Hub(Hub),
    /// What a job would take: memory, time, cost, and where it fits
    Plan(Plan),
    /// Train an adapter and watch it
    Train(Train),
    /// Training jobs
    #[command(subcommand)]
    Job(Job),
    /// Adapter versions and aliases
    #[command(subcommand)]
    Adapter(Adapter),
    /// A new version behind an alias, for a share of the callers first
    #[command(subcommand)]
    Rollout(Rollout),
    /// Generate text, streaming
    Generate(Generate),
    /// Log-probability of each token of a text
    Score(Score),
    /// Print a completion script: tailor completions bash > /etc/bash_completion.d/tailor
    Completions { shell: clap_complete::Shell },
}

impl Command {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Up(_) => "up",
            Self::Demo(_) => "demo",
            Self::Dataset(_) => "dataset",
            Self::Base(_) => "base",
            Self::Hub(_) => "hub",
            Self::Plan(_) => "plan",
            Self::Train(_) => "train",
            Self::Job(_) => "job",
            Self::Adapter(_) => "adapter",
            Self::Rollout(_) => "rollout",
            Self::Generate(_) => "generate",
            Self::Score(_) => "score",
            Self::Completions { .. } => "completions",
        }
    }
}

#[derive(Debug, Args)]
pub struct Up {
    /// First of four ports: dataset, trainer, registry, gateway. 0 finds free ones.
    #[arg(long, default_value_t = 50051)]
    pub port: u16,
    /// Address to bind.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
}

#[derive(Debug, Args)]
pub struct Demo {
    /// Which shipped base to adapt.
    #[arg(long, value_enum, default_value_t = DemoBase::TinyT5)]
    pub base: DemoBase,
    /// Folder with `bases/` and `data/`; found from the current folder by default.
    #[arg(long)]
    pub assets: Option<PathBuf>,
    /// Passes over the training rows; fewer for a quick look, by default as many as the base needs.
    #[arg(long)]
    pub epochs: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DemoBase {
    TinyT5,
    TinyLlama,
}

impl DemoBase {
    pub fn name(self) -> &'static str {
        match self {
            Self::TinyT5 => "tiny-t5",
            Self::TinyLlama => "tiny-llama",
        }
    }
}

#[derive(Debug, Args)]
pub struct Generate {
    /// What the user types; the templates of adapter and base are applied.
    pub prompt: String,
    #[arg(long)]
    pub base: Option<String>,
    /// name, name@version or name@alias
    #[arg(long)]
    pub adapter: Option<String>,
    #[arg(long, default_value_t = 128)]
    pub max_new_tokens: u32,
    /// 0 is greedy.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f32,
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub top_p: f32,
    #[arg(long, default_value_t = 0)]
    pub top_k: u32,
    /// Keeps tokens at least so likely as this share of the likeliest.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub min_p: f32,
    /// Above 1 makes what was said less likely.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub repetition_penalty: f32,
    /// A text that ends the answer; may be given several times.
    #[arg(long)]
    pub stop: Vec<String>,
    /// A file with the JSON schema that the answer follows.
    #[arg(long, conflicts_with = "regex")]
    pub json_schema: Option<std::path::PathBuf>,
    /// A pattern that the whole answer matches.
    #[arg(long)]
    pub regex: Option<String>,
    #[arg(long)]
    pub seed: Option<u64>,
    /// Take the prompt as it is, no template.
    #[arg(long)]
    pub raw: bool,
    /// Overrides the adapter's prompt template.
    #[arg(long)]
    pub template: Option<String>,
    /// Whom the answer is for: in a rollout the same session, user or tenant meets the same version.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub session: String,
    #[arg(long, default_value = "", hide_default_value = true)]
    pub user: String,
    #[arg(long, default_value = "", hide_default_value = true)]
    pub tenant: String,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["text", "token_ids"]))]
pub struct Score {
    #[arg(long)]
    pub base: Option<String>,
    /// name, name@version or name@alias
    #[arg(long)]
    pub adapter: Option<String>,
    /// The encoder's input for T5; a prefix for a decoder.
    #[arg(long)]
    pub prompt: Option<String>,
    #[arg(long, value_delimiter = ',', conflicts_with = "prompt")]
    pub prompt_ids: Vec<u32>,
    #[arg(long)]
    pub text: Option<String>,
    #[arg(long, value_delimiter = ',')]
    pub token_ids: Vec<u32>,
}
