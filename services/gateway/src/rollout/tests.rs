//! What a gateway remembers of rollouts.

use tailor_blobs::Store;
use tailor_pb::registry::watch_response::What;
use tailor_serverkit::Settings;
use tailor_testkit::TempDir;

use super::*;
use crate::routes::Routes;

fn version(adapter: &str, version: u64) -> registry::AdapterVersion {
    registry::AdapterVersion { adapter: adapter.into(), version, ..Default::default() }
}

fn entry(adapter: &str) -> registry::Rollout {
    registry::Rollout {
        adapter: adapter.into(),
        alias: "production".into(),
        sequence: 1,
        id: 1,
        state: "RUNNING".into(),
        stable_version: 1,
        alias_sequence: 1,
        canary_version: 2,
        percent: 5.0,
        sticky_by: "session".into(),
        ..Default::default()
    }
}

fn live(adapter: &str) -> Live {
    let rollout = Rollout::try_from(entry(adapter)).expect("a rollout");
    let adapter_name = AdapterName::try_new(adapter).expect("a name");
    Live::new(adapter_name, &rollout, &version(adapter, 1), &version(adapter, 2))
}

#[tokio::test]
async fn rollouts_that_are_over_are_forgotten_beyond_a_limit_and_those_that_run_are_not() {
    let folder = TempDir::new();
    let settings = Settings { cache_dir: folder.path().to_owned(), ..Settings::default() };
    let routes = Arc::new(Routes::new(&settings).expect("an address"));
    let table = routes.table();
    let moved = registry::Alias {
        adapter: "runs".into(),
        alias: "production".into(),
        version: 1,
        sequence: 1,
        ..Default::default()
    };
    table.apply(What::Alias(registry::AliasTarget { r#move: Some(moved), target: Some(version("runs", 1)) }));
    let (rollout, canary) = (Some(entry("runs")), Some(version("runs", 2)));
    table.apply(What::Rollout(registry::RolloutTarget { rollout, canary }));
    let models = Models::new(&settings, Store::memory(), routes.clone(), None).expect("settings");
    let rollouts = Rollouts::new(Arc::new(models));
    let meet = |adapter: &str| {
        let rollout = Rollout::try_from(entry(adapter)).expect("a rollout");
        drop(rollouts.live(&rollout, &version(adapter, 1), &version(adapter, 2)).expect("a rollout"));
        rollouts.live.lock().expect("nobody has panicked").len()
    };
    assert_eq!(meet("runs"), 1);
    for number in 1..MAX_LIVE {
        assert_eq!(meet(&format!("ended-{number}")), number + 1);
    }
    assert_eq!(meet("ended-1"), MAX_LIVE, "it is known");
    assert_eq!(meet("new"), 2, "beside the one that runs");
    assert!(rollouts.seen("runs", "production", 1).is_some() && rollouts.seen("ended-1", "production", 1).is_none());
}

#[test]
fn a_rollout_is_made_ready_once_at_a_time_and_anew_by_a_newer_entry() {
    let live = live("grammar");
    assert!(live.begin_preparing(1) && !live.begin_preparing(1));
    assert!(live.begin_preparing(2) && !live.begin_preparing(2));
    live.end_preparing(1);
    assert!(!live.begin_preparing(2), "the newer is on its way still");
    live.end_preparing(2);
    assert!(live.begin_preparing(2), "what it has done may be undone");
}
