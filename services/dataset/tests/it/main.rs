//! The dataset service over real gRPC on a free port.

mod failures;
mod importing;
mod kinds;
mod parquet;
mod preview;
mod resuming;
mod score;
mod shards;
mod shipped;
mod submission;
mod support;
mod uploads;
mod versions;
