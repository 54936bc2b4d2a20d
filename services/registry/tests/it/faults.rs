//! Every store operation of every change that the registry makes fails in every way that stores fail, and the process may be
//! dead from there on. Afterwards a new process over what is left must find everything as promised, and the same call must
//! succeed.

use std::sync::Arc;

use tailor_blobs::Store;
use tailor_domain::{AdapterName, AliasName, BaseName, Version};
use tailor_registry::{Announced, Expected, NewBase, Reason, Registry};
use tailor_testkit::{Fault, Faults, FlakyStore, InMemory};

use crate::invariants;
use crate::world::{self, World};

const FAULTS: [Fault; 10] = [
    Fault::Away,
    Fault::ServerError,
    Fault::Throttled,
    Fault::Slow,
    Fault::AnswerLost,
    Fault::Replayed,
    Fault::Torn,
    Fault::Truncated,
    Fault::Lagging,
    Fault::Reordered,
];

/// A change, as a caller asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    UploadBlob,
    RegisterBase,
    PublishByJob,
    PublishImport,
    SetAlias,
    Rollback,
    Delete,
    Undelete,
    SetRetention,
    Mark,
    Sweep,
}

const SCENES: [Scene; 11] = [
    Scene::UploadBlob,
    Scene::RegisterBase,
    Scene::PublishByJob,
    Scene::PublishImport,
    Scene::SetAlias,
    Scene::Rollback,
    Scene::Delete,
    Scene::Undelete,
    Scene::SetRetention,
    Scene::Mark,
    Scene::Sweep,
];

impl Scene {
    async fn act(self, world: &World, registry: &Registry) -> tailor_registry::Result<()> {
        let adapter = AdapterName::try_new("grammar")?;
        let alias = AliasName::try_new("production")?;
        let reason = || Reason { who: "ops".into(), why: "a test".into() };
        match self {
            Self::UploadBlob => {
                let announced =
                    Announced { digest: world::fresh().0, size_bytes: world::fresh().1.len() as u64, offset: 0 };
                let chunks = futures::stream::iter([Ok(world::fresh().1.to_vec())]);
                registry.upload_blob(announced, chunks).await.map(drop)
            }
            Self::RegisterBase => {
                let base = NewBase { name: BaseName::try_new("second")?, ..world.base.clone() };
                registry.register_base(base).await.map(drop)
            }
            Self::PublishByJob => registry.publish(world.by_job.clone()).await.map(drop),
            Self::PublishImport => registry.publish(world.import.clone()).await.map(drop),
            Self::SetAlias => {
                let expected = Expected::Version(Version(1));
                registry.set_alias(&adapter, &alias, Version(2), expected, reason()).await.map(drop)
            }
            Self::Rollback => registry.rollback(&adapter, &AliasName::try_new("moved")?, reason()).await.map(drop),
            Self::Delete => registry.delete(&adapter, Version(4), &reason()).await.map(drop),
            Self::Undelete => registry.undelete(&adapter, Version(3), &reason()).await.map(drop),
            Self::SetRetention => {
                let rules = tailor_registry::Rules::try_new(2, 0, Default::default())?;
                registry.set_retention(&adapter, Some(rules), reason()).await.map(drop)
            }
            Self::Mark | Self::Sweep => registry.collect(false, &reason()).await.map(drop),
        }
    }

    /// What must have come of it once it has succeeded, however often it was asked for.
    async fn judge(self, world: &World, registry: &Registry, store: &Store, case: &str) {
        let adapter = AdapterName::try_new("grammar").expect("name");
        let versions = store.last_number("adapters/grammar/versions").await.expect("read");
        let moves = store.last_number("adapters/grammar/aliases/production").await.expect("read");
        let life = store.last_number("adapters/grammar/life").await.expect("read");
        match self {
            Self::UploadBlob => assert!(store.get_blob(&world::fresh().0).await.is_ok(), "{case}"),
            Self::RegisterBase => {
                let base = registry.base(&BaseName::try_new("second").expect("name")).await;
                assert_eq!(base.expect("registered").files, world.base.files, "{case}");
            }
            Self::PublishByJob => assert_eq!(versions, world::VERSIONS + 1, "{case}: one job, one version"),
            Self::PublishImport => assert!(versions > world::VERSIONS, "{case}"),
            Self::SetAlias => assert_eq!(moves, 2, "{case}: one move"),
            Self::Rollback => {}
            Self::Delete => assert_eq!(life, world::CHANGES + 1, "{case}: one deletion"),
            Self::Undelete => {
                assert_eq!(life, world::CHANGES + 1, "{case}: one undeletion");
                assert!(registry.version(&adapter, Version(3)).await.expect("there").gone.is_none(), "{case}");
            }
            Self::SetRetention => {
                let rules = registry.retention(&adapter).await.expect("read").and_then(|entry| entry.rules);
                assert_eq!(rules.expect("set").keep_last, 2, "{case}");
            }
            Self::Mark => {
                let (_, mark) = store.waiting_mark().await.expect("read").expect("marked");
                assert!(mark.names(&world.garbage) && mark.names(&world.purgeable), "{case}");
            }
            Self::Sweep => {
                assert_eq!(store.blob_size(&world.garbage).await.expect("read"), None, "{case}");
                assert_eq!(store.blob_size(&world.purgeable).await.expect("read"), None, "{case}");
            }
        }
    }

