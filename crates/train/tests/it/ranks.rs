//! Several ranks, each a thread: they learn what one rank learns that passes over the same rows.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::thread;
use std::time::Duration;

use tailor_domain::spec::{Checkpointing, Objective};
use tailor_domain::{EvaluateSpec, LoraSpec, Recipe, StepMetrics, StopSpec, TrainSpec, TuningMetrics};
use tailor_train::{Checkpoint, Error, Examples, Meeting, Observer, Outcome, Preference, Ranks, Trained, resume_among};

use crate::{TinyBase, lora, recipe, spec};

const PATIENCE: Duration = Duration::from_secs(60);

/// What an observer saw.
#[derive(Default)]
struct Seen {
    steps: Vec<(u64, f64, f64)>,
    tuning: Vec<TuningMetrics>,
    checkpoints: Vec<Vec<u8>>,
    stop_after: Option<usize>,
}

impl Observer for Seen {
    fn on_step(&mut self, step: &StepMetrics) {
        self.steps.push((step.step, step.loss, step.grad_norm));
    }
    fn should_stop(&mut self) -> bool {
        self.stop_after.is_some_and(|after| self.steps.len() >= after)
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
}

type Ran = (Result<Trained, Error>, Seen);

/// What the ranks are given; `rank` sees its own.
struct Work<'a> {
    base: fn() -> TinyBase,
    recipe: &'a Recipe,
    from: Option<&'a [u8]>,
    stop_after: fn(u32) -> Option<usize>,
}

impl<'a> Work<'a> {
    fn new(base: fn() -> TinyBase, recipe: &'a Recipe) -> Self {
        Self { base, recipe, from: None, stop_after: |_| None }
    }

    /// As `world` ranks, each with a base of its own. Torch's generator is the process's, so without dropout.
    fn run(&self, world: u32, examples: impl Fn(&TinyBase, u32) -> Given + Sync) -> Vec<Ran> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("its address");
        let recipe = Recipe { train: TrainSpec { ranks: world, ..self.recipe.train.clone() }, ..self.recipe.clone() };
        thread::scope(|scope| {
            let mut listener = Some(listener);
            let ranks: Vec<_> = (0..world)
                .map(|rank| {
                    let (own, recipe, examples) = (listener.take(), &recipe, &examples);
                    scope.spawn(move || {
                        let tiny = (self.base)();
                        let given = examples(&tiny, rank);
                        let ranks = match world {
                            1 => Ranks::alone(),
                            _ => {
                                let meeting = match own {
                                    Some(listener) => Meeting::host(listener, PATIENCE),
                                    None => Meeting::join(address, PATIENCE),
                                };
                                let own = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1 + rank as u8));
                                let meeting = meeting.expect("a meeting");
                                Ranks::connect(&meeting, own, rank, world, PATIENCE).expect("connected")
                            }
                        };
                        let from = self.from.map(|bytes| Checkpoint::from_bytes(bytes).expect("read"));
                        let mut seen = Seen { stop_after: (self.stop_after)(rank), ..Seen::default() };
                        let (base, from) = (&tiny.base, from.as_ref());
                        let outcome = resume_among(base, recipe, given.examples(), "tiny", from, &ranks, &mut seen);
                        (outcome, seen)
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().expect("a rank")).collect()
        })
    }
}

enum Given {
    Rows(Vec<tailor_train::Example>),
    Pairs(Vec<Preference>),
}

impl Given {
    fn examples(&self) -> Examples<'_> {
        match self {
            Self::Rows(rows) => Examples::Single(rows),
            Self::Pairs(pairs) => Examples::Pairs(pairs),
        }
    }
}

fn rows(tiny: &TinyBase, _: u32) -> Given {
    Given::Rows(tiny.rows(24))
}

fn pairs(tiny: &TinyBase, _: u32) -> Given {
    let pair = |n: u32| {
        let prompt: Vec<u32> = (0..2 + n % 5).map(|at| 10 + (n * 7 + at * 13) % 40).collect();
        Preference { chosen: tiny.row(&prompt, &[60 + n % 7, 61]), rejected: tiny.row(&prompt, &[80 - n % 5, 81, 82]) }
    };
    Given::Pairs((0..24).map(pair).collect())
}

