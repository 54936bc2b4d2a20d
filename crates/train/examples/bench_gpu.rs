//! Training on one NVIDIA GPU: tokens a second, model FLOP utilisation, peak bytes, loss and gradient norm of the shapes of
//! Llama-3-8B, Llama-2-7B, T5 v1.1-XXL and Llama-2-70B with random NF4 weights made on the card; and what the card itself
//! copies, multiplies and dequantises.
//!
//! `cargo xtask bench gpu`, or the folder that `cargo xtask bench gpu --package DIR` makes.
//! Settings: `--device cuda|cuda:N|cpu|emulated` `--shape NAME` (again for more) `--steps N` `--peer PYTHON SCRIPT`
//! `--json FILE`. `emulated` runs the kernels on the host; with `--shape tiny` both that and `cpu` try the program out.

#[path = "gpu/arm.rs"]
mod arm;
#[path = "gpu/card.rs"]
mod card;
#[path = "gpu/shapes.rs"]
mod shapes;
mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tailor_torch::gpu;

use shapes::{Case, Goal, Shape};
use support::MIB;

/// What the program ends with where it has no card to run on.
const NO_CARD: u8 = 3;
const GIB: f64 = 1024.0 * MIB;

struct Settings {
    device: String,
    shapes: Vec<Shape>,
    steps: u64,
    /// Python and the script that runs PEFT with bitsandbytes.
    peer: Option<(PathBuf, PathBuf)>,
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let outcome = match words.split_first() {
        Some((word, rest)) if word == arm::ARM => arm::measure(rest),
        _ => Settings::parse(&words).and_then(|settings| match card_of(&settings) {
            Err(error) => {
                eprintln!("not run: {error:#}");
                std::process::exit(NO_CARD.into())
            }
            Ok(card) => compare(&settings, card.as_ref()),
        }),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Settings {
    fn parse(words: &[String]) -> Result<Self> {
        let mut settings = Self { device: "cuda".into(), shapes: Vec::new(), steps: 8, peer: None, json: None };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--device" => settings.device = value()?.clone(),
                "--shape" => settings.shapes.push(arm::shape(value()?)?),
                "--steps" => settings.steps = value()?.parse().context("--steps is a number")?,
                "--peer" => settings.peer = Some((value()?.into(), value()?.into())),
                "--json" => settings.json = Some(value()?.into()),
                other => bail!("unknown setting {other}; there are --device, --shape, --steps, --peer, --json"),
            }
        }
        ensure!((4..=1000).contains(&settings.steps), "--steps {} is not within 4..=1000", settings.steps);
        if settings.shapes.is_empty() {
            settings.shapes = shapes::all().into_iter().filter(|shape| shape.name != "tiny").collect();
        }
        Ok(settings)
    }
}

/// The card that was asked for, ready; none where a CPU was.
fn card_of(settings: &Settings) -> Result<Option<(usize, gpu::Card)>> {
    match settings.device.as_str() {
        "cpu" | "emulated" => return Ok(None),
        _ => {}
    }
    let tch::Device::Cuda(index) = gpu::device(&settings.device)? else { bail!("{} is no GPU", settings.device) };
    Ok(Some((index, gpu::prepare(index)?)))
}

