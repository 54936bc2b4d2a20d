//! What tests share: real servers on free ports, stores that fail on command, temporary folders. Never a dependency of
//! anything that ships.
//!
//! A test that needs a server which is not installed says so on stderr (`SKIPPED: …`) and passes; with
//! `TAILOR_TEST_REQUIRE=1` it fails instead, so that a complete run cannot skip anything by accident.

mod disk;
mod faults;
mod flaky;
mod hub;
mod process;
mod random_base;
mod redis;
mod s3;
mod temp;

pub use disk::SmallDisk;
pub use faults::{Fault, Faults, Op, Paused};
pub use flaky::FlakyStore;
pub use hub::{HUB_REPO, HubFault, HubServer};
pub use process::{free_port, skipped, skipped_without_gpu, wait_for_port};
pub use random_base::{EOS, LlamaShape, T5Shape};
pub use redis::RedisServer;
pub use s3::S3Server;
pub use temp::TempDir;

/// The backend in memory, to be forked.
pub use object_store::memory::InMemory;
