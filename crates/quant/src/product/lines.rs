//! Cache lines: integers that begin at one, so that a load of 32 bytes never touches two, and hints that some will be read.

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([i16; Line::VALUES]);

impl Line {
    const VALUES: usize = 32;
}

/// A buffer that grows to the largest size asked for.
#[derive(Default)]
pub(super) struct Lines(Vec<Line>);

impl Lines {
    /// Room for so many values; what was there stays.
    pub fn grow(&mut self, count: usize) {
        let lines = count.div_ceil(Line::VALUES);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0; Line::VALUES]));
        }
    }

    pub fn values(&self) -> &[i16] {
        // SAFETY: lines are arrays of integers without gaps.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * Line::VALUES) }
    }

    pub fn values_mut(&mut self) -> &mut [i16] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * Line::VALUES) }
    }
}

/// A hint that the values will be read soon, but after more than the first-level cache holds.
#[inline(always)]
pub(super) fn ask<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let first: *const i8 = values.as_ptr().cast();
        for at in (0..size_of_val(values)).step_by(size_of::<Line>()) {
            // SAFETY: every x86-64 has the instruction, which may point anywhere.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(first.wrapping_add(at)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}
