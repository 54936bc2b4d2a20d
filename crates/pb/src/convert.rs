//! Between wire and domain. Into the domain everything is checked; out of it nothing can fail.

mod recipe;
mod rollout;

use tailor_domain as domain;
use tailor_domain::{
    AdapterManifest, AliasMove, BaseManifest, DatasetManifest, Digest, Family, Invalid, MergedFrom, QuantCode, Version,
};

use crate::{common, dataset, registry, training};

pub use recipe::take_recipe;
pub use rollout::{approval, limits, policy, rollout};

impl From<&domain::FileRef> for common::FileRef {
    fn from(file: &domain::FileRef) -> Self {
        Self { name: file.name.clone(), digest: file.digest.to_string(), size_bytes: file.size_bytes }
    }
}

impl TryFrom<common::FileRef> for domain::FileRef {
    type Error = Invalid;

    fn try_from(file: common::FileRef) -> Result<Self, Invalid> {
        let plain = !file.name.is_empty()
            && file.name.len() <= 128
            && !file.name.starts_with('.')
            && file.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !plain {
            return Err(Invalid::new("files.name", format!("{:?} is not a plain file name", file.name)));
        }
        Ok(Self { digest: Digest::try_new(file.digest)?, name: file.name, size_bytes: file.size_bytes })
    }
}

/// # Errors
/// The text names no code.
pub fn quant_code(text: &str) -> Result<QuantCode, Invalid> {
    match text {
        "nf4" => Ok(QuantCode::Nf4),
        "nf4-single" => Ok(QuantCode::Nf4Single),
        "fp4" => Ok(QuantCode::Fp4),
        "uniform4" => Ok(QuantCode::Uniform4),
        "none" => Ok(QuantCode::None),
        other => Err(Invalid::new("quant", format!("{other:?} is none of nf4, nf4-single, fp4, uniform4, none"))),
    }
}

pub fn family(text: &str) -> Result<Family, Invalid> {
    match text {
        "decoder" => Ok(Family::Decoder),
        "encoder-decoder" => Ok(Family::EncoderDecoder),
        other => Err(Invalid::new("family", format!("{other:?} is neither decoder nor encoder-decoder"))),
    }
}

pub fn family_name(family: Family) -> &'static str {
    match family {
        Family::Decoder => "decoder",
        Family::EncoderDecoder => "encoder-decoder",
    }
}

impl From<&BaseManifest> for registry::Base {
    fn from(base: &BaseManifest) -> Self {
        Self {
            name: base.name.to_string(),
            fingerprint: base.fingerprint.to_string(),
            family: family_name(base.family).into(),
            model_type: base.model_type.clone(),
            quant: base.quant.as_str().into(),
            dtype: base.dtype.clone(),
            parameters: base.parameters,
            size_bytes: base.size_bytes(),
            files: base.files.iter().map(Into::into).collect(),
            created_at_ms: base.created_at_ms,
            merged_from: base.merged_from.as_ref().map(Into::into),
        }
    }
}

impl From<&MergedFrom> for registry::MergedFrom {
    fn from(from: &MergedFrom) -> Self {
        Self {
            adapter: from.adapter.to_string(),
            version: from.version.0,
            digest: from.digest.to_string(),
            base: from.base.to_string(),
            base_fingerprint: from.base_fingerprint.to_string(),
        }
    }
}

impl TryFrom<registry::MergedFrom> for MergedFrom {
    type Error = Invalid;

    fn try_from(from: registry::MergedFrom) -> Result<Self, Invalid> {
        Ok(Self {
            adapter: from.adapter.parse()?,
            version: Version(from.version),
            digest: Digest::try_new(from.digest)?,
            base: from.base.parse()?,
            base_fingerprint: Digest::try_new(from.base_fingerprint)?,
        })
    }
}

impl TryFrom<registry::Base> for BaseManifest {
    type Error = Invalid;

