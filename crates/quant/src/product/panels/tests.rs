use super::*;
use crate::product::Alone;
use crate::product::tests::noise;
use crate::{Backend, BlockSize, Code, Float, Quantized, quantize};

fn narrow(values: &[f32]) -> Vec<bf16> {
    values.iter().copied().map(bf16::from_f32).collect()
}

fn weight(out: usize, width: usize, nested: bool) -> Quantized {
    weight_in(Float::Bf16, out, width, nested)
}

fn weight_in(float: Float, out: usize, width: usize, nested: bool) -> Quantized {
    let values: Vec<f32> = noise(out * width, 7).into_iter().map(|x| float.round(x)).collect();
    quantize(&values, &[out, width], float, Code::Nf4, BlockSize::DEFAULT, nested, Backend::Cpu).unwrap()
}

fn dequantized(weight: &Quantized) -> Vec<bf16> {
    let mut values = vec![bf16::ZERO; weight.elements()];
    weight.dequantize_bf16(&mut values);
    values
}

/// Some threads of their own.
struct Threads(usize);

impl Workers for Threads {
    fn run(&self, work: &(dyn Fn() + Sync)) {
        std::thread::scope(|scope| (0..self.0).for_each(|_| drop(scope.spawn(work))));
    }

    fn count(&self) -> usize {
        self.0
    }
}

