//! `tailor base …`.

use clap::Subcommand;
use clap::builder::{PossibleValue, PossibleValuesParser};

#[derive(Debug, Subcommand)]
pub enum Base {
    /// Quantise a model and register it: a Hugging Face folder, or a hub's id as google/mt5-small
    ///
    /// An id that is no folder here is fetched from the hub: config, tokenizer and safetensors only, resumed if it broke
    /// off, verified, kept under `.tailor/hub` until `tailor hub prune`. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what
    /// they mean to Hugging Face's own tools.
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

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use clap::builder::TypedValueParser as _;

    use super::*;
    use crate::args::Cli;

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
}
