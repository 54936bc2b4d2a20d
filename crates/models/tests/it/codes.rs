//! A folder of every code serves: its logits are those of the dense folder with the dequantised weights in it.

use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use tailor_domain::QuantCode;
use tailor_models::{Base, LoadOptions, Pass};
use tailor_quant::{BlockSize, Checkpoint, QuantOptions, quantize_folder};

use crate::{Golden, logits, model_folder, real, relative_difference};

/// The same arithmetic in another order of additions.
const TOLERANCE: f64 = 1e-5;

const CODES: [QuantCode; 5] =
    [QuantCode::Nf4, QuantCode::Nf4Single, QuantCode::Fp4, QuantCode::Uniform4, QuantCode::None];

fn open(folder: &Path) -> Base {
    Base::load(folder, &LoadOptions::default()).unwrap()
}

/// `source` again with the weights of `quantized`, dequantised; says how many there were.
fn write_dequantized(source: &Path, quantized: &Path, target: &Path) -> usize {
    let (dense, quantized) = (Checkpoint::open(source).unwrap(), Checkpoint::open(quantized).unwrap());
    let mut replaced = 0;
    let tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = dense
        .names()
        .map(|name| {
            let tensor = dense.tensor(name).unwrap();
            let Some(weight) = quantized.quantized(name).unwrap() else {
                return (name, tensor.dtype, tensor.shape, tensor.bytes.to_vec());
            };
            replaced += 1;
            let mut values = vec![0f32; weight.elements()];
            weight.dequantize_f32(&mut values);
            (name, Dtype::F32, tensor.shape, values.into_iter().flat_map(f32::to_le_bytes).collect())
        })
        .collect();
    let view = |(name, dtype, shape, bytes)| (name, TensorView::new(dtype, shape, bytes).unwrap());
    let views =
        tensors.iter().map(|(name, dtype, shape, bytes)| view((*name, *dtype, shape.clone(), bytes.as_slice())));
    fs::create_dir(target).unwrap();
    serialize_to_file(views, None, &target.join("model.safetensors")).unwrap();
    fs::copy(source.join("config.json"), target.join("config.json")).unwrap();
    replaced
}

#[test]
fn a_base_of_every_code_has_the_logits_of_its_dequantised_weights() {
    for (name, blocksize) in [("llama-gqa", 64), ("t5-v11", 32)] {
        let (source, golden) = (model_folder(name), Golden::of(name));
        for code in CODES {
            let scratch = tempfile::tempdir().unwrap();
            let (folder, dense) = (scratch.path().join("quantised"), scratch.path().join("dense"));
            let blocksize = BlockSize::try_new(blocksize).unwrap();
            let options = QuantOptions { code, blocksize, ..QuantOptions::default() };
            quantize_folder(&source, &folder, &options, &mut |_| {}).unwrap();
            let replaced = write_dequantized(&source, &folder, &dense);
            let base = open(&folder);
            assert_eq!(base.linears().iter().filter(|linear| linear.quantized).count(), replaced, "{name} {code:?}");
            assert_eq!(replaced == 0, code == QuantCode::None, "{name} {code:?}");

            let positions = real(&base, &golden).unsqueeze(-1);
            let of = |base: &Base| logits(base, &golden, &Pass::base()).masked_select(&positions);
            let (ours, expected) = (of(&base), of(&open(&dense)));
            let difference = relative_difference(&ours, &expected);
            assert!(difference < TOLERANCE, "{name} {code:?}: {difference}");
            let moved = relative_difference(&ours, &golden.get("logits").masked_select(&positions));
            assert_eq!(moved > 1e-3, code != QuantCode::None, "{name} {code:?}: {moved} from the dense model");
        }
    }
}