/// Half of every batch is one pass of one rank, or one of two passes of a rank alone.
fn halves() -> TrainSpec {
    TrainSpec { batch_rows: 8, micro_batch_rows: 4, max_steps: 7, epochs: 10.0, weight_decay: 0.1, ..spec() }
}

fn numbers(trained: &Trained) -> Vec<f32> {
    trained.adapter.pairs().values().flat_map(|pair| pair.a.iter().chain(&pair.b).copied()).collect()
}

fn bytes(trained: &Trained) -> Vec<u8> {
    trained.adapter.weights_to_bytes().expect("bytes")
}

fn good(ran: Vec<Ran>) -> Vec<(Trained, Seen)> {
    ran.into_iter().map(|(outcome, seen)| (outcome.expect("trains"), seen)).collect()
}

#[test]
fn two_ranks_learn_what_one_learns_in_twice_as_many_passes() {
    let families: [fn() -> TinyBase; 2] = [TinyBase::llama, TinyBase::t5];
    for base in families {
        for (objective, given) in [
            (Objective::Sft, rows as fn(&TinyBase, u32) -> Given),
            (Objective::Dpo, pairs as fn(&TinyBase, u32) -> Given),
        ] {
            for checkpointing in [Checkpointing::None, Checkpointing::Layers] {
                let recipe = recipe(&lora(), &TrainSpec { objective, checkpointing, ..halves() });
                let work = Work::new(base, &recipe);
                let (alone, together) = (good(work.run(1, given)), good(work.run(2, given)));
                let wanted = numbers(&alone[0].0);
                for (trained, seen) in &together {
                    let worst = numbers(trained).iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
                    println!("{objective} {checkpointing}: worst difference {worst:e}");
                    assert!(worst <= 1e-6, "{objective}: {worst:e}");
                    assert_eq!(seen.steps.len(), 7);
                    for (one, two) in alone[0].1.steps.iter().zip(&seen.steps) {
                        assert!((one.1 - two.1).abs() <= 1e-6 * one.1 && (one.2 - two.2).abs() <= 1e-5 * one.2);
                    }
                }
                assert!(bytes(&together[0].0) == bytes(&together[1].0), "every rank ends with the same bytes");
                assert_eq!(together[0].0.summary.tokens, alone[0].0.summary.tokens);
            }
        }
    }
}

#[test]
fn three_ranks_share_uneven_batches_and_some_have_no_row() {
    // 22 rows to learn from in batches of 4: the last of an epoch has 2 rows for 3 ranks.
    let train = TrainSpec { batch_rows: 4, micro_batch_rows: 0, max_steps: 13, epochs: 10.0, ..spec() };
    let evaluate = EvaluateSpec { tuning_fraction: 0.1, every_steps: 4, ..EvaluateSpec::default() };
    let recipe = Recipe { evaluate, ..recipe(&lora(), &train) };
    let work = Work::new(TinyBase::llama, &recipe);
    let (alone, together) = (good(work.run(1, rows)), good(work.run(3, rows)));
    for (trained, seen) in &together {
        assert!(bytes(trained) == bytes(&together[0].0));
        for (one, three) in alone[0].1.steps.iter().zip(&seen.steps) {
            assert!((one.1 - three.1).abs() < 1e-3 * one.1, "step {}: loss {} and {}", one.0, one.1, three.1);
        }
        for (one, three) in alone[0].1.tuning.iter().zip(&seen.tuning) {
            assert_eq!((one.step, one.tokens), (three.step, three.tokens));
            assert!((one.loss - three.loss).abs() < 1e-3 * one.loss, "{one:?} {three:?}");
        }
        assert_eq!(trained.summary.kept_step, together[0].0.summary.kept_step);
    }
    assert!(alone[0].1.tuning.len() >= 4);
}

