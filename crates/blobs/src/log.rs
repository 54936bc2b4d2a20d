//! Logs: records numbered from 1 without gaps. The next number is taken by create-if-absent, so two writers never share
//! one, and the log is its own history.

use std::sync::PoisonError;

use futures::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::key::{MAX_NUMBER, number_of};
use crate::{Creation, Error, Result, Store, numbered_key};

/// Remembered ends of logs; when there are more, all are forgotten. A hint saves a few requests, no more.
const MAX_TAILS: usize = 4096;
/// Records fetched at once when a log is read.
const READ_AHEAD: usize = 16;

impl Store {
    /// Appends a record under the next free number and returns that number. `build` is called again with a higher number
    /// when another writer was faster.
    ///
    /// # Errors
    /// As [`Store::create_json`]; [`Error::InvalidKey`] also when the numbers are used up.
    pub async fn append_numbered<T>(&self, prefix: &str, mut build: impl FnMut(u64) -> T) -> Result<u64>
    where
        T: Serialize + DeserializeOwned,
    {
        let mut number = self.last_number(prefix).await? + 1;
        loop {
            if number > MAX_NUMBER {
                let problem = format!("the log is full: {MAX_NUMBER} records");
                return Err(Error::InvalidKey { key: prefix.to_owned(), problem });
            }
            let value = build(number);
            match self.create_json(&numbered_key(prefix, number), &value).await? {
                Creation::Created => {
                    self.remember_tail(prefix, number);
                    return Ok(number);
                }
                Creation::AlreadyExists(_) => number += 1,
            }
        }
    }

    /// The number of a log's last record, 0 if there is none.
    ///
    /// Asks for a logarithmic number of keys instead of listing the log: from the last known end it leaps ahead in
    /// growing steps, then halves. That is sound because numbers have no gaps.
    ///
    /// # Errors
    /// [`Error::InvalidKey`], [`Error::Unavailable`], [`Error::Refused`].
    pub async fn last_number(&self, prefix: &str) -> Result<u64> {
        let hint = self.known_tail(prefix);
        // The log may have been deleted since.
        let mut present = if hint > 0 && self.exists(&numbered_key(prefix, hint)).await? { hint } else { 0 };
        let mut step = 1;
        let mut absent = loop {
            let probe = present + step;
            if probe > MAX_NUMBER || !self.exists(&numbered_key(prefix, probe)).await? {
                break probe;
            }
            present = probe;
            step *= 2;
        };
        while absent - present > 1 {
            let middle = present + (absent - present) / 2;
            if middle <= MAX_NUMBER && self.exists(&numbered_key(prefix, middle)).await? {
                present = middle;
            } else {
                absent = middle;
            }
        }
        self.remember_tail(prefix, present);
        Ok(present)
    }

    /// A log's records with numbers from `from` on, in order.
    ///
    /// # Errors
    /// As [`Store::get_json`].
    pub async fn read_numbered<T: DeserializeOwned>(&self, prefix: &str, from: u64) -> Result<Vec<(u64, T)>> {
        let keys = match from {
            0 | 1 => self.list(prefix).await?,
            _ => self.list_from(prefix, &numbered_key(prefix, from - 1)).await?,
        };
        let numbers: Vec<u64> = keys.iter().filter_map(|key| number_of(prefix, key)).collect();
        if let Some(last) = numbers.last() {
            self.remember_tail(prefix, *last);
        }
        futures::stream::iter(numbers)
            .map(|number| async move { Ok((number, self.get_json(&numbered_key(prefix, number)).await?)) })
            .buffered(READ_AHEAD)
            .try_collect()
            .await
    }

    /// The records from `from` on, one after the other until there is none. For the end of a log that is known up to there:
    /// it asks no listing, so one that lags hides nothing.
    ///
    /// # Errors
    /// As [`Store::get_json`].
    pub async fn follow_numbered<T: DeserializeOwned>(&self, prefix: &str, from: u64) -> Result<Vec<(u64, T)>> {
        let mut found = Vec::new();
        let mut number = from.max(1);
        while number <= MAX_NUMBER
            && let Some(record) = self.find_json(&numbered_key(prefix, number)).await?
        {
            found.push((number, record));
            number += 1;
        }
        Ok(found)
    }

    fn known_tail(&self, prefix: &str) -> u64 {
        self.tails.lock().unwrap_or_else(PoisonError::into_inner).get(prefix).copied().unwrap_or(0)
    }

    /// As if this process had just started.
    #[cfg(feature = "conformance")]
    pub(crate) fn forget_tails(&self) {
        self.tails.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn remember_tail(&self, prefix: &str, number: u64) {
        let mut tails = self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        if tails.len() >= MAX_TAILS && !tails.contains_key(prefix) {
            tails.clear();
        }
        tails.insert(prefix.to_owned(), number);
    }
}
