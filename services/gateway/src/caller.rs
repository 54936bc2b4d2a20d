//! Who asks and for how long, from a call's metadata.

use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;

/// The header that names a tenant, in gRPC and in HTTP. Whoever may call may name one: set it at the proxy that knows.
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
        let text = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok());
        let timeout = text("grpc-timeout").and_then(timeout);
        Self {
            tenant: tenant(text(TENANT).unwrap_or_default()),
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
        }
    }

    pub fn of_headers(headers: &http::HeaderMap) -> Self {
        let named = headers.get(TENANT).and_then(|value| value.to_str().ok());
        Self { tenant: tenant(named.unwrap_or_default()), deadline: None }
    }
}

fn tenant(named: &str) -> String {
    named.chars().take(MAX_TENANT).collect()
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
    use super::*;

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
