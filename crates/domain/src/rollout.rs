//! Rollouts: a version that a share of the callers of an alias is sent to, before all of them are.
//!
//! Which side a caller is on is a pure function of the rollout's id and the caller's key, so any number of gateways agree
//! without speaking to each other. The key is hashed into one of 10,000 buckets, and the canary has the first of them:
//! raising its share adds buckets and takes none away.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::Invalid;
use crate::ids::{AdapterName, AliasName, Version};

/// Buckets that callers fall into; a share is a number of them.
pub const BUCKETS: u16 = 10_000;
const MAX_GOLDEN_BYTES: usize = 64 << 10;
const MAX_MIN_REQUESTS: u32 = 1000;

/// One entry of the log of an alias' rollouts, whole; the last is the present.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    pub alias: AliasName,
    /// Position in the log, from 1.
    pub seq: u64,
    /// Position of the rollout's first entry.
    pub id: u64,
    pub state: RolloutState,
    /// What the alias pointed to when the rollout began, and the number of the move that made it so: any later move of the
    /// alias ends the rollout.
    pub stable: Version,
    pub alias_seq: u64,
    pub canary: Version,
    pub share: Share,
    pub shadow: Share,
    pub sticky_by: StickyBy,
    pub limits: Limits,
    pub golden: Option<Golden>,
    pub who: String,
    pub why: String,
    pub at_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RolloutState {
    Running,
    /// The alias is being moved: from here there is no abort, only the move or a rollback after it.
    Promoting,
    Promoted,
    Aborted,
}

impl RolloutState {
    /// Whether callers are being split.
    pub fn splits(self) -> bool {
        matches!(self, Self::Running | Self::Promoting)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "RUNNING",
            Self::Promoting => "PROMOTING",
            Self::Promoted => "PROMOTED",
            Self::Aborted => "ABORTED",
        }
    }
}

impl Rollout {
    /// Whether callers are split now, given the number of the alias' last move.
    pub fn is_active(&self, alias_seq: u64) -> bool {
        self.state.splits() && self.alias_seq == alias_seq
    }

    /// What stands before a caller's key in the hash: one for each rollout, so that it is not always the same callers who
    /// come first.
    pub fn salt(&self, adapter: &AdapterName) -> String {
        format!("{adapter}@{}#{}", self.alias, self.id)
    }
}

/// The bucket of a caller.
pub fn bucket(salt: &str, key: &str) -> u16 {
    // A newline is in no name, so no two pairs of salt and key are the same text.
    let hash = Sha256::digest(format!("{salt}\n{key}"));
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(hash);
    let number = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    // Multiply-shift: the top of a 128-bit product is even over the buckets to within 2^-50.
    ((u128::from(number) * u128::from(BUCKETS)) >> 64) as u16
}

/// A part of all callers, in steps of a hundredth of a percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share(u16);

impl Share {
    /// # Errors
    /// Outside 0 to 100.
    pub fn from_percent(field: &str, percent: f64) -> Result<Self, Invalid> {
        if !(0.0..=100.0).contains(&percent) {
            return Err(Invalid::new(field, format!("{percent} is outside 0 to 100")));
        }
        Ok(Self((percent * 100.0).round() as u16))
    }

    pub fn percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// Whether a bucket is in this share.
    pub fn holds(self, bucket: u16) -> bool {
        bucket < self.0
    }

    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// Which of a caller's names decides its side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StickyBy {
    Tenant,
    #[default]
    Session,
    User,
}

impl StickyBy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Session => "session",
            Self::User => "user",
        }
    }
}

impl std::str::FromStr for StickyBy {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "tenant" => Ok(Self::Tenant),
            "session" => Ok(Self::Session),
            "user" => Ok(Self::User),
            other => Err(Invalid::new("sticky_by", format!("{other:?} is none of tenant, session, user"))),
        }
    }
}

/// Whom an answer is for, in the caller's own words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    pub tenant: String,
    pub session: String,
    pub user: String,
}

