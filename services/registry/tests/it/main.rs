//! The registry over real gRPC on a free port.

mod aliases;
mod bases;
mod blobs;
mod publish;
mod quantised;
mod support;
