//! Layers that keep what their products and their attention give: the gradients of layers that keep all or their inputs, and
//! no product made again.

use tailor_models::{Base, Compute, Keeps, LoadOptions, LoraInit, LoraSet, Pass};
use tailor_torch::{Tape, backward, guarded, set_bf16_products};
use tch::{Device, Kind, Tensor};

use crate::{Golden, input, model_folder};

/// One of each way of masking, with biases, norms of queries and keys, norms behind the products, and a dense layer.
const CASES: [&str; 9] =
    ["llama-gqa-nf4", "mistral-window", "qwen2", "qwen3", "gemma2", "gemma3", "t5-v11-nf4", "t5-tied", "mt5"];

fn load(name: &str, compute: Compute) -> Base {
    Base::load(&model_folder(name), &LoadOptions { compute, device: Device::Cpu }).unwrap()
}

/// A set whose B is not zero, so that it does something.
fn noisy_set(base: &Base, dropout: f64) -> LoraSet {
    let set = LoraSet::init(base, &LoraInit { rank: 4, alpha: 8.0, dropout, targets: Vec::new() }, 5).unwrap();
    for (name, mut tensor) in set.parameters() {
        if name.ends_with("lora_B.weight") {
            tch::no_grad(|| tensor.copy_(&(tensor.randn_like() * 0.1)));
        }
    }
    set
}

fn loss(base: &Base, hidden: &Tensor, pass: &Pass<'_>) -> Tensor {
    base.head(hidden, pass).log_softmax(-1, Kind::Float).square().mean(Kind::Float)
}

/// Of every factor; with everything kept, or what a pass keeps. `between` runs when the layers have run once.
fn gradients(name: &str, base: &Base, dropout: f64, keeps: Option<Keeps>, between: &dyn Fn()) -> Vec<(String, Tensor)> {
    let (golden, set) = (Golden::of(name), noisy_set(base, dropout));
    let pass = Pass::training(&set).keeping(keeps.unwrap_or_default());
    let input = input(base, &golden);
    tch::manual_seed(7);
    match keeps {
        None => backward(&[(&loss(base, &base.hidden(&input, &pass).unwrap(), &pass), None)], false).unwrap(),
        Some(_) => {
            let layered = base.hidden_layered(&input, &pass).unwrap();
            backward(&[(&loss(base, &layered.hidden, &pass), None)], false).unwrap();
            between();
            layered.backward().unwrap();
        }
    }
    set.parameters().into_iter().map(|(name, tensor)| (name, tensor.grad())).collect()
}

#[test]
fn kept_products_give_the_gradients_of_kept_layers() {
    for name in CASES {
        let base = load(name, Compute::F32);
        for dropout in [0.0, 0.3] {
            let of = |keeps| gradients(name, &base, dropout, keeps, &|| ());
            let (kept, selective) = (of(None), of(Some(Keeps::Products)));
            let largest = |tensor: &Tensor| tensor.abs().max().double_value(&[]);
            let scale = kept.iter().map(|(_, gradient)| largest(gradient)).fold(0.0, f64::max);
            assert!(scale > 0.0, "{name}");
            for ((key, kept), (_, selective)) in kept.iter().zip(&selective) {
                let off = largest(&(kept - selective));
                let limit = 1e-5 * largest(kept) + 1e-7 * scale;
                assert!(off <= limit, "{name}, dropout {dropout}: gradient of {key} is off by {off}");
            }
        }
    }
}

/// Sums are made in the same order, so that nothing is lost where bf16 rounds.
#[test]
fn kept_products_give_the_gradients_of_kept_inputs_to_the_bit_in_bf16() {
    for name in CASES {
        let base = load(name, Compute::Bf16);
        for dropout in [0.0, 0.3] {
            let of = |keeps| gradients(name, &base, dropout, Some(keeps), &|| ());
            let (inputs, products) = (of(Keeps::Inputs), of(Keeps::Products));
            for ((key, inputs), (_, products)) in inputs.iter().zip(&products) {
                assert!(inputs.equal(products), "{name}, dropout {dropout}: gradient of {key}");
            }
        }
    }
}

/// The last layer's queries are gone when it runs again: whoever made them again would attend to something else.
#[test]
fn products_that_are_kept_are_not_made_again() {
    let name = "llama-gqa";
    let base = load(name, Compute::F32);
    let layer = base.linears().iter().rev().find_map(|linear| linear.path.strip_suffix(".self_attn.q_proj")).unwrap();
    let weight = format!("{layer}.self_attn.q_proj.weight");
    let weight = &base.parameters().iter().find(|parameter| parameter.name == weight).unwrap().tensor;
    let original = weight.copy();
    let put = |values: &Tensor| tch::no_grad(|| weight.shallow_clone().copy_(values));
    let behind = |keeps, between: &dyn Fn()| {
        let all = gradients(name, &base, 0.0, Some(keeps), between);
        put(&original);
        let key = format!("{layer}.self_attn.o_proj.lora_A.weight");
        all.into_iter().find(|(name, _)| *name == key).unwrap().1
    };
    let gone = || put(&original.zeros_like());
    let expected = behind(Keeps::Products, &|| ());
    assert!(behind(Keeps::Products, &gone).equal(&expected));
    assert!(!behind(Keeps::Inputs, &gone).equal(&expected), "the measurement sees products that are made again");
}

#[test]
fn a_layer_that_runs_otherwise_the_second_time_is_an_error() {
    let name = "llama-gqa-nf4";
    let (base, golden) = (load(name, Compute::Bf16), Golden::of(name));
    let set = noisy_set(&base, 0.0);
    let pass = Pass::training(&set).keeping(Keeps::Products);
    set_bf16_products(true);
    let layered = base.hidden_layered(&input(&base, &golden), &pass).unwrap();
    backward(&[(&loss(&base, &layered.hidden, &pass), None)], false).unwrap();
    set_bf16_products(false);
    let error = guarded(|| layered.backward()).unwrap_err().to_string();
    assert!(error.contains("in Float where it has kept") && error.contains("in BFloat16"), "{error}");
    assert!(!Tape::is_in_use());
}
