use nalgebra::DMatrix;

use super::*;
use crate::adapter::tests::{PATH, one, pair, whole};
use crate::spectrum::tests::{Numbers, full, pair_with};

const OTHER: &str = "model.layers.1.self_attn.q_proj";

fn parsed(extra: &str) -> AdapterConfig {
    let json = format!(r#"{{"peft_type":"LORA","r":4,"lora_alpha":6,"target_modules":["q_proj"],{extra}}}"#);
    AdapterConfig::parse(json.as_bytes()).expect("valid")
}

fn pair_of(sigma: &[f64], seed: u64) -> LoraPair {
    let mut numbers = Numbers(seed);
    let (u, v) = (numbers.basis(30, sigma.len()), numbers.basis(20, sigma.len()));
    pair_with(&u, sigma, &v, &mut numbers)
}

/// Two layers, of which one falls off more steeply, under a config whose scales differ.
fn steep_and_flat() -> Adapter {
    let config = parsed(r#""use_rslora":true,"alpha_pattern":{"layers.1.self_attn.q_proj":2}"#);
    let pairs = BTreeMap::from([
        (PATH.to_owned(), pair_of(&[4.0, 1.0, 0.1, 0.01], 1)),
        (OTHER.to_owned(), pair_of(&[1.0, 0.9, 0.8, 0.7], 2)),
    ]);
    Adapter::new(config, pairs).expect("sound")
}

/// ‖Δ − Δ'‖² and ‖Δ‖² over all layers, from the full matrices.
fn measured(before: &Adapter, after: &Adapter) -> (f64, f64) {
    let paths: Vec<&String> = before.pairs().keys().collect();
    let lost = paths.iter().map(|path| (full(before, path) - full(after, path)).norm_squared());
    (lost.sum(), paths.iter().map(|path| full(before, path).norm_squared()).sum())
}

#[test]
fn the_error_of_what_is_kept_is_the_energy_that_is_said_to_be_lost() {
    let before = steep_and_flat();
    for keep in [Keep::Rank(1), Keep::Rank(2), Keep::Rank(3), Keep::Energy(0.5), Keep::Energy(0.9), Keep::Energy(0.99)]
    {
        let compressed = before.compress(keep).expect("smaller");
        let (lost, total) = measured(&before, &compressed.adapter);
        let said = compressed.energy_lost();
        assert!((lost / total - said).abs() < 1e-4 * said.max(1e-3), "{keep:?}: {} is said to be {said}", lost / total);
        for path in [PATH, OTHER] {
            assert_eq!(compressed.adapter.scale_for(path), 1.0, "{keep:?}: the scale is in B and A");
        }
    }
}

#[test]
fn a_rank_is_kept_by_every_layer_and_needs_no_pattern() {
    let compressed = steep_and_flat().compress(Keep::Rank(2)).expect("smaller");
    assert_eq!(compressed.ranks, [2, 2]);
    let config = compressed.adapter.config();
    assert_eq!((config.r, config.lora_alpha, config.use_rslora), (2, 2.0, false));
    let json = String::from_utf8(config.to_json()).expect("text");
    assert!(json.contains(r#""rank_pattern": {}"#) && json.contains(r#""alpha_pattern": {}"#), "{json}");
    let worst = compressed.worst_layer().expect("two layers");
    // 0.8² + 0.7² of the flat layer's 1 + 0.9² + 0.8² + 0.7².
    assert!(worst.0 == OTHER && (worst.1 - 1.13 / 2.94).abs() < 1e-5, "{worst:?}");
}

#[test]
fn a_share_of_the_energy_takes_from_each_layer_what_it_needs() {
    let compressed = steep_and_flat().compress(Keep::Energy(0.9)).expect("smaller");
    assert_eq!(compressed.ranks, [1, 4], "a steep layer needs less than a flat one");
    for (layer, rank) in compressed.layers() {
        assert!(layer.energy_kept(rank) >= 0.9 && (rank == 1 || layer.energy_kept(rank - 1) < 0.9), "{layer:?}");
    }
    let adapter = &compressed.adapter;
    let bytes = (adapter.config_to_bytes(), adapter.weights_to_bytes().expect("weights"));
    let read = Adapter::from_bytes(&bytes.0, &bytes.1, &crate::Limits::default()).expect("what is written is sound");
    assert_eq!([PATH, OTHER].map(|path| read.pairs()[path].rank), [1, 4]);
    assert_eq!(read.weights_to_bytes().expect("weights"), bytes.1);
}

#[test]
fn a_path_that_ends_another_has_a_rank_of_its_own() {
    let (inner, outer) = ("decoder.q_proj", "encoder.decoder.q_proj");
    let third = "q_proj";
    let sigma = |at: usize| (0..4).map(|value| if value < at { 1.0 } else { 1e-3 }).collect::<Vec<f64>>();
    let paths = [(inner, 3), (outer, 2), (third, 1)];
    let pairs = paths.iter().map(|(path, rank)| ((*path).to_owned(), pair_of(&sigma(*rank), 5)));
    let adapter = Adapter::new(parsed(r#""bias":"none""#), pairs.collect()).expect("sound");
    let compressed = adapter.compress(Keep::Energy(0.99)).expect("smaller").adapter;
    assert_eq!(paths.map(|(path, _)| compressed.pairs()[path].rank), paths.map(|(_, rank)| rank));
    assert!(paths.iter().all(|(path, _)| compressed.scale_for(path) == 1.0));
}

#[test]
fn whole_modules_and_biases_are_carried_over() {
    let extra = r#""lora_bias":true,"bias":"all","modules_to_save":["lm_head"]"#;
    let bias = vec![0.25f32; 30];
    let whole = BTreeMap::from([
        ("lm_head.weight".to_owned(), whole(&[3, 6], 0.5)),
        ("model.layers.0.mlp.up_proj.bias".to_owned(), whole(&[4], 1.5)),
    ]);
    let tensors = Tensors {
        pairs: one(PATH, pair_of(&[4.0, 1.0, 0.1, 0.01], 1)),
        lora_biases: one(PATH, bias),
        whole: whole.clone(),
        ..Tensors::default()
    };
    let before = Adapter::with_tensors(parsed(extra), tensors).expect("sound");
    let after = before.compress(Keep::Rank(1)).expect("smaller").adapter;
    assert_eq!(after.tensors().whole, whole);
    // alpha 6 over rank 4 went from the scale into the bias of B.
    assert_eq!(after.tensors().lora_biases[PATH], vec![0.375f32; 30]);
}

#[test]
fn a_layer_without_change_stays_so_with_rank_one() {
    let mut zero = pair_of(&[1.0; 4], 3);
    zero.b.fill(0.0);
    let pairs = BTreeMap::from([(PATH.to_owned(), pair_of(&[1.0; 4], 4)), (OTHER.to_owned(), zero)]);
    let before = Adapter::new(parsed(r#""bias":"none""#), pairs).expect("sound");
    let compressed = before.compress(Keep::Energy(0.6)).expect("smaller");
    assert_eq!(compressed.ranks, [3, 1]);
    assert_eq!(full(&compressed.adapter, OTHER), DMatrix::zeros(30, 20));
}

#[test]
fn what_cannot_be_compressed_is_refused_by_name() {
    let sound = steep_and_flat();
    for (keep, wanted) in [
        (Keep::Rank(0), "rank 0 is outside 1 to 1024"),
        (Keep::Rank(4), "every layer would keep the rank it has, the largest 4"),
        (Keep::Energy(1.0), "1 of the energy is not between 0 and 1"),
        (Keep::Energy(f64::NAN), "NaN of the energy"),
    ] {
        let error = sound.compress(keep).expect_err(wanted);
        assert!(error.to_string().contains(wanted), "wanted {wanted}: {error}");
    }
    let tensors =
        Tensors { pairs: one(PATH, pair(4, 6, 4)), magnitudes: one(PATH, vec![1.0; 4]), ..Tensors::default() };
    let dora = Adapter::with_tensors(parsed(r#""use_dora":true"#), tensors).expect("sound");
    let error = dora.compress(Keep::Rank(1)).expect_err("DoRA").to_string();
    assert!(error.contains("use_dora") && error.contains("magnitudes"), "{error}");
}
