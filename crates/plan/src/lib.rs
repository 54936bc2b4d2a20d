//! What a training job takes before it starts: memory by part, where it fits, time, money, and what to change if it does
//! not fit.
//!
//! Pure arithmetic from the base's config.json and the recipe: no libtorch, no I/O. docs/planning.md says what it counts and
//! how far it has been measured.

mod adapter;
mod amount;
mod calibration;
mod device;
mod error;
mod memory;
mod nearest;
mod plan;
mod settings;
mod shape;
mod work;

pub use adapter::Adapter;
pub use calibration::Calibration;
pub use device::{Device, DeviceKind};
pub use error::{Error, Result};
pub use memory::Memory;
pub use nearest::Change;
pub use plan::{Fit, Plan, Question, Way, memory_on, plan};
pub use settings::{Compute, Pass, Rows, Settings};
pub use shape::{Linear, Shape};
pub use work::{Rates, Work};
