//! What this machine does in a second: measured once, so that jobs can be planned.
//!
//! A matrix product and a dequantisation are timed by themselves at the size of a layer; then a few steps are trained on a
//! small random base, and what they take beyond those two is the rate of everything else.

mod card;

use std::path::Path;
use std::time::Instant;

use tailor_domain::{EvaluateSpec, QuantCode, Recipe, StepMetrics, TrainSpec};
use tailor_models::{Base, Compute as Arithmetic, LoadOptions};
use tailor_plan::{Adapter, Compute, Device as Place, Rates, Rows, Settings, Shape, Work};
use tailor_quant::{Backend, BlockSize, Code, Float, QuantOptions, Quantized, quantize, quantize_folder};
use tailor_text::Example;
use tailor_torch::{Projection, ProjectionWeight, QuantWeight, backward, guarded, project};
use tch::{Device, Kind, Tensor};

use crate::error::Error;
use crate::summary::Observer;
use crate::trainer::train;

/// The small base, and how long its one row is.
struct Sizes {
    config: &'static str,
    tokens: usize,
}

const ON_HOST: Sizes = Sizes {
    config: r#"{"model_type":"llama","hidden_size":512,"num_hidden_layers":2,"intermediate_size":1408,
"num_attention_heads":8,"num_key_value_heads":8,"vocab_size":2048,"max_position_embeddings":512}"#,
    tokens: 512,
};
const VOCAB: u32 = 2048;
/// Rows of the product that is timed on the host.
const TOKENS: usize = 512;
const STEPS: u64 = 4;
/// The layer that is timed by itself.
const INPUT: i64 = 1024;
const OUT: i64 = 2816;
const TIMES: usize = 4;
/// Values a second where a weight is unpacked within the product that is timed: no time of its own.
const WITH_THE_PRODUCT: f64 = 1e18;

/// What this process trains on, as a plan names it: the GPU that is chosen, or the machine.
pub fn device() -> Place {
    match tailor_models::chosen_device() {
        Ok(Device::Cuda(index)) => card::place(index).unwrap_or_else(|_| host()),
        // Where a GPU is named and missing no job gets far enough to be planned wrongly.
        Ok(_) | Err(_) => host(),
    }
}

/// This machine, as a plan names it.
pub fn host() -> Place {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("CPU", |(_, name)| name.trim());
    let memory = tailor_torch::total_bytes().unwrap_or(u64::MAX);
    Place::cpu(&format!("{model}, {} threads", threads()), memory, tailor_torch::bf16_products())
}

