//! Who says that an adapter version is what it is, and how that is checked.
//!
//! A version's record carries a DSSE envelope: an in-toto statement with SLSA provenance as its predicate, signed with
//! ed25519 (RFC 8032). The statement's subjects are the adapter's two files and the record itself, so a signature covers every
//! byte that makes the version. Tools of the in-toto and Sigstore family read it as it is.
//!
//! No I/O and no policy: whoever holds a key hands it in, whoever wants a check says which keys are trusted.

mod envelope;
mod error;
mod keys;
mod statement;

pub use envelope::{seal, sign_bytes, verify_bytes};
pub use error::{Error, Result};
pub use keys::{PrivateKey, PublicKey, Trusted};
pub use statement::{Claims, open, provenance, record_digest};