#[test]
fn one_checkpoint_is_enough_for_all_ranks_to_go_on_to_the_same_bytes() {
    let recipe = recipe(&lora(), &halves());
    let whole = good(Work::new(TinyBase::t5, &recipe).run(2, rows));
    let (_, seen) = &whole[0];
    assert_eq!((seen.checkpoints.len(), whole[1].1.checkpoints.len()), (7, 0), "rank 0 saves, the other does not");
    for done in [2, 5] {
        let work = Work { from: Some(&seen.checkpoints[done - 1]), ..Work::new(TinyBase::t5, &recipe) };
        for (trained, rest) in good(work.run(2, rows)) {
            assert!(bytes(&trained) == bytes(&whole[0].0), "from step {done}");
            assert_eq!(rest.steps, seen.steps[done..]);
        }
    }
}

#[test]
fn the_ranks_end_together_when_the_first_is_asked_to_or_nothing_gets_better() {
    let recipe_to_stop = recipe(&lora(), &halves());
    let asked = Work { stop_after: |rank| (rank == 0).then_some(3), ..Work::new(TinyBase::llama, &recipe_to_stop) };
    for (trained, seen) in good(asked.run(2, rows)) {
        assert_eq!((trained.summary.outcome, seen.steps.len()), (Outcome::Stopped, 3));
    }
    // A rate at which the tuning loss soon gets worse.
    let train = TrainSpec { learning_rate: 0.5, max_steps: 60, epochs: 100.0, ..halves() };
    let evaluate = EvaluateSpec { tuning_fraction: 0.3, every_steps: 1, ..EvaluateSpec::default() };
    let stop = StopSpec { patience: 2, ..StopSpec::default() };
    let recipe = Recipe { evaluate, stop, ..recipe(&LoraSpec { dora: true, ..lora() }, &train) };
    let ended = good(Work::new(TinyBase::llama, &recipe).run(2, rows));
    let summary = &ended[0].0.summary;
    assert!(summary.outcome != Outcome::Finished && summary.steps < 60, "{summary:?}");
    assert_eq!((summary.outcome, summary.steps), (ended[1].0.summary.outcome, ended[1].0.summary.steps));
    assert!(bytes(&ended[0].0) == bytes(&ended[1].0));
}

#[test]
fn a_rank_that_must_leave_interrupts_the_run_after_a_checkpoint() {
    let recipe = recipe(&lora(), &halves());
    let work = Work { stop_after: |rank| (rank == 1).then_some(3), ..Work::new(TinyBase::llama, &recipe) };
    for (rank, (outcome, seen)) in work.run(2, rows).into_iter().enumerate() {
        let error = outcome.expect_err("interrupted");
        assert!(error.retryable() && matches!(error, Error::Ranks { .. }), "{error}");
        assert_eq!(error.to_string(), "after step 3: another rank's worker is stopping");
        assert_eq!(seen.checkpoints.len(), if rank == 0 { 3 } else { 0 }, "nothing is lost");
    }
}

#[test]
fn ranks_with_other_rows_or_of_another_number_are_refused() {
    let recipe_of_two = recipe(&lora(), &halves());
    let other = |tiny: &TinyBase, rank: u32| Given::Rows(tiny.rows(24 - rank));
    for (rank, (outcome, _)) in Work::new(TinyBase::llama, &recipe_of_two).run(2, other).into_iter().enumerate() {
        let error = outcome.expect_err("refused").to_string();
        let wanted = if rank == 0 { "another rank" } else { "rank 1 would train something else than rank 0" };
        assert!(error.contains(wanted), "rank {rank}: {error}");
    }
    let tiny = TinyBase::llama();
    let recipe = recipe(&lora(), &TrainSpec { ranks: 2, ..halves() });
    let error = tailor_train::train(&tiny.base, &recipe, &tiny.rows(8), "tiny", &mut ()).expect_err("one rank");
    assert_eq!(error.to_string(), "train.ranks: 2, and this run has 1");
}