impl Caller {
    const MAX_BYTES: usize = 256;

    /// # Errors
    /// A name is too long.
    pub fn try_new(tenant: String, session: String, user: String) -> Result<Self, Invalid> {
        for (field, name) in [("caller.tenant", &tenant), ("caller.session", &session), ("caller.user", &user)] {
            if name.len() > Self::MAX_BYTES {
                return Err(Invalid::new(field, format!("{} bytes; the limit is {}", name.len(), Self::MAX_BYTES)));
            }
        }
        Ok(Self { tenant, session, user })
    }

    /// The name that counts, or the next that there is, told apart by its kind: a user and a session of one name are two.
    pub fn key(&self, by: StickyBy) -> Option<String> {
        let wanted = match by {
            StickyBy::Tenant => ("tenant", &self.tenant),
            StickyBy::Session => ("session", &self.session),
            StickyBy::User => ("user", &self.user),
        };
        let others = [("session", &self.session), ("user", &self.user), ("tenant", &self.tenant)];
        let (kind, name) = std::iter::once(wanted).chain(others).find(|(_, name)| !name.is_empty())?;
        Some(format!("{kind}:{name}"))
    }
}

/// When a rollout ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Requests that a side must have had before it is judged.
    pub min_requests: u32,
    pub max_error_rate: f64,
    /// Canary's 95th percentile over the stable version's; 0: not looked at.
    pub max_latency_ratio: f64,
    pub max_quality_drop: f64,
    pub max_shadow_distance: Option<f64>,
}

impl Default for Limits {
    fn default() -> Self {
        let (max_error_rate, max_latency_ratio, max_quality_drop) = (0.02, 2.0, 0.05);
        Self { min_requests: 50, max_error_rate, max_latency_ratio, max_quality_drop, max_shadow_distance: None }
    }
}

impl Limits {
    /// # Errors
    /// A limit outside its bounds; the message names it.
    pub fn validate(&self) -> Result<(), Invalid> {
        if !(1..=MAX_MIN_REQUESTS).contains(&self.min_requests) {
            let problem = format!("{} is outside 1 to {MAX_MIN_REQUESTS}", self.min_requests);
            return Err(Invalid::new("limits.min_requests", problem));
        }
        let shares = [
            ("limits.max_error_rate", Some(self.max_error_rate)),
            ("limits.max_quality_drop", Some(self.max_quality_drop)),
            ("limits.max_shadow_distance", self.max_shadow_distance),
        ];
        for (field, share) in shares {
            if let Some(share) = share.filter(|share| !(0.0..=1.0).contains(share)) {
                return Err(Invalid::new(field, format!("{share} is outside 0 to 1")));
            }
        }
        let ratio = self.max_latency_ratio;
        if ratio != 0.0 && !(1.0..=1000.0).contains(&ratio) {
            return Err(Invalid::new("limits.max_latency_ratio", format!("{ratio} is neither 0 nor in 1 to 1000")));
        }
        Ok(())
    }
}

/// Asked of a version before it gets traffic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Golden {
    pub input: String,
    /// Empty: any answer will do.
    pub expect: String,
}

