//! y = x·Wᵀ with W in 4 bits (QLoRA, arXiv 2305.14314 eq. 5), and LoRA's h = y + s·B·A·x (arXiv 2106.09685 eq. 3).

mod sums;

use std::cell::RefCell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

use half::bf16;
use tailor_quant::{Inputs, Instructions, Matrix, Product, Quantized, View, Weights, products_with};
use tch::Tensor;

use crate::{Result, Tape, TorchWorkers, ffi};

/// A 4-bit weight `[out, in]` that tensors' histories can hold on to. Cloning shares it.
#[derive(Debug, Clone)]
pub struct QuantWeight(Arc<Quantized>);

impl QuantWeight {
    /// `None` where the weight is not a matrix.
    pub fn new(weight: Quantized) -> Option<Self> {
        (weight.shape().len() == 2).then(|| Self(Arc::new(weight)))
    }

    pub fn quantized(&self) -> &Quantized {
        &self.0
    }

    pub fn out_features(&self) -> i64 {
        self.0.shape()[0] as i64
    }

    pub fn in_features(&self) -> i64 {
        self.0.shape()[1] as i64
    }

    pub fn resident_bytes(&self) -> usize {
        self.0.resident_bytes()
    }

    /// The whole weight as a new f32 tensor `[out, in]`: for tests, merging and export, not for computing.
    pub fn dequantize(&self) -> Tensor {
        let mut values = vec![0f32; self.0.elements()];
        self.0.dequantize_f32(&mut values);
        Tensor::from_slice(&values).view([self.out_features(), self.in_features()])
    }
}

/// What the shim calls back. The opaque pointer is an `Arc<Quantized>` turned raw.
static OPS: ffi::WeightOps = ffi::WeightOps {
    dequantize: dequantize_callback,
    task: task_callback,
    multiplies: multiplies_callback,
    multiply: multiply_callback,
    has_sums: sums::has_callback,
    sums: sums::callback,
    retain: retain_callback,
    release: release_callback,
};

extern "C" fn dequantize_callback(weight: *const c_void, data: *mut c_void, dtype: i32, first: i64, last: i64) -> i32 {
    let body = || {
        // SAFETY: `weight` is one of our raw `Arc`s, alive while the shim holds it.
        let weight = unsafe { &*weight.cast::<Quantized>() };
        let (first, count) = (first as usize, (last - first) as usize);
        let view = View::new(weight);
        if dtype == ffi::F32 {
            // SAFETY: the shim's buffer has room for these elements, and nobody else looks at them.
            view.dequantize_f32_from(first, unsafe { std::slice::from_raw_parts_mut(data.cast::<f32>(), count) });
        } else {
            // SAFETY: as above.
            view.dequantize_bf16_from(first, unsafe { std::slice::from_raw_parts_mut(data.cast::<bf16>(), count) });
        }
    };
    catch_unwind(AssertUnwindSafe(body)).map_or(1, |()| 0)
}

extern "C" fn task_callback(weight: *const c_void) -> i64 {
    // SAFETY: as above.
    View::new(unsafe { &*weight.cast::<Quantized>() }).task() as i64
}

thread_local! {
    /// Rows on their way into a product.
    static INPUTS: RefCell<Inputs> = RefCell::default();
}

/// Rows that are multiplied at a time: what is made of them is small, and a weight is unpacked for as many. A few more where they
/// would be left over, since there are no kernels for x·W of a handful.
const TOGETHER: usize = 256;
const LEFT_OVER: usize = 32;

extern "C" fn multiplies_callback(weight: *const c_void, back: bool) -> bool {
    // SAFETY: `weight` is one of our raw `Arc`s, alive while the shim holds it.
    let weight = unsafe { &*weight.cast::<Quantized>() };
    tailor_quant::is_fast() && Matrix::new(weight).is_some_and(|matrix| !back || matrix.goes_back())
}

