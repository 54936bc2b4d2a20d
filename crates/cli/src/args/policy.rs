//! `tailor adapter policy …` and `tailor adapter approve`.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum Policy {
    /// Say what an alias demands of versions from now on; replaces what it demanded before
    #[command(after_help = "Examples:\n  \
                      tailor adapter policy set grammar production --min exact_match=0.8 --max-drop exact_match=0.01\n  \
                      tailor adapter policy set grammar production --approvals 1 --same-base --serving vllm\n  \
                      tailor adapter policy set grammar production            demands nothing any more")]
    Set(Box<SetPolicy>),
    /// What an alias demands
    Show { name: String, alias: String },
    /// Whether a version would pass, gate by gate
    Check { name: String, alias: String, version: u64 },
}

#[derive(Debug, Args)]
pub struct SetPolicy {
    pub name: String,
    pub alias: String,
    /// The figure is at least so much.
    #[arg(long, value_name = "METRIC=VALUE", value_parser = bound)]
    pub min: Vec<(String, f64)>,
    /// The figure is at most so much.
    #[arg(long, value_name = "METRIC=VALUE", value_parser = bound)]
    pub max: Vec<(String, f64)>,
    /// The figure is not below the present version's by more than so much.
    #[arg(long, value_name = "METRIC=VALUE", value_parser = bound)]
    pub max_drop: Vec<(String, f64)>,
    /// The figure is not above the present version's by more than so much, e.g. for a loss.
    #[arg(long, value_name = "METRIC=VALUE", value_parser = bound)]
    pub max_rise: Vec<(String, f64)>,
    /// A signature that holds.
    #[arg(long)]
    pub signature: bool,
    /// So many approvals by others than the publisher.
    #[arg(long, default_value_t = 0)]
    pub approvals: u32,
    /// The base of the version that the alias points to now.
    #[arg(long)]
    pub same_base: bool,
    /// Able to be served by tailor or vllm; may be given twice.
    #[arg(long)]
    pub serving: Vec<String>,
    #[arg(long, default_value = "")]
    pub why: String,
}

fn bound(text: &str) -> Result<(String, f64), String> {
    let (metric, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not METRIC=VALUE"))?;
    let value = value.parse().map_err(|_| format!("{value:?} is no number"))?;
    Ok((metric.to_owned(), value))
}
