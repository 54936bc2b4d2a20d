//! What a job's attempt predicts for held-out rows: taken once, then compared with the targets, then shown beside them.
//!
//! `submissions/<job>/<fence>.json` names the blob that was handed in. It is created before a figure goes back and is never
//! changed, and a target is shown only for a row that it answers: whoever wants to see one has committed to an answer.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use tailor_blobs::{Creation, numbered_key};
use tailor_domain::{DatasetName, Digest, Invalid, JobId, MAX_PREDICTIONS_BYTES, Predicted, Version};
use tailor_text::metrics::{Comparison, edit_distance};

use crate::score::{Figures, expect_rows};
use crate::{Datasets, Error, Result, rows};

/// Who predicts: one attempt of one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Author {
    pub job: JobId,
    pub fence: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    dataset: DatasetName,
    version: Version,
    predictions: Digest,
    at_ms: u64,
}

/// A row with its target revealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revealed {
    pub row: u32,
    pub input: String,
    pub target: String,
    pub base: Answer,
    pub adapter: Answer,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub text: String,
    pub exact: bool,
    pub edit_distance: u64,
}

/// Which rows to reveal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    pub wrong: bool,
    pub changed: bool,
    pub limit: usize,
}

impl Author {
    fn key(&self) -> String {
        numbered_key(&format!("submissions/{}", self.job), self.fence)
    }
}

impl Datasets {
    /// Keeps an attempt's predictions and returns the figures of adapter, base and their difference.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Invalid`]: the blob holds no predictions of this split; [`Error::AlreadyExists`]: the
    /// attempt handed in others.
    pub async fn submit(
        &self,
        author: &Author,
        name: &DatasetName,
        version: Option<Version>,
        predictions: &Digest,
    ) -> Result<Figures> {
        let dataset = self.version(name, version).await?;
        let by_row = self.predictions(predictions, dataset.report.rows_validation).await?;
        let split = self.fetch_rows(&dataset.validation).await?;
        self.keep(
            author,
            Record {
                dataset: dataset.name,
                version: dataset.version,
                predictions: predictions.clone(),
                at_ms: (self.clock)(),
            },
        )
        .await?;
        let name = name.to_string();
        self.off_thread(move || {
            let mut comparison = Comparison::default();
            for (row, index) in rows::read(&name, &split)?.zip(0..) {
                let row = row?;
                if let Some(predicted) = by_row.get(&index) {
                    comparison.add(&predicted.adapter, &predicted.base, row.content.answer(), row.content.question());
                }
            }
            Ok(comparison.finish())
        })
        .await
    }

    /// The rows that an attempt has answered, with their targets.
    ///
    /// # Errors
    /// [`Error::NotFound`]: it handed nothing in, or the dataset is gone.
    pub async fn reveal(&self, author: &Author, filter: Filter) -> Result<Vec<Revealed>> {
        let Some(record) = self.store.find_json::<Record>(&author.key()).await? else {
            let what = format!("attempt {} of job {} has handed in no predictions", author.fence, author.job);
            return Err(Error::NotFound { what, hint: "targets are shown only beside answers".into() });
        };
        let dataset = self.version(&record.dataset, Some(record.version)).await?;
        let by_row = self.predictions(&record.predictions, dataset.report.rows_validation).await?;
        let split = self.fetch_rows(&dataset.validation).await?;
        self.off_thread(move || {
            let mut revealed = Vec::new();
            for (row, index) in rows::read(record.dataset.as_str(), &split)?.zip(0..) {
                if revealed.len() >= filter.limit {
                    break;
                }
                let content = row?.content;
                let Some(predicted) = by_row.get(&index) else { continue };
                let target = content.answer();
                let (base, adapter) = (answer(&predicted.base, target), answer(&predicted.adapter, target));
                let is_changed = base.text.trim() != adapter.text.trim();
                if (filter.wrong && adapter.exact) || (filter.changed && !is_changed) {
                    continue;
                }
                let (input, target) = (content.asked().into_owned(), target.to_owned());
                revealed.push(Revealed { row: index, input, target, base, adapter });
            }
            Ok(revealed)
        })
        .await
    }

    async fn keep(&self, author: &Author, record: Record) -> Result<()> {
        let first = match self.store.create_json(&author.key(), &record).await? {
            Creation::Created => return Ok(()),
            Creation::AlreadyExists(first) => first,
        };
        if first == (Record { at_ms: first.at_ms, ..record }) {
            return Ok(());
        }
        Err(Error::AlreadyExists {
            what: format!("attempt {} of job {} has handed in other predictions", author.fence, author.job),
            remedy: "predictions cannot be changed; the job's next attempt may hand in its own".into(),
        })
    }

    /// Reads a blob of predictions and checks that the split has every row, once.
    async fn predictions(&self, digest: &Digest, rows: u64) -> Result<HashMap<u32, Predicted>> {
        let size = self.store.blob_size(digest).await?;
        if let Some(size) = size.filter(|size| *size > MAX_PREDICTIONS_BYTES) {
            let problem = format!("{size} bytes; the limit is {MAX_PREDICTIONS_BYTES}; predict fewer rows");
            return Err(Invalid::new("predictions_digest", problem).into());
        }
        let bytes = self.store.get_blob(digest).await?;
        self.off_thread(move || Ok(parse(&bytes, rows)?)).await
    }
}

fn parse(bytes: &[u8], rows: u64) -> Result<HashMap<u32, Predicted>, Invalid> {
    let mut by_row = HashMap::new();
    for (line, number) in bytes.split(|byte| *byte == b'\n').zip(1..).filter(|(line, _)| !line.is_empty()) {
        let field = || format!("predictions line {number}");
        let predicted: Predicted =
            serde_json::from_slice(line).map_err(|error| Invalid::new(field(), error.to_string()))?;
        expect_rows(predicted.row, rows).map_err(|problem| Invalid::new(field(), problem))?;
        let row = predicted.row;
        if by_row.insert(row, predicted).is_some() {
            return Err(Invalid::new(field(), format!("{row} is predicted twice")));
        }
    }
    Ok(by_row)
}

fn answer(text: &str, target: &str) -> Answer {
    let (trimmed, target) = (text.trim(), target.trim());
    Answer { exact: trimmed == target, edit_distance: edit_distance(trimmed, target) as u64, text: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_of_anything_else_is_refused_by_its_line() {
        let line = |row: u32| format!(r#"{{"row":{row},"base":"a","adapter":"b"}}"#);
        assert_eq!(parse(format!("{}\n{}\n", line(1), line(0)).as_bytes(), 2).map(|rows| rows.len()), Ok(2));
        for (bytes, says) in [
            (format!("{}\n{}\n", line(0), line(0)), "line 2: 0 is predicted twice"),
            (format!("{}\n", line(2)), "line 1: 2 is not in the validation split; its rows are 0 to 1"),
            ("{\"row\":0}\n".to_owned(), "line 1: missing field"),
            ("\u{0}\n".to_owned(), "line 1"),
        ] {
            let refused = parse(bytes.as_bytes(), 2).expect_err("refused").to_string();
            assert!(refused.contains(says), "{says:?} is missing in {refused}");
        }
    }
}
