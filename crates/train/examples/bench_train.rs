//! Tokens a second of a training step, in turn with PEFT and bitsandbytes; where a step's time goes; and the time that a
//! plan says from this machine's calibration against the time that was measured.
//!
//! Other work on the machine slows both alike where they take turns, so the median of the pairs' ratios is what counts.
//!
//! `cargo xtask bench train [-- --pairs 3] [--no-peer]`

#[path = "support/arm.rs"]
mod arm;
mod support;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use tailor_domain::QuantCode;
use tailor_domain::spec::Checkpointing;
use tailor_plan::{Adapter, Compute, Rates, Settings, Shape, Work};
use tailor_testkit::{LlamaShape, TempDir};
use tch::{Device, Kind, Tensor};

use arm::{ARM, Arm, quantise};
use support::{MIB, hardware};

const POLICIES: [Checkpointing; 2] = [Checkpointing::None, Checkpointing::Layers];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let Some((word, rest)) = words.split_first()
        && word == ARM
    {
        return Arm::parse(rest)?.measure();
    }
    let (mut pairs, mut with_peer) = (3, true);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--no-peer" => with_peer = false,
            "--pairs" => pairs = words.next().context("--pairs needs a number")?.parse()?,
            other => bail!("unknown setting {other}"),
        }
    }
    compare(pairs, with_peer)
}

