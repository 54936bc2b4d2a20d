//! Rows that stay on disk are learnt from like rows in memory, to the bit, and take no memory however many they are.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use tailor_domain::spec::{Grouping, Objective};
use tailor_domain::{EvaluateSpec, Recipe, StepMetrics, TrainSpec};
use tailor_testkit::TempDir;
use tailor_text::shard::{Content, Record, ShardFile, ShardKind, ShardLimits, ShardWriter};
use tailor_torch::Memory;
use tailor_train::{
    Checkpoint, Example, Examples, Observer, Predictor, Preference, Prompts, Ranks, Session, Shard, Trained, predict,
    resume, train,
};

use crate::{TinyBase, lora, recipe, spec};

/// One more than the largest id of the tiny bases.
const VOCABULARY: u32 = 96;

fn write(path: &Path, kind: ShardKind, contents: impl Iterator<Item = Content>) {
    let out = BufWriter::new(File::create(path).expect("a file"));
    let mut writer = ShardWriter::new(out, kind, VOCABULARY).expect("writes");
    for (row, content) in (0..).zip(contents) {
        writer.push(&Record { row, content }).expect("a record");
    }
    writer.finish().expect("writes");
}

fn open(path: &Path) -> ShardFile {
    ShardFile::open(path, ShardLimits::default()).expect("opens")
}

fn on_disk(path: &Path) -> Examples<'static> {
    Shard::new(open(path), "sha256:of the file").expect("rows to learn from").into()
}

fn kind(tiny: &TinyBase) -> ShardKind {
    if tiny.is_decoder() { ShardKind::Decoder } else { ShardKind::EncoderDecoder }
}

fn weights(trained: &Trained) -> Vec<u8> {
    trained.adapter.weights_to_bytes().expect("bytes")
}

#[derive(Default)]
struct Keep {
    steps: Vec<(u64, u64)>,
    measured: Vec<u64>,
    checkpoints: Vec<Vec<u8>>,
}

impl Observer for Keep {
    fn on_step(&mut self, step: &StepMetrics) {
        self.steps.push((step.loss.to_bits(), step.grad_norm.to_bits()));
    }
    fn should_stop(&mut self) -> bool {
        false
    }
    fn on_tuning(&mut self, measured: &tailor_domain::TuningMetrics) {
        self.measured.push(measured.loss.to_bits());
    }
    fn wants_checkpoint(&mut self) -> bool {
        true
    }
    fn on_checkpoint(&mut self, checkpoint: Checkpoint) {
        self.checkpoints.push(checkpoint.to_bytes().expect("written"));
    }
}

#[test]
fn rows_on_disk_make_the_bytes_of_rows_in_memory() {
    let folder = TempDir::new();
    for tiny in TinyBase::all() {
        let path = folder.join(format!("{:?}", kind(&tiny)));
        let mut rows = tiny.random_rows(60, 3);
        rows.push(tiny.row(&[20; 70], &[21]));
        write(&path, kind(&tiny), rows.iter().cloned().map(Content::Example));
        for grouping in [Grouping::Length, Grouping::Packed] {
            if grouping == Grouping::Packed && !tiny.is_decoder() {
                continue;
            }
            let train_spec = TrainSpec { grouping, max_tokens: 64, max_steps: 9, epochs: 5.0, ..spec() };
            let evaluate = EvaluateSpec { tuning_fraction: 0.2, every_steps: 3, ..EvaluateSpec::default() };
            let recipe = Recipe { evaluate, ..recipe(&lora(), &train_spec) };
            let (mut here, mut there) = (Keep::default(), Keep::default());
            let in_memory = train(&tiny.base, &recipe, &rows, "tiny", &mut here).expect("trains");
            let streamed = train(&tiny.base, &recipe, on_disk(&path), "tiny", &mut there).expect("trains");
            assert!(weights(&in_memory) == weights(&streamed), "{grouping}");
            assert_eq!((&here.steps, &here.measured), (&there.steps, &there.measured), "{grouping}");
            assert_eq!(streamed.summary.rows_left_out, 1, "the long row");
            let from = Checkpoint::from_bytes(&there.checkpoints[3]).expect("read");
            let rest = resume(&tiny.base, &recipe, on_disk(&path), "tiny", Some(&from), &mut ()).expect("goes on");
            assert!(weights(&rest) == weights(&in_memory), "{grouping}, from step 4 on");
            let other = Shard::new(open(&path), "sha256:of another").expect("rows");
            let error = resume(&tiny.base, &recipe, other, "tiny", Some(&from), &mut ()).expect_err("other rows");
            assert!(error.to_string().contains("another run"), "{error}");
        }
    }
}

