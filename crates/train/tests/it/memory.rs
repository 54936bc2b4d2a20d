//! No memory for a micro-batch: it is halved, the gradient is the same, and the run says so. Measuring takes no more than
//! a step does.
//!
//! The limit is on a process of its own, made of this test binary.

use std::process::Command;

use tailor_domain::{EvaluateSpec, Recipe, StepMetrics, TrainSpec, TuningMetrics};
use tailor_testkit::LlamaShape;
use tailor_train::{Observer, Predictor, Prompts, predict, train};

use crate::{TinyBase, lora, recipe, spec};

const CHILD: &str = "TAILOR_TEST_MEMORY_CHILD";
/// What the process may take beyond what it has when training begins: all rows at once take some 390 MiB, half of them 200.
const ROOM: u64 = 300 << 20;

#[derive(Default)]
struct Seen(Vec<StepMetrics>, Vec<String>, Vec<TuningMetrics>);

impl Observer for Seen {
    fn on_step(&mut self, step: &StepMetrics) {
        self.0.push(*step);
    }
    fn should_stop(&mut self) -> bool {
        false
    }
    fn on_note(&mut self, note: &str) {
        self.1.push(note.to_owned());
    }
    fn on_tuning(&mut self, measured: &TuningMetrics) {
        self.2.push(*measured);
    }
}

/// A few hundred MiB of activations for all rows at once.
fn train_long_rows() -> Seen {
    let shape = LlamaShape { hidden: 256, layers: 4, feed_forward: 1024, context: 512, ..LlamaShape::default() };
    let spec = TrainSpec { batch_rows: 16, micro_batch_rows: 0, max_steps: 2, ..spec() };
    train_long_rows_of(&shape, &recipe(&lora(), &spec), 16, ROOM)
}

/// In a child with no more than `room`.
fn train_long_rows_of(shape: &LlamaShape, recipe: &Recipe, rows: u32, room: u64) -> Seen {
    let tiny = TinyBase::quantized(|folder| shape.write(folder, 1).expect("writes"));
    let rows: Vec<_> = (0..rows).map(|n| tiny.row(&[10 + n % 40; 250], &[60 + n % 30, 61])).collect();
    if std::env::var(CHILD).is_ok() {
        limit_address_space(room);
    }
    let mut seen = Seen::default();
    train(&tiny.base, recipe, &rows, "tiny", &mut seen).expect("trains");
    seen
}

/// For this process, from now on.
fn limit_address_space(room: u64) {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let limit = kilobytes.expect("VmSize") * 1024 + room;
    let (pid, limit) = (std::process::id().to_string(), format!("--as={limit}"));
    let limited = Command::new("prlimit").args(["--pid", &pid, &limit]).status().expect("prlimit runs");
    assert!(limited.success());
}

/// What the test of this name prints in a process of its own.
fn in_a_child(name: &str) -> String {
    let child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success(), "{text}\n{}", String::from_utf8_lossy(&child.stderr));
    text
}

#[test]
fn a_micro_batch_without_memory_is_halved_and_the_gradient_is_the_same() {
    if std::env::var(CHILD).is_ok() {
        let seen = train_long_rows();
        for step in &seen.0 {
            println!("STEP {} {}", step.loss, step.grad_norm);
        }
        seen.1.iter().for_each(|note| println!("NOTE {note}"));
        return;
    }
    let text = in_a_child("memory::a_micro_batch_without_memory_is_halved_and_the_gradient_is_the_same");
    let notes: Vec<&str> = text.lines().filter_map(|line| line.split_once("NOTE ").map(|(_, note)| note)).collect();
    println!("{notes:?}");
    assert!(
        notes[0].starts_with("step 1: no memory for a micro-batch of 16; made again, and from here on, with 8"),
        "{notes:?}"
    );
    let limited: Vec<Vec<f64>> = text
        .lines()
        .filter_map(|line| line.split_once("STEP ").map(|(_, figures)| figures))
        .map(|figures| figures.split(' ').map(|figure| figure.parse().expect("a number")).collect())
        .collect();
    let free = train_long_rows();
    assert!(free.1.is_empty(), "here there is memory: {:?}", free.1);
    for (step, figures) in free.0.iter().zip(&limited) {
        assert!((step.loss - figures[0]).abs() < 2e-5 * step.loss, "{step:?} {figures:?}");
        assert!((step.grad_norm - figures[1]).abs() < 5e-4 * step.grad_norm, "{step:?} {figures:?}");
    }
    assert_eq!((free.0.len(), limited.len()), (2, 2));
}

