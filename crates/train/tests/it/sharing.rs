//! Runs that take turns on one thread and share a base make the bytes of runs that were alone.

use tailor_domain::spec::Objective;
use tailor_domain::{LoraSpec, Recipe, StepMetrics, TrainSpec};
use tailor_models::Base;
use tailor_testkit::LlamaShape;
use tailor_torch::Surroundings;
use tailor_train::{
    Checkpoint, Error, Example, Examples, Observer, Outcome, Preference, Ranks, Session, Trained, resume, train,
};

use crate::failures::poison;
use crate::{TinyBase, lora, recipe, spec};

/// Keeps checkpoints, stops on command.
#[derive(Default)]
struct Watch {
    steps: u64,
    stop_after: Option<u64>,
    checkpoints: Vec<Vec<u8>>,
}

impl Observer for Watch {
    fn on_step(&mut self, _: &StepMetrics) {
        self.steps += 1;
    }
    fn should_stop(&mut self) -> bool {
        self.stop_after.is_some_and(|after| self.steps >= after)
    }
    fn wants_checkpoint(&mut self) -> bool {
        true
    }
    fn on_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.checkpoints.push(checkpoint.to_bytes().expect("written"));
    }
}

/// A run as one of several.
struct Sharing<'a> {
    surroundings: Surroundings,
    watch: Watch,
    session: Option<Session<'a, &'a Base>>,
    ended: Option<Result<Trained, Error>>,
}

impl<'a> Sharing<'a> {
    fn new(base: &'a Base, recipe: &Recipe, rows: impl Into<Examples<'a>>, from: Option<&Checkpoint>) -> Self {
        let (mut surroundings, mut watch) = (Surroundings::default(), Watch::default());
        let begun =
            surroundings.within(|| Session::begin(base, recipe, rows, "tiny", from, &Ranks::alone(), &mut watch));
        let session = begun.expect("a generator").expect("begins");
        Self { surroundings, watch, session: Some(session), ended: None }
    }

    fn stopping_after(mut self, steps: u64) -> Self {
        self.watch.stop_after = Some(steps);
        self
    }

    fn turn(&mut self) {
        let Some(session) = &mut self.session else { return };
        let (surroundings, watch) = (&mut self.surroundings, &mut self.watch);
        if let Some(ended) = surroundings.within(|| session.turn(watch)).expect("a generator").transpose() {
            self.ended = Some(ended);
            self.session = None;
        }
    }

    fn weights(&self) -> Vec<u8> {
        weights(self.ended.as_ref().expect("ended").as_ref().expect("trained"))
    }
}

fn weights(trained: &Trained) -> Vec<u8> {
    trained.adapter.weights_to_bytes().expect("bytes")
}

