//! Norm, gate, positions and cross-entropy against plain operators, forward and backward.

use tailor_torch::Gate;
use tailor_torch::backward;
use tailor_torch::device::{cross_entropy_in_place, gated, rms_norm, rope};
use tch::{Device, Kind, Reduction, Tensor};

use super::{device, near};

const KINDS: [Kind; 2] = [Kind::Float, Kind::BFloat16];

fn random(shape: &[i64], kind: Kind) -> Tensor {
    Tensor::randn(shape, (Kind::Float, device())).to_kind(kind)
}

/// The result of `run` over leaves with these values, and their gradients from `seed`.
fn values_and_gradients<const N: usize>(
    inputs: [&Tensor; N],
    seed: &Tensor,
    run: impl Fn(&[Tensor; N]) -> Tensor,
) -> (Tensor, [Tensor; N]) {
    let leaves = inputs.map(|input| input.copy().set_requires_grad(true));
    let result = run(&leaves);
    backward(&[(&result, Some(seed))], false).expect("goes back");
    (result.detach(), leaves.map(|leaf| leaf.grad()))
}

#[test]
fn norm_equals_plain_operators_at_every_width() {
    for kind in KINDS {
        for (width, one_plus) in [(64, false), (33, false), (1032, true), (2, true)] {
            let (x, weight) = (random(&[2, 3, width], kind), random(&[width], kind));
            let seed = random(&[2, 3, width], kind);
            let ours = values_and_gradients([&x], &seed, |[x]| rms_norm(x, &weight, 1e-5, one_plus).expect("runs"));
            let plain = values_and_gradients([&x], &seed, |[x]| {
                let wide = x.to_kind(Kind::Float);
                let mean = wide.square().mean_dim([-1i64].as_slice(), true, Kind::Float);
                let normed = wide * (mean + 1e-5).rsqrt();
                match one_plus {
                    true => (normed * (weight.to_kind(Kind::Float) + 1.0)).to_kind(kind),
                    false => normed.to_kind(kind) * &weight,
                }
            });
            near(&ours.0, &plain.0, kind);
            near(&ours.1[0], &plain.1[0], kind);
        }
    }
}

#[test]
fn gate_equals_plain_operators_for_both_activations() {
    for kind in KINDS {
        for shape in [[2i64, 3, 64], [1, 5, 33]] {
            for (gate_kind, act) in [(Gate::Silu, "silu"), (Gate::GeluTanh, "gelu")] {
                let (gate, up, seed) = (random(&shape, kind) * 3.0, random(&shape, kind), random(&shape, kind));
                let ours =
                    values_and_gradients([&gate, &up], &seed, |[gate, up]| gated(gate, up, gate_kind).expect("runs"));
                let plain = values_and_gradients([&gate, &up], &seed, |[gate, up]| {
                    (if act == "silu" { gate.silu() } else { gate.gelu("tanh") }) * up
                });
                near(&ours.0, &plain.0, kind);
                ours.1.iter().zip(&plain.1).for_each(|(ours, plain)| near(ours, plain, kind));
            }
        }
    }
}

#[test]
fn gate_takes_slices_of_one_product() {
    for (shape, width) in [(&[3i64, 64][..], 32), (&[2, 3, 66], 33), (&[1, 4, 1, 16], 8)] {
        let (both, seed) =
            (random(shape, Kind::Float), random(&[&shape[..shape.len() - 1], &[width]].concat(), Kind::Float));
        let run = |gate: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
            values_and_gradients([&both], &seed, |[both]| {
                let parts = both.split(width, -1);
                gate(&parts[0], &parts[1])
            })
        };
        let ours = run(&|gate, up| gated(gate, up, Gate::Silu).expect("runs"));
        let plain = run(&|gate, up| gate.silu() * up);
        near(&ours.0, &plain.0, Kind::Float);
        near(&ours.1[0], &plain.1[0], Kind::Float);
    }
}

