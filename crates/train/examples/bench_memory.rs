//! Predicted and measured peaks of training, over a grid of bases, batches, ranks and policies; and beside PEFT with
//! bitsandbytes at the shape of `--peer`.
//!
//! Each measurement is the resident high-water mark of a process of its own, that of training and not of loading.
//!
//! `cargo xtask bench memory [-- --no-peer]`

#[path = "support/arm.rs"]
mod arm;
mod support;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tailor_domain::QuantCode;
use tailor_domain::spec::{Checkpointing, Grouping, Optimizer, Precision};
use tailor_plan::{Adapter, Compute, Memory, Settings, Shape};
use tailor_testkit::{LlamaShape, T5Shape, TempDir};

use arm::{ARM, Arm, quantise};
use support::{MIB, hardware};

/// How far a prediction may be off.
const TOLERANCE: f64 = 0.10;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.split_first() {
        Some((word, rest)) if word == ARM => Arm::parse(rest)?.measure(),
        Some((word, _)) if word != "--no-peer" => bail!("unknown setting {word}"),
        _ => compare(words.is_empty()),
    }
}

fn llama(hidden: usize, layers: usize, feed_forward: usize, heads: usize, kv_heads: usize, vocab: usize) -> LlamaShape {
    let (context, tied, bf16, shard_bytes) = (2048, false, true, None);
    LlamaShape { hidden, layers, feed_forward, heads, kv_heads, vocab, context, tied, bf16, shard_bytes }
}

/// The dense folder and the one in 4 bits.
struct Made {
    name: &'static str,
    dense: PathBuf,
    nf4: PathBuf,
    shape: Shape,
}

impl Made {
    fn new(name: &'static str, work: &Path, write: impl Fn(&Path) -> std::io::Result<()>) -> Result<Self> {
        let (dense, nf4) = (work.join(format!("{name}-dense")), work.join(format!("{name}-nf4")));
        std::fs::create_dir(&dense)?;
        write(&dense)?;
        quantise(&dense, &nf4)?;
        let shape = Shape::parse(&std::fs::read(nf4.join("config.json"))?)?;
        Ok(Self { name, dense, nf4, shape })
    }
}

fn predict(shape: &Shape, arm: &Arm) -> Result<Memory> {
    let recipe = arm.recipe();
    let adapter = Adapter::of(shape, &recipe)?;
    let compute = if arm.compute == Precision::F32 { Compute::F32 } else { Compute::Bf16 };
    let rows = arm.rows(shape.family);
    let settings = Settings::of(&recipe, shape.family, QuantCode::Nf4, compute, &rows, arm.batch as u64);
    Ok(Memory::of(shape, &adapter, &settings, tailor_train::host().kind))
}

