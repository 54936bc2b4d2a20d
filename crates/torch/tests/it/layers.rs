//! The operators between a layer's products, and products that share an input, against plain operators: values and every
//! gradient, in f32 and, within its rounding, in bf16.

use tailor_quant::Float;
use tailor_torch::{
    Factors, Gate, LabelWeights, Projection, ProjectionWeight, QuantWeight, attend, backward, cross_entropy, gated,
    project, rms_norm, rotate, set_bf16_products, without_values,
};
use tch::{Kind, Reduction, Tensor};

use super::{close, leaf, random, weight};

/// Largest difference as a share of the largest expected value.
fn error(ours: &Tensor, plain: &Tensor) -> f64 {
    assert_eq!(ours.size(), plain.size());
    let (ours, plain) = (ours.to_kind(Kind::Float), plain.to_kind(Kind::Float));
    (ours - &plain).abs().max().double_value(&[]) / plain.abs().max().double_value(&[]).max(1e-12)
}

/// Value and gradients of `f` over leaves made from `inputs` brought into `kind`.
fn run(inputs: &[Tensor], kind: Kind, seed: &Tensor, f: &dyn Fn(&[Tensor]) -> Tensor) -> Vec<Tensor> {
    let leaves: Vec<Tensor> = inputs.iter().map(|input| leaf(&input.to_kind(kind))).collect();
    let y = f(&leaves);
    assert_eq!(y.kind(), kind);
    backward(&[(&y, Some(&seed.to_kind(kind)))], false).unwrap();
    std::iter::once(y.detach()).chain(leaves.iter().map(Tensor::grad)).collect()
}

/// f32 equals plain operators; bf16 is as near to them in f32 as its eight bits allow.
fn agrees(inputs: &[Tensor], seed: &Tensor, ours: &dyn Fn(&[Tensor]) -> Tensor, plain: &dyn Fn(&[Tensor]) -> Tensor) {
    let expected = run(inputs, Kind::Float, seed, plain);
    for (kind, limit) in [(Kind::Float, 2e-6), (Kind::BFloat16, 3e-2)] {
        for (at, (ours, plain)) in run(inputs, kind, seed, ours).iter().zip(&expected).enumerate() {
            let error = error(ours, plain);
            assert!(error <= limit, "{kind:?}: value 0, gradients from 1 on: number {at} is off by {error}");
        }
    }
}

#[test]
fn a_norm_equals_plain_operators() {
    // A norm over one value has hardly a gradient, and a share of nothing says nothing.
    for width in [3, 7, 16, 65, 300] {
        for one_plus in [false, true] {
            let (x, w, seed) = (random(&[3, 5, width]) * 3.0, random(&[width]), random(&[3, 5, width]));
            let weight = |x: &Tensor| w.to_kind(x.kind());
            agrees(&[x], &seed, &|x| rms_norm(&x[0], &weight(&x[0]), 1e-5, one_plus).unwrap(), &|x| {
                let root = (x[0].square().mean_dim([-1i64].as_slice(), true, Kind::Float) + 1e-5).rsqrt();
                &x[0] * root * (&w + if one_plus { 1.0 } else { 0.0 })
            });
        }
    }
}

#[test]
fn a_rotation_equals_plain_operators_and_is_undone_by_its_gradient() {
    for (batch, width) in [(1, 2), (3, 64), (3, 10)] {
        for texts in [1, batch] {
            let (x, seed) = (random(&[batch, 2, 5, width]), random(&[batch, 2, 5, width]));
            let half = random(&[texts, 1, 5, width / 2]);
            let angles = Tensor::cat(&[&half, &half], -1);
            let [cos, sin] = [angles.cos(), angles.sin()];
            let of = |x: &Tensor| [cos.to_kind(x.kind()), sin.to_kind(x.kind())];
            agrees(
                &[x],
                &seed,
                &|x| {
                    let [cos, sin] = of(&x[0]);
                    // As attention hands it over: heads and tokens are exchanged in memory.
                    rotate(&x[0].transpose(1, 2).contiguous().transpose(1, 2), &cos, &sin).unwrap()
                },
                &|x| {
                    let halves = x[0].chunk(2, -1);
                    &x[0] * &cos + Tensor::cat(&[-&halves[1], halves[0].shallow_clone()], -1) * &sin
                },
            );
        }
    }
}

