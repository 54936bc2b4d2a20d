//! `tailor hub …`.

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum Hub {
    /// Models that `tailor base add` has fetched, and when they were used last
    List,
    /// Remove fetched models: those that nobody has used for long, or the ones that are named
    ///
    /// A base that was added does not need its model any more. What is being fetched stays.
    #[command(
        after_help = "Examples:\n  tailor hub prune\n  tailor hub prune --unused-days 0\n  tailor hub prune google/mt5-small"
    )]
    Prune {
        /// OWNER/NAME; all that was fetched of it goes, however lately it was used.
        models: Vec<String>,
        /// Days without use after which a model goes.
        #[arg(long, default_value_t = 30, conflicts_with = "models")]
        unused_days: u64,
    },
}
