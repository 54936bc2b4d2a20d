//! The kernels without vector instructions: the same sums in the same order, so the same bits.

use half::bf16;

use super::{Activations, BLOCK, Dense, Kernels, Lanes, Levels, Part, STRIDE, element, total};

pub(super) const KERNELS: Kernels = Kernels { packed, columns: None, dense, dense_outs: 2, expand, totals };

/// # Safety
/// `sums` has an entry for each pair of rows.
pub(super) unsafe fn packed(part: &Part<'_>, rows: usize, sums: *mut Lanes) {
    let mut levels = vec![0i16; part.blocks * BLOCK];
    for out in 0..part.outs {
        let (packed, scales) = part.row(out);
        unpack(packed, part.levels, &mut levels);
        // SAFETY: as the caller says.
        one(&levels, scales, &part.x, unsafe { std::slice::from_raw_parts_mut(sums.add(out * rows), rows) });
    }
}

/// One row of a weight, and as many of x as there are sums.
fn one(levels: &[i16], scales: &[f32], x: &Activations<'_>, sums: &mut [Lanes]) {
    let rows = sums.len();
    for (block, levels) in levels.as_chunks::<BLOCK>().0.iter().enumerate() {
        for (row, sums) in sums.iter_mut().enumerate() {
            let at = block * rows + row;
            let values = &x.values[at * BLOCK..(at + 1) * BLOCK];
            // Exact: x's integers are small enough.
            let products = levels.iter().zip(values).map(|(level, value)| i32::from(*level) * i32::from(*value));
            let sum = &mut sums[block % STRIDE];
            *sum = (products.sum::<i32>() as f32).mul_add(scales[block] * x.scales[row * x.scale_stride + block], *sum);
        }
    }
}

fn unpack(packed: &[u8], levels: &Levels, out: &mut [i16]) {
    for (bytes, out) in packed.as_chunks::<{ BLOCK / 2 }>().0.iter().zip(out.as_chunks_mut::<BLOCK>().0) {
        for (place, level) in out.iter_mut().enumerate() {
            let element = element(place);
            let byte = bytes[element / 2];
            *level = levels.values[usize::from(if element.is_multiple_of(2) { byte >> 4 } else { byte & 15 })];
        }
    }
}

/// # Safety
/// `sums` has an entry for each pair of rows.
unsafe fn dense(part: &Dense<'_>, sums: *mut Lanes) {
    let (out, rows) = part.shape();
    // SAFETY: as the caller says.
    let sums = unsafe { std::slice::from_raw_parts_mut(sums, out * rows) };
    let weights = part.weights.chunks_exact(part.width);
    for (weights, sums) in weights.zip(sums.chunks_exact_mut(rows)) {
        for (x, sums) in part.x.chunks_exact(part.width).zip(sums) {
            dot(weights, x, sums);
        }
    }
}

/// Value i goes to lane i mod 8.
pub(super) fn dot(weights: &[bf16], x: &[f32], sums: &mut Lanes) {
    for (weights, x) in weights.chunks(8).zip(x.chunks(8)) {
        for ((sum, weight), x) in sums.iter_mut().zip(weights).zip(x) {
            *sum = weight.to_f32().mul_add(*x, *sum);
        }
    }
}

/// # Safety
/// There are as many rows of `b` as values, `stride` apart and as long as `y`.
pub(super) unsafe fn expand(b: *const bf16, stride: usize, values: &[f32], y: &mut [f32]) {
    for (at, value) in values.iter().enumerate() {
        // SAFETY: as the caller says.
        let b = unsafe { std::slice::from_raw_parts(b.add(at * stride), y.len()) };
        y.iter_mut().zip(b).for_each(|(y, b)| *y = b.to_f32().mul_add(*value, *y));
    }
}

/// # Safety
/// `sums` has an entry for each of `out`, `stride` apart.
unsafe fn totals(sums: *const Lanes, stride: usize, out: &mut [f32]) {
    for (at, out) in out.iter_mut().enumerate() {
        // SAFETY: as the caller says.
        *out = total(unsafe { &*sums.add(at * stride) });
    }
}
