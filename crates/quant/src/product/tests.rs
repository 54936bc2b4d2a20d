use half::bf16;

use super::*;
use crate::{Backend, BlockSize, Code, CompactBf16, Float, Quantized, quantize};

pub(super) fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next() + next() + next()).collect()
}

fn weight(out: usize, width: usize, code: Code, nested: bool) -> Quantized {
    let values: Vec<f32> = noise(out * width, 7).into_iter().map(|x| Float::Bf16.round(x)).collect();
    quantize(&values, &[out, width], Float::Bf16, code, BlockSize::DEFAULT, nested, Backend::Cpu).unwrap()
}

/// Those whose kernels work with lanes of a register, of which all give the same bits.
fn lanes() -> impl Iterator<Item = Instructions> {
    [Instructions::Portable, Instructions::Avx2, Instructions::Avx512].into_iter().filter(|set| set.available())
}

/// Without vectors.
fn inputs(rows: usize, width: usize) -> Inputs {
    inputs_for(Instructions::Portable, rows, width)
}

fn inputs_for(instructions: Instructions, rows: usize, width: usize) -> Inputs {
    let mut inputs = Inputs::default();
    inputs.resize(rows, width).copy_from_slice(&noise(rows * width, 3));
    inputs.prepare_for(instructions, true, &Alone);
    inputs
}

fn product(x: &Inputs, weights: Weights<'_>, out: usize, low_rank: &[LowRank<'_>]) -> Vec<f32> {
    let run = |instructions| {
        let mut y = vec![f32::NAN; x.rows() * out];
        products_with(x, &mut [Product { weights, bias: None, low_rank, y: &mut y }], &Alone, instructions);
        y
    };
    let y = run(Instructions::Portable);
    for instructions in lanes() {
        assert_eq!(y, run(instructions), "{instructions:?} gives the same bits of the same x");
    }
    y
}

/// By the processor's tiles, where it has some.
fn tiled_inputs(rows: usize, width: usize) -> Option<Inputs> {
    Instructions::Amx.available().then(|| inputs_for(Instructions::Amx, rows, width))
}

/// Σ in f64 of what the weight stands for before it is rounded to its own type.
fn exact(weight: &Quantized, x: &Inputs) -> Vec<f64> {
    let matrix = Matrix::new(weight).unwrap();
    let (out, width) = (matrix.out(), matrix.width());
    let mut scales = Vec::new();
    for row in 0..out {
        let mut of_row = vec![0f32; matrix.padded_blocks()];
        matrix.scales(row, 1, &mut of_row);
        scales.extend_from_slice(&of_row[..width / BLOCK]);
    }
    let value = |at: usize| {
        let byte = weight.packed()[at / 2];
        let number = if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        f64::from(weight.values()[number as usize]) * f64::from(scales[at / BLOCK])
    };
    let row = |row: usize| (0..out).map(move |o| (o, x.row(row)));
    (0..x.rows())
        .flat_map(row)
        .map(|(o, x)| x.iter().enumerate().map(|(i, x)| value(o * width + i) * f64::from(*x)).sum())
        .collect()
}

fn rms(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value * value, count + 1));
    (sum / f64::from(count)).sqrt()
}

#[test]
fn error_is_below_that_of_a_product_with_the_weight_in_bf16() {
    for (code, nested, width) in [(Code::Nf4, true, 1024), (Code::Nf4, false, 64), (Code::Fp4, true, 704)] {
        let (out, rows) = (37, 11);
        let weight = weight(out, width, code, nested);
        let x = inputs(rows, width);
        let y = product(&x, Weights::FourBit(Matrix::new(&weight).unwrap()), out, &[]);
        let exact = exact(&weight, &x);
        let error = |y: &[f32]| rms(y.iter().zip(&exact).map(|(y, exact)| f64::from(*y) - exact));
        // The other way: the weight and x rounded to bf16, added without any further error.
        let mut dense = vec![bf16::ZERO; out * width];
        weight.dequantize_bf16(&mut dense);
        let other = (0..rows * out).map(|at| {
            let (x, w) = (x.row(at / out), &dense[at % out * width..][..width]);
            let sum: f64 = x.iter().zip(w).map(|(x, w)| bf16::from_f32(*x).to_f64() * w.to_f64()).sum();
            sum - exact[at]
        });
        let other = rms(other);
        let own = error(&y);
        println!("{code:?} {width}: {own:.2e} against {other:.2e}");
        assert!(own * 8.0 < other, "{code:?} {width}: {own} against {other}");
        // Tiles have bf16 factors too, and add up in f32.
        if let Some(x) = tiled_inputs(rows, width) {
            let tiled = error(&product(&x, Weights::FourBit(Matrix::new(&weight).unwrap()), out, &[]));
            assert!(tiled < other * 1.05, "{code:?} {width}: {tiled} against {other}");
        }
    }
}