/// One row at a time fits; 16 of them take more than the child has.
#[test]
fn measuring_takes_no_more_rows_at_once_than_a_step() {
    let shape = LlamaShape { hidden: 256, layers: 1, feed_forward: 8192, context: 512, ..LlamaShape::default() };
    let spec = TrainSpec { batch_rows: 4, micro_batch_rows: 1, max_steps: 1, ..spec() };
    let evaluate = EvaluateSpec { tuning_fraction: 0.5, ..EvaluateSpec::default() };
    let of = |micro_batch_rows, room| {
        let train = TrainSpec { micro_batch_rows, ..spec.clone() };
        let recipe = Recipe { evaluate: evaluate.clone(), ..recipe(&lora(), &train) };
        train_long_rows_of(&shape, &recipe, 32, room)
    };
    if std::env::var(CHILD).is_ok() {
        let measured = of(1, 260 << 20).2[0];
        println!("MEASURED {} {}", measured.loss, measured.tokens);
        return;
    }
    let text = in_a_child("memory::measuring_takes_no_more_rows_at_once_than_a_step");
    let (_, figures) = text.lines().find_map(|line| line.split_once("MEASURED ")).expect("measured");
    let (loss, tokens) = figures.split_once(' ').expect("two figures");
    let loss: f64 = loss.parse().expect("a number");
    let free = of(4, 0).2[0];
    assert_eq!(tokens.parse(), Ok(free.tokens));
    assert!((loss - free.loss).abs() < 2e-5 * loss, "{loss} row by row, {} four at a time", free.loss);
}

/// All prompts at once take some GiB for a moment. Whoever is told how much there is takes batches that fit; whoever is not,
/// or is told wrongly, halves them.
#[test]
fn answers_take_the_memory_they_are_given_and_are_halved_where_it_is_not_there() {
    let shape = LlamaShape { hidden: 256, layers: 1, feed_forward: 8192, context: 512, ..LlamaShape::default() };
    let tiny = TinyBase::quantized(|folder| shape.write(folder, 1).expect("writes"));
    let prompts: Vec<Vec<u32>> = (0..64).map(|row| vec![10 + row; 250]).collect();
    let answers = |room| {
        let mut predictor =
            Predictor::new(&tiny.base, None, Prompts::Memory(&prompts), 3, room).expect("the base alone");
        let mut notes = Vec::new();
        while !predictor.turn().expect("answers") {
            notes.extend(predictor.take_note());
        }
        (predictor.into_answers(), notes)
    };
    if std::env::var(CHILD).is_ok() {
        limit_address_space(400 << 20);
        let (given, notes) = answers(200 << 20);
        assert!(notes.is_empty(), "{notes:?}");
        let (halved, notes) = answers(u64::MAX);
        println!("NOTE {}", notes.join("; "));
        assert_eq!(given, halved);
        println!("ANSWERS {given:?}");
        return;
    }
    let text = in_a_child("memory::answers_take_the_memory_they_are_given_and_are_halved_where_it_is_not_there");
    assert!(text.contains("NOTE no memory for 64 answers at once; made with 32 from here on"), "{text}");
    let free = predict(&tiny.base, None, &prompts, 3, &mut |_, _| true).expect("there is memory here");
    assert!(text.contains(&format!("ANSWERS {free:?}")));
}
