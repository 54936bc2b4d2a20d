//! From a large sharded 16-bit folder to a scored 4-bit base: times, and the peak of resident memory of each stage.
//!
//! A random Llama of the shape asked for is written shard by shard, quantised, loaded twice and scored; with `--peer`
//! transformers and bitsandbytes load and quantise the same folder. Each stage is a process of its own.
//!
//! `cargo xtask bench load -- [--shape 7b|1b|tiny] [--scratch FOLDER] [--tokens 128] [--peer]`. The shape 7b is Llama 2 7B's
//! and takes 17 GB of disk.

mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use tailor_models::{Base, Compute, Input, LoadOptions, Pass};
use tailor_quant::{QuantOptions, quantize_folder};
use tailor_testkit::LlamaShape;
use tailor_torch::Memory;
use tch::{Device, Kind, Tensor};

use support::{MIB, figures_of_child, hardware};

const STAGE: &str = "--stage";
/// What the libraries themselves come to take while they work, bytes: it shows with the shape tiny only.
const PROGRAM: f64 = 32.0 * MIB;
const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/bench/load_peer.py");

struct Settings {
    shape: String,
    scratch: PathBuf,
    tokens: i64,
    peer: bool,
}

impl Settings {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut settings = Self { shape: "7b".into(), scratch: std::env::temp_dir(), tokens: 128, peer: false };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--shape" => settings.shape = value()?.clone(),
                "--scratch" => settings.scratch = PathBuf::from(value()?),
                "--tokens" => settings.tokens = value()?.parse().context("--tokens takes a number")?,
                "--peer" => settings.peer = true,
                other => bail!("unknown setting {other}"),
            }
        }
        Ok(settings)
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, rest)) if first == STAGE => stage(rest),
        _ => compare(&Settings::parse(&arguments)?),
    }
}

fn shape(name: &str) -> Result<LlamaShape> {
    let (hidden, layers, feed_forward, heads, kv_heads) = match name {
        "7b" => (4096, 32, 11008, 32, 32),
        "1b" => (2048, 22, 5632, 32, 4),
        "tiny" => (256, 4, 704, 4, 2),
        other => bail!("shape {other} is not one of 7b, 1b, tiny"),
    };
    let shard_bytes = Some(if name == "tiny" { 4 << 20 } else { 2_000_000_000 });
    Ok(LlamaShape {
        hidden,
        layers,
        feed_forward,
        heads,
        kv_heads,
        vocab: 32_000,
        context: 4096,
        tied: false,
        bf16: true,
        shard_bytes,
    })
}

fn compare(settings: &Settings) -> Result<()> {
    let shape = shape(&settings.shape)?;
    println!("{shape:?}\n{}", hardware());
    let work = tempfile::tempdir_in(&settings.scratch)?;
    let (dense, nf4) = (work.path().join("dense"), work.path().join("nf4"));
    std::fs::create_dir(&dense)?;
    let start = Instant::now();
    shape.write(&dense, 1)?;
    println!("written in {:.0} s", start.elapsed().as_secs_f64());

    let largest = (shape.vocab.max(shape.feed_forward) * shape.hidden * 2) as f64;
    let quantised = run("quantise", &[&dense, &nf4], settings)?;
    let (model, source) = (quantised["bytes"], quantised["source_bytes"]);
    println!("16 bit {:.0} MiB, 4 bit {:.0} MiB, largest tensor {:.0} MiB", source / MIB, model / MIB, largest / MIB);
    println!(
        "| stage | seconds | peak resident, MiB | beyond the finished model, MiB (limit {:.0}) |",
        1.1 * largest / MIB
    );
    println!("| --- | --- | --- | --- |");
    let mut worst = f64::MIN;
    let mut line = |name: &str, figures: &BTreeMap<String, f64>| {
        let beyond = figures["peak"] - model;
        worst = worst.max(beyond);
        println!("| {name} | {:.1} | {:.0} | {:.0} |", figures["seconds"], figures["peak"] / MIB, beyond / MIB);
    };
    line("fingerprint and quantise", &quantised);
    for name in ["load", "load again"] {
        line(name, &run("load", &[&nf4], settings)?);
    }
    let scored = run("score", &[&nf4], settings)?;
    println!(
        "| load and score {} tokens | {:.1} | {:.0} | {:.0}, activations included |",
        settings.tokens,
        scored["seconds"],
        scored["peak"] / MIB,
        (scored["peak"] - model) / MIB
    );
    println!("mean loss {:.4} (ln V is {:.4})", scored["loss"], (shape.vocab as f64).ln());
    if settings.peer {
        peer(&dense)?;
    }
    ensure!(
        worst <= 1.1 * largest + PROGRAM,
        "the peak is more than a largest tensor and 10 % beyond the finished model"
    );
    Ok(())
}