#[test]
fn positions_turn_as_plain_operators_do_whatever_the_layout() {
    for kind in KINDS {
        for (batch, heads, tokens, width, own_rows) in [(2, 3, 5, 16, true), (2, 1, 4, 32, false), (1, 4, 1, 6, true)] {
            // Heads out of a wider product, as projections that share one give them.
            let product = random(&[batch, tokens, heads * width + 8], kind);
            let x = product.narrow(-1, 0, heads * width).view([batch, tokens, heads, width]).transpose(1, 2);
            let angles =
                Tensor::rand([if own_rows { batch } else { 1 }, 1, tokens, width / 2], (Kind::Float, device())) * 6.0;
            let angles = Tensor::cat(&[&angles, &angles], -1);
            let (cos, sin) = (angles.cos().to_kind(kind), angles.sin().to_kind(kind));
            let seed = random(&[batch, heads, tokens, width], kind);
            let run = |turn: &dyn Fn(&Tensor) -> Tensor| {
                let x = x.detach().set_requires_grad(true);
                let y = turn(&x);
                backward(&[(&y, Some(&seed))], false).expect("goes back");
                (y.detach(), x.grad())
            };
            let ours = run(&|x| rope(x, &cos, &sin).expect("runs"));
            let plain = run(&|x| {
                let [x, cos, sin] = [x, &cos, &sin].map(|tensor| tensor.to_kind(Kind::Float));
                let halves = x.chunk(2, -1);
                let swapped = Tensor::cat(&[-&halves[1], halves[0].shallow_clone()], -1);
                (&x * cos + swapped * sin).to_kind(kind)
            });
            near(&ours.0, &plain.0, kind);
            near(&ours.1, &plain.1, kind);
            assert!(ours.0.transpose(1, 2).is_contiguous(), "memory is token by token, as attention takes it");
        }
    }
}

#[test]
fn cross_entropy_equals_the_plain_loss_and_leaves_its_gradient() {
    for kind in KINDS {
        for vocabulary in [11i64, 300, 5000] {
            let logits = random(&[6, vocabulary], kind) * 4.0;
            let labels = Tensor::from_slice(&[0i64, vocabulary - 1, -100, 3, 5, -100]).to_device(device());
            let weights = Tensor::from_slice(&[0.5f32, 2.0, 1.0, 1.0, -0.25, 3.0]).to_device(device());
            let leaf = logits.copy().set_requires_grad(true);
            let wide = leaf.to_kind(Kind::Float);
            let plain = wide.cross_entropy_loss(&labels, None::<&Tensor>, Reduction::None, -100, 0.0);
            plain.dot(&weights).backward();
            let ours = logits.copy();
            let losses = cross_entropy_in_place(&ours, &labels, Some(&weights), 0.0).expect("runs");
            near(&losses, &plain.detach(), Kind::Float);
            near(&ours, &leaf.grad(), kind);

            let one = logits.copy();
            let _ = cross_entropy_in_place(&one, &labels, None, 0.25).expect("runs");
            let quarter = Tensor::full([6], 0.25, (Kind::Float, device()));
            let each = logits.copy();
            let _ = cross_entropy_in_place(&each, &labels, Some(&quarter), 0.0).expect("runs");
            assert!(one.equal(&each), "one weight for all is that weight for each");
        }
    }
}

#[test]
fn a_label_outside_the_vocabulary_is_a_loss_that_is_no_number() {
    let logits = random(&[2, 7], Kind::Float);
    let labels = Tensor::from_slice(&[2i64, 7]).to_device(device());
    let losses = cross_entropy_in_place(&logits, &labels, None, 1.0).expect("runs");
    let losses = Vec::<f32>::try_from(&losses.to_device(Device::Cpu)).expect("values");
    assert!(losses[0].is_finite() && losses[1].is_nan(), "{losses:?}");
}

#[test]
fn what_does_not_fit_is_refused_in_words() {
    let x = random(&[2, 8], Kind::Float);
    let refused = |result: tailor_torch::Result<Tensor>| result.expect_err("refused").to_string();
    assert!(refused(rms_norm(&x, &random(&[7], Kind::Float), 1e-5, false)).contains("norm of 7 values over rows of 8"));
    assert!(refused(rms_norm(&x, &random(&[8], Kind::BFloat16), 1e-5, false)).contains("BFloat16"));
    assert!(refused(gated(&x, &random(&[2, 9], Kind::Float), Gate::Silu)).contains("differ in shape or type"));
    assert!(refused(rope(&x, &x, &x)).contains("[B, H, T, Dh]"));
    let error = refused(cross_entropy_in_place(&x, &Tensor::from_slice(&[1i64]).to_device(device()), None, 1.0));
    assert!(error.contains("labels [1] do not fit logits [2, 8]"), "{error}");
    let double = random(&[2, 8], Kind::Double);
    assert!(refused(rms_norm(&double, &random(&[8], Kind::Double), 1e-5, false)).contains("float32 or bfloat16"));
}