#[test]
fn a_row_gets_the_same_bits_in_whatever_company() {
    let width = 640;
    // The last tile has two rows, or an odd number of them or of their pairs.
    for out in [50, 19, 37, 39] {
        let four_bit = weight(out, width, Code::Nf4, true);
        let dense: Vec<bf16> = noise(out * width, 5).into_iter().map(bf16::from_f32).collect();
        for weights in [Weights::FourBit(Matrix::new(&four_bit).unwrap()), Weights::Bf16(&dense)] {
            let all = product(&inputs(21, width), weights, out, &[]);
            for instructions in lanes() {
                for rows in [1, 2, 3, 4, 5, 6, 7, 8, 9, 14, 16, 21] {
                    let some = product(&inputs_for(instructions, rows, width), weights, out, &[]);
                    assert_eq!(some, all[..rows * out], "{out}, {rows} rows by {instructions:?}");
                }
            }
            let Some(x) = tiled_inputs(70, width) else { continue };
            let all = product(&x, weights, out, &[]);
            for rows in [1, 2, 15, 16, 17, 32, 33, 48, 69] {
                let some = product(&tiled_inputs(rows, width).unwrap(), weights, out, &[]);
                assert_eq!(some, all[..rows * out], "{out}, {rows} rows by tiles");
            }
        }
    }
}

/// Chunks that do not begin their class, and more groups of rows than are kept sums of.
#[test]
fn a_row_gets_the_same_bits_among_hundreds_by_a_wide_weight() {
    let (out, width) = (37, 2112);
    let four_bit = weight(out, width, Code::Nf4, true);
    let weights = Weights::FourBit(Matrix::new(&four_bit).unwrap());
    let all = product(&inputs(521, width), weights, out, &[]);
    for instructions in lanes() {
        for rows in [1, 8, 9, 17, 257, 513, 521] {
            let some = product(&inputs_for(instructions, rows, width), weights, out, &[]);
            assert_eq!(some, all[..rows * out], "{rows} rows by {instructions:?}");
        }
    }
}

#[test]
fn tiles_multiply_a_weight_in_bf16_as_f64_does() {
    let (out, width, rows) = (75, 192, 50);
    let Some(x) = tiled_inputs(rows, width) else { return };
    let weights: Vec<bf16> = noise(out * width, 5).into_iter().map(bf16::from_f32).collect();
    let bias: Vec<bf16> = noise(out, 6).into_iter().map(bf16::from_f32).collect();
    let mut y = vec![f32::NAN; rows * out];
    products(
        &x,
        &mut [Product { weights: Weights::Bf16(&weights), bias: Some(&bias), low_rank: &[], y: &mut y }],
        &Alone,
    );
    for (at, y) in y.iter().enumerate() {
        let (x, w) = (x.row(at / out), &weights[at % out * width..][..width]);
        let sum: f64 = x.iter().zip(w).map(|(x, w)| bf16::from_f32(*x).to_f64() * w.to_f64()).sum();
        let exact = sum + bias[at % out].to_f64();
        assert!((f64::from(*y) - exact).abs() < 1e-5, "{y} and {exact} at {at}");
    }
}

/// By products of bf16, where the processor has them.
#[test]
fn two_halves_of_an_activation_have_sixteen_bits_and_know_no_neighbour() {
    if !Instructions::Avx512.available() {
        return;
    }
    for (out, width) in [(75, 192), (16, 77), (3, 2080)] {
        let weights: Vec<bf16> = noise(out * width, 5).into_iter().map(bf16::from_f32).collect();
        let bias: Vec<bf16> = noise(out, 6).into_iter().map(bf16::from_f32).collect();
        let of = |rows: usize| {
            let mut x = Inputs::default();
            x.resize(rows, width).copy_from_slice(&noise(rows * width, 3));
            x.prepare_for(Instructions::Avx512, false, &Alone);
            let mut y = vec![f32::NAN; rows * out];
            let product = Product { weights: Weights::Bf16(&weights), bias: Some(&bias), low_rank: &[], y: &mut y };
            products(&x, &mut [product], &Alone);
            if let Some(compact) = CompactBf16::new(&weights, width, &Alone) {
                let mut again = vec![f32::NAN; rows * out];
                let weights = Weights::Compact(&compact);
                products(&x, &mut [Product { weights, bias: Some(&bias), low_rank: &[], y: &mut again }], &Alone);
                assert_eq!(y, again, "compact");
            }
            (x, y)
        };
        let (x, all) = of(11);
        for (at, y) in all.iter().enumerate() {
            let pairs = x.row(at / out).iter().zip(&weights[at % out * width..][..width]);
            let terms: Vec<f64> = pairs.map(|(x, w)| f64::from(*x) * w.to_f64()).collect();
            let exact = terms.iter().sum::<f64>() + bias[at % out].to_f64();
            let limit = 2e-6 + terms.iter().map(|term| term.abs()).sum::<f64>() / f64::from(1 << 17);
            assert!((f64::from(*y) - exact).abs() < limit, "{y} and {exact} at {at}");
        }
        for rows in [1, 2, 3, 4, 5, 8] {
            assert_eq!(of(rows).1, all[..rows * out], "{rows} rows of {out} × {width}");
        }
    }
}