fn take_turns(all: &mut [Sharing<'_>]) {
    while all.iter().any(|one| one.session.is_some()) {
        all.iter_mut().for_each(Sharing::turn);
    }
}

/// Settings that draw random numbers, each of its own rank, seed and length.
fn settings(rank: u32, steps: u64) -> Recipe {
    let lora = LoraSpec { rank, dropout: 0.2, ..lora() };
    let train = TrainSpec {
        seed: u64::from(rank),
        max_steps: steps,
        epochs: 10.0,
        micro_batch_rows: 3,
        neftune_alpha: if rank == 8 { 5.0 } else { 0.0 },
        ..spec()
    };
    recipe(&lora, &train)
}

fn alone(base: &Base, recipe: &Recipe, rows: &[Example]) -> Vec<u8> {
    weights(&train(base, recipe, rows, "tiny", &mut ()).expect("trains"))
}

#[test]
fn adapters_that_share_a_base_are_those_of_separate_runs() {
    let (llama, t5) = (TinyBase::llama(), TinyBase::t5());
    let (rows, others, t5_rows) = (llama.rows(24), llama.random_rows(30, 4), t5.rows(24));
    let pairs: Vec<Preference> = (0..16)
        .map(|n| Preference { chosen: llama.row(&[10 + n, 11], &[60, 61]), rejected: llama.row(&[10 + n, 11], &[70]) })
        .collect();
    let dpo = Recipe { train: TrainSpec { objective: Objective::Dpo, ..settings(5, 4).train }, ..settings(5, 4) };
    let mut all = [
        Sharing::new(&llama.base, &settings(2, 6), &rows, None),
        Sharing::new(&llama.base, &settings(8, 9), &others, None),
        Sharing::new(&llama.base, &dpo, pairs.as_slice(), None),
        Sharing::new(&t5.base, &settings(3, 7), &t5_rows, None),
    ];
    take_turns(&mut all);
    assert!(all[0].weights() == alone(&llama.base, &settings(2, 6), &rows), "rank 2");
    assert!(all[1].weights() == alone(&llama.base, &settings(8, 9), &others), "rank 8, with noise");
    let preferred = train(&llama.base, &dpo, pairs.as_slice(), "tiny", &mut ()).expect("trains");
    assert!(all[2].weights() == weights(&preferred), "preferences");
    assert!(all[3].weights() == alone(&t5.base, &settings(3, 7), &t5_rows), "another base");
    // The turns changed something at all: without its own random numbers a run makes other bytes.
    assert!(
        all[0].weights()
            != alone(
                &llama.base,
                &Recipe { train: TrainSpec { seed: 77, ..settings(2, 6).train }, ..settings(2, 6) },
                &rows
            )
    );
}

#[test]
fn whoever_fails_stops_or_goes_on_from_a_checkpoint_leaves_the_others_as_they_are() {
    let tiny = TinyBase::quantized(|folder| {
        LlamaShape::default().write(folder, 1).expect("writes");
        poison(folder, 77);
    });
    let (rows, others) = (tiny.rows(24), tiny.rows(30));
    // A loss that is no number, in whichever step the poisoned row comes.
    let bad_rows = [tiny.rows(23), vec![tiny.row(&[77, 11], &[12])]].concat();
    let astray = settings(7, 40);
    let mut whole = Watch::default();
    let resumed = settings(6, 8);
    let uninterrupted = train(&tiny.base, &resumed, &others, "tiny", &mut whole).expect("trains");
    let checkpoint = Checkpoint::from_bytes(&whole.checkpoints[2]).expect("read");
    let mut all = [
        Sharing::new(&tiny.base, &settings(2, 12), &rows, None),
        Sharing::new(&tiny.base, &astray, &bad_rows, None),
        Sharing::new(&tiny.base, &settings(3, 12), &rows, None).stopping_after(2),
        Sharing::new(&tiny.base, &resumed, &others, Some(&checkpoint)),
        Sharing::new(&tiny.base, &settings(4, 10), &others, None),
    ];
    take_turns(&mut all);
    assert!(all[0].weights() == alone(&tiny.base, &settings(2, 12), &rows));
    assert!(all[4].weights() == alone(&tiny.base, &settings(4, 10), &others));
    let failed = all[1].ended.as_ref().expect("ended").as_ref().expect_err("goes astray");
    assert!(failed.is_divergence(), "{failed}");
    let stopped = all[2].ended.as_ref().expect("ended").as_ref().expect("stopped");
    assert_eq!((stopped.summary.outcome, stopped.summary.steps), (Outcome::Stopped, 2));
    assert!(all[3].weights() == weights(&uninterrupted), "from step 3 on");
    assert_eq!(all[3].watch.steps, 5);
    // And the one that was stopped can be gone on with elsewhere.
    let from = Checkpoint::from_bytes(all[2].watch.checkpoints.last().expect("one")).expect("read");
    let rest = resume(&tiny.base, &settings(3, 12), &rows, "tiny", Some(&from), &mut ()).expect("goes on");
    assert!(weights(&rest) == alone(&tiny.base, &settings(3, 12), &rows));
}
