//! Tunes a shipped base on the shipped table without any service: for choosing the demo's settings.
//!
//! `cargo run --release -p tailor-bases --example tune -- bases/tiny-t5 --epochs 8`

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use tailor_corpus::{Pair, rows};
use tailor_domain::{LoraSpec, Recipe, StepMetrics, TrainSpec};
use tailor_models::{Base, Compute, LoadOptions};
use tailor_quant::{QuantOptions, quantize_folder};
use tailor_text::{ExampleBuilder, PromptTemplate, Tokenizer, metrics};
use tailor_train::{Observer, predict, train};

#[derive(Parser)]
struct Arguments {
    base: PathBuf,
    #[arg(long, default_value_t = 2_800)]
    train_rows: usize,
    #[arg(long, default_value_t = 300)]
    validation_rows: usize,
    #[arg(long, default_value_t = 16)]
    rank: u32,
    #[arg(long, default_value_t = 32.0)]
    alpha: f32,
    #[arg(long, default_value_t = 4e-3)]
    learning_rate: f64,
    #[arg(long, default_value_t = 0.0)]
    dropout: f32,
    #[arg(long, default_value_t = 8.0)]
    epochs: f64,
    #[arg(long, default_value_t = 32)]
    batch_rows: u32,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[arg(long, default_value_t = 2)]
    threads: i32,
    /// Compute in bf16 instead of f32.
    #[arg(long)]
    bf16: bool,
    /// Mistakes to show.
    #[arg(long, default_value_t = 5)]
    show: usize,
}

/// Prints every hundredth step.
struct Printer;

impl Observer for Printer {
    fn on_step(&mut self, step: &StepMetrics) {
        if step.step.is_multiple_of(100) {
            println!(
                "step {}/{} loss {:.4}, {:.0} tokens/s",
                step.step, step.total_steps, step.loss, step.tokens_per_second
            );
        }
    }

    fn should_stop(&mut self) -> bool {
        false
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    tch::set_num_threads(arguments.threads);
    let folder = tempfile::tempdir()?;
    let quantized = folder.path().join("base");
    quantize_folder(&arguments.base, &quantized, &QuantOptions::default(), &mut |_| {})?;
    let compute = if arguments.bf16 { Compute::Bf16 } else { Compute::F32 };
    let base = Base::load(&quantized, &LoadOptions { compute, ..LoadOptions::default() })?;
    let template = PromptTemplate::parse("Correct the grammar: {input}", None)?;
    let builder = ExampleBuilder::new(Tokenizer::open(&quantized)?, template, base.family())?;

    let pairs = rows::table(rows::SHIPPED_SEED, rows::SHIPPED_ROWS);
    let (validation, rest) = pairs.split_at(arguments.validation_rows);
    let lora =
        LoraSpec { rank: arguments.rank, alpha: arguments.alpha, dropout: arguments.dropout, ..LoraSpec::default() };
    let spec = TrainSpec {
        learning_rate: arguments.learning_rate,
        epochs: arguments.epochs,
        batch_rows: arguments.batch_rows,
        micro_batch_rows: arguments.batch_rows,
        seed: arguments.seed,
        ..TrainSpec::default()
    };
    let recipe = Recipe { lora, train: spec, ..Recipe::default() };
    let examples: Vec<_> = rest
        .iter()
        .take(arguments.train_rows)
        .map(|pair| builder.example(&pair.text, &pair.expected, recipe.train.max_tokens as usize))
        .collect::<Result<_, _>>()?;

    report("base", &answers(&base, None, &builder, validation)?, validation, 2);
    let started = Instant::now();
    let trained = train(&base, &recipe, &examples, "tiny", &mut Printer)?;
    println!(
        "trained {} steps in {:.0} s: {:?}",
        trained.summary.steps,
        started.elapsed().as_secs_f64(),
        trained.summary
    );
    let adapted = answers(&base, Some(&trained.adapter), &builder, validation)?;
    report("adapter", &adapted, validation, arguments.show);
    Ok(())
}

fn answers(
    base: &Base,
    adapter: Option<&tailor_peft::Adapter>,
    builder: &ExampleBuilder,
    pairs: &[Pair],
) -> Result<Vec<String>> {
    let prompts = pairs.iter().map(|pair| Ok(builder.prompt(&pair.text)?.ids)).collect::<Result<Vec<_>>>()?;
    let ids = predict(base, adapter, &prompts, 64, &mut |_, _| true)?;
    ids.iter().map(|ids| Ok(builder.tokenizer().decode(ids, true)?)).collect()
}

fn report(name: &str, answers: &[String], pairs: &[Pair], show: usize) {
    let wrong: Vec<(&String, &Pair)> =
        answers.iter().zip(pairs).filter(|(answer, pair)| **answer != pair.expected).collect();
    let copies = answers.iter().zip(pairs).filter(|(answer, pair)| **answer == pair.text).count();
    let gleu = answers.iter().zip(pairs).map(|(answer, pair)| metrics::gleu(answer, &pair.expected)).sum::<f64>();
    for (answer, pair) in wrong.iter().take(show) {
        println!("  {:?}\n  given    {}\n  expected {}\n  answer   {answer}", pair.faults, pair.text, pair.expected);
    }
    println!(
        "{name}: exact match {:.1} %, GLEU {:.3}, copies of the input {:.1} %",
        100.0 * (pairs.len() - wrong.len()) as f64 / pairs.len() as f64,
        gleu / pairs.len() as f64,
        100.0 * copies as f64 / pairs.len() as f64,
    );
}
