//! `tailor plan`.

use std::path::PathBuf;

use clap::Args;

use super::values::ByteSize;
use super::{RecipeFlags, VersionedName};

/// The job file of `tailor train`, and the flags of it that decide memory and time; no job is made.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tailor plan --base tiny-t5 --dataset grammar\n  \
    tailor plan -f job.yaml --price 2.50 --card 'my card=96GB'")]
pub struct Plan {
    /// Job file in YAML or JSON, as for `tailor train`.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// A registered base: `tailor base list`.
    #[arg(long, required_unless_present = "file")]
    pub base: Option<String>,
    /// name or name@version
    #[arg(long, required_unless_present = "file")]
    pub dataset: Option<VersionedName>,
    #[command(flatten)]
    pub recipe: RecipeFlags,
    /// What the machine costs an hour, in any currency.
    #[arg(long, value_name = "PRICE", allow_negative_numbers = true)]
    pub price: Option<f64>,
    /// A card to compare beside those of the table: NAME=SIZE, e.g. 'my card=96GB'.
    #[arg(long = "card", value_name = "NAME=SIZE", value_parser = card)]
    pub cards: Vec<(String, u64)>,
}

fn card(text: &str) -> Result<(String, u64), String> {
    let (name, size) = text.rsplit_once('=').ok_or("write NAME=SIZE, e.g. 'my card=96GB'")?;
    let size: ByteSize = size.parse()?;
    Ok((name.to_owned(), size.0))
}
