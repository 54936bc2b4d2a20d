//! What a step of serving launches, against plain operators.

use tailor_quant::{Backend, BlockSize, Code, Float, quantize};
use tailor_torch::Gate;
use tailor_torch::device::step::{self, Looks, LowRankRow, LowRankTerms, StepNumbers, StepRow};
use tailor_torch::device::{DeviceWeight, dequantize_group};
use tch::{Device, Kind, Tensor};

use super::{device, near};

const BLOCK_TOKENS: usize = 16;

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16).to_device(device())
}

fn empty(shape: &[i64]) -> Tensor {
    // What is not written is seen.
    Tensor::full(shape, f64::NAN, (Kind::BFloat16, device()))
}

fn weight(out: usize, input: usize, block: usize, double: bool) -> DeviceWeight {
    let values =
        Vec::<f32>::try_from(&Tensor::randn([(out * input) as i64], (Kind::Float, Device::Cpu))).expect("values");
    let block = BlockSize::try_new(block).expect("a size");
    let weight =
        quantize(&values, &[out, input], Float::Bf16, Code::Nf4, block, double, Backend::Cpu).expect("quantises");
    DeviceWeight::new(&weight, device()).expect("a matrix")
}

#[test]
fn products_of_few_rows_equal_those_with_dequantised_weights() {
    for (input, block, double) in [(64, 64, true), (576, 64, true), (1024, 128, false), (2240, 64, false)] {
        // Outputs that fill no tile of 16 among them.
        let weights = [40, 16, 7].map(|out| weight(out, input, block, double));
        let all: Vec<&DeviceWeight> = weights.iter().collect();
        let plain = dequantize_group(&all, Kind::Float).expect("launches");
        for rows in [1, 3, 8, 9, 16, 20, 32] {
            let x = random(&[rows, input as i64]);
            let y = empty(&[rows, 63]);
            step::product(&x, &all, false, &y).expect("launches");
            let expected = x.to_kind(Kind::Float).matmul(&plain.tr());
            // Values are rounded to bf16 on both sides, here before their scale and there after it.
            let off = (y.to_kind(Kind::Float) - &expected).norm() / expected.norm();
            assert!(off.double_value(&[]) < 5e-3, "{input}, block {block}, {rows} rows: off by {off:?}");
            let before = random(&[rows, 63]);
            let sum = before.copy();
            step::product(&x, &all, true, &sum).expect("launches");
            near(&sum, &(&before + &y), Kind::BFloat16);
        }
    }
}

#[test]
fn a_product_gives_a_row_the_same_bits_in_whatever_company() {
    let weights = [weight(48, 192, 64, true)];
    let x = random(&[32, 192]);
    let of = |rows: i64| {
        let y = empty(&[rows, 48]);
        step::product(&x.narrow(0, 0, rows).contiguous(), &[&weights[0]], false, &y).expect("launches");
        y
    };
    let most = of(32);
    for rows in [1, 7, 12, 31] {
        assert!(of(rows).equal(&most.narrow(0, 0, rows)), "{rows} rows");
    }
}

#[test]
fn what_a_product_does_not_take_is_refused_in_words() {
    let refused = |x: &Tensor, weight: &DeviceWeight| {
        step::product(x, &[weight], false, &empty(&[x.size()[0], 8])).expect_err("refused").to_string()
    };
    let good = weight(8, 128, 64, true);
    assert!(good.is_direct() && !weight(8, 96, 32, true).is_direct());
    assert!(refused(&random(&[33, 128]), &good).contains("no product of x [33, 128]"));
    assert!(refused(&random(&[2, 64]), &good).contains("no product of x [2, 64]"));
    assert!(refused(&random(&[2, 96]), &weight(8, 96, 32, true)).contains("with weights as they lie"));
    let y = empty(&[2, 9]);
    let error = step::product(&random(&[2, 128]), &[&good], false, &y).expect_err("refused").to_string();
    assert!(error.contains("a product of [2, 8] into [2, 9]"), "{error}");
}

