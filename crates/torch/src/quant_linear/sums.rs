//! What the shim calls for sums of bf16 with packed weights ([`tailor_quant::Panels`]).

use std::ffi::c_void;

use crate::ffi;

#[cfg(target_arch = "x86_64")]
pub(super) use panels::{callback, drop_scratch, has_callback};

#[cfg(not(target_arch = "x86_64"))]
pub(super) extern "C" fn has_callback(_: *const c_void) -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) extern "C" fn callback(_: *const ffi::Sum, _: usize, _: i64, _: bool) -> i32 {
    1
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn drop_scratch() {}

#[cfg(target_arch = "x86_64")]
mod panels {
    use std::cell::RefCell;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::slice::{from_raw_parts, from_raw_parts_mut};

    use tailor_quant::{Factor, Matrix, Panels, Quantized, Rows, Sum, Term, has_panels};

    use super::{c_void, ffi};
    use crate::TorchWorkers;

    thread_local! {
        static PANELS: RefCell<Panels> = RefCell::default();
    }

    pub fn drop_scratch() {
        PANELS.take();
    }

    pub extern "C" fn has_callback(weight: *const c_void) -> bool {
        // SAFETY: `weight` is one of our raw `Arc`s, alive while the shim holds it.
        has_panels() && Matrix::new(unsafe { &*weight.cast::<Quantized>() }).is_some()
    }

    pub extern "C" fn callback(sums: *const ffi::Sum, count: usize, rows: i64, back: bool) -> i32 {
        let body = || {
            let rows = rows as usize;
            // SAFETY: the shim's own, while it waits.
            let sums = unsafe { from_raw_parts(sums, count) };
            let terms: Vec<Vec<Term<'_>>> = sums.iter().map(|sum| terms(sum, rows, back)).collect::<Option<_>>()?;
            let sums = sums.iter().zip(&terms).map(|(sum, terms)| {
                let out = sum.out as usize;
                // SAFETY: the shim's tensor has so many values, which nobody else looks at.
                let y = unsafe { from_raw_parts_mut(sum.y, rows * out) };
                Sum { terms, out, add: sum.add, y }
            });
            let mut sums: Vec<Sum<'_>> = sums.collect();
            PANELS.with_borrow_mut(|panels| panels.sums(rows, &mut sums, &TorchWorkers));
            Some(())
        };
        catch_unwind(AssertUnwindSafe(body)).map_or(1, |done| i32::from(done.is_none()))
    }

    /// `None` where a weight is not taken.
    fn terms(sum: &ffi::Sum, rows: usize, back: bool) -> Option<Vec<Term<'_>>> {
        // SAFETY: the shim's own, while it waits.
        let terms = unsafe { from_raw_parts(sum.terms, sum.count) };
        let one = |term: &ffi::Term| {
            let (stride, width, out) = (term.stride as usize, term.width as usize, sum.out as usize);
            // SAFETY: the shim's tensors have so many values, and weights are raw `Arc`s that it holds.
            let (x, factor) = unsafe {
                let x = from_raw_parts(term.x, rows.saturating_sub(1) * stride + width);
                let factor = match (term.packed.cast::<Quantized>().as_ref(), back) {
                    (Some(packed), false) => Factor::FourBit(Matrix::new(packed)?),
                    (Some(packed), true) => Factor::FourBitBack(Matrix::new(packed)?),
                    (None, false) => Factor::Dense(from_raw_parts(term.dense, out * width)),
                    (None, true) => Factor::DenseBack(from_raw_parts(term.dense, out * width)),
                };
                (x, factor)
            };
            Some(Term { x: Rows { values: x, stride, width }, factor })
        };
        terms.iter().map(one).collect()
    }
}
