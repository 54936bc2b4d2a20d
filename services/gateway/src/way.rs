//! Adapters' way from the store to the device. Their files, and what is made of them, are in the host's memory until the device has
//! taken them over: so many bytes at a time, however many adapters are asked for at once.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::{Error, Result};

/// As many as the largest adapter may have: one such goes alone.
const MAX_BYTES: u64 = 4 << 30;
/// What is counted.
const UNIT_BYTES: u64 = 64 << 10;

pub struct Way(Semaphore);

impl Default for Way {
    fn default() -> Self {
        Self(Semaphore::new((MAX_BYTES / UNIT_BYTES) as usize))
    }
}

impl Way {
    /// Returns once there is room for so many bytes beside those that are on their way, whoever came first going first.
    ///
    /// # Errors
    /// The process ends.
    pub async fn enter(&self, size_bytes: u64) -> Result<SemaphorePermit<'_>> {
        self.0.acquire_many(units(size_bytes)).await.map_err(|_| Error::Cut)
    }
}

fn units(size_bytes: u64) -> u32 {
    // Even nothing takes a little.
    let units = size_bytes.clamp(1, MAX_BYTES).div_ceil(UNIT_BYTES);
    u32::try_from(units).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(10);

    #[tokio::test(start_paused = true)]
    async fn small_ones_go_side_by_side_and_a_large_one_waits_for_room() {
        let way = Way::default();
        let mut small = Vec::new();
        for _ in 0..1000 {
            small.push(timeout(MOMENT, way.enter(2000)).await.expect("at once").expect("room"));
        }
        let large = way.enter(MAX_BYTES - 999 * UNIT_BYTES);
        assert!(timeout(MOMENT, large).await.is_err(), "one of them is too many beside it");
        small.pop();
        let large = timeout(MOMENT, way.enter(MAX_BYTES - 999 * UNIT_BYTES)).await.expect("at once").expect("room");
        assert!(timeout(MOMENT, way.enter(0)).await.is_err(), "now there is none for anybody");
        drop((large, small));
        drop(timeout(MOMENT, way.enter(u64::MAX)).await.expect("alone, and refused later").expect("room"));
    }
}