/// Threads that share one operation.
pub fn threads() -> u32 {
    u32::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// Measures what [`device`] names, for about a second. Writes a small base to `scratch`, an empty folder.
///
/// # Errors
/// The disk is full, or libtorch failed.
pub fn calibrate(scratch: &Path, compute: Compute) -> Result<Rates, Error> {
    let place = "measuring this machine";
    let (kind, arithmetic) = match compute {
        Compute::Bf16 => (Kind::BFloat16, Arithmetic::Bf16),
        Compute::F32 => (Kind::Float, Arithmetic::F32),
    };
    let device = tailor_models::chosen_device().map_err(|error| Error::at(place)(error.into()))?;
    let (flop, dequantised, base, sizes) = match device {
        Device::Cuda(index) => guarded(|| -> tailor_models::Result<_> {
            let base = card::base(index, arithmetic)?;
            Ok((card::product(index, kind)?, card::dequantised(index, &base)?, base, &card::SIZES))
        }),
        _ => guarded(|| -> tailor_models::Result<_> {
            let flop = product(kind)?;
            let dequantised = if is_packed(kind) { WITH_THE_PRODUCT } else { dequantised(compute)? };
            Ok((flop, dequantised, small_base(scratch, arithmetic)?, &ON_HOST))
        }),
    }
    .map_err(Error::at(place))?;
    let tokens = sizes.tokens;
    let ids: Vec<u32> = (0..tokens as u32).map(|at| at * 7919 % VOCAB).collect();
    let rows = [Example::Decoder { ids, in_loss: vec![true; tokens] }];
    let recipe = Recipe {
        train: TrainSpec { max_steps: STEPS, epochs: STEPS as f64, max_tokens: tokens as u32, ..TrainSpec::default() },
        evaluate: EvaluateSpec { tuning_fraction: 0.0, ..EvaluateSpec::default() },
        ..Recipe::default()
    };
    let mut best = Best(0.0);
    train(&base, &recipe, &rows, "calibration", &mut best)?;
    let seconds = tokens as f64 / best.0.max(1e-9);
    let invalid = |error: tailor_plan::Error| Error::at(place)(tailor_models::Error::Request(error.to_string()));
    let work = work(sizes, &recipe, compute).map_err(invalid)?;
    // Never less than a twentieth of the step: a measurement that says so was disturbed.
    let rest = (seconds - work.flop / flop - work.dequantised / dequantised).max(seconds / 20.0);
    Ok(Rates { flop, dequantised, moved: work.moved / rest })
}

fn work(sizes: &Sizes, recipe: &Recipe, compute: Compute) -> tailor_plan::Result<Work> {
    let shape = Shape::parse(sizes.config.as_bytes())?;
    let tokens = sizes.tokens as u64;
    let rows =
        Rows { count: 1, tokens, longest: tokens, longest_input: tokens, longest_target: 0, most_labels: tokens };
    let settings = Settings::of(recipe, shape.family, QuantCode::Nf4, compute, &rows, 1);
    Ok(Work::of_step(&shape, &Adapter::of(&shape, recipe)?, &settings, 1.0))
}

fn small_base(scratch: &Path, compute: Arithmetic) -> tailor_models::Result<Base> {
    let (dense, coded) = (scratch.join("dense"), scratch.join("nf4"));
    if !coded.exists() {
        std::fs::create_dir_all(&dense).map_err(|source| io(&dense, source))?;
        Base::random(ON_HOST.config.as_bytes(), Device::Cpu, 0)?.save_folder(&dense, Float::Bf16)?;
        quantize_folder(&dense, &coded, &QuantOptions::default(), &mut |_| {})?;
    }
    Base::load(&coded, &LoadOptions { compute, ..LoadOptions::default() })
}

fn io(path: &Path, source: std::io::Error) -> tailor_models::Error {
    tailor_models::Error::Io { path: path.display().to_string(), source }
}

/// Whether a step on the host multiplies with the packed weight, without products of bf16 or with kernels for them.
fn is_packed(kind: Kind) -> bool {
    kind == Kind::BFloat16 && (!tailor_torch::bf16_products() || tailor_quant::has_panels())
}

/// FLOP a second of a layer's products, forward and backward, as a step makes them; panics where libtorch does.
fn product(kind: Kind) -> tailor_models::Result<f64> {
    let random = |rows: i64, columns: i64| Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)).to_kind(kind);
    let (x, weight) = (random(TOKENS as i64, INPUT).set_requires_grad(true), random(OUT, INPUT));
    let gradient = random(TOKENS as i64, OUT);
    let packed = is_packed(kind).then(layer).transpose()?;
    let packed = packed.and_then(QuantWeight::new);
    let weight = packed.as_ref().map_or(ProjectionWeight::Dense(&weight), ProjectionWeight::FourBit);
    let one = Projection { weight, bias: None, lora: None };
    let seconds = fastest(|| {
        let y = project(&x, &[one]).unwrap_or_else(|error| panic!("{error}"));
        backward(&[(&y[0], Some(&gradient))], false).unwrap_or_else(|error| panic!("{error}"));
    });
    Ok(4.0 * TOKENS as f64 * (INPUT * OUT) as f64 / seconds)
}

/// A layer's weight in 4 bits.
fn layer() -> tailor_models::Result<Quantized> {
    let shape = [OUT as usize, INPUT as usize];
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|at| (at * 37 % 101) as f32 / 100.0 - 0.5).collect();
    Ok(quantize(&values, &shape, Float::Bf16, Code::Nf4, BlockSize::DEFAULT, true, Backend::default())?)
}

/// Values a second.
fn dequantised(compute: Compute) -> tailor_models::Result<f64> {
    let (weight, count) = (layer()?, (OUT * INPUT) as usize);
    let seconds = match compute {
        Compute::F32 => {
            let mut to = vec![0f32; count];
            fastest(|| weight.dequantize_f32(&mut to))
        }
        Compute::Bf16 => {
            let mut to = vec![half::bf16::ZERO; count];
            fastest(|| weight.dequantize_bf16(&mut to))
        }
    };
    Ok(count as f64 / seconds)
}

/// Of some runs, the first of which only warms up: what others do on the machine can only lengthen them.
fn fastest(mut work: impl FnMut()) -> f64 {
    work();
    let seconds = |()| {
        let started = Instant::now();
        work();
        started.elapsed().as_secs_f64()
    };
    std::iter::repeat_n((), TIMES).map(seconds).fold(f64::INFINITY, f64::min).max(1e-9)
}

/// Tokens a second of the fastest step.
struct Best(f64);

impl Observer for Best {
    fn on_step(&mut self, step: &StepMetrics) {
        self.0 = self.0.max(step.tokens_per_second);
    }
    fn should_stop(&mut self) -> bool {
        false
    }
}
