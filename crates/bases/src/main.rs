//! `cargo xtask make-bases`: builds the tokenizers, pretrains both bases, writes their folders.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use tailor_bases::pretrain::{Progress, pretrain};
use tailor_bases::recipe::Recipe;
use tailor_models::Base;
use tailor_quant::Float;

const SNAPSHOT_STEPS: u64 = 500;

#[derive(Parser)]
#[command(about = "Pretrain the tiny bases and write them as Hugging Face folders")]
struct Arguments {
    /// The folder that gets one folder for each base.
    #[arg(long, default_value = "bases")]
    out: PathBuf,
    /// Only this base; both when left out.
    #[arg(long)]
    only: Option<Which>,
    /// Steps of training, for a quick try; the recipe's own number when left out.
    #[arg(long)]
    steps: Option<u64>,
    /// Threads of libtorch. The bytes of the weights depend on it.
    #[arg(long, default_value_t = 1)]
    threads: i32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    T5,
    Llama,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    tch::set_num_threads(arguments.threads);
    if arguments.only != Some(Which::Llama) {
        make(&Recipe::tiny_t5()?, &arguments)?;
    }
    if arguments.only != Some(Which::T5) {
        make(&Recipe::tiny_llama()?, &arguments)?;
    }
    Ok(())
}

fn make(recipe: &Recipe, arguments: &Arguments) -> Result<()> {
    let steps = arguments.steps.unwrap_or(recipe.steps);
    let folder = arguments.out.join(recipe.name);
    println!("{}: {steps} steps of {} examples, seed {}", recipe.name, recipe.batch, recipe.seed);
    let made = pretrain(recipe, steps, &mut |progress| {
        let Progress { base, step, loss, took } = progress;
        println!("{}: step {step}/{steps}, loss {loss:.4}, {:.0} s", recipe.name, took.as_secs_f64());
        // A run that breaks off leaves something to look at.
        if step % SNAPSHOT_STEPS == 0 { save(recipe, base, &folder) } else { Ok(()) }
    })?;
    save(recipe, &made.base, &folder)?;
    println!(
        "{}: {} parameters, loss {:.4} nats per token over {} target tokens, {:.0} s on {} thread(s); written to {}",
        recipe.name,
        made.base.parameter_count(),
        made.loss,
        made.target_tokens,
        made.took.as_secs_f64(),
        arguments.threads,
        folder.display()
    );
    Ok(())
}

fn save(recipe: &Recipe, base: &Base, folder: &Path) -> Result<()> {
    base.save_folder(folder, Float::Bf16)?;
    write(folder, "tokenizer.json", &recipe.tokenizer_json)?;
    write(folder, "tokenizer_config.json", &serde_json::to_string_pretty(&recipe.tokenizer_config)?)?;
    write(folder, "generation_config.json", &serde_json::to_string_pretty(&recipe.generation_config)?)
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, format!("{text}\n")).with_context(|| format!("{} cannot be written", path.display()))
}
