//! Keys: as 64 hex digits, or as the PEM that openssl writes (RFC 8410).
//!
//! PKCS#8 and SPKI of ed25519 are fixed prefixes before 32 bytes, so both are read here by comparing the prefix.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use tailor_domain::Digest;

use crate::{Error, Result};

/// DER of PKCS#8 version 0 with OID 1.3.101.112, up to the 32 bytes of the seed (RFC 8410, section 7).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// DER of SubjectPublicKeyInfo with the same OID, up to the 32 bytes of the key (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A secret key. It prints as its public key's id.
#[derive(Clone)]
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// # Errors
    /// [`Error::BadKey`], which does not repeat the text.
    pub fn parse(text: &str) -> Result<Self> {
        let seed = key_bytes(text, "PRIVATE KEY", &PKCS8_PREFIX)
            .map_err(|problem| Error::BadKey { what: "the signing key", problem })?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {})", self.public().id())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// # Errors
    /// [`Error::BadKey`].
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |problem: String| Error::BadKey { what: "a trusted key", problem };
        let bytes = key_bytes(text, "PUBLIC KEY", &SPKI_PREFIX).map_err(bad)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| bad("its bytes are no point of the curve".into()))?;
        if key.is_weak() {
            return Err(bad("it is of small order, so that anybody could sign for it".into()));
        }
        Ok(Self(key))
    }

    /// The sha256 of the key's 32 bytes, in hex.
    pub fn id(&self) -> String {
        Digest::of(self.0.as_bytes()).hex().to_owned()
    }

    /// The key as 64 hex digits, as [`PublicKey::parse`] takes it.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0.as_bytes())
    }

    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let signature = <[u8; 64]>::try_from(signature).map(|bytes| Signature::from_bytes(&bytes));
        signature.is_ok_and(|signature| self.0.verify_strict(message, &signature).is_ok())
    }
}

/// Whose signatures count. None: nothing is checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trusted(Vec<PublicKey>);

impl Trusted {
    /// Keys in hex, parted by commas or white space, or PEM blocks one after the other.
    ///
    /// # Errors
    /// [`Error::BadKey`].
    pub fn parse(text: &str) -> Result<Self> {
        let keys: Vec<&str> = if text.contains("-----BEGIN") {
            text.split_inclusive("-----END PUBLIC KEY-----").filter(|block| block.contains("-----BEGIN")).collect()
        } else {
            text.split(|c: char| c == ',' || c.is_whitespace()).filter(|key| !key.is_empty()).collect()
        };
        Ok(Self(keys.into_iter().map(PublicKey::parse).collect::<Result<_>>()?))
    }

    pub fn of(keys: Vec<PublicKey>) -> Self {
        Self(keys)
    }

    pub fn add(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn with_id(&self, id: &str) -> Option<&PublicKey> {
        self.0.iter().find(|key| key.id() == id)
    }

    /// Short ids, for people.
    pub(crate) fn names(&self) -> String {
        self.0.iter().map(|key| key.id()[..12].to_owned()).collect::<Vec<_>>().join(", ")
    }
}

fn key_bytes(text: &str, label: &str, prefix: &[u8]) -> Result<[u8; 32], String> {
    let text = text.trim();
    let bytes = if text.starts_with("-----BEGIN") {
        let inside = text
            .strip_prefix(&format!("-----BEGIN {label}-----"))
            .and_then(|rest| rest.strip_suffix(&format!("-----END {label}-----")))
            .ok_or_else(|| format!("the PEM block is no {label}"))?;
        let base64: String = inside.split_whitespace().collect();
        let der = STANDARD.decode(base64).map_err(|error| format!("its base64 is damaged: {error}"))?;
        der.strip_prefix(prefix).ok_or("it is a key of another kind")?.to_vec()
    } else {
        hex::decode(text).map_err(|_| format!("{} characters that are not all hex digits", text.len()))?
    };
    let count = bytes.len();
    bytes.try_into().map_err(|_| format!("{count} bytes; a key has 32"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8410, section 10.3, and the first test of RFC 8032, section 7.1.
    const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
    const PUBLIC_PEM: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n";
    const SEED: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    const PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    #[test]
    fn keys_are_those_of_the_rfcs() {
        assert_eq!(PrivateKey::parse(SEED).expect("hex").public().to_hex(), PUBLIC);
        let (private, public) = (PrivateKey::parse(PEM).expect("PEM"), PublicKey::parse(PUBLIC_PEM).expect("PEM"));
        assert_eq!(private.public(), public);
        let signature = PrivateKey::parse(SEED).expect("hex").sign(b"");
        assert!(hex::encode(signature).starts_with("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"));
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        let long = SEED.repeat(2);
        for bad in ["", "hunter2", &SEED[1..], &long, PUBLIC_PEM, "-----BEGIN PRIVATE KEY-----"] {
            let error = PrivateKey::parse(bad).expect_err("no key").to_string();
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
        assert!(PublicKey::parse(PEM).is_err());
        assert!(PublicKey::parse(&"00".repeat(32)).is_err(), "a point of small order signs everything");
        assert!(!format!("{:?}", PrivateKey::parse(SEED).expect("hex")).contains(SEED));
    }

    #[test]
    fn several_keys_are_read_in_either_form() {
        let other = PublicKey::parse(PUBLIC_PEM).expect("PEM");
        let hex = Trusted::parse(&format!("{PUBLIC}, {}", other.to_hex())).expect("two in hex");
        let pem = Trusted::parse(&format!("{PUBLIC_PEM}\n{PUBLIC_PEM}")).expect("two in PEM");
        assert_eq!((hex.0.len(), pem.0.len()), (2, 2));
        assert!(Trusted::parse(" \n").expect("none").is_empty());
    }
}
