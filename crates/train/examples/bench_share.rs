//! Several jobs on one resident base in one process, in turns, against the same jobs one after the other in processes of their
//! own: tokens a second of all together, the highest resident memory, and whether the adapters are the same bytes.
//!
//! Dropout is on and each job has its own rank, seed and rows. Loss and gradient norm of the first job's last step stand beside
//! the figures.
//!
//! `cargo xtask bench share [-- --jobs 1,4,8] [--tokens 256] [--steps 4] [--small]`

#[path = "support/arm.rs"]
#[allow(dead_code, reason = "of what the benchmarks share, quantising alone is used here")]
mod arm;
mod support;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use tailor_domain::{EvaluateSpec, LoraSpec, Recipe, StepMetrics, TrainSpec};
use tailor_models::{Base, Compute, LoadOptions};
use tailor_testkit::{LlamaShape, TempDir};
use tailor_torch::{Memory, Surroundings};
use tailor_train::{Example, Observer, Ranks, Session, Trained};

use arm::quantise;
use support::{MIB, figures_of_child, hardware};

/// The word that makes this program train, and print what it saw.
const CHILD: &str = "--train";
/// Rows in a batch.
const BATCH: usize = 2;
/// Ranks of the jobs, from the first on again when there are more.
const RANKS: [u32; 4] = [16, 8, 32, 4];

#[derive(Debug, Clone)]
struct Work {
    tokens: usize,
    steps: usize,
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let Some((word, rest)) = words.split_first()
        && word == CHILD
    {
        return child(rest);
    }
    let (mut jobs, mut work, mut small) = (vec![1, 4, 8], Work { tokens: 256, steps: 4 }, false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--jobs" => jobs = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--tokens" => work.tokens = value()?.parse()?,
            "--steps" => work.steps = value()?.parse()?,
            "--small" => small = true,
            other => bail!("unknown setting {other}"),
        }
    }
    compare(&jobs, &work, small)
}

fn compare(jobs: &[usize], work: &Work, small: bool) -> Result<()> {
    println!("{}\n", hardware());
    let scratch = TempDir::new();
    let (dense, nf4) = (scratch.join("dense"), scratch.join("nf4"));
    std::fs::create_dir(&dense)?;
    let large = LlamaShape {
        hidden: 1024,
        layers: 12,
        feed_forward: 2816,
        heads: 16,
        kv_heads: 16,
        vocab: 32000,
        context: 2048,
        tied: false,
        bf16: true,
        shard_bytes: None,
    };
    let shape = if small { LlamaShape { hidden: 256, layers: 4, feed_forward: 704, ..large } } else { large };
    shape.write(&dense, 1)?;
    quantise(&dense, &nf4)?;
    println!(
        "NF4, bf16, {} layers of {}, {BATCH} × {} tokens, {} steps a job, ranks {RANKS:?}\n",
        shape.layers, shape.hidden, work.tokens, work.steps
    );
    println!(
        "| jobs | together, tokens/s | together, peak MiB | apart, tokens/s | apart, peak MiB each | apart, all at once MiB \
         | speed, ratio | memory, ratio | loss | gradient norm | same bytes |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for count in jobs {
        let numbers: Vec<usize> = (0..*count).collect();
        let together = run(&nf4, &numbers, work)?;
        let apart = numbers.iter().map(|number| run(&nf4, &[*number], work)).collect::<Result<Vec<_>>>()?;
        row(&together, &apart)?;
    }
    Ok(())
}

type Figures = BTreeMap<String, f64>;

fn run(nf4: &Path, jobs: &[usize], work: &Work) -> Result<Figures> {
    let jobs: Vec<String> = jobs.iter().map(ToString::to_string).collect();
    let words = [jobs.join(","), work.tokens.to_string(), work.steps.to_string()];
    let words = words.into_iter().map(OsString::from);
    figures_of_child([OsString::from(CHILD), nf4.as_os_str().to_owned()].into_iter().chain(words))
}

