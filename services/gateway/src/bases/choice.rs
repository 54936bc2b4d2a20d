//! Which base leaves so that another one fits: of those that nothing keeps, the longest unused. What it is chosen by, and no
//! more: what is resident, and how it leaves, is [`super::room`]'s to know.

use tailor_domain::{BaseName, Digest};

use crate::error::{Error, Result};

/// Bytes that bases may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub together: u64,
    /// Of a base that has the device to itself.
    pub alone: u64,
}

/// Why a base stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stays {
    Loading,
    InUse,
    /// The settings name it.
    Preloaded,
    /// An adapter on it is pinned, or a rollout needs one.
    Adapters,
}

/// A base that takes room.
#[derive(Debug, Clone)]
pub struct Taker {
    pub digest: Digest,
    pub name: BaseName,
    pub size_bytes: u64,
    /// Grows from use to use.
    pub last_used: u64,
    pub stays: Option<Stays>,
}

impl Limits {
    /// `set`: what the settings say, 0 for what the device leaves. `device`: bytes that it has, if that is known; `others`: bytes
    /// of it that the settings give to adapters.
    pub fn new(set: u64, device: Option<u64>, others: u64) -> Self {
        if set > 0 {
            return Self { together: set, alone: set };
        }
        let device = device.unwrap_or(u64::MAX);
        // Adapters may take so much and seldom do: on a small machine that must not leave the bases nothing.
        Self { together: device.saturating_sub(others).max(device / 2), alone: device }
    }
}

impl Stays {
    fn why(self) -> &'static str {
        match self {
            Self::Loading => "being loaded",
            Self::InUse => "in use",
            Self::Preloaded => "named in gateway.preload",
            Self::Adapters => "has an adapter that is pinned or in a rollout",
        }
    }
}

/// The next base that must go so that `base` fits with `needed` bytes; None where it does.
///
/// # Errors
/// [`Error::NoRoomForBase`]: it would not fit even if all had gone that may. Then none has to.
pub fn next_to_go(base: &BaseName, needed: u64, takers: &[Taker], limits: Limits) -> Result<Option<Digest>> {
    let limit_beside = |others: usize| if others == 0 { limits.alone } else { limits.together };
    if together(needed, takers) <= limit_beside(takers.len()) {
        return Ok(None);
    }
    let staying: Vec<Taker> = takers.iter().filter(|taker| taker.stays.is_some()).cloned().collect();
    let limit_bytes = limit_beside(staying.len());
    if together(needed, &staying) > limit_bytes {
        return Err(Error::NoRoomForBase { base: base.clone(), needed, limit_bytes, beside: beside(&staying) });
    }
    let idle = takers.iter().filter(|taker| taker.stays.is_none());
    Ok(idle.min_by_key(|taker| taker.last_used).map(|taker| taker.digest.clone()))
}

fn together(needed: u64, takers: &[Taker]) -> u64 {
    takers.iter().fold(needed, |sum, taker| sum.saturating_add(taker.size_bytes))
}

/// What stays, for people.
fn beside(staying: &[Taker]) -> String {
    let told = |taker: &Taker| {
        let why = taker.stays.map_or("idle", Stays::why);
        format!("{} with {} bytes ({why})", taker.name, taker.size_bytes)
    };
    let staying: Vec<String> = staying.iter().map(told).collect();
    if staying.is_empty() { "nothing".into() } else { staying.join(", ") }
}

#[cfg(test)]
mod tests {
    use tailor_domain::ErrorCode;

    use super::*;

    const LIMITS: Limits = Limits { together: 100, alone: 120 };

    fn taker(name: &str, size_bytes: u64, last_used: u64, stays: Option<Stays>) -> Taker {
        let digest = Digest::of(name.as_bytes());
        Taker { digest, name: name.parse().expect("a name"), size_bytes, last_used, stays }
    }

    /// The names of those that go, one after the other.
    fn leave(needed: u64, mut takers: Vec<Taker>) -> Result<Vec<String>> {
        let (base, mut gone): (BaseName, _) = ("new".parse().expect("a name"), Vec::new());
        while let Some(digest) = next_to_go(&base, needed, &takers, LIMITS)? {
            let at = takers.iter().position(|taker| taker.digest == digest).expect("one of them");
            gone.push(takers.remove(at).name.to_string());
        }
        Ok(gone)
    }

    #[test]
    fn the_longest_unused_go_first_and_no_more_of_them_than_must() {
        let takers = || vec![taker("a", 40, 3, None), taker("b", 30, 1, None), taker("c", 20, 2, None)];
        assert_eq!(leave(10, takers()).expect("fits"), [""; 0]);
        assert_eq!(leave(11, takers()).expect("fits"), ["b"]);
        assert_eq!(leave(60, takers()).expect("fits"), ["b", "c"]);
        assert_eq!(leave(100, takers()).expect("fits"), ["b", "c", "a"]);
    }

    #[test]
    fn what_is_in_use_preloaded_pinned_or_being_loaded_stays_however_old_it_is() {
        for stays in [Stays::Loading, Stays::InUse, Stays::Preloaded, Stays::Adapters] {
            let takers = || vec![taker("old", 40, 0, Some(stays)), taker("young", 40, 9, None)];
            assert_eq!(leave(60, takers()).expect("fits"), ["young"], "{stays:?}");
            let error = leave(61, takers()).expect_err("one byte too many");
            assert_eq!(error.code(), ErrorCode::ResourceExhausted);
            let told = error.to_string();
            for part in ["base new", "61 bytes", "100 bytes", "gateway.base_bytes", "old with 40 bytes", stays.why()] {
                assert!(told.contains(part), "{part:?} is not in {told:?}");
            }
            assert!(!told.contains("young"), "it could go, and would not help: {told}");
        }
    }

    #[test]
    fn nobody_goes_for_what_would_not_fit_then_either() {
        let takers = vec![taker("a", 40, 1, None), taker("b", 40, 2, None)];
        let told = leave(121, takers).expect_err("larger than the device").to_string();
        assert!(told.contains("120 bytes") && told.contains("nothing"), "{told}");
    }

    #[test]
    fn a_base_that_has_the_device_to_itself_may_take_more_of_it() {
        assert_eq!(leave(120, Vec::new()).expect("fits"), [""; 0]);
        assert_eq!(leave(120, vec![taker("a", 1, 1, None)]).expect("fits"), ["a"]);
        leave(120, vec![taker("a", 1, 1, Some(Stays::InUse))]).expect_err("it is not alone");
    }

    #[test]
    fn without_a_setting_bases_may_take_what_the_device_leaves_beside_adapters() {
        let of = |set, device, others| {
            let Limits { together, alone } = Limits::new(set, device, others);
            (together, alone)
        };
        assert_eq!(of(7, Some(100), 9), (7, 7));
        assert_eq!(of(0, Some(100), 9), (91, 100));
        assert_eq!(of(0, Some(10), 9), (5, 10), "half of it at the least");
        assert_eq!(of(0, None, 9).1, u64::MAX, "nobody says what there is");
    }
}
