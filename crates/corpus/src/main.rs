//! Writes the shipped table, or sentences and pairs to look at.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tailor_corpus::rows::{self, Flaws};
use tailor_corpus::{Dialect, Generator, dictionary};

#[derive(Parser)]
#[command(about = "English sentences and their grammatical errors, from a seed")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The table `id,language,text,expected text`; the defaults give data/grammar.csv.
    Csv {
        #[arg(long, default_value_t = rows::SHIPPED_SEED)]
        seed: u64,
        /// Good rows; malformed rows and duplicates come on top.
        #[arg(long, default_value_t = rows::SHIPPED_ROWS)]
        rows: usize,
    },
    /// Correct sentences, one a line.
    Sentences {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 20)]
        count: usize,
    },
    /// Faulty sentence, correction and faults, parted by tabs.
    Pairs {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long, default_value_t = 20)]
        count: usize,
    },
    /// Word forms, one headword a line.
    Dictionary,
}

fn main() -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match Arguments::parse().command {
        Command::Csv { seed, rows } => out.write_all(&rows::csv(seed, rows, &Flaws::SHIPPED))?,
        Command::Sentences { seed, count } => {
            let mut generator = Generator::new(seed);
            for _ in 0..count {
                writeln!(out, "{}", generator.sentence().text)?;
            }
        }
        Command::Pairs { seed, count } => {
            let mut generator = Generator::new(seed);
            for _ in 0..count {
                let pair = generator.pair();
                writeln!(out, "{}\t{}\t{:?}", pair.text, pair.expected, pair.faults)?;
            }
        }
        Command::Dictionary => {
            for entry in dictionary::entries(Dialect::Us) {
                writeln!(out, "{entry}")?;
            }
        }
    }
    out.flush().context("the output could not be written")
}
