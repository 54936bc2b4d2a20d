//! Adapters: rows apart, refused where they do not fit, gradients the same over 4-bit and over dense weights.

use tailor_models::{Base, Lora, LoraInit, LoraSet, Pass, Routes};
use tailor_quant::Checkpoint;
use tch::{Device, Kind, Tensor};

use crate::{Golden, load, logits, model_folder, prompts, relative_difference};

/// A set whose B is not zero, so that it does something.
fn noisy_set(base: &Base, seed: i64) -> LoraSet {
    let init = LoraInit { rank: 4, alpha: 8.0, dropout: 0.0, targets: Vec::new() };
    let set = LoraSet::init(base, &init, seed).unwrap();
    tch::no_grad(|| {
        for (name, mut tensor) in set.parameters() {
            if name.ends_with("lora_B.weight") {
                tensor.copy_(&(tensor.randn_like() * 0.1));
            }
        }
    });
    set
}

#[test]
fn fresh_adapter_changes_nothing() {
    let (base, golden) = (load("llama-gqa-nf4"), Golden::of("llama-gqa-nf4"));
    let init = LoraInit { rank: 8, alpha: 16.0, dropout: 0.0, targets: vec!["q_proj".into(), "mlp.up_proj".into()] };
    let set = LoraSet::init(&base, &init, 1).unwrap();
    assert_eq!(set.iter().count(), 4);
    let (with, without) = (logits(&base, &golden, &Pass::one(&set)), logits(&base, &golden, &Pass::base()));
    assert_eq!(relative_difference(&with, &without), 0.0);
}

#[test]
fn rows_with_their_own_adapters_equal_rows_alone() {
    for name in ["llama-gqa-nf4", "t5-v11-nf4"] {
        let (base, golden) = (load(name), Golden::of(name));
        let (one, two) = (noisy_set(&base, 1), noisy_set(&base, 2));
        let sets = [Some(&one), None, Some(&two)];
        let prompts = prompts(&golden);
        let routes = Routes::new(&sets, Device::Cpu);
        let (together, mut decoding) = base.start(&prompts, &Pass::rows(&routes)).unwrap();
        let next = base.step(&[5, 6, 7], &mut decoding, &Pass::rows(&routes)).unwrap();
        for (row, set) in sets.iter().enumerate() {
            let pass = Pass::maybe(*set);
            let (alone, mut decoding) = base.start(&prompts[row..=row], &pass).unwrap();
            let next_alone = base.step(&[5 + row as u32], &mut decoding, &pass).unwrap();
            let row_of = |logits: &Tensor| logits.get(row as i64).unsqueeze(0);
            assert!(relative_difference(&row_of(&together), &alone) < 1e-5, "{name}, row {row}");
            assert!(relative_difference(&row_of(&next), &next_alone) < 1e-5, "{name}, row {row}, second token");
        }
        let base_alone = base.start(&prompts[..1], &Pass::base()).unwrap().0;
        assert!(relative_difference(&together.narrow(0, 0, 1), &base_alone) > 1e-3, "the adapter does something");
    }
}

#[test]
fn gradients_over_4_bit_weights_equal_those_over_the_same_dense_weights() {
    let name = "llama-gqa-nf4";
    let (base, golden) = (load(name), Golden::of(name));
    // The same model with the dequantised weights written out densely.
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&model_folder(name)).unwrap();
    let mut tensors = Vec::new();
    for key in checkpoint.names().filter(|key| !key.contains(".weight.")) {
        let tensor = match checkpoint.quantized(key).unwrap() {
            Some(weight) => tailor_torch::QuantWeight::new(weight).unwrap().dequantize(),
            None => {
                let stored = checkpoint.tensor(key).unwrap();
                let shape: Vec<i64> = stored.shape.iter().map(|&side| side as i64).collect();
                Tensor::from_data_size(&stored.bytes, &shape, Kind::Float)
            }
        };
        tensors.push((key.to_owned(), tensor));
    }
    Tensor::write_safetensors(&tensors, folder.path().join("model.safetensors")).unwrap();
    std::fs::copy(model_folder(name).join("config.json"), folder.path().join("config.json")).unwrap();
    let dense = Base::load(folder.path(), &Default::default()).unwrap();
    assert!(dense.linears().iter().all(|linear| !linear.quantized));
    assert!(dense.resident_bytes() > base.resident_bytes());

    let gradients = |base: &Base| {
        let set = noisy_set(base, 3);
        let loss = logits(base, &golden, &Pass::training(&set)).log_softmax(-1, Kind::Float).square().mean(Kind::Float);
        tailor_torch::backward(&[(&loss, None)], false).unwrap();
        set.parameters().into_iter().map(|(name, tensor)| (name, tensor.grad())).collect::<Vec<_>>()
    };
    for ((name, four_bit), (_, dense)) in gradients(&base).into_iter().zip(gradients(&dense)) {
        assert!(relative_difference(&four_bit, &dense) < 1e-5, "{name}");
    }
}

#[test]
fn factors_that_do_not_fit_are_refused_by_layer() {
    let base = load("llama-gqa-nf4");
    let mut set = LoraSet::empty(&base);
    let path = "model.layers.0.self_attn.k_proj"; // 32 → 16
    let factors = |a: [i64; 2], b: [i64; 2]| {
        let zeros = |shape| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        Lora { a: zeros(a), b: zeros(b), scale: 1.0, dropout: 0.0 }
    };
    set.insert(path, factors([4, 32], [16, 4])).unwrap();
    for (a, b) in [([4, 31], [16, 4]), ([4, 32], [32, 4]), ([4, 32], [16, 5]), ([0, 32], [16, 0])] {
        let message = set.insert(path, factors(a, b)).unwrap_err().to_string();
        assert!(message.contains(path) && message.contains("from 32 to 16"), "{message}");
    }
    let message = set.insert("model.layers.9.mlp.up_proj", factors([4, 32], [64, 4])).unwrap_err().to_string();
    assert!(message.contains("no linear layer \"model.layers.9.mlp.up_proj\""), "{message}");
    let init = LoraInit { rank: 4, alpha: 8.0, dropout: 0.0, targets: vec!["query".into()] };
    let message = LoraSet::init(&base, &init, 0).unwrap_err().to_string();
    assert!(message.contains("\"query\" matches no linear layer"), "{message}");
}
