//! `tailor dataset …`.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, Subcommand};

use super::VersionedName;

#[derive(Debug, Subcommand)]
pub enum Dataset {
    /// Upload a CSV, JSONL or Parquet file; rows are checked, balanced and split
    ///
    /// Rows are of one kind: input and expected output; conversations (a list of messages that the assistant ends; not in CSV);
    /// or preferences (a prompt, a chosen and a rejected answer: texts, or lists of messages, which CSV has not).
    #[command(
        after_help = "Examples:\n  tailor dataset push data/grammar.csv --name grammar --id id --input text \\\n    \
        --target 'expected text' --label language --template 'Correct the grammar: {input}'\n  \
        tailor dataset push chats.jsonl --name chats --messages messages\n  \
        tailor dataset push pairs.csv --name taste --input prompt --chosen better --rejected worse\n  \
        tailor dataset push s3://company/rows/train.parquet --name rows   # where dataset.import_from has s3://company"
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
    /// A file, or the address of one that the service reads from object storage.
    pub file: PathBuf,
    #[arg(long)]
    pub name: String,
    /// csv, jsonl or parquet; by the file's ending when absent.
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

/// What the rows of a dataset are.
fn dataset_kinds() -> PossibleValuesParser {
    [
        ("input-target", "An input and the expected output"),
        ("conversation", "A list of messages (role, content) that the assistant ends; not in CSV"),
        ("preference", "A prompt, a chosen answer and a rejected one: texts, or lists of messages, which CSV has not"),
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
