//! The words of the command line, and the help that teaches them.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

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
    #[arg(long, global = true)]
    pub json: bool,
    /// Folder of the embedded system (`tailor up`, `tailor demo`).
    #[arg(long, global = true, default_value = ".tailor", env = "TAILOR_STATE")]
    pub state: PathBuf,
    /// Settings in TOML; `TAILOR__SECTION__KEY` in the environment wins over it.
    #[arg(long, global = true, env = "TAILOR_CONFIG")]
    pub config: Option<PathBuf>,
    /// What to log to stderr, e.g. info or info,tailor_trainer=debug.
    #[arg(long, global = true, default_value = "warn", env = "TAILOR_LOG")]
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
    /// Train an adapter and watch it
    Train(Train),
    /// Training jobs
    #[command(subcommand)]
    Job(Job),
    /// Adapter versions and aliases
    #[command(subcommand)]
    Adapter(Adapter),
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
            Self::Train(_) => "train",
            Self::Job(_) => "job",
            Self::Adapter(_) => "adapter",
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

#[derive(Debug, Subcommand)]
pub enum Dataset {
    /// Upload a CSV or JSONL file; rows are checked, balanced and split
    ///
    /// Rows are of one kind: input and expected output; conversations (JSONL, a list of messages that the assistant ends);
    /// or preferences (a prompt, a chosen and a rejected answer).
    #[command(
        after_help = "Examples:\n  tailor dataset push data/grammar.csv --name grammar --id id --input text \\\n    \
        --target 'expected text' --label language --template 'Correct the grammar: {input}'\n  \
        tailor dataset push chats.jsonl --name chats --messages messages\n  \
        tailor dataset push pairs.csv --name taste --input prompt --chosen better --rejected worse"
    )]
    Push(Box<Push>),
    /// Every dataset's latest version
    List,
    /// One dataset
    Show { name: VersionedName },
    /// Rows as the model will see them: template applied, tokens, which count in the loss
    Preview {
        name: VersionedName,
        /// Show token ids as this base's tokenizer gives them.
        #[arg(long)]
        base: Option<String>,
        #[arg(long, default_value_t = 3)]
        rows: u32,
        /// Which tokens count: the last answer, all that the assistant says, or all.
        #[arg(long, default_value = "completion", requires = "base", value_parser = loss_modes())]
        loss_on: String,
    },
    /// What became of the rows: kept, dropped by line and reason, balance, lengths
    Report { name: VersionedName },
    /// Delete a dataset, all versions
    Rm { name: String },
}

#[derive(Debug, Args)]
pub struct Push {
    pub file: PathBuf,
    #[arg(long)]
    pub name: String,
    /// csv or jsonl; by the file's ending when absent.
    #[arg(long)]
    pub format: Option<String>,
    /// What the rows are; told by the columns when absent.
    #[arg(long, value_parser = dataset_kinds())]
    pub kind: Option<String>,
    /// Column of the input or prompt; found by its usual names when absent, as the others are.
    #[arg(long)]
    pub input: Option<String>,
    /// Column of the expected output.
    #[arg(long)]
    pub target: Option<String>,
    /// Column of a conversation's messages.
    #[arg(long)]
    pub messages: Option<String>,
    /// Column of the better of two answers.
    #[arg(long)]
    pub chosen: Option<String>,
    /// Column of the worse one.
    #[arg(long)]
    pub rejected: Option<String>,
    #[arg(long)]
    pub id: Option<String>,
    /// Column whose values are balanced.
    #[arg(long)]
    pub label: Option<String>,
    /// How an input becomes a prompt.
    #[arg(long, default_value = "{input}")]
    pub template: String,
    /// Share of rows whose targets are hidden from training.
    #[arg(long, default_value_t = 0.1, allow_negative_numbers = true)]
    pub validation: f64,
    /// No label keeps more than this many times the rarest one's rows; 0 switches balancing off.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub max_label_ratio: f64,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Make the next version if the name exists with other content.
    #[arg(long)]
    pub new_version: bool,
}

