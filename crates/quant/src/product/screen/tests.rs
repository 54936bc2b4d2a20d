use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::CompactBf16;
use crate::product::Alone;

/// Values that are many and small, or few and large, as `tail` grows.
fn values(count: usize, tail: i32, random: &mut ChaCha8Rng) -> Vec<f32> {
    let mut one = || (0..6).map(|_| random.random::<f32>() - 0.5).sum::<f32>();
    (0..count).map(|_| one() * one().abs().powi(tail)).collect()
}

fn weights(out: usize, width: usize, tail: i32, random: &mut ChaCha8Rng) -> Vec<bf16> {
    values(out * width, tail, random).into_iter().map(bf16::from_f32).collect()
}

fn inputs(rows: usize, x: &[f32]) -> Inputs {
    let mut inputs = Inputs::default();
    inputs.resize(rows, x.len() / rows).copy_from_slice(x);
    inputs
}

/// The first largest output of each row, from all outputs.
fn expected(weights: &[bf16], x: &mut Inputs, instructions: Instructions) -> Vec<Option<u32>> {
    let out = weights.len() / x.width();
    x.prepare_for(instructions, false, &Alone);
    let mut y = vec![0f32; x.rows() * out];
    let product = Product { weights: Weights::Bf16(weights), bias: None, low_rank: &[], y: &mut y };
    products_with(x, &mut [product], &Alone, instructions);
    let first = |y: &[f32]| {
        let pairs = (0u32..).zip(y.iter().copied());
        pairs.map(Some).reduce(better).flatten().map(|(at, _)| at)
    };
    y.chunks_exact(out).map(first).collect()
}

fn instruction_sets() -> impl Iterator<Item = Instructions> {
    let all = [Instructions::Portable, Instructions::Avx2, Instructions::Avx512, Instructions::Amx];
    all.into_iter().filter(|set| set.available())
}

#[test]
fn what_is_found_is_the_first_of_the_largest_outputs() {
    if !Screen::is_taken() {
        return;
    }
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let (mut found, mut asked) = (0, 0);
    for (out, width, tail) in [(4000, 256, 0), (1500, 320, 2), (777, 2048, 1), (2048, 64, 0)] {
        let mut weights = weights(out, width, tail, &mut random);
        // Rows that differ by little or nothing.
        for at in (0..out - 40).step_by(40) {
            let (first, rest) = weights[at * width..].split_at_mut(width);
            rest[4 * width..5 * width].copy_from_slice(first);
            rest[8 * width..9 * width].copy_from_slice(first);
            let value = &mut rest[8 * width + at % width];
            *value = bf16::from_bits(value.to_bits() ^ 1);
        }
        let screen = Screen::new(&weights, width, &Alone).expect("whole blocks of numbers");
        let compact = CompactBf16::new(&weights, width, &Alone);
        for rows in [1, 2, 9, 33] {
            // Some are of the kind that has one largest output by far: near a row of the weight.
            let mut x = values(rows * width, tail, &mut random);
            for (row, x) in x.chunks_exact_mut(width).enumerate().skip(1).step_by(2) {
                let like = &weights[row * 7 % out * width..][..width];
                x.iter_mut().zip(like).for_each(|(x, w)| *x += 2.0 * w.to_f32());
            }
            let mut x = inputs(rows, &x);
            for instructions in instruction_sets() {
                let expected = expected(&weights, &mut x, instructions);
                let mut room = Vec::new();
                let mut check = |weights| {
                    let largest = screen.largest_with(weights, &mut x, &mut room, &Alone, instructions);
                    asked += rows;
                    for (largest, expected) in largest.iter().zip(&expected).filter(|(largest, _)| largest.is_some()) {
                        assert_eq!(largest, expected, "{out} × {width}, {rows} rows, {instructions:?}");
                        found += 1;
                    }
                };
                check(Weights::Bf16(&weights));
                if let Some(compact) = compact.as_ref().filter(|_| instructions == Instructions::Avx512) {
                    check(Weights::Compact(compact));
                }
            }
        }
    }
    assert!(found * 2 > asked, "{found} of {asked} were found without all outputs");
}

#[test]
fn outputs_of_the_copy_stay_within_the_bound_and_come_near_it() {
    if !Screen::is_taken() {
        return;
    }
    let mut random = ChaCha8Rng::seed_from_u64(12);
    let (out, width) = (2000, 512);
    for tail in 0..3 {
        let weights = weights(out, width, tail, &mut random);
        let screen = Screen::new(&weights, width, &Alone).expect("whole blocks of numbers");
        // Of so many bits that tiles take them as they are.
        let x = values(width, tail, &mut random).into_iter().map(|x| bf16::from_f32(x).to_f32()).collect::<Vec<f32>>();
        let exact = weights.chunks_exact(width).map(|w| {
            let terms = w.iter().zip(&x).map(|(w, x)| w.to_f64() * f64::from(*x));
            terms.sum::<f64>()
        });
        let exact: Vec<f64> = exact.collect();
        let dither = f64::from(screen.of_dither(&x));
        for instructions in instruction_sets() {
            let mut x = inputs(1, &x);
            x.prepare_for(instructions, true, &Alone);
            let mut y = vec![0f32; out];
            let matrix = Matrix::new(&screen.coarse).expect("whole blocks");
            let product = Product { weights: Weights::FourBit(matrix), bias: None, low_rank: &[], y: &mut y };
            products_with(&x, &mut [product], &Alone, instructions);
            let bound = f64::from(bound(x.row(0)));
            let shares = y.iter().zip(&exact).zip(&screen.steps).map(|((y, exact), step)| {
                let step = f64::from(*step);
                (f64::from(*y) + step * dither - exact).abs() / (step * bound)
            });
            let worst = shares.fold(0f64, f64::max);
            // Of normal deviates of a ninth of the bound: the largest of 2000 is at 3.5 of them.
            assert!((0.2..0.8).contains(&worst), "{worst} of the bound, {instructions:?}");
        }
    }
}

#[test]
fn where_too_many_could_be_it_or_there_are_no_numbers_none_is_named() {
    if !Screen::is_taken() {
        return;
    }
    let mut random = ChaCha8Rng::seed_from_u64(13);
    let (out, width) = (256, 128);
    let one = weights(1, width, 0, &mut random);
    let equal: Vec<bf16> = one.iter().copied().cycle().take(out * width).collect();
    let screen = Screen::new(&equal, width, &Alone).expect("whole blocks of numbers");
    let mut room = Vec::new();
    let mut largest = |x: &[f32]| screen.largest(Weights::Bf16(&equal), &mut inputs(1, x), &mut room, &Alone);
    let mut x = values(width, 0, &mut random);
    assert_eq!(largest(&x), [None], "all are equal");
    x[5] = f32::NAN;
    assert_eq!(largest(&x), [None]);
    x[5] = f32::INFINITY;
    assert_eq!(largest(&x), [None]);
    let zeros = vec![bf16::ZERO; out * width];
    assert!(Screen::new(&zeros, width, &Alone).is_some());
}

#[test]
fn a_weight_that_will_not_do_has_none() {
    let mut random = ChaCha8Rng::seed_from_u64(14);
    let mut weights = weights(4, 128, 0, &mut random);
    assert!(Screen::new(&weights, 96, &Alone).is_none(), "no whole blocks");
    assert!(Screen::new(&[], 128, &Alone).is_none());
    for value in [bf16::NAN, bf16::INFINITY] {
        weights[130] = value;
        assert!(Screen::new(&weights, 128, &Alone).is_none());
    }
}
