//! Prompt tuning: virtual tokens learn, however the work is cut, and what is published is what was trained.

use tailor_domain::spec::{Checkpointing, PromptInit, Schedule};
use tailor_domain::{PromptTuningSpec, Recipe, StepMetrics, TrainSpec};
use tailor_peft::{Adapter, Limits};

use crate::{TinyBase, lora, recipe, spec};

const STEPS: u64 = 25;

fn prompt_tuning(init: PromptInit, train: TrainSpec) -> Recipe {
    let prompt_tuning = PromptTuningSpec { virtual_tokens: 5, init };
    Recipe { prompt_tuning, lora: Default::default(), ..recipe(&lora(), &train) }
}

/// A full batch each step at one learning rate, so that the loss of step N + 1 is that of the state after N steps.
fn steady(steps: u64) -> TrainSpec {
    TrainSpec {
        batch_rows: 12,
        micro_batch_rows: 12,
        max_steps: steps,
        epochs: 1000.0,
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        learning_rate: 0.1,
        ..spec()
    }
}

#[test]
fn virtual_tokens_learn_and_what_is_published_is_what_was_trained() {
    for tiny in TinyBase::all() {
        let rows = tiny.random_rows(12, 3);
        for init in [PromptInit::Vocabulary, PromptInit::Uniform] {
            let (trained, _) = tiny.follow(&prompt_tuning(init, steady(STEPS)), &rows);
            let (_, longer) = tiny.follow(&prompt_tuning(init, steady(STEPS + 1)), &rows);
            let adapter = &trained.adapter;
            let bytes = adapter.weights_to_bytes().expect("written");
            let read = Adapter::from_bytes(&adapter.config_to_bytes(), &bytes, &Limits::default()).expect("read");
            let (first, own) = (longer[0].loss, longer[STEPS as usize].loss);
            let published = tiny.loss(&read, &rows);
            println!("{init}: loss {first:.4} to {own:.4}, published {published:.4}");
            assert!((published - own).abs() < 2e-4 * own, "{init}: published {published}, trained {own}");
            assert!(own < 0.97 * first, "{init}: {first} to {own} is no learning");
            let (tokens, values) = read.prompt().expect("a prompt");
            assert_eq!((tokens, values.len()), (5, 5 * tiny.base.embedding_size()));
            assert!(read.pairs().is_empty(), "and nothing else");
        }
    }
}

fn figures(steps: &[StepMetrics]) -> Vec<(f64, f64)> {
    steps.iter().map(|step| (step.loss, step.grad_norm)).collect()
}

#[test]
fn how_the_work_is_cut_changes_nothing() {
    for tiny in [TinyBase::random_llama(5), TinyBase::random_t5(5)] {
        let rows = tiny.random_rows(8, 2);
        let run = |micro_batch_rows, checkpointing| {
            let train = TrainSpec { micro_batch_rows, checkpointing, max_steps: 3, learning_rate: 0.1, ..spec() };
            figures(&tiny.follow(&prompt_tuning(PromptInit::Vocabulary, train), &rows).1)
        };
        let whole = run(8, Checkpointing::None);
        for (micro, checkpointing) in [
            (1, Checkpointing::None),
            (3, Checkpointing::Layers),
            (8, Checkpointing::Layers),
            (8, Checkpointing::Selective),
        ] {
            for (step, ((loss, norm), (other, other_norm))) in whole.iter().zip(run(micro, checkpointing)).enumerate() {
                assert!((loss - other).abs() < 2e-5 * loss, "{micro} rows, step {step}: loss {loss} and {other}");
                assert!((norm - other_norm).abs() < 5e-4 * norm, "{micro} rows, step {step}: {norm} and {other_norm}");
            }
        }
    }
}
