//! The statement: in-toto Statement v1 with SLSA Provenance v1, and what of a version it must agree with.

use serde_json::{Value, json};
use tailor_domain::{AdapterManifest, Digest, Envelope};

use crate::envelope::unseal;
use crate::{Error, PrivateKey, Result, Trusted, seal};

const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// How an adapter comes to be: rows, a base and a job's settings in, two files out.
const BUILD_TYPE: &str = "urn:tailor:adapter:v1";
const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
const RECORD: &str = "manifest.json";

/// The sha256 of a version's record as it is stored, but for the attestation in it. Fields that this program has never heard
/// of count as well.
///
/// # Errors
/// The text is no JSON object.
pub fn record_digest(record: &[u8]) -> Result<Digest, String> {
    let mut value: Value = serde_json::from_slice(record).map_err(|error| error.to_string())?;
    let Some(fields) = value.as_object_mut() else { return Err("it is no object".into()) };
    fields.shift_remove("attestation");
    Ok(Digest::of(value.to_string().as_bytes()))
}

/// A signed statement of where a version comes from. The manifest must have no attestation yet.
///
/// # Errors
/// The manifest cannot be written as JSON.
pub fn provenance(key: &PrivateKey, manifest: &AdapterManifest) -> Result<Envelope, String> {
    let record = serde_json::to_vec(manifest).map_err(|error| error.to_string())?;
    let statement = statement(manifest, &record_digest(&record)?);
    Ok(seal(key, PAYLOAD_TYPE, statement.to_string().as_bytes()))
}

fn statement(manifest: &AdapterManifest, record: &Digest) -> Value {
    let subject = |name: &str, digest: &Digest| json!({ "name": name, "digest": { "sha256": digest.hex() } });
    let mut dependencies = vec![
        subject(&format!("base {}", manifest.base), &manifest.base_fingerprint),
        subject("tokenizer.json", &manifest.tokenizer),
    ];
    dependencies.extend(manifest.chat_template.as_ref().map(|digest| subject("chat template", digest)));
    let dataset = manifest.dataset.as_ref().zip(manifest.dataset_digest.as_ref());
    dependencies.extend(dataset.map(|(name, digest)| subject(&format!("dataset {name}"), digest)));
    json!({
        "_type": STATEMENT_TYPE,
        "subject": [
            subject(WEIGHTS, &manifest.weights),
            subject(CONFIG, &manifest.config),
            subject(RECORD, record),
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "adapter": manifest.adapter.as_str(),
                    "version": manifest.version.0,
                    "base": manifest.base.as_str(),
                    "quant": manifest.quant.as_str(),
                    "prompt_template": manifest.prompt_template,
                },
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": { "id": format!("urn:tailor:trainer:{}", manifest.code_commit) },
                "metadata": {
                    "invocationId": manifest.job.as_ref().map(|job| format!("{job}/{}", manifest.fence)),
                    "finishedAtMs": manifest.created_at_ms,
                },
                "byproducts": [{ "name": "metrics", "annotations": manifest.metrics }],
            },
        },
    })
}

/// What a reader has been told of a version, to be compared with what was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims<'a> {
    pub adapter: &'a str,
    pub version: u64,
    pub weights: &'a Digest,
    pub config: &'a Digest,
    pub base_fingerprint: &'a Digest,
    pub prompt_template: &'a str,
    /// Where the reader has the record itself.
    pub record: Option<&'a Digest>,
}

/// Checks a version's attestation: a trusted signature, and a statement that says the same as `claims`. With no trusted key
/// nothing is checked. Returns the statement.
///
/// # Errors
/// [`Error::Unsigned`], [`Error::Untrusted`], [`Error::Tampered`].
pub fn open(envelope: Option<&Envelope>, claims: &Claims<'_>, trusted: &Trusted) -> Result<Option<Value>> {
    if trusted.is_empty() {
        return Ok(None);
    }
    let subject = format!("adapter {}@{}", claims.adapter, claims.version);
    let Some(envelope) = envelope else {
        return Err(Error::Unsigned { subject, trusted: trusted.names() });
    };
    let payload = unseal(&subject, envelope, trusted)?;
    let tampered = |problem: String| Error::Tampered { subject: subject.clone(), problem };
    let statement: Value =
        serde_json::from_slice(&payload).map_err(|error| tampered(format!("the statement is no JSON: {error}")))?;
    let is_ours = envelope.payload_type == PAYLOAD_TYPE
        && statement["_type"] == STATEMENT_TYPE
        && statement["predicateType"] == PREDICATE_TYPE
        && statement["predicate"]["buildDefinition"]["buildType"] == BUILD_TYPE;
    if !is_ours {
        return Err(tampered("what was signed is no statement of an adapter version".into()));
    }
    let parameters = &statement["predicate"]["buildDefinition"]["externalParameters"];
    for (what, signed, told) in [
        ("adapter", &parameters["adapter"], json!(claims.adapter)),
        ("version", &parameters["version"], json!(claims.version)),
        ("prompt_template", &parameters["prompt_template"], json!(claims.prompt_template)),
    ] {
        if *signed != told {
            return Err(tampered(format!("{what} is {told} and {signed} was signed")));
        }
    }
    let dependencies = &statement["predicate"]["buildDefinition"]["resolvedDependencies"];
    let files = [(WEIGHTS, Some(claims.weights)), (CONFIG, Some(claims.config)), (RECORD, claims.record)];
    for (name, told) in files {
        let signed = listed(&statement["subject"], |entry| entry == name);
        agrees(name, signed, told).map_err(tampered)?;
    }
    let signed = listed(dependencies, |entry| entry.starts_with("base "));
    agrees("the base's fingerprint", signed, Some(claims.base_fingerprint)).map_err(tampered)?;
    Ok(Some(statement))
}

