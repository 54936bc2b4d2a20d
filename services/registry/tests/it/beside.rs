//! A collection and a publish beside each other: one stands still before each of its steps in turn while the other runs from
//! its beginning to its end. What is published must be whole afterwards.

use std::sync::Arc;

use tailor_blobs::Store;
use tailor_domain::{AdapterName, AliasName, ErrorCode, Version};
use tailor_registry::{Announced, Error, Expected, Registry};
use tailor_serverkit::Coded as _;
use tailor_testkit::{Faults, FlakyStore, InMemory};

use crate::invariants;
use crate::support::sound_adapter;
use crate::world::{self, World, reason};

/// Two processes over one store; what the first does can be stopped.
struct Pair {
    first: Registry,
    second: Registry,
    faults: Faults,
    store: Store,
}

impl Pair {
    fn over(world: &World, memory: &InMemory, now_ms: u64) -> Self {
        let memory = Arc::new(memory.fork());
        let (backend, faults) = FlakyStore::over(memory.clone());
        let first = world.registry(Store::over(backend, "memory://first"), now_ms);
        let second = world.registry(Store::over(memory.clone(), "memory://second"), now_ms);
        Self { first, second, faults, store: Store::over(memory, "memory://both") }
    }
}

/// What a client does: it uploads the weights, which were in the store before and are marked, and publishes.
async fn upload_and_publish(world: &World, registry: &Registry) -> tailor_registry::Result<()> {
    let weights = sound_adapter(90).weights_to_bytes().expect("weights");
    let announced = Announced { digest: world.by_job.weights.clone(), size_bytes: weights.len() as u64, offset: 0 };
    registry.upload_blob(announced, futures::stream::iter([Ok(weights)])).await?;
    registry.publish(world.by_job.clone()).await.map(drop)
}

fn may_come_again(error: &Error) -> bool {
    matches!(error.code(), ErrorCode::Unavailable | ErrorCode::FailedPrecondition | ErrorCode::Aborted)
}

fn sweep_time(world: &World) -> u64 {
    world.now_ms + world::UNDELETE_MS + 2 * world::GRACE_MS
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_at_every_step_of_a_sweep_is_whole_or_refused() {
    let world = World::new().await;
    let clean = Pair::over(&world, &world.marked, sweep_time(&world));
    clean.first.collect(false, &reason()).await.expect("swept");
    let steps = clean.faults.steps();
    let (mut published, mut refused) = (0, 0);
    for step in 1..=steps {
        let case = format!("publish before step {step} of the sweep");
        let pair = Pair::over(&world, &world.marked, sweep_time(&world));
        let paused = pair.faults.pause_at(step);
        let sweeper = pair.first.clone();
        let sweep = tokio::spawn(async move { sweeper.collect(false, &reason()).await });
        paused.reached().await;
        let outcome = upload_and_publish(&world, &pair.second).await;
        paused.go_on();
        sweep.await.expect("no panic").unwrap_or_else(|error| panic!("{case}: {error}"));
        match outcome {
            Ok(()) => published += 1,
            Err(error) => {
                assert!(may_come_again(&error), "{case}: {error}");
                refused += 1;
            }
        }
        invariants::check(&pair.store, &case).await;
        upload_and_publish(&world, &pair.second).await.unwrap_or_else(|error| panic!("{case}: again: {error}"));
        invariants::check(&pair.store, &case).await;
        assert_eq!(pair.store.blob_size(&world.garbage).await, Ok(None), "{case}: garbage goes all the same");
    }
    eprintln!("sweep: {steps} steps; beside them {published} publishes succeeded at once, {refused} at the second try");
    assert!(published > 0 && refused > 0, "both outcomes are met");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_at_every_step_of_a_publish_takes_nothing_from_it() {
    let world = World::new().await;
    let clean = Pair::over(&world, &world.marked, sweep_time(&world));
    upload_and_publish(&world, &clean.first).await.expect("published");
    let steps = clean.faults.steps();
    let (mut published, mut refused) = (0, 0);
    for step in 1..=steps {
        let case = format!("sweep before step {step} of the publish");
        let pair = Pair::over(&world, &world.marked, sweep_time(&world));
        let paused = pair.faults.pause_at(step);
        let publisher = pair.first.clone();
        let publish = {
            let weights = sound_adapter(90).weights_to_bytes().expect("weights");
            let announced =
                Announced { digest: world.by_job.weights.clone(), size_bytes: weights.len() as u64, offset: 0 };
            let new = world.by_job.clone();
            tokio::spawn(async move {
                publisher.upload_blob(announced, futures::stream::iter([Ok(weights)])).await?;
                publisher.publish(new).await.map(drop)
            })
        };
        paused.reached().await;
        pair.second.collect(false, &reason()).await.unwrap_or_else(|error| panic!("{case}: {error}"));
        paused.go_on();
        match publish.await.expect("no panic") {
            Ok(()) => published += 1,
            Err(error) => {
                assert!(may_come_again(&error), "{case}: {error}");
                refused += 1;
            }
        }
        invariants::check(&pair.store, &case).await;
        upload_and_publish(&world, &pair.first).await.unwrap_or_else(|error| panic!("{case}: again: {error}"));
        invariants::check(&pair.store, &case).await;
    }
    eprintln!(
        "publish: {steps} steps; with a sweep beside them {published} succeeded at once, {refused} at the second try"
    );
    assert!(published > 0, "a publish that holds its blobs is not disturbed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_at_every_step_of_an_aliass_move_costs_the_alias_nothing() {
    let world = World::new().await;
    let adapter = AdapterName::try_new("grammar").expect("name");
    let alias = AliasName::try_new("production").expect("name");
    let set = |registry: Registry| {
        let (adapter, alias) = (adapter.clone(), alias.clone());
        async move { registry.set_alias(&adapter, &alias, Version(4), Expected::Anything, reason()).await }
    };
    let clean = Pair::over(&world, &world.memory, world.now_ms);
    set(clean.first.clone()).await.expect("set");
    for step in 1..=clean.faults.steps() {
        let case = format!("deletion before step {step} of the move");
        let pair = Pair::over(&world, &world.memory, world.now_ms);
        let paused = pair.faults.pause_at(step);
        let moving = tokio::spawn(set(pair.first.clone()));
        paused.reached().await;
        let deleted = pair.second.delete(&adapter, Version(4), &reason()).await;
        paused.go_on();
        let moved = moving.await.expect("no panic");
        // The alias was there already: that is said, and the move has happened.
        let refused = deleted.is_err_and(|error| error.code() == ErrorCode::FailedPrecondition);
        assert!(!refused || moved.is_ok(), "{case}: {moved:?}");
        // Long afterwards, every phase of the collection.
        for later in [world::UNDELETE_MS + world::GRACE_MS, world::UNDELETE_MS + 2 * world::GRACE_MS] {
            let collector = world.registry(pair.store.clone(), world.now_ms + later);
            collector.collect(false, &reason()).await.unwrap_or_else(|error| panic!("{case}: {error}"));
        }
        invariants::check(&pair.store, &case).await;
        let target = world.registry(pair.store.clone(), world.now_ms).alias_history(&adapter, &alias).await;
        let target = target.expect("history")[0].to;
        assert_eq!(target == Version(4), moved.is_ok(), "{case}: {moved:?}");
    }
}