    fn try_from(base: registry::Base) -> Result<Self, Invalid> {
        Ok(Self {
            name: base.name.parse()?,
            fingerprint: Digest::try_new(base.fingerprint)?,
            family: family(&base.family)?,
            model_type: base.model_type,
            quant: quant_code(&base.quant)?,
            dtype: base.dtype,
            parameters: base.parameters,
            files: base.files.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            created_at_ms: base.created_at_ms,
            merged_from: base.merged_from.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<&AdapterManifest> for registry::AdapterVersion {
    /// `aliases` is left empty: they are not part of the manifest.
    fn from(manifest: &AdapterManifest) -> Self {
        Self {
            adapter: manifest.adapter.to_string(),
            version: manifest.version.0,
            digest: manifest.digest().to_string(),
            config_digest: manifest.config.to_string(),
            weights_digest: manifest.weights.to_string(),
            weights_size_bytes: manifest.weights_size_bytes,
            tokenizer_digest: manifest.tokenizer.to_string(),
            base: manifest.base.to_string(),
            base_fingerprint: manifest.base_fingerprint.to_string(),
            quant: manifest.quant.as_str().into(),
            prompt_template: manifest.prompt_template.clone(),
            dataset: manifest.dataset.clone().unwrap_or_default(),
            dataset_digest: manifest.dataset_digest.as_ref().map(ToString::to_string).unwrap_or_default(),
            job_id: manifest.job.as_ref().map(ToString::to_string).unwrap_or_default(),
            metrics: manifest.metrics.iter().map(|(name, value)| (name.clone(), *value)).collect(),
            notes: manifest.notes.clone(),
            created_at_ms: manifest.created_at_ms,
            aliases: Vec::new(),
            chat_template_digest: manifest.chat_template.as_ref().map(ToString::to_string).unwrap_or_default(),
            code_commit: manifest.code_commit.clone(),
            license: manifest.license.clone(),
            tags: manifest.tags.iter().cloned().collect(),
            fence: manifest.fence,
            deletion: None,
            attestation: manifest.attestation.as_ref().map(Into::into),
            published_by: manifest.published_by.clone(),
        }
    }
}

impl From<&domain::Envelope> for registry::DsseEnvelope {
    fn from(envelope: &domain::Envelope) -> Self {
        let signature =
            |one: &domain::Signature| registry::DsseSignature { keyid: one.keyid.clone(), sig: one.sig.clone() };
        Self {
            payload_type: envelope.payload_type.clone(),
            payload: envelope.payload.clone(),
            signatures: envelope.signatures.iter().map(signature).collect(),
        }
    }
}

/// An envelope, as it came: whether it is to be believed is decided by its signatures.
pub fn envelope(envelope: registry::DsseEnvelope) -> domain::Envelope {
    let signature = |one: registry::DsseSignature| domain::Signature { keyid: one.keyid, sig: one.sig };
    domain::Envelope {
        payload_type: envelope.payload_type,
        payload: envelope.payload,
        signatures: envelope.signatures.into_iter().map(signature).collect(),
    }
}

/// An alias' entry in the words of the wire.
pub fn alias(adapter: &domain::AdapterName, entry: &AliasMove) -> registry::Alias {
    registry::Alias {
        adapter: adapter.to_string(),
        alias: entry.alias.to_string(),
        version: entry.to.0,
        previous_version: entry.from.map_or(0, |version| version.0),
        sequence: entry.seq,
        who: entry.who.clone(),
        why: entry.why.clone(),
        at_ms: entry.at_ms,
        rollback: entry.rollback,
    }
}

impl From<&DatasetManifest> for dataset::Dataset {
    fn from(manifest: &DatasetManifest) -> Self {
        Self {
            name: manifest.name.to_string(),
            version: manifest.version.0,
            digest: manifest.digest().to_string(),
            rows_train: manifest.report.rows_train,
            rows_validation: manifest.report.rows_validation,
            rows_dropped: manifest.report.rows_dropped(),
            source_size_bytes: manifest.source_size_bytes,
            prompt_template: manifest.prompt_template.clone(),
            created_at_ms: manifest.created_at_ms,
            kind: manifest.kind.to_string(),
            file_name: manifest.file_name.clone(),
        }
    }
}

impl From<&domain::dataset::DroppedRow> for dataset::DroppedRow {
    fn from(row: &domain::dataset::DroppedRow) -> Self {
        Self {
            line: row.line,
            field: row.field.clone().unwrap_or_default(),
            reason: row.reason.to_string(),
            detail: row.detail.clone(),
        }
    }
}

impl From<&DatasetManifest> for dataset::Report {
    fn from(manifest: &DatasetManifest) -> Self {
        let report = &manifest.report;
        Self {
            dataset: Some(manifest.into()),
            rows_read: report.rows_read,
            dropped: report.dropped.iter().map(|(reason, count)| (reason.to_string(), *count)).collect(),
            examples: report.examples.iter().map(Into::into).collect(),
            labels_before: report.labels_before.clone().into_iter().collect(),
            labels_after: report.labels_after.clone().into_iter().collect(),
            length_histogram: report
                .length_histogram
                .iter()
                .map(|(up_to, rows)| dataset::LengthBucket { up_to_characters: *up_to, rows: *rows })
                .collect(),
        }
    }
}

impl From<&domain::StepMetrics> for training::Step {
    fn from(step: &domain::StepMetrics) -> Self {
        Self {
            step: step.step,
            total_steps: step.total_steps,
            loss: step.loss,
            grad_norm: step.grad_norm,
            learning_rate: step.learning_rate,
            tokens: step.tokens,
            tokens_per_second: step.tokens_per_second,
        }
    }
}

impl From<&domain::TuningMetrics> for training::Tuning {
    fn from(measured: &domain::TuningMetrics) -> Self {
        Self {
            step: measured.step,
            loss: measured.loss,
            token_accuracy: measured.token_accuracy,
            tokens: measured.tokens,
            best: measured.best,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_that_is_a_path_is_refused() {
        for bad in ["../config.json", "a/b", "", ".hidden", "a\\b"] {
            let file = common::FileRef { name: bad.into(), digest: "0".repeat(64), size_bytes: 1 };
            assert!(domain::FileRef::try_from(file).is_err(), "{bad:?}");
        }
    }
}