impl Golden {
    /// # Errors
    /// No input, or more than anybody would try with.
    pub fn try_new(input: String, expect: String) -> Result<Self, Invalid> {
        if input.is_empty() {
            return Err(Invalid::new("golden.input", "it is empty; give what the version is to be asked"));
        }
        for (field, text) in [("golden.input", &input), ("golden.expect", &expect)] {
            if text.len() > MAX_GOLDEN_BYTES {
                return Err(Invalid::new(field, format!("{} bytes; the limit is {MAX_GOLDEN_BYTES}", text.len())));
            }
        }
        Ok(Self { input, expect })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(percent: f64) -> Share {
        Share::from_percent("percent", percent).expect("a share")
    }

    #[test]
    fn raising_the_share_moves_nobody_back() {
        let shares: Vec<Share> = [0.0, 0.01, 5.0, 50.0, 99.99, 100.0].map(share).into();
        for key in 0..10_000 {
            let bucket = bucket("grammar@production#1", &format!("session:{key}"));
            let inside: Vec<bool> = shares.iter().map(|share| share.holds(bucket)).collect();
            assert!(inside.is_sorted(), "{key}: {inside:?}");
            assert_eq!((inside[0], inside[5]), (false, true));
        }
    }

    #[test]
    fn callers_are_spread_evenly() {
        // 100 cells of 1,000 expected: the standard deviation is 31.5, so 6 of them is never seen by chance.
        let mut cells = [0_i32; 100];
        for key in 0..100_000 {
            cells[usize::from(bucket("salt", &key.to_string()) / 100)] += 1;
        }
        assert!(cells.iter().all(|count| (count - 1000).abs() < 190), "{cells:?}");
    }

    #[test]
    fn another_rollout_chooses_other_callers() {
        let both = (0..10_000).filter(|key| {
            let inside = |salt| share(10.0).holds(bucket(salt, &format!("{key}")));
            inside("grammar@production#1") && inside("grammar@production#4")
        });
        let both = both.count();
        assert!((50..=150).contains(&both), "{both} of 10,000 are in both tenths; independent ones share 100");
    }

    #[test]
    fn the_bucket_of_a_key_never_changes() {
        // Of a hash that is not ours: python3 -c "import hashlib; print(int.from_bytes(hashlib.sha256(b'grammar@production#1\nsession:anna').digest()[:8], 'big')*10000>>64)"
        assert_eq!(bucket("grammar@production#1", "session:anna"), ANNA);
    }

    const ANNA: u16 = 6308;

    #[test]
    fn the_chosen_name_counts_and_the_next_one_stands_in() {
        let caller = |tenant: &str, session: &str, user: &str| {
            Caller::try_new(tenant.into(), session.into(), user.into()).expect("short names")
        };
        assert_eq!(caller("acme", "s1", "ann").key(StickyBy::Tenant).as_deref(), Some("tenant:acme"));
        assert_eq!(caller("acme", "", "ann").key(StickyBy::Session).as_deref(), Some("user:ann"));
        assert_eq!(caller("acme", "s1", "").key(StickyBy::User).as_deref(), Some("session:s1"));
        assert_eq!(Caller::default().key(StickyBy::User), None);
        assert!(Caller::try_new("x".repeat(257), String::new(), String::new()).is_err());
    }

    #[test]
    fn shares_and_limits_outside_their_bounds_are_refused_by_name() {
        for percent in [-0.1, 100.1, f64::NAN] {
            let error = Share::from_percent("percent", percent).expect_err("refused");
            assert!(error.to_string().starts_with("percent: "), "{error}");
        }
        assert!((share(12.34).percent() - 12.34).abs() < 1e-9);
        let refused = |limits: Limits| limits.validate().expect_err("refused").field;
        assert_eq!(refused(Limits { min_requests: 0, ..Limits::default() }), "limits.min_requests");
        assert_eq!(refused(Limits { max_error_rate: 1.5, ..Limits::default() }), "limits.max_error_rate");
        assert_eq!(refused(Limits { max_latency_ratio: 0.5, ..Limits::default() }), "limits.max_latency_ratio");
        assert!(Limits::default().validate().is_ok());
    }

    #[test]
    fn a_move_of_the_alias_ends_a_rollout() {
        let rollout = Rollout {
            alias: AliasName::try_new("production").expect("name"),
            seq: 3,
            id: 2,
            state: RolloutState::Running,
            stable: Version(1),
            alias_seq: 7,
            canary: Version(2),
            share: share(5.0),
            shadow: Share::default(),
            sticky_by: StickyBy::Session,
            limits: Limits::default(),
            golden: None,
            who: String::new(),
            why: String::new(),
            at_ms: 0,
        };
        assert!(rollout.is_active(7) && !rollout.is_active(8));
        assert!(!Rollout { state: RolloutState::Aborted, ..rollout }.is_active(7));
    }
}
