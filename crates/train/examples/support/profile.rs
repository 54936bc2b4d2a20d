//! Where a step's time goes: each kind of work by itself at the step's own sizes; what the step takes beyond them is the
//! rest. And what libtorch's plain products would take, as the measure of what can be had.

use std::time::Instant;

use anyhow::Result;
use tailor_plan::Shape;
use tailor_quant::{Backend, BlockSize, Code, Float, quantize};
use tailor_torch::{
    Factors, Gate, LabelWeights, Projection, ProjectionWeight, QuantWeight, attend, backward, cross_entropy, gated,
    project, rms_norm, rotate,
};
use tch::{Device, Kind, Tensor};

/// Tokens of a step: 4 × 512.
const N: i64 = 2048;
/// Rows of one slice of the loss: 16 Mi logits.
const SLICE: i64 = 524;

fn random(size: &[i64]) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16)
}

fn leaf(size: &[i64]) -> Tensor {
    random(size).set_requires_grad(true)
}

/// The median of three runs after one that warms up.
fn timed(mut work: impl FnMut()) -> f64 {
    work();
    let runs = std::iter::repeat_with(|| {
        let started = Instant::now();
        work();
        started.elapsed().as_secs_f64()
    });
    super::median(runs.take(3).collect())
}

/// Forward, and backward from a gradient of ones.
fn there_and_back(forward: impl Fn() -> Vec<Tensor>) -> f64 {
    timed(|| {
        let made = forward();
        let seeds: Vec<Tensor> = made.iter().map(Tensor::ones_like).collect();
        let pairs: Vec<_> = made.iter().zip(&seeds).map(|(y, seed)| (y, Some(seed))).collect();
        backward(&pairs, false).unwrap_or_else(|error| panic!("{error}"));
    })
}

/// Projections of one input: in 4 bits with LoRA, in 4 bits, dense; and libtorch's own two products in f32 and in bf16.
struct Products {
    lora: f64,
    coded: f64,
    dense: f64,
    plain_f32: f64,
    plain_bf16: f64,
}

