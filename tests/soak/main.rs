//! `cargo xtask soak`: hours of load on the whole system, and `--overload`: ten times what it can do, in turn with once.
//!
//! Four adapters and the base alone on a shipped base, in `tailor up` as people run it. First the capacity is measured (as many
//! callers as a step holds, each asking again at once), then 80 % of it is asked for at even times, whatever comes back; every
//! seventh reader goes away in mid-answer. Each answer is compared with what the same prompt got alone. The verdict: nothing lost
//! or garbled, nothing failed, memory where it was.

mod figures;
mod load;
mod system;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use figures::Figures;
use load::{Load, PROMPTS};
use system::System;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Share of the capacity that is asked for.
const SHARE: f64 = 0.8;
const MEASURING: Duration = Duration::from_secs(15);
/// Of each phase of `--overload`.
const PHASE: Duration = Duration::from_secs(20);
/// What memory may differ by at the end: allocators keep some of what comes and goes.
const GROWTH: f64 = 0.05;
const SLACK_BYTES: f64 = 32e6;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Into::into);
    match outcome.and_then(|runtime| runtime.block_on(run(&arguments))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &[String]) -> Outcome<bool> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["--overload"] => overload().await,
        ["--minutes", minutes] => soak(minutes.parse().map_err(|_| format!("--minutes {minutes} is no number"))?).await,
        [] => soak(30.0).await,
        other => Err(format!("{other:?} is not understood; write --minutes N, or --overload").into()),
    }
}

async fn soak(minutes: f64) -> Outcome<bool> {
    let system = System::start(&[])?;
    let load = Arc::new(Load::on(&system).await?);
    let capacity = closed(&load, system::MAX_BATCH, MEASURING).await.rate();
    let rate = capacity * SHARE;
    println!("capacity {capacity:.1} requests a second; asking for {rate:.1} for {minutes} minutes\n");
    println!(
        "| minute | memory, MB | answered/s | refused | dropped | failed | first token p50, p99, ms | whole p50, ms |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let (mut memory, mut all) = (Vec::new(), Figures::default());
    let until = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    while Instant::now() < until {
        let time = Duration::from_secs(60).min(until.saturating_duration_since(Instant::now()));
        let figures = open(&load, rate, time).await;
        memory.push(system.memory_bytes()? as f64);
        println!(
            "| {} | {:.0} | {:.1} | {} | {} | {} | {:.0}, {:.0} | {:.0} |",
            memory.len(),
            memory[memory.len() - 1] / 1e6,
            figures.rate(),
            figures.refused,
            figures.dropped,
            figures.failed.len(),
            figures.first(0.5),
            figures.first(0.99),
            figures.whole(0.5),
        );
        all.add(figures);
    }
    Ok(verdict(&memory, &all, &load.left(&system).await?))
}

/// Whether all is well; says so, with the reasons.
fn verdict(memory: &[f64], all: &Figures, left: &str) -> bool {
    // The first minute fills caches and pools.
    let (early, late) =
        (memory.get(usize::from(memory.len() > 2)).copied().unwrap_or(0.0), memory.last().copied().unwrap_or(0.0));
    let grown = late > early * (1.0 + GROWTH) + SLACK_BYTES;
    let mut problems = Vec::new();
    if grown {
        problems.push(format!("memory grew from {:.0} to {:.0} MB", early / 1e6, late / 1e6));
    }
    if let Some(first) = all.failed.first() {
        problems.push(format!("{} requests failed, the first with: {first}", all.failed.len()));
    }
    if all.answered == 0 {
        problems.push("nothing was answered".into());
    }
    if !left.is_empty() {
        problems.push(left.to_owned());
    }
    let what = format!("{} answered, {} refused, {} dropped by their readers", all.answered, all.refused, all.dropped);
    match problems.as_slice() {
        [] => println!(
            "\nsound: {what}; memory {:.0} MB after the first minute, {:.0} MB at the end",
            early / 1e6,
            late / 1e6
        ),
        problems => println!("\nNOT sound: {what}; {}", problems.join("; ")),
    }
    problems.is_empty()
}

/// Once and ten times what can be worked on, in turn, on a system with a short queue.
async fn overload() -> Outcome<bool> {
    let system = System::start(&[("TAILOR__GATEWAY__MAX_QUEUE", "16")])?;
    let load = Arc::new(Load::on(&system).await?);
    closed(&load, system::MAX_BATCH, Duration::from_secs(5)).await;
    println!("| callers | asked/s | answered/s | refused/s | first token p50, p95, ms | whole p50, ms | memory, MB |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let (mut memory, mut all, mut firsts) = (Vec::new(), Figures::default(), [Vec::new(), Vec::new()]);
    for _ in 0..2 {
        for (at, times) in [1, 10].into_iter().enumerate() {
            let callers = times * system::MAX_BATCH;
            let figures = closed(&load, callers, PHASE).await;
            memory.push(system.memory_bytes()? as f64);
            let seconds = figures.time.as_secs_f64();
            println!(
                "| {callers} | {:.0} | {:.1} | {:.0} | {:.0}, {:.0} | {:.0} | {:.0} |",
                figures.asked() as f64 / seconds,
                figures.rate(),
                figures.refused as f64 / seconds,
                figures.first(0.5),
                figures.first(0.95),
                figures.whole(0.5),
                memory[memory.len() - 1] / 1e6,
            );
            firsts[at].push(figures.first(0.95));
            all.add(figures);
        }
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let ratio = mean(&firsts[1]) / mean(&firsts[0]).max(1e-9);
    println!("\nfirst token of those let in, p95: {ratio:.2} times as long at ten times the load");
    Ok(verdict(&memory, &all, &load.left(&system).await?))
}

/// So many callers, each asking again as soon as it is answered, or told to come later.
async fn closed(load: &Arc<Load>, callers: usize, time: Duration) -> Figures {
    let until = Instant::now() + time;
    let tasks = (0..callers).map(|caller| {
        let load = load.clone();
        tokio::spawn(async move {
            let mut figures = Figures::default();
            let mut number = caller * PROMPTS * 7;
            while Instant::now() < until {
                number += 1;
                let outcome = load.ask(number).await;
                if outcome.is_refusal() {
                    // Impatient: it does not wait for as long as it is told.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                figures.take(outcome);
            }
            figures
        })
    });
    gather(tasks.collect(), time).await
}

/// So many requests a second at even times, whatever becomes of them.
async fn open(load: &Arc<Load>, rate: f64, time: Duration) -> Figures {
    let (begun, mut tasks) = (tokio::time::Instant::now(), Vec::new());
    let count = (rate * time.as_secs_f64()) as usize;
    for number in 0..count {
        tokio::time::sleep_until(begun + Duration::from_secs_f64(number as f64 / rate)).await;
        let load = load.clone();
        tasks.push(tokio::spawn(async move {
            let mut figures = Figures::default();
            figures.take(load.ask(number).await);
            figures
        }));
    }
    gather(tasks, time).await
}

async fn gather(tasks: Vec<tokio::task::JoinHandle<Figures>>, time: Duration) -> Figures {
    let mut all = Figures::default();
    all.time = time;
    for task in tasks {
        match task.await {
            Ok(figures) => all.add(figures),
            Err(panic) => all.failed.push(panic.to_string()),
        }
    }
    all
}