#[derive(Debug, Subcommand)]
pub enum Base {
    /// Quantise a model and register it: a Hugging Face folder, or a hub's id as google/mt5-small
    ///
    /// An id that is no folder here is fetched from the hub: config, tokenizer and safetensors only, resumed if it broke
    /// off, verified, kept under `.tailor/hub`. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean to
    /// Hugging Face's own tools.
    Add {
        /// Folder with config.json, tokenizer.json and safetensors; or OWNER/NAME on the hub.
        source: String,
        #[arg(long)]
        name: String,
        /// Branch, tag, commit or refs/pr/NUMBER on the hub; main by default.
        #[arg(long)]
        revision: Option<String>,
        /// Take from the cache what was fetched before, and never ask the hub.
        #[arg(long)]
        offline: bool,
        /// How the linear weights are kept. docs/quantisation.md has what each code costs.
        #[arg(long, default_value = "nf4", value_parser = quant_codes())]
        quant: String,
        /// Type of the arithmetic.
        #[arg(long, default_value = "bf16", value_parser = ["bf16", "f32"])]
        dtype: String,
    },
    /// Registered bases
    List,
}

/// Everything that can be set is in the job file; the flags are what people change most, and win over it.
#[derive(Debug, Args)]
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
    #[arg(long, required_unless_present_any = ["file", "schema"])]
    pub base: Option<String>,
    /// name or name@version
    #[arg(long, required_unless_present_any = ["file", "schema"])]
    pub dataset: Option<VersionedName>,
    /// Name under which the result is published.
    #[arg(long, required_unless_present_any = ["file", "schema"])]
    pub adapter: Option<String>,
    #[arg(long)]
    pub rank: Option<u32>,
    #[arg(long, allow_negative_numbers = true)]
    pub alpha: Option<f32>,
    #[arg(long, allow_negative_numbers = true)]
    pub dropout: Option<f32>,
    /// Module name endings, e.g. q_proj,v_proj; every linear layer but the head when absent.
    #[arg(long, value_delimiter = ',')]
    pub targets: Vec<String>,
    #[arg(long, visible_alias = "lr", allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,
    #[arg(long, allow_negative_numbers = true)]
    pub epochs: Option<f64>,
    #[arg(long)]
    pub max_steps: Option<u64>,
    /// Rows in one optimizer step.
    #[arg(long)]
    pub batch: Option<u32>,
    /// Rows in one forward pass; 0 finds the most that fit into memory.
    #[arg(long)]
    pub micro_batch: Option<u32>,
    /// Longest row; longer ones are left out and counted.
    #[arg(long)]
    pub max_tokens: Option<u32>,
    /// Stop when the mean loss of the last 20 steps is at most this.
    #[arg(long, allow_negative_numbers = true)]
    pub target_loss: Option<f64>,
    #[arg(long)]
    pub seed: Option<u64>,
    /// Longest answer when held-out rows are predicted.
    #[arg(long)]
    pub max_new_tokens: Option<u32>,
    /// Held-out rows to predict; 0 means all.
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
    /// Stop a job between two steps
    Cancel { id: String },
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

