//! How a batch is cut, padded or masked changes nothing; the seed decides everything.

use tailor_domain::{LoraSpec, TrainSpec};
use tailor_train::Example;

use crate::{TinyBase, lora, spec};

fn values(adapter: &tailor_peft::Adapter) -> Vec<f32> {
    adapter.pairs().values().flat_map(|pair| pair.a.iter().chain(&pair.b).copied()).collect()
}

fn largest_difference(one: &[f32], other: &[f32]) -> f32 {
    assert_eq!(one.len(), other.len());
    one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn accumulating_row_by_row_equals_one_pass_over_the_batch() {
    for tiny in TinyBase::all() {
        let rows = tiny.rows(8);
        let run = |micro_batch_rows| {
            // One step without momentum to speak of: its update shows the gradient's direction, its norm the size.
            let spec = TrainSpec { micro_batch_rows, max_steps: 1, ..spec() };
            let (trained, steps) = tiny.train(&lora(), &spec, &rows);
            (steps[0].loss, steps[0].grad_norm, values(&trained.adapter))
        };
        let (loss, grad_norm, adapter) = run(8);
        for micro_batch_rows in [1, 3] {
            let (cut_loss, cut_norm, cut_adapter) = run(micro_batch_rows);
            println!(
                "{micro_batch_rows} rows a pass: loss {cut_loss} for {loss}, gradient norm {cut_norm} for {grad_norm}"
            );
            assert!((cut_loss - loss).abs() < 1e-5 * loss, "{cut_loss} for {loss}");
            assert!((cut_norm - grad_norm).abs() < 1e-4 * grad_norm, "{cut_norm} for {grad_norm}");
            // Adam's first step is the gradient's sign, so a gradient near zero may move by rounding alone.
            assert!(largest_difference(&cut_adapter, &adapter) < 2e-4);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_seed_does_not() {
    for tiny in TinyBase::all() {
        let rows = tiny.rows(20);
        let run = |seed| {
            let lora = LoraSpec { dropout: 0.1, ..lora() };
            let spec = TrainSpec { seed, micro_batch_rows: 4, max_steps: 5, ..spec() };
            let (trained, steps) = tiny.train(&lora, &spec, &rows);
            let losses: Vec<u64> = steps.iter().map(|step| step.loss.to_bits()).collect();
            (trained.adapter.weights_to_bytes().expect("writes"), losses)
        };
        assert!(run(5) == run(5));
        assert!(run(5) != run(6));
    }
}

#[test]
fn a_masked_token_adds_nothing_to_the_loss() {
    let tiny = TinyBase::llama();
    let Example::Decoder { ids, in_loss } = tiny.row(&[10, 11, 12], &[13, 14, 15]) else { panic!("a decoder's row") };
    let loss = |from: usize, to: usize| {
        let in_loss = (0..ids.len()).map(|at| in_loss[at] && (from..to).contains(&at)).collect();
        let rows = [Example::Decoder { ids: ids.clone(), in_loss }];
        let (_, steps) = tiny.train(&lora(), &TrainSpec { max_steps: 1, ..spec() }, &rows);
        steps[0].loss
    };
    // 4 tokens count; the mean over all is that of the means over both halves.
    assert!((loss(0, 7) - (loss(0, 5) + loss(5, 7)) / 2.0).abs() < 1e-5);
    assert!((loss(0, 5) - loss(5, 7)).abs() > 1e-3, "the halves differ, so the test can fail");
}

#[test]
fn padding_changes_no_gradient() {
    for tiny in TinyBase::all() {
        let (short, long) = (tiny.row(&[10, 11], &[12]), tiny.row(&[20, 21, 22, 23, 24, 25], &[26, 27, 28]));
        let loss = |rows: &[Example]| {
            let (_, steps) = tiny.train(&lora(), &TrainSpec { max_steps: 1, ..spec() }, rows);
            steps[0].loss
        };
        // 2 tokens of the short row count and 4 of the long one.
        let apart = (2.0 * loss(std::slice::from_ref(&short)) + 4.0 * loss(std::slice::from_ref(&long))) / 6.0;
        let together = loss(&[short, long]);
        assert!((together - apart).abs() < 1e-5 * apart, "{together} for {apart}");
    }
}
