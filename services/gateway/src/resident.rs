//! Which adapters are on the device: loaded once however many ask, kept within a budget of bytes, what is worth least first to
//! go. Whoever uses one holds a lease, and what is leased or pinned stays.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tailor_domain::{BaseName, Digest};

use crate::error::{Error, Result};
use crate::failures::Failures;
use crate::gates::Gates;
use crate::models::AdapterVersion;
use crate::shelf::Worth;

/// Keeps an adapter on the device.
pub type Lease = Arc<()>;

/// How often an adapter is made resident for one who asks for that, where others take it off each time.
const TRIES: u32 = 3;

pub struct Resident {
    /// Bytes of adapters; what is in use may exceed it.
    budget: u64,
    gates: Gates,
    /// Of loads.
    failures: Failures<Digest>,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    by_digest: HashMap<Digest, Entry>,
    worth: Worth,
}

#[derive(Clone)]
pub struct Entry {
    pub version: AdapterVersion,
    pub base: BaseName,
    /// The base's: on which of those that have borne its name it is.
    pub fingerprint: Digest,
    /// Bytes on the device.
    pub size_bytes: u64,
    pub pinned: bool,
    lease: Lease,
}

/// An adapter that is to be taken off the device. While this is held nobody can load it again.
pub struct Leaving {
    pub entry: Entry,
    _door: tokio::sync::OwnedMutexGuard<()>,
}

