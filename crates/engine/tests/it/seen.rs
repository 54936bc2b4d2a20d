//! What is seen of the engine from outside, step by step: a constraint that waits for leave holds the device where a test wants.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tailor_engine::{Constraint, Engine, EngineOptions, GenerateJob, Sampling, Usage};

use crate::{TinyBase, job, prompt, read};

/// Holds each step up until it is given leave; whoever drops the giver lets all go on.
#[derive(Debug)]
struct OnLeave(Receiver<()>);

impl Constraint for OnLeave {
    fn mask(&mut self, _: &mut [f32]) -> Result<(), String> {
        let _ = self.0.recv();
        Ok(())
    }

    fn accept(&mut self, _: u32) -> Result<bool, String> {
        Ok(true)
    }
}

/// `job` that goes on for as long as it may, whatever the model says.
fn endless(number: u32, tokens: u32) -> GenerateJob {
    let sampling = Sampling { logit_bias: (1..3).map(|id| (id, -1e3)).collect(), ..Sampling::GREEDY };
    GenerateJob { sampling, ..job(prompt(number), None, tokens) }
}

fn held_up(number: u32, tokens: u32) -> (GenerateJob, Sender<()>) {
    let (leave, waits) = channel();
    (GenerateJob { constraint: Some(Box::new(OnLeave(waits))), ..endless(number, tokens) }, leave)
}

async fn until(engine: &Engine, what: &str, holds: impl Fn(&Usage) -> bool) -> Usage {
    let give_up_at = Instant::now() + Duration::from_secs(20);
    loop {
        let usage = engine.usage();
        if holds(&usage) {
            return usage;
        }
        assert!(Instant::now() < give_up_at, "{what}: {usage:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_gives_its_blocks_back_within_one_step() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let (slow, leave) = held_up(1, 60);
    let slow = engine.generate(slow).await.expect("accepted");
    let step = || leave.send(()).expect("the engine waits");
    let mut steps = 0;
    let mut accepted = Box::pin(engine.generate(endless(2, 60)));
    let dropped = loop {
        // Requests are taken in between two steps.
        tokio::select! {
            accepted = &mut accepted => break accepted.expect("accepted"),
            () = tokio::time::sleep(Duration::from_millis(5)) => step(),
        }
        steps += 1;
    };
    step();
    steps += 1;
    until(&engine, "both have been in a step", |usage| usage.steps == steps && usage.running == 2).await;

    // Now the next one waits for leave, with both in it.
    drop(dropped);
    step();
    let under_way = until(&engine, "the step under way ends", |usage| usage.steps == steps + 1).await;
    step();
    let next = until(&engine, "one step more", |usage| usage.steps == steps + 2).await;
    assert_eq!((under_way.running, next.running), (2, 1));
    // The token that a step makes is computed by the one after it.
    let computed = prompt(1).len() + steps as usize + 1;
    assert_eq!(next.kv_blocks_held, computed.div_ceil(16), "only the other's are held: {next:?}");
    drop(leave);
    read(slow).await.expect("whoever stayed is answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_adapters_come_at_once_answers_go_on_between_them() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let (slow, leave) = held_up(1, 60);
    let slow = engine.generate(slow).await.expect("accepted");
    let adapters: Vec<_> = (0..12).map(|seed| tiny.adapter(seed, 0.1)).collect();
    let loads = adapters.into_iter().map(|(digest, adapter)| {
        let engine = engine.clone();
        tokio::spawn(async move { engine.load(digest, adapter).await })
    });
    let loads: Vec<_> = loads.collect();
    // They all have come before the step that is under way ends.
    tokio::time::sleep(Duration::from_millis(100)).await;
    for steps in 1..=6 {
        leave.send(()).expect("the engine waits");
        until(&engine, "the step ends", |usage| usage.steps == steps).await;
        let resident = engine.resident().len() as u64;
        assert!(resident <= steps, "{resident} adapters were loaded between {steps} steps");
    }
    drop(leave);
    read(slow).await.expect("whoever was there is answered");
    for load in loads {
        load.await.expect("no panic").expect("loads");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_is_checked_while_the_device_is_in_the_middle_of_a_step() {
    let [llama, t5] = TinyBase::all();
    let engine = llama.engine(EngineOptions::default()).await;
    let (slow, leave) = held_up(1, 4);
    let slow = engine.generate(slow).await.expect("accepted");
    let (digest, adapter) = t5.adapter(1, 0.1);
    let soon = Duration::from_secs(20);
    let refused = tokio::time::timeout(soon, engine.load(digest, adapter)).await.expect("nobody gave the step leave");
    assert!(refused.expect_err("another base").to_string().contains("not in the base"));
    drop(leave);
    read(slow).await.expect("whoever was there is answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_with_the_work_and_not_with_its_reader() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let lease = Arc::new(());
    let job = GenerateJob { lease: Some(Arc::clone(&lease)), ..endless(1, 40) };
    let (held, leave) = held_up(2, 4);
    let held = engine.generate(held).await.expect("accepted");
    let accepted = tokio::spawn({
        let engine = engine.clone();
        async move { engine.generate(job).await }
    });
    assert_eq!(Arc::strong_count(&lease), 2, "it is held from the request on");
    drop(leave);
    let unread = accepted.await.expect("no panic").expect("accepted");
    until(&engine, "all is said", |usage| usage.running == 0 && usage.waiting == 0 && usage.made_tokens == 44).await;
    assert_eq!(Arc::strong_count(&lease), 1, "nothing is held by an answer that lies unread");
    assert_eq!(read(unread).await.expect("it is all there").0.len(), 40);
    read(held).await.expect("answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_without_an_end_shows_and_an_idle_engine_does_not() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert_eq!(engine.usage().without_progress, Duration::ZERO, "it has nothing to do");
    let (stuck, leave) = held_up(1, 4);
    let stream = engine.generate(stuck).await.expect("accepted");
    let long = Duration::from_millis(80);
    let hung = until(&engine, "the step hangs", |usage| usage.without_progress > long).await;
    assert_eq!(hung.steps, 0, "{hung:?}");
    assert!(!engine.has_ended());
    drop(leave);
    read(stream).await.expect("it goes on");
    until(&engine, "idle again", |usage| usage.without_progress == Duration::ZERO).await;
}
