//! TensorBoard's event files: scalars by tag and step, as `tensorboard --logdir` reads them.
//!
//! [`EventFile`] is the format; [`record`] frames and checks its records.

mod crc32c;
mod file;
mod record;

/// The messages of `proto/event.proto`.
#[allow(clippy::all)]
mod event {
    include!(concat!(env!("OUT_DIR"), "/tailor.tensorboard.rs"));
}

pub use file::{Error, EventFile};
