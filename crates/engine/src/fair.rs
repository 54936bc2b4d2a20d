//! A queue that is fair between tenants: start-time fair queueing (Goyal, Vin and Cheng 1996) over tokens.
//!
//! Each tenant's requests stay in their order; among tenants the one that has been given least, in tokens, is next. Who comes
//! anew begins at the present, so nobody saves up a claim by being quiet. The present goes on with every request that is taken,
//! by its tokens' share of those who wait, and not only with the starts of what is taken: names come from callers, and where
//! each request bore another one, all would start at the same present, and whoever was given something before them would
//! wait for ever and be remembered for ever.

use std::collections::{HashMap, VecDeque};

/// Parts of a token that the present is told in: a request's share of many who wait is less than one.
const PARTS: u64 = 1 << 10;

pub struct FairQueue<T> {
    tenants: HashMap<String, Tenant<T>>,
    /// Where a new tenant begins, in parts of a token given to each.
    present: u64,
    length: usize,
    /// Tenants that have come by now.
    came: u64,
}

struct Tenant<T> {
    /// Each with its cost and with its start: all that the tenant has been given when it is taken.
    waiting: VecDeque<(T, u64, u64)>,
    end: u64,
    /// Order of coming, for ties.
    number: u64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { tenants: HashMap::new(), present: 0, length: 0, came: 0 }
    }
}

impl<T> FairQueue<T> {
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// `cost`: tokens.
    pub fn push(&mut self, tenant: &str, cost: u64, item: T) {
        let number = self.came;
        let tenant = self.tenants.entry(tenant.to_owned()).or_insert_with(|| {
            self.came += 1;
            Tenant { waiting: VecDeque::new(), end: 0, number }
        });
        let (start, cost) = (tenant.end.max(self.present), cost.saturating_mul(PARTS));
        tenant.end = start.saturating_add(cost);
        tenant.waiting.push_back((item, cost, start));
        self.length += 1;
    }

    /// What is next.
    pub fn peek(&self) -> Option<&T> {
        let tenant = self.tenants.get(self.next()?)?;
        tenant.waiting.front().map(|(item, ..)| item)
    }

    pub fn pop(&mut self) -> Option<T> {
        let name = self.next()?.to_owned();
        let sharing = self.tenants.values().filter(|tenant| !tenant.waiting.is_empty()).count() as u64;
        let tenant = self.tenants.get_mut(&name)?;
        let (item, cost, start) = tenant.waiting.pop_front()?;
        self.present = self.present.max(start).saturating_add(cost.div_ceil(sharing.max(1)));
        self.length -= 1;
        self.forget();
        Some(item)
    }

    /// Takes out everything that is not to stay, in no order. A tenant gets back what it has not been given.
    pub fn remove_unless(&mut self, stays: impl Fn(&T) -> bool) -> Vec<T> {
        let mut removed = Vec::new();
        for tenant in self.tenants.values_mut() {
            let Some(first) = tenant.waiting.front().map(|(.., start)| *start) else { continue };
            let mut given_back = 0;
            for (item, cost, start) in std::mem::take(&mut tenant.waiting) {
                if stays(&item) {
                    tenant.waiting.push_back((item, cost, start.saturating_sub(given_back).max(first)));
                } else {
                    given_back += cost;
                    removed.push(item);
                }
            }
            tenant.end = tenant.end.saturating_sub(given_back).max(first);
        }
        self.length -= removed.len();
        if !removed.is_empty() {
            self.forget();
        }
        removed
    }

    /// A tenant that waits for nothing and has been given no more than others leaves no trace.
    fn forget(&mut self) {
        let present = self.present;
        self.tenants.retain(|_, tenant| !tenant.waiting.is_empty() || tenant.end > present);
    }

    fn next(&self) -> Option<&str> {
        let waiting = self.tenants.iter().filter_map(|(name, tenant)| {
            let (.., start) = tenant.waiting.front()?;
            Some(((*start, tenant.number), name.as_str()))
        });
        waiting.min().map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(queue: &mut FairQueue<&'static str>, count: usize) -> Vec<&'static str> {
        (0..count).filter_map(|_| queue.pop()).collect()
    }

    #[test]
    fn one_tenants_requests_stay_in_order() {
        let mut queue = FairQueue::default();
        for (cost, item) in [(9, "a"), (1, "b"), (5, "c")] {
            queue.push("one", cost, item);
        }
        assert_eq!(drain(&mut queue, 5), ["a", "b", "c"]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_flood_of_one_tenant_does_not_make_another_wait() {
        let mut queue = FairQueue::default();
        (0..100).for_each(|_| queue.push("flood", 10, "flood"));
        assert_eq!(drain(&mut queue, 20), ["flood"; 20]);
        queue.push("quiet", 10, "quiet");
        queue.push("quiet", 10, "quiet");
        let next = drain(&mut queue, 4);
        assert_eq!(next.iter().filter(|item| **item == "quiet").count(), 2, "{next:?}");
    }

    #[test]
    fn shares_are_equal_in_tokens_and_not_in_requests() {
        let mut queue = FairQueue::default();
        (0..100).for_each(|_| queue.push("long", 30, "long"));
        (0..100).for_each(|_| queue.push("short", 10, "short"));
        let taken = drain(&mut queue, 40);
        let long = taken.iter().filter(|item| **item == "long").count();
        assert!((9..=11).contains(&long), "{long} long ones of 40");
    }

    #[test]
    fn quiet_times_are_not_saved_up() {
        let mut queue = FairQueue::default();
        (0..50).for_each(|_| queue.push("steady", 10, "steady"));
        drain(&mut queue, 40);
        (0..50).for_each(|_| queue.push("late", 10, "late"));
        let taken = drain(&mut queue, 10);
        let late = taken.iter().filter(|item| **item == "late").count();
        assert!((4..=6).contains(&late), "{late} of 10 for who came late");
    }

    #[test]
    fn what_does_not_stay_is_taken_out_and_counted() {
        let mut queue = FairQueue::default();
        queue.push("one", 1, "a");
        queue.push("two", 1, "b");
        assert_eq!(queue.remove_unless(|item| *item != "a"), ["a"]);
        assert!(!queue.is_empty());
        assert_eq!(queue.peek(), Some(&"b"));
        assert_eq!(queue.pop(), Some("b"));
    }

    #[test]
    fn a_new_name_for_each_request_is_neither_remembered_nor_an_advantage() {
        let mut queue = FairQueue::default();
        (0..8).for_each(|_| queue.push("steady", 20, "steady"));
        let mut steady = 0;
        for n in 0..10_000 {
            queue.push(&format!("tenant {n}"), 20, "fresh");
            steady += usize::from(queue.pop() == Some("steady"));
            assert!(queue.tenants.len() <= 32, "{} tenants are remembered", queue.tenants.len());
        }
        assert_eq!(steady, 8, "whoever keeps its name is served too");
    }

    #[test]
    fn what_is_taken_out_unserved_is_not_held_against_its_tenant() {
        let mut queue = FairQueue::default();
        queue.push("hasty", 10, "first");
        (0..100).for_each(|_| queue.push("hasty", 1000, "dropped"));
        queue.push("hasty", 10, "last");
        queue.push("other", 15, "other");
        queue.push("other", 15, "other");
        assert_eq!(queue.remove_unless(|item| *item != "dropped").len(), 100);
        assert_eq!(drain(&mut queue, 4), ["first", "other", "last", "other"]);
        assert!(queue.tenants.len() <= 1, "nobody is remembered who was given no more than others");
    }
}
