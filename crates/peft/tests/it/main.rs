//! Adapter folders on disk: those that the real `peft` wrote (tests/golden/make_peft.py), and broken ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tailor_peft::{Adapter, BaseShapes, CONFIG_FILE, Error, Limits, LinearShape, LoraPair, PICKLE_FILE, WEIGHTS_FILE};

/// What `peft` says of one module.
#[derive(Deserialize)]
struct Expected {
    rank: usize,
    in_features: usize,
    out_features: usize,
    scale: f64,
    /// The L2 norm of scale·B·A.
    delta_norm: f64,
}

/// The script's names, by what their folder holds.
const ACCEPTED: [&str; 23] = [
    "llama-all-linear",
    "llama-one-layer",
    "llama-patterns",
    "llama-bf16",
    "t5-attention",
    "t5-regex",
    "dora-llama",
    "dora-nf4",
    "dora-bias-all",
    "dora-t5",
    "lora-bias",
    "lora-bias-lora-only",
    "saved-llama",
    "saved-tied-embedding",
    "saved-tied-head",
    "saved-t5",
    "saved-layers",
    "saved-biases",
    "head-untied",
    "head-tied",
    "patterns-qwen3",
    "patterns-t5",
    "patterns-t5-blocks",
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/peft").join(name)
}

fn read(folder: &Path) -> Result<Adapter, Error> {
    Adapter::read_dir(folder, &Limits::default())
}

fn expected(name: &str) -> BTreeMap<String, Expected> {
    let bytes = fs::read(golden(name).join("expected.json")).expect("the fixture is committed");
    serde_json::from_slice(&bytes).expect("the fixture is JSON")
}

fn delta_norm(pair: &LoraPair, scale: f64) -> f64 {
    let mut squares = 0.0;
    for b_row in pair.b.chunks(pair.rank) {
        for column in 0..pair.in_features {
            let product = |(r, b): (usize, &f32)| f64::from(*b) * f64::from(pair.a[r * pair.in_features + column]);
            squares += b_row.iter().enumerate().map(product).sum::<f64>().powi(2);
        }
    }
    scale * squares.sqrt()
}

