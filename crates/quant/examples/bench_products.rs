//! Speed of products with a 4-bit weight for 1 to 512 rows, at the sizes of a 1.1B Llama's layers: packed bytes a second and
//! operations a second, on all threads that rayon has. Numbers choose among the rows, `lanes` AVX-512 where there are tiles, `near`
//! a weight that stays in the caches. Enough weights follow each other that none is found in a cache.

use std::time::Instant;

use half::bf16;
use rand::{Rng as _, SeedableRng as _};
use tailor_quant::{
    Backend, BlockSize, Code, Float, Inputs, Instructions, Matrix, Product, Quantized, Weights, Workers, has_panels,
    products_with, quantize,
};

struct Rayon;

impl Workers for Rayon {
    fn run(&self, work: &(dyn Fn() + Sync)) {
        rayon::broadcast(|_| work());
    }

    fn count(&self) -> usize {
        rayon::current_num_threads()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut noise = |count: usize| -> Vec<f32> { (0..count).map(|_| random.random::<f32>() - 0.5).collect() };
    let words: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| words.iter().any(|other| other == word);
    let near = has("near");
    let (count, out, width) = if near { (1, 1024, 2048) } else { (16, 5632, 2048) };
    let values = noise(out * width);
    let one = quantize(&values, &[out, width], Float::Bf16, Code::Nf4, BlockSize::DEFAULT, true, Backend::Cpu)?;
    let again = || quantize(&values, &[out, width], Float::Bf16, Code::Nf4, BlockSize::DEFAULT, true, Backend::Cpu);
    let mut weights: Vec<Quantized> = vec![one];
    for _ in 1..count {
        weights.push(again()?);
    }
    let dense: Vec<bf16> = noise(32000 * width).into_iter().map(bf16::from_f32).collect();
    let chosen: Vec<usize> = words.iter().filter_map(|word| word.parse().ok()).collect();
    // Tiles and lanes beside each other, where there are both.
    let best = Instructions::detect();
    let instructions = if has("lanes") { Instructions::Avx512 } else { best };
    println!("4 bits, {out} × {width}, {instructions:?}");
    let all = [1, 2, 3, 4, 8, 16, 32, 128, 512];
    for rows in all.into_iter().filter(|rows| chosen.is_empty() || chosen.contains(rows)) {
        let mut x = Inputs::default();
        x.resize(rows, width).copy_from_slice(&noise(rows * width));
        let mut y = vec![0f32; rows * out];
        let rounds = if near {
            2000 / rows
        } else if rows < 16 {
            5
        } else {
            2
        };
        let mut best = f64::MAX;
        for _ in 0..rounds {
            let start = Instant::now();
            for weight in &weights {
                x.prepare_for(instructions, true, &Rayon);
                let Some(matrix) = Matrix::new(weight) else { continue };
                let product = Product { weights: Weights::FourBit(matrix), bias: None, low_rank: &[], y: &mut y };
                products_with(&x, &mut [product], &Rayon, instructions);
            }
            best = best.min(start.elapsed().as_secs_f64());
        }
        let size = (count * out * width) as f64;
        println!(
            "{rows:4} rows: {:7.1} GB/s packed, {:7.1} GFLOP/s",
            size * 0.5156 / best / 1e9,
            2.0 * rows as f64 * size / best / 1e9
        );
    }
    if near {
        return Ok(());
    }
    println!("bf16, 32000 × {width}");
    for rows in [1, 4, 8, 32] {
        let mut x = Inputs::default();
        x.resize(rows, width).copy_from_slice(&noise(rows * width));
        x.prepare_for(instructions, false, &Rayon);
        let mut y = vec![0f32; rows * 32000];
        let mut best = f64::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            let product = Product { weights: Weights::Bf16(&dense), bias: None, low_rank: &[], y: &mut y };
            products_with(&x, &mut [product], &Rayon, instructions);
            best = best.min(start.elapsed().as_secs_f64());
        }
        let size = dense.len() as f64;
        println!(
            "{rows:4} rows: {:7.1} GB/s, {:7.1} GFLOP/s",
            size * 2.0 / best / 1e9,
            2.0 * rows as f64 * size / best / 1e9
        );
    }
    panels(&mut noise)?;
    let bytes: Vec<u64> = vec![1; 1 << 27];
    let next = std::sync::atomic::AtomicUsize::new(0);
    let start = Instant::now();
    Rayon.run(&|| loop {
        let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let Some(part) = bytes.chunks(1 << 17).nth(at) else { return };
        std::hint::black_box(part.iter().fold(0u64, |all, x| all ^ x));
    });
    println!("read {:.1} GB/s", (bytes.len() * 8) as f64 / start.elapsed().as_secs_f64() / 1e9);
    Ok(())
}

/// What training's many rows take where bf16 is multiplied, at the sizes of a 220M Llama's layers.
#[cfg(target_arch = "x86_64")]
fn panels(noise: &mut impl FnMut(usize) -> Vec<f32>) -> Result<(), Box<dyn std::error::Error>> {
    use tailor_quant::{Factor, Panels, Rows, Sum, Term};
    if !has_panels() {
        return Ok(());
    }
    let mut panels = Panels::default();
    for (out, width) in [(1024, 1024), (2816, 1024), (1024, 2816), (4096, 4096)] {
        let values = noise(out * width);
        let weight = quantize(&values, &[out, width], Float::Bf16, Code::Nf4, BlockSize::DEFAULT, true, Backend::Cpu)?;
        let Some(matrix) = Matrix::new(&weight) else { continue };
        for rows in [128, 2048] {
            for (name, factor, width, out) in
                [("there", Factor::FourBit(matrix), width, out), ("back", Factor::FourBitBack(matrix), out, width)]
            {
                let x: Vec<bf16> = noise(rows * width).into_iter().map(bf16::from_f32).collect();
                let mut y = vec![bf16::ZERO; rows * out];
                let terms = [Term { x: Rows { values: &x, stride: width, width }, factor }];
                let mut best = f64::MAX;
                for _ in 0..5 {
                    let start = Instant::now();
                    panels.sums(rows, &mut [Sum { terms: &terms, out, add: false, y: &mut y }], &Rayon);
                    best = best.min(start.elapsed().as_secs_f64());
                }
                let operations = 2.0 * (rows * out * width) as f64;
                println!(
                    "{rows:4} rows of bf16, {name:5} {width:4} → {out:4}: {:7.1} GFLOP/s",
                    operations / best / 1e9
                );
            }
        }
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn panels(_: &mut impl FnMut(usize) -> Vec<f32>) -> Result<(), Box<dyn std::error::Error>> {
    assert!(!has_panels());
    Ok(())
}
