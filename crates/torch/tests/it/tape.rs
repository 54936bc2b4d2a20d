//! What a tape keeps is given again and not made again, gradients are those of a pass that kept everything, and a pass that
//! does not go as it did before is refused.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tailor_quant::Float;
use tailor_torch::device::{DeviceWeight, device_project};
use tailor_torch::kernels::test_device;
use tailor_torch::{
    Factors, Projection, ProjectionWeight, QuantWeight, Tape, attend, backward, drop_pool, lora_on, project,
    set_bf16_products, tensor_bytes, use_pool, without_values,
};
use tch::{Device, Kind, Tensor};

use super::{leaf, random, weight};

/// Forward without a history, then again from the tape.
fn twice<T>(pass: impl Fn() -> T) -> (T, T) {
    let mut tape = Tape::new().unwrap();
    let first = tape.record(|| tch::no_grad(&pass)).unwrap();
    assert!(!Tape::is_in_use());
    (first, tape.replay(pass).unwrap())
}

fn detached(tensors: &[Tensor]) -> Vec<Tensor> {
    tensors.iter().map(Tensor::detach).collect()
}

/// Values and all gradients of outputs whose gradients are `seeds`.
fn gone_back(outputs: &[Tensor], seeds: &[Tensor], leaves: &[&Tensor]) -> Vec<Tensor> {
    let roots: Vec<_> = outputs.iter().zip(seeds).map(|(y, seed)| (y, Some(seed))).collect();
    backward(&roots, false).unwrap();
    detached(outputs).into_iter().chain(leaves.iter().map(|leaf| leaf.grad())).collect()
}

/// A weight in 4 bits with a bias and LoRA beside a dense one without.
struct Both {
    packed: QuantWeight,
    dense: Tensor,
    bias: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    seeds: [Tensor; 2],
}

impl Both {
    fn new(kind: Kind) -> Self {
        tch::manual_seed(3);
        Self {
            packed: weight(48, 64, Float::Bf16),
            dense: random(&[16, 64]).to_kind(kind),
            bias: random(&[48]).to_kind(kind),
            x: leaf(&random(&[2, 5, 64]).to_kind(kind)),
            a: leaf(&random(&[4, 64])),
            b: leaf(&random(&[48, 4])),
            seeds: [48, 16].map(|out| random(&[2, 5, out]).to_kind(kind)),
        }
    }

    fn run(&self) -> Vec<Tensor> {
        let lora = Some(Factors { a: &self.a, b: &self.b, scale: 0.5 });
        let both = [
            Projection { weight: ProjectionWeight::FourBit(&self.packed), bias: Some(&self.bias), lora },
            Projection { weight: ProjectionWeight::Dense(&self.dense), bias: None, lora: None },
        ];
        project(&self.x, &both).unwrap()
    }

    fn gone_back(&self, outputs: &[Tensor]) -> Vec<Tensor> {
        gone_back(outputs, &self.seeds, &[&self.x, &self.a, &self.b])
    }
}

#[test]
fn projections_give_what_was_kept_and_every_gradient_to_the_bit() {
    for (kind, products) in [(Kind::Float, true), (Kind::BFloat16, true), (Kind::BFloat16, false)] {
        set_bf16_products(products);
        let kept = Both::new(kind);
        let expected = kept.gone_back(&kept.run());
        let again = Both::new(kind);
        let (first, second) = twice(|| again.run());
        assert!(first.iter().all(|y| !y.requires_grad()) && second.iter().all(|y| y.requires_grad()));
        assert_eq!(detached(&first), detached(&second), "{kind:?} {products}");
        assert_eq!(again.gone_back(&second), expected, "{kind:?} {products}");
    }
}

/// Whoever made a product again would see that the weights have changed meanwhile.
#[test]
fn nothing_that_is_on_the_tape_is_made_again() {
    let both = Both::new(Kind::Float);
    let expected = both.gone_back(&both.run());
    let both = Both::new(Kind::Float);
    let mut tape = Tape::new().unwrap();
    drop(tape.record(|| tch::no_grad(|| both.run())).unwrap());
    assert_eq!(tape.length(), 3, "x·Aᵀ and two outputs");
    for tensor in [&both.dense, &both.a, &both.b] {
        tch::no_grad(|| tensor.shallow_clone().copy_(&tensor.zeros_like()));
    }
    assert_eq!(detached(&tape.replay(|| both.run()).unwrap()), expected[..2]);
    assert_ne!(detached(&both.run()), expected[..2]);
}

