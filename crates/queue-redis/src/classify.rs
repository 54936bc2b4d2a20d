//! From Redis' errors to the queue's.

use redis::{ErrorKind, RedisError, ServerErrorKind};
use tailor_queue::Error;

/// What the server at `address` (without credentials) said.
pub(crate) fn queue_error(address: &str, error: &RedisError) -> Error {
    let (address, problem) = (address.to_owned(), error.to_string());
    if is_refusal(error) { Error::Refused { address, problem } } else { Error::Unavailable { address, problem } }
}

/// Whether only a change of settings helps.
fn is_refusal(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::AuthenticationFailed | ErrorKind::InvalidClientConfig | ErrorKind::RESP3NotSupported => true,
        ErrorKind::Server(ServerErrorKind::NoPerm | ServerErrorKind::ResponseError) => true,
        // Everything else that a server says by code is a passing state: OOM, MISCONF (its disk is full), LOADING.
        _ => matches!(error.code(), Some("NOAUTH" | "WRONGPASS" | "WRONGTYPE" | "DENIED")),
    }
}
