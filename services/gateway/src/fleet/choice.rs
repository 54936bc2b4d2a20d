//! Which engine takes a request: one that has its adapter, unless it has more to do than its share.
//!
//! Rendezvous hashing (Thaler, Ravishankar 1998) gives each adapter an engine of its own as long as the engines are the same,
//! so that few copies are loaded and prefixes are found again; a bound on each engine's load (Mirrokni, Thorup,
//! Zadimoghaddam 2018) sends what is popular to more of them.

use std::cmp::Reverse;

use tailor_domain::Digest;

/// An engine as one request sees it.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// Its address, which is what it is known by.
    pub name: String,
    pub serving: bool,
    /// Sequences that it works on, and requests that wait there.
    pub load: u64,
    /// Whether it has the request's base: to start one takes far longer than to load an adapter, and another may have to leave.
    pub has_base: bool,
    /// Where it has the request's adapter.
    pub has: Has,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Has {
    #[default]
    Nothing,
    InMemory,
    OnDevice,
}

/// An engine may have so much more than the mean, and a little more than that, before it counts as crowded.
const SHARE: f64 = 1.25;
const SLACK: f64 = 2.0;

/// Engines in the order in which they are to be tried. Those that do not serve come last: what is known of them is a moment old.
pub fn order(digest: &str, views: &[View]) -> Vec<usize> {
    let serving = views.iter().filter(|view| view.serving);
    let (count, total) = serving.fold((0u64, 0u64), |(count, total), view| (count + 1, total + view.load));
    let bound = SHARE * total as f64 / count.max(1) as f64 + SLACK;
    let mut order: Vec<usize> = (0..views.len()).collect();
    // The base alone is everywhere: what counts is who has least to do.
    let everywhere = digest.is_empty();
    order.sort_by_cached_key(|at| {
        let view = &views[*at];
        let is_crowded = view.load as f64 > bound;
        let load = if everywhere || is_crowded { view.load } else { 0 };
        (!view.serving, !view.has_base, is_crowded, load, Reverse(view.has), Reverse(weight(digest, &view.name)))
    });
    order
}

/// A pair's number: as good as drawn, and the same at every edge.
fn weight(digest: &str, engine: &str) -> String {
    Digest::of(format!("{digest} {engine}").as_bytes()).hex().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn views(loads: &[u64]) -> Vec<View> {
        let view = |(at, load): (usize, &u64)| View {
            name: format!("http://engine-{at}:50055"),
            serving: true,
            load: *load,
            has_base: true,
            has: Has::Nothing,
        };
        loads.iter().enumerate().map(view).collect()
    }

    #[test]
    fn an_adapter_goes_where_it_is_and_a_new_one_always_to_the_same_engine() {
        let mut views = views(&[0, 1, 2]);
        let home = order("sha256:a", &views)[0];
        assert_eq!(order("sha256:a", &views)[0], home);
        let other = (home + 1) % 3;
        views[other].has = Has::InMemory;
        assert_eq!(order("sha256:a", &views)[0], other);
        views[home].has = Has::OnDevice;
        assert_eq!(order("sha256:a", &views)[..2], [home, other]);
    }

    #[test]
    fn adapters_spread_over_engines_and_few_move_when_one_comes() {
        let (three, four) = (views(&[0; 3]), views(&[0; 4]));
        let homes = |views: &[View]| (0..1000).map(|n| order(&format!("sha256:{n}"), views)[0]).collect::<Vec<_>>();
        let (before, after) = (homes(&three), homes(&four));
        for engine in 0..3 {
            let count = before.iter().filter(|home| **home == engine).count();
            assert!((250..420).contains(&count), "engine {engine} has {count} of 1000");
        }
        let moved: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
        assert!(moved.iter().all(|(_, after)| **after == 3), "only to the new one");
        assert!((180..320).contains(&moved.len()), "{} of 1000 moved", moved.len());
    }

    #[test]
    fn one_with_more_than_its_share_is_stepped_over() {
        let mut views = views(&[40, 3, 2]);
        views[0].has = Has::OnDevice;
        let order = order("sha256:a", &views);
        assert_eq!(order[2], 0, "it has the adapter, and eight times what the others do");
    }

    #[test]
    fn a_request_goes_where_its_base_is_and_to_another_only_after_that() {
        let mut views = views(&[40, 0, 0]);
        (views[1].has_base, views[2].has_base) = (false, false);
        assert_eq!(order("", &views)[0], 0, "though the others have nothing to do");
        assert_eq!(order("sha256:a", &views)[0], 0);
        views[0].serving = false;
        assert_ne!(order("sha256:a", &views)[0], 0);
    }

    #[test]
    fn the_base_alone_goes_to_the_idlest_and_nothing_to_one_that_stops() {
        let mut views = views(&[3, 1, 0]);
        assert_eq!(order("", &views), [2, 1, 0]);
        views[2].serving = false;
        assert_eq!(order("", &views), [1, 0, 2], "unless there is no other");
    }
}
