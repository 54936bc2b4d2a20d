//! Folders merged from the golden bases and adapters, looked at as files; what they compute is tested in crates/models.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tailor_domain::QuantCode;
use tailor_merge::{Error, MergeOptions, MergeReport, Stage, merge_folder};
use tailor_peft::{Adapter, AdapterConfig, Limits, LoraPair, Tensors};
use tailor_quant::{Checkpoint, Float};

fn golden(part: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(part)
}

fn base_of(adapter: &Adapter) -> PathBuf {
    golden("models").join(adapter.config().base_model_name_or_path.as_deref().unwrap())
}

fn adapter(name: &str) -> Adapter {
    Adapter::read_dir(&golden("peft").join(name), &Limits::default()).unwrap()
}

fn options(dtype: Float) -> MergeOptions {
    MergeOptions { compute: Float::F32, dtype, ..MergeOptions::default() }
}

fn merge(adapter: &Adapter, target: &Path, options: &MergeOptions) -> Result<MergeReport, Error> {
    merge_folder(&base_of(adapter), adapter, target, options, &mut |_| ControlFlow::Continue(()))
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// Every tensor's values, 4-bit weights turned back.
fn values(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let names = checkpoint.names().filter(|name| !name.contains(".weight."));
    let of = |name: &str| match checkpoint.quantized(name).unwrap() {
        Some(weight) => {
            let mut values = vec![0f32; weight.elements()];
            weight.dequantize_f32(&mut values);
            values
        }
        None => {
            let tensor = checkpoint.tensor(name).unwrap();
            tensor.float().unwrap().decode(&tensor.bytes)
        }
    };
    names.map(|name| (name.to_owned(), of(name))).collect()
}

#[test]
fn each_weight_is_the_dequantised_one_with_the_adapter_put_in() {
    let scratch = tempfile::tempdir().unwrap();
    let adapter = adapter("dora-nf4");
    let (base, target) = (values(&base_of(&adapter)), scratch.path().join("merged"));
    merge(&adapter, &target, &options(Float::F32)).unwrap();
    let merged = values(&target);
    assert!(merged.keys().eq(base.keys()), "names are the base's");
    for (name, base) in &base {
        let path = name.trim_end_matches(".weight");
        let Some(pair) = adapter.pairs().get(path) else {
            assert_eq!(&merged[name], base, "{name} is left alone");
            continue;
        };
        let (scale, magnitude) = (adapter.scale_for(path), &adapter.tensors().magnitudes[path]);
        for row in 0..pair.out_features {
            let entry = |column: usize| -> f64 {
                let products = (0..pair.rank)
                    .map(|r| f64::from(pair.b[row * pair.rank + r]) * f64::from(pair.a[r * pair.in_features + column]));
                f64::from(base[row * pair.in_features + column]) + scale * products.sum::<f64>()
            };
            let sums: Vec<f64> = (0..pair.in_features).map(entry).collect();
            let norm = sums.iter().map(|sum| sum * sum).sum::<f64>().sqrt();
            for (column, sum) in sums.iter().enumerate() {
                let wanted = f64::from(magnitude[row]) / norm * sum;
                let found = f64::from(merged[name][row * pair.in_features + column]);
                assert!((found - wanted).abs() < 1e-5, "{name} [{row}, {column}]: {found} for {wanted}");
            }
        }
    }
    let config = config(&target);
    assert_eq!((&config["dtype"], config.get("quantization_config")), (&json!("float32"), None));
}

#[test]
fn the_base_is_rounded_to_the_type_it_computes_in_before_anything_is_added() {
    let scratch = tempfile::tempdir().unwrap();
    let adapter = adapter("lora-bias");
    let target = scratch.path().join("merged");
    let options = MergeOptions { compute: Float::Bf16, ..options(Float::F32) };
    let report = merge(&adapter, &target, &options).unwrap();
    let (base, merged) = (values(&base_of(&adapter)), values(&target));
    for (name, base) in base.iter().filter(|(name, _)| !adapter.pairs().contains_key(name.trim_end_matches(".weight")))
    {
        let rounded: Vec<f32> = base.iter().map(|value| Float::Bf16.round(*value)).collect();
        assert_eq!(merged[name], rounded, "{name}");
    }
    assert!(report.rest.is_exact() && report.difference().is_exact(), "f32 holds what bf16 holds");
}

#[test]
fn shards_hold_what_one_file_holds_under_an_index_as_transformers_writes_it() {
    let scratch = tempfile::tempdir().unwrap();
    let adapter = adapter("saved-llama");
    let (whole, sharded) = (scratch.path().join("whole"), scratch.path().join("deep/er/sharded"));
    let one = merge(&adapter, &whole, &options(Float::Bf16)).unwrap();
    let many = merge(&adapter, &sharded, &MergeOptions { shard_bytes: 9_000, ..options(Float::Bf16) }).unwrap();
    assert_eq!(one.files, 1);
    assert!(many.files > 2 && !sharded.join("model.safetensors").exists(), "{} files", many.files);
    assert_eq!(values(&whole), values(&sharded));
    assert_eq!(one.difference(), many.difference());

    let index = std::fs::read(sharded.join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), one.tensors);
    assert!(map.values().any(|file| *file == format!("model-00001-of-{:05}.safetensors", many.files)));
    assert_eq!(index["metadata"]["total_size"], 2 * one.parameters);
    for entry in sharded.read_dir().unwrap().map(Result::unwrap) {
        let file = std::fs::read(entry.path()).unwrap();
        if let Ok(tensors) = safetensors::SafeTensors::deserialize(&file) {
            let bytes: usize = tensors.tensors().iter().map(|(_, view)| view.data().len()).sum();
            assert!(bytes <= 9_000 || tensors.len() == 1, "{:?}: {bytes}", entry.file_name());
        }
    }
    let refused = merge(&adapter, &scratch.path().join("no"), &MergeOptions { shard_bytes: 0, ..options(Float::F32) });
    assert!(refused.is_ok(), "a tensor larger than the limit has a file to itself: {refused:?}");
}