#[test]
fn attention_gives_what_was_kept_and_the_gradients_of_a_pass_that_kept_it() {
    for (kind, products) in [(Kind::Float, true), (Kind::BFloat16, true), (Kind::BFloat16, false)] {
        set_bf16_products(products);
        for kv_heads in [4, 2, 1] {
            let first_key = Tensor::arange(70, (Kind::Int64, Device::Cpu)).eq(0);
            let seen = random(&[2, 1, 70, 70]).gt(-1.0).logical_or(&first_key);
            for (mask, causal) in [(None, true), (None, false), (Some(&seen), false)] {
                let of_keys = [2, kv_heads, 70, 32];
                let all = [random(&[2, 4, 70, 32]), random(&of_keys), random(&of_keys)].map(|x| x.to_kind(kind));
                let seed = [random(&[2, 4, 70, 32]).to_kind(kind)];
                let what = format!("{kind:?} {products}, {kv_heads} heads, causal {causal}, mask {}", mask.is_some());
                let run = |[q, k, v]: [&Tensor; 3]| attend(q, k, v, mask, causal, 0.3).unwrap();
                let leaves = all.each_ref().map(leaf);
                let expected = gone_back(&[run(leaves.each_ref())], &seed, &leaves.each_ref());
                let leaves = all.each_ref().map(leaf);
                let (first, second) = twice(|| run(leaves.each_ref()));
                assert_eq!(first, second.detach(), "{what}");
                let found = gone_back(&[second], &seed, &leaves.each_ref());
                for (found, expected) in found.iter().zip(&expected) {
                    // In f32 libtorch's operator without a tape may add up in another order.
                    let off = (found - expected).abs().max().double_value(&[]);
                    let limit = if kind == Kind::Float { 1e-5 } else { 0.0 };
                    assert!(off <= limit * expected.abs().max().double_value(&[]), "{what}: off by {off}");
                }
                let other = all.each_ref().map(Tensor::zeros_like);
                let mut tape = Tape::new().unwrap();
                drop(tape.record(|| tch::no_grad(|| run(all.each_ref()))).unwrap());
                if tape.length() == 0 {
                    assert!(kind == Kind::BFloat16 && products, "{what}: no block products here, so all is libtorch's");
                    continue;
                }
                assert_eq!(tape.replay(|| run(other.each_ref())).unwrap(), first, "{what}: not made again");
            }
        }
    }
}

/// A layer's last product has values where it is made for them, and else neither costs time nor memory.
#[test]
fn values_that_nobody_looks_at_are_made_once_and_not_kept() {
    set_bf16_products(true);
    let kept = Both::new(Kind::BFloat16);
    let expected = kept.gone_back(&kept.run());
    let both = Both::new(Kind::BFloat16);
    let mut tape = Tape::new().unwrap();
    let first = tape.record(|| tch::no_grad(|| without_values(|| both.run()))).unwrap();
    assert_eq!((detached(&first).as_slice(), tape.length()), (&expected[..2], 1), "x·Aᵀ alone is kept");
    let second = tape.replay(|| without_values(|| both.run())).unwrap();
    assert!(second.iter().all(|y| y.abs().max().double_value(&[]) == 0.0));
    assert_eq!(both.gone_back(&second)[2..], expected[2..]);
}

/// As with dropout: LoRA takes another input than the product that it is added to.
#[test]
fn lora_on_a_product_keeps_the_sum_in_the_products_place() {
    for (kind, wanted) in [(Kind::Float, true), (Kind::BFloat16, true), (Kind::BFloat16, false)] {
        set_bf16_products(true);
        let run = |both: &Both| {
            let [weight, dropped] = [ProjectionWeight::FourBit(&both.packed), ProjectionWeight::Dense(&both.dense)];
            let plain = || project(&both.x, &[Projection { weight, bias: None, lora: None }]).unwrap().remove(0);
            let other = project(&both.x, &[Projection { weight: dropped, bias: None, lora: None }]).unwrap().remove(0);
            let other = other.repeat([1, 1, 4]); // [2, 5, 64]
            let sum = || lora_on(plain, &other, &both.a, &both.b, 0.5).unwrap();
            if wanted || !Tape::is_in_use() { sum() } else { without_values(sum) }
        };
        let back = |both: &Both, y: Tensor| gone_back(&[y], &both.seeds[..1], &[&both.x, &both.a, &both.b]);
        let kept = Both::new(kind);
        let expected = back(&kept, run(&kept));
        let both = Both::new(kind);
        let mut tape = Tape::new().unwrap();
        let first = tape.record(|| tch::no_grad(|| run(&both))).unwrap();
        assert_eq!(first, expected[0]);
        assert_eq!(tape.length(), if wanted { 3 } else { 2 }, "what LoRA takes, x·Aᵀ, and the sum where it is wanted");
        let second = tape.replay(|| run(&both)).unwrap();
        let sum = if wanted { first } else { first.zeros_like() };
        assert_eq!(second.detach(), sum);
        assert_eq!(back(&both, second)[1..], expected[1..], "{kind:?}");
    }
}

