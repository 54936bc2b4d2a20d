//! When a run ends, and which of its states is kept.

use tailor_domain::spec::LoraInit;
use tailor_domain::{EvaluateSpec, LoraSpec, Recipe, StepMetrics, StopSpec, TrainSpec, TuningMetrics};
use tailor_train::{Checkpoint, Error, Example, Observer, Outcome, Ranks, Session, Trained, resume, train};

use crate::{TinyBase, lora, recipe, spec};

#[derive(Default)]
struct Seen {
    steps: Vec<StepMetrics>,
    tuning: Vec<TuningMetrics>,
    notes: Vec<String>,
    checkpoints: Vec<Vec<u8>>,
    stop_after: Option<u64>,
}

impl Observer for Seen {
    fn on_step(&mut self, step: &StepMetrics) {
        self.steps.push(*step);
    }
    fn should_stop(&mut self) -> bool {
        self.stop_after == Some(self.steps.len() as u64)
    }
    fn wants_checkpoint(&mut self) -> bool {
        true
    }
    fn on_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.checkpoints.push(checkpoint.to_bytes().expect("written"));
    }
    fn on_tuning(&mut self, measured: &TuningMetrics) {
        self.tuning.push(*measured);
    }
    fn on_note(&mut self, note: &str) {
        self.notes.push(note.to_owned());
    }
}

/// Learns its rows by heart, so that what it measures on gets worse.
fn overfitting() -> Recipe {
    let train = TrainSpec { learning_rate: 3e-2, epochs: 200.0, max_steps: 150, ..spec() };
    let evaluate = EvaluateSpec { tuning_fraction: 0.25, every_steps: 3, ..EvaluateSpec::default() };
    Recipe { evaluate, ..recipe(&lora(), &train) }
}

fn run(tiny: &TinyBase, recipe: &Recipe, rows: &[Example]) -> (Trained, Seen) {
    let mut seen = Seen::default();
    let trained = train(&tiny.base, recipe, rows, "tiny", &mut seen).expect("trains");
    (trained, seen)
}

#[test]
fn training_ends_when_nothing_gets_better_and_the_best_state_is_kept() {
    for tiny in TinyBase::all() {
        let rows = tiny.random_rows(32, 5);
        let stop = StopSpec { patience: 3, ..StopSpec::default() };
        let (trained, seen) = run(&tiny, &Recipe { stop, ..overfitting() }, &rows);
        let summary = &trained.summary;
        let best = summary.best.expect("measured");
        assert_eq!((summary.outcome, summary.tuning_rows), (Outcome::NoImprovement, 8));
        assert!(summary.steps < 150, "it did not wait for the end");
        assert_eq!(seen.steps.len() as u64, summary.steps);
        let lowest = seen.tuning.iter().map(|measured| measured.loss).fold(f64::INFINITY, f64::min);
        assert_eq!((best.loss, summary.kept_step), (lowest, best.step));
        assert!(seen.tuning.iter().rev().take(3).all(|measured| !measured.best), "three in vain");
        assert_eq!(summary.steps, best.step + 9, "and no more than three");

        // The same run, stopped after just that step, publishes the same numbers.
        let mut until = Seen { stop_after: Some(best.step), ..Seen::default() };
        let stopped = train(&tiny.base, &overfitting(), &rows, "tiny", &mut until).expect("trains");
        let bytes = |trained: &Trained| trained.adapter.weights_to_bytes().expect("bytes");
        assert!(bytes(&trained) == bytes(&stopped), "the state after step {}", best.step);
    }
}

#[test]
fn going_on_from_a_checkpoint_remembers_the_best_and_the_patience() {
    let tiny = TinyBase::llama();
    let rows = tiny.random_rows(32, 5);
    let recipe = Recipe { stop: StopSpec { patience: 3, ..StopSpec::default() }, ..overfitting() };
    let (whole, seen) = run(&tiny, &recipe, &rows);
    let bytes = |trained: &Trained| trained.adapter.weights_to_bytes().expect("bytes");
    for at in [2, seen.checkpoints.len() - 4, seen.checkpoints.len() - 1] {
        let from = Checkpoint::from_bytes(&seen.checkpoints[at]).expect("read");
        let rest = resume(&tiny.base, &recipe, rows.as_slice(), "tiny", Some(&from), &mut ()).expect("goes on");
        assert!(bytes(&rest) == bytes(&whole), "from step {}", from.step());
        assert_eq!((rest.summary.best, rest.summary.steps), (whole.summary.best, whole.summary.steps));
    }
}

