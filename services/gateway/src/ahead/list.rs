//! A list that outlives the process: JSON in the cache folder, which may be lost.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub struct List<T> {
    path: PathBuf,
    /// As it stands in the file.
    items: Vec<T>,
}

impl<T: Serialize + DeserializeOwned + PartialEq> List<T> {
    /// What the process before has left; nothing where that cannot be read.
    pub async fn read(path: PathBuf) -> Self {
        let items = match tokio::fs::read(&path).await {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(list = %path.display(), %error, "a list of what was there cannot be read; begun anew");
                Vec::new()
            }),
            Err(_) => Vec::new(),
        };
        Self { path, items }
    }

    pub fn items(&self) -> &[T] {
        &self.items
    }

    /// Writes down what is there now, where that is something else.
    pub async fn keep(&mut self, now: Vec<T>) {
        if now == self.items {
            return;
        }
        match write(&self.path, &now).await {
            Ok(()) => self.items = now,
            Err(problem) => {
                tracing::warn!(list = %self.path.display(), %problem, "the list of what is there cannot be written");
            }
        }
    }
}

/// Only a whole list ever has its name.
async fn write<T: Serialize>(path: &Path, now: &[T]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    let partial = path.with_extension("part");
    tokio::fs::write(&partial, serde_json::to_vec_pretty(now)?).await?;
    tokio::fs::rename(&partial, path).await
}

#[cfg(test)]
mod tests {
    use tailor_testkit::TempDir;

    use super::*;

    #[tokio::test]
    async fn a_list_outlives_its_process_and_one_that_is_damaged_is_begun_anew() {
        let folder = TempDir::new();
        let path = folder.join("deep/list.json");
        let mut list = List::<u64>::read(path.clone()).await;
        assert!(list.items().is_empty(), "there was no process before");
        list.keep(vec![3, 1, 2]).await;
        let mut again = List::<u64>::read(path.clone()).await;
        assert_eq!(again.items(), [3, 1, 2]);
        again.keep(Vec::new()).await;
        assert!(List::<u64>::read(path.clone()).await.items().is_empty(), "and nothing is a list, too");
        std::fs::write(&path, "[1, 2").expect("damages it");
        let mut damaged = List::<u64>::read(path.clone()).await;
        assert!(damaged.items().is_empty());
        damaged.keep(vec![4]).await;
        assert_eq!(List::<u64>::read(path).await.items(), [4]);
    }
}
