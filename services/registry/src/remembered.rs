//! Records in memory, by their key. A record never changes, so nothing here goes stale; a bound is all that is needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::DeserializeOwned;
use tailor_blobs::{Result, Store};

#[derive(Debug)]
pub(crate) struct Remembered<T> {
    entries: Arc<Mutex<HashMap<String, Arc<T>>>>,
    /// When there are more, all are forgotten and read again.
    most: usize,
}

impl<T> Clone for Remembered<T> {
    fn clone(&self) -> Self {
        Self { entries: self.entries.clone(), most: self.most }
    }
}

impl<T: DeserializeOwned> Remembered<T> {
    pub fn new(most: usize) -> Self {
        Self { entries: Arc::default(), most }
    }

    /// # Errors
    /// As [`Store::get_json`].
    pub async fn get(&self, store: &Store, key: &str) -> Result<Arc<T>> {
        if let Some(known) = self.known(key) {
            return Ok(known);
        }
        let entry = Arc::new(store.get_json(key).await?);
        self.learn(key, &entry);
        Ok(entry)
    }

    /// The record if it is there.
    ///
    /// # Errors
    /// As [`Store::find_json`].
    pub async fn find(&self, store: &Store, key: &str) -> Result<Option<Arc<T>>> {
        match self.get(store, key).await {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn known(&self, key: &str) -> Option<Arc<T>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub fn learn(&self, key: &str, entry: &Arc<T>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.most {
            entries.clear();
        }
        entries.insert(key.to_owned(), entry.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_is_bounded_and_what_is_absent_is_asked_for_again() {
        let (store, remembered) = (Store::memory(), Remembered::<u64>::new(2));
        assert_eq!(remembered.find(&store, "n/1.json").await.expect("absent"), None);
        for number in 1..=5_u64 {
            let key = format!("n/{number}.json");
            store.create_json(&key, &number).await.expect("created");
            assert_eq!(*remembered.get(&store, &key).await.expect("there"), number);
        }
        assert!(remembered.entries.lock().expect("lock").len() <= 2);
    }
}
