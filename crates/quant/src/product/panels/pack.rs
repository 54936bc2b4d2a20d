//! Rows of x side by side: a pair of values of each, then the next pair.

use std::arch::x86_64::*;
use std::ops::Range;

use super::super::amx;
use super::{Rows, SIDE};

/// Pairs of a register.
const PAIRS: usize = 16;

/// Some values of some rows, [pairs, 14]; rows that are not there are zeros, and so is what an odd number of values lacks.
///
/// # Safety
/// [`super::halves::available`]; the values are there, and room for them.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn block(x: Rows<'_>, rows: Range<usize>, values: Range<usize>, to: *mut u32) {
    const PRESENT: __mmask16 = (1 << SIDE) - 1;
    let pairs = values.len().div_ceil(2);
    for at in (0..pairs).step_by(PAIRS) {
        let left = values.len() - 2 * at;
        let mask: __mmask32 = if left >= 2 * PAIRS { !0 } else { (1 << left) - 1 };
        let mut lines = [_mm512_setzero_ps(); 16];
        for (line, row) in lines.iter_mut().zip(rows.clone()) {
            let place = x.values.as_ptr().wrapping_add(row * x.stride + values.start + 2 * at);
            // SAFETY: what is not there is not read.
            *line = _mm512_castsi512_ps(unsafe { _mm512_maskz_loadu_epi16(mask, place.cast()) });
        }
        for (pair, column) in (at..pairs).zip(amx::columns(lines)) {
            // What a whole store has too much the next one puts right; behind the last there is another block.
            let stored = if pair + 1 < pairs { !0 } else { PRESENT };
            // SAFETY: as the caller says.
            unsafe { _mm512_mask_storeu_ps(to.add(pair * SIDE).cast(), stored, column) };
        }
    }
}