#[test]
fn blocks_of_128_and_a_row_of_odd_blocks_have_their_own_scales() {
    for (size, width) in [(128, 384), (64, 192), (256, 64)] {
        let out = 9;
        let values = noise(out * width, 7);
        let size = BlockSize::try_new(size).unwrap();
        for nested in [false, true] {
            let weight = quantize(&values, &[out, width], Float::F32, Code::Nf4, size, nested, Backend::Cpu).unwrap();
            let mut dense = vec![0f32; out * width];
            weight.dequantize_f32(&mut dense);
            for (instructions, rows) in lanes().flat_map(|set| [1, 2, 6, 10].map(|rows| (set, rows))) {
                let x = inputs_for(instructions, rows, width);
                let y = product(&x, Weights::FourBit(Matrix::new(&weight).unwrap()), out, &[]);
                for (at, y) in y.iter().enumerate() {
                    let (x, w) = (x.row(at / out), &dense[at % out * width..][..width]);
                    let sum: f32 = x.iter().zip(w).map(|(x, w)| x * w).sum();
                    assert!((sum - y).abs() < 2e-3, "{sum} and {y}");
                }
            }
        }
    }
}

/// Against f64, and the same whatever other rows there are.
#[test]
fn a_weight_goes_back_as_exactly_as_there() {
    for (code, nested, (out, width)) in
        [(Code::Nf4, true, (640, 192)), (Code::Nf4, false, (64, 64)), (Code::Fp4, true, (704, 128))]
    {
        let weight = weight(out, width, code, nested);
        let matrix = Matrix::new(&weight).unwrap();
        if !matrix.goes_back() {
            continue;
        }
        let mut dense = vec![0f32; out * width];
        let blocks = width / BLOCK;
        for (at, to) in dense.iter_mut().enumerate() {
            let byte = weight.packed()[at / 2];
            let number = if at.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
            *to = weight.values()[number as usize] * matrix.scale(at / width, at / BLOCK % blocks);
        }
        let of = |rows: usize| {
            let x = inputs_for(Instructions::Avx2, rows, out);
            let mut y = vec![f32::NAN; rows * width];
            let product = Product { weights: Weights::FourBitBack(matrix), bias: None, low_rank: &[], y: &mut y };
            products_with(&x, &mut [product], &Alone, Instructions::Avx2);
            (x, y)
        };
        let (x, all) = of(300);
        let sums = |round: &dyn Fn(f32) -> f64| -> Vec<f64> {
            let sum = |at: usize| {
                let column = dense.iter().skip(at % width).step_by(width);
                x.row(at / width).iter().zip(column).map(|(x, w)| round(*x) * round(*w)).sum()
            };
            (0..all.len()).map(sum).collect()
        };
        let exact = sums(&|value| f64::from(value));
        let rounded = sums(&|value| bf16::from_f32(value).to_f64());
        let own = rms(all.iter().zip(&exact).map(|(y, exact)| f64::from(*y) - exact));
        let other = rms(rounded.iter().zip(&exact).map(|(y, exact)| y - exact));
        println!("{code:?} {out} × {width}: {own:.2e} against {other:.2e}");
        assert!(own * 8.0 < other, "{own} against {other}");
        for rows in [5, 8, 9, 257, 299] {
            assert_eq!(of(rows).1, all[..rows * width], "{rows} rows of {code:?}");
        }
    }
}

