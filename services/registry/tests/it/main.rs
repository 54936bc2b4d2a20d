//! The registry over real gRPC on a free port.

mod aliases;
mod bases;
mod beside;
mod blobs;
mod faults;
mod gates;
mod house;
mod invariants;
mod low_rank;
mod merging;
mod processes;
mod publish;
mod quantised;
mod rollouts;
mod support;
mod trust;
mod watch;
mod world;