#[test]
fn gates_equal_plain_operators_over_their_whole_range() {
    let far = Tensor::from_slice(&[-1e4f32, -200.0, -90.0, -87.5, -20.0, -1e-3, 0.0, 1e-3, 5.0, 60.0, 90.0, 1e4]);
    for (gate, act) in [(Gate::Silu, false), (Gate::GeluTanh, true)] {
        let plain = |x: &[Tensor]| if act { x[0].gelu("tanh") * &x[1] } else { x[0].silu() * &x[1] };
        let ours = |x: &[Tensor]| gated(&x[0], &x[1], gate).unwrap();
        let [g, u, seed] = [random(&[40, 33]) * 4.0, random(&[40, 33]), random(&[40, 33])];
        agrees(&[g, u], &seed, &ours, &plain);
        let y = gated(&far, &far.ones_like(), gate).unwrap();
        let expected = if act { far.gelu("tanh") } else { far.silu() };
        assert!(y.allclose(&expected, 1e-5, 1e-7, false), "{gate:?}: {y} for {expected}");
    }
}

/// Of blocks that are whole, cut and several; with as many keys as queries, and with fewer or more; with more than are weighed
/// at a time.
#[test]
fn attention_over_bf16_equals_attention() {
    let equal = [(2, 9, 9, 16), (1, 64, 64, 64), (1, 150, 150, 80), (1, 530, 530, 16), (1, 1060, 1060, 16)];
    let sizes = [&equal[..], &[(2, 70, 33, 32), (1, 40, 130, 128), (1, 30, 2100, 16)]].concat();
    for (batch, queries, keys, width) in sizes {
        let of_keys = [batch, 2, keys, width];
        let all = [random(&[batch, 4, queries, width]), random(&of_keys), random(&of_keys)];
        let seed = random(&[batch, 4, queries, width]);
        let term = random(&[1, 4, queries, keys]);
        let first = Tensor::arange(keys, (Kind::Int64, tch::Device::Cpu)).eq(0);
        let seen = random(&[batch, 1, queries, keys]).gt(-1.0).logical_or(&first);
        let row = random(&[1, keys]);
        for mask in [None, Some(&term), Some(&seen), Some(&row)] {
            for causal in [mask.is_none(), false] {
                let plain = |x: &[Tensor]| {
                    let [k, v] = [1, 2].map(|at: usize| x[at].repeat_interleave_self_int(2, 1, None));
                    Tensor::scaled_dot_product_attention(&x[0], &k, &v, mask, 0.0, causal, 0.3, false)
                };
                let ours = |x: &[Tensor]| {
                    let of_kind = |mask: &Tensor| match mask.kind() {
                        Kind::Bool => mask.copy(),
                        _ => mask.to_kind(x[0].kind()),
                    };
                    attend(&x[0], &x[1], &x[2], mask.map(of_kind).as_ref(), causal, 0.3).unwrap()
                };
                for products in [false, true] {
                    set_bf16_products(products);
                    agrees(&all, &seed, &ours, &plain);
                }
            }
        }
    }
}

/// As a prompt is attended to beside keys that are kept in bf16.
#[test]
fn attention_of_f32_over_bf16_is_as_exact_as_f32_and_looks_at_no_neighbour() {
    for (queries, keys, width) in [(9, 9, 16), (64, 64, 64), (150, 150, 80), (530, 530, 16), (30, 2100, 128)] {
        let q = random(&[1, 4, queries, width]);
        let [k, v] = [0, 1].map(|_| random(&[1, 2, keys, width]).to_kind(Kind::BFloat16));
        let seen = random(&[1, 1, queries, keys]).gt(-1.0);
        let seen = seen.logical_or(&Tensor::arange(keys, (Kind::Int64, tch::Device::Cpu)).eq(0));
        for (mask, causal) in [(None, true), (None, false), (Some(&seen), false)] {
            let [wide_k, wide_v] = [&k, &v].map(|x| x.to_kind(Kind::Double).repeat_interleave_self_int(2, 1, None));
            let exact = Tensor::scaled_dot_product_attention(
                &q.to_kind(Kind::Double),
                &wide_k,
                &wide_v,
                mask,
                0.0,
                causal,
                0.3,
                false,
            );
            for products in [false, true] {
                set_bf16_products(products);
                let ours = attend(&q, &k, &v, mask, causal, 0.3).unwrap();
                assert_eq!(ours.kind(), Kind::Float);
                let error = self::error(&ours, &exact);
                assert!(error <= 5e-5, "{queries} × {keys} × {width}, bf16 products {products}: off by {error}");
                if mask.is_none() {
                    let some = queries / 2 + 1; // one alone has kernels of its own
                    let alone = attend(&q.narrow(2, 0, some), &k, &v, None, causal, 0.3).unwrap();
                    let moved = self::error(&alone, &ours.narrow(2, 0, some));
                    // libtorch adds up f32 in another order for another number of queries.
                    assert!(moved <= 5e-6, "{moved} with other neighbours");
                }
            }
        }
    }
}