fn row(together: &Figures, apart: &[Figures]) -> Result<()> {
    let sum = |name: &str| apart.iter().map(|one| one[name]).sum::<f64>();
    let same = apart.iter().enumerate().all(|(job, one)| {
        let name = format!("adapter_{job}");
        one.get(&name) == together.get(&name)
    });
    let speed = |tokens: f64, seconds: f64| tokens / seconds;
    let (ours, theirs) = (speed(together["tokens"], together["seconds"]), speed(sum("tokens"), sum("seconds")));
    let most = apart.iter().map(|one| one["peak"]).fold(0.0, f64::max);
    println!(
        "| {} | {ours:.1} | {:.0} | {theirs:.1} | {:.0} | {:.0} | {:.2} | {:.2} | {:.4} | {:.4} | {} |",
        apart.len(),
        together["peak"] / MIB,
        most / MIB,
        sum("peak") / MIB,
        ours / theirs,
        together["peak"] / sum("peak"),
        together["loss"],
        together["grad_norm"],
        if same { "yes" } else { "NO" },
    );
    ensure!(same, "an adapter is not the same when its base is shared");
    Ok(())
}

/// Figures of the last step.
#[derive(Default)]
struct Seen {
    loss: f64,
    grad_norm: f64,
    tokens: u64,
}

impl Observer for Seen {
    fn on_step(&mut self, step: &StepMetrics) {
        (self.loss, self.grad_norm) = (step.loss, step.grad_norm);
        self.tokens += step.tokens;
    }
    fn should_stop(&mut self) -> bool {
        false
    }
}

struct Job {
    number: usize,
    seen: Seen,
    surroundings: Surroundings,
    session: Option<Session<'static, Rc<Base>>>,
    trained: Option<Trained>,
}

fn recipe(job: usize, work: &Work) -> Recipe {
    let train = TrainSpec {
        batch_rows: BATCH as u32,
        micro_batch_rows: BATCH as u32,
        max_tokens: work.tokens.max(8) as u32,
        max_steps: work.steps as u64,
        epochs: work.steps as f64,
        seed: job as u64,
        ..TrainSpec::default()
    };
    let lora = LoraSpec { rank: RANKS[job % RANKS.len()], dropout: 0.05, ..LoraSpec::default() };
    let evaluate = EvaluateSpec { tuning_fraction: 0.0, ..EvaluateSpec::default() };
    Recipe { lora, train, evaluate, ..Recipe::default() }
}

fn rows(job: usize, tokens: usize, vocab: u32) -> Vec<Example> {
    let id = |row: usize, at: usize| ((job * 31 + row * 7919 + at * 104_729) % vocab as usize) as u32;
    let row =
        |row: usize| Example::Decoder { ids: (0..tokens).map(|at| id(row, at)).collect(), in_loss: vec![true; tokens] };
    (0..4 * BATCH).map(row).collect()
}

fn child(words: &[String]) -> Result<()> {
    let [folder, jobs, tokens, steps] = words else { bail!("{} words; there are 4", words.len()) };
    let folder = PathBuf::from(folder);
    let jobs = jobs.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let work = Work { tokens: tokens.parse()?, steps: steps.parse()? };
    let base = Base::load(&folder, &LoadOptions { compute: Compute::Bf16, ..LoadOptions::default() })?;
    let base = Rc::new(base);
    let mut all = Vec::new();
    for number in jobs {
        // As long as the process: what a benchmark's child holds needs no end.
        let rows: &'static [Example] = rows(number, work.tokens, base.config().vocab_size() as u32).leak();
        let (mut surroundings, mut seen) = (Surroundings::default(), Seen::default());
        let recipe = recipe(number, &work);
        let session = surroundings
            .within(|| Session::begin(Rc::clone(&base), &recipe, rows, "random", None, &Ranks::alone(), &mut seen))??;
        all.push(Job { number, seen, surroundings, session: Some(session), trained: None });
    }
    let started = Instant::now();
    while all.iter().any(|job| job.session.is_some()) {
        for job in &mut all {
            let Some(session) = &mut job.session else { continue };
            let seen = &mut job.seen;
            if let Some(trained) = job.surroundings.within(|| session.turn(seen))?? {
                (job.trained, job.session) = (Some(trained), None);
            }
        }
    }
    println!("seconds {}", started.elapsed().as_secs_f64());
    println!("peak {}", Memory::now()?.peak_bytes);
    println!("tokens {}", all.iter().map(|job| job.seen.tokens).sum::<u64>());
    let first = all.first().context("a job")?;
    println!("loss {}\ngrad_norm {}", first.seen.loss, first.seen.grad_norm);
    for job in &all {
        let trained = job.trained.as_ref().context("every job has ended")?;
        let digest: [u8; 32] = Sha256::digest(trained.adapter.weights_to_bytes()?).into();
        // As much of it as a figure holds to the bit.
        let bits = digest.iter().take(6).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
        println!("adapter_{} {bits}", job.number);
    }
    Ok(())
}
