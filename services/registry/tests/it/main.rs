//! The registry over real gRPC on a free port.

mod aliases;
mod bases;
mod blobs;
mod gates;
mod publish;
mod quantised;
mod rollouts;
mod support;
mod watch;