extern "C" fn multiply_callback(weight: *const c_void, x: *const f32, rows: i64, back: bool, y: *mut f32) -> i32 {
    let body = || {
        // SAFETY: as above.
        let matrix = Matrix::new(unsafe { &*weight.cast::<Quantized>() })?;
        let (mut width, mut out) = (matrix.width(), matrix.out());
        // AVX-512 has kernels for one direction. Tiles would round x to bf16.
        let mut instructions = [Instructions::Avx512, Instructions::Avx2].into_iter().find(|set| set.available())?;
        let mut weights = Weights::FourBit(matrix);
        if back {
            (width, out) = (out, width);
            (instructions, weights) = (Instructions::Avx2, Weights::FourBitBack(matrix));
        }
        // SAFETY: the shim's tensors have so many values.
        let (x, y) = unsafe {
            let rows = rows as usize;
            (std::slice::from_raw_parts(x, rows * width), std::slice::from_raw_parts_mut(y, rows * out))
        };
        INPUTS.with_borrow_mut(|inputs| {
            let (mut x, mut y) = (x, y);
            while !x.is_empty() {
                let left = x.len() / width;
                let rows = if left <= TOGETHER + LEFT_OVER { left } else { TOGETHER };
                let (some, y) = (x.split_off(..rows * width)?, y.split_off_mut(..rows * out)?);
                inputs.resize(rows, width).copy_from_slice(some);
                inputs.prepare_for(instructions, true, &TorchWorkers);
                let product = Product { weights, bias: None, low_rank: &[], y };
                products_with(inputs, &mut [product], &TorchWorkers, instructions);
            }
            Some(())
        })
    };
    catch_unwind(AssertUnwindSafe(body)).map_or(1, |done| i32::from(done.is_none()))
}

extern "C" fn retain_callback(weight: *const c_void) {
    // SAFETY: `weight` comes from `Arc::as_ptr` of a live `Arc<Quantized>`.
    unsafe { Arc::increment_strong_count(weight.cast::<Quantized>()) }
}

extern "C" fn release_callback(weight: *const c_void) {
    // SAFETY: pairs with one `retain_callback`.
    unsafe { Arc::decrement_strong_count(weight.cast::<Quantized>()) }
}

/// One projection of an input: its weight, and what is added.
#[derive(Debug, Clone, Copy)]
pub struct Projection<'a> {
    pub weight: ProjectionWeight<'a>,
    /// [out]
    pub bias: Option<&'a Tensor>,
    pub lora: Option<Factors<'a>>,
}

/// A constant weight `[out, in]`.
#[derive(Debug, Clone, Copy)]
pub enum ProjectionWeight<'a> {
    FourBit(&'a QuantWeight),
    Dense(&'a Tensor),
}

/// LoRA's pair: `a` [R, in], `b` [out, R] in f32, and what their product is multiplied with.
#[derive(Debug, Clone, Copy)]
pub struct Factors<'a> {
    pub a: &'a Tensor,
    pub b: &'a Tensor,
    pub scale: f64,
}

