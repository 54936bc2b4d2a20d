//! Integers that begin at a cache line: a load of 32 bytes never touches two.

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
