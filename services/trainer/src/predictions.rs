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
    pub async fn keep(&self, fence: u64, predicted: &[Predicted]) -> Result<Digest> {
        let digest = self.store.put_blob(to_lines(predicted)).await?;
        let record = Record { digest: digest.clone(), rows: predicted.len() as u64, at_ms: now_ms() };
        self.store.create_json(&self.key(fence), &record).await?;
        Ok(digest)
    }

    pub async fn find(&self, fence: u64) -> Result<Option<Record>> {
        Ok(self.store.find_json(&self.key(fence)).await?)
    }
}

/// One JSON object a line.
fn to_lines(predicted: &[Predicted]) -> Vec<u8> {
    let mut lines = Vec::new();
    for one in predicted {
        // Two strings and a number always are JSON.
        if serde_json::to_writer(&mut lines, one).is_ok() {
            lines.push(b'\n');
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_attempts_answers_are_kept_once_and_found_by_its_number() {
        let store = Store::memory();
        let predictions = Predictions::of(&store, &JobId::from_parts(1_700_000_000_000, 7));
        let answers = [Predicted { row: 3, base: "a \"b\"\n".into(), adapter: "b".into() }];
        let digest = predictions.keep(2, &answers).await.expect("kept");
        assert_eq!(predictions.keep(2, &answers).await.expect("kept again"), digest);
        let record = predictions.find(2).await.expect("read").expect("a record");
        assert_eq!((&record.digest, record.rows), (&digest, 1));
        assert_eq!(predictions.find(1).await.expect("read"), None);
        let bytes = store.get_blob(&digest).await.expect("the answers");
        let line = bytes.strip_suffix(b"\n").expect("a line");
        assert_eq!(serde_json::from_slice::<Predicted>(line).expect("an answer"), answers[0]);
    }
}