/// Rows of three sequences: two tokens that follow one another, and one each of two others.
fn rows(blocks: &[Vec<u32>; 3]) -> [StepRow<'_>; 4] {
    let row = |position, sequence: usize| StepRow { position, blocks: &blocks[sequence] };
    [row(17, 0), row(18, 0), row(0, 1), row(40, 2)]
}

#[test]
fn attention_over_pages_equals_plain_operators() {
    let blocks = [vec![5, 2], vec![7], vec![1, 9, 4]];
    for (heads, kv_heads, width, window, softcap) in
        [(4, 2, 16, None, None), (6, 1, 64, Some(8), Some(20.0)), (2, 2, 128, None, None), (8, 1, 256, Some(100), None)]
    {
        let pages = (random(&[160, kv_heads, width]), random(&[160, kv_heads, width]));
        let numbers = StepNumbers::new(&rows(&blocks), BLOCK_TOKENS, device()).expect("places");
        let product = random(&[4, (heads + 2 * kv_heads) * width]);
        let frequencies = (Tensor::arange(width / 2, (Kind::Float, Device::Cpu)) * -0.1).exp().to_device(device());

        let before = product.view([4, heads + 2 * kv_heads, width]).to_kind(Kind::Float);
        step::turn_and_keep(&product, &frequencies, &numbers, (&pages.0, &pages.1), heads).expect("launches");
        let turned = product.view([4, heads + 2 * kv_heads, width]);
        let positions = Tensor::from_slice(&[17f32, 18.0, 0.0, 40.0]).to_device(device());
        let angles = positions.unsqueeze(-1) * &frequencies;
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1);
        let narrow = |x: Tensor| x.to_kind(Kind::BFloat16).to_kind(Kind::Float);
        let (cos, sin) = (narrow(angles.cos()), narrow(angles.sin()));
        let halves = before.chunk(2, -1);
        let swapped = Tensor::cat(&[-&halves[1], halves[0].shallow_clone()], -1);
        let plain = (&before * cos + swapped * sin).to_kind(Kind::BFloat16);
        near(&turned.narrow(1, 0, heads), &plain.narrow(1, 0, heads), Kind::BFloat16);
        // Token 17 of blocks 5 and 2 is the second of block 2, and so on.
        for (row, slot) in [2 * 16 + 1, 2 * 16 + 2, 7 * 16, 4 * 16 + 8].into_iter().enumerate() {
            near(&pages.0.get(slot), &plain.get(row as i64).narrow(0, heads, kv_heads), Kind::BFloat16);
            let value = before.get(row as i64).narrow(0, heads + kv_heads, kv_heads).to_kind(Kind::BFloat16);
            assert!(pages.1.get(slot).equal(&value), "values go as they are");
        }

        let out = empty(&[4, heads * width]);
        let looks = Looks { heads, window, scale: 0.3, softcap };
        step::attend(&product, &numbers, (&pages.0, &pages.1), looks, &out).expect("launches");
        for (row, of) in rows(&blocks).iter().enumerate() {
            let end = of.position + 1;
            let begin = window.map_or(0, |window| end.saturating_sub(window as usize));
            let slots: Vec<i64> = (begin..end).map(|at| i64::from(of.blocks[at / 16]) * 16 + at as i64 % 16).collect();
            let slots = Tensor::from_slice(&slots).to_device(device());
            let gather = |pages: &Tensor| {
                let own = pages.index_select(0, &slots).to_kind(Kind::Float).transpose(0, 1); // [K, S, Dh]
                own.repeat_interleave_self_int(heads / kv_heads, 0, None) // [H, S, Dh]
            };
            let q = turned.get(row as i64).narrow(0, 0, heads).to_kind(Kind::Float).unsqueeze(1); // [H, 1, Dh]
            let scores = q.matmul(&gather(&pages.0).transpose(1, 2)) * 0.3;
            let scores = softcap.map_or_else(|| scores.shallow_clone(), |cap| (&scores / cap).tanh() * cap);
            let plain = scores.softmax(-1, Kind::Float).matmul(&gather(&pages.1)).view([heads * width]);
            near(&out.get(row as i64), &plain.to_kind(Kind::BFloat16), Kind::BFloat16);
        }
    }
}