    /// The store as it is before.
    fn before(self, world: &World) -> &InMemory {
        match self {
            Self::Sweep => &world.marked,
            _ => &world.memory,
        }
    }

    fn now_ms(self, world: &World) -> u64 {
        match self {
            Self::Mark => world.now_ms + world::UNDELETE_MS + world::GRACE_MS,
            Self::Sweep => world.now_ms + world::UNDELETE_MS + 2 * world::GRACE_MS,
            _ => world.now_ms,
        }
    }
}

/// How a client of this kind of store behaves: over HTTP it may send a put twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Local,
    Http,
}

impl Kind {
    fn store(self, backend: Arc<dyn tailor_blobs::ObjectStore>) -> Store {
        let store = Store::over(backend, "memory://flaky");
        match self {
            Self::Local => store,
            Self::Http => store.with_replays(),
        }
    }

    fn has(self, fault: Fault) -> bool {
        self == Self::Http || fault != Fault::Replayed
    }
}

/// One failure, then the end of the process or not, then another process.
async fn visit(world: &World, scene: Scene, kind: Kind, case: &str, fail: impl FnOnce(&Faults)) {
    let (backend, faults) = FlakyStore::fork(scene.before(world));
    let now_ms = scene.now_ms(world);
    fail(&faults);
    // Whatever it answers; what counts is what is left.
    let _ = scene.act(world, &world.registry(kind.store(backend.clone()), now_ms)).await;
    faults.heal();

    let store = kind.store(backend);
    invariants::check(&store, case).await;
    // A dead sweeper's claim runs out.
    let registry = world.registry(store.clone(), now_ms + world::LEASE_MS);
    scene.act(world, &registry).await.unwrap_or_else(|error| panic!("{case}: again: {error}"));
    scene.judge(world, &registry, &store, case).await;
    invariants::check(&store, case).await;
    let verified = registry.verify().await.unwrap_or_else(|error| panic!("{case}: {error}"));
    assert_eq!(verified.problems, Default::default(), "{case}: the audit log knows every record");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_step_of_every_change_may_fail_in_every_way() {
    let world = World::new().await;
    let (mut all_steps, mut all_cases) = (0, 0);
    for scene in SCENES {
        let (backend, faults) = FlakyStore::fork(scene.before(&world));
        let store = Store::over(backend, "memory://clean");
        let registry = world.registry(store.clone(), scene.now_ms(&world));
        scene.act(&world, &registry).await.unwrap_or_else(|error| panic!("{scene:?} without a fault: {error}"));
        let (steps, trace) = (faults.steps(), faults.trace());
        scene.judge(&world, &registry, &store, "without a fault").await;
        invariants::check(&store, "without a fault").await;

        let mut cases = 0;
        for kind in [Kind::Local, Kind::Http] {
            for step in 1..=steps {
                let what = &trace[step as usize - 1];
                for fault in FAULTS.into_iter().filter(|fault| kind.has(*fault)) {
                    let case = format!("{scene:?} over {kind:?}, step {step} ({what}) fails by {fault:?}");
                    visit(&world, scene, kind, &case, |faults| faults.fail_step(step, fault)).await;
                    cases += 1;
                }
                let case = format!("{scene:?} over {kind:?}, cut before step {step} ({what})");
                visit(&world, scene, kind, &case, |faults| faults.cut_at(step)).await;
                let case = format!("{scene:?} over {kind:?}, cut after step {step} ({what})");
                visit(&world, scene, kind, &case, |faults| faults.cut_at(step + 1)).await;
                cases += 2;
            }
        }
        eprintln!("{scene:?}: {steps} steps visited in {cases} cases");
        (all_steps, all_cases) = (all_steps + steps, all_cases + cases);
    }
    eprintln!("all: {all_steps} steps visited in {all_cases} cases, every invariant held after each");
}

#[tokio::test]
async fn a_registry_over_a_store_without_the_condition_does_not_start() {
    let (backend, faults) = FlakyStore::memory();
    let store = Store::over(backend, "memory://plain");
    faults.fail_all(tailor_testkit::Op::Create, Fault::Unsupported);
    let error = store.prove_conditional_create().await.expect_err("no If-None-Match");
    assert!(matches!(error, tailor_blobs::Error::Unfit { .. }), "{error}");
    assert!(error.to_string().contains("conditional writes"), "{error}");
}