#[test]
fn a_pass_that_goes_otherwise_is_refused_and_leaves_the_thread_as_it_was() {
    let both = Both::new(Kind::Float);
    let of = |x: &Tensor| {
        let weight = ProjectionWeight::Dense(&both.dense);
        project(x, &[Projection { weight, bias: None, lora: None }]).map(|mut all| all.remove(0))
    };
    let recorded = || {
        let mut tape = Tape::new().unwrap();
        drop(tape.record(|| tch::no_grad(|| of(&both.x).unwrap())).unwrap());
        tape
    };
    let error = recorded().replay(|| of(&both.x.narrow(1, 0, 4))).unwrap().unwrap_err().to_string();
    assert!(error.contains("asks for [2, 4, 16] in Float where it has kept [2, 5, 16] in Float"), "{error}");
    let more = recorded().replay(|| [of(&both.x), of(&both.x)]).unwrap();
    assert!(more[0].is_ok());
    let error = more[1].as_ref().unwrap_err().to_string();
    assert!(error.contains("asks for more than it has kept"), "{error}");
    let error = recorded().replay(|| ()).unwrap_err().to_string();
    assert!(error.contains("has not asked for 1 of what it had kept"), "{error}");
    let within = Tape::new().unwrap().record(|| recorded_within().unwrap_err().to_string()).unwrap();
    assert!(within.contains("another tape is in use on this thread"), "{within}");
    let thrown = catch_unwind(AssertUnwindSafe(|| recorded().replay::<()>(|| panic!("as a plain operator does"))));
    assert!(thrown.is_err() && !Tape::is_in_use());
    assert_eq!(of(&both.x).unwrap().size(), [2, 5, 16], "made again, without a tape");
}

fn recorded_within() -> tailor_torch::Result<()> {
    Tape::new()?.record(|| ())
}

#[test]
fn memory_of_what_is_kept_is_free_after_the_pass_back_and_with_the_tape() {
    const MIB: i64 = 1 << 20;
    use_pool();
    drop_pool();
    let before = tensor_bytes().now;
    let grown = || tensor_bytes().now.saturating_sub(before) / MIB as u64;
    let (x, dense) = (leaf(&random(&[2048, 8])), random(&[4096, 8]));
    let run = || {
        let weight = ProjectionWeight::Dense(&dense);
        project(&x, &[Projection { weight, bias: None, lora: None }]).unwrap().remove(0) // 32 MiB
    };
    let mut tape = Tape::new().unwrap();
    drop(tape.record(|| tch::no_grad(run)).unwrap());
    assert!((32..40).contains(&grown()), "{} MiB", grown());
    let y = tape.replay(run).unwrap();
    assert!((32..40).contains(&grown()), "taken, not copied: {} MiB", grown());
    backward(&[(&y.sum(Kind::Float), None)], false).unwrap();
    drop((tape, y));
    assert!(grown() < 8, "{} MiB", grown());
    let mut tape = Tape::new().unwrap();
    drop(tape.record(|| tch::no_grad(run)).unwrap());
    assert!(grown() >= 32);
    drop(tape);
    assert!(grown() < 8, "{} MiB", grown());
}

#[test]
fn layers_on_a_device_give_what_was_kept_and_every_gradient() {
    let device = test_device().expect("a C++ compiler, or the GPU that TAILOR_TEST_DEVICE names");
    let weights = [64, 32].map(|out| DeviceWeight::new(weight(out, 48, Float::Bf16).quantized(), device).unwrap());
    let some = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, device));
    let (x, pair) = (some(&[5, 48]).to_kind(Kind::BFloat16), [some(&[4, 48]), some(&[64, 4])]);
    let seeds = [64, 32].map(|out| some(&[5, out]).to_kind(Kind::BFloat16));
    for wanted in [true, false] {
        let gradients = |by_tape: bool| {
            let [x, a, b] = [&x, &pair[0], &pair[1]].map(leaf);
            let lora = Some(Factors { a: &a, b: &b, scale: 1.5 });
            let run = || device_project(&x, &[(&weights[0], lora), (&weights[1], None)]).unwrap();
            let run = || if wanted || !by_tape { run() } else { without_values(run) };
            if !by_tape {
                return gone_back(&run(), &seeds, &[&x, &a, &b]);
            }
            let mut tape = Tape::new().unwrap();
            drop(tape.record(|| tch::no_grad(run)).unwrap());
            assert_eq!(tape.length(), if wanted { 3 } else { 1 });
            gone_back(&tape.replay(run).unwrap(), &seeds, &[&x, &a, &b])
        };
        let (kept, again) = (gradients(false), gradients(true));
        // A product without a history may be made otherwise, as in inference; gradients do not hang on it.
        assert_eq!(again[2..], kept[2..], "wanted {wanted}");
        let off = (&again[0] - &kept[0]).abs().max().double_value(&[]);
        assert!(!wanted || off <= 0.02 * kept[0].abs().max().double_value(&[]), "off by {off}");
    }
}
