//! Faults of adapters under load: whatever happens to one, every other stream says what it says alone.

use tailor_domain::{Digest, ErrorCode};
use tailor_engine::{Engine, EngineOptions, Error};
use tailor_peft::Adapter;

use crate::{Stream, TinyBase, job, prompt, read};

/// Streams of the base and of healthy adapters, and what each says alone.
struct Neighbours {
    adapters: Vec<(Digest, Adapter)>,
}

impl Neighbours {
    async fn on(tiny: &TinyBase, engine: &Engine) -> Self {
        let adapters: Vec<_> = (1..4).map(|seed| tiny.adapter(seed, 0.2)).collect();
        for (digest, adapter) in &adapters {
            engine.load(digest.clone(), adapter.clone()).await.expect("loads");
        }
        Self { adapters }
    }

    async fn begin(&self, tiny: &TinyBase, engine: &Engine) -> Vec<(Vec<u32>, Stream)> {
        let mut streams = Vec::new();
        for n in 0..12u32 {
            let adapter = self.adapters.get(n as usize % 4);
            let wanted = tiny.greedy(&prompt(n), adapter.map(|(_, adapter)| adapter), 60);
            let digest = adapter.map(|(digest, _)| digest);
            streams.push((wanted, engine.generate(job(prompt(n), digest, 60)).await.expect("accepted")));
        }
        streams
    }
}

async fn unharmed(streams: Vec<(Vec<u32>, Stream)>) {
    for (wanted, stream) in streams {
        assert_eq!(read(stream).await.expect("answers").0, wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_of_another_base_loaded_under_load_harms_nobody() {
    let [llama, t5] = TinyBase::all();
    for (tiny, other) in [(&llama, &t5), (&t5, &llama)] {
        let engine = tiny.engine(EngineOptions::default()).await;
        let neighbours = Neighbours::on(tiny, &engine).await;
        let streams = neighbours.begin(tiny, &engine).await;
        for seed in 10..20 {
            let (digest, adapter) = other.adapter(seed, 0.2);
            let error = engine.load(digest.clone(), adapter).await.expect_err("another base");
            assert_eq!(error.code(), ErrorCode::FailedPrecondition, "{error}");
            let error = engine.generate(job(prompt(1), Some(&digest), 4)).await.expect_err("never the base's answer");
            assert!(matches!(error, Error::UnknownAdapter { .. }), "{error}");
        }
        unharmed(streams).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_overflows_fails_alone_and_leaves_nothing_in_the_cache() {
    for tiny in TinyBase::all() {
        // One sequence's worth of blocks: whoever comes next gets those that held what is no number.
        let engine = tiny.engine(EngineOptions { kv_bytes: 1, max_context: 128, ..EngineOptions::default() }).await;
        let neighbours = Neighbours::on(&tiny, &engine).await;
        let (broken, adapter) = tiny.adapter(1, 1e38);
        engine.load(broken.clone(), adapter).await.expect("its weights are finite");
        for round in 0..3 {
            let failing = engine.generate(job(vec![7; 40], Some(&broken), 20)).await.expect("accepted");
            let streams = neighbours.begin(&tiny, &engine).await;
            let error = read(failing).await.expect_err("fails");
            assert!(error.to_string().contains("not finite"), "round {round}: {error}");
            unharmed(streams).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_taken_out_and_put_back_in_mid_stream_changes_no_stream() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let neighbours = Neighbours::on(&tiny, &engine).await;
    let streams = neighbours.begin(&tiny, &engine).await;
    let (digest, adapter) = neighbours.adapters[0].clone();
    let (unloaded, ()) = tokio::join!(engine.unload(&digest), unharmed(streams));
    unloaded.expect("unloads when its last stream has ended");
    // What takes its name has another digest: neither weights nor cache of the one before may show.
    let (other_digest, other) = tiny.adapter(9, 0.3);
    engine.load(other_digest.clone(), other.clone()).await.expect("loads");
    engine.load(digest.clone(), adapter.clone()).await.expect("loads again");
    let of = async |digest: &Digest| engine.generate(job(prompt(6), Some(digest), 30)).await.expect("accepted");
    let (first, second) = (of(&digest).await, of(&other_digest).await);
    assert_eq!(read(first).await.expect("answers").0, tiny.greedy(&prompt(6), Some(&adapter), 30));
    assert_eq!(read(second).await.expect("answers").0, tiny.greedy(&prompt(6), Some(&other), 30));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_loads_at_once_harm_no_stream() {
    let tiny = TinyBase::llama();
    let engine = tiny.engine(EngineOptions::default()).await;
    let neighbours = Neighbours::on(&tiny, &engine).await;
    let streams = neighbours.begin(&tiny, &engine).await;
    let loads = (100..1100u32).map(|seed| {
        let (engine, (digest, adapter)) = (engine.clone(), tiny.adapter(seed, 0.1));
        tokio::spawn(async move { engine.load(digest, adapter).await })
    });
    let loads: Vec<_> = loads.collect();
    unharmed(streams).await;
    for load in loads {
        load.await.expect("ends").expect("loads");
    }
    assert_eq!(engine.resident().len(), 1003);
    unharmed(neighbours.begin(&tiny, &engine).await).await;
}