fn listed(entries: &Value, is: impl Fn(&str) -> bool) -> Option<&str> {
    let entry = entries.as_array()?.iter().find(|entry| entry["name"].as_str().is_some_and(&is))?;
    entry["digest"]["sha256"].as_str()
}

fn agrees(what: &str, signed: Option<&str>, told: Option<&Digest>) -> Result<(), String> {
    match (signed, told) {
        (_, None) => Ok(()),
        (Some(signed), Some(told)) if signed == told.hex() => Ok(()),
        (Some(signed), Some(told)) => Err(format!("{what} has sha256:{signed} in the statement and {told} here")),
        (None, Some(_)) => Err(format!("{what} is not in the statement")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> AdapterManifest {
        let digest = |text: &str| Digest::of(text.as_bytes()).to_string();
        let text = json!({
            "adapter": "grammar", "version": 3, "weights": digest("w"), "weights_size_bytes": 10, "config": digest("c"),
            "tokenizer": digest("t"), "base": "tiny", "base_fingerprint": digest("b"), "quant": "nf4",
            "prompt_template": "{input}", "dataset": "rows@1", "dataset_digest": digest("d"), "job": null, "fence": 0,
            "metrics": {"exact_match": 0.1}, "notes": "", "created_at_ms": 5,
        });
        serde_json::from_value(text).expect("a manifest")
    }

    fn claims(manifest: &AdapterManifest) -> Claims<'_> {
        Claims {
            adapter: manifest.adapter.as_str(),
            version: manifest.version.0,
            weights: &manifest.weights,
            config: &manifest.config,
            base_fingerprint: &manifest.base_fingerprint,
            prompt_template: &manifest.prompt_template,
            record: None,
        }
    }

    #[test]
    fn what_was_signed_is_what_is_told() {
        let key = PrivateKey::parse(&"07".repeat(32)).expect("key");
        let trusted = Trusted::of(vec![key.public()]);
        let manifest = manifest();
        let envelope = provenance(&key, &manifest).expect("signed");
        let stored = AdapterManifest { attestation: Some(envelope.clone()), ..manifest.clone() };
        let record = record_digest(&serde_json::to_vec(&stored).expect("JSON")).expect("an object");
        let whole = Claims { record: Some(&record), ..claims(&manifest) };
        let statement = open(Some(&envelope), &whole, &trusted).expect("sound").expect("checked");
        assert_eq!(statement["predicate"]["buildDefinition"]["resolvedDependencies"][2]["name"], "dataset rows@1");

        let other = Digest::of(b"other");
        for (changed, says) in [
            (Claims { adapter: "grammar2", ..whole.clone() }, "adapter"),
            (Claims { version: 4, ..whole.clone() }, "version"),
            (Claims { weights: &other, ..whole.clone() }, WEIGHTS),
            (Claims { config: &other, ..whole.clone() }, CONFIG),
            (Claims { base_fingerprint: &other, ..whole.clone() }, "fingerprint"),
            (Claims { prompt_template: "{input}!", ..whole.clone() }, "prompt_template"),
            (Claims { record: Some(&other), ..whole.clone() }, RECORD),
        ] {
            let error = open(Some(&envelope), &changed, &trusted).expect_err(says);
            assert!(matches!(error, Error::Tampered { .. }) && error.to_string().contains(says), "{error}");
        }
        assert!(matches!(open(None, &whole, &trusted), Err(Error::Unsigned { .. })));
        assert_eq!(open(None, &whole, &Trusted::default()), Ok(None), "without a trusted key nothing is checked");
    }

    #[test]
    fn a_field_of_tomorrow_counts_for_the_records_digest() {
        let plain = record_digest(br#"{"a":1.5,"attestation":{"x":1}}"#).expect("object");
        assert_eq!(plain, record_digest(br#"{"a":1.5}"#).expect("object"));
        assert_ne!(plain, record_digest(br#"{"a":1.5,"b":2}"#).expect("object"));
        assert!(record_digest(b"[]").is_err());
    }
}
