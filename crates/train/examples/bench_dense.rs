//! Peak memory of a training step with and without 4-bit, same model, same rows, same LoRA.
//!
//! Each arm runs in a process of its own, so that one's peak is not the other's. The parent writes a random Llama-shaped
//! base once, quantises it, starts the arms and prints what they measured, the ratios, the hardware and the commit.
//!
//! What it shows: (1) the 4-bit base is resident in 4 bits; (2) a step on it grows the process by no more than a step on
//! the dense base does, plus one weight: the dequantised weights are not kept for the backward pass.
//!
//! `cargo run --release -p tailor-train --example bench_dense -- [--hidden 1024 --layers 12 --ffn 2816 --heads 16
//! --vocab 32000 --seq 256 --batch 1 --steps 3 --rank 16]`

mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tailor_domain::{EvaluateSpec, LoraSpec, QuantCode, Recipe, StepMetrics, TrainSpec};
use tailor_models::{Base, Compute, LoadOptions};
use tailor_quant::{QuantOptions, quantize_folder};
use tailor_testkit::{LlamaShape, TempDir};
use tailor_torch::Memory;
use tailor_train::{Example, Observer, train};

use support::{MIB, figures_of_child, hardware};

/// What is measured: how the base is kept, and in what type it computes.
const ARMS: [(&str, QuantCode, Compute); 4] = [
    ("dense f32", QuantCode::None, Compute::F32),
    ("NF4 f32", QuantCode::Nf4, Compute::F32),
    ("dense bf16", QuantCode::None, Compute::Bf16),
    ("NF4 bf16", QuantCode::Nf4, Compute::Bf16),
];

/// Settings by name, from `--name value`.
struct Settings(BTreeMap<String, String>);

impl Settings {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let known = [
            ("hidden", "1024"),
            ("layers", "12"),
            ("ffn", "2816"),
            ("heads", "16"),
            ("vocab", "32000"),
            ("seq", "256"),
            ("batch", "1"),
            ("steps", "3"),
            ("rank", "16"),
            ("arm", ""),
            ("folder", ""),
        ];
        let mut values: BTreeMap<_, _> = known.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            let name = argument.trim_start_matches("--");
            let value = arguments.next().with_context(|| format!("{argument} needs a value"))?;
            let Some(slot) = values.get_mut(name) else { bail!("unknown setting {argument}") };
            *slot = value;
        }
        Ok(Self(values))
    }

    fn number(&self, name: &str) -> Result<usize> {
        let text = &self.0[name];
        text.parse().with_context(|| format!("--{name} {text} is not a number"))
    }

    fn arguments(&self) -> impl Iterator<Item = String> {
        let set = self.0.iter().filter(|(_, value)| !value.is_empty());
        set.flat_map(|(name, value)| [format!("--{name}"), value.clone()])
    }
}

fn main() -> Result<()> {
    let settings = Settings::parse(std::env::args().skip(1))?;
    if settings.0["arm"].is_empty() { compare(&settings) } else { measure(&settings) }
}

/// One arm: load, train, print what was seen as `name value` lines.
fn measure(settings: &Settings) -> Result<()> {
    let (_, _, compute) = ARMS[settings.number("arm")?];
    let base = Base::load(Path::new(&settings.0["folder"]), &LoadOptions { compute, ..LoadOptions::default() })?;
    let loaded = Memory::now()?.resident_bytes;
    let (batch, seq, vocab) = (settings.number("batch")?, settings.number("seq")?, settings.number("vocab")?);
    let rows: Vec<Example> = (0..batch)
        .map(|row| {
            let ids = (0..seq).map(|at| ((row * 7919 + at * 104_729) % vocab) as u32).collect();
            Example::Decoder { ids, in_loss: vec![true; seq] }
        })
        .collect();
    let lora = LoraSpec { rank: settings.number("rank")? as u32, ..LoraSpec::default() };
    let steps = settings.number("steps")?;
    let spec = TrainSpec {
        batch_rows: batch as u32,
        micro_batch_rows: batch as u32,
        max_tokens: seq as u32,
        epochs: steps as f64,
        ..TrainSpec::default()
    };
    // From here the high-water mark is that of training, not of loading.
    let peak = tailor_torch::PeakMemory::reset()?;
    let mut last = Last::default();
    let evaluate = EvaluateSpec { tuning_fraction: 0.0, ..EvaluateSpec::default() };
    let recipe = Recipe { lora, train: spec, evaluate, ..Recipe::default() };
    train(&base, &recipe, &rows, "random", &mut last)?;
    let linears = base.linears();
    let bytes_each = if compute == Compute::F32 { 4 } else { 2 };
    let weight = |linear: &tailor_models::LinearInfo| (linear.in_features * linear.out_features * bytes_each) as f64;
    for (name, value) in [
        ("base", base.resident_bytes() as f64),
        ("parameters", base.parameter_count() as f64),
        ("loaded", loaded as f64),
        ("peak", Memory::now()?.peak_bytes as f64),
        ("growth", peak.growth_bytes()? as f64),
        ("linears", linears.iter().map(weight).sum()),
        ("largest", linears.iter().map(weight).fold(0.0, f64::max)),
        ("first_loss", last.first_loss),
        ("loss", last.loss),
        ("grad_norm", last.grad_norm),
        ("tokens_per_second", last.best_speed),
    ] {
        println!("{name} {value}");
    }
    Ok(())
}