#[test]
fn sixteen_bits_are_the_f32_merge_rounded_once_and_the_report_says_what_that_took() {
    let scratch = tempfile::tempdir().unwrap();
    let adapter = adapter("dora-t5");
    let (exact, rounded) = (scratch.path().join("exact"), scratch.path().join("rounded"));
    merge(&adapter, &exact, &options(Float::F32)).unwrap();
    let report = merge(&adapter, &rounded, &options(Float::Bf16)).unwrap();
    let (base, exact, rounded) = (values(&base_of(&adapter)), values(&exact), values(&rounded));
    for (name, exact) in &exact {
        let once: Vec<f32> = exact.iter().map(|value| Float::Bf16.round(*value)).collect();
        assert_eq!(once, rounded[name], "{name}");
    }
    assert_eq!(report.changed.len(), adapter.pairs().len());
    for (name, difference) in &report.changed {
        let sum = |of: &dyn Fn(f64, f64, f64) -> f64| -> f64 {
            let all = base[name].iter().zip(&exact[name]).zip(&rounded[name]);
            all.map(|((w, m), r)| of(f64::from(*w), f64::from(*m), f64::from(*r))).sum()
        };
        let (update, error) = (sum(&|w, m, _| (m - w).powi(2)), sum(&|_, m, r| (r - m).powi(2)));
        assert!((difference.error_of_update() - (error / update).sqrt()).abs() < 1e-9, "{name}");
        assert!((difference.survives() - sum(&|w, m, r| (r - w) * (m - w)) / update).abs() < 1e-9, "{name}");
    }
    let worst = &report.worst().unwrap().1;
    assert!(report.changed.iter().all(|(_, other)| other.error_of_update() <= worst.error_of_update()));
}

