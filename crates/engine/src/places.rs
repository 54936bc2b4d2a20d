//! Places in the queue: so many requests and so many tokens may wait, and no tenant can take them all.
//!
//! A tenant may hold as long as it holds less than [`SHARE`] times what is free (dynamic thresholds, Choudhury and Hahne 1998):
//! a single one gets nearly everything, k that ask for more than there is get the same each, and whoever comes anew finds
//! something free, unless the queue has no more than a few places at all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::Error;

/// How many times what is free a tenant may hold: one alone gets 8/9.
const SHARE: usize = 8;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    pub requests: usize,
    pub tokens: usize,
}

#[derive(Debug)]
pub struct Places {
    limit: Held,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: Held,
    /// Of those that hold something.
    tenants: HashMap<String, Held>,
}

/// A place in the queue, until it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    tenant: String,
    tokens: usize,
}

impl Places {
    pub fn new(requests: usize, tokens: usize) -> Self {
        Self { limit: Held { requests, tokens }, taken: Mutex::default() }
    }

    /// What waits.
    pub fn held(&self) -> Held {
        self.taken().all
    }

    /// A place for a request that may come to `tokens`. A single request of any length may wait if nothing else does.
    ///
    /// # Errors
    /// The queue is full, or the tenant's part of it; `retry_after` says from the tokens that wait when to come again.
    pub fn take(
        self: &Arc<Self>,
        tenant: &str,
        tokens: usize,
        retry_after: impl Fn(usize) -> Duration,
    ) -> Result<Place, Error> {
        let (limit, asked) = (self.limit, tokens);
        let tokens = tokens.min(limit.tokens);
        let mut taken = self.taken();
        let (all, own) = (taken.all, taken.tenants.get(tenant).copied().unwrap_or_default());
        let retry_after = || retry_after(all.tokens);
        let free = Held { requests: limit.requests - all.requests, tokens: limit.tokens - all.tokens };
        if free.requests == 0 {
            let (waiting, limit) = (all.requests, limit.requests);
            return Err(Error::QueueFull { waiting, limit, retry_after: retry_after() });
        }
        if free.tokens < tokens {
            let (waiting, limit) = (all.tokens, limit.tokens);
            return Err(Error::TokensFull { waiting, asked, limit, retry_after: retry_after() });
        }
        // Of tokens what counts is what would be left: one request may ask for all that is free.
        let left = (free.tokens - tokens).saturating_mul(SHARE);
        let is_fair = own.requests < free.requests.saturating_mul(SHARE) && own.tokens + tokens <= left;
        if own.requests > 0 && !is_fair {
            return Err(Error::ShareFull {
                tenant: tenant.to_owned(),
                requests: own.requests,
                tokens: own.tokens,
                retry_after: retry_after(),
            });
        }
        let Taken { all, tenants } = &mut *taken;
        for held in [all, tenants.entry(tenant.to_owned()).or_default()] {
            held.requests += 1;
            held.tokens += tokens;
        }
        Ok(Place { places: Arc::clone(self), tenant: tenant.to_owned(), tokens })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.all.requests -= 1;
        taken.all.tokens -= self.tokens;
        let Some(own) = taken.tenants.get_mut(&self.tenant) else { return };
        own.requests -= 1;
        own.tokens -= self.tokens;
        if own.requests == 0 {
            taken.tenants.remove(&self.tenant);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(places: &Arc<Places>, tenant: &str, tokens: usize) -> Vec<Place> {
        let soon = |_| Duration::from_secs(1);
        std::iter::from_fn(|| places.take(tenant, tokens, soon).ok()).collect()
    }

    #[test]
    fn one_tenant_leaves_room_for_the_next_and_those_who_flood_get_the_same() {
        let places = Arc::new(Places::new(256, 1 << 20));
        let first = fill(&places, "a", 10);
        assert!((220..256).contains(&first.len()), "one alone gets nearly all: {}", first.len());
        let second = fill(&places, "b", 10);
        assert!(!second.is_empty(), "somebody else still finds a place");
        // What a is given is worked off; both ask again and again.
        let (mut a, mut b) = (first, second);
        for _ in 0..300 {
            drop(a.pop().or_else(|| b.pop()));
            a.extend(fill(&places, "a", 10));
            b.extend(fill(&places, "b", 10));
        }
        let (a, b) = (a.len().max(b.len()), a.len().min(b.len()));
        assert!(a <= 2 * b, "{a} and {b} places");
    }

    #[test]
    fn tokens_are_shared_as_requests_are() {
        let places = Arc::new(Places::new(1000, 10_000));
        let first = fill(&places, "a", 100);
        assert!((80..100).contains(&first.len()), "{}", first.len());
        let error = places.take("a", 100, |_| Duration::from_secs(3)).expect_err("its part is full");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
        assert!(error.to_string().contains("tenant \"a\""), "{error}");
        assert!(places.take("b", 100, |_| Duration::ZERO).is_ok());
        drop(first);
        let half = places.take("a", 5000, |_| Duration::ZERO).expect("there is room");
        assert!(places.take("a", 5000, |_| Duration::ZERO).is_err(), "nothing would be left for anybody");
        drop(half);
    }

    #[test]
    fn what_is_given_back_leaves_no_trace_and_a_giant_may_wait_alone() {
        let places = Arc::new(Places::new(4, 100));
        let giant = places.take("a", 1 << 40, |_| Duration::ZERO).expect("nothing else waits");
        assert_eq!(places.held(), Held { requests: 1, tokens: 100 });
        assert!(matches!(places.take("b", 1, |_| Duration::ZERO), Err(Error::TokensFull { .. })));
        drop(giant);
        let few = fill(&places, "", 1);
        assert_eq!(few.len(), 4, "a short queue is anybody's");
        drop(few);
        assert_eq!(places.held(), Held::default());
        assert!(places.taken().tenants.is_empty());
    }
}
