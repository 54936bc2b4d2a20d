//! One job on one rank and on several, each a process with the same number of threads: tokens a second, and what adding the
//! gradients up takes of a step.
//!
//! `cargo xtask bench ranks [-- RANKS]` (2; as many cores are wanted)

mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tailor_domain::{EvaluateSpec, LoraSpec, Recipe, StepMetrics, TrainSpec};
use tailor_models::{Base, LoadOptions};
use tailor_testkit::{LlamaShape, TempDir};
use tailor_torch::ProcessGroup;
use tailor_train::{Example, Meeting, Observer, Ranks, resume_among};
use tch::{Device, Kind, Tensor};

use support::{MIB, figures_of_child, hardware};

/// The word that makes this program one rank.
const RANK: &str = "--rank";
const BATCH: usize = 8;
const TOKENS: usize = 256;
const STEPS: u64 = 6;
const PATIENCE: Duration = Duration::from_secs(120);
/// All-reduces whose mean is taken.
const ROUNDS: u32 = 20;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [RANK, rank, ranks, address, folder] => be_rank(rank.parse()?, ranks.parse()?, address, Path::new(folder)),
        [] => compare(2),
        [ranks] => compare(ranks.parse().with_context(|| format!("{ranks} is no number of ranks"))?),
        _ => bail!("one word: how many ranks"),
    }
}

fn compare(most: u32) -> Result<()> {
    println!("{}; each rank has one thread\n", hardware());
    let work = TempDir::new();
    let (dense, nf4) = (work.join("dense"), work.join("nf4"));
    std::fs::create_dir(&dense)?;
    let shape = LlamaShape {
        hidden: 512,
        layers: 8,
        feed_forward: 1408,
        heads: 8,
        kv_heads: 8,
        vocab: 8000,
        ..LlamaShape::default()
    };
    LlamaShape { context: 2048, ..shape }.write(&dense, 1)?;
    tailor_quant::quantize_folder(&dense, &nf4, &tailor_quant::QuantOptions::default(), &mut |_| {})?;
    println!(
        "| ranks | tokens/s | against one | gradient, MiB | all-reduce, ms | last loss |\n| --- | --- | --- | --- | --- | --- |"
    );
    let mut alone = None;
    for ranks in 1..=most {
        let seen = run(ranks, &nf4)?;
        let speed = seen["tokens_per_second"];
        let first = *alone.get_or_insert(speed);
        let (ratio, bytes, reduce, loss) = (speed / first, seen["gradient_mib"], seen["all_reduce_ms"], seen["loss"]);
        println!("| {ranks} | {speed:.0} | {ratio:.2}× | {bytes:.2} | {reduce:.2} | {loss:.6} |");
    }
    Ok(())
}

/// As many processes; the figures of rank 0.
fn run(ranks: u32, folder: &Path) -> Result<BTreeMap<String, f64>> {
    // Given up again, and most likely free for the moment until rank 0 takes it.
    let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.to_string();
    let words = |rank: u32| {
        let numbers = [RANK.to_owned(), rank.to_string(), ranks.to_string(), address.clone()];
        numbers.into_iter().map(OsString::from).chain([folder.as_os_str().to_owned()])
    };
    let start = |rank: u32| Command::new(std::env::current_exe()?).args(words(rank)).stdout(Stdio::null()).spawn();
    let others = (1..ranks).map(start).collect::<std::io::Result<Vec<_>>>()?;
    let seen = figures_of_child(words(0))?;
    for mut other in others {
        ensure!(other.wait()?.success(), "a rank failed; it says why above");
    }
    Ok(seen)
}

fn be_rank(rank: u32, world: u32, address: &str, folder: &Path) -> Result<()> {
    tch::set_num_threads(1);
    let base = Base::load(folder, &LoadOptions::default())?;
    let id = |row: usize, at: usize| ((row * 7919 + at * 104_729) % 8000) as u32;
    let example =
        |row| Example::Decoder { ids: (0..TOKENS).map(|at| id(row, at)).collect(), in_loss: vec![true; TOKENS] };
    let rows: Vec<Example> = (0..BATCH).map(example).collect();
    let train = TrainSpec {
        batch_rows: BATCH as u32,
        micro_batch_rows: 2,
        max_tokens: TOKENS as u32,
        max_steps: STEPS,
        epochs: STEPS as f64,
        ranks: world,
        ..TrainSpec::default()
    };
    let evaluate = EvaluateSpec { tuning_fraction: 0.0, ..EvaluateSpec::default() };
    let recipe = Recipe { lora: LoraSpec::default(), train, evaluate, ..Recipe::default() };
    let address: SocketAddr = address.parse()?;
    let own = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let meeting = match rank {
        0 => Meeting::host(TcpListener::bind(address)?, PATIENCE)?,
        _ => Meeting::join(address, PATIENCE)?,
    };
    let ranks = if world == 1 { Ranks::alone() } else { Ranks::connect(&meeting, own, rank, world, PATIENCE)? };
    let mut seen = Seen::default();
    let trained = resume_among(&base, &recipe, rows.as_slice(), "random", None, &ranks, &mut seen)?;
    drop(ranks);
    let pairs = trained.adapter.pairs().values();
    let values: usize = pairs.map(|pair| pair.a.len() + pair.b.len()).sum();
    let reduce = if world == 1 { 0.0 } else { all_reduce(&meeting, own, rank, world, values)? };
    for (name, value) in [
        ("tokens_per_second", seen.best_speed),
        ("loss", seen.loss),
        ("gradient_mib", (values * 4) as f64 / MIB),
        ("all_reduce_ms", reduce),
    ] {
        println!("{name} {value}");
    }
    Ok(())
}

/// Mean milliseconds of an all-reduce of as many values as the adapter has.
fn all_reduce(meeting: &Meeting, own: IpAddr, rank: u32, world: u32, values: usize) -> Result<f64> {
    // Beside the run's own group, whose keys are in the meeting already.
    let listener = if rank == 0 { Some(TcpListener::bind((own, 0))?) } else { None };
    let second = match listener {
        Some(listener) => {
            meeting.set("second", listener.local_addr()?.to_string().as_bytes())?;
            Meeting::host(listener, PATIENCE)?
        }
        None => Meeting::join(String::from_utf8(meeting.get("second")?)?.parse()?, PATIENCE)?,
    };
    let group = ProcessGroup::open(&second, own, rank, world, PATIENCE)?;
    let gradient = Tensor::ones([values as i64], (Kind::Float, Device::Cpu));
    group.all_reduce(&[&gradient])?;
    let started = Instant::now();
    for _ in 0..ROUNDS {
        group.all_reduce(&[&gradient])?;
    }
    group.barrier()?;
    Ok(started.elapsed().as_secs_f64() * 1e3 / f64::from(ROUNDS))
}

#[derive(Default)]
struct Seen {
    loss: f64,
    best_speed: f64,
}

impl Observer for Seen {
    fn on_step(&mut self, step: &StepMetrics) {
        self.loss = step.loss;
        // The first step finds nothing in the caches.
        if step.step > 1 {
            self.best_speed = self.best_speed.max(step.tokens_per_second);
        }
    }
    fn should_stop(&mut self) -> bool {
        false
    }
}
