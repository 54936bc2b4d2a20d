//! Which adapters are in memory.

use std::time::Duration;

use tailor_domain::{Digest, ErrorCode};
use tailor_engine::{EngineOptions, Error, ScoreJob};

use crate::{TinyBase, job, prompt, read};

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_adapter_is_an_error_and_never_the_bases_answer() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let unknown = Digest::of(b"nobody loaded this");
    let error = engine.generate(job(prompt(1), Some(&unknown), 4)).await.expect_err("unknown");
    assert_eq!(error.code(), ErrorCode::NotFound);
    assert!(error.to_string().contains(unknown.as_str()), "{error}");
    let score = ScoreJob::new(prompt(1), prompt(2), Some(unknown.clone()));
    assert_eq!(engine.score(score).await.expect_err("unknown").code(), ErrorCode::NotFound);
    assert_eq!(engine.unload(&unknown).await.expect_err("unknown").code(), ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn loading_is_idempotent_and_what_is_resident_is_shown() {
    let tiny = TinyBase::t5();
    let engine = tiny.engine(EngineOptions::default()).await;
    let (digest, adapter) = tiny.adapter(1, 0.1);
    let first = engine.load(digest.clone(), adapter.clone()).await.expect("loads");
    assert_eq!(engine.load(digest.clone(), adapter.clone()).await.expect("again"), first);
    assert_eq!(engine.resident(), std::slice::from_ref(&first));
    assert_eq!((first.size_bytes, first.rank as usize), (adapter.size_bytes(), adapter.max_rank()));
    engine.unload(&digest).await.expect("unloads");
    assert!(engine.resident().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_adapter_that_many_ask_for_at_once_is_there_once_and_who_goes_away_harms_nobody() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let (digest, adapter) = tiny.adapter(1, 0.1);
    let loads = (0..20).map(|_| {
        let (engine, digest, adapter) = (engine.clone(), digest.clone(), adapter.clone());
        tokio::spawn(async move { engine.load(digest, adapter).await })
    });
    let loads: Vec<_> = loads.collect();
    loads[0].abort();
    loads[7].abort();
    let mut loaded = Vec::new();
    for load in loads {
        if let Ok(answer) = load.await {
            loaded.push(answer.expect("loads"));
        }
    }
    assert!(loaded.len() >= 18 && loaded.iter().all(|one| *one == loaded[0]), "{loaded:?}");
    assert_eq!(engine.resident(), std::slice::from_ref(&loaded[0]));
    engine.unload(&digest).await.expect("unloads");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_with_magnitudes_and_its_own_head_answers_beside_others_as_alone() {
    for tiny in TinyBase::all() {
        let engine = tiny.engine(EngineOptions::default()).await;
        let (plain_digest, plain) = tiny.adapter(3, 0.2);
        let (digest, own) = tiny.dora_with_head(4);
        engine.load(plain_digest.clone(), plain.clone()).await.expect("loads");
        let resident = engine.load(digest.clone(), own.clone()).await.expect("loads");
        assert!(resident.size_bytes > own.size_bytes(), "the lengths of the rows are counted too");
        let wanted = [tiny.greedy(&prompt(5), Some(&own), 8), tiny.greedy(&prompt(5), Some(&plain), 8)];
        assert_ne!(wanted[0], tiny.greedy(&prompt(5), None, 8));
        let mut streams = Vec::new();
        for adapter in [Some(&digest), Some(&plain_digest), None, Some(&digest)] {
            streams.push(engine.generate(job(prompt(5), adapter, 8)).await.expect("accepted"));
        }
        let mut answers = Vec::new();
        for stream in streams {
            answers.push(read(stream).await.expect("answers").0);
        }
        assert_eq!([&answers[0], &answers[1], &answers[3]], [&wanted[0], &wanted[1], &wanted[0]]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_of_another_base_is_refused_with_the_reason() {
    let [llama, t5] = TinyBase::all();
    let engine = t5.engine(EngineOptions::default()).await;
    let (digest, adapter) = llama.adapter(1, 0.1);
    let error = engine.load(digest.clone(), adapter).await.expect_err("another base");
    assert_eq!(error.code(), ErrorCode::FailedPrecondition);
    assert!(error.to_string().contains("not in the base: model.layers.0."), "{error}");
    let idle = engine.load(digest, t5.adapter(1, 0.0).1).await.expect_err("B is zero");
    assert!(idle.to_string().contains("changes nothing"), "{idle}");
    assert!(engine.resident().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn unloading_lets_the_sequences_that_use_it_finish_first() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let (digest, adapter) = tiny.adapter(2, 0.2);
    engine.load(digest.clone(), adapter.clone()).await.expect("loads");
    let wanted = tiny.greedy(&prompt(2), Some(&adapter), 100);
    let stream = engine.generate(job(prompt(2), Some(&digest), 100)).await.expect("accepted");
    let (unloading, answer) = tokio::join!(engine.unload(&digest), read(stream));
    unloading.expect("unloads");
    assert_eq!(answer.expect("answers").0, wanted, "it went on with the adapter it began with");
    let error = engine.generate(job(prompt(2), Some(&digest), 4)).await.expect_err("gone");
    assert!(matches!(error, Error::UnknownAdapter { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_stream_frees_its_adapter_within_a_step() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions { max_batch: 1, ..EngineOptions::default() }).await;
    let (digest, adapter) = tiny.adapter(2, 0.2);
    engine.load(digest.clone(), adapter).await.expect("loads");
    for _ in 0..20 {
        drop(engine.generate(job(prompt(2), Some(&digest), 100)).await.expect("accepted"));
    }
    // The only place is free again, and nothing holds the adapter.
    let next = engine.generate(job(prompt(3), None, 3)).await.expect("accepted");
    let soon = Duration::from_secs(20);
    tokio::time::timeout(soon, read(next)).await.expect("in time").expect("answers");
    tokio::time::timeout(soon, engine.unload(&digest)).await.expect("in time").expect("unloads");
}