#[test]
fn what_the_kernels_cannot_take_is_told_apart() {
    let of = |code, shape: &[usize]| {
        let count = shape.iter().product();
        quantize(&noise(count, 1), shape, Float::F32, code, BlockSize::DEFAULT, false, Backend::Cpu).unwrap()
    };
    assert!(Matrix::new(&of(Code::Nf4, &[2, 64])).is_some());
    assert!(Matrix::new(&of(Code::Uniform4, &[2, 64])).is_none(), "a block has a minimum too");
    assert!(Matrix::new(&of(Code::Nf4, &[2, 96])).is_none(), "a block reaches over two rows");
    assert!(Matrix::new(&of(Code::Nf4, &[128])).is_none(), "no matrix");
}

#[test]
fn low_rank_terms_come_to_their_rows_alone() {
    if let Some(x) = tiled_inputs(40, 128) {
        terms_reach_their_rows(&x);
    }
    // In whatever company, here as well.
    let all = terms_reach_their_rows(&inputs(40, 128));
    for instructions in lanes() {
        assert_eq!(terms_reach_their_rows(&inputs_for(instructions, 40, 128)), all, "{instructions:?}");
        let few = terms_reach_their_rows(&inputs_for(instructions, 3, 128));
        assert_eq!((&all[..41], &all[82..123]), (&few[..41], &few[82..123]), "rows 0 and 2 by {instructions:?}");
    }
}

/// All rows' outputs.
fn terms_reach_their_rows(x: &Inputs) -> Vec<f32> {
    let (out, width, rows) = (41, x.width(), x.rows());
    let weight = weight(out, width, Code::Nf4, true);
    let weights = Weights::FourBit(Matrix::new(&weight).unwrap());
    let plain = product(x, weights, out, &[]);
    let narrow = |values: Vec<f32>| values.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    let factors: Vec<(usize, Vec<bf16>, Vec<bf16>)> = [3, 16, 40]
        .into_iter()
        .map(|rank| (rank, narrow(noise(rank * width, 9)), narrow(noise(rank * out, rank as u32))))
        .collect();
    let rows_of: [&[usize]; 3] = if rows == 3 { [&[0], &[2], &[]] } else { [&[0, 7, 20, 39], &[2], &[17, 33, 38]] };
    let terms: Vec<LowRank<'_>> = factors
        .iter()
        .zip(rows_of)
        .map(|((rank, a, b), rows)| LowRank { a, b, rank: *rank, scale: 0.5, rows })
        .collect();
    let y = product(x, weights, out, &terms);
    for row in 0..rows {
        let (y, plain) = (&y[row * out..][..out], &plain[row * out..][..out]);
        let Some(term) = terms.iter().find(|term| term.rows.contains(&row)) else {
            assert_eq!(y, plain, "row {row} has none");
            continue;
        };
        let h: Vec<f64> = term
            .a
            .chunks(width)
            .map(|a| a.iter().zip(x.row(row)).map(|(a, x)| a.to_f64() * f64::from(*x)).sum())
            .collect();
        let update = |o: usize| {
            let b = term.b.chunks(out).map(|b| b[o].to_f64());
            h.iter().zip(b).map(|(h, b)| h * b).sum::<f64>() * 0.5
        };
        let largest = (0..out).map(|o| update(o).abs()).fold(0.0, f64::max);
        for (o, (y, plain)) in y.iter().zip(plain).enumerate() {
            let error = (f64::from(y - plain) - update(o)).abs();
            assert!(error < 1e-4 * largest.max(1.0), "row {row}, output {o}: {y} − {plain} and {}", update(o));
        }
    }
    y
}

#[test]
fn an_input_that_is_no_number_spoils_its_own_row() {
    for instructions in [Instructions::Portable, Instructions::detect()] {
        [3, 7].into_iter().for_each(|rows| no_number_spoils_its_own_row(instructions, rows));
    }
}

fn no_number_spoils_its_own_row(instructions: Instructions, rows: usize) {
    let (out, width) = (8, 128);
    let weight = weight(out, width, Code::Nf4, true);
    let mut x = Inputs::default();
    let values = x.resize(rows, width);
    values.copy_from_slice(&noise(rows * width, 3));
    values[width + 5] = f32::INFINITY;
    x.prepare_for(instructions, true, &Alone);
    let mut y = vec![0.0; rows * out];
    let weights = Weights::FourBit(Matrix::new(&weight).unwrap());
    products(&x, &mut [Product { weights, bias: None, low_rank: &[], y: &mut y }], &Alone);
    assert!(y[out..2 * out].iter().all(|y| !y.is_finite()), "{instructions:?}");
    assert!(y[..out].iter().chain(&y[2 * out..]).all(|y| y.is_finite()));
}