fn compare(with_peer: bool) -> Result<()> {
    println!("{}\n", hardware());
    let work = TempDir::new();
    let small = Made::new("llama-38m", work.path(), |at| llama(512, 8, 1408, 8, 8, 8000).write(at, 1))?;
    let grouped = Made::new("llama-gqa-95m", work.path(), |at| llama(768, 12, 2048, 12, 4, 16000).write(at, 1))?;
    let large = Made::new("llama-220m", work.path(), |at| llama(1024, 12, 2816, 16, 16, 32000).write(at, 1))?;
    let t5 = T5Shape { hidden: 512, layers: 6, feed_forward: 1024, heads: 8, vocab: 8000, bf16: true };
    let t5 = Made::new("t5-48m", work.path(), |at| t5.write(at, 1))?;

    use Checkpointing::{Layers, None as Keep, Selective};
    let arm = |made: &Made, batch, tokens, rank, policy| Arm::new(&made.nf4, batch, tokens, rank, policy);
    let f32 = |arm: Arm| Arm { compute: Precision::F32, ..arm };
    let grid: Vec<(&Made, Arm)> = vec![
        (&small, arm(&small, 4, 512, 16, Keep)),
        (&small, arm(&small, 16, 512, 16, Layers)),
        (&small, arm(&small, 8, 512, 16, Selective)),
        (&small, f32(arm(&small, 4, 512, 16, Keep))),
        (&small, f32(arm(&small, 2, 1024, 64, Layers))),
        (&small, Arm { grouping: Grouping::Packed, ..arm(&small, 2, 1024, 16, Keep) }),
        (&grouped, arm(&grouped, 1, 256, 16, Keep)),
        (&grouped, arm(&grouped, 4, 256, 256, Keep)),
        (&grouped, Arm { optimizer: Optimizer::AdamW8bit, ..arm(&grouped, 1, 256, 256, Layers) }),
        (&grouped, arm(&grouped, 8, 512, 16, Layers)),
        (&t5, arm(&t5, 8, 512, 16, Keep)),
        (&t5, f32(arm(&t5, 8, 512, 16, Layers))),
        (&large, arm(&large, 4, 512, 16, Selective)),
        (&large, arm(&large, 4, 512, 16, Keep)),
        (&large, arm(&large, 4, 512, 16, Layers)),
    ];
    println!(
        "| base | batch × tokens | rank | kept | type | optimizer | predicted, MiB | measured, MiB | off by | first loss | gradient norm |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut worst = 0f64;
    let mut ours = Vec::new();
    for (made, arm) in &grid {
        let predicted = predict(&made.shape, arm)?;
        let seen = arm.run()?;
        let off = predicted.total() as f64 / seen["peak"] - 1.0;
        worst = worst.max(off.abs());
        println!(
            "| {} | {} × {}{} | {} | {} | {} | {} | {:.0} | {:.0} | {:+.1} % | {:.4} | {:.4} |",
            made.name,
            arm.batch,
            arm.tokens,
            if arm.grouping == Grouping::Packed { " packed" } else { "" },
            arm.rank,
            arm.checkpointing,
            arm.compute,
            arm.optimizer,
            predicted.total() as f64 / MIB,
            seen["peak"] / MIB,
            off * 100.0,
            seen["first_loss"],
            seen["first_grad_norm"],
        );
        if std::env::var_os("TAILOR_BENCH_PARTS").is_some() {
            let parts = predicted.parts().map(|(name, bytes)| format!("{name} {:.1}", bytes as f64 / MIB));
            println!(
                "    {} | before {:.1}, tensors {:.1}",
                parts.join(", "),
                seen["before"] / MIB,
                seen["tensors"] / MIB
            );
        }
        ours.push(seen);
    }
    println!("\nThe largest error is {:.1} %.", worst * 100.0);
    if with_peer {
        println!("\n| llama-220m, 4 × 512 | kept | peak, MiB | tokens/s | first loss | gradient norm |");
        println!("| --- | --- | --- | --- | --- | --- |");
        for (policy, ours) in [(Keep, &ours[ours.len() - 2]), (Layers, &ours[ours.len() - 1])] {
            let mut arm = arm(&large, 4, 512, 16, policy);
            arm.steps = 3;
            let peer = arm.run_peer(&large.dense).context("PEFT with bitsandbytes")?;
            for (who, seen) in [("Tailor", ours), ("PEFT + bitsandbytes", &peer)] {
                println!(
                    "| {who} | {policy} | {:.0} | {:.1} | {:.4} | {:.4} |",
                    seen["peak"] / MIB,
                    seen["tokens_per_second"],
                    seen["first_loss"],
                    seen["first_grad_norm"]
                );
            }
            println!(
                "| ratio | {policy} | {:.3} | {:.2} | | |",
                ours["peak"] / peer["peak"],
                ours["tokens_per_second"] / peer["tokens_per_second"]
            );
        }
    }
    ensure!(worst <= TOLERANCE, "a prediction is more than {:.0} % off", TOLERANCE * 100.0);
    Ok(())
}