#[test]
fn a_place_outside_its_blocks_is_refused_in_words() {
    let row = StepRow { position: 16, blocks: &[3] };
    let error = StepNumbers::new(&[row], BLOCK_TOKENS, device()).map(|_| ()).expect_err("refused").to_string();
    assert!(error.contains("position 16 lies outside 1 blocks of 16 tokens"), "{error}");
}

#[test]
fn each_row_gets_its_own_adapter_of_its_own_rank_or_none() {
    let (rows, input, outs) = (5, 72, [24i64, 10]);
    let x = random(&[rows, input]);
    let padded = |out: i64, rank: i64| random(&[out, (rank + 7) / 8 * 8]).narrow(1, 0, rank);
    // Ranks of the rows for both layers; 0 is none.
    let ranks = [[3, 0, 9, 1, 3], [0, 0, 2, 17, 8]];
    let pairs: Vec<Option<(Tensor, Tensor)>> = ranks
        .iter()
        .zip(outs)
        .flat_map(|(ranks, out)| ranks.map(|rank| (rank > 0).then(|| (random(&[rank, input]), padded(out, rank)))))
        .collect();
    let of = |pair: &Option<(Tensor, Tensor)>| pair.as_ref().map(|(a, b)| (a.shallow_clone(), b.shallow_clone()));
    let held: Vec<_> = pairs.iter().map(of).collect();
    let terms = held.iter().map(|pair| pair.as_ref().map(|(a, b)| LowRankRow { a, b, scale: 0.5 }));
    let terms = LowRankTerms::new(&terms.collect::<Vec<_>>(), device()).expect("terms");
    assert_eq!(terms.most(), 17);
    let y = random(&[rows, 34]);
    let before = y.copy();
    let inner = Tensor::full([2 * rows * 17], f64::NAN, (Kind::Float, device()));
    step::low_rank(&x, &terms, 0, &outs, &inner, &y).expect("launches");
    for row in 0..rows {
        for (layer, (begin, out)) in [(0, 24), (24, 10)].into_iter().enumerate() {
            let own = before.get(row).narrow(0, begin, out);
            let plain = match &pairs[layer * rows as usize + row as usize] {
                None => own,
                Some((a, b)) => {
                    let wide = |x: &Tensor| x.to_kind(Kind::Float);
                    let h = wide(a).matmul(&wide(&x.get(row))) * 0.5;
                    (wide(&own) + wide(b).matmul(&h)).to_kind(Kind::BFloat16)
                }
            };
            near(&y.get(row).narrow(0, begin, out), &plain, Kind::BFloat16);
        }
    }
    // The second layer alone, from its own terms on.
    let y = random(&[rows, 10]);
    let before = y.copy();
    step::low_rank(&x, &terms, 1, &outs[1..], &inner, &y).expect("launches");
    assert!(y.get(0).equal(&before.get(0)) && !y.get(2).equal(&before.get(2)));
}

#[test]
fn norm_and_gate_of_a_step_are_those_of_the_layers() {
    for width in [64i64, 30] {
        let (x, scale) = (random(&[3, width]), random(&[width]));
        let (y, roots) = (empty(&[3, width]), Tensor::zeros([3], (Kind::Float, device())));
        step::norm(&x, &scale, 1e-5, true, &y, &roots).expect("launches");
        assert!(y.equal(&tailor_torch::device::rms_norm(&x, &scale, 1e-5, true).expect("launches")));
        let (both, y) = (random(&[3, 2 * width]), empty(&[3, width]));
        step::gated(&both, Gate::GeluTanh, &y).expect("launches");
        let halves = both.split(width, -1);
        assert!(y.equal(&tailor_torch::device::gated(&halves[0], &halves[1], Gate::GeluTanh).expect("launches")));
    }
}