fn compare(pairs: usize, with_peer: bool) -> Result<()> {
    println!("{}\n", hardware());
    let work = TempDir::new();
    let (dense, nf4) = (work.join("dense"), work.join("nf4"));
    std::fs::create_dir(&dense)?;
    let shape = LlamaShape {
        hidden: 1024,
        layers: 12,
        feed_forward: 2816,
        heads: 16,
        kv_heads: 16,
        vocab: 32000,
        context: 2048,
        tied: false,
        bf16: true,
        shard_bytes: None,
    };
    shape.write(&dense, 1)?;
    quantise(&dense, &nf4)?;
    let shape = Shape::parse(&std::fs::read(nf4.join("config.json"))?)?;
    let scratch = work.join("calibration");
    let rates = tailor_train::calibrate(&scratch, Compute::Bf16)?;
    println!("220M Llama, NF4, bf16, 4 × 512 tokens, LoRA of rank 16 on every layer\n");
    println!("| kept | who | tokens/s, median | peak, MiB | first loss | gradient norm | ratio of pairs, median |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut seconds = Vec::new();
    for policy in POLICIES {
        let mut arm = Arm::new(&nf4, 4, 512, 16, policy);
        arm.steps = 3;
        let (mut ours, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..pairs {
            ours.push(arm.run()?);
            if with_peer {
                peers.push(arm.run_peer(&dense)?);
            }
        }
        let speed = |all: &[std::collections::BTreeMap<String, f64>]| {
            median(all.iter().map(|figures| figures["tokens_per_second"]).collect())
        };
        let last = |who: &str, figures: &std::collections::BTreeMap<String, f64>, speed: f64, ratio: String| {
            let (loss, norm) = (figures["first_loss"], figures["first_grad_norm"]);
            let peak = figures["peak"] / MIB;
            println!("| {policy} | {who} | {speed:.1} | {peak:.0} | {loss:.4} | {norm:.4} | {ratio} |");
        };
        if let Some(figures) = ours.last() {
            let ratios = ours.iter().zip(&peers).map(|(a, b)| a["tokens_per_second"] / b["tokens_per_second"]);
            let ratio = if with_peer { format!("{:.2}", median(ratios.collect())) } else { String::new() };
            last("Tailor", figures, speed(&ours), ratio);
        }
        if let Some(figures) = peers.last() {
            last("PEFT + bitsandbytes", figures, speed(&peers), String::new());
        }
        seconds.push(2048.0 / speed(&ours));
    }
    println!("\n| kept | step planned, s | measured, s | off by |\n| --- | --- | --- | --- |");
    for (policy, seconds) in POLICIES.into_iter().zip(&seconds) {
        let planned = work_of(&shape, policy)?.seconds(&rates);
        println!("| {policy} | {planned:.2} | {seconds:.2} | {:+.0} % |", (planned / seconds - 1.0) * 100.0);
    }
    profile(&shape, &rates, seconds[0])
}

fn work_of(shape: &Shape, policy: Checkpointing) -> Result<Work> {
    let arm = Arm::new(std::path::Path::new(""), 4, 512, 16, policy);
    let recipe = arm.recipe();
    let rows = arm.rows(shape.family);
    let settings = Settings::of(&recipe, shape.family, QuantCode::Nf4, Compute::Bf16, &rows, 4);
    Ok(Work::of_step(shape, &Adapter::of(shape, &recipe)?, &settings, 1.0))
}

/// Each kind of work by itself at the step's own sizes; what the step takes beyond them is the rest.
fn profile(shape: &Shape, rates: &Rates, step: f64) -> Result<()> {
    const N: i64 = 2048;
    let random =
        |rows: i64, columns: i64, kind| Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)).to_kind(kind);
    let timed = |work: &dyn Fn()| {
        work();
        let runs = (0..3).map(|_| {
            let started = Instant::now();
            work();
            started.elapsed().as_secs_f64()
        });
        median(runs.collect())
    };
    // Twice: forward, and the gradient of the input.
    let mut products = 0.0;
    let mut adapters = 0.0;
    let mut seen: Vec<(u64, u64, f64, f64)> = Vec::new();
    for linear in &shape.linears {
        let (input, out) = (linear.input as i64, linear.out as i64);
        let known = seen.iter().find(|(i, o, ..)| (*i, *o) == (linear.input, linear.out));
        let (product, adapter) = match known {
            Some((.., product, adapter)) => (*product, *adapter),
            None => {
                let (x, weight) = (random(N, input, Kind::BFloat16), random(out, input, Kind::BFloat16));
                let gradient = random(N, out, Kind::BFloat16);
                let product = timed(&|| {
                    let _ = x.linear(&weight, None::<&Tensor>);
                    let _ = gradient.matmul(&weight);
                });
                let a = random(16, input, Kind::Float).set_requires_grad(true);
                let b = random(out, 16, Kind::Float).set_requires_grad(true);
                let (x, y) = (x.set_requires_grad(true), gradient.copy().set_requires_grad(true));
                let adapter = timed(&|| {
                    let sum = tailor_torch::lora(&y, &x, &a, &b, 2.0).unwrap_or_else(|error| panic!("{error}"));
                    tailor_torch::backward(&[(&sum, Some(&gradient))], false).unwrap_or_else(|error| panic!("{error}"));
                });
                seen.push((linear.input, linear.out, product, adapter));
                (product, adapter)
            }
        };
        products += product;
        adapters += adapter;
    }
    let work = work_of(shape, Checkpointing::None)?;
    let heads = |_| {
        let x = Tensor::randn([4, 16, 512, 64], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        x.set_requires_grad(true)
    };
    let [q, k, v] = [0, 1, 2].map(heads);
    let attention = shape.blocks.len() as f64
        * timed(&|| {
            let y = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, true, 0.125, false);
            let seed = y.ones_like();
            tailor_torch::backward(&[(&y, Some(&seed))], false).unwrap_or_else(|error| panic!("{error}"));
        });
    let head = random(shape.vocab as i64, shape.hidden as i64, Kind::BFloat16);
    let labels = Tensor::arange(524, (Kind::Int64, Device::Cpu));
    let states = random(524, shape.hidden as i64, Kind::BFloat16).set_requires_grad(true);
    let loss = 2048.0 / 524.0
        * timed(&|| {
            let logits = states.linear(&head, None::<&Tensor>).to_kind(Kind::Float);
            logits.cross_entropy_for_logits(&labels).backward();
        });
    let dequantised = work.dequantised / rates.dequantised;
    let known = [
        ("matrix products with the frozen weights", products),
        ("LoRA, forward and backward", adapters),
        ("head and cross-entropy", loss),
        ("attention", attention),
        ("dequantising", dequantised),
    ];
    let rest = step - known.iter().map(|(_, seconds)| seconds).sum::<f64>();
    println!("\n| part of a step, nothing run again | s | share |\n| --- | --- | --- |");
    for (name, seconds) in known.into_iter().chain([("norms, rotations, activations, sums, update: the rest", rest)]) {
        println!("| {name} | {seconds:.2} | {:.0} % |", seconds / step * 100.0);
    }
    let flop: f64 = shape.linears.iter().map(|linear| 4.0 * N as f64 * linear.values() as f64).sum();
    println!(
        "\nThose products run at {:.0} GFLOP/s by themselves; the step as a whole does them at {:.0}, {:.0} % of it.",
        flop / products / 1e9,
        flop / step / 1e9,
        products / step * 100.0
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
