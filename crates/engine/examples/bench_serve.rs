//! Tokens a second of serving, at the shape of a 1.1B Llama with random weights: decoding at batch 1, 8 and 32, a prompt of
//! 512 tokens, adapters; in turn with llama.cpp on Q4_0 of the same shape.
//!
//! With `--device cuda` on an NVIDIA GPU, where it has no peer: weights are made on the card, and beside the model the
//! products by themselves are measured against what the card copies. `--shape tinyllama|llama3-8b|tiny`.
//!
//! Both sides take turns, so that a machine whose speed drifts drifts for both; medians, and the median of the pairs' ratios.
//! Both are given their tokens. Ours are timed to the likeliest next token, as a greedy request wants it, and at batch 1 also to
//! all logits; llama.cpp's to all logits, the largest of which nobody has looked for yet. `--pairs N`, `--no-peer`, `--base DIR` (a base that is
//! there already, or will be made there), `--only NAME` (decode, "decode 8", prefill, adapters).

#[path = "serve/card.rs"]
mod card;
#[path = "serve/ours.rs"]
mod ours;
#[path = "serve/peer.rs"]
mod peer;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use tailor_testkit::{LlamaShape, TempDir};
use tch::{Device, Kind, Tensor};

use ours::{Ours, Wanted};
use peer::Peer;

pub type Failure = Box<dyn std::error::Error>;

const BATCHES: [(usize, Wanted); 4] =
    [(1, Wanted::Likeliest), (8, Wanted::Likeliest), (32, Wanted::Likeliest), (1, Wanted::Logits)];
const PROMPT: usize = 512;
const STEPS: usize = 16;
const RANK: i64 = 16;
/// What the program ends with where it has no card to run on, as `bench_gpu` does.
const NO_CARD: i32 = 3;

struct Settings {
    pairs: usize,
    peer: bool,
    base: Option<PathBuf>,
    only: Option<String>,
    /// Where it runs, as `TAILOR_DEVICE` names it.
    device: String,
    shape: String,
}

impl Settings {
    fn parse() -> Result<Self, Failure> {
        let mut settings =
            Self { pairs: 5, peer: true, base: None, only: None, device: "cpu".into(), shape: "tinyllama".into() };
        let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--no-peer" => settings.peer = false,
                "--pairs" => settings.pairs = value()?.parse()?,
                "--base" => settings.base = Some(value()?.into()),
                "--only" => settings.only = Some(value()?),
                "--device" => settings.device = value()?,
                "--shape" => settings.shape = value()?,
                other => return Err(format!("unknown setting {other}").into()),
            }
        }
        Ok(settings)
    }

    fn wants(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == name || name.starts_with(&format!("{only} ")))
    }
}

fn main() -> Result<(), Failure> {
    let settings = Settings::parse()?;
    let shape = shape(&settings.shape)?;
    let _no_grad = tch::no_grad_guard();
    if settings.device != "cpu" {
        return on_card(&settings, &shape);
    }
    let work = TempDir::new();
    let folder = settings.base.clone().unwrap_or_else(|| work.join("nf4"));
    make(&shape, &folder, work.path())?;
    let ours = Ours::load(&folder, shape.vocab)?;
    let mut peer = match settings.peer {
        true => Some(Peer::start(&work.join("peer.gguf"), &shape)?),
        false => None,
    };
    println!("{}", hardware());
    let [greedy, all] = [Wanted::Likeliest, Wanted::Logits].map(|wanted| ours.bytes(wanted) as f64 / 1e6);
    println!("weights {greedy:.0} MB a token, {all:.0} where all logits are wanted");
    let batches = BATCHES.into_iter().filter(|(batch, _)| settings.wants(&format!("decode {batch}")));
    let batches: Vec<(usize, Wanted)> = batches.collect();
    if !batches.is_empty() || settings.wants("prefill") {
        println!(
            "| work | ours, tokens/s | llama.cpp Q4_0, tokens/s | ratio of pairs (median) | read, GB/s | of the bandwidth |"
        );
        println!("| --- | --- | --- | --- | --- | --- |");
    }
    for (batch, wanted) in batches {
        let sets = vec![None; batch];
        compare(
            &settings,
            &decoding(batch, wanted),
            batch * STEPS,
            ours.bytes(wanted) * STEPS,
            peer.as_mut(),
            || ours.decode(&sets, STEPS, wanted),
            |peer| peer.decode(batch, STEPS),
        )?;
    }
    if settings.wants("prefill") {
        compare(
            &settings,
            &format!("prefill, {PROMPT} tokens"),
            PROMPT,
            ours.bytes(Wanted::Logits),
            peer.as_mut(),
            || ours.prefill(PROMPT),
            |peer| peer.prefill(PROMPT),
        )?;
        println!("\nlibtorch's product in bf16, {PROMPT} rows: {:.0} GFLOP/s", product_rate());
    }
    if settings.wants("adapters") {
        adapters(&settings, &ours)?;
    }
    Ok(())
}