#[test]
fn pairs_and_prompts_on_disk_are_those_in_memory() {
    let folder = TempDir::new();
    let tiny = TinyBase::llama();
    let pairs: Vec<Preference> = (0..20)
        .map(|n| Preference {
            chosen: tiny.row(&[10 + n, 11], &[60, 61]),
            rejected: tiny.row(&[10 + n, 11], &[70 - n]),
        })
        .collect();
    let path = folder.join("pairs");
    write(&path, ShardKind::DecoderPreferences, pairs.iter().cloned().map(Content::Preference));
    let recipe = recipe(&lora(), &TrainSpec { objective: Objective::Dpo, max_steps: 5, ..spec() });
    let in_memory = train(&tiny.base, &recipe, pairs.as_slice(), "tiny", &mut ()).expect("trains");
    let streamed = train(&tiny.base, &recipe, on_disk(&path), "tiny", &mut ()).expect("trains");
    assert!(weights(&in_memory) == weights(&streamed));

    let prompts: Vec<Vec<u32>> = (0..70).map(|n| crate::prompt(n * 3)).collect();
    let path = folder.join("prompts");
    write(&path, ShardKind::Prompts, prompts.iter().cloned().map(Content::Prompt));
    let file = Arc::new(open(&path));
    for count in [0, 1, 70] {
        let here =
            predict(&tiny.base, Some(&streamed.adapter), &prompts[..count], 5, &mut |_, _| true).expect("answers");
        let asked = Prompts::Shard { file: Arc::clone(&file), count };
        let mut predictor = Predictor::new(&tiny.base, Some(&streamed.adapter), asked, 5, u64::MAX).expect("fits");
        while !predictor.turn().expect("a few tokens") {}
        assert_eq!(predictor.into_answers(), here);
    }
    assert!(Shard::new(open(&path), "x").is_err(), "nothing can be learnt from prompts");
}

#[test]
fn a_shard_for_another_base_is_refused() {
    let folder = TempDir::new();
    let (llama, t5) = (TinyBase::llama(), TinyBase::t5());
    let path = folder.join("rows");
    write(&path, ShardKind::EncoderDecoder, t5.rows(8).into_iter().map(Content::Example));
    let error = train(&llama.base, &recipe(&lora(), &spec()), on_disk(&path), "tiny", &mut ()).expect_err("family");
    assert!(error.to_string().contains("made for an encoder-decoder base"), "{error}");
    let out = BufWriter::new(File::create(folder.join("wide")).expect("a file"));
    let mut writer = ShardWriter::new(out, ShardKind::Decoder, 500).expect("writes");
    for (row, answer) in [(0, 95), (1, 96)] {
        let example = Example::Decoder { ids: vec![5, answer], in_loss: vec![false, true] };
        writer.push(&Record { row, content: Content::Example(example) }).expect("a record");
    }
    writer.finish().expect("writes");
    let wide = on_disk(&folder.join("wide"));
    let error = train(&llama.base, &recipe(&lora(), &spec()), wide, "tiny", &mut ()).expect_err("vocabulary");
    assert!(error.to_string().starts_with("row 1: token 96 is outside the base's vocabulary of 96"), "{error}");
}

const CHILD: &str = "TAILOR_TEST_STREAMING_CHILD";
const SHORT: &str = "TAILOR_TEST_SHORT_ROWS_CHILD";
const MIB: u64 = 1 << 20;
/// How much more memory a run may take on eight times the rows.
const MORE: u64 = 6 * MIB;

/// How much more memory a run may take on forty times the rows where those are so short that what is known of each would
/// weigh: a number for each of them would be 8 MiB.
const MORE_OF_SHORT: u64 = 12 * MIB;

