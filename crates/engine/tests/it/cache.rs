//! The paged cache: what is shared, what is given back, and that neither shows in an answer.

use std::time::Duration;

use tailor_engine::{Engine, EngineOptions, Event, Usage};

use crate::{TinyBase, job, prompt, read};

/// A prompt of several blocks.
fn long_prompt(n: u32) -> Vec<u32> {
    (0..50).map(|at| 10 + (n * 13 + at * 7) % 80).collect()
}

/// Waits until nothing runs and every block is given back.
async fn settled(engine: &Engine) -> Usage {
    for _ in 0..400 {
        let usage = engine.usage();
        if usage.running == 0 && usage.waiting == 0 && usage.kv_blocks_held == 0 {
            return usage;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still held: {:?}", engine.usage());
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_read_in_pieces_beside_answers_give_the_models_own_answers() {
    for tiny in TinyBase::all() {
        // 3 tokens a step: every long prompt is read in many pieces.
        let engine = tiny.engine(EngineOptions { max_step_tokens: 3, max_batch: 6, ..EngineOptions::default() }).await;
        let adapters: Vec<_> = (1..3).map(|seed| tiny.adapter(seed, 0.2)).collect();
        for (digest, adapter) in &adapters {
            engine.load(digest.clone(), adapter.clone()).await.expect("loads");
        }
        let mut streams = Vec::new();
        for n in 0..12u32 {
            let adapter = adapters.get(n as usize % 3);
            let prompt = if n % 2 == 0 { long_prompt(n) } else { prompt(n) };
            let wanted = tiny.greedy(&prompt, adapter.map(|(_, adapter)| adapter), 20);
            let stream = engine.generate(job(prompt, adapter.map(|(digest, _)| digest), 20)).await;
            streams.push((wanted, stream.expect("accepted")));
        }
        for (wanted, stream) in streams {
            assert_eq!(read(stream).await.expect("answers").0, wanted);
        }
        settled(&engine).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_common_beginning_is_computed_once_for_each_adapter_and_the_answers_stay_the_same() {
    for tiny in TinyBase::all() {
        let engine = tiny.engine(EngineOptions::default()).await;
        let (digest, adapter) = tiny.adapter(1, 0.3);
        engine.load(digest.clone(), adapter.clone()).await.expect("loads");
        let base_answer = tiny.greedy(&long_prompt(1), None, 8);
        let own_answer = tiny.greedy(&long_prompt(1), Some(&adapter), 8);
        assert_ne!(base_answer, own_answer, "so a shared block would show");
        let mut cached = Vec::new();
        for adapter in [None, Some(&digest), None, Some(&digest)] {
            let mut stream = engine.generate(job(long_prompt(1), adapter, 8)).await.expect("accepted");
            let mut tokens = Vec::new();
            while let Some(event) = stream.recv().await {
                match event.expect("an event") {
                    Event::Token { id, .. } => tokens.push(id),
                    Event::Begun { cached_tokens } => cached.push(cached_tokens),
                    Event::End { .. } => {}
                }
            }
            assert_eq!(tokens, if adapter.is_some() { own_answer.clone() } else { base_answer.clone() });
        }
        assert_eq!(cached[..2], [0, 0], "an adapter's digest is part of a block's name");
        // A decoder computes the last token at least; an encoder's whole input is there.
        let whole = if engine.info().family == tailor_domain::Family::Decoder { 48 } else { 50 };
        assert_eq!(cached[2..], [whole, whole]);
        let usage = settled(&engine).await;
        assert_eq!(usage.cached_tokens, 2 * u64::from(whole));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_prompts_that_come_together_are_read_once() {
    for tiny in TinyBase::all() {
        let engine = tiny.engine(EngineOptions { max_step_tokens: 8, ..EngineOptions::default() }).await;
        let wanted = tiny.greedy(&long_prompt(4), None, 6);
        let mut streams = Vec::new();
        for _ in 0..8 {
            streams.push(engine.generate(job(long_prompt(4), None, 6)).await.expect("accepted"));
        }
        for stream in streams {
            assert_eq!(read(stream).await.expect("answers").0, wanted);
        }
        let usage = settled(&engine).await;
        assert!(usage.prompt_tokens < 2 * 50, "{usage:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_too_small_for_all_makes_them_wait_and_not_fail() {
    let tiny = TinyBase::llama();
    // As small as it gets: one sequence of the greatest length.
    let engine = tiny.engine(EngineOptions { kv_bytes: 1, ..EngineOptions::default() }).await;
    let mut streams = Vec::new();
    for n in 0..12u32 {
        let wanted = tiny.greedy(&long_prompt(n), None, 60);
        streams.push((wanted, engine.generate(job(long_prompt(n), None, 60)).await.expect("accepted")));
    }
    for (wanted, stream) in streams {
        assert_eq!(read(stream).await.expect("answers").0, wanted);
    }
    assert_eq!(settled(&engine).await.kv_blocks, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_gives_its_blocks_back_within_a_step() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let beside = engine.generate(job(prompt(3), None, 100)).await.expect("accepted");
    let mut dropped = engine.generate(job(long_prompt(2), None, 70)).await.expect("accepted");
    dropped.recv().await.expect("an event").expect("a token");
    let before = engine.usage();
    drop(dropped);
    let steps = async {
        loop {
            let usage = engine.usage();
            if usage.running == 1 || usage.kv_blocks_held == 0 {
                return usage.steps;
            }
            tokio::task::yield_now().await;
        }
    };
    let freed = tokio::time::timeout(Duration::from_secs(20), steps).await.expect("in time");
    // The step that ran when it was dropped, and one more, at the speed at which this test can look.
    assert!(freed <= before.steps + 20, "freed at step {freed}, dropped at {}", before.steps);
    assert_eq!(read(beside).await.expect("answers").0, tiny.greedy(&prompt(3), None, 100));
    settled(&engine).await;
}
