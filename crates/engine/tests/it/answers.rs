//! What is generated.

use tailor_engine::{EndReason, EngineOptions, GenerateJob, Sampling};

use crate::{TinyBase, job, prompt, read};

#[tokio::test(flavor = "multi_thread")]
async fn greedy_equals_the_models_own_whatever_else_is_in_the_batch() {
    for tiny in TinyBase::all() {
        // Fewer places than sequences, so that they join and leave at different times.
        let engine = tiny.engine(EngineOptions { max_batch: 5, ..EngineOptions::default() }).await;
        let adapters: Vec<_> = (1..4).map(|seed| tiny.adapter(seed, 0.2)).collect();
        for (digest, adapter) in &adapters {
            engine.load(digest.clone(), adapter.clone()).await.expect("loads");
        }
        let mut streams = Vec::new();
        for n in 0..24u32 {
            // Each adapter in turn, and the base alone.
            let adapter = adapters.get(n as usize % 4);
            let max_new = 1 + n * 5 % 23;
            let wanted = tiny.greedy(&prompt(n), adapter.map(|(_, adapter)| adapter), max_new as usize);
            let stream = engine.generate(job(prompt(n), adapter.map(|(digest, _)| digest), max_new)).await;
            streams.push((n, wanted, max_new, stream.expect("accepted")));
        }
        let mut different = std::collections::BTreeSet::new();
        for (n, wanted, max_new, stream) in streams {
            let (tokens, reason) = read(stream).await.expect("answers");
            assert_eq!(tokens, wanted, "sequence {n}");
            let full = tokens.len() == max_new as usize;
            assert_eq!(reason, if full { EndReason::Length } else { EndReason::Stop }, "sequence {n}");
            different.insert(tokens);
        }
        assert!(different.len() > 12, "answers differ, so the test can fail");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_changes_the_answer_and_the_base_beside_it_stays_as_it_was() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let (digest, adapter) = tiny.adapter(1, 0.3);
    engine.load(digest.clone(), adapter.clone()).await.expect("loads");
    let with = engine.generate(job(prompt(3), Some(&digest), 12)).await.expect("accepted");
    let without = engine.generate(job(prompt(3), None, 12)).await.expect("accepted");
    let (with, _) = read(with).await.expect("answers");
    let (without, _) = read(without).await.expect("answers");
    assert_eq!(without, tiny.greedy(&prompt(3), None, 12));
    assert_eq!(with, tiny.greedy(&prompt(3), Some(&adapter), 12));
    assert_ne!(with, without);
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_of_virtual_tokens_answer_beside_others_as_alone() {
    for tiny in TinyBase::all() {
        // 3 tokens a step: the virtual ones are read in pieces too.
        let engine = tiny.engine(EngineOptions { max_step_tokens: 3, ..EngineOptions::default() }).await;
        let adapters = [tiny.virtual_tokens(1, 5), tiny.adapter(2, 0.2), tiny.virtual_tokens(3, 20)];
        for (digest, adapter) in &adapters {
            engine.load(digest.clone(), adapter.clone()).await.expect("loads");
        }
        for _ in 0..2 {
            let mut streams = Vec::new();
            for n in 0..8u32 {
                let adapter = adapters.get(n as usize % 4);
                let wanted = tiny.greedy(&prompt(n), adapter.map(|(_, adapter)| adapter), 16);
                let stream = engine.generate(job(prompt(n), adapter.map(|(digest, _)| digest), 16)).await;
                streams.push((wanted, stream.expect("accepted")));
            }
            for (wanted, stream) in streams {
                assert_eq!(read(stream).await.expect("answers").0, wanted);
            }
        }
        assert_ne!(tiny.greedy(&prompt(4), Some(&adapters[0].1), 16), tiny.greedy(&prompt(4), None, 16));
        let context = engine.info().max_context;
        if context < 8192 {
            let long = engine.generate(job(vec![5; context - 20], Some(&adapters[2].0), 10)).await;
            let error = long.expect_err("virtual tokens take places too").to_string();
            assert!(error.contains("the adapter's virtual ones among them"), "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_seed_gives_one_answer_and_temperature_gives_many() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let sample = async |seed| {
        let sampling = Sampling { temperature: 2.0, top_p: 0.95, top_k: 50, seed: Some(seed), ..Sampling::GREEDY };
        let job = GenerateJob { sampling, ..job(prompt(2), None, 16) };
        read(engine.generate(job).await.expect("accepted")).await.expect("answers").0
    };
    let first = sample(1).await;
    assert_eq!(first, sample(1).await);
    let others = [sample(2).await, sample(3).await, sample(4).await];
    assert!(others.iter().any(|other| *other != first));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_fails_hurts_no_other() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    // Finite weights, so it passes every check; its activations overflow.
    let (broken, adapter) = tiny.adapter(1, 1e38);
    engine.load(broken.clone(), adapter).await.expect("loads");
    let healthy = engine.generate(job(prompt(4), None, 20)).await.expect("accepted");
    let failing = engine.generate(job(prompt(5), Some(&broken), 20)).await.expect("accepted");
    let error = read(failing).await.expect_err("fails");
    assert!(error.to_string().contains("logits are not finite"), "{error}");
    assert_eq!(read(healthy).await.expect("answers").0, tiny.greedy(&prompt(4), None, 20));
    let after = engine.generate(job(prompt(6), None, 5)).await.expect("accepted");
    assert_eq!(read(after).await.expect("answers").0, tiny.greedy(&prompt(6), None, 5));
}
