//! What each tenant may use: requests and tokens a minute. A request reserves all tokens that it may come to, and gives back
//! at its end what it did not use, so that nobody passes the limit by asking for much at once.
//!
//! A bucket holds one minute's worth. A request for more than that is let in when the bucket is full, and leaves a debt.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

const MINUTE: f64 = 60.0;
/// Names come from callers: buckets that are full again are forgotten beyond this many.
const MAX_REMEMBERED: usize = 4096;

#[derive(Debug, Clone, Copy, Default)]
pub struct TenantLimits {
    /// 0 is no limit.
    pub requests_per_minute: u64,
    /// 0 is no limit.
    pub tokens_per_minute: u64,
}

#[derive(Debug)]
pub struct Tenants {
    limits: TenantLimits,
    buckets: Mutex<HashMap<String, Account>>,
}

#[derive(Debug)]
struct Account {
    requests: Bucket,
    tokens: Bucket,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// What is left; below zero is a debt.
    level: f64,
    limit: f64,
    since: Instant,
}

impl Bucket {
    fn full(limit: u64, now: Instant) -> Self {
        Self { level: limit as f64, limit: limit as f64, since: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.level = (self.level + passed * self.limit / MINUTE).min(self.limit);
        self.since = now;
    }

    /// Whether nothing is lost where it is forgotten.
    fn is_full(&self) -> bool {
        self.limit == 0.0 || self.level >= self.limit
    }

    /// When so much will be there, or all that fits; zero is now.
    fn wait_for(&self, amount: f64) -> Duration {
        if self.limit == 0.0 {
            return Duration::ZERO;
        }
        let missing = amount.min(self.limit) - self.level;
        Duration::from_secs_f64((missing * MINUTE / self.limit).max(0.0))
    }
}

/// Tokens set aside for a request. What it has not used goes back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    tenants: Arc<Tenants>,
    tenant: String,
    reserved: u64,
    used: u64,
}

impl Tenants {
    pub fn new(limits: TenantLimits) -> Self {
        Self { limits, buckets: Mutex::default() }
    }

    /// # Errors
    /// The tenant has used up its requests or tokens; says when there will be enough.
    pub fn reserve(self: &Arc<Self>, tenant: &str, tokens: u64, now: Instant) -> Result<Reservation> {
        let reservation =
            |reserved| Reservation { tenants: Arc::clone(self), tenant: tenant.to_owned(), reserved, used: 0 };
        let TenantLimits { requests_per_minute, tokens_per_minute } = self.limits;
        if requests_per_minute == 0 && tokens_per_minute == 0 {
            return Ok(reservation(0));
        }
        let mut buckets = self.lock();
        if buckets.len() >= MAX_REMEMBERED && !buckets.contains_key(tenant) {
            buckets.retain(|_, account| {
                account.requests.fill(now);
                account.tokens.fill(now);
                !(account.requests.is_full() && account.tokens.is_full())
            });
        }
        let account = buckets.entry(tenant.to_owned()).or_insert_with(|| Account {
            requests: Bucket::full(requests_per_minute, now),
            tokens: Bucket::full(tokens_per_minute, now),
        });
        account.requests.fill(now);
        account.tokens.fill(now);
        let refused = |what, asked, limit, retry_after| {
            Err(Error::TenantLimit { tenant: tenant.to_owned(), what, asked, limit, retry_after })
        };
        let wait = account.requests.wait_for(1.0);
        if !wait.is_zero() {
            return refused("requests", 1, requests_per_minute, wait);
        }
        let wait = account.tokens.wait_for(tokens as f64);
        if !wait.is_zero() {
            return refused("tokens", tokens, tokens_per_minute, wait);
        }
        account.requests.level -= 1.0;
        account.tokens.level -= tokens as f64;
        Ok(reservation(tokens))
    }

