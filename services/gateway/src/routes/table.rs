//! The table: what each alias means, and when that was last confirmed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tailor_domain::{Digest, Rollout};
use tailor_pb::registry;
use tailor_pb::registry::watch_response::What;
use tokio::sync::watch;

/// Adapter and alias.
type Key = (String, String);
type Map = HashMap<Key, Arc<Route>>;

/// What one alias means.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Route {
    /// The number of the alias' last move.
    pub alias_seq: u64,
    /// What it points to. Absent: nothing is known of it yet, or the version was deleted.
    pub target: Option<registry::AdapterVersion>,
    /// Its last rollout, in force or not.
    pub rollout: Option<Rollout>,
    pub canary: Option<registry::AdapterVersion>,
    /// What it pointed to before, since this gateway has known it: where a rollback leads.
    pub previous: Option<registry::AdapterVersion>,
}

impl Route {
    /// A version without a rollout.
    pub fn fixed(target: registry::AdapterVersion) -> Self {
        Self { target: Some(target), ..Self::default() }
    }

    /// The rollout that splits callers now, with both sides.
    pub fn split(&self) -> Option<(&Rollout, &registry::AdapterVersion, &registry::AdapterVersion)> {
        let rollout = self.rollout.as_ref().filter(|rollout| rollout.is_active(self.alias_seq))?;
        Some((rollout, self.target.as_ref()?, self.canary.as_ref()?))
    }

    /// The versions that it needs at hand: the sides of a rollout in force, and where a rollback leads.
    fn needs(&self) -> ([Option<&registry::AdapterVersion>; 2], Option<&registry::AdapterVersion>) {
        let sides = self.split().map_or([None; 2], |(_, stable, canary)| [Some(stable), Some(canary)]);
        // Only where a rollout has led here: other aliases' earlier targets may go.
        let led_here = self.rollout.as_ref().is_some_and(|last| last.alias_seq + 1 == self.alias_seq);
        (sides, self.previous.as_ref().filter(|_| led_here))
    }

    fn moved(&self, moved: registry::Alias, target: Option<registry::AdapterVersion>) -> Self {
        let previous = if self.target == target { self.previous.clone() } else { self.target.clone() };
        Self { alias_seq: moved.sequence, target, previous, ..self.clone() }
    }
}

#[derive(Default)]
pub struct Table {
    routes: RwLock<Map>,
    confirmed_at: Mutex<Option<Instant>>,
    /// Counts changes.
    changed: watch::Sender<u64>,
}

/// A table on its way: what a watch has said before its snapshot was whole.
#[derive(Default)]
pub struct Snapshot(Map);

