//! What a trainer knows of its own device: how much memory it has, and what it does in a second.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::settings::Compute;
use crate::work::Rates;

/// `trainers/<sha256 of device and threads>.json`. Never changes: another device, another number of threads or another way
/// of measuring is another object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    pub device: Device,
    pub threads: u32,
    /// By the type of the arithmetic; empty where the trainer does not measure.
    pub rates: BTreeMap<String, Rates>,
    pub measured_at_ms: u64,
}

impl Calibration {
    pub fn rates(&self, compute: Compute) -> Option<&Rates> {
        self.rates.get(compute.as_str())
    }
}