#[test]
fn whoever_hears_of_the_progress_may_stop_it_and_nothing_is_there() {
    let scratch = tempfile::tempdir().unwrap();
    let adapter = adapter("dora-nf4");
    let target = scratch.path().join("stopped");
    let mut heard = 0;
    let outcome = merge_folder(&base_of(&adapter), &adapter, &target, &options(Float::F32), &mut |_| {
        heard += 1;
        if heard == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(outcome, Err(Error::Stopped)), "{outcome:?}");
    assert_eq!((heard, scratch.path().read_dir().unwrap().count()), (2, 0));
}

#[test]
fn in_four_bits_again_the_difference_is_that_of_the_folder_that_is_there() {
    let scratch = tempfile::tempdir().unwrap();
    let adapter = adapter("dora-nf4");
    let (dense, coded) = (scratch.path().join("dense"), scratch.path().join("coded"));
    merge(&adapter, &dense, &options(Float::F32)).unwrap();
    let again = MergeOptions { requantize: Some(QuantCode::Nf4), ..options(Float::F32) };
    let mut stages = Vec::new();
    let report = merge_folder(&base_of(&adapter), &adapter, &coded, &again, &mut |at| {
        stages.push(at.stage);
        ControlFlow::Continue(())
    })
    .unwrap();
    stages.dedup();
    assert_eq!(stages, [Stage::Merging, Stage::Quantising, Stage::Comparing]);
    assert_eq!(config(&coded)["quantization_config"]["bnb_4bit_quant_type"], "nf4");
    let (dense, coded) = (values(&dense), values(&coded));
    let largest = dense.iter().flat_map(|(name, dense)| dense.iter().zip(&coded[name]).map(|(a, b)| (a - b).abs()));
    let largest = f64::from(largest.fold(0f32, f32::max));
    let all = report.difference();
    assert!((all.largest_error - largest).abs() < 1e-6 && largest > 1e-3, "{largest} {all:?}");
    assert!(all.error_of_update() > 0.05, "4 bits cost something: {all:?}");
    assert!(report.rest.is_exact(), "norms, embeddings and head stay as they are: {:?}", report.rest);
}

#[test]
fn a_head_that_was_the_embedding_becomes_one_of_its_own_only_where_one_of_them_changes() {
    let scratch = tempfile::tempdir().unwrap();
    for (name, untied, head_is_base) in
        [("saved-tied-embedding", true, true), ("head-tied", true, false), ("saved-tied-head", true, false)]
    {
        let (adapter, target) = (adapter(name), scratch.path().join(name));
        let report = merge(&adapter, &target, &options(Float::F32)).unwrap();
        let (base, merged) = (values(&base_of(&adapter)), values(&target));
        let embedding = if base.contains_key("shared.weight") { "shared.weight" } else { "model.embed_tokens.weight" };
        assert_eq!(report.untied, untied, "{name}");
        assert_eq!(merged["lm_head.weight"] == base[embedding], head_is_base, "{name}");
        assert_eq!(merged[embedding] == base[embedding], !head_is_base, "{name}");
        assert_eq!(config(&target)["tie_word_embeddings"], false, "{name}");
    }
    let (adapter, target) = (adapter("dora-bias-all"), scratch.path().join("still-tied"));
    assert!(!merge(&adapter, &target, &options(Float::F32)).unwrap().untied);
    assert!(!values(&target).contains_key("lm_head.weight"));
    assert_eq!(config(&target)["tie_word_embeddings"], true);
}

#[test]
fn biases_come_with_the_field_that_makes_transformers_read_them() {
    let scratch = tempfile::tempdir().unwrap();
    let (adapter, target) = (adapter("lora-bias"), scratch.path().join("merged"));
    merge(&adapter, &target, &options(Float::F32)).unwrap();
    let (config, merged) = (config(&target), values(&target));
    assert_eq!((&config["attention_bias"], &config["mlp_bias"]), (&json!(true), &json!(true)));
    let path = "model.layers.0.self_attn.k_proj";
    let (bias, scale) = (&adapter.tensors().lora_biases[path], adapter.scale_for(path) as f32);
    let wanted: Vec<f32> = bias.iter().map(|value| scale * value).collect();
    assert_eq!(merged[&format!("{path}.bias")], wanted);
    assert!(merged["model.layers.1.self_attn.o_proj.bias"].iter().all(|value| *value == 0.0), "the field gives o one");
}

/// A LoRA of rank 1 on `module`, with a bias on B.
fn with_bias(base: &str, module: &str, in_features: usize, out_features: usize, b: f32) -> Adapter {
    let config = json!({
        "peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [module], "lora_bias": true,
        "base_model_name_or_path": base,
    });
    let config = AdapterConfig::parse(config.to_string().as_bytes()).unwrap();
    let pair = LoraPair { rank: 1, in_features, out_features, a: vec![1.0; in_features], b: vec![b; out_features] };
    let pairs = BTreeMap::from([(module.to_owned(), pair)]);
    let lora_biases = BTreeMap::from([(module.to_owned(), vec![0.5; out_features])]);
    Adapter::with_tensors(config, Tensors { pairs, lora_biases, ..Tensors::default() }).unwrap()
}

#[test]
fn what_fails_is_named_and_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let shape = |base: &str, module: &str| {
        let checkpoint = Checkpoint::open(&golden("models").join(base)).unwrap();
        let shape = checkpoint.tensor(&format!("{module}.weight")).unwrap().shape;
        (shape[1], shape[0])
    };
    let biased = |base: &str, module: &str, b: f32| {
        let (input, out) = shape(base, module);
        with_bias(base, module, input, out, b)
    };
    let (down, q) = ("model.layers.0.mlp.down_proj", "encoder.block.0.layer.0.SelfAttention.q");
    for (adapter, dtype, wanted) in [
        (
            biased("mistral-window", down, 1.0),
            Float::F32,
            "model.layers.0.mlp.down_proj.bias: the base has no such bias",
        ),
        (biased("t5-v11", q, 1.0), Float::F32, "SelfAttention.q.bias: the base has no such bias"),
        (adapter("saved-t5"), Float::F32, "a T5 has one embedding"),
        // Found only when other tensors have been written.
        (biased("llama-gqa", down, 1e5), Float::F16, "is more than float16 holds; merge into bf16 or f32"),
    ] {
        let error = merge(&adapter, &scratch.path().join("merged"), &options(dtype)).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
        assert!(!error.retryable(), "{error}");
        assert_eq!(scratch.path().read_dir().unwrap().count(), 0, "{error}");
    }
    let elsewhere = adapter("dora-t5");
    let other = merge_folder(
        &golden("models/llama-gqa"),
        &elsewhere,
        &scratch.path().join("merged"),
        &options(Float::F32),
        &mut |_| ControlFlow::Continue(()),
    );
    assert!(other.unwrap_err().to_string().contains("does not fit this base"));
    std::fs::write(scratch.path().join("mine"), "mine").unwrap();
    let occupied = merge(&elsewhere, scratch.path(), &options(Float::F32)).unwrap_err();
    assert!(occupied.to_string().contains("is not empty"), "{occupied}");
    assert_eq!(scratch.path().read_dir().unwrap().count(), 1);
}