#[test]
fn projections_of_one_input_equal_plain_operators() {
    for dtype in [Float::F32, Float::Bf16] {
        let packed = weight(48, 64, dtype);
        let dense = random(&[10, 64]) * 0.2;
        let bias = random(&[48]);
        let inputs = [random(&[2, 3, 64]), random(&[4, 64]), random(&[48, 4]), random(&[2, 64]), random(&[10, 2])];
        let seed = random(&[2, 3, 58]);
        let plain = |x: &[Tensor]| {
            let lora = |a: &Tensor, b: &Tensor, scale: f64| x[0].matmul(&a.tr()).matmul(&b.tr()) * scale;
            let first = x[0].linear(&packed.dequantize(), Some(&bias)) + lora(&x[1], &x[2], 0.5);
            let second = x[0].linear(&dense, None::<&Tensor>) + lora(&x[3], &x[4], 2.0);
            Tensor::cat(&[first, second], -1)
        };
        let expected = run(&inputs, Kind::Float, &seed, &plain);
        for (kind, products, limit) in
            [(Kind::Float, true, 1e-5), (Kind::BFloat16, false, 2e-2), (Kind::BFloat16, true, 2e-2)]
        {
            set_bf16_products(products);
            let x = leaf(&inputs[0].to_kind(kind));
            let factors: Vec<Tensor> = inputs[1..].iter().map(leaf).collect();
            let (bias, dense) = (bias.to_kind(kind), dense.to_kind(kind));
            let lora = |at: usize, scale| Some(Factors { a: &factors[at], b: &factors[at + 1], scale });
            let both = [
                Projection { weight: ProjectionWeight::FourBit(&packed), bias: Some(&bias), lora: lora(0, 0.5) },
                Projection { weight: ProjectionWeight::Dense(&dense), bias: None, lora: lora(2, 2.0) },
            ];
            let y = Tensor::cat(&project(&x, &both).unwrap(), -1);
            assert_eq!(y.kind(), kind);
            backward(&[(&y, Some(&seed.to_kind(kind)))], false).unwrap();
            let found = std::iter::once(y.detach()).chain(std::iter::once(x.grad()));
            let found: Vec<Tensor> = found.chain(factors.iter().map(Tensor::grad)).collect();
            assert!(found[2..].iter().all(|gradient| gradient.kind() == Kind::Float), "A's and B's gradients are f32");
            for (at, (ours, plain)) in found.iter().zip(&expected).enumerate() {
                let error = error(ours, plain);
                assert!(error <= limit, "{dtype:?} {kind:?} {products}: number {at} is off by {error}");
            }
        }
    }
}

/// Many rows in bf16. Where products are not made in it those of a packed weight are products of integers, back as well unless its rows
/// are no whole blocks: what is rounded to bf16 is x, what is given and nothing between, so one part in 256 is the limit. Else weights and
/// LoRA's factors are rounded too.
#[test]
fn many_rows_are_multiplied_with_the_packed_weight() {
    let (first, second, odd) =
        (weight(192, 128, Float::Bf16), weight(128, 128, Float::F32), weight(72, 128, Float::F32));
    let narrow = |x: Tensor| x.to_kind(Kind::BFloat16).to_kind(Kind::Float);
    let bias = narrow(random(&[128]));
    // One more than are multiplied at a time, too.
    for rows in [32, 257, 300] {
        let seed = narrow(random(&[rows, 392]));
        let inputs = [narrow(random(&[rows, 128])), random(&[4, 128]), random(&[192, 4])];
        let plain = |x: &[Tensor]| {
            let lora = x[0].matmul(&x[1].tr()).matmul(&x[2].tr()) * 0.5;
            let of = |weight: &QuantWeight, bias| x[0].linear(&weight.dequantize(), bias);
            Tensor::cat(&[of(&first, None) + lora, of(&second, Some(&bias)), of(&odd, None)], -1)
        };
        let ours = |x: &[Tensor]| {
            let factors = Some(Factors { a: &x[1], b: &x[2], scale: 0.5 });
            let bias = bias.to_kind(x[0].kind());
            let of = |weight, bias, lora| Projection { weight: ProjectionWeight::FourBit(weight), bias, lora };
            let all = [of(&first, None, factors), of(&second, Some(&bias), None), of(&odd, None, None)];
            Tensor::cat(&project(&x[0], &all).unwrap(), -1)
        };
        let gradients = |x: Tensor, f: &dyn Fn(&[Tensor]) -> Tensor| {
            let leaves = [leaf(&x), leaf(&inputs[1]), leaf(&inputs[2])];
            let y = f(&leaves);
            backward(&[(&y, Some(&seed.to_kind(x.kind())))], false).unwrap();
            std::iter::once(y.detach()).chain(leaves.iter().map(Tensor::grad)).collect::<Vec<_>>()
        };
        let expected = gradients(inputs[0].copy(), &plain);
        for (products, limit) in [(false, 1.0 / 256.0), (true, 1.0 / 80.0)] {
            set_bf16_products(products);
            let found = gradients(inputs[0].to_kind(Kind::BFloat16), &ours);
            for (at, (ours, plain)) in found.iter().zip(&expected).enumerate() {
                let error = error(ours, plain);
                assert!(error <= limit, "{products}, {rows} rows: number {at} is off by {error}");
            }
        }
    }
}

