//! Who asks and for how long, from a call's metadata, and for whom, from its body.

use std::time::{Duration, Instant};

use tailor_domain::rollout;
use tailor_pb::inference as pb;
use tonic::metadata::MetadataMap;

use crate::error::{Error, Result};

/// The header that names a tenant, in gRPC and in HTTP. Whoever may call may name one: set it at the proxy that knows. What the
/// body of a call names counts only where the header is not set.
pub const TENANT: &str = "x-tailor-tenant";
/// Longest name; what is longer is cut.
const MAX_TENANT: usize = 64;

#[derive(Debug, Default)]
pub struct Caller {
    pub tenant: String,
    pub deadline: Option<Instant>,
}

impl Caller {
    pub fn of(metadata: &MetadataMap) -> Self {
        let timeout = metadata.get("grpc-timeout").and_then(|value| timeout(value.to_str().ok()?));
        Self {
            tenant: tenant(metadata.get(TENANT).map(|value| value.as_bytes())),
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
        }
    }

    pub fn of_headers(headers: &http::HeaderMap) -> Self {
        Self { tenant: tenant(headers.get(TENANT).map(|value| value.as_bytes())), deadline: None }
    }

    /// Takes in whom the body of the call says that it is for. Both mean one tenant from here on.
    ///
    /// # Errors
    /// A name is too long; [`Error::OtherTenant`]: another tenant would pay for it.
    pub fn speaks_for(&mut self, body: Option<pb::Caller>) -> Result<rollout::Caller> {
        let mut caller: rollout::Caller = body.unwrap_or_default().try_into()?;
        if self.tenant.is_empty() {
            self.tenant.clone_from(&caller.tenant);
            return Ok(caller);
        }
        if !caller.tenant.is_empty() && tenant(Some(caller.tenant.as_bytes())) != self.tenant {
            return Err(Error::OtherTenant { own: self.tenant.clone(), named: caller.tenant });
        }
        caller.tenant.clone_from(&self.tenant);
        Ok(caller)
    }
}

/// A name in what a header may hold, which need not be ASCII: one that cannot be read is still not nobody's.
fn tenant(named: Option<&[u8]>) -> String {
    String::from_utf8_lossy(named.unwrap_or_default()).chars().take(MAX_TENANT).collect()
}

/// gRPC's `TimeoutValue TimeoutUnit`: at most eight digits and one of `HMSmun`.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tailor_domain::ErrorCode;

    use super::*;

    fn from_header(named: &str) -> Caller {
        let mut headers = http::HeaderMap::new();
        headers.insert(TENANT, http::HeaderValue::from_bytes(named.as_bytes()).expect("a header"));
        Caller::of(&MetadataMap::from_headers(headers))
    }

    fn body(tenant: &str) -> Option<pb::Caller> {
        Some(pb::Caller { tenant: tenant.into(), session: "s".into(), user: String::new() })
    }

    #[test]
    fn a_body_names_no_other_tenant_than_the_header() {
        let refused = from_header("a").speaks_for(body("b")).expect_err("another pays");
        assert_eq!(refused.code(), ErrorCode::PermissionDenied);
        let said = refused.to_string();
        for part in ["caller.tenant", "\"b\"", "\"a\"", "x-tailor-tenant", "leave it out"] {
            assert!(said.contains(part), "{part:?} is not in {said:?}");
        }
        for given in [None, body(""), body("a")] {
            let mut sent = from_header("a");
            let caller = sent.speaks_for(given.clone()).expect("its own");
            assert_eq!((sent.tenant.as_str(), caller.tenant.as_str()), ("a", "a"), "{given:?}");
        }
    }

    #[test]
    fn without_a_header_the_body_says_whose_a_call_is() {
        let mut sent = Caller::default();
        let caller = sent.speaks_for(body("b")).expect("who else would know");
        assert_eq!((sent.tenant.as_str(), caller.tenant.as_str(), caller.session.as_str()), ("b", "b", "s"));
        let nobody = Caller::default().speaks_for(None).expect("nobody says");
        assert_eq!(nobody, rollout::Caller::default());
        assert!(Caller::default().speaks_for(body(&"b".repeat(257))).is_err(), "too long");
    }

    #[test]
    fn a_tenant_whose_name_is_not_ascii_is_somebody_and_a_long_one_is_cut_on_both_sides() {
        assert_eq!(from_header("müller").tenant, "müller");
        assert!(from_header("müller").speaks_for(body("b")).is_err());
        let long = "ü".repeat(100);
        assert_eq!(from_header(&long).speaks_for(body(&long)).expect("the same").tenant, "ü".repeat(MAX_TENANT));
    }

    #[test]
    fn a_timeout_is_read_as_grpc_writes_it() {
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(timeout("3S"), Some(Duration::from_secs(3)));
        for wrong in ["", "S", "123456789S", "5x", "-1S", "1ü"] {
            assert_eq!(timeout(wrong), None, "{wrong:?}");
        }
    }
}
