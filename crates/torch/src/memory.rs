//! How much memory the process uses, as Linux counts it.

use std::fs;

use crate::{Error, Result};

/// Resident memory now and at its highest since the start or the last [`PeakMemory::reset`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub resident_bytes: u64,
    pub peak_bytes: u64,
}

impl Memory {
    /// # Errors
    /// `/proc/self/status` cannot be read.
    pub fn now() -> Result<Self> {
        let path = "/proc/self/status";
        let status = fs::read_to_string(path).map_err(|error| Error::Memory(format!("{path}: {error}")))?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
                .map(|kilobytes| kilobytes * 1024)
                .ok_or_else(|| Error::Memory(format!("{path} has no {name:?}")))
        };
        Ok(Self { resident_bytes: field("VmRSS:")?, peak_bytes: field("VmHWM:")? })
    }
}

/// Resident bytes now; 0 where the system does not say.
pub fn resident_bytes() -> u64 {
    Memory::now().map_or(0, |memory| memory.resident_bytes)
}

/// Measures the highest resident memory of a stretch of work.
pub struct PeakMemory {
    before: u64,
}

impl PeakMemory {
    /// Gives freed memory back to the kernel, then sets the process's high-water mark to what is resident now.
    ///
    /// # Errors
    /// The kernel does not allow it.
    pub fn reset() -> Result<Self> {
        give_back_freed_memory();
        let path = "/proc/self/clear_refs";
        fs::write(path, "5").map_err(|error| Error::Memory(format!("{path}: {error}")))?;
        Ok(Self { before: Memory::now()?.resident_bytes })
    }

    /// Bytes above what was resident at the reset.
    ///
    /// # Errors
    /// `/proc/self/status` cannot be read.
    pub fn growth_bytes(&self) -> Result<u64> {
        Ok(Memory::now()?.peak_bytes.saturating_sub(self.before))
    }
}

/// The allocator keeps freed memory for later; counted as resident, it would hide what the work takes anew.
fn give_back_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: glibc's function, without preconditions.
        unsafe { malloc_trim(0) };
    }
}