fn run(rows: usize, terms: &[Term<'_>], out: usize, before: Option<&[bf16]>, workers: &dyn Workers) -> Vec<bf16> {
    let mut y = before.map_or(vec![bf16::NAN; rows * out], <[bf16]>::to_vec);
    Panels::default().sums(rows, &mut [Sum { terms, out, add: before.is_some(), y: &mut y }], workers);
    y
}

/// x, its stride, how many values of it, and the weight of an output and a value.
type Plain<'a> = (&'a [bf16], usize, usize, &'a dyn Fn(usize, usize) -> bf16);

/// Σ in f64, and of magnitudes.
fn exact(row: usize, out: usize, terms: &[Plain<'_>]) -> (f64, f64) {
    let mut sums = (0.0, 0.0);
    for (x, stride, width, weight) in terms {
        for at in 0..*width {
            let product = x[row * stride + at].to_f64() * weight(out, at).to_f64();
            sums = (sums.0 + product, sums.1 + product.abs());
        }
    }
    sums
}

/// Each output is rounded once: half of bf16's last place, and f32's own errors on the way.
fn assert_sums(y: &[bf16], out: usize, terms: &[Plain<'_>]) {
    for (at, y) in y.iter().enumerate() {
        let (sum, magnitudes) = exact(at / out, at % out, terms);
        let limit = sum.abs() / 256.0 + magnitudes * 1e-5 + 1e-30;
        assert!((y.to_f64() - sum).abs() <= limit, "{y} for {sum} at {at} of {}, {out} a row", terms.len());
    }
}

#[test]
fn sums_of_4_bit_and_dense_terms_are_rounded_once() {
    if !halves::available() {
        return;
    }
    // Blocks of rows that are not whole, panels that are not, and widths of one step, of two, and of a few blocks.
    for (rows, out, width, rank) in [(1, 75, 192, 3), (31, 64, 64, 16), (40, 130, 2112, 8), (300, 33, 4288, 5)] {
        let weight = weight(out, width, out.is_multiple_of(2));
        let values = dequantized(&weight);
        let (x, stride) = (narrow(&noise(rows * (width + 5), 3)), width + 5);
        let (h, b) = (narrow(&noise(rows * rank, 4)), narrow(&noise(out * rank, 5)));
        let matrix = Matrix::new(&weight).unwrap();
        let terms = [
            Term { x: Rows { values: &x, stride, width }, factor: Factor::FourBit(matrix) },
            Term { x: Rows { values: &h, stride: rank, width: rank }, factor: Factor::Dense(&b) },
        ];
        let y = run(rows, &terms, out, None, &Alone);
        let plain: [Plain<'_>; 2] =
            [(&x, stride, width, &|out, k| values[out * width + k]), (&h, rank, rank, &|out, k| b[out * rank + k])];
        assert_sums(&y, out, &plain);
        assert_eq!(y, run(rows, &terms, out, None, &Threads(3)), "threads make no difference");
        let last = Term { x: Rows { values: &x[(rows - 1) * stride..], ..terms[0].x }, ..terms[0] };
        let last_h = Term { x: Rows { values: &h[(rows - 1) * rank..], ..terms[1].x }, ..terms[1] };
        assert_eq!(y[(rows - 1) * out..], run(1, &[last, last_h], out, None, &Alone), "nor do other rows");
    }
}

#[test]
fn weights_go_back_and_are_added_to_what_is_there() {
    if !halves::available() {
        return;
    }
    for (rows, out, width, rank) in [(1, 75, 192, 3), (31, 64, 64, 16), (40, 2113, 128, 7), (300, 4097, 64, 4)] {
        let weight = weight(out, width, width == 64);
        let values = dequantized(&weight);
        let (g, gh) = (narrow(&noise(rows * out, 3)), narrow(&noise(rows * rank, 4)));
        let (a, before) = (narrow(&noise(rank * width, 5)), narrow(&noise(rows * width, 6)));
        let matrix = Matrix::new(&weight).unwrap();
        let terms = [
            Term { x: Rows { values: &g, stride: out, width: out }, factor: Factor::FourBitBack(matrix) },
            Term { x: Rows { values: &gh, stride: rank, width: rank }, factor: Factor::DenseBack(&a) },
        ];
        let gx = run(rows, &terms, width, Some(&before), &Threads(2));
        // What is there stands for rows of its own by a weight of ones where output and value are the same.
        let plain: [Plain<'_>; 3] = [
            (&g, out, out, &|at, k| values[k * width + at]),
            (&gh, rank, rank, &|at, k| a[k * width + at]),
            (&before, width, width, &|at, k| if at == k { bf16::ONE } else { bf16::ZERO }),
        ];
        assert_sums(&gx, width, &plain);
    }
}

#[test]
fn sums_of_one_x_are_made_together_as_apart() {
    if !halves::available() {
        return;
    }
    let (rows, width) = (2300, 128);
    let x = narrow(&noise(rows * width, 3));
    let weights = [(96, true), (32, false), (40, true)].map(|(out, nested)| weight(out, width, nested));
    let terms: Vec<[Term<'_>; 1]> = weights
        .iter()
        .map(|weight| {
            let factor = Factor::FourBit(Matrix::new(weight).unwrap());
            [Term { x: Rows { values: &x, stride: width, width }, factor }]
        })
        .collect();
    let mut all: Vec<Vec<bf16>> = weights.iter().map(|weight| vec![bf16::NAN; rows * weight.shape()[0]]).collect();
    let mut sums: Vec<Sum<'_>> = terms
        .iter()
        .zip(&mut all)
        .zip(&weights)
        .map(|((terms, y), weight)| Sum { terms, out: weight.shape()[0], add: false, y })
        .collect();
    Panels::default().sums(rows, &mut sums, &Threads(2));
    for ((terms, y), weight) in terms.iter().zip(&all).zip(&weights) {
        assert_eq!(*y, run(rows, terms, weight.shape()[0], None, &Alone));
    }
    Panels::default().sums(0, &mut [Sum { terms: &terms[0], out: 96, add: false, y: &mut [] }], &Alone);
}

/// Rows of x that pick one value each.
#[test]
fn values_are_those_of_a_dequantised_weight_to_the_bit() {
    if !halves::available() {
        return;
    }
    for float in [Float::Bf16, Float::F16, Float::F32] {
        let (out, width) = (96, 192);
        let weight = weight_in(float, out, width, true);
        let values = dequantized(&weight);
        let matrix = Matrix::new(&weight).unwrap();
        let one_hot = |size: usize| -> Vec<bf16> {
            (0..size * size).map(|at| if at / size == at % size { bf16::ONE } else { bf16::ZERO }).collect()
        };
        let x = one_hot(width);
        let there = Term { x: Rows { values: &x, stride: width, width }, factor: Factor::FourBit(matrix) };
        let y = run(width, &[there], out, None, &Alone);
        let g = one_hot(out);
        let back = Term { x: Rows { values: &g, stride: out, width: out }, factor: Factor::FourBitBack(matrix) };
        assert_eq!(run(out, &[back], width, None, &Alone), values, "{float:?} back");
        let turned: Vec<bf16> = (0..width * out).map(|at| values[at % out * width + at / out]).collect();
        assert_eq!(y, turned, "{float:?}");
    }
}