/// `x·Wᵀ + bias + scale·(x·Aᵀ)·Bᵀ` for several projections of one input, in the type of `x` (f32 or bf16).
///
/// A weight in 4 bits is dequantised into a scratch buffer, forward and again backward; the graph keeps the packed bytes,
/// `x` and `x·Aᵀ`. Many rows of an `x` in bf16 are multiplied with the packed weight instead where that is faster: as 16-bit integers where
/// this processor has no products of bf16 ([`tailor_quant::products`]), in bf16 where it has them and no tiles
/// ([`tailor_quant::Panels`]). What is added to x·Wᵀ is added in f32; where the product is made in bf16 by libtorch it has been rounded before.
///
/// # Shapes
/// `x` [.., in] → for each projection [.., out].
///
/// # Errors
/// Shapes that do not fit, another type, no memory.
pub fn project(x: &Tensor, projections: &[Projection<'_>]) -> Result<Vec<Tensor>> {
    let optional = |tensor: Option<&Tensor>| tensor.map_or(ptr::null(), ffi::handle);
    let mut input = 0;
    let raw = projections.iter().map(|projection| {
        let (packed, dense, size) = match projection.weight {
            ProjectionWeight::FourBit(weight) => {
                (Arc::as_ptr(&weight.0).cast(), ptr::null(), (weight.out_features(), weight.in_features()))
            }
            ProjectionWeight::Dense(weight) => (ptr::null(), ffi::handle(weight), weight.size2()?),
        };
        let lora = projection.lora;
        input = size.1;
        Ok(ffi::Projection {
            packed,
            dense,
            out: size.0,
            bias: optional(projection.bias),
            a: optional(lora.map(|lora| lora.a)),
            b: optional(lora.map(|lora| lora.b)),
            scale: lora.map_or(0.0, |lora| lora.scale),
        })
    });
    let raw = raw.collect::<Result<Vec<_>>>()?;
    let mut results = vec![ptr::null_mut(); raw.len()];
    // SAFETY: all handles are alive during the call; the shim retains the weights before it returns.
    let status =
        unsafe { ffi::tailor_project(ffi::handle(x), raw.as_ptr(), raw.len(), &OPS, input, results.as_mut_ptr()) };
    ffi::check(status)?;
    // SAFETY: on success the shim has put a new tensor handle in each place, which is ours now.
    Ok(results.into_iter().map(|result| unsafe { Tensor::from_ptr(result.cast()) }).collect())
}

/// Runs `work`, in which [`project`] and [`crate::device::device_project`] make zeros for their values: for a backward pass
/// alone, which needs none of them. What is kept for it is kept, and gradients are what they would have been. Where a
/// [`Tape`] is recorded they are made, and are not on it.
pub fn without_values<T>(work: impl FnOnce() -> T) -> T {
    struct Back(i32);
    impl Drop for Back {
        fn drop(&mut self) {
            // SAFETY: sets a flag of this thread.
            unsafe { ffi::tailor_want_values(self.0) }
        }
    }
    // SAFETY: reads a flag of this thread, and sets it.
    let _back = unsafe {
        let before = ffi::tailor_values_wanted();
        ffi::tailor_want_values(0);
        Back(before)
    };
    work()
}

/// `x·Wᵀ + bias`: one projection without LoRA.
///
/// # Shapes
/// `x` [.., in], `bias` [out] → [.., out].
///
/// # Errors
/// As [`project`].
pub fn quant_linear(x: &Tensor, weight: &QuantWeight, bias: Option<&Tensor>) -> Result<Tensor> {
    let weight = ProjectionWeight::FourBit(weight);
    Ok(project(x, &[Projection { weight, bias, lora: None }])?.swap_remove(0))
}

/// `y + scale · (x·Aᵀ)·Bᵀ`, computed in the type of A and B and rounded to the type of `y`.
///
/// # Shapes
/// `y` [.., out], `x` [.., in], `a` [R, in], `b` [out, R] → [.., out].
///
/// # Errors
/// Shapes that do not fit, no memory.
pub fn lora(y: &Tensor, x: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    if crate::device::has_kernels(x) && x.kind() == y.kind() {
        return crate::device::device_lora(y, x, a, b, scale);
    }
    add_lora(y, x, a, b, scale, false)
}

/// As [`lora`] on what `plain` gives, which nothing but this sum looks at: a [`Tape`] has the sum and nothing of `plain`.
/// (On a device it has what `plain` makes, and LoRA is made again.)
///
/// # Errors
/// As [`lora`].
pub fn lora_on(plain: impl FnOnce() -> Tensor, x: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<Tensor> {
    if crate::device::has_kernels(x) {
        return lora(&plain(), x, a, b, scale);
    }
    let y = if Tape::is_in_use() { without_values(plain) } else { plain() };
    add_lora(&y, x, a, b, scale, true)
}

fn add_lora(y: &Tensor, x: &Tensor, a: &Tensor, b: &Tensor, scale: f64, taped: bool) -> Result<Tensor> {
    let [y, x, a, b] = [y, x, a, b].map(ffi::handle);
    // SAFETY: all handles are alive during the call.
    ffi::produce(|result| unsafe { ffi::tailor_lora(y, x, a, b, scale, taped, result) })
}

/// Frees this thread's scratch buffer, which is as large as the largest weight dequantised on it.
pub fn drop_scratch() {
    INPUTS.take();
    sums::drop_scratch();
    // SAFETY: no tensor made from the scratch buffer outlives the call that made it.
    unsafe { ffi::tailor_drop_scratch() }
}