#[derive(Default)]
struct Last {
    first_loss: f64,
    loss: f64,
    grad_norm: f64,
    best_speed: f64,
}

impl Observer for Last {
    fn on_step(&mut self, step: &StepMetrics) {
        if step.step == 1 {
            self.first_loss = step.loss;
        }
        (self.loss, self.grad_norm) = (step.loss, step.grad_norm);
        self.best_speed = self.best_speed.max(step.tokens_per_second);
    }
    fn should_stop(&mut self) -> bool {
        false
    }
}

fn compare(settings: &Settings) -> Result<()> {
    let work = TempDir::new();
    let shape = LlamaShape {
        hidden: settings.number("hidden")?,
        layers: settings.number("layers")?,
        feed_forward: settings.number("ffn")?,
        heads: settings.number("heads")?,
        kv_heads: settings.number("heads")?,
        vocab: settings.number("vocab")?,
        context: settings.number("seq")?.max(128),
        tied: false,
        bf16: true,
        shard_bytes: None,
    };
    println!("{shape:?}");
    let (batch, seq, rank) = (settings.number("batch")?, settings.number("seq")?, settings.number("rank")?);
    println!("batch {batch} x {seq} tokens, LoRA of rank {rank} on all linear layers, A, B and moments in f32");
    println!("{}", hardware());

    let (dense, nf4) = (work.join("dense"), work.join("nf4"));
    std::fs::create_dir(&dense)?;
    shape.write(&dense, 1)?;
    quantize_folder(&dense, &nf4, &QuantOptions::default(), &mut |_| {})?;

    let mut seen = Vec::new();
    for (arm, (name, code, _)) in ARMS.iter().enumerate() {
        let folder = if *code == QuantCode::None { &dense } else { &nf4 };
        let figures = run_arm(settings, arm, folder).with_context(|| format!("arm {name}"))?;
        println!(
            "{name:<11} base {:>7.1} MiB  after loading {:>7.1} MiB  peak {:>7.1} MiB  growth {:>7.1} MiB  loss {:.4} -> {:.4}  \
             grad norm {:.4}  {:>6.1} tok/s",
            figures["base"] / MIB,
            figures["loaded"] / MIB,
            figures["peak"] / MIB,
            figures["growth"] / MIB,
            figures["first_loss"],
            figures["loss"],
            figures["grad_norm"],
            figures["tokens_per_second"],
        );
        seen.push(figures);
    }
    println!("{:.1} M parameters", seen[0]["parameters"] / 1e6);
    for pair in [0, 2] {
        let (dense, nf4) = (&seen[pair], &seen[pair + 1]);
        let extra = nf4["growth"] - dense["growth"];
        println!(
            "{} against {}: base x{:.2}, peak x{:.2}; a step grows by {:+.1} MiB beside the dense one's, where all \
             dequantised weights are {:.1} MiB and the largest {:.1} MiB",
            ARMS[pair + 1].0,
            ARMS[pair].0,
            nf4["base"] / dense["base"],
            nf4["peak"] / dense["peak"],
            extra / MIB,
            nf4["linears"] / MIB,
            nf4["largest"] / MIB,
        );
        ensure!(nf4["base"] < dense["base"], "the 4-bit base is not smaller");
        ensure!(extra < nf4["linears"] / 2.0, "the step on the 4-bit base keeps dequantised weights");
    }
    Ok(())
}

fn run_arm(settings: &Settings, arm: usize, folder: &Path) -> Result<BTreeMap<String, f64>> {
    let arguments = settings.arguments().chain(["--arm".to_owned(), arm.to_string()]);
    figures_of_child(arguments.map(OsString::from).chain(["--folder".into(), folder.as_os_str().to_owned()]))
}
