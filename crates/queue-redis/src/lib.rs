//! The job queue over Redis Streams.
//!
//! A stream with one consumer group holds the jobs, and another one those that only a worker with a GPU can run; such a worker
//! reads both as if they were one. Every step that changes state is one Lua script, so it happens whole or not at all.
//! Waiting for work is a blocking `XREAD` on a connection of its own: it only wakes, it takes nothing, so a worker that dies
//! between waking and leasing leaves no entry delivered to nobody.
//!
//! Redis may lose everything (restart without persistence, `FLUSHALL`): leases are lost then, the group is made again by
//! the next call, and the reconciler enqueues what the object store says is unfinished. Epochs follow the server's
//! clock, so they rise even across such a loss. Only commands of Redis 7.0 and Valkey are used.
//!
//! Only this crate knows Redis.

mod changes;
mod classify;
mod queue;
mod scripts;

pub use queue::RedisQueue;

/// The stream's key. An autoscaler watches the group's lag on it.
pub const STREAM: &str = "{tailor}:jobs";
/// The same of jobs that only a worker with a GPU can run: an autoscaler of such workers watches both.
pub const GPU_STREAM: &str = "{tailor}:jobs:gpu";
/// The consumer group's name.
pub const GROUP: &str = "workers";
