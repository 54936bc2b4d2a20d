//! DSSE, the dead simple signing envelope of the Secure Systems Lab, version 1.0.2: what is signed is the payload with its
//! type and both lengths before it, so no payload can be taken for another kind.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tailor_domain::{Envelope, Signature};

use crate::{Error, PrivateKey, Result, Trusted};

/// What a DSSE signature covers (protocol.md, "Signature Definition").
fn pre_authentication(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

/// Signs a payload and wraps it.
pub fn seal(key: &PrivateKey, kind: &str, payload: &[u8]) -> Envelope {
    Envelope {
        payload_type: kind.to_owned(),
        payload: STANDARD.encode(payload),
        signatures: vec![sign_bytes(key, kind, payload)],
    }
}

/// A signature of bytes that are kept elsewhere.
pub fn sign_bytes(key: &PrivateKey, kind: &str, payload: &[u8]) -> Signature {
    let sig = STANDARD.encode(key.sign(&pre_authentication(kind, payload)));
    Signature { keyid: key.public().id(), sig }
}

/// Checks that one of the signatures is a trusted key's.
///
/// # Errors
/// [`Error::Unsigned`], [`Error::Untrusted`], [`Error::Tampered`].
pub fn verify_bytes(
    subject: &str,
    kind: &str,
    payload: &[u8],
    signatures: &[Signature],
    trusted: &Trusted,
) -> Result<()> {
    if signatures.is_empty() {
        return Err(Error::Unsigned { subject: subject.to_owned(), trusted: trusted.names() });
    }
    let message = pre_authentication(kind, payload);
    let mut known = signatures.iter().filter_map(|one| Some((trusted.with_id(&one.keyid)?, one))).peekable();
    if known.peek().is_none() {
        let signers: Vec<&str> = signatures.iter().map(|one| one.keyid.get(..12).unwrap_or(&one.keyid)).collect();
        let (subject, signers) = (subject.to_owned(), signers.join(", "));
        return Err(Error::Untrusted { subject, signers, trusted: trusted.names() });
    }
    let holds = known.any(|(key, one)| STANDARD.decode(&one.sig).is_ok_and(|sig| key.verifies(&message, &sig)));
    if holds {
        return Ok(());
    }
    Err(Error::Tampered { subject: subject.to_owned(), problem: "the signature does not fit".into() })
}

/// The payload of an envelope, once a trusted signature of it has been checked.
pub(crate) fn unseal(subject: &str, envelope: &Envelope, trusted: &Trusted) -> Result<Vec<u8>> {
    let tampered = |problem: String| Error::Tampered { subject: subject.to_owned(), problem };
    let payload = STANDARD.decode(&envelope.payload).map_err(|error| tampered(format!("the payload: {error}")))?;
    verify_bytes(subject, &envelope.payload_type, &payload, &envelope.signatures, trusted)?;
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of DSSE's protocol.md.
    #[test]
    fn what_is_signed_is_what_the_protocol_says() {
        let message = pre_authentication("http://example.com/HelloWorld", b"hello world");
        assert_eq!(message, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn a_signature_covers_the_payload_and_its_type() {
        let (key, other) =
            (PrivateKey::parse(&"01".repeat(32)).expect("key"), PrivateKey::parse(&"02".repeat(32)).expect("key"));
        let trusted = Trusted::of(vec![key.public()]);
        let sealed = seal(&key, "a/type", b"payload");
        assert_eq!(unseal("it", &sealed, &trusted).expect("sound"), b"payload");

        let other_type = Envelope { payload_type: "b/type".into(), ..sealed.clone() };
        let other_payload = Envelope { payload: STANDARD.encode(b"Payload"), ..sealed.clone() };
        for changed in [other_type, other_payload] {
            assert!(matches!(unseal("it", &changed, &trusted), Err(Error::Tampered { .. })));
        }
        let untrusted = unseal("it", &seal(&other, "a/type", b"payload"), &trusted).expect_err("not ours");
        assert!(matches!(untrusted, Error::Untrusted { .. }), "{untrusted}");
        let bare = Envelope { signatures: Vec::new(), ..sealed };
        assert!(matches!(unseal("it", &bare, &trusted), Err(Error::Unsigned { .. })));
    }
}
