//! A dataset as it is kept: cleaned rows in blobs, a report of what was dropped and why.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::Family;
use crate::error::Invalid;
use crate::ids::{DatasetName, Digest, Version};
use crate::spec::{LossOn, Objective, named};

/// What a dataset's rows are. All rows of one dataset are of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatasetKind {
    /// (input, expected output).
    #[default]
    InputTarget,
    /// Turns of a user and an assistant, who has the last word.
    Conversation,
    /// A prompt and two answers to it, of which one is the better.
    Preference,
}

named!(DatasetKind, "kind", {
    InputTarget => "input-target",
    Conversation => "conversation",
    Preference => "preference",
});

impl DatasetKind {
    /// Whether rows of this kind can be learnt from in this way by a base of this family.
    ///
    /// # Errors
    /// Names the setting, and what to do instead.
    pub fn check(self, objective: Objective, loss_on: LossOn, family: Family) -> Result<(), Invalid> {
        let no = |field: &str, problem: String| Err(Invalid::new(field, problem));
        match (objective, loss_on, family) {
            (Objective::Dpo, ..) if self != Self::Preference => no(
                "train.objective",
                format!(
                    "dpo compares two answers, and the dataset's rows are of kind {self}; upload rows of prompt, chosen \
                     and rejected, or take sft"
                ),
            ),
            (Objective::Dpo, LossOn::Everything, _) => {
                no("train.loss_on", "everything: dpo compares answers, not prompts; take completion".into())
            }
            (_, LossOn::Everything, Family::EncoderDecoder) => no(
                "train.loss_on",
                "everything: an encoder-decoder predicts the answer alone, never the encoder's tokens; take completion"
                    .into(),
            ),
            (_, LossOn::Assistant, Family::EncoderDecoder) if self == Self::Conversation => no(
                "train.loss_on",
                "assistant: the earlier turns of a conversation stand in the encoder, which predicts nothing; take \
                 completion, or a decoder"
                    .into(),
            ),
            (
                Objective::Sft | Objective::Dpo,
                LossOn::Completion | LossOn::Assistant | LossOn::Everything,
                Family::Decoder | Family::EncoderDecoder,
            ) => Ok(()),
        }
    }
}

/// Why a row was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The line is no record of the format (unbalanced quote, broken JSON).
    Malformed,
    /// The record has more or fewer fields than the header.
    FieldCount,
    MissingField,
    EmptyInput,
    EmptyTarget,
    InvalidUtf8,
    /// Longer than the line limit.
    TooLong,
    /// The same input was seen before.
    Duplicate,
    /// The same input was seen before with another target, or the same two answers the other way round.
    Conflict,
    /// Chosen and rejected are the same answer.
    SameAnswer,
    /// Once tokenised, nothing that counts in the loss is left of the row.
    NothingToLearn,
    /// The base's chat template does not take the row's turns.
    TemplateRefused,
    /// Over the share that balancing leaves its label.
    Balanced,
}

impl DropReason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::FieldCount => "field_count",
            Self::MissingField => "missing_field",
            Self::EmptyInput => "empty_input",
            Self::EmptyTarget => "empty_target",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::TooLong => "too_long",
            Self::Duplicate => "duplicate",
            Self::Conflict => "conflict",
            Self::SameAnswer => "same_answer",
            Self::NothingToLearn => "nothing_to_learn",
            Self::TemplateRefused => "template_refused",
            Self::Balanced => "balanced",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One row that was left out, for people to find it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedRow {
    /// 1-based line of the uploaded file.
    pub line: u64,
    pub field: Option<String>,
    pub reason: DropReason,
    pub detail: String,
}

/// What became of the uploaded rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub rows_read: u64,
    pub rows_train: u64,
    pub rows_validation: u64,
    pub dropped: BTreeMap<DropReason, u64>,
    /// The first rows of each reason; the counts above are complete.
    pub examples: Vec<DroppedRow>,
    /// Rows by label before balancing; empty when the dataset has no label column.
    pub labels_before: BTreeMap<String, u64>,
    pub labels_after: BTreeMap<String, u64>,
    /// Characters in all texts of a row together: upper bound of each bucket, rows in it.
    pub length_histogram: Vec<(u64, u64)>,
}

impl Report {
    pub fn rows_kept(&self) -> u64 {
        self.rows_train + self.rows_validation
    }

    pub fn rows_dropped(&self) -> u64 {
        self.dropped.values().sum()
    }
}

/// `datasets/<name>/<version>.json`. Never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetManifest {
    pub name: DatasetName,
    pub version: Version,
    #[serde(default)]
    pub kind: DatasetKind,
    /// The uploaded file, byte for byte.
    pub source: Digest,
    pub source_size_bytes: u64,
    /// What its uploader called it; empty in a manifest from before it was kept.
    #[serde(default)]
    pub file_name: String,
    /// JSON lines of cleaned rows, with targets.
    pub train: Digest,
    /// JSON lines of cleaned rows, with targets: read by the dataset service alone.
    pub validation: Digest,
    pub prompt_template: String,
    pub report: Report,
    pub created_at_ms: u64,
}

impl DatasetManifest {
    /// What the dataset is, whatever it is called.
    pub fn digest(&self) -> Digest {
        Digest::of(format!("{}\n{}\n{}", self.train, self.validation, self.prompt_template).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECTIVES: [Objective; 2] = [Objective::Sft, Objective::Dpo];
    const MODES: [LossOn; 3] = [LossOn::Completion, LossOn::Assistant, LossOn::Everything];
    const KINDS: [DatasetKind; 3] = [DatasetKind::InputTarget, DatasetKind::Conversation, DatasetKind::Preference];

    #[test]
    fn what_a_kind_cannot_serve_is_refused_by_setting_and_remedy() {
        for kind in KINDS {
            for (objective, loss_on) in OBJECTIVES.iter().flat_map(|o| MODES.iter().map(move |m| (*o, *m))) {
                for family in [Family::Decoder, Family::EncoderDecoder] {
                    let checked = kind.check(objective, loss_on, family);
                    let dpo_without_pairs = objective == Objective::Dpo && kind != DatasetKind::Preference;
                    let everything = loss_on == LossOn::Everything
                        && (objective == Objective::Dpo || family == Family::EncoderDecoder);
                    let turns = loss_on == LossOn::Assistant
                        && family == Family::EncoderDecoder
                        && kind == DatasetKind::Conversation;
                    let refused = dpo_without_pairs || everything || turns;
                    assert_eq!(checked.is_err(), refused, "{kind} {objective} {loss_on} {family:?}");
                    if let Err(error) = checked {
                        assert_eq!(error.field == "train.objective", dpo_without_pairs, "{error}");
                        assert!(error.to_string().contains("take "), "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_manifest_from_before_there_were_kinds_and_file_names_holds_input_and_target() {
        let digest = "0".repeat(64);
        let old = serde_json::json!({"name": "rows", "version": 1, "source": digest, "source_size_bytes": 1,
            "train": digest, "validation": digest, "prompt_template": "{input}", "report": Report::default(),
            "created_at_ms": 0});
        let manifest: DatasetManifest = serde_json::from_value(old).expect("an old manifest");
        assert_eq!((manifest.kind, manifest.file_name.as_str()), (DatasetKind::InputTarget, ""));
    }
}
