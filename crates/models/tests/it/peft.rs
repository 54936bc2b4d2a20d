//! Adapters of every kind that peft saves (tests/golden/make_peft.py), against what peft computes with them.

use std::path::PathBuf;

use tailor_models::{Base, Compute, Greedy, LoadOptions, LoraSet, Pass, Prepared, Routes};
use tailor_peft::{Adapter, AdapterConfig, Limits, Tensors};
use tch::{Device, Kind, Tensor};

use crate::fused::in_pages;
use crate::{Golden, load, logits, model_folder, prompts, real, relative_difference};

/// Each names in its config the folder of tests/golden/models that it belongs to.
pub(crate) const CASES: [&str; 21] = [
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
    "prompt-llama",
    "prompt-gemma3",
    "prompt-t5",
    "prompt-mt5",
];

/// f32 sums in another order; measured differences are near 1e-6.
const TOLERANCE: f64 = 1e-5;

pub(crate) fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/peft").join(name)
}

pub(crate) fn adapter(name: &str) -> Adapter {
    Adapter::read_dir(&folder(name), &Limits::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

pub(crate) fn base_name(adapter: &Adapter) -> &str {
    adapter.config().base_model_name_or_path.as_deref().unwrap()
}

#[test]
fn adapters_of_every_kind_give_pefts_logits() {
    for name in CASES {
        let adapter = adapter(name);
        let (base, golden) = (load(base_name(&adapter)), Golden::of(base_name(&adapter)));
        let set = LoraSet::from_adapter(&base, &adapter).unwrap_or_else(|error| panic!("{name}: {error}"));
        let ours = logits(&base, &golden, &Pass::one(&set));
        let theirs = Tensor::read_safetensors(folder(name).join("logits.safetensors")).unwrap().remove(0).1;
        let real = real(&base, &golden).unsqueeze(-1);
        let pick = |logits: &Tensor| logits.masked_select(&real);
        let difference = relative_difference(&pick(&ours), &pick(&theirs));
        println!("{name}: {difference:.1e}");
        assert!(difference < TOLERANCE, "{name}: {difference}");
        let plain = logits(&base, &golden, &Pass::base());
        assert!(relative_difference(&pick(&plain), &pick(&theirs)) > 1e-2, "{name}: the adapter does something");
    }
}

#[test]
fn rows_with_adapters_of_several_kinds_equal_rows_alone() {
    for (base, kinds) in [
        ("llama-gqa", ["dora-llama", "saved-llama", "lora-bias"]),
        ("llama-gqa", ["lora-bias", "saved-llama", "head-untied"]),
        ("t5-v11", ["dora-t5", "saved-t5", "patterns-t5"]),
        ("t5-v11", ["dora-t5", "prompt-t5", "saved-t5"]),
    ] {
        let (base, golden) = (load(base), Golden::of(base));
        let sets = kinds.map(|name| LoraSet::from_adapter(&base, &adapter(name)).unwrap());
        // One set on rows apart, and a row without any.
        let rows = [Some(&sets[1]), Some(&sets[0]), None, Some(&sets[2]), Some(&sets[1])];
        let prompts = prompts(&golden);
        let prompts: Vec<Vec<u32>> = (0..rows.len()).map(|row| prompts[row % prompts.len()].clone()).collect();
        let routes = Routes::new(&rows, Device::Cpu);
        let tokens = [5, 6, 7, 8, 9];
        let (together, mut decoding) = base.start(&prompts, &Pass::rows(&routes)).unwrap();
        let next = base.step(&tokens, &mut decoding, &Pass::rows(&routes)).unwrap();
        for (row, set) in rows.iter().enumerate() {
            let pass = Pass::maybe(*set);
            let (alone, mut decoding) = base.start(&prompts[row..=row], &pass).unwrap();
            let next_alone = base.step(&tokens[row..=row], &mut decoding, &pass).unwrap();
            let row_of = |logits: &Tensor| logits.get(row as i64).unsqueeze(0);
            assert!(relative_difference(&row_of(&together), &alone) < TOLERANCE, "row {row}");
            assert!(relative_difference(&row_of(&next), &next_alone) < TOLERANCE, "row {row}, second token");
        }
        // All rows with one set take another way than one set for all rows.
        let routes = Routes::new(&[Some(&sets[1]); 2], Device::Cpu);
        let routed = base.start(&prompts[..2], &Pass::rows(&routes)).unwrap().0;
        let whole = base.start(&prompts[..2], &Pass::one(&sets[1])).unwrap().0;
        assert_eq!(relative_difference(&routed, &whole), 0.0);
    }
}

#[test]
fn an_adapter_with_its_own_head_and_embedding_answers_in_a_mixed_batch_as_alone() {
    let base = load("llama-gqa");
    let set = LoraSet::from_adapter(&base, &adapter("saved-llama")).unwrap();
    let greedy = Greedy { max_new: 6, eos: vec![2] };
    let prompt = vec![vec![11, 23, 42]];
    let alone = base.generate_greedy(&prompt, &greedy, Some(&set)).unwrap();
    let plain = base.generate_greedy(&prompt, &greedy, None).unwrap();
    assert_ne!(alone, plain);
    let routes = Routes::new(&[None, Some(&set)], Device::Cpu);
    let (mut logits, mut decoding) = base.start(&[prompt[0].clone(), prompt[0].clone()], &Pass::rows(&routes)).unwrap();
    for (mine, theirs) in plain[0].iter().zip(&alone[0]) {
        assert_eq!(Vec::<i64>::try_from(logits.argmax(-1, false)).unwrap(), [*mine as i64, *theirs as i64]);
        logits = base.step(&[*mine, *theirs], &mut decoding, &Pass::rows(&routes)).unwrap();
    }
}

#[test]
fn a_set_counts_every_byte_it_holds() {
    let base = load("llama-gqa");
    for (name, norms) in [("saved-llama", 0), ("lora-bias", 0), ("dora-llama", 1)] {
        let adapter = adapter(name);
        let set = LoraSet::from_adapter(&base, &adapter).unwrap();
        // DoRA keeps the lengths beside the magnitudes.
        let lengths: u64 = adapter.tensors().magnitudes.values().map(|values| 4 * values.len() as u64).sum();
        assert_eq!(set.resident_bytes() as u64, adapter.size_bytes() + norms * lengths, "{name}");
        assert_eq!(set.parameter_count(), adapter.size_bytes() / 4, "{name}: all is f32 here");
    }
}

#[test]
fn dora_in_bf16_stays_near_f32() {
    for (name, base) in [("dora-nf4", "llama-gqa-nf4"), ("saved-t5", "t5-v11"), ("dora-bias-all", "qwen2")] {
        let golden = Golden::of(base);
        let options = LoadOptions { compute: Compute::Bf16, ..LoadOptions::default() };
        let base = Base::load(&model_folder(base), &options).unwrap();
        let set = LoraSet::from_adapter(&base, &adapter(name)).unwrap();
        let ours = logits(&base, &golden, &Pass::one(&set));
        let theirs = Tensor::read_safetensors(folder(name).join("logits.safetensors")).unwrap().remove(0).1;
        let real = real(&base, &golden).unsqueeze(-1);
        let difference = relative_difference(&ours.masked_select(&real), &theirs.masked_select(&real));
        println!("{name}: {difference:.1e}");
        // As for the bases alone (golden.rs): transformers itself is off by up to 5e-2 in bf16.
        assert!(difference < 6e-2, "{name}: {difference}");
    }
}

#[test]
fn an_untrained_dora_adapter_is_refused_because_it_changes_nothing() {
    let base = load("llama-gqa");
    let trained = adapter("dora-llama");
    let mut tensors: Tensors = trained.tensors().clone();
    // B at zero and the lengths of the base's own rows as magnitudes: what peft begins with.
    let weights = Tensor::read_safetensors(model_folder("llama-gqa").join("model.safetensors")).unwrap();
    for pair in tensors.pairs.values_mut() {
        pair.b.fill(0.0);
    }
    for (path, magnitude) in &mut tensors.magnitudes {
        let (_, weight) = weights.iter().find(|(name, _)| *name == format!("{path}.weight")).unwrap();
        let norm = weight.to_kind(Kind::Float).norm_scalaropt_dim(2, [1i64].as_slice(), false);
        *magnitude = Vec::<f32>::try_from(norm).unwrap();
    }
    let config = || AdapterConfig::parse(&trained.config_to_bytes()).unwrap();
    let untrained = Adapter::with_tensors(config(), tensors.clone()).unwrap();
    let message = LoraSet::from_adapter(&base, &untrained).unwrap_err().to_string();
    assert!(message.contains("changes nothing"), "{message}");
    // One magnitude that was trained is an effect.
    tensors.magnitudes.values_mut().next().unwrap()[0] *= 1.5;
    LoraSet::from_adapter(&base, &Adapter::with_tensors(config(), tensors).unwrap()).unwrap();
}

#[test]
fn the_heads_own_weight_beside_lora_counts_only_where_it_differs() {
    let as_saved_and_changed = |name: &str| {
        let adapter = adapter(name);
        let mut tensors = adapter.tensors().clone();
        let head = tensors.whole.get_mut("lm_head.weight").unwrap();
        head.bytes[4 * 32 * 50..4 * 32 * 60].fill(0);
        let config = AdapterConfig::parse(&adapter.config_to_bytes()).unwrap();
        (adapter, Adapter::with_tensors(config, tensors).unwrap())
    };
    let (same, other) = as_saved_and_changed("head-untied");
    let (base, golden) = (load("llama-gqa"), Golden::of("llama-gqa"));
    let head_bytes = same.tensors().whole["lm_head.weight"].bytes.len();
    let (same, other) = (LoraSet::from_adapter(&base, &same).unwrap(), LoraSet::from_adapter(&base, &other).unwrap());
    assert_eq!(other.resident_bytes(), same.resident_bytes() + head_bytes);
    let (same, other) = (logits(&base, &golden, &Pass::one(&same)), logits(&base, &golden, &Pass::one(&other)));
    assert!(relative_difference(&same, &other) > 1e-2);
    // A tied head's weight is the embedding too: what peft loads over it would change both.
    let (_, other) = as_saved_and_changed("head-tied");
    let message = LoraSet::from_adapter(&load("qwen2"), &other).unwrap_err().to_string();
    assert!(message.contains("lm_head.weight differs from the base's"), "{message}");
}

#[test]
fn what_does_not_fit_the_base_is_refused_by_path() {
    let base = load("llama-gqa");
    let mut set = LoraSet::empty(&base);
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let path = "model.layers.0.self_attn.k_proj"; // 32 → 16
    for (message, wanted) in [
        (set.insert_magnitude(&base, path, zeros(&[16])), "needs A and B"),
        (set.insert_lora_bias(path, zeros(&[16])), "needs A and B"),
        (set.insert_lora_bias(path, zeros(&[17])), "[17] does not fit a layer of 16 outputs"),
        (set.replace(&format!("{path}.weight"), zeros(&[32, 16])), "[32, 16] in the adapter and [16, 32] in the base"),
        (set.replace("lm_head.weight", zeros(&[96, 31])), "[96, 31] in the adapter and [96, 32] in the base"),
        (set.replace("model.rotary", zeros(&[1])), "no parameter \"model.rotary\""),
        (set.replace("model.other.weight", zeros(&[1])), "no linear layer \"model.other\""),
    ] {
        let message = message.unwrap_err().to_string();
        assert!(message.contains(wanted), "{message}");
    }
    assert!(set.is_empty());
    let error = LoraSet::from_adapter(&load("llama-tied"), &adapter("saved-t5")).unwrap_err().to_string();
    assert!(error.contains("not in the base"), "{error}");
}

#[test]
fn what_another_thread_has_prepared_is_what_the_bases_own_makes_to_the_bit() {
    for name in CASES {
        let adapter = adapter(name);
        let options = LoadOptions { compute: Compute::Bf16, device: Device::Cpu };
        let base = Base::load(&model_folder(base_name(&adapter)), &options).unwrap();
        let mut own = LoraSet::from_adapter(&base, &adapter).unwrap();
        own.serve(&base).unwrap();
        let prompts = prompts(&Golden::of(base_name(&adapter)));
        let outline = base.outline();
        let prepared = std::thread::spawn(move || Prepared::for_serving(&outline, &adapter).unwrap());
        let set = prepared.join().unwrap().install(&base).unwrap();
        let (ours, theirs) = (set.parameters(), own.parameters());
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for ((path, ours), (other, theirs)) in ours.iter().zip(&theirs) {
            assert_eq!((path, ours.kind()), (other, theirs.kind()), "{name}");
            assert!(ours.equal(theirs), "{name}: {path}");
        }
        // The rows of B have their padding behind them too.
        if base.is_fused() && set.virtual_tokens() == 0 {
            let prompt = prompts.iter().find(|prompt| prompt.len() > 1).expect("a prompt to read in two steps");
            let logits = |set: &LoraSet| in_pages(&base, &[(prompt.as_slice(), Some(set))]);
            assert!(logits(&set).equal(&logits(&own)), "{name}");
        }
    }
}