#[derive(Debug, Subcommand)]
pub enum Adapter {
    /// Adapters with their newest version and aliases
    List,
    /// One version: lineage, digests, metrics
    Show {
        /// name, name@version or name@alias
        reference: String,
    },
    /// Every version of an adapter
    Versions { name: String },
    /// Point an alias at a version
    SetAlias {
        name: String,
        alias: String,
        version: u64,
        /// Move only if the alias points here now (0: only if it does not exist).
        #[arg(long)]
        expect: Option<u64>,
        #[arg(long, default_value = "")]
        why: String,
    },
    /// Point an alias back at what it was before
    Rollback {
        name: String,
        alias: String,
        #[arg(long, default_value = "")]
        why: String,
    },
    /// Every move of an alias, newest first
    History { name: String, alias: String },
    /// Write a PEFT folder, or a GGUF file for llama.cpp to put onto its base
    ///
    /// A GGUF file holds A and B of the linear layers, with one alpha. Where layers differ in rank or scale, what alpha cannot
    /// say is multiplied into B. DoRA, biases and modules_to_save are refused: merge those.
    #[command(after_help = "Examples:\n  \
        tailor adapter export grammar@production ./grammar-peft                 loads with peft\n  \
        tailor adapter export grammar@production grammar.gguf --format gguf     llama-cli -m base.gguf --lora grammar.gguf")]
    Export(Export),
    /// Write base and adapter as one Hugging Face folder or GGUF file, for programs that take no adapters
    ///
    /// The adapter goes into the dequantised weights that it was trained against. What the rounding to --dtype, or to 4 bits
    /// again, takes from the update is said at the end, with the tensor that lost most.
    ///
    /// --format gguf writes one file for llama.cpp: Llama, Mistral, Qwen2, Qwen3 and Gemma 1 to 3. It has the tokenizer and the
    /// chat template in it. For fewer bits give that file to llama.cpp's llama-quantize. The merged folder lies beside the file
    /// while it is written, so that twice the room is needed.
    #[command(after_help = "Examples:\n  \
        tailor adapter merge grammar@production ./grammar-merged              16 bit, loads with transformers\n  \
        tailor adapter merge grammar@production ./grammar-nf4 --quant nf4     4 bits again, loads with bitsandbytes\n  \
        tailor adapter merge grammar@production grammar.gguf --format gguf    llama-cli -m grammar.gguf")]
    Merge(Merge),
    /// Publish a PEFT folder as the next version
    Import {
        dir: PathBuf,
        #[arg(long)]
        name: String,
        /// The base it was made for.
        #[arg(long)]
        base: String,
        /// How an input becomes a prompt.
        #[arg(long, default_value = "{input}")]
        template: String,
    },
    /// What the ranks of each layer's update hold: singular values, effective rank, energy
    ///
    /// Effective rank is how many singular values are really used (exp of their entropy); `for 99 %` is the least rank that
    /// keeps 99 % of the energy, the sum of their squares. --json has every singular value.
    #[command(after_help = "Example:\n  tailor adapter spectrum grammar@production -o spectrum.svg")]
    Spectrum {
        /// name, name@version or name@alias
        reference: String,
        /// Draw the energy kept over the rank into this SVG or PNG file.
        #[arg(short = 'o', long = "output", value_name = "FILE")]
        plot: Option<PathBuf>,
    },
    /// Publish a version of lower rank, with the energy and the scores that it lost
    ///
    /// The largest singular values of each layer's update are kept. Both versions then answer held-out rows of the dataset
    /// that the adapter was trained on; the scores stand in the new version's metrics and notes. To be asked, the new one
    /// is published as NAME.candidate first. DoRA adapters are refused: their magnitudes depend on the whole update.
    #[command(after_help = "Examples:\n  tailor adapter compress grammar@3 --rank 4\n  \
                      tailor adapter compress grammar --energy 0.99 --as grammar-small --rows 500")]
    Compress(Compress),
    /// How alike two versions are, layer by layer
    ///
    /// Overlap is ‖U1ᵀU2‖²/min(r1, r2) of the spaces that the updates write to (outputs) and read from (inputs): 1 if one
    /// contains the other, 0 if they are orthogonal; random ones have what stands under (chance). Distance is ‖Δ1−Δ2‖/‖Δ1‖.
    #[command(after_help = "Example:\n  tailor adapter compare grammar@1 grammar@2")]
    Compare {
        /// name, name@version or name@alias
        first: String,
        second: String,
    },
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("keep").required(true).args(["rank", "energy"]))]
pub struct Compress {
    /// name, name@version or name@alias
    pub reference: String,
    /// Keep this rank in every layer.
    #[arg(long)]
    pub rank: Option<usize>,
    /// Keep in every layer the least rank that holds this share of its energy, e.g. 0.99.
    #[arg(long, allow_negative_numbers = true)]
    pub energy: Option<f64>,
    /// Publish under this name; by default as the same adapter's next version.
    #[arg(long = "as", value_name = "NAME")]
    pub name: Option<String>,
    /// Held-out rows that both versions answer, at most; 0 publishes without measuring.
    #[arg(long, default_value_t = 100)]
    pub rows: usize,
}

#[derive(Debug, Args)]
pub struct Export {
    /// name, name@version or name@alias
    pub reference: String,
    /// A new or empty folder, or a new file with --format gguf.
    pub dir: PathBuf,
    #[arg(long, default_value = "peft", value_parser = ["peft", "gguf"])]
    pub format: String,
    /// Type of A and B in a GGUF file; a folder has them as they were trained. [default: f32]
    #[arg(long, value_parser = ["bf16", "f16", "f32"])]
    pub dtype: Option<String>,
}

