//! How the work is cut changes nothing: passes, packing, checkpointed layers; over shapes and rows drawn from seeds.

use tailor_domain::spec::{Checkpointing, Grouping};
use tailor_domain::{LoraSpec, StepMetrics, TrainSpec};
use tailor_train::Trained;

use crate::{TinyBase, lora, spec};

const SEEDS: [u64; 4] = [1, 2, 3, 4];

/// Loss and gradient norm of each step, and every number that was learnt.
fn outcome((trained, steps): (Trained, Vec<StepMetrics>)) -> (Vec<(f64, f64)>, Vec<f32>) {
    let figures = steps.iter().map(|step| (step.loss, step.grad_norm)).collect();
    let pairs = trained.adapter.pairs().values();
    (figures, pairs.flat_map(|pair| pair.a.iter().chain(&pair.b).copied()).collect())
}

fn same(what: &str, one: &(Vec<(f64, f64)>, Vec<f32>), other: &(Vec<(f64, f64)>, Vec<f32>)) {
    assert_eq!(one.0.len(), other.0.len());
    for (step, ((loss, norm), (other_loss, other_norm))) in one.0.iter().zip(&other.0).enumerate() {
        assert!((loss - other_loss).abs() < 2e-5 * loss, "{what}, step {step}: loss {loss} and {other_loss}");
        assert!((norm - other_norm).abs() < 5e-4 * norm, "{what}, step {step}: gradient {norm} and {other_norm}");
    }
    // Adam's first steps are the gradient's sign, so a gradient near zero may move by rounding alone: of many numbers few.
    let far = one.1.iter().zip(&other.1).filter(|(a, b)| (*a - *b).abs() > 2e-4).count();
    assert!(far * 200 <= one.1.len(), "{what}: {far} of {} numbers differ", one.1.len());
}

#[test]
fn a_batch_in_one_pass_equals_the_batch_row_by_row() {
    for seed in SEEDS {
        for tiny in [TinyBase::random_llama(seed), TinyBase::random_t5(seed)] {
            let rows = tiny.random_rows(9, seed);
            let run = |micro_batch_rows| {
                outcome(tiny.train(&lora(), &TrainSpec { micro_batch_rows, seed, max_steps: 2, ..spec() }, &rows))
            };
            let whole = run(8);
            for micro_batch_rows in [1, 3] {
                same(&format!("{micro_batch_rows} rows a pass"), &run(micro_batch_rows), &whole);
            }
        }
    }
}

#[test]
fn packed_rows_learn_what_rows_by_themselves_do() {
    for seed in SEEDS {
        let tiny = TinyBase::random_llama(seed);
        let rows = tiny.random_rows(10, seed);
        // All rows are one step whichever way they are laid, so the steps can be compared.
        let spec = TrainSpec { batch_rows: 10, micro_batch_rows: 2, seed, max_steps: 2, epochs: 2.0, ..spec() };
        for lora in [lora(), LoraSpec { bias: true, ..lora() }] {
            let apart = outcome(tiny.train(&lora, &spec, &rows));
            for max_tokens in [32, 50, 400] {
                let packed = TrainSpec { grouping: Grouping::Packed, max_tokens, ..spec.clone() };
                same(&format!("packed to {max_tokens}"), &outcome(tiny.train(&lora, &packed, &rows)), &apart);
            }
        }
    }
}

#[test]
fn packed_rows_learn_the_same_whatever_is_kept_of_a_layer() {
    let tiny = TinyBase::random_llama(3);
    let rows = tiny.random_rows(10, 3);
    let run = |checkpointing| {
        let spec = TrainSpec { grouping: Grouping::Packed, max_tokens: 50, checkpointing, max_steps: 2, ..spec() };
        outcome(tiny.train(&lora(), &spec, &rows))
    };
    let kept = run(Checkpointing::None);
    for policy in [Checkpointing::Selective, Checkpointing::Layers] {
        same(policy.as_str(), &run(policy), &kept);
    }
}

#[test]
fn layers_that_run_again_give_the_gradient_of_layers_that_are_kept() {
    for seed in SEEDS {
        for tiny in [TinyBase::random_llama(seed), TinyBase::random_t5(seed)] {
            let rows = tiny.random_rows(8, seed);
            for lora in [
                lora(),
                LoraSpec { dropout: 0.3, ..lora() },
                LoraSpec { dora: true, ..lora() },
                LoraSpec { dropout: 0.3, bias: true, ..lora() },
            ] {
                let run = |checkpointing| {
                    let spec = TrainSpec { checkpointing, seed, micro_batch_rows: 4, neftune_alpha: 3.0, ..spec() };
                    outcome(tiny.train(&lora, &spec, &rows))
                };
                let kept = run(Checkpointing::None);
                let again = run(Checkpointing::Layers);
                same("layers", &again, &kept);
                assert_eq!(kept.0[0].0.to_bits(), again.0[0].0.to_bits(), "the same dropout and noise, to the bit");
                let selective = run(Checkpointing::Selective);
                same("selective", &selective, &kept);
                // Attention in f32 is asked for by another name, with keys and values once for each query head.
                let (loss, expected) = (selective.0[0].0, kept.0[0].0);
                assert!((loss - expected).abs() <= 1e-6 * expected, "{loss} for {expected}");
            }
        }
    }
}

#[test]
fn dropout_is_dropped_with_every_fast_path_and_changes_the_gradient() {
    let tiny = TinyBase::llama();
    let rows = tiny.random_rows(8, 1);
    for (grouping, checkpointing) in [
        (Grouping::Length, Checkpointing::None),
        (Grouping::Length, Checkpointing::Selective),
        (Grouping::Length, Checkpointing::Layers),
        (Grouping::Packed, Checkpointing::None),
        (Grouping::Packed, Checkpointing::Selective),
        (Grouping::Packed, Checkpointing::Layers),
    ] {
        for bias in [false, true] {
            let run = |dropout| {
                let spec = TrainSpec { grouping, checkpointing, max_steps: 2, ..spec() };
                outcome(tiny.train(&LoraSpec { dropout, bias, ..lora() }, &spec, &rows))
            };
            let (without, with) = (run(0.0), run(0.5));
            assert_eq!(without.0[0].0.to_bits(), with.0[0].0.to_bits(), "B is zero, so dropout shows in no first loss");
            assert_ne!(without.0[0].1.to_bits(), with.0[0].1.to_bits(), "but in the gradient of B");
            assert!(with.0.iter().all(|(loss, norm)| loss.is_finite() && norm.is_finite()));
        }
    }
}