impl Table {
    pub fn find(&self, adapter: &str, alias: &str) -> Option<Arc<Route>> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.get(&(adapter.to_owned(), alias.to_owned())).cloned()
    }

    /// All of it.
    pub fn all(&self) -> Vec<(Key, Arc<Route>)> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.iter().map(|(key, route)| (key.clone(), route.clone())).collect()
    }

    /// Why a digest must stay resident, if it must.
    pub fn holds(&self, digest: &Digest) -> Option<String> {
        let is = |version: &registry::AdapterVersion| version.digest == digest.as_str();
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.iter().find_map(|((adapter, alias), route)| {
            let (sides, way_back) = route.needs();
            if sides.into_iter().flatten().any(is) {
                return Some(format!("a rollout behind {adapter}@{alias} runs with it"));
            }
            way_back.is_some_and(is).then(|| format!("a rollback of {adapter}@{alias} leads to it"))
        })
    }

    /// All digests that must stay resident.
    pub fn held(&self) -> HashSet<Digest> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let needed = routes.values().flat_map(|route| {
            let (sides, way_back) = route.needs();
            sides
                .into_iter()
                .flatten()
                .chain(way_back)
                .filter_map(|version| Digest::try_new(version.digest.clone()).ok())
        });
        needed.collect()
    }

    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether the registry has said, so recently, that nothing has changed beyond what is here.
    pub fn confirmed_within(&self, time: Duration) -> bool {
        let confirmed_at = *self.confirmed_at.lock().unwrap_or_else(PoisonError::into_inner);
        confirmed_at.is_some_and(|at| at.elapsed() <= time)
    }

    pub fn confirm(&self) {
        let before = self.confirmed_at.lock().unwrap_or_else(PoisonError::into_inner).replace(Instant::now());
        if before.is_none() {
            // Whoever follows the table now knows that it is whole, be it empty.
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Takes in one change; an older one than what is here changes nothing.
    pub fn apply(&self, what: What) {
        let changed = {
            let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
            apply(&mut routes, what)
        };
        if changed {
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Puts a whole snapshot in the place of all there was; what is known of earlier targets is kept.
    pub fn replace(&self, Snapshot(mut map): Snapshot) {
        {
            let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
            for (key, route) in &mut map {
                let Some(before) = routes.get(key) else { continue };
                let previous = if before.target == route.target { &before.previous } else { &before.target };
                *route = Arc::new(Route { previous: previous.clone(), ..(**route).clone() });
            }
            *routes = map;
        }
        self.changed.send_modify(|count| *count += 1);
    }
}

impl Snapshot {
    pub fn take(&mut self, what: What) {
        apply(&mut self.0, what);
    }
}

/// Whether anything changed.
fn apply(routes: &mut Map, what: What) -> bool {
    let (key, next) = match what {
        What::Alias(registry::AliasTarget { r#move: Some(moved), target }) => {
            let key = (moved.adapter.clone(), moved.alias.clone());
            let before = routes.get(&key).cloned().unwrap_or_default();
            if moved.sequence <= before.alias_seq {
                return false;
            }
            (key, before.moved(moved, target))
        }
        What::Rollout(registry::RolloutTarget { rollout: Some(rollout), canary }) => {
            let key = (rollout.adapter.clone(), rollout.alias.clone());
            let before = routes.get(&key).cloned().unwrap_or_default();
            let rollout = match Rollout::try_from(rollout) {
                Ok(rollout) => rollout,
                Err(error) => {
                    // A newer registry's: callers stay where the alias points.
                    tracing::warn!(adapter = key.0, alias = key.1, %error, "a rollout cannot be followed");
                    return false;
                }
            };
            if before.rollout.as_ref().is_some_and(|known| rollout.seq <= known.seq) {
                return false;
            }
            (key, Route { rollout: Some(rollout), canary, ..(*before).clone() })
        }
        What::Alias(_) | What::Rollout(_) | What::SnapshotEnd(_) | What::Confirmation(_) => return false,
    };
    routes.insert(key, Arc::new(next));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(sequence: u64, version: u64) -> What {
        let (adapter, alias) = ("grammar".to_owned(), "production".to_owned());
        let target = registry::AdapterVersion { adapter: adapter.clone(), version, ..Default::default() };
        let entry = registry::Alias { adapter, alias, version, sequence, ..Default::default() };
        What::Alias(registry::AliasTarget { r#move: Some(entry), target: Some(target) })
    }

    fn rollout(sequence: u64, alias_sequence: u64, state: &str) -> What {
        let rollout = registry::Rollout {
            adapter: "grammar".into(),
            alias: "production".into(),
            sequence,
            id: 1,
            state: state.into(),
            stable_version: 1,
            alias_sequence,
            canary_version: 2,
            percent: 5.0,
            sticky_by: "session".into(),
            ..Default::default()
        };
        let canary = registry::AdapterVersion { adapter: "grammar".into(), version: 2, ..Default::default() };
        What::Rollout(registry::RolloutTarget { rollout: Some(rollout), canary: Some(canary) })
    }

    fn target(table: &Table) -> Option<u64> {
        table.find("grammar", "production")?.target.as_ref().map(|target| target.version)
    }

    #[test]
    fn a_move_that_is_told_late_or_twice_changes_nothing() {
        let table = Table::default();
        for (sequence, version) in [(1, 1), (3, 3), (2, 2), (3, 3)] {
            table.apply(moved(sequence, version));
        }
        assert_eq!(target(&table), Some(3));
        let route = table.find("grammar", "production").expect("a route");
        assert_eq!(route.previous.as_ref().map(|previous| previous.version), Some(1), "where a rollback leads");
    }

    #[test]
    fn a_rollout_splits_only_while_its_alias_stays() {
        let table = Table::default();
        let splits = || table.find("grammar", "production").is_some_and(|route| route.split().is_some());
        table.apply(rollout(1, 1, "RUNNING"));
        assert!(!splits(), "there is no target yet");
        table.apply(moved(1, 1));
        assert!(splits());
        table.apply(moved(2, 3));
        assert!(!splits(), "the alias was moved by other means");
        table.apply(rollout(2, 2, "RUNNING"));
        assert!(splits());
        table.apply(rollout(3, 2, "ABORTED"));
        assert!(!splits());
        table.apply(rollout(2, 2, "RUNNING"));
        assert!(!splits(), "told again, late");
    }

    #[test]
    fn a_snapshot_forgets_what_is_no_more_and_keeps_where_a_rollback_leads() {
        let table = Table::default();
        table.apply(moved(1, 1));
        let mut snapshot = Snapshot::default();
        snapshot.take(moved(4, 4));
        table.replace(snapshot);
        assert_eq!(target(&table), Some(4));
        let route = table.find("grammar", "production").expect("a route");
        assert_eq!(route.previous.as_ref().map(|previous| previous.version), Some(1));
        table.replace(Snapshot::default());
        assert_eq!(target(&table), None);
    }

    #[test]
    fn a_table_that_was_never_confirmed_is_not_believed() {
        let table = Table::default();
        assert!(!table.confirmed_within(Duration::MAX));
        let changed = table.changed();
        table.confirm();
        assert!(changed.has_changed().unwrap(), "those who wait for a whole table are told");
        assert!(table.confirmed_within(Duration::from_secs(60)));
        assert!(!table.confirmed_within(Duration::ZERO));
    }
}