/// Resident memory counts from what the process has before it begins: the libraries themselves.
fn stage(arguments: &[String]) -> Result<()> {
    let [name, tokens, folders @ ..] = arguments else { bail!("a stage, a number of tokens and folders are needed") };
    // What libtorch itself takes at its first work is nobody's weights.
    let warm = Tensor::randn([64, 64], (Kind::BFloat16, Device::Cpu));
    let _ = warm.matmul(&warm);
    let start = Instant::now();
    let before = Memory::now()?.resident_bytes;
    match (name.as_str(), folders) {
        ("quantise", [source, target]) => {
            let options = QuantOptions::default();
            let report = quantize_folder(Path::new(source), Path::new(target), &options, &mut |_| {})?;
            println!("bytes {}\nsource_bytes {}", report.bytes, report.source_bytes);
        }
        ("load", [folder]) => {
            let base = load(folder)?;
            println!("resident {}", base.resident_bytes());
        }
        ("score", [folder]) => println!("loss {}", score(&load(folder)?, tokens.parse()?)?),
        _ => bail!("there is no stage {name} of {} folders", folders.len()),
    }
    println!("seconds {}", start.elapsed().as_secs_f64());
    println!("peak {}", Memory::now()?.peak_bytes.saturating_sub(before));
    Ok(())
}

fn load(folder: &str) -> Result<Base> {
    let options = LoadOptions { compute: Compute::Bf16, device: Device::Cpu };
    Ok(Base::load(Path::new(folder), &options)?)
}

/// Mean loss over random tokens; every weight is used.
fn score(base: &Base, tokens: i64) -> Result<f64> {
    tch::manual_seed(1);
    let vocab = 32_000;
    let ids = Tensor::randint(vocab, [1, tokens + 1], (Kind::Int64, Device::Cpu));
    let (input, target) = (ids.narrow(1, 0, tokens), ids.narrow(1, 1, tokens));
    let pass = Pass::base();
    let loss = tch::no_grad(|| -> Result<Tensor> {
        let hidden = base.hidden(&Input::Decoder { ids: &input, mask: None }, &pass)?;
        Ok(base.head(&hidden, &pass).view([-1, vocab]).cross_entropy_for_logits(&target.view([-1])))
    })?;
    Ok(loss.double_value(&[]))
}

fn run(stage: &str, folders: &[&PathBuf], settings: &Settings) -> Result<BTreeMap<String, f64>> {
    let arguments = [STAGE.to_owned(), stage.to_owned(), settings.tokens.to_string()];
    let folders = folders.iter().map(|folder| folder.as_os_str().to_owned());
    figures_of_child(arguments.into_iter().map(OsString::from).chain(folders)).with_context(|| format!("stage {stage}"))
}

fn peer(folder: &Path) -> Result<()> {
    let python = std::env::var("TAILOR_PEER_PYTHON").context("run `cargo xtask bench load`, which brings the peer")?;
    let status = Command::new(python).arg(PEER).arg(folder).arg(tch::get_num_threads().to_string()).status()?;
    ensure!(status.success(), "the peer failed ({status})");
    Ok(())
}