impl Leaving {
    /// Returns once nobody holds a lease: whoever was given one gets what it was promised.
    pub async fn unused(&self) {
        const LOOK_EVERY: Duration = Duration::from_millis(5);
        while Arc::strong_count(&self.entry.lease) > 1 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Resident {
    pub fn new(budget: u64) -> Self {
        Self { budget, gates: Gates::default(), failures: Failures::default(), entries: Mutex::default() }
    }

    /// A lease on an adapter that is resident when this returns. `load` runs only if it was not, and gives its bytes.
    ///
    /// # Errors
    /// What `load` says, to all who have waited for it; who comes after that tries again.
    pub async fn lease(
        &self,
        version: &AdapterVersion,
        (base, fingerprint): (&BaseName, &Digest),
        load: impl Future<Output = Result<u64>>,
    ) -> Result<Lease> {
        if let Some(lease) = self.touch(&version.digest) {
            return Ok(lease);
        }
        let arrived = Instant::now();
        let gate = self.gates.at(&version.digest);
        let _alone = gate.lock().await;
        if let Some(lease) = self.touch(&version.digest) {
            return Ok(lease);
        }
        let begun = Instant::now();
        let size_bytes = self.failures.attempt(&version.digest, arrived, load).await?;
        let lease = Lease::default();
        let entry = Entry {
            version: version.clone(),
            base: base.clone(),
            fingerprint: fingerprint.clone(),
            size_bytes,
            pinned: false,
            lease: Arc::clone(&lease),
        };
        let mut entries = self.entries();
        entries.worth.insert(&version.digest, size_bytes, begun.elapsed());
        entries.by_digest.insert(version.digest.clone(), entry);
        Ok(lease)
    }

    /// An adapter as it is when it is resident; `lease` makes it so. Where somebody takes it off in that moment it is made so again.
    ///
    /// # Errors
    /// What `lease` says; [`Error::TakenOff`].
    pub async fn shown<F>(&self, version: &AdapterVersion, lease: impl Fn() -> F) -> Result<Entry>
    where
        F: Future<Output = Result<Option<Lease>>>,
    {
        for _ in 0..TRIES {
            let lease = lease().await?;
            if let Some(entry) = self.entries().by_digest.get(&version.digest) {
                return Ok(entry.clone());
            }
            // Whoever takes it off waits for those who were promised it, and this is one of them.
            drop(lease);
        }
        Err(Error::TakenOff { adapter: format!("{}@{}", version.name, version.version), tries: TRIES })
    }

    /// What must leave so that the rest fits the budget: of what is neither leased nor pinned, nor to be kept, what is worth
    /// least. None where all fits, or nothing may go. `kept` is asked only where something must.
    pub async fn next_to_go(&self, kept: impl Fn() -> HashSet<Digest>) -> Option<Leaving> {
        loop {
            if self.entries().worth.total_bytes() <= self.budget {
                return None;
            }
            // Every request needs the entries: what is to be kept is found out before they are locked.
            let digest = self.victim(&kept())?;
            let door = self.gates.at(&digest).lock_owned().await;
            let mut entries = self.entries();
            // Somebody may have taken a lease since.
            if entries.by_digest.get(&digest).is_some_and(Entry::may_go)
                && let Some(entry) = entries.by_digest.remove(&digest)
            {
                entries.worth.evict(&digest);
                return Some(Leaving { entry, _door: door });
            }
        }
    }

    /// Takes one adapter out, leased or not.
    ///
    /// # Errors
    /// It is not resident.
    pub async fn remove(&self, digest: &Digest) -> Result<Leaving> {
        let door = self.gates.at(digest).lock_owned().await;
        let entry = {
            let mut entries = self.entries();
            entries.worth.remove(digest);
            entries.by_digest.remove(digest)
        };
        let entry = entry.ok_or_else(|| Error::NotResident(digest.to_string()))?;
        Ok(Leaving { entry, _door: door })
    }

    /// Whether an adapter on this base, by its fingerprint, is pinned or among those that names need.
    pub fn keep(&self, base: &Digest, needs: &HashSet<Digest>) -> bool {
        self.entries().by_digest.values().any(|entry| entry.keeps(base, needs))
    }

    /// Takes all adapters out that are on a base which nobody uses and which is about to go. Unless one of them keeps it: then
    /// nothing is taken out, and this is false.
    pub fn forget(&self, base: &Digest, needs: &HashSet<Digest>) -> bool {
        let mut entries = self.entries();
        if entries.by_digest.values().any(|entry| entry.keeps(base, needs)) {
            return false;
        }
        let on_it = entries.by_digest.values().filter(|entry| entry.fingerprint == *base);
        let on_it: Vec<Digest> = on_it.map(|entry| entry.version.digest.clone()).collect();
        for digest in &on_it {
            entries.worth.remove(digest);
            entries.by_digest.remove(digest);
        }
        true
    }

    /// # Errors
    /// It is not resident.
    pub fn pin(&self, digest: &Digest, pinned: bool) -> Result<Entry> {
        let mut entries = self.entries();
        let entry = entries.by_digest.get_mut(digest).ok_or_else(|| Error::NotResident(digest.to_string()))?;
        entry.pinned = pinned;
        Ok(entry.clone())
    }

    pub fn list(&self) -> Vec<Entry> {
        let mut list: Vec<Entry> = self.entries().by_digest.values().cloned().collect();
        list.sort_by(|a, b| (&a.version.name, a.version.version).cmp(&(&b.version.name, b.version.version)));
        list
    }

    /// The most worth first.
    pub fn by_worth(&self) -> Vec<Entry> {
        let entries = self.entries();
        let ranked = entries.worth.ranked();
        ranked.iter().filter_map(|digest| entries.by_digest.get(digest).cloned()).collect()
    }

    pub fn holds(&self, digest: &Digest) -> bool {
        self.entries().by_digest.contains_key(digest)
    }

    pub fn budget(&self) -> u64 {
        self.budget
    }

    fn touch(&self, digest: &Digest) -> Option<Lease> {
        let mut entries = self.entries();
        entries.worth.touch(digest);
        entries.by_digest.get(digest).map(|entry| Arc::clone(&entry.lease))
    }

    /// What goes next; None where all fits, or nothing may go.
    fn victim(&self, kept: &HashSet<Digest>) -> Option<Digest> {
        let entries = self.entries();
        if entries.worth.total_bytes() <= self.budget {
            return None;
        }
        let may_go =
            |digest: &Digest| entries.by_digest.get(digest).is_some_and(Entry::may_go) && !kept.contains(digest);
        entries.worth.least(may_go)
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn keeps(&self, base: &Digest, needs: &HashSet<Digest>) -> bool {
        self.fingerprint == *base && (self.pinned || needs.contains(&self.version.digest))
    }

    fn may_go(&self) -> bool {
        !self.pinned && Arc::strong_count(&self.lease) == 1
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tailor_domain::Version;

    use super::*;

    fn version(name: &str) -> AdapterVersion {
        AdapterVersion {
            name: name.into(),
            version: Version(1),
            digest: Digest::of(name.as_bytes()),
            prompt_template: String::new(),
        }
    }

    fn base() -> (BaseName, Digest) {
        (BaseName::try_new("little").expect("a name"), Digest::of(b"little"))
    }

    async fn load(resident: &Resident, name: &str) -> Lease {
        let (base, fingerprint) = base();
        let lease = resident.lease(&version(name), (&base, &fingerprint), async { Ok(40) }).await.expect("loads");
        while resident.next_to_go(HashSet::new).await.is_some() {}
        lease
    }

    fn names(resident: &Resident) -> Vec<String> {
        resident.list().into_iter().map(|entry| entry.version.name).collect()
    }

    #[tokio::test]
    async fn many_who_ask_at_once_share_one_load_and_a_failed_one_is_tried_again() {
        let (resident, loads) = (Resident::new(1000), AtomicUsize::new(0));
        let once = || async {
            tokio::task::yield_now().await;
            loads.fetch_add(1, Ordering::Relaxed);
            Ok(40)
        };
        let (base, fingerprint) = base();
        let on = (&base, &fingerprint);
        let version = version("a");
        let fails = || async {
            tokio::task::yield_now().await;
            loads.fetch_add(1, Ordering::Relaxed);
            Err(Error::Cut)
        };
        let all = futures::future::join_all((0..50).map(|_| resident.lease(&version, on, fails()))).await;
        let unavailable =
            |failed: &Result<Lease>| failed.as_ref().is_err_and(|error| error.code() == Error::Cut.code());
        assert!(all.iter().all(unavailable) && resident.list().is_empty());
        assert_eq!(loads.swap(0, Ordering::Relaxed), 1, "nobody tries again what failed while it was waited for");
        tokio::time::sleep(Duration::from_millis(2)).await;
        let all = futures::future::join_all((0..50).map(|_| resident.lease(&version, on, once()))).await;
        assert!(all.iter().all(std::result::Result::is_ok));
        assert_eq!(loads.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn what_is_worth_least_goes_and_what_is_leased_or_pinned_stays() {
        let resident = Resident::new(100);
        let held = load(&resident, "a").await;
        drop(load(&resident, "b").await);
        drop(load(&resident, "c").await);
        assert_eq!(names(&resident), ["a", "c"], "a is leased, b was the longest unused");
        resident.pin(&version("c").digest, true).expect("resident");
        let second = load(&resident, "d").await;
        assert_eq!(names(&resident), ["a", "c", "d"], "all are in use or pinned: the budget waits");
        drop((held, second));
        let kept = version("a").digest;
        while resident.next_to_go(|| HashSet::from([kept.clone()])).await.is_some() {}
        assert_eq!(names(&resident), ["a", "c"], "what a rollout needs stays");
        drop(load(&resident, "d").await);
        assert_eq!(names(&resident), ["c", "d"]);
        assert!(resident.pin(&version("a").digest, true).is_err());
    }

    #[tokio::test]
    async fn a_base_takes_its_adapters_along_unless_one_of_them_keeps_it() {
        let resident = Resident::new(1000);
        let ((base, little), other, none) = (base(), Digest::of(b"other"), HashSet::new());
        drop(load(&resident, "a").await);
        drop(load(&resident, "b").await);
        resident.lease(&version("c"), (&base, &other), async { Ok(40) }).await.expect("loads");
        resident.pin(&version("b").digest, true).expect("resident");
        assert!(resident.keep(&little, &none) && !resident.forget(&little, &none));
        resident.pin(&version("b").digest, false).expect("resident");
        let needs = HashSet::from([version("a").digest]);
        assert!(resident.keep(&little, &needs) && !resident.forget(&little, &needs), "a rollout needs it");
        assert_eq!(names(&resident), ["a", "b", "c"]);
        assert!(!resident.keep(&little, &none) && resident.forget(&little, &none));
        assert_eq!(names(&resident), ["c"], "it is on another base of the same name");
        assert_eq!(resident.entries().worth.total_bytes(), 40);
    }

    #[tokio::test]
    async fn one_that_is_taken_off_while_it_is_loaded_is_loaded_again_unless_that_goes_on() {
        let resident = &Resident::new(1000);
        let (version, (base, fingerprint), loads) = (&version("a"), &base(), &AtomicUsize::new(0));
        let (taken_off, is_taken_off) = (&AtomicUsize::new(0), &AtomicUsize::new(1));
        let lease = || async move {
            let load = async {
                loads.fetch_add(1, Ordering::Relaxed);
                Ok(40)
            };
            let lease = resident.lease(version, (base, fingerprint), load).await?;
            if taken_off.load(Ordering::Relaxed) < is_taken_off.load(Ordering::Relaxed) {
                taken_off.fetch_add(1, Ordering::Relaxed);
                let leaving = resident.remove(&version.digest).await?;
                tokio::spawn(async move { leaving.unused().await });
            }
            Ok::<_, Error>(Some(lease))
        };
        // What is shown is a lease too while it is held.
        let size_bytes = resident.shown(version, lease).await.expect("the second time").size_bytes;
        assert_eq!((size_bytes, loads.load(Ordering::Relaxed)), (40, 2));
        assert_eq!(names(resident), ["a"]);

        is_taken_off.store(usize::MAX, Ordering::Relaxed);
        let Err(error) = resident.shown(version, lease).await else { panic!("it is taken off each time") };
        assert_eq!(error.code(), tailor_domain::ErrorCode::Aborted);
        assert!(error.to_string().contains("a@1") && error.to_string().contains("load it again"), "{error}");
    }

    #[tokio::test]
    async fn loading_one_does_not_wait_for_another() {
        let resident = Resident::new(1000);
        let (release, wait) = tokio::sync::oneshot::channel::<()>();
        let (slow_version, fast_version, (base, fingerprint)) = (version("slow"), version("fast"), base());
        let on = (&base, &fingerprint);
        let slow = resident.lease(&slow_version, on, async {
            let _ = wait.await;
            Ok(40)
        });
        let fast = async {
            let lease = resident.lease(&fast_version, on, async { Ok(40) }).await;
            release.send(()).expect("the slow one still waits");
            lease
        };
        let (slow, fast) = tokio::join!(slow, fast);
        assert!(slow.is_ok() && fast.is_ok());
    }
}
