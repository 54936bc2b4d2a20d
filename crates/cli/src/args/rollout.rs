//! `tailor rollout …`.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub enum Rollout {
    /// Begin a rollout behind an alias, or change the running one's shares
    ///
    /// The version is loaded and asked the golden prompt before its first caller. Callers are told apart by session, user or
    /// tenant, and stay where they are: raising the percent moves nobody back.
    #[command(after_help = "Examples:\n  \
                      tailor rollout set grammar production --canary 4 --percent 5\n  \
                      tailor rollout set grammar production --canary 4 --percent 50\n  \
                      tailor rollout set grammar production --canary 4 --percent 0 --shadow-percent 10 \\\n    \
                      --golden 'She go home.' --golden-expect 'She goes home.'")]
    Set(Box<SetRollout>),
    /// What runs behind an alias, and what this gateway has seen of both sides
    Status { name: String, alias: String },
    /// Send everybody back to what the alias points to
    Abort {
        name: String,
        alias: String,
        #[arg(long, default_value = "")]
        why: String,
    },
    /// Point the alias at the rollout's version
    Promote {
        name: String,
        alias: String,
        #[arg(long, default_value = "")]
        why: String,
    },
}

#[derive(Debug, Args)]
pub struct SetRollout {
    pub name: String,
    pub alias: String,
    /// The version to roll out.
    #[arg(long)]
    pub canary: u64,
    /// Of the callers, 0 to 100 in steps of 0.01.
    #[arg(long, allow_negative_numbers = true)]
    pub percent: f64,
    /// Of the stable version's answers: the canary answers too, is compared, and is not heard.
    #[arg(long, allow_negative_numbers = true)]
    pub shadow_percent: Option<f64>,
    /// tenant, session or user
    #[arg(long, default_value = "", hide_default_value = true)]
    pub sticky_by: String,
    /// What the version is asked before its first caller.
    #[arg(long)]
    pub golden: Option<String>,
    /// The answer that it must give.
    #[arg(long, requires = "golden", default_value = "", hide_default_value = true)]
    pub golden_expect: String,
    /// Requests that a side must have had before it is judged.
    #[arg(long, help_heading = "Automatic abort")]
    pub min_requests: Option<u32>,
    /// Of the canary's requests, those that may fail, e.g. 0.02.
    #[arg(long, help_heading = "Automatic abort", allow_negative_numbers = true)]
    pub max_error_rate: Option<f64>,
    /// 95th percentile of the canary's time over the stable version's, e.g. 1.5; 0 does not look.
    #[arg(long, help_heading = "Automatic abort", allow_negative_numbers = true)]
    pub max_latency_ratio: Option<f64>,
    /// How far the canary's mean reported score may lie under the stable version's.
    #[arg(long, help_heading = "Automatic abort", allow_negative_numbers = true)]
    pub max_quality_drop: Option<f64>,
    /// How far shadow answers may be from those given, 0 to 1.
    #[arg(long, help_heading = "Automatic abort", allow_negative_numbers = true)]
    pub max_shadow_distance: Option<f64>,
    #[arg(long, default_value = "")]
    pub why: String,
}
