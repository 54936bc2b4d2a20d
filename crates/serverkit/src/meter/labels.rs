//! Names that may become labels: the first so many, then `other`. Adapters come and go by the thousand, and each label value is
//! a series that a metrics store keeps for ever.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// What all names beyond the limit are called.
pub const OTHER: &str = "other";

#[derive(Debug)]
pub struct Labels {
    limit: usize,
    named: Mutex<HashSet<String>>,
}

impl Labels {
    pub fn new(limit: usize) -> Self {
        Self { limit, named: Mutex::default() }
    }

    /// Whether a name may stand as it is. Who came first stays, so that a series never changes its meaning.
    pub fn admit(&self, name: &str) -> bool {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.contains(name) {
            return true;
        }
        let room = named.len() < self.limit;
        if room {
            named.insert(name.to_owned());
        }
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_names_stay_and_there_are_never_more() {
        let labels = Labels::new(2);
        let admitted: Vec<bool> = ["a", "b", "c", "a", "d", "b"].map(|name| labels.admit(name)).into();
        assert_eq!(admitted, [true, true, false, true, false, true]);
        assert!(!Labels::new(0).admit("a"));
    }
}
