//! Against transformers, peft and bitsandbytes (tests/golden/models), and the models against themselves.

mod adapters;
mod codes;
mod decoding;
mod device_step;
mod fused;
mod golden;
mod loading;
mod memory;
mod merged;
mod pages;
mod peft;
mod prompt;
mod selective;

use std::collections::HashMap;
use std::path::PathBuf;

use tailor_models::{Base, Compute, Input, LoadOptions, Pass};
use tch::{Device, Kind, Tensor};

/// A folder of tests/golden/models.
fn model_folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/models").join(name)
}

fn load(name: &str) -> Base {
    Base::load(&model_folder(name), &LoadOptions { compute: Compute::F32, device: Device::Cpu }).unwrap()
}

/// The tensors of a case's golden.safetensors.
struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn of(name: &str) -> Self {
        let path = model_folder(name).join("golden.safetensors");
        Self(Tensor::read_safetensors(path).unwrap().into_iter().collect())
    }

    fn get(&self, key: &str) -> &Tensor {
        &self.0[key]
    }
}

/// The golden input.
fn input<'a>(base: &Base, golden: &'a Golden) -> Input<'a> {
    let (ids, mask) = (golden.get("ids"), Some(golden.get("mask")));
    match base.family() {
        tailor_domain::Family::Decoder => Input::Decoder { ids, mask },
        tailor_domain::Family::EncoderDecoder => {
            Input::EncoderDecoder { ids, mask, decoder_ids: golden.get("decoder_ids") }
        }
    }
}

/// Logits at every position of the golden input.
fn logits(base: &Base, golden: &Golden, pass: &Pass<'_>) -> Tensor {
    base.head(&base.hidden(&input(base, golden), pass).unwrap(), pass)
}

/// Positions whose logits mean something: padding of a decoder's input does not.
fn real(base: &Base, golden: &Golden) -> Tensor {
    match base.family() {
        tailor_domain::Family::Decoder => golden.get("mask").to_kind(Kind::Bool),
        tailor_domain::Family::EncoderDecoder => golden.get("decoder_ids").ones_like().to_kind(Kind::Bool),
    }
}

/// Largest difference over the largest value.
fn relative_difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    ((a - b).abs().max() / b.abs().max()).double_value(&[])
}

fn prompts(golden: &Golden) -> Vec<Vec<u32>> {
    let rows = golden.get("ids").size()[0];
    let row = |i: i64| {
        let real = golden.get("mask").get(i).sum(Kind::Int64).int64_value(&[]);
        let ids = Vec::<i64>::try_from(golden.get("ids").get(i).narrow(0, 0, real)).unwrap();
        ids.into_iter().map(|id| id as u32).collect()
    };
    (0..rows).map(row).collect()
}
