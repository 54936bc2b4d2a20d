//! `tailor adapter …`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{ByteSize, VersionedName};

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
    Versions {
        name: String,
        /// Deleted versions too.
        #[arg(long)]
        deleted: bool,
    },
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
    /// What an alias demands of versions
    #[command(subcommand)]
    Policy(super::Policy),
    /// Approve a version; counts for policies that demand approvals, unless you published it
    Approve {
        name: String,
        version: u64,
        /// Only for this alias; by default for all.
        #[arg(long, default_value = "", hide_default_value = true)]
        alias: String,
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
    /// Delete a version; `undelete` brings it back for a while (registry.undelete_ms, a week)
    ///
    /// Its number is never given again. What an alias points to cannot be deleted.
    #[command(after_help = "Example:\n  tailor adapter rm grammar@3 --why 'trained on the wrong rows'")]
    Rm {
        /// name@version
        reference: VersionedName,
        #[arg(long, default_value = "")]
        why: String,
    },
    /// Take a deletion back
    Undelete {
        /// name@version
        reference: VersionedName,
        #[arg(long, default_value = "")]
        why: String,
    },
    /// Say which versions `gc` keeps; without any rule, show the rules in force
    ///
    /// A version that any rule keeps stays, and so does what an alias points to or would point to after a rollback.
    #[command(after_help = "Examples:\n  \
        tailor adapter keep grammar --last 10 --days 90 --tag release\n  \
        tailor adapter keep grammar --all")]
    Keep(Keep),
    /// Delete what no rule keeps, and collect bytes that nothing refers to
    ///
    /// Two phases: what is garbage now is marked, and swept by a run after registry.collect_grace_ms (a day). It may be run and
    /// broken off at any time, beside publishers.
    Gc {
        /// Say what would be done and do nothing.
        #[arg(long)]
        dry_run: bool,
        #[arg(long, default_value = "")]
        why: String,
    },
    /// What adapters, bases and the whole store take
    Usage,
    /// Who did what: the audit log, one JSON document a line, each with the sha256 of the one before it
    #[command(after_help = "Example:\n  tailor adapter audit -o audit.jsonl")]
    Audit {
        /// The first entry wanted.
        #[arg(long, default_value_t = 1)]
        from: u64,
        /// Into this file instead of to the terminal.
        #[arg(short = 'o', long = "output", value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Read the whole store and name every blob, version and record that is not as it was written
    Verify,
    /// Write a PEFT folder, or a GGUF file for llama.cpp to put onto its base
    ///
    /// A GGUF file holds A and B of the linear layers, with one alpha. Where layers differ in rank or scale, what alpha cannot
    /// say is multiplied into B. DoRA, biases and modules_to_save are refused: merge those.
    #[command(after_help = "Examples:\n  \
        tailor adapter export grammar@production ./grammar-peft                 loads with peft\n  \
        tailor adapter export grammar@production ./grammar-oci --format oci      oras cp --from-oci-layout …, skopeo copy oci:…\n  \
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
        tailor adapter merge grammar@production --register corrected          a base of the registry\n  \
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
        /// An SPDX expression, e.g. Apache-2.0.
        #[arg(long, default_value = "")]
        license: String,
        /// The commit of the code that trained it.
        #[arg(long, default_value = "")]
        commit: String,
        /// A word to find it by; may be given several times.
        #[arg(long = "tag", value_name = "TAG")]
        tags: Vec<String>,
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
pub struct Keep {
    pub name: String,
    /// Keep the newest so many.
    #[arg(long)]
    pub last: Option<u64>,
    /// Keep whatever is younger.
    #[arg(long)]
    pub days: Option<u64>,
    /// Keep whatever bears this tag; may be given several times.
    #[arg(long = "tag", value_name = "TAG")]
    pub tags: Vec<String>,
    /// Take the rules away: keep all.
    #[arg(long, conflicts_with_all = ["last", "days", "tags"])]
    pub all: bool,
    #[arg(long, default_value = "")]
    pub why: String,
}

#[derive(Debug, Args)]
pub struct Export {
    /// name, name@version or name@alias
    pub reference: String,
    /// A new or empty folder, or a new file with --format gguf.
    pub dir: PathBuf,
    #[arg(long, default_value = "peft", value_parser = ["peft", "gguf", "oci"])]
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
    #[arg(required_unless_present = "register")]
    pub dir: Option<PathBuf>,
    /// Instead of a folder here: at the registry, as a base of this name, which serves and trains as any other.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["dir", "format", "shard_size"])]
    pub register: Option<String>,
    #[arg(long, default_value = "folder", value_parser = ["folder", "gguf"])]
    pub format: String,
    /// Type of the weights; f32 loses nothing. [default: bf16; with --register the base's own]
    #[arg(long, value_parser = ["bf16", "f16", "f32"])]
    pub dtype: Option<String>,
    /// Put the linear weights in 4 bits again, from --dtype; not with --format gguf.
    #[arg(long, value_parser = ["nf4", "nf4-single", "fp4"])]
    pub quant: Option<String>,
    /// Largest tensor file of a folder, e.g. 500MB or 5GB. A 4-bit folder and GGUF have one file.
    #[arg(long, default_value = "5GB")]
    pub shard_size: ByteSize,
}

impl Merge {
    /// Where the folder or file goes, where one is wanted.
    pub fn dir(&self) -> &Path {
        self.dir.as_deref().unwrap_or(Path::new(""))
    }

    /// The type of what is written here.
    pub fn dtype(&self) -> &str {
        self.dtype.as_deref().unwrap_or("bf16")
    }
}