/// A model by its published sizes.
fn shape(name: &str) -> Result<LlamaShape, Failure> {
    let of = |hidden, layers, feed_forward, kv_heads, vocab| LlamaShape {
        hidden,
        layers,
        feed_forward,
        heads: 32,
        kv_heads,
        vocab,
        context: 2048,
        bf16: true,
        ..LlamaShape::default()
    };
    match name {
        "tinyllama" => Ok(of(2048, 22, 5632, 4, 32_000)),
        "llama3-8b" => Ok(of(4096, 32, 14_336, 8, 128_256)),
        "tiny" => Ok(LlamaShape { heads: 4, ..of(128, 2, 192, 2, 300) }),
        other => Err(format!("there is no shape {other:?}; there are tinyllama, llama3-8b and tiny").into()),
    }
}

/// The tables of a GPU; `emulated` tries the program out on the host.
fn on_card(settings: &Settings, shape: &LlamaShape) -> Result<(), Failure> {
    let card = card::Card::open(&settings.device).unwrap_or_else(|error| {
        eprintln!("not run: {error}");
        std::process::exit(NO_CARD)
    });
    println!("{}, {}\n", card.name(), settings.shape);
    if settings.wants("products") {
        card.products(shape)?;
    }
    let ours = Ours::random(shape, card.device())?;
    let bytes = ours.bytes(Wanted::Logits);
    println!("weights {:.0} MB a token, copies {:.0} GB/s\n", bytes as f64 / 1e6, card.copied() / 1e9);
    println!("| work | tokens/s | ms a step | read, GB/s | of what the card copies |");
    println!("| --- | --- | --- | --- | --- |");
    let row = |name: &str, tokens: usize, steps: usize, run: &dyn Fn() -> Result<f64, Failure>| {
        run()?;
        let seconds = (0..settings.pairs).map(|_| run()).collect::<Result<Vec<_>, _>>()?;
        let step = median(seconds) / steps as f64;
        let read = bytes as f64 / step;
        let (speed, share) = (tokens as f64 / step, read / card.copied() * 100.0);
        println!("| {name} | {speed:.0} | {:.2} | {:.0} | {share:.0} % |", step * 1e3, read / 1e9);
        Ok::<_, Failure>(())
    };
    // There is one way on a card: all logits are made.
    let batches = BATCHES.into_iter().filter(|(_, wanted)| *wanted == Wanted::Likeliest).map(|(batch, _)| batch);
    for batch in batches.filter(|batch| settings.wants(&format!("decode {batch}"))) {
        let sets = vec![None; batch];
        row(&decoding(batch, Wanted::Likeliest), batch, STEPS, &|| ours.decode(&sets, STEPS, Wanted::Logits))?;
    }
    if settings.wants("prefill") {
        row(&format!("prompt of {PROMPT} tokens"), PROMPT, 1, &|| ours.prefill(PROMPT))?;
    }
    if settings.wants("adapters") {
        adapters(settings, &ours)?;
    }
    Ok(())
}

/// The name of a row.
fn decoding(batch: usize, wanted: Wanted) -> String {
    let wanted = if wanted == Wanted::Logits { ", all logits" } else { "" };
    format!("decode, batch {batch}{wanted}")
}

