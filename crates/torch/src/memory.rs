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

/// Bytes that this process may still take before the host swaps or ends something: what is free or can be dropped, or what
/// the control group leaves, whichever is less. None where the system does not say.
pub fn available_bytes() -> Option<u64> {
    let host = meminfo_available(&fs::read_to_string("/proc/meminfo").ok()?)?;
    Some(control_group().map_or(host, |(limit, used)| limit.saturating_sub(used).min(host)))
}

/// Bytes that this process could ever take: the host's, or its control group's limit. None where the system does not say.
pub fn total_bytes() -> Option<u64> {
    let host = meminfo(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")?;
    Some(control_group().map_or(host, |(limit, _)| limit.min(host)))
}

fn meminfo_available(text: &str) -> Option<u64> {
    meminfo(text, "MemAvailable:")
}

fn meminfo(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Limit and use of the process's control group, of the second version and then of the first.
fn control_group() -> Option<(u64, u64)> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok(); // "max" is no number
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").trim_end_matches('/');
    for (folder, limit, used) in [
        (format!("/sys/fs/cgroup{group}"), "memory.max", "memory.current"),
        ("/sys/fs/cgroup".to_owned(), "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory".to_owned(), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ] {
        if let (Some(limit), Some(used)) = (number(&format!("{folder}/{limit}")), number(&format!("{folder}/{used}"))) {
            return Some((limit, used));
        }
    }
    None
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
    crate::drop_pool();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: glibc's function, without preconditions.
        unsafe { malloc_trim(0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_read_from_the_kernels_words() {
        let meminfo = "MemTotal:       24000000 kB\nMemFree:  100 kB\nMemAvailable:    2048 kB\n";
        assert_eq!(meminfo_available(meminfo), Some(2048 * 1024));
        assert_eq!(meminfo_available("MemFree: 100 kB\n"), None);
        let available = available_bytes().expect("Linux says");
        assert!(available > 1 << 20, "{available}");
    }
}
