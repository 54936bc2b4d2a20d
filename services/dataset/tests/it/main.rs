//! The dataset service over real gRPC on a free port.

mod failures;
mod kinds;
mod preview;
mod score;
mod shards;
mod shipped;
mod submission;
mod support;
mod uploads;
mod versions;