/// 48 rows to measure on are three turns.
#[test]
fn a_run_that_is_stopped_while_it_measures_measures_anew_when_it_goes_on() {
    let tiny = TinyBase::llama();
    let rows = tiny.random_rows(96, 5);
    let mut recipe = overfitting();
    (recipe.evaluate.tuning_fraction, recipe.evaluate.every_steps, recipe.train.max_steps) = (0.5, 1, 2);
    let (whole, seen) = run(&tiny, &recipe, &rows);
    assert_eq!(seen.tuning.len(), 2);

    let mut seen = Seen::default();
    let alone = Ranks::alone();
    let mut session =
        Session::begin(&tiny.base, &recipe, rows.as_slice(), "tiny", None, &alone, &mut seen).expect("begins");
    let mut turn = |seen: &mut Seen| session.turn(seen).expect("goes on");
    assert!(turn(&mut seen).is_none() && turn(&mut seen).is_none());
    assert_eq!((seen.steps.len(), seen.tuning.len()), (1, 0), "it measures");
    seen.stop_after = Some(1);
    let stopped = turn(&mut seen).expect("stops before the rest is measured");
    assert_eq!((stopped.summary.outcome, seen.tuning.len(), seen.checkpoints.len()), (Outcome::Stopped, 0, 1));

    let from = Checkpoint::from_bytes(&seen.checkpoints[0]).expect("read");
    let mut rest = Seen::default();
    let resumed = resume(&tiny.base, &recipe, rows.as_slice(), "tiny", Some(&from), &mut rest).expect("goes on");
    let steps = |seen: &Seen| seen.tuning.iter().map(|measured| measured.step).collect::<Vec<_>>();
    assert_eq!(steps(&rest), [1, 2]);
    assert_eq!((resumed.summary.best, resumed.summary.last_tuning), (whole.summary.best, whole.summary.last_tuning));
    let bytes = |trained: &Trained| trained.adapter.weights_to_bytes().expect("bytes");
    assert!(bytes(&resumed) == bytes(&whole));
}

#[test]
fn parameters_that_take_long_to_make_are_not_waited_for_by_a_run_that_is_to_stop() {
    let tiny = TinyBase::llama();
    let rows = tiny.rows(8);
    let begin = |init, dora| {
        let recipe = recipe(&LoraSpec { init, dora, ..lora() }, &spec());
        let mut stopped = Seen { stop_after: Some(0), ..Seen::default() };
        Session::begin(&tiny.base, &recipe, rows.as_slice(), "tiny", None, &Ranks::alone(), &mut stopped).map(drop)
    };
    begin(LoraInit::Default, false).expect("nothing to wait for");
    for (init, dora) in [(LoraInit::Pissa, false), (LoraInit::Default, true)] {
        let error = begin(init, dora).expect_err("a decomposition, or lengths, of each weight");
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
    }
}

/// Has it stopped at the third look.
#[derive(Default)]
struct Looks(u32);

impl Observer for Looks {
    fn on_step(&mut self, _: &StepMetrics) {}
    fn should_stop(&mut self) -> bool {
        self.0 += 1;
        self.0 == 3
    }
}

#[test]
fn a_run_looks_between_two_decompositions_whether_it_is_to_stop() {
    let tiny = TinyBase::llama();
    let rows = tiny.rows(8);
    let recipe = recipe(&LoraSpec { init: LoraInit::Pissa, ..lora() }, &spec());
    let mut looks = Looks::default();
    let begun =
        Session::begin(&tiny.base, &recipe, rows.as_slice(), "tiny", None, &Ranks::alone(), &mut looks).map(drop);
    let error = begun.expect_err("stopped after the second of more weights");
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
    assert_eq!(looks.0, 3);
}

