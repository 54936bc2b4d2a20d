//! One event file, written from its beginning; whole records reach the disk, so a reader may follow it.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use prost::Message as _;

use crate::event::event::What;
use crate::event::session_log::Status;
use crate::event::summary::Value;
use crate::event::{Event, SessionLog, Summary};
use crate::record::frame;

/// Version 2: a step that comes again is forgotten only where a session says that it begins anew.
const VERSION: &str = "brain.Event:2";

#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", .path.display())]
pub struct Error {
    path: PathBuf,
    source: std::io::Error,
}

pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins `folder/events.out.tfevents.<seconds>.<name>`; a file of that name is written anew. TensorBoard knows event
    /// files by their name and a run by its folder.
    ///
    /// # Errors
    /// Folder or file cannot be made.
    pub fn create(folder: &Path, name: &str, at_ms: u64) -> Result<Self, Error> {
        let path = folder.join(format!("events.out.tfevents.{:010}.{name}", at_ms / 1000));
        let failed = |source| Error { path: path.clone(), source };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let file = File::create(&path).map_err(failed)?;
        let mut events = Self { path, file };
        events.write(&Event { wall_time: seconds(at_ms), step: 0, what: Some(What::FileVersion(VERSION.into())) })?;
        Ok(events)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes what was measured at a step, by tag.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn scalars(&mut self, at_ms: u64, step: u64, values: &[(&str, f64)]) -> Result<(), Error> {
        let value =
            values.iter().map(|(tag, value)| Value { tag: (*tag).to_owned(), simple_value: Some(*value as f32) });
        self.event(at_ms, step, What::Summary(Summary { value: value.collect() }))
    }

    /// Says that the run goes on from before `step`: what was written of it and of later steps counts no more.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn restart(&mut self, at_ms: u64, step: u64) -> Result<(), Error> {
        self.event(at_ms, step, What::SessionLog(SessionLog { status: Status::Start.into() }))
    }

    fn event(&mut self, at_ms: u64, step: u64, what: What) -> Result<(), Error> {
        self.write(&Event {
            wall_time: seconds(at_ms),
            step: i64::try_from(step).unwrap_or(i64::MAX),
            what: Some(what),
        })
    }

    fn write(&mut self, event: &Event) -> Result<(), Error> {
        let written = self.file.write_all(&frame(&event.encode_to_vec()));
        written.map_err(|source| Error { path: self.path.clone(), source })
    }
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_begins_with_its_version_and_holds_one_record_an_event() {
        let folder = tempfile::tempdir().expect("folder");
        let mut events = EventFile::create(&folder.path().join("run"), "job", 12_500).expect("created");
        events.scalars(13_000, 7, &[("train/loss", 0.5), ("train/grad_norm", 0.0)]).expect("written");
        events.restart(14_000, 5).expect("written");
        assert!(events.path().ends_with("run/events.out.tfevents.0000000012.job"));

        let bytes = std::fs::read(events.path()).expect("read");
        let read = decode(&bytes);
        assert_eq!(read.len(), 3);
        assert_eq!((read[0].wall_time, &read[0].what), (12.5, &Some(What::FileVersion(VERSION.into()))));
        let Some(What::Summary(summary)) = &read[1].what else { panic!("{:?}", read[1]) };
        let values: Vec<_> =
            summary.value.iter().map(|value| (value.tag.as_str(), value.simple_value.unwrap_or(f32::NAN))).collect();
        assert_eq!((read[1].step, values), (7, vec![("train/loss", 0.5), ("train/grad_norm", 0.0)]));
        assert_eq!(read[2].what, Some(What::SessionLog(SessionLog { status: 1 })));
    }

    fn decode(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some((length, _)) = bytes.split_first_chunk::<8>() {
            let end = 12 + u64::from_le_bytes(*length) as usize;
            events.push(Event::decode(&bytes[12..end]).expect("an event"));
            bytes = &bytes[end + 4..];
        }
        events
    }
}
