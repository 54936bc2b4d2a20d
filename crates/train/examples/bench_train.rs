//! Tokens a second of a training step, in turn with PEFT and bitsandbytes; where a step's time goes; and the time that a
//! plan says from this machine's calibration against the time that was measured.
//!
//! Other work on the machine slows both alike where they take turns, so the median of the pairs' ratios is what counts.
//! Where the processor has no bf16 instructions the peer computes in f32: in bf16 it would take minutes for a step.
//!
//! `cargo xtask bench train [--pairs 3] [--no-peer] [--no-profile]`

#[path = "support/arm.rs"]
mod arm;
#[path = "support/profile.rs"]
mod profile;
mod support;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use tailor_domain::QuantCode;
use tailor_domain::spec::{Checkpointing, Precision};
use tailor_plan::{Adapter, Compute, Settings, Shape, Work};
use tailor_testkit::{LlamaShape, TempDir};

use arm::{ARM, Arm, quantise};
use support::{MIB, hardware};

/// Ours that take turns with one of the peer's, which has no other between everything and the layers' inputs.
const RIVALS: [(&[Checkpointing], Checkpointing); 2] = [
    (&[Checkpointing::None], Checkpointing::None),
    (&[Checkpointing::Selective, Checkpointing::Layers], Checkpointing::Layers),
];

/// What one run printed, by name.
type Figures = BTreeMap<String, f64>;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let Some((word, rest)) = words.split_first()
        && word == ARM
    {
        return Arm::parse(rest)?.measure();
    }
    let (mut pairs, mut with_peer, mut with_profile) = (3, true, true);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--no-peer" => with_peer = false,
            "--no-profile" => with_profile = false,
            "--pairs" => pairs = words.next().context("--pairs needs a number")?.parse()?,
            other => bail!("unknown setting {other}"),
        }
    }
    compare(pairs, with_peer, with_profile)
}

fn compare(pairs: usize, with_peer: bool, with_profile: bool) -> Result<()> {
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
    let theirs = if tailor_torch::bf16_products() { Precision::Bf16 } else { Precision::F32 };
    println!("220M Llama, NF4, bf16 (the peer {theirs}), 4 × 512 tokens, LoRA of rank 16 on every layer\n");
    println!("| kept | who | tokens/s, median | peak, MiB | first loss | gradient norm | ratio of pairs, median |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut seconds = Vec::new();
    for (policies, their_policy) in RIVALS {
        let arm = |policy| Arm { steps: 3, ..Arm::new(&nf4, 4, 512, 16, policy) };
        let peer = Arm { compute: theirs, ..arm(their_policy) };
        let mut ours: Vec<Vec<Figures>> = policies.iter().map(|_| Vec::new()).collect();
        let mut peers: Vec<Figures> = Vec::new();
        for _ in 0..pairs {
            for (seen, policy) in ours.iter_mut().zip(policies) {
                seen.push(arm(*policy).run()?);
            }
            if with_peer {
                peers.push(peer.run_peer(&dense)?);
            }
        }
        for (policy, ours) in policies.iter().zip(&ours) {
            let ratios = ours.iter().zip(&peers).map(|(a, b)| a["tokens_per_second"] / b["tokens_per_second"]);
            let ratio = if with_peer { format!("{:.2}", median(ratios.collect())) } else { String::new() };
            row(*policy, "Tailor", ours, &ratio);
            seconds.push((*policy, 2048.0 / speed(ours)));
        }
        row(their_policy, "PEFT + bitsandbytes", &peers, "");
    }
    println!("\n| kept | step planned, s | measured, s | off by |\n| --- | --- | --- | --- |");
    for (policy, seconds) in &seconds {
        let planned = work_of(&shape, *policy)?.seconds(&rates);
        println!("| {policy} | {planned:.2} | {seconds:.2} | {:+.0} % |", (planned / seconds - 1.0) * 100.0);
    }
    if with_profile {
        profile::print(&shape, seconds[0].1)?;
    }
    Ok(())
}

fn speed(runs: &[Figures]) -> f64 {
    median(runs.iter().map(|figures| figures["tokens_per_second"]).collect())
}

/// Nothing where there was no run.
fn row(policy: Checkpointing, who: &str, runs: &[Figures], ratio: &str) {
    let Some(last) = runs.last() else { return };
    let (loss, norm, peak) = (last["first_loss"], last["first_grad_norm"], last["peak"] / MIB);
    let speed = speed(runs);
    println!("| {policy} | {who} | {speed:.1} | {peak:.0} | {loss:.4} | {norm:.4} | {ratio} |");
}

fn work_of(shape: &Shape, policy: Checkpointing) -> Result<Work> {
    let arm = Arm::new(std::path::Path::new(""), 4, 512, 16, policy);
    let recipe = arm.recipe();
    let rows = arm.rows(shape.family);
    let settings = Settings::of(&recipe, shape.family, QuantCode::Nf4, Compute::Bf16, &rows, 4);
    Ok(Work::of_step(shape, &Adapter::of(shape, &recipe)?, &settings, 1.0))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
