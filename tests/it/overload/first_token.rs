//! Whoever is let in waits no longer for a first token than the queue is long, however many others ask.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tailor_pb::inference::GenerateRequest;
use tailor_pb::inference::inference_service_client::InferenceServiceClient;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::{BATCH, CALLERS, PROMPTS, QUEUE, short_queue};
use crate::support::answers;
use crate::support::base::only_characters;
use crate::support::{Family, Up, eventually};

const TOKENS: u32 = 40;
/// Impatient, and yet no more than a fraction of the processor's time goes into refusing.
const PAUSE: Duration = Duration::from_millis(20);
/// A machine that stands still for a moment is no fault of the queue: one quiet window of so many is enough. A queue without an end
/// is too long in each.
const WINDOWS: usize = 4;

/// What a caller who was let in has waited for.
#[derive(Debug, Clone, Copy)]
struct Waited {
    /// From its request to its first text.
    first: Duration,
    /// From there to its end.
    rest: Duration,
}

/// Callers each of whom asks again at once, or after a pause where it is refused.
struct Load {
    stop: Arc<AtomicBool>,
    waited: Arc<Mutex<Vec<Waited>>>,
    refused: Arc<AtomicU64>,
    callers: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(up: &Up, callers: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let waited = Arc::new(Mutex::new(Vec::new()));
        let refused = Arc::new(AtomicU64::new(0));
        let call = |number: u64| {
            let (stop, waited, refused) = (stop.clone(), waited.clone(), refused.clone());
            let mut gateway = up.addresses.gateway();
            tokio::spawn(async move {
                for number in number.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    match hear(&mut gateway, number).await {
                        Ok(answer) => waited.lock().expect("no caller panics with it").push(answer),
                        Err(status) => {
                            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                            refused.fetch_add(1, Ordering::Relaxed);
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                }
            })
        };
        let callers = (0..callers).map(call).collect();
        Self { stop, waited, refused, callers }
    }

    /// What the next `count` answers, or a few more, have waited for.
    async fn next(&self, count: u64) -> Vec<Waited> {
        eventually("answers", async || {
            let mut waited = self.waited.lock().expect("no caller panics with it");
            (waited.len() as u64 >= count).then(|| std::mem::take(&mut *waited))
        })
        .await
    }

    /// Ends it; how many were refused.
    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.await.expect("no caller was let down");
        }
        self.refused.load(Ordering::Relaxed)
    }
}

async fn hear(gateway: &mut InferenceServiceClient<Channel>, number: u64) -> Result<Waited, Status> {
    let request = GenerateRequest {
        // Text from the first token on, which is when a caller has it.
        logit_bias: only_characters().collect(),
        ..answers::request(Family::Llama, "", (number % PROMPTS) as usize, TOKENS)
    };
    let asked = Instant::now();
    let mut stream = gateway.generate_stream(request).await?.into_inner();
    let (mut first, mut end) = (None, None);
    while let Some(chunk) = stream.message().await? {
        if first.is_none() && !chunk.text.is_empty() {
            first = Some(Instant::now());
        }
        end = chunk.end.or(end);
    }
    let (first, end) = (first.expect("it says something"), end.expect("a stream ends with its figures"));
    assert_eq!(end.completion_tokens, TOKENS);
    Ok(Waited { first: first - asked, rest: first.elapsed() })
}

/// The median, and what one in twenty exceeds.
fn p50_and_p95(waited: &[Waited], of: impl Fn(&Waited) -> Duration) -> (Duration, Duration) {
    let mut sorted: Vec<_> = waited.iter().map(of).collect();
    sorted.sort_unstable();
    let at = |percent: usize| sorted[(sorted.len() - 1) * percent / 100];
    (at(50), at(95))
}

/// A place in the queue is behind QUEUE - 1 others, and BATCH answers are made side by side: the whole queue has begun after the
/// time of QUEUE / BATCH answers. Without an end to the queue all callers but BATCH would wait in it, for (CALLERS - BATCH) / BATCH
/// answers, three times the bound.
#[tokio::test(flavor = "multi_thread")]
async fn at_ten_times_the_load_a_first_token_comes_within_the_time_of_the_queue() {
    let up = short_queue().await;
    let load = Load::start(&up, BATCH);
    // The first ones connect, and start the base.
    load.next(BATCH).await;
    let (alone_p50, alone_p95) = p50_and_p95(&load.next(10 * BATCH).await, |waited| waited.first);
    assert_eq!(load.end().await, 0, "as many as can be worked on: nobody is refused");
    println!("{BATCH} callers: first token {alone_p50:?}, p95 {alone_p95:?}");

    let load = Load::start(&up, CALLERS);
    // A turn of everybody, so that any queue is as long as it comes to be.
    load.next(CALLERS).await;
    let mut seen = Vec::new();
    let kept = loop {
        let window = load.next(2 * CALLERS).await;
        let (first_p50, first_p95) = p50_and_p95(&window, |waited| waited.first);
        let (rest_p50, rest_p95) = p50_and_p95(&window, |waited| waited.rest);
        // Of the same moments: whatever slows the machine down slows both. One answer's time more is for unequal turns.
        let bound = alone_p95 + rest_p95 * (QUEUE / BATCH + 1) as u32;
        seen.push(format!(
            "{CALLERS} callers: first token {first_p50:?}, p95 {first_p95:?}, bound {bound:?}; the rest {rest_p50:?}, p95 {rest_p95:?}"
        ));
        assert!(first_p50 > alone_p50, "there was a queue: {seen:#?}");
        let is_kept = first_p95 <= bound;
        if is_kept || seen.len() == WINDOWS {
            break is_kept;
        }
    };
    let refused = load.end().await;
    println!("{seen:#?}, {refused} refused");
    assert!(kept, "first tokens are late: {seen:#?}");
    assert!(refused > CALLERS, "it was far too much: {refused}");
}