#[test]
fn passes_that_show_how_many_rows_fit_are_not_waited_for_by_a_run_that_is_to_stop() {
    let tiny = TinyBase::llama();
    let rows = tiny.rows(8);
    let begin = |micro_batch_rows| {
        let recipe = recipe(&lora(), &TrainSpec { micro_batch_rows, ..spec() });
        let mut stopped = Seen { stop_after: Some(0), ..Seen::default() };
        Session::begin(&tiny.base, &recipe, rows.as_slice(), "tiny", None, &Ranks::alone(), &mut stopped).map(drop)
    };
    begin(8).expect("nothing to find out");
    let error = begin(0).expect_err("a pass of the longest row");
    assert!(matches!(error, Error::Stopped { .. }), "{error}");
}

#[test]
fn tokens_and_time_and_money_bound_a_run() {
    let tiny = TinyBase::llama();
    let rows = tiny.random_rows(32, 5);
    let plain = recipe(&lora(), &TrainSpec { epochs: 100.0, max_steps: 0, ..spec() });
    let train = TrainSpec { max_train_tokens: 500, ..plain.train.clone() };
    let (trained, seen) = run(&tiny, &Recipe { train, ..plain.clone() }, &rows);
    let tokens: u64 = seen.steps.iter().map(|step| step.tokens).sum();
    assert_eq!((trained.summary.outcome, trained.summary.tokens), (Outcome::Finished, tokens));
    let without_last = tokens - seen.steps.last().expect("steps").tokens;
    assert!(without_last < 500, "the step that passes the bound is the last: {without_last} then {tokens}");

    for stop in [
        StopSpec { max_seconds: 0.05, ..StopSpec::default() },
        StopSpec { max_cost: 1.0, price_per_hour: 72_000.0, ..StopSpec::default() },
    ] {
        let (trained, seen) = run(&tiny, &Recipe { stop, ..plain.clone() }, &rows);
        assert_eq!(trained.summary.outcome, Outcome::OutOfBudget);
        assert!(!seen.steps.is_empty() && seen.steps.len() < 400, "{} steps", seen.steps.len());
    }
}

#[test]
fn a_loss_that_runs_away_ends_the_run_with_the_best_state_and_names_the_step() {
    let tiny = TinyBase::llama();
    // Three rows among many of one kind: a batch that holds one is far above the mean once the others are known.
    let mut rows = vec![tiny.row(&[10, 11, 12], &[13, 14]); 53];
    rows.extend([40, 43, 46].map(|id| tiny.row(&[id, id + 1], &[50, 60, id, 80, 90])));
    let train = TrainSpec { max_steps: 200, ..overfitting().train };
    let stop = StopSpec { spike_factor: 1.5, keep_best: false, ..StopSpec::default() };
    let recipe = Recipe { stop, train, ..overfitting() };
    let (trained, seen) = run(&tiny, &recipe, &rows);
    let summary = &trained.summary;
    assert_eq!(summary.outcome, Outcome::Diverged, "{:?}", seen.notes);
    let note = seen.notes.last().expect("a note");
    let step = format!("step {}: the loss jumped to ", summary.steps + 1);
    assert!(note.starts_with(&step) && note.contains("gradient norm") && note.contains("over rows "), "{note}");
    let kept = format!("the state after step {} is kept", summary.kept_step);
    assert!(note.ends_with(&kept), "{note}");
    assert_eq!(summary.kept_step, summary.best.expect("measured").step);

    let without = Recipe { evaluate: EvaluateSpec { tuning_fraction: 0.0, ..EvaluateSpec::default() }, ..recipe };
    let error = train_error(&tiny, &without, &rows);
    assert!(error.contains("the loss jumped to"), "nothing was measured, so nothing is known to be good: {error}");
}

fn train_error(tiny: &TinyBase, recipe: &Recipe, rows: &[Example]) -> String {
    train(&tiny.base, recipe, rows, "tiny", &mut ()).expect_err("diverges").to_string()
}
