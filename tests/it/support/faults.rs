//! What faults of adapters need: somebody who serves, neighbours who must not notice, and versions that no registry would publish.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tailor_domain::Digest;
use tailor_pb::inference::{GenerateRequest, GenerateResponse};
use tonic::{Code, Status};

use super::answers::{self, stream};
use super::clients::Addresses;
use super::{Family, Fleet};

const TOKENS: u32 = 40;

/// Who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// One gateway, edge and engine in one process.
    ByOne,
    /// An edge before two engines.
    ByEngines,
}

/// `grammar` in some versions, and who serves it.
pub struct Stage {
    pub fleet: Fleet,
    pub at: Addresses,
    pub versions: Versions,
    served: Served,
}

impl Stage {
    pub async fn with(served: Served, versions: u32, settings: &[(&str, &str)]) -> Self {
        let fleet = match served {
            Served::ByOne => Fleet::start(1, &[0], settings).await,
            Served::ByEngines => Fleet::with_engines(2, settings).await,
        };
        fleet.publish(versions);
        let (at, versions) = (fleet.at(0, 0), Versions::of(&fleet));
        Self { fleet, at, versions, served }
    }

    pub fn engines(&self) -> usize {
        match self.served {
            Served::ByOne => 1,
            Served::ByEngines => 2,
        }
    }

    /// A fault as the report calls it.
    pub fn called(&self, fault: &str) -> String {
        match self.served {
            Served::ByOne => fault.to_owned(),
            Served::ByEngines => format!("{fault} (an edge and two engines)"),
        }
    }
}

pub fn request(adapter: &str, number: usize) -> GenerateRequest {
    answers::request(Family::Llama, adapter, number % 4, TOKENS)
}

/// # Errors
/// What the service answered.
pub async fn ask(at: &Addresses, adapter: &str, number: usize) -> Result<GenerateResponse, Status> {
    answers::ask(at, request(adapter, number)).await
}

/// Ten times the same refusal; the last one's words.
pub async fn refused(at: &Addresses, reference: &str, code: Code, words: &str) -> String {
    let mut last = String::new();
    for number in 0..10 {
        let status = ask(at, reference, number).await.expect_err("never the base's answer");
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(words), "{status}");
        last = status.message().to_owned();
    }
    last
}

/// Streams of the base and of a healthy adapter, one after the other in each of four tasks, as long as this lives; each answer is
/// held to what was said before anything happened.
pub struct Neighbours {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<u64>>,
}

impl Neighbours {
    pub async fn start(at: &Addresses, healthy: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for number in 0..4 {
            let adapter = if number % 2 == 0 { healthy.to_owned() } else { String::new() };
            let alone = ask(at, &adapter, number).await.expect("an answer").text;
            let (at, stop) = (at.clone(), stop.clone());
            tasks.push(tokio::spawn(async move {
                let mut answers = 0;
                while !stop.load(Ordering::Relaxed) || answers == 0 {
                    let said = stream(at.clone(), request(&adapter, number), Arc::default()).await;
                    said.end.expect("a neighbour is answered");
                    assert_eq!(said.text, alone, "{adapter:?} says what it says alone");
                    answers += 1;
                }
                answers
            }));
        }
        Self { stop, tasks }
    }

    /// Ends them, and tells the report of a fault.
    pub async fn held(self, fault: &str, callers: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let mut answers = 0;
        for task in self.tasks {
            answers += task.await.expect("no neighbour was let down");
        }
        let row = format!("| {fault} | {callers} | {answers} |\n");
        print!("{row}");
        if let Some(rows) = std::env::var_os("TAILOR_FAULT_ROWS") {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(rows);
            file.and_then(|mut file| file.write_all(row.as_bytes())).expect("the report's row");
        }
    }
}

/// Files of versions, written past the registry as nothing but a broken or malicious store would have them.
pub struct Versions {
    folder: PathBuf,
    blobs: PathBuf,
}

impl Versions {
    pub fn of(fleet: &Fleet) -> Self {
        let store = fleet.folder.join("store");
        Self { folder: store.join("adapters/grammar/versions"), blobs: store.join("blobs/sha256") }
    }

    fn path(&self, version: u32) -> PathBuf {
        self.folder.join(format!("{version:08}.json"))
    }

    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("a digest");
        self.blobs.join(&hex[..2]).join(hex)
    }

    pub fn read(&self, version: u32) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(version)).expect("a version")).expect("JSON")
    }

    /// Version 1 with changes, as another version.
    pub fn write(&self, version: u32, change: impl FnOnce(&mut Value)) {
        let mut manifest = self.read(1);
        manifest["version"] = version.into();
        change(&mut manifest);
        std::fs::write(self.path(version), serde_json::to_vec(&manifest).expect("JSON")).expect("a version");
    }

    /// Version 1 with other weights.
    pub fn write_weights(&self, version: u32, change: impl FnOnce(&mut Vec<u8>)) {
        let whole = self.read(1)["weights"].as_str().expect("a digest").to_owned();
        let mut bytes = std::fs::read(self.blob(&whole)).expect("weights");
        change(&mut bytes);
        let digest = Digest::of(&bytes).to_string();
        let path = self.blob(&digest);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, &bytes).expect("a blob");
        self.write(version, |manifest| {
            manifest["weights"] = digest.into();
            manifest["weights_size_bytes"] = bytes.len().into();
        });
    }
}
