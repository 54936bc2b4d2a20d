//! Which workers a job is for. The queue gives none what it cannot run at all; what is too large for one and not for another
//! that is there goes back.

use tailor_domain::JobSpec;
use tailor_plan::{Device, DeviceKind};
use tailor_queue::Class;

/// What a job has to be run by.
pub fn class_of(spec: &JobSpec) -> Class {
    match spec.recipe.train.check_device(false) {
        Ok(()) => Class::Cpu,
        Err(_) => Class::Gpu,
    }
}

/// What a worker on this device is.
pub fn class_on(device: &Device) -> Class {
    match device.kind {
        DeviceKind::Cpu | DeviceKind::CpuF32 => Class::Cpu,
        DeviceKind::Gpu => Class::Gpu,
    }
}