fn compare(settings: &Settings, card: Option<&(usize, gpu::Card)>) -> Result<()> {
    let commit = option_env!("TAILOR_COMMIT").unwrap_or("unknown");
    let mut report = json!({ "commit": commit, "device": settings.device, "rows": [] });
    let rates = match card {
        None => {
            println!("{}, device {}: figures of a CPU say nothing about a GPU\n", support::hardware(), settings.device);
            None
        }
        Some((index, card)) => {
            let rates = card::rates(*index)?;
            let (major, minor) = (card.capability / 10, card.capability % 10);
            println!(
                "{}, {:.1} GB, compute capability {major}.{minor}, commit {commit}\n",
                card.name,
                card.memory_bytes as f64 / 1e9
            );
            let share = rates.dequantised / rates.copied;
            println!("| of the card | measured | goal |\n| --- | --- | --- |");
            println!("| copy | {:.0} GB/s | |", rates.copied / 1e9);
            println!("| NF4 to bf16 | {:.0} GB/s, {share:.2} of the copy | 0.80 |", rates.dequantised / 1e9);
            println!("| bf16 product of 8192 x 8192 | {:.0} TFLOP/s | |\n", rates.multiplied / 1e12);
            report["card"] = json!({
                "name": card.name, "memory_bytes": card.memory_bytes, "copied_bytes_per_second": rates.copied,
                "dequantised_bytes_per_second": rates.dequantised, "product_flop_per_second": rates.multiplied,
            });
            Some(rates)
        }
    };
    println!(
        "| shape | case | who | tokens/s | FLOP utilisation | peak, GiB | first loss | loss | gradient norm | goal |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for shape in &settings.shapes {
        for (number, case) in shape.cases.iter().enumerate() {
            let number = number.to_string();
            let steps = settings.steps.to_string();
            let words = [arm::ARM, shape.name, &number, &settings.device, &steps].map(OsString::from);
            let ours = row(shape, case, "Tailor", support::figures_of_child(words), rates.as_ref(), &mut report);
            let Some((python, script)) = &settings.peer else { continue };
            let peers = peer(python, script, shape, case, settings);
            let peers = row(shape, case, "PEFT + bitsandbytes", peers, rates.as_ref(), &mut report);
            if let (Some(ours), Some(peers)) = (ours, peers) {
                println!("| {} | {} | ratio | {:.2} | | | | | | 1.50 |", shape.name, case.name, ours / peers);
            }
        }
    }
    if let Some(path) = &settings.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Prints a row and keeps it; gives its tokens a second. One that fails is told and does not end the others.
fn row(
    shape: &Shape,
    case: &Case,
    who: &str,
    figures: Result<BTreeMap<String, f64>>,
    rates: Option<&card::Rates>,
    report: &mut Value,
) -> Option<f64> {
    let figures = match figures {
        Ok(figures) => figures,
        Err(error) => {
            let words = format!("{error:#}").replace('\n', " ").replace('|', "/");
            println!("| {} | {} | {who} | not run: {words} | | | | | | |", shape.name, case.name);
            push(report, json!({ "shape": shape.name, "case": case.name, "who": who, "error": words }));
            return None;
        }
    };
    let figure = |name: &str| figures.get(name).copied().unwrap_or(f64::NAN);
    let speed = figure("tokens_per_second");
    let used = rates.map(|rates| speed * figure("flop_per_token") / rates.multiplied);
    let used_words = used.filter(|used| used.is_finite()).map_or(String::new(), |used| format!("{used:.2}"));
    let goal = match case.goal.filter(|_| who == "Tailor") {
        None => String::new(),
        Some(Goal::Speed(tokens)) => format!("{tokens:.0} tokens/s on an H200"),
        Some(Goal::Bytes(bytes)) => format!("{:.1} GiB", bytes / GIB),
    };
    println!(
        "| {} | {} | {who} | {speed:.0} | {used_words} | {:.2} | {:.4} | {:.4} | {:.4} | {goal} |",
        shape.name,
        case.name,
        figure("peak") / GIB,
        figure("first_loss"),
        figure("loss"),
        figure("grad_norm")
    );
    push(
        report,
        json!({ "shape": shape.name, "case": case.name, "who": who, "figures": figures, "utilisation": used }),
    );
    Some(speed)
}

fn push(report: &mut Value, row: Value) {
    if let Some(rows) = report["rows"].as_array_mut() {
        rows.push(row);
    }
}

/// The same case by PEFT and bitsandbytes.
fn peer(
    python: &PathBuf,
    script: &PathBuf,
    shape: &Shape,
    case: &Case,
    settings: &Settings,
) -> Result<BTreeMap<String, f64>> {
    let device = if settings.device == "emulated" { "cpu" } else { settings.device.as_str() };
    let mut command = Command::new(python);
    command.arg(script).arg(shape.config.to_string()).arg(device);
    command.args([case.rows, case.tokens, case.packed, case.rank].map(|number| number.to_string()));
    command.arg(settings.steps.to_string()).arg(case.checkpointing.as_str()).arg(case.optimizer.as_str());
    let output = command.output().with_context(|| format!("cannot run {}", python.display()))?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", words.lines().last().unwrap_or("the peer failed"));
    Ok(support::figures(&String::from_utf8(output.stdout)?))
}