#[derive(Debug, Args)]
pub struct Merge {
    /// name, name@version or name@alias
    pub reference: String,
    /// A new or empty folder, or a new file with --format gguf; it is there whole or not at all.
    pub dir: PathBuf,
    #[arg(long, default_value = "folder", value_parser = ["folder", "gguf"])]
    pub format: String,
    /// Type of the weights; f32 loses nothing.
    #[arg(long, default_value = "bf16", value_parser = ["bf16", "f16", "f32"])]
    pub dtype: String,
    /// Put the linear weights in 4 bits again, from --dtype; in a folder only.
    #[arg(long, value_parser = ["nf4", "nf4-single", "fp4"])]
    pub quant: Option<String>,
    /// Largest tensor file of a folder, e.g. 500MB or 5GB. A 4-bit folder and GGUF have one file.
    #[arg(long, default_value = "5GB")]
    pub shard_size: ByteSize,
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
    #[arg(long)]
    pub seed: Option<u64>,
    /// Take the prompt as it is, no template.
    #[arg(long)]
    pub raw: bool,
    /// Overrides the adapter's prompt template.
    #[arg(long)]
    pub template: Option<String>,
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

/// What the rows of a dataset are.
fn dataset_kinds() -> PossibleValuesParser {
    [
        ("input-target", "An input and the expected output"),
        ("conversation", "JSONL: a list of messages (role, content) that the assistant ends"),
        ("preference", "A prompt, a chosen answer and a rejected one"),
    ]
    .map(|(name, help)| PossibleValue::new(name).help(help))
    .into()
}

/// As `train.loss_on` of a job.
fn loss_modes() -> PossibleValuesParser {
    [
        ("completion", "The last answer and its end token"),
        ("assistant", "Every turn of the assistant"),
        ("everything", "All tokens, the prompt's too; decoders only"),
    ]
    .map(|(name, help)| PossibleValue::new(name).help(help))
    .into()
}

/// The codes of a base, and when to take which.
fn quant_codes() -> PossibleValuesParser {
    [
        ("nf4", "NF4, scales in 8 bits: 4.13 bits a parameter. Unless there is a reason for another"),
        ("nf4-single", "NF4, scales in f32: 4.5 bits. For runtimes that cannot read nested scales"),
        ("fp4", "4-bit floats: 4.5 bits, and a larger error than NF4's. For runtimes that have no NF4"),
        ("uniform4", "16 equal steps a block: 5 bits. To compare with; only Tailor reads it"),
        ("none", "Left as it is, in 16 or 32 bits. For small models, and to see what 4 bits cost"),
    ]
    .map(|(name, help)| PossibleValue::new(name).help(help))
    .into()
}

/// `name` or `name@3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionedName {
    pub name: String,
    /// 0: the latest.
    pub version: u64,
}

impl std::fmt::Display for VersionedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.version {
            0 => f.write_str(&self.name),
            version => write!(f, "{}@{version}", self.name),
        }
    }
}

impl std::str::FromStr for VersionedName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((name, version)) = text.split_once('@') else {
            return Ok(Self { name: text.to_owned(), version: 0 });
        };
        match version.parse() {
            Ok(version) if version > 0 => Ok(Self { name: name.to_owned(), version }),
            _ => Err(format!("{version:?} is no version; write NAME or NAME@3")),
        }
    }
}

/// Bytes, as `5GB` says them: powers of 1000, as transformers counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
        let unit = match text[digits.len()..].trim().to_ascii_uppercase().as_str() {
            "" | "B" => Some(1),
            "KB" => Some(1_000),
            "MB" => Some(1_000_000),
            "GB" => Some(1_000_000_000),
            _ => None,
        };
        let bytes = unit.zip(digits.parse::<u64>().ok()).and_then(|(unit, count)| count.checked_mul(unit));
        match bytes {
            Some(bytes) if bytes > 0 => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is no size; write 500MB or 5GB")),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::builder::TypedValueParser as _;

    use super::*;

    #[test]
    fn every_code_that_the_help_offers_is_one_that_the_services_know() {
        let offered: Vec<String> =
            quant_codes().possible_values().expect("values").map(|value| value.get_name().to_owned()).collect();
        assert_eq!(offered, ["nf4", "nf4-single", "fp4", "uniform4", "none"]);
        for name in offered {
            let parsed = Cli::try_parse_from(["tailor", "base", "add", "folder", "--name", "base", "--quant", &name]);
            assert!(parsed.is_ok(), "{name}: {parsed:?}");
            assert_eq!(tailor_pb::convert::quant_code(&name).map(|code| code.as_str()), Ok(name.as_str()));
        }
    }
    #[test]
    fn sizes_are_counted_as_transformers_does() {
        for (text, bytes) in [("5GB", 5_000_000_000), ("500 mb", 500_000_000), ("12KB", 12_000), ("7", 7)] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "GB", "5TB", "0", "-1GB", "1.5GB", "99999999999GB"] {
            assert!(text.parse::<ByteSize>().is_err_and(|error| error.contains("500MB")), "{text}");
        }
    }
}
