//! Learning from preference pairs: however the batch is cut, and with the base as its own reference.

use tailor_domain::spec::{Checkpointing, Objective};
use tailor_domain::{EvaluateSpec, LoraSpec, PreferenceSpec, Recipe, StepMetrics, TrainSpec};
use tailor_train::{Preference, Trained, train};

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Deserialize;
use tailor_models::{Base, LoadOptions};
use tailor_peft::{Adapter, Limits};
use tailor_train::{Example, gradient};
use tch::Tensor;

use crate::{Steps, TinyBase, lora, recipe, spec};

fn pairs(tiny: &TinyBase, count: u32) -> Vec<Preference> {
    let prompt = |n: u32| (0..2 + n % 5).map(|at| 10 + (n * 7 + at * 13) % 40).collect::<Vec<u32>>();
    let pair = |n: u32| Preference {
        chosen: tiny.row(&prompt(n), &[60 + n % 7, 61]),
        rejected: tiny.row(&prompt(n), &[80 - n % 5, 81, 82]),
    };
    (0..count).map(pair).collect()
}

fn run(tiny: &TinyBase, recipe: &Recipe, pairs: &[Preference]) -> (Trained, Vec<StepMetrics>) {
    let mut steps = Steps::default();
    let trained = train(&tiny.base, recipe, pairs, "tiny", &mut steps).expect("trains");
    (trained, steps.0)
}

fn dpo(train: &TrainSpec) -> Recipe {
    recipe(&lora(), &TrainSpec { objective: Objective::Dpo, ..train.clone() })
}

#[test]
fn an_adapter_learns_to_prefer_the_chosen_answers() {
    for tiny in TinyBase::all() {
        let pairs = pairs(&tiny, 24);
        let evaluate = EvaluateSpec { tuning_fraction: 0.25, ..EvaluateSpec::default() };
        let train = TrainSpec { epochs: 100.0, max_steps: 30, learning_rate: 5e-3, ..spec() };
        let (trained, steps) = run(&tiny, &Recipe { evaluate, ..dpo(&train) }, &pairs);
        assert!((steps[0].loss - 2f64.ln()).abs() < 1e-5, "adapter and reference are the same at first");
        assert!(steps[29].loss < 0.3 * steps[0].loss, "{} to {}", steps[0].loss, steps[29].loss);
        let best = trained.summary.best.expect("measured");
        assert_eq!((best.tokens, best.token_accuracy), (6, 1.0), "of the pairs put aside each is the right way round");
    }
}

#[test]
fn passes_and_checkpointed_layers_change_nothing() {
    for tiny in TinyBase::all() {
        let pairs = pairs(&tiny, 8);
        let preference = PreferenceSpec { beta: 0.5, label_smoothing: 0.1, sft_weight: 0.7 };
        let run = |micro_batch_rows, checkpointing| {
            let train = TrainSpec { micro_batch_rows, checkpointing, ..spec() };
            let lora = LoraSpec { bias: true, ..lora() };
            let (_, steps) = run(&tiny, &Recipe { lora, preference: preference.clone(), ..dpo(&train) }, &pairs);
            steps.iter().map(|step| (step.loss, step.grad_norm)).collect::<Vec<_>>()
        };
        let whole = run(8, Checkpointing::None);
        for other in [run(1, Checkpointing::None), run(3, Checkpointing::Layers), run(8, Checkpointing::Selective)] {
            for ((loss, norm), (other_loss, other_norm)) in whole.iter().zip(&other) {
                assert!((loss - other_loss).abs() < 2e-5 * loss, "{loss} and {other_loss}");
                assert!((norm - other_norm).abs() < 5e-4 * norm, "{norm} and {other_norm}");
            }
        }
    }
}

#[test]
fn the_objective_and_the_rows_must_agree() {
    let tiny = TinyBase::llama();
    let error = train(&tiny.base, &dpo(&spec()), &tiny.rows(4), "tiny", &mut ()).expect_err("single rows").to_string();
    assert!(error.contains("train.objective: dpo needs preference pairs"), "{error}");
    let pairs = pairs(&tiny, 4);
    let sft = recipe(&lora(), &spec());
    let error = train(&tiny.base, &sft, pairs.as_slice(), "tiny", &mut ()).expect_err("pairs").to_string();
    assert!(error.contains("train.objective: sft learns from single rows"), "{error}");
}

/// `tests/golden/preference/*/pairs.json`, made by `tests/golden/make_preference.py`.
#[derive(Deserialize)]
struct Golden {
    base: String,
    preference: PreferenceSpec,
    pairs: Vec<Answers>,
    loss: f64,
}

#[derive(Deserialize)]
struct Answers {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

#[test]
fn loss_and_every_gradient_are_trls_and_the_papers() {
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    for (name, gradients) in [("plain", 28), ("chosen-too", 28), ("smoothed", 28), ("t5", 32)] {
        let folder = golden.join("preference").join(name);
        let text = std::fs::read(folder.join("pairs.json")).expect("pairs.json");
        let expected: Golden = serde_json::from_slice(&text).expect("pairs");
        let base = Base::load(&golden.join("models").join(&expected.base), &LoadOptions::default()).expect("a base");
        let adapter = Adapter::read_dir(&folder, &Limits::default()).expect("an adapter");
        let answer = |prompt: &[u32], answer: &[u32]| match expected.base.starts_with("t5") {
            true => Example::EncoderDecoder { encoder: prompt.to_vec(), labels: answer.to_vec() },
            false => {
                let in_loss = (0..prompt.len() + answer.len()).map(|at| at >= prompt.len()).collect();
                Example::Decoder { ids: [prompt, answer].concat(), in_loss }
            }
        };
        let pairs: Vec<Preference> = expected
            .pairs
            .iter()
            .map(|pair| Preference {
                chosen: answer(&pair.prompt, &pair.chosen),
                rejected: answer(&pair.prompt, &pair.rejected),
            })
            .collect();
        let recipe = Recipe { preference: expected.preference, ..dpo(&spec()) };
        let found = gradient(&base, &recipe, &adapter, pairs.as_slice()).expect("a gradient");
        let off = (found.loss - expected.loss).abs() / expected.loss;
        assert!(off < 1e-5, "{name}: loss {} for {}", found.loss, expected.loss);
        let theirs = Tensor::read_safetensors(folder.join("gradient.safetensors")).expect("gradients");
        let theirs: HashMap<String, Tensor> = theirs.into_iter().collect();
        assert_eq!((theirs.len(), found.by_parameter.len()), (gradients, gradients), "{name}");
        let mut worst = 0.0f64;
        for (parameter, wanted) in theirs {
            let own = Tensor::from_slice(&found.by_parameter[&parameter]).view_as(&wanted);
            let difference = (own - &wanted).abs().max().double_value(&[]) / wanted.abs().max().double_value(&[]);
            assert!(difference < 1e-3, "{name}: {parameter} is off by {difference:.1e} of its largest number");
            worst = worst.max(difference);
        }
        println!("{name}: loss off by {off:.1e}, worst of {gradients} gradients {worst:.1e}");
    }
}
