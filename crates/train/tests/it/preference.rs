//! Learning from preference pairs: however the batch is cut, and with the base as its own reference.

use tailor_domain::spec::{Checkpointing, Objective};
use tailor_domain::{EvaluateSpec, LoraSpec, PreferenceSpec, Recipe, StepMetrics, TrainSpec};
use tailor_train::{Preference, Trained, train};

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
        for other in [run(1, Checkpointing::None), run(3, Checkpointing::Layers)] {
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