/// Trains a few steps on so many MiB of rows, and prints the process's peak from its beginning.
fn child(megabytes: u64) {
    let folder = TempDir::new();
    let tiny = TinyBase::llama();
    let path = folder.join("rows");
    let row = |n: u64| {
        let length = 40 + n as usize % 60;
        let id = |at: usize| 2 + ((n * 31 + at as u64 * 7) % 90) as u32;
        let ids: Vec<u32> = (0..length).map(id).collect();
        Example::Decoder { in_loss: (0..length).map(|at| at > 20).collect(), ids }
    };
    // 5 bytes a token, 70 tokens a row, about.
    let rows = megabytes * MIB / 350;
    write(&path, ShardKind::Decoder, (0..rows).map(|n| Content::Example(row(n))));
    tailor_torch::PeakMemory::reset().expect("counts from here");
    let train_spec = TrainSpec { max_tokens: 128, max_steps: 3, ..spec() };
    run_and_print_the_peak(&tiny, &train_spec, &path);
}

fn run_and_print_the_peak(tiny: &TinyBase, train_spec: &TrainSpec, path: &Path) {
    let evaluate = EvaluateSpec { every_steps: 3, ..EvaluateSpec::default() };
    let recipe = Recipe { evaluate, ..recipe(&lora(), train_spec) };
    let mut session =
        Session::begin(&tiny.base, &recipe, on_disk(path), "tiny", None, &Ranks::alone(), &mut ()).expect("begins");
    while session.turn(&mut ()).expect("a step").is_none() {}
    println!("PEAK {}", Memory::now().expect("counted").peak_bytes);
}

/// So many rows of two to seven tokens, packed and not.
fn child_of_short_rows(rows: u64, grouping: Grouping) {
    let folder = TempDir::new();
    let tiny = TinyBase::llama();
    let path = folder.join("rows");
    let row = |n: u64| {
        let length = 2 + (n * 7919 % 6) as usize;
        Example::Decoder { ids: vec![2 + (n % 90) as u32; length], in_loss: vec![true; length] }
    };
    write(&path, ShardKind::Decoder, (0..rows).map(|n| Content::Example(row(n))));
    tailor_torch::PeakMemory::reset().expect("counts from here");
    run_and_print_the_peak(&tiny, &TrainSpec { max_tokens: 64, max_steps: 3, grouping, ..spec() }, &path);
}

/// The peak of this test alone in a process of its own.
fn peak_of(test: &str, variable: &str, value: &str) -> u64 {
    let run = Command::new(std::env::current_exe().expect("this binary"))
        .args(["--exact", test, "--nocapture"])
        .env(variable, value)
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{text}\n{}", String::from_utf8_lossy(&run.stderr));
    let line = text.lines().find_map(|line| line.split_once("PEAK ")).expect("a figure");
    line.1.trim().parse().expect("a number")
}

#[test]
fn eight_times_the_rows_take_no_more_memory() {
    if let Ok(megabytes) = std::env::var(CHILD) {
        return child(megabytes.parse().expect("a number"));
    }
    let test = "streaming::eight_times_the_rows_take_no_more_memory";
    let peak = |megabytes: u64| peak_of(test, CHILD, &megabytes.to_string());
    let (small, large) = (peak(8), peak(64));
    println!("8 MiB of rows: {} MiB, 64 MiB: {} MiB", small / MIB, large / MIB);
    assert!(large < small + MORE, "{} MiB and {} MiB", small / MIB, large / MIB);
}

#[test]
fn two_million_short_rows_take_no_number_each_in_memory() {
    if let Ok(asked) = std::env::var(SHORT) {
        let (rows, grouping) = asked.split_once(' ').expect("two words");
        return child_of_short_rows(rows.parse().expect("a number"), grouping.parse().expect("a grouping"));
    }
    let test = "streaming::two_million_short_rows_take_no_number_each_in_memory";
    for grouping in [Grouping::Length, Grouping::Packed] {
        let peak = |rows: u64| peak_of(test, SHORT, &format!("{rows} {grouping}"));
        let (small, large) = (peak(50_000), peak(2_000_000));
        println!("{grouping}: {} MiB, of forty times the rows {} MiB", small / MIB, large / MIB);
        assert!(large < small + MORE_OF_SHORT, "{grouping}: {} MiB and {} MiB", small / MIB, large / MIB);
    }
}