#[test]
fn adapters_of_the_real_peft_mean_what_peft_says() {
    for name in ACCEPTED {
        let adapter = read(&golden(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = expected(name);
        assert_eq!(adapter.pairs().keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        for (path, wanted) in &expected {
            let pair = &adapter.pairs()[path];
            let shape = (pair.rank, pair.in_features, pair.out_features);
            assert_eq!(shape, (wanted.rank, wanted.in_features, wanted.out_features), "{name} {path}");
            let scale = adapter.scale_for(path);
            assert!((scale - wanted.scale).abs() <= 1e-12 * wanted.scale, "{name} {path}: {scale} {}", wanted.scale);
            // peft multiplies in f32: 1e-5 is a hundred times its rounding over these few terms.
            let norm = delta_norm(pair, scale);
            assert!((norm - wanted.delta_norm).abs() <= 1e-5 * wanted.delta_norm, "{name} {path}: {norm}");
        }
    }
}

#[test]
fn adapters_of_the_real_peft_are_written_as_peft_wrote_them() {
    for name in ACCEPTED {
        let adapter = read(&golden(name)).expect("accepted");
        let out = tempfile::tempdir().expect("a folder");
        let folder = out.path().join("made/on/the/way");
        adapter.write_dir(&folder).expect("writes");
        let same_bytes = fs::read(folder.join(WEIGHTS_FILE)).expect("written")
            == fs::read(golden(name).join(WEIGHTS_FILE)).expect("the fixture");
        assert!(same_bytes, "{name}: the weights differ from peft's file");
        let json = |folder: &Path| -> Value {
            serde_json::from_slice(&fs::read(folder.join(CONFIG_FILE)).expect("there")).expect("JSON")
        };
        assert_eq!(json(&folder), json(&golden(name)), "{name}");
        assert_eq!(read(&folder).expect("our own folder").tensors(), adapter.tensors());
    }
}

#[test]
fn adapters_fit_the_base_they_were_made_on_and_no_other() {
    for name in ACCEPTED {
        let adapter = read(&golden(name)).expect("accepted");
        let shape = |e: Expected| LinearShape { in_features: e.in_features, out_features: e.out_features };
        let linears = expected(name).into_iter().map(|(path, module)| (path, shape(module))).collect();
        let whole = adapter.tensors().whole.iter().map(|(path, whole)| (path.clone(), whole.shape.clone()));
        let mut base = BaseShapes::new(linears, whole.collect());
        adapter.check_against(&base).unwrap_or_else(|error| panic!("{name}: {error}"));
        let other = if name.contains("t5") || name == "saved-tied-head" { "llama-all-linear" } else { "t5-attention" };
        let error = read(&golden(other)).expect("accepted").check_against(&base).expect_err("another family");
        assert!(matches!(error, Error::DoesNotFit { .. }), "{name}: {error}");

        let Some(path) = adapter.tensors().whole.keys().next() else { continue };
        base.tensors.insert(path.clone(), vec![5, 7]);
        let error = adapter.check_against(&base).expect_err("another size").to_string();
        assert!(error.contains(path) && error.contains("and 5x7 in the base"), "{name}: {error}");
        base.tensors.remove(path);
        let error = adapter.check_against(&base).expect_err("no such tensor").to_string();
        assert!(error.contains(path) && error.contains("not in the base"), "{name}: {error}");
    }
}

#[test]
fn values_keep_the_type_that_they_were_saved_in() {
    let adapter = read(&golden("llama-bf16")).expect("accepted");
    let types: Vec<_> = adapter.tensors().whole.values().map(|whole| format!("{:?}", whole.dtype)).collect();
    assert_eq!(types.len(), 5, "the last norm, and two of each layer, whose names end in the same word");
    assert!(types.iter().all(|name| name == "BF16"));
}

#[test]
fn kinds_of_adapters_that_would_be_served_wrongly_are_refused_by_name() {
    for (name, wanted) in [
        ("refused-shared", "shared.weight: PEFT itself never reads a T5's shared"),
        ("refused-embedding", "embed_tokens.base_layer.weight: LoRA on an embedding"),
        ("refused-positions", "relative_attention_bias.weight: position biases"),
        ("refused-tying", "field ensure_weight_tying"),
    ] {
        let error = read(&golden(name)).expect_err(name);
        assert!(error.to_string().contains(wanted), "{name}: {error}");
    }
}

#[test]
fn a_missing_file_or_a_pickle_is_named_with_the_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = read(folder.path()).expect_err("empty folder");
    assert!(error.to_string().contains("has no adapter_config.json"), "{error}");
    fs::copy(golden("t5-attention").join(CONFIG_FILE), folder.path().join(CONFIG_FILE)).expect("copies");
    let error = read(folder.path()).expect_err("no weights");
    assert!(error.to_string().contains("has no adapter_model.safetensors"), "{error}");
    fs::write(folder.path().join(PICKLE_FILE), b"\x80\x02.").expect("writes");
    let error = read(folder.path()).expect_err("only a pickle");
    assert!(error.to_string().contains("safe_serialization=True"), "{error}");
}

#[test]
fn a_file_over_the_limit_is_not_read() {
    let limits = Limits { max_config_bytes: 1 << 20, max_weights_bytes: 100 };
    let error = Adapter::read_dir(&golden("t5-attention"), &limits).expect_err("too large");
    assert!(matches!(error, Error::TooLarge { limit: 100, .. }), "{error}");
    let limits = Limits { max_config_bytes: 10, ..Limits::default() };
    assert!(matches!(Adapter::read_dir(&golden("t5-attention"), &limits), Err(Error::TooLarge { limit: 10, .. })));
}
