//! A run that goes on from a checkpoint makes the bytes of one that was never stopped.

use tailor_domain::{LoraSpec, StepMetrics, TrainSpec};
use tailor_train::{Checkpoint, Example, Observer, Trained, resume, train};

use crate::{TinyBase, lora, recipe, spec};

/// Keeps a checkpoint of every step, as bytes, and each step's figures.
#[derive(Default)]
struct Keep {
    checkpoints: Vec<Vec<u8>>,
    steps: Vec<(u64, u64, u64)>,
    stop_after: Option<u64>,
}

impl Observer for Keep {
    fn on_step(&mut self, step: &StepMetrics) {
        self.steps.push((step.step, step.loss.to_bits(), step.grad_norm.to_bits()));
    }
    fn should_stop(&mut self) -> bool {
        self.stop_after.is_some_and(|after| self.steps.len() as u64 >= after)
    }
    fn wants_checkpoint(&mut self) -> bool {
        true
    }
    fn on_checkpoint(&mut self, checkpoint: Checkpoint) {
        assert_eq!(checkpoint.step(), self.steps.last().expect("a step").0);
        self.checkpoints.push(checkpoint.to_bytes().expect("written"));
    }
}

fn settings() -> (LoraSpec, TrainSpec) {
    // 24 rows in batches of 8 are three steps an epoch: the run ends in the middle of its third.
    let lora = LoraSpec { dropout: 0.2, ..lora() };
    (lora, TrainSpec { max_steps: 8, epochs: 10.0, micro_batch_rows: 3, weight_decay: 0.1, ..spec() })
}

fn go_on(tiny: &TinyBase, rows: &[Example], from: &[u8], observer: &mut Keep) -> Trained {
    let (lora, spec) = settings();
    let from = Checkpoint::from_bytes(from).expect("read");
    resume(&tiny.base, &recipe(&lora, &spec), rows, "tiny", Some(&from), observer).expect("goes on")
}

#[test]
fn from_any_step_on_the_bytes_are_those_of_a_run_never_stopped() {
    for tiny in TinyBase::all() {
        let rows = tiny.rows(24);
        let (lora, spec) = settings();
        let mut whole = Keep::default();
        let never_stopped = train(&tiny.base, &recipe(&lora, &spec), &rows, "tiny", &mut whole).expect("trains");
        let bytes = never_stopped.adapter.weights_to_bytes().expect("bytes");
        assert_eq!(whole.checkpoints.len(), 8, "after each step, the last unasked");
        for (done, checkpoint) in whole.checkpoints.iter().enumerate() {
            // Whoever went before used the generator.
            tch::manual_seed(999 + done as i64);
            let mut rest = Keep::default();
            let trained = go_on(&tiny, &rows, checkpoint, &mut rest);
            assert_eq!(rest.steps, whole.steps[done + 1..], "the steps after step {}", done + 1);
            assert!(trained.adapter.weights_to_bytes().expect("bytes") == bytes, "from step {}", done + 1);
            let (ours, theirs) = (&trained.summary, &never_stopped.summary);
            assert_eq!((ours.steps, ours.tokens, ours.outcome), (theirs.steps, theirs.tokens, theirs.outcome));
            assert_eq!(ours.final_loss.to_bits(), theirs.final_loss.to_bits());
        }
    }
}

#[test]
fn a_run_stopped_again_and_again_ends_with_the_same_bytes() {
    let tiny = TinyBase::llama();
    let rows = tiny.rows(24);
    let (lora, spec) = settings();
    let never_stopped = train(&tiny.base, &recipe(&lora, &spec), &rows, "tiny", &mut ()).expect("trains");
    let mut checkpoint: Option<Vec<u8>> = None;
    let mut runs = 0;
    let stopped_often = loop {
        runs += 1;
        // Two steps and away; the last checkpoint is of the moment at which it was stopped, so no step is made twice.
        let mut observer = Keep { stop_after: Some(2), ..Keep::default() };
        let from = checkpoint.as_ref().map(|bytes| Checkpoint::from_bytes(bytes).expect("read"));
        let trained =
            resume(&tiny.base, &recipe(&lora, &spec), &rows, "tiny", from.as_ref(), &mut observer).expect("trains");
        if trained.summary.steps == 8 {
            break trained;
        }
        checkpoint = observer.checkpoints.pop().or(checkpoint);
    };
    assert_eq!(runs, 4);
    let bytes = |trained: &Trained| trained.adapter.weights_to_bytes().expect("bytes");
    assert!(bytes(&stopped_often) == bytes(&never_stopped));
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let tiny = TinyBase::llama();
    let rows = tiny.rows(24);
    let (lora, spec) = settings();
    let mut keep = Keep::default();
    train(&tiny.base, &recipe(&lora, &spec), &rows, "tiny", &mut keep).expect("trains");
    let checkpoint = Checkpoint::from_bytes(&keep.checkpoints[2]).expect("read");
    let other_rows = tiny.rows(23);
    let other_spec = TrainSpec { seed: 6, ..spec.clone() };
    let other_lora = LoraSpec { rank: 5, ..lora.clone() };
    for (lora, spec, rows) in [(&other_lora, &spec, &rows), (&lora, &other_spec, &rows), (&lora, &spec, &other_rows)] {
        let refused = resume(&tiny.base, &recipe(lora, spec), rows, "tiny", Some(&checkpoint), &mut ());
        let error = refused.expect_err("refused").to_string();
        assert!(error.contains("step 3") && error.contains("another run"), "{error}");
    }
}