/// The gradient of what is used is one number for a whole row, which takes no memory; B of the first is not trained.
#[test]
fn many_rows_whose_last_projection_is_unused_have_the_gradients_of_the_others() {
    set_bf16_products(true);
    let weights = [192, 128, 64].map(|out| weight(out, 128, Float::Bf16));
    let narrow = |x: &Tensor| x.to_kind(Kind::BFloat16).to_kind(Kind::Float);
    let x = narrow(&random(&[40, 128]));
    let [first_a, a] = [0, 1].map(|_| narrow(&random(&[4, 128])));
    let [first_b, b] = [192, 128].map(|out| narrow(&random(&[out, 4])));
    let scale = random(&[40, 1]).to_kind(Kind::BFloat16);
    let gradients = |kind: Kind, f: &dyn Fn(&[Tensor]) -> Vec<Tensor>| {
        let leaves = [leaf(&x.to_kind(kind)), leaf(&first_a), leaf(&a), leaf(&b)];
        let y = f(&leaves);
        let seeds: Vec<Tensor> = y.iter().map(|y| scale.to_kind(kind).expand(y.size(), false)).collect();
        backward(&y[..2].iter().zip(&seeds).map(|(y, seed)| (y, Some(seed))).collect::<Vec<_>>(), false).unwrap();
        leaves.map(|leaf| leaf.grad())
    };
    let expected = gradients(Kind::Float, &|leaves: &[Tensor]| {
        let of = |weight: &QuantWeight, a: &Tensor, b: &Tensor| {
            leaves[0].linear(&weight.dequantize(), None::<&Tensor>) + leaves[0].matmul(&a.tr()).matmul(&b.tr()) * 0.5
        };
        vec![of(&weights[0], &leaves[1], &first_b), of(&weights[1], &leaves[2], &leaves[3])]
    });
    let found = gradients(Kind::BFloat16, &|leaves: &[Tensor]| {
        let third_b = b.narrow(0, 0, 64);
        let factors = |a, b| Some(Factors { a, b, scale: 0.5 });
        let lora = [factors(&leaves[1], &first_b), factors(&leaves[2], &leaves[3]), factors(&first_a, &third_b)];
        let all = std::array::from_fn::<_, 3, _>(|at| Projection {
            weight: ProjectionWeight::FourBit(&weights[at]),
            bias: None,
            lora: lora[at],
        });
        project(&leaves[0], &all).unwrap()
    });
    for (at, (ours, plain)) in found.iter().zip(&expected).enumerate() {
        let error = error(ours, plain);
        assert!(error <= 1.0 / 80.0, "number {at} is off by {error}");
    }
}

