//! Ten times what the device can do is asked of it: memory stays where it is, whoever is let in is answered as if alone, whoever
//! is not is told when to come again, and at the end nothing is left behind.

mod first_token;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tailor_pb::inference::{EngineUsage, GenerateRequest, ListResidentRequest};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::{Family, Up, eventually};

const BATCH: u64 = 4;
const QUEUE: u64 = 8;
/// Ten callers for each that can be worked on at a time, each of whom asks again at once.
const CALLERS: u64 = 10 * BATCH;
/// A multiple of three, so that a number's prompt says whether it goes to the adapter too.
const PROMPTS: u64 = 12;
const WARM_UP: Duration = Duration::from_secs(2);
const LOAD: Duration = Duration::from_secs(5);
/// Pages that come and go whatever is asked: what one longest sequence may take, many times over, and far less than a leak of
/// thousands of requests.
const SLACK_BYTES: u64 = 24 << 20;

fn request(number: u64) -> GenerateRequest {
    let adapter = if number.is_multiple_of(3) { "" } else { "one" };
    let base = if adapter.is_empty() { Family::Llama.base() } else { "" };
    GenerateRequest {
        base: base.into(),
        adapter: adapter.into(),
        input: format!("anna sees {} boats", number % PROMPTS),
        max_new_tokens: 40,
        logit_bias: [(1, -1000.0)].into(),
        ..Default::default()
    }
}

/// What came of all requests.
#[derive(Default)]
struct Counts {
    offered: AtomicU64,
    answered: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
}

/// One request as a stream, to its end or until `drop_after` pieces have come.
async fn ask(up: &Up, number: u64, drop_after: Option<usize>) -> Result<Option<String>, Status> {
    let mut stream = up.addresses.gateway().generate_stream(request(number)).await?.into_inner();
    let (mut text, mut pieces, mut end) = (String::new(), 0, None);
    while let Some(chunk) = stream.message().await? {
        text.push_str(&chunk.text);
        end = chunk.end.or(end);
        pieces += 1;
        if drop_after == Some(pieces) {
            return Ok(None);
        }
    }
    let end = end.expect("a stream that was accepted ends with its figures");
    assert_eq!((end.completion_tokens, end.finish_reason.as_str()), (40, "length"), "nothing is lost");
    Ok(Some(text))
}

async fn caller(up: &Up, first: u64, alone: &[String], counts: &Counts, until: Instant) {
    let mut number = first;
    while Instant::now() < until {
        number += 1;
        counts.offered.fetch_add(1, Ordering::Relaxed);
        // Every fifth goes away in mid-answer.
        let drop_after = number.is_multiple_of(5).then_some(3);
        match ask(up, number, drop_after).await {
            Ok(Some(text)) => {
                assert_eq!(text, alone[(number % PROMPTS) as usize], "request {number} is answered as if alone");
                counts.answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(None) => drop(counts.dropped.fetch_add(1, Ordering::Relaxed)),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
                let retry = retry.expect("when to come again");
                assert!(retry >= Duration::from_millis(100) && retry <= Duration::from_secs(60), "{retry:?}");
                counts.refused.fetch_add(1, Ordering::Relaxed);
                // An impatient caller, who does not wait for so long.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

async fn usage(up: &Up) -> EngineUsage {
    let resident = up.addresses.admin().list_resident(ListResidentRequest {}).await.expect("a list").into_inner();
    resident.bases[0].usage.expect("usage")
}

/// With so few places that they are soon taken.
async fn short_queue() -> Up {
    let (batch, queue) = (BATCH.to_string(), QUEUE.to_string());
    let settings = [("TAILOR__GATEWAY__MAX_BATCH", batch.as_str()), ("TAILOR__GATEWAY__MAX_QUEUE", &queue)];
    let up = Up::with(&settings).await;
    up.add_base_and_rows(Family::Llama).await;
    up
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_times_the_load_costs_no_memory_and_no_accepted_stream() {
    let up = Arc::new(short_queue().await);
    let job = ["train", "--base", Family::Llama.base(), "--dataset", "rows", "--adapter", "one", "--rank", "4"];
    up.cli().json(&[&job[..], &["--max-steps", "2", "--max-new-tokens", "2", "--max-validation-rows", "2"]].concat());
    let mut alone = Vec::new();
    for number in 0..PROMPTS {
        alone.push(ask(&up, number, None).await.expect("an answer").expect("whole"));
    }
    let alone = Arc::new(alone);

    let counts = Arc::new(Counts::default());
    let until = Instant::now() + WARM_UP + LOAD;
    let callers: Vec<_> = (0..CALLERS)
        .map(|number| {
            let (up, alone, counts) = (up.clone(), alone.clone(), counts.clone());
            tokio::spawn(async move { caller(&up, number * 1000, &alone, &counts, until).await })
        })
        .collect();
    tokio::time::sleep(WARM_UP).await;
    let (before, mut most) = (up.process.memory_bytes(), EngineUsage::default());
    while Instant::now() < until {
        let now = usage(&up).await;
        most.running = most.running.max(now.running);
        most.waiting = most.waiting.max(now.waiting);
        most.kv_blocks_held = most.kv_blocks_held.max(now.kv_blocks_held);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let after = up.process.memory_bytes();
    for caller in callers {
        caller.await.expect("no caller was let down");
    }
    let [offered, answered, dropped, refused] = [&counts.offered, &counts.answered, &counts.dropped, &counts.refused]
        .map(|count| count.load(Ordering::Relaxed));
    println!(
        "{offered} offered, {answered} answered, {dropped} dropped by their readers, {refused} refused; \
         {before} bytes of memory before, {after} after; at most {most:?}"
    );
    assert!(refused > answered && answered > 0 && dropped > 0, "it was far too much");
    assert_eq!(offered, answered + dropped + refused, "each was answered, refused, or given up by its reader");
    assert!(most.running <= BATCH && most.running > 0 && most.waiting <= QUEUE, "{most:?}");
    assert!(after < before + before / 20 + SLACK_BYTES, "memory grew from {before} to {after} bytes");
    eventually("everything is given back", async || {
        let now = usage(&up).await;
        ((now.running, now.waiting, now.waiting_tokens, now.kv_blocks_held) == (0, 0, 0, 0)).then_some(())
    })
    .await;
}
