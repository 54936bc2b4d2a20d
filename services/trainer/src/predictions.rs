//! What a job's attempts answered to the held-out rows: the answers as a blob, then a record that names them.
//! `jobs/<job>/predictions/<fence>.json`
//!
//! Inputs and targets are not here: they stay with the dataset service, which shows them beside answers that were handed in.

use serde::{Deserialize, Serialize};
use tailor_blobs::{Store, numbered_key};
use tailor_domain::{Digest, JobId, Predicted};

use crate::error::Result;
use crate::journal::now_ms;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub digest: Digest,
    pub rows: u64,
    pub at_ms: u64,
}

#[derive(Debug, Clone)]
pub struct Predictions {
    store: Store,
    job: JobId,
}

impl Predictions {
    pub fn of(store: &Store, job: &JobId) -> Self {
        Self { store: store.clone(), job: job.clone() }
    }

    fn key(&self, fence: u64) -> String {
        numbered_key(&format!("jobs/{}/predictions", self.job), fence)
    }

    /// Keeps an attempt's answers. May be repeated with the same ones.
    pub async fn keep(&self, fence: u64, predicted: &Lines) -> Result<Digest> {
        let digest = self.store.put_blob(predicted.bytes.clone()).await?;
        let record = Record { digest: digest.clone(), rows: predicted.rows as u64, at_ms: now_ms() };
        self.store.create_json(&self.key(fence), &record).await?;
        Ok(digest)
    }

    pub async fn find(&self, fence: u64) -> Result<Option<Record>> {
        Ok(self.store.find_json(&self.key(fence)).await?)
    }
}

/// Answers as they are handed in: one JSON object a line.
#[derive(Debug, Default)]
pub struct Lines {
    bytes: Vec<u8>,
    rows: usize,
}

impl Lines {
    /// The first answers that together take no more than `limit` bytes; those after them are not asked for.
    ///
    /// # Errors
    /// What making an answer failed with.
    pub fn of(predicted: impl Iterator<Item = Result<Predicted>>, limit: u64) -> Result<Self> {
        let mut lines = Self::default();
        for one in predicted {
            let before = lines.bytes.len();
            // Two strings and a number always are JSON.
            if serde_json::to_writer(&mut lines.bytes, &one?).is_err() {
                continue;
            }
            lines.bytes.push(b'\n');
            if lines.bytes.len() as u64 > limit {
                lines.bytes.truncate(before);
                break;
            }
            lines.rows += 1;
        }
        Ok(lines)
    }

    pub fn rows(&self) -> usize {
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(row: u32) -> Predicted {
        Predicted { row, base: "a \"b\"\n".into(), adapter: "b".into() }
    }

    fn lines(limit: u64) -> Lines {
        Lines::of([3, 4, 5].map(answer).into_iter().map(Ok), limit).expect("answers")
    }

    #[tokio::test]
    async fn an_attempts_answers_are_kept_once_and_found_by_its_number() {
        let store = Store::memory();
        let predictions = Predictions::of(&store, &JobId::from_parts(1_700_000_000_000, 7));
        let answers = lines(u64::MAX);
        let digest = predictions.keep(2, &answers).await.expect("kept");
        assert_eq!(predictions.keep(2, &answers).await.expect("kept again"), digest);
        let record = predictions.find(2).await.expect("read").expect("a record");
        assert_eq!((&record.digest, record.rows), (&digest, 3));
        assert_eq!(predictions.find(1).await.expect("read"), None);
        let bytes = store.get_blob(&digest).await.expect("the answers");
        let read = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let read: Vec<Predicted> = read.map(|line| serde_json::from_slice(line).expect("an answer")).collect();
        assert_eq!(read, [3, 4, 5].map(answer));
    }

    #[test]
    fn of_answers_that_are_too_many_the_first_that_fit_are_kept() {
        let whole = lines(u64::MAX);
        let each = whole.bytes.len() as u64 / 3;
        assert_eq!(lines(3 * each).rows(), 3);
        for (limit, rows) in [(3 * each - 1, 2), (each, 1), (each - 1, 0)] {
            let fits = lines(limit);
            assert_eq!(fits.rows(), rows);
            assert_eq!(fits.bytes, whole.bytes[..rows * each as usize], "whole lines");
        }
    }
}