    /// Nothing, for what no tenant has asked for.
    pub fn free(self: &Arc<Self>) -> Reservation {
        Reservation { tenants: Arc::clone(self), tenant: String::new(), reserved: 0, used: 0 }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Account>> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// Says how many tokens have been used by now.
    pub fn used(&mut self, tokens: u64) {
        self.used = tokens;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let unused = self.reserved.saturating_sub(self.used);
        if let Some(account) = self.tenants.lock().get_mut(&self.tenant).filter(|_| unused > 0) {
            account.tokens.level = (account.tokens.level + unused as f64).min(account.tokens.limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(requests_per_minute: u64, tokens_per_minute: u64) -> Arc<Tenants> {
        Arc::new(Tenants::new(TenantLimits { requests_per_minute, tokens_per_minute }))
    }

    fn wait(error: &Error) -> Duration {
        match error {
            Error::TenantLimit { retry_after, .. } => *retry_after,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn what_was_not_used_goes_back() {
        let (tenants, now) = (tenants(0, 100), Instant::now());
        let mut first = tenants.reserve("a", 80, now).expect("enough");
        let error = tenants.reserve("a", 80, now).expect_err("all but 20 are reserved");
        assert_eq!(wait(&error), Duration::from_secs(36), "{error}");
        assert!(error.to_string().contains("80 tokens"), "{error}");
        first.used(30);
        drop(first);
        let mut second = tenants.reserve("a", 70, now).expect("50 came back");
        second.used(70);
        drop(second);
        assert!(tenants.reserve("a", 1, now).is_err());
        assert!(tenants.reserve("a", 50, now + Duration::from_secs(30)).is_ok(), "half a minute fills half");
    }

    #[test]
    fn one_tenants_use_is_not_anothers() {
        let (tenants, now) = (tenants(2, 0), Instant::now());
        let held: Vec<_> = (0..2).map(|_| tenants.reserve("a", 1, now).expect("two")).collect();
        let error = tenants.reserve("a", 1, now).expect_err("no third");
        assert_eq!(wait(&error), Duration::from_secs(30));
        assert!(tenants.reserve("b", 1, now).is_ok());
        drop(held);
        assert!(tenants.reserve("a", 1, now).is_err(), "a request that has ended was made");
    }

    #[test]
    fn more_than_a_minutes_worth_is_let_in_when_nothing_is_owed() {
        let (tenants, now) = (tenants(0, 100), Instant::now());
        let mut large = tenants.reserve("a", 300, now).expect("the bucket is full");
        large.used(300);
        drop(large);
        let error = tenants.reserve("a", 1, now).expect_err("a debt");
        assert!(wait(&error) > Duration::from_secs(120), "{error}");
        assert!(tenants.reserve("a", 100, now + Duration::from_secs(181)).is_ok());
    }

    #[test]
    fn a_tenant_that_owes_nothing_is_forgotten_whichever_limit_there_is() {
        for (requests_per_minute, tokens_per_minute) in [(2, 100), (2, 0), (0, 100)] {
            let (tenants, now) = (tenants(requests_per_minute, tokens_per_minute), Instant::now());
            for n in 0..MAX_REMEMBERED {
                tenants.reserve(&format!("tenant {n}"), 1, now).expect("enough").used(1);
            }
            assert_eq!(tenants.lock().len(), MAX_REMEMBERED);
            drop(tenants.reserve("another", 1, now + Duration::from_secs(90)).expect("enough"));
            let left = tenants.lock().len();
            assert_eq!(
                left, 1,
                "{requests_per_minute} requests, {tokens_per_minute} tokens: the others are full again"
            );
        }
    }

    #[test]
    fn without_limits_nothing_is_remembered() {
        let tenants = tenants(0, 0);
        for n in 0..10_000 {
            drop(tenants.reserve(&format!("tenant {n}"), u64::MAX, Instant::now()).expect("no limit"));
        }
        assert!(tenants.lock().is_empty());
    }
}
