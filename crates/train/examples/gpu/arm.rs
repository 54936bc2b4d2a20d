//! One case in a process of its own: a base made on the device, some steps, and what they took.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use tailor_domain::spec::{Grouping, Precision};
use tailor_domain::{EvaluateSpec, Family, LoraSpec, Recipe, StepMetrics, TrainSpec};
use tailor_models::{Base, Compute, LoadOptions};
use tailor_torch::{gpu, kernels};
use tailor_train::{Example, Observer, train};
use tch::Device;

use crate::shapes::{self, Case, Shape};

/// The word that makes the program run one arm: then the shape, the case's number, the device, the steps.
pub const ARM: &str = "--arm";
/// Steps whose speed is not counted: kernels are compiled, memory is taken.
const COLD: u64 = 2;

/// Finds a shape by its name.
pub fn shape(name: &str) -> Result<Shape> {
    let names = || shapes::all().iter().map(|shape| shape.name).collect::<Vec<_>>().join(", ");
    let found = shapes::all().into_iter().find(|shape| shape.name == name);
    found.with_context(|| format!("there is no shape {name:?}; there are {}", names()))
}

/// Runs the arm that the words name, and prints `name value` lines.
pub fn measure(words: &[String]) -> Result<()> {
    let [name, case, device, steps] = words else { bail!("{} words; an arm has 4", words.len()) };
    let shape = shape(name)?;
    let case = shape.cases.get(case.parse::<usize>()?).context("the shape has no such case")?;
    let device = match device.as_str() {
        "emulated" => {
            kernels::emulate_on_host()?;
            Device::Cpu
        }
        name => gpu::device(name)?,
    };
    let steps: u64 = steps.parse()?;
    let started = Instant::now();
    let load = LoadOptions { compute: Compute::Bf16, device };
    let base = Base::random_four_bit(shape.config.to_string().as_bytes(), &load, 1)?;
    let weights = base.resident_bytes();
    let made_in = started.elapsed();
    if let Device::Cuda(index) = device {
        gpu::reset_device_peak(index)?;
    }
    let mut seen = Seen::default();
    let examples = examples(case, base.family(), base.config().vocab_size() as usize);
    train(&base, &recipe(case, steps), &examples, "random", &mut seen)?;
    let (peak, reserved) = match device {
        Device::Cuda(index) => {
            let bytes = gpu::device_bytes(index)?;
            (bytes.peak, bytes.reserved_peak)
        }
        _ => (tailor_torch::Memory::now()?.peak_bytes, 0),
    };
    seen.speeds.sort_by(f64::total_cmp);
    let speed = seen.speeds.get(seen.speeds.len() / 2).copied().unwrap_or(0.0);
    for (name, value) in [
        ("tokens_per_second", speed),
        ("flop_per_token", flop_per_token(&base, case)),
        ("peak", peak as f64),
        ("reserved", reserved as f64),
        ("weights", weights as f64),
        ("made_in", made_in.as_secs_f64()),
        ("first_loss", seen.first_loss),
        ("loss", seen.loss),
        ("grad_norm", seen.grad_norm),
    ] {
        println!("{name} {value}");
    }
    Ok(())
}

/// The model's own work a token, forward and the gradient of activations, whatever runs again: 4 FLOP a weight of a linear
/// layer and the head, and attention's two products over the tokens that a token sees on average.
fn flop_per_token(base: &Base, case: &Case) -> f64 {
    let linear: f64 = base.linears_with_head().iter().map(|l| l.in_features as f64 * l.out_features as f64).sum();
    let length = f64::from(case.tokens) / f64::from(case.packed);
    let attention: f64 = base
        .linears()
        .iter()
        .filter(|linear| linear.path.ends_with("o_proj") || linear.path.ends_with("Attention.o"))
        .map(|linear| 3.0 * 2.0 * 2.0 * linear.in_features as f64 * length / 2.0)
        .sum();
    4.0 * linear + attention
}

fn recipe(case: &Case, steps: u64) -> Recipe {
    let train = TrainSpec {
        batch_rows: case.rows,
        micro_batch_rows: case.rows,
        max_tokens: case.tokens,
        max_steps: steps,
        epochs: steps as f64,
        learning_rate: 1e-4,
        checkpointing: case.checkpointing,
        optimizer: case.optimizer,
        precision: Precision::Bf16,
        grouping: if case.packed > 1 { Grouping::Packed } else { Grouping::Length },
        ..TrainSpec::default()
    };
    let evaluate = EvaluateSpec { tuning_fraction: 0.0, ..EvaluateSpec::default() };
    Recipe { lora: LoraSpec { rank: case.rank, ..LoraSpec::default() }, train, evaluate, ..Recipe::default() }
}

fn examples(case: &Case, family: Family, vocab: usize) -> Vec<Example> {
    let id = |row: usize, at: usize| ((row * 7919 + at * 104_729) % vocab) as u32;
    let ids = |row: usize, tokens: usize| (0..tokens).map(|at| id(row, at)).collect::<Vec<u32>>();
    // A row of n tokens is n − 1 inputs: one more each fills its sequence.
    let tokens = (case.tokens / case.packed) as usize;
    (0..(case.rows * case.packed) as usize)
        .map(|row| match family {
            Family::Decoder => Example::Decoder { ids: ids(row, tokens), in_loss: vec![true; tokens] },
            Family::EncoderDecoder => {
                let answer = tokens / 4;
                Example::EncoderDecoder { encoder: ids(row, tokens - answer), labels: ids(row + 1, answer) }
            }
        })
        .collect()
}

#[derive(Default)]
struct Seen {
    speeds: Vec<f64>,
    first_loss: f64,
    loss: f64,
    grad_norm: f64,
}

impl Observer for Seen {
    fn on_step(&mut self, step: &StepMetrics) {
        if step.step == 1 {
            self.first_loss = step.loss;
        }
        if step.step > COLD {
            self.speeds.push(step.tokens_per_second);
        }
        (self.loss, self.grad_norm) = (step.loss, step.grad_norm);
    }
    fn should_stop(&mut self) -> bool {
        false
    }
}
