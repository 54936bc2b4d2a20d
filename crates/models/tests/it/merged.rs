//! Merged = apart: a folder that an adapter was merged into gives peft's logits for base and adapter.

use std::ops::ControlFlow;
use std::path::Path;

use tailor_merge::{Error, MergeOptions, MergeReport, merge_folder};
use tailor_models::{Base, LoadOptions, Pass};
use tailor_quant::Float;
use tch::Tensor;

use crate::peft::{CASES, adapter, base_name, folder};
use crate::{Golden, logits, model_folder, real, relative_difference};

/// f32 sums in another order; measured differences are near 1e-6.
const TOLERANCE: f64 = 1e-5;

/// What no folder can hold: an encoder and a decoder with embeddings of their own, virtual tokens.
const NOT_EXPRESSIBLE: [(&str, &str); 3] = [
    ("saved-t5", "decoder.embed_tokens.weight"),
    ("prompt-llama", "prompt_embeddings: virtual tokens stand before the input"),
    ("prompt-t5", "prompt_embeddings"),
];

fn merge(name: &str, target: &Path, dtype: Float) -> Result<MergeReport, Error> {
    let adapter = adapter(name);
    let options = MergeOptions { compute: Float::F32, dtype, ..MergeOptions::default() };
    merge_folder(&model_folder(base_name(&adapter)), &adapter, target, &options, &mut |_| ControlFlow::Continue(()))
}

/// The merged folder's logits against peft's for base and adapter.
fn difference(name: &str, merged: &Path) -> f64 {
    let adapter = adapter(name);
    let golden = Golden::of(base_name(&adapter));
    let base = Base::load(merged, &LoadOptions::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let ours = logits(&base, &golden, &Pass::base());
    let theirs = Tensor::read_safetensors(folder(name).join("logits.safetensors")).unwrap().remove(0).1;
    let real = real(&base, &golden).unsqueeze(-1);
    relative_difference(&ours.masked_select(&real), &theirs.masked_select(&real))
}

#[test]
fn a_merged_folder_gives_pefts_logits_for_base_and_adapter() {
    let scratch = tempfile::tempdir().unwrap();
    let expressible =
        |name: &&str| adapter(name).prompt().is_none() && NOT_EXPRESSIBLE.iter().all(|(no, _)| no != name);
    for name in CASES.into_iter().filter(expressible) {
        let target = scratch.path().join(name);
        let report = merge(name, &target, Float::F32).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(report.difference().is_exact() && report.difference().survives() == 1.0, "{name}: {report:?}");
        let difference = difference(name, &target);
        println!("{name}: {difference:.1e}");
        assert!(difference < TOLERANCE, "{name}: {difference}");
    }
}

#[test]
fn sixteen_bits_keep_the_update_and_three_bits_more_are_nearer_by_as_much() {
    let scratch = tempfile::tempdir().unwrap();
    for name in ["dora-nf4", "patterns-t5", "saved-tied-head"] {
        let [bf16, f16] = [Float::Bf16, Float::F16].map(|dtype| {
            let target = scratch.path().join(format!("{name}-{}", dtype.as_str()));
            let all = merge(name, &target, dtype).unwrap().difference();
            assert!(all.survives() > 0.99 && all.error_of_update() < 1e-2, "{name}: {all:?}");
            (all.error_of_update(), difference(name, &target))
        });
        println!("{name}: update and logits off by {bf16:?} in bf16, {f16:?} in f16");
        // What a rounding does to logits depends on the model; that 8 times the rounding does some 8 times as much does not.
        assert!((6.0..10.0).contains(&(bf16.0 / f16.0)), "{name}: {bf16:?} {f16:?}");
        assert!((3.0..24.0).contains(&(bf16.1 / f16.1)), "{name}: {bf16:?} {f16:?}");
    }
}

#[test]
fn what_one_folder_cannot_hold_is_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    for (name, wanted) in NOT_EXPRESSIBLE {
        let error = merge(name, &scratch.path().join("merged"), Float::F32).unwrap_err();
        assert!(matches!(error, Error::NotExpressible { .. }), "{error}");
        assert!(error.to_string().contains(wanted), "{error}");
    }
    assert_eq!(scratch.path().read_dir().unwrap().count(), 0, "nothing is left");
}