/// One row of the table.
fn compare(
    settings: &Settings,
    name: &str,
    tokens: usize,
    bytes: usize,
    mut peer: Option<&mut Peer>,
    ours: impl Fn() -> Result<f64, Failure>,
    theirs: impl Fn(&mut Peer) -> Result<f64, Failure>,
) -> Result<(), Failure> {
    ours()?;
    let (mut own, mut other, mut ratios, mut read) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..settings.pairs {
        let seconds = ours()?;
        own.push(seconds);
        read.push(bandwidth());
        if let Some(peer) = peer.as_deref_mut() {
            let seconds_of_peer = theirs(peer)?;
            other.push(seconds_of_peer);
            ratios.push(seconds_of_peer / seconds);
        }
    }
    let speed = |seconds: f64| tokens as f64 / seconds;
    let (of_peer, ratio) = match other.is_empty() {
        true => ("not run".to_owned(), "not run".to_owned()),
        false => (format!("{:.1}", speed(median(other))), format!("{:.2}", median(ratios))),
    };
    let (seconds, read) = (median(own), median(read));
    let share = bytes as f64 / seconds / read * 100.0;
    println!("| {name} | {:.1} | {of_peer} | {ratio} | {:.1} | {share:.0} % |", speed(seconds), read / 1e9);
    Ok(())
}

/// What adapters cost, against the base alone in turn.
fn adapters(settings: &Settings, ours: &Ours) -> Result<(), Failure> {
    println!("\n| adapters of rank {RANK} on every linear layer | without, tokens/s | with, tokens/s | cost |");
    println!("| --- | --- | --- | --- |");
    for batch in [1, 32] {
        let sets: Vec<_> = (0..batch).map(|seed| ours.adapter(RANK, seed as i64)).collect::<Result<_, _>>()?;
        let (with, without): (Vec<_>, Vec<_>) = sets.iter().map(|set| (Some(set), None)).unzip();
        let mut pairs = Vec::new();
        let decode = |sets: &[_], steps| ours.decode(sets, steps, Wanted::Likeliest);
        decode(&with, 2)?;
        for _ in 0..settings.pairs {
            pairs.push((decode(&without, STEPS)?, decode(&with, STEPS)?));
        }
        let speed = |seconds: f64| (batch * STEPS) as f64 / seconds;
        let cost = median(pairs.iter().map(|(without, with)| (1.0 - without / with) * 100.0).collect());
        let (without, with) = pairs.into_iter().unzip();
        let (without, with) = (speed(median(without)), speed(median(with)));
        println!("| {batch} distinct at batch {batch} | {without:.1} | {with:.1} | {cost:.1} % |");
    }
    Ok(())
}

/// The base in 4 bits, unless it is there.
fn make(shape: &LlamaShape, folder: &Path, work: &Path) -> Result<(), Failure> {
    if folder.join("config.json").exists() {
        return Ok(());
    }
    let dense = work.join("dense");
    std::fs::create_dir(&dense)?;
    shape.write(&dense, 7)?;
    tailor_quant::quantize_folder(&dense, folder, &tailor_quant::QuantOptions::default(), &mut |_| {})?;
    std::fs::remove_dir_all(&dense)?;
    Ok(())
}

/// Bytes a second that all threads together read from memory. One load a line: with four of 16 bytes a processor has fewer lines on
/// their way at a time, and a Xeon of Emerald Rapids reads 17 GB/s where it could 24.
fn bandwidth() -> f64 {
    const WORDS: usize = 1 << 25;
    const LINE: usize = 8;
    thread_local! {
        static ROOM: Vec<u64> = vec![1; WORDS];
    }
    ROOM.with(|words| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in words.chunks(WORDS / tch::get_num_threads().max(1) as usize) {
                scope.spawn(move || {
                    let sum = part.iter().step_by(LINE).fold(0, |sum, word| sum ^ word);
                    std::hint::black_box(sum);
                });
            }
        });
        (WORDS * 8) as f64 / start.elapsed().as_secs_f64()
    })
}

/// GFLOP/s of libtorch's own product in bf16, at the sizes of the feed-forward.
fn product_rate() -> f64 {
    let options = (Kind::BFloat16, Device::Cpu);
    let (x, weight) = (Tensor::randn([PROMPT as i64, 2048], options), Tensor::randn([5632, 2048], options));
    let seconds = (0..4).map(|_| {
        let start = Instant::now();
        let _ = x.linear(&weight, None::<&Tensor>);
        start.elapsed().as_secs_f64()
    });
    2.0 * (PROMPT * 2048 * 5632) as f64 / seconds.fold(f64::MAX, f64::min) / 1e9
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Processor, threads and commit.
fn hardware() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok();
    let commit = commit.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    let (model, threads) = (model.unwrap_or("unknown"), tch::get_num_threads());
    format!("{model}, {:?}, {threads} threads, commit {}", tailor_quant::Instructions::detect(), commit.trim())
}