#[test]
fn projections_without_values_have_the_same_gradients() {
    set_bf16_products(true);
    for kind in [Kind::Float, Kind::BFloat16] {
        let (packed, dense) = (weight(16, 64, Float::F32), random(&[8, 64]).to_kind(kind));
        let (x, seeds) = (random(&[5, 64]).to_kind(kind), [16, 8].map(|out| random(&[5, out]).to_kind(kind)));
        let pair = [random(&[4, 64]), random(&[16, 4])];
        let gradients = |valued: bool| {
            let x = leaf(&x);
            let [a, b] = [&pair[0], &pair[1]].map(leaf);
            let lora = Some(Factors { a: &a, b: &b, scale: 0.7 });
            let both = [
                Projection { weight: ProjectionWeight::FourBit(&packed), bias: None, lora },
                Projection { weight: ProjectionWeight::Dense(&dense), bias: None, lora: None },
            ];
            let make = || project(&x, &both).unwrap();
            let made = if valued { make() } else { without_values(make) };
            let sum: f64 = made.iter().map(|y| y.abs().sum(Kind::Double).double_value(&[])).sum();
            assert_eq!(sum > 0.0, valued);
            assert!(made.iter().zip(&seeds).all(|(y, seed)| (y.size(), y.kind()) == (seed.size(), kind)));
            let roots: Vec<_> = made.iter().zip(&seeds).map(|(y, seed)| (y, Some(seed))).collect();
            backward(&roots, false).unwrap();
            [x.grad(), a.grad(), b.grad()]
        };
        assert_eq!(gradients(true), gradients(false));
    }
}

#[test]
fn one_projection_unused_leaves_the_others_gradients_right() {
    let (first, second) = (weight(16, 64, Float::F32), weight(24, 64, Float::F32));
    let x = leaf(&random(&[5, 64]));
    let of = |weight| Projection { weight: ProjectionWeight::FourBit(weight), bias: None, lora: None };
    let made = project(&x, &[of(&first), of(&second)]).unwrap();
    backward(&[(&made[1].sum(Kind::Float), None)], false).unwrap();
    let expected = Tensor::ones([5, 24], (Kind::Float, tch::Device::Cpu)).matmul(&second.dequantize());
    assert!(close(&x.grad(), &expected));
}

#[test]
fn cross_entropy_equals_the_plain_one_whatever_the_type_and_the_vocabulary() {
    for vocab in [5i64, 33, 9000] {
        let (states, head) = (random(&[7, 24]), random(&[vocab, 24]) * 0.5);
        let labels: Vec<i64> = (0..7).map(|at| at * 31 % vocab).collect();
        let labels = Tensor::from_slice(&labels);
        let each = Tensor::from_slice(&[0.5f32, -1.0, 0.0, 2.0, 0.1, 0.1, -0.3]);
        for weighted in [false, true] {
            let x = leaf(&states);
            let logits = x.matmul(&head.tr());
            let losses = logits.cross_entropy_loss(&labels, None::<&Tensor>, Reduction::None, -100, 0.0);
            let weights = if weighted { each.shallow_clone() } else { each.ones_like() * 0.3 };
            backward(&[(&losses.dot(&weights), None)], false).unwrap();
            let total = losses.sum(Kind::Double).double_value(&[]);
            for (kind, products, limit) in
                [(Kind::Float, true, 1e-5), (Kind::BFloat16, true, 3e-2), (Kind::BFloat16, false, 2e-2)]
            {
                set_bf16_products(products);
                let weights = if weighted { LabelWeights::Each(&each) } else { LabelWeights::Same(0.3) };
                let (states, head) = (states.to_kind(kind), head.to_kind(kind));
                let (loss, gradient) = cross_entropy(&states, &head, &labels, weights).unwrap();
                assert!((loss - total).abs() <= limit * total, "{vocab} {kind:?}: {loss} for {total}");
                assert_eq!(gradient.kind(), kind);
                let error = error(&gradient, &x.grad());
                assert!(error <= limit, "{vocab} {kind:?} {products} {weighted}: gradient off by {error}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let x = random(&[2, 3]);
    let words = |result: tailor_torch::Result<Tensor>| result.unwrap_err().to_string();
    assert!(words(rms_norm(&x, &random(&[4]), 1e-5, false)).contains("does not fit"));
    assert!(
        words(rotate(&random(&[1, 1, 2, 4]), &random(&[1, 1, 3, 4]), &random(&[1, 1, 3, 4]))).contains("do not fit")
    );
    assert!(words(gated(&x, &random(&[3, 2]), Gate::Silu)).contains("gate"));
    let label = cross_entropy(&x, &random(&[4, 3]), &Tensor::from_slice(&[0i64, 4]), LabelWeights::Same(1.0));
    assert!(label.unwrap_err().to_string().contains("label 4 is not below 4"));
    let (a, b) = (random(&[2, 3]), random(&[5, 3]));
    let dense = random(&[5, 3]);
    let lora = Some(Factors { a: &a, b: &b, scale: 1.0 });
    let misfit = project(&x, &[Projection { weight: ProjectionWeight::Dense(&dense), bias: None, lora }]);
    assert!(misfit.unwrap_err().to_string().contains("do not fit a layer from 3 to 5"));
}
