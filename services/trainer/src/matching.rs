//! Which workers a job is for. The queue gives none what it cannot run at all; what is too large for one and not for another
//! that is there goes back.

use tailor_domain::Recipe;
use tailor_plan::{Device, DeviceKind};
use tailor_queue::Class;

/// What a job has to be run by.
pub fn class_of(recipe: &Recipe) -> Class {
    match recipe.train.check_device(false) {
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

#[cfg(test)]
mod tests {
    use tailor_domain::spec::{Checkpointing, Optimizer};

    use super::*;

    #[test]
    fn what_only_a_gpu_can_do_is_for_workers_with_one() {
        let mut aside = Recipe::default();
        aside.train.checkpointing = Checkpointing::LayersOnHost;
        let mut paged = Recipe::default();
        paged.train.optimizer = Optimizer::PagedAdamW8bit;
        for recipe in [aside, paged] {
            assert_eq!(class_of(&recipe), Class::Gpu);
        }
        assert_eq!(class_of(&Recipe::default()), Class::Cpu);
        let [old, new, card] = [Device::cpu("a", 1, false), Device::cpu("b", 1, true), Device::gpu("c", 1)];
        assert_eq!([old, new, card].map(|device| class_on(&device)), [Class::Cpu, Class::Cpu, Class::Gpu]);
    }
}