fn products(input: i64, outs: &[i64]) -> Result<Products> {
    let x = leaf(&[N, input]);
    let dense: Vec<Tensor> = outs.iter().map(|out| random(&[*out, input])).collect();
    let coded = outs.iter().map(|out| {
        let values: Vec<f32> = (0..out * input).map(|at| (at * 37 % 101) as f32 / 100.0 - 0.5).collect();
        let shape = [*out as usize, input as usize];
        let weight = quantize(&values, &shape, Float::Bf16, Code::Nf4, BlockSize::DEFAULT, true, Backend::default())?;
        QuantWeight::new(weight).ok_or_else(|| anyhow::anyhow!("a matrix"))
    });
    let coded = coded.collect::<Result<Vec<_>>>()?;
    let wide = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let factors: Vec<[Tensor; 2]> = outs.iter().map(|out| [wide(&[16, input]), wide(&[*out, 16])]).collect();
    let of = |weight, lora| Projection { weight, bias: None, lora };
    let pairs = factors.iter().map(|[a, b]| Some(Factors { a, b, scale: 2.0 }));
    let with_lora = coded.iter().zip(pairs).map(|(weight, lora)| of(ProjectionWeight::FourBit(weight), lora));
    let with_lora: Vec<_> = with_lora.collect();
    let alone: Vec<_> = coded.iter().map(|weight| of(ProjectionWeight::FourBit(weight), None)).collect();
    let uncoded: Vec<_> = dense.iter().map(|weight| of(ProjectionWeight::Dense(weight), None)).collect();
    let run = |all: &[Projection<'_>]| there_and_back(|| project(&x, all).unwrap_or_else(|error| panic!("{error}")));
    // libtorch's bf16 product is so slow without instructions for it that few rows must do.
    let rows = if tailor_torch::bf16_products() { N } else { 16 };
    let plain = |kind: Kind, rows: i64| {
        let x = x.detach().narrow(0, 0, rows).to_kind(kind);
        let seconds = dense.iter().map(|weight| {
            let (weight, gradient) = (weight.to_kind(kind), random(&[rows, weight.size()[0]]).to_kind(kind));
            timed(|| {
                let _ = (x.linear(&weight, None::<&Tensor>), gradient.matmul(&weight));
            })
        });
        seconds.sum::<f64>() * N as f64 / rows as f64
    };
    Ok(Products {
        lora: run(&with_lora),
        coded: run(&alone),
        dense: run(&uncoded),
        plain_f32: plain(Kind::Float, N),
        plain_bf16: plain(Kind::BFloat16, rows),
    })
}

/// `step`: seconds of a whole one, nothing run again.
pub fn print(shape: &Shape, step: f64) -> Result<()> {
    let (d, layers) = (shape.hidden as i64, shape.blocks.len() as f64);
    let block = &shape.blocks[0];
    let out = |linear: usize| shape.linears[linear].out as i64;
    let [q, k, v, o] = block.attention.linears;
    let (heads, width) = (block.attention.heads as i64, block.attention.head_dim as i64);
    let inner = out(block.gate);
    let gates: Vec<i64> = [block.gate].into_iter().chain(block.up).map(out).collect();
    let groups = [
        products(d, &[out(q), out(k), out(v)])?,
        products(heads * width, &[out(o)])?,
        products(d, &gates)?,
        products(inner, &[d])?,
    ];
    let sum = |part: &dyn Fn(&Products) -> f64| groups.iter().map(part).sum::<f64>() * layers;

    let [query, key, value] = [0, 1, 2].map(|_| leaf(&[4, heads, 512, width]));
    let scale = (width as f64).powf(-0.5);
    let attention =
        there_and_back(|| vec![attend(&query, &key, &value, None, true, scale).unwrap_or_else(|e| panic!("{e}"))]);
    let x = leaf(&[N, d]);
    let weight = random(&[d]);
    let norm = there_and_back(|| vec![rms_norm(&x, &weight, 1e-5, false).unwrap_or_else(|e| panic!("{e}"))]);
    let angles = random(&[1, 1, 512, width]);
    let turn = there_and_back(|| vec![rotate(&query, &angles, &angles).unwrap_or_else(|e| panic!("{e}"))]);
    let [gate, up] = [0, 1].map(|_| leaf(&[N, inner]));
    let swiglu = there_and_back(|| vec![gated(&gate, &up, Gate::Silu).unwrap_or_else(|e| panic!("{e}"))]);
    let (states, head) = (random(&[SLICE, d]), random(&[shape.vocab as i64, d]));
    let labels = Tensor::arange(SLICE, (Kind::Int64, Device::Cpu));
    let loss = timed(|| {
        let _ = cross_entropy(&states, &head, &labels, LabelWeights::Same(1.0)).unwrap_or_else(|e| panic!("{e}"));
    });

    // Where the packed weight itself is multiplied, that takes less than a product with a dense one.
    let products = sum(&|group| group.dense.min(group.coded));
    let known = [
        ("products with the frozen weights", products),
        ("dequantising", sum(&|group| group.coded) - products),
        ("LoRA", sum(&|group| group.lora - group.coded)),
        ("head and cross-entropy", loss * N as f64 / SLICE as f64),
        ("attention", attention * layers),
        ("norms", norm * 2.0 * layers),
        ("rotations", turn * 2.0 * layers),
        ("gated activations", swiglu * layers),
    ];
    let rest = step - known.iter().map(|(_, seconds)| seconds).sum::<f64>();
    println!("\n| part of a step, nothing run again | s | share |\n| --- | --- | --- |");
    for (name, seconds) in known.into_iter().chain([("embeddings, sums, update and what was disturbed", rest)]) {
        println!("| {name} | {seconds:.2} | {:.0} % |", seconds / step * 100.0);
    }
    let flop: f64 = shape.linears.iter().map(|linear| 4.0 * N as f64 * linear.values() as f64).sum();
    let rate = |seconds: f64| flop / seconds / 1e9;
    let (f32, bf16) = (sum(&|group| group.plain_f32), sum(&|group| group.plain_bf16));
    println!("\n| products of the frozen weights, forward and backward | GFLOP/s |\n| --- | --- |");
    println!("| libtorch by itself, f32 | {:.0} |", rate(f32));
    println!("| libtorch by itself, bf16 | {:.1} |", rate(bf16));
    println!("| ours by themselves, on bf16 | {:.0} |", rate(products));
    println!("| counted over the whole step | {:.0} |", rate(step));
    // The head is one of the model's products too, though none of 4 bits.
    let with_head = (flop + 4.0 * (N * d * shape.vocab as i64) as f64) / step / 1e9;
    println!("| the same with the head's | {with_head:.0} |");
    let share = |counted: f64| counted / rate(bf16) * 100.0;
    println!(
        "\nOver the whole step: {:.0} % of libtorch's bf16 rate, {:.0} % with the head's products.",
        share(rate(step)),
        share(with_head)
    );
    Ok(())
}
