//! What a step of serving launches, one launch (or two) a call: kernels over tensors in bf16 that are there already. None of
//! it has a history or takes memory, so a call costs the host little more than the driver's own.

use std::ffi::c_void;
use std::ptr;

use tch::{Kind, Tensor};

use super::weight::DeviceWeight;
use crate::layers::Gate;
use crate::{Error, Result, ffi};

/// Rows of x that one product takes at most.
pub const FEW_ROWS: usize = 32;

fn writable(tensor: &Tensor) -> *mut c_void {
    ffi::handle(tensor).cast_mut()
}

/// `y = x·[W1; W2; ..]ᵀ`, or that added to what y has, with weights as they lie ([`DeviceWeight::is_direct`]).
///
/// # Shapes
/// `x` [N, in], N at most [`FEW_ROWS`]; `y` [N, sum of out]
///
/// # Errors
/// More than four weights; shapes or types that do not fit.
pub fn product(x: &Tensor, weights: &[&DeviceWeight], add: bool, y: &Tensor) -> Result<()> {
    let mut all = [ptr::null(); super::MAX_GROUP];
    let count = weights.len();
    if count > all.len() {
        return Err(Error::Torch(format!("{count} weights in one launch; the limit is {}", all.len())));
    }
    for (raw, weight) in all.iter_mut().zip(weights) {
        *raw = weight.raw();
    }
    // SAFETY: all handles are alive during the call.
    ffi::check(unsafe { ffi::tailor_step_product(ffi::handle(x), all.as_ptr(), count, add.into(), writable(y)) })
}

/// Root mean square norm as [`super::rms_norm`].
///
/// # Shapes
/// `x` [N, D], `weight` [D] → `y` [N, D]; `roots` f32 of at least N
///
/// # Errors
/// Shapes or types that do not fit.
pub fn norm(x: &Tensor, weight: &Tensor, epsilon: f64, one_plus: bool, y: &Tensor, roots: &Tensor) -> Result<()> {
    let [x, weight] = [x, weight].map(ffi::handle);
    // SAFETY: all handles are alive during the call.
    ffi::check(unsafe { ffi::tailor_step_norm(x, weight, epsilon, one_plus.into(), writable(y), writable(roots)) })
}

/// act(gate)·up of one product.
///
/// # Shapes
/// `both` [N, 2F] → `y` [N, F]
///
/// # Errors
/// Shapes or types that do not fit.
pub fn gated(both: &Tensor, activation: Gate, y: &Tensor) -> Result<()> {
    let tanh = i32::from(activation == Gate::GeluTanh);
    // SAFETY: all handles are alive during the call.
    ffi::check(unsafe { ffi::tailor_step_gated(ffi::handle(both), tanh, writable(y)) })
}

/// Where the rows of a step stand: their positions, the slots of their keys and values, where each one's table of blocks
/// begins, and the tables. One tensor on the device.
pub struct StepNumbers {
    numbers: Tensor, // i32
    rows: usize,
}

/// One row of a step.
pub struct StepRow<'a> {
    pub position: usize,
    /// Blocks of its sequence in order. Rows that follow one another may share a slice: it is sent once.
    pub blocks: &'a [u32],
}

impl StepNumbers {
    /// `block_tokens`: tokens in a block.
    ///
    /// # Errors
    /// A position outside the row's blocks; a number over 2³¹; no memory.
    pub fn new(rows: &[StepRow<'_>], block_tokens: usize, device: tch::Device) -> Result<Self> {
        let count = rows.len();
        let number = |value: usize| {
            i32::try_from(value)
                .map_err(|_| Error::Torch(format!("{value} is no place of a step: 2147483647 is the last")))
        };
        let mut numbers = vec![0i32; 3 * count];
        let mut last: Option<(&[u32], usize)> = None;
        for (n, row) in rows.iter().enumerate() {
            let block = *row.blocks.get(row.position / block_tokens).ok_or_else(|| {
                let (position, blocks) = (row.position, row.blocks.len());
                Error::Torch(format!("position {position} lies outside {blocks} blocks of {block_tokens} tokens"))
            })?;
            let begins = match last.filter(|(blocks, _)| ptr::eq(*blocks, row.blocks)) {
                Some((_, begins)) => begins,
                None => {
                    let begins = numbers.len() - 3 * count;
                    for block in row.blocks {
                        numbers.push(number(*block as usize)?);
                    }
                    begins
                }
            };
            last = Some((row.blocks, begins));
            numbers[n] = number(row.position)?;
            numbers[count + n] = number(block as usize * block_tokens + row.position % block_tokens)?;
            numbers[2 * count + n] = number(begins)?;
        }
        Ok(Self { numbers: crate::gpu::upload(&Tensor::f_from_slice(&numbers)?, device)?, rows: count })
    }

    fn raw(&self) -> ffi::StepNumbers {
        ffi::StepNumbers { numbers: ffi::handle(&self.numbers), rows: self.rows as i64 }
    }
}

/// Turns q and k by their positions, q where it lies, and puts k and v into the pages.
///
/// # Shapes
/// `product` [N, (H + 2K)·Dh], `frequencies` f32 [Dh/2], pages [slots, K, Dh]
///
/// # Errors
/// Shapes or types that do not fit.
pub fn turn_and_keep(
    product: &Tensor,
    frequencies: &Tensor,
    numbers: &StepNumbers,
    (keys, values): (&Tensor, &Tensor),
    heads: i64,
) -> Result<()> {
    let frequencies = ffi::handle(frequencies);
    // SAFETY: all handles are alive during the call.
    ffi::check(unsafe {
        ffi::tailor_step_turn(writable(product), frequencies, &numbers.raw(), writable(keys), writable(values), heads)
    })
}

/// How a step's queries look at their keys.
#[derive(Debug, Clone, Copy)]
pub struct Looks {
    pub heads: i64,
    /// Keys that a query sees at most, its own included.
    pub window: Option<i64>,
    pub scale: f64,
    pub softcap: Option<f64>,
}

/// Head dimensions that [`attend`] takes.
pub fn attends(head_dim: i64) -> bool {
    matches!(head_dim, 8 | 16 | 32 | 64 | 128 | 256)
}

/// Attention of each row over its sequence's pages, up to its own position.
///
/// # Shapes
/// `product` as in [`turn_and_keep`] → `out` [N, H·Dh]
///
/// # Errors
/// Shapes or types that do not fit; a head dimension that [`attends`] refuses.
pub fn attend(
    product: &Tensor,
    numbers: &StepNumbers,
    (keys, values): (&Tensor, &Tensor),
    looks: Looks,
    out: &Tensor,
) -> Result<()> {
    let [product, keys, values] = [product, keys, values].map(ffi::handle);
    let (window, softcap) = (looks.window.unwrap_or(0), looks.softcap.unwrap_or(0.0));
    // SAFETY: all handles are alive during the call.
    ffi::check(unsafe {
        ffi::tailor_step_attend(
            product,
            &numbers.raw(),
            keys,
            values,
            looks.heads,
            window,
            looks.scale,
            softcap,
            writable(out),
        )
    })
}

/// The adapters of a step's rows for all linear layers, in one tensor on the device; valid while the sets' tensors live.
pub struct LowRankTerms {
    terms: Tensor, // u8
    most: i64,
}

/// A row's factors for one layer: `a` [R, in] in bf16, `b` [out, R] in bf16 whose rows lie a multiple of 8 apart.
#[derive(Clone, Copy)]
pub struct LowRankRow<'a> {
    pub a: &'a Tensor,
    pub b: &'a Tensor,
    pub scale: f64,
}

impl LowRankTerms {
    /// `rows`: for each layer each row's factors, if it has some there.
    ///
    /// # Errors
    /// Factors of another type or layout; no memory.
    pub fn new(rows: &[Option<LowRankRow<'_>>], device: tch::Device) -> Result<Self> {
        let mut bytes = Vec::with_capacity(rows.len() * size_of::<ffi::LowRankTerm>());
        let mut most = 0;
        for row in rows {
            let term = row.map_or(Ok(ffi::LowRankTerm::NONE), term)?;
            most = most.max(i64::from(term.rank));
            bytes.extend_from_slice(&term.bytes());
        }
        Ok(Self { terms: crate::gpu::upload(&Tensor::f_from_slice(&bytes)?, device)?, most })
    }

    /// The largest rank: f32 values that a row and layer take in `inner`.
    pub fn most(&self) -> i64 {
        self.most
    }
}

fn term(row: LowRankRow<'_>) -> Result<ffi::LowRankTerm> {
    let LowRankRow { a, b, scale } = row;
    let (rank, stride) = (a.size2()?.0, b.stride()[0]);
    let fits = [a, b].iter().all(|x| x.kind() == Kind::BFloat16)
        && a.is_contiguous()
        && b.size2()?.1 == rank
        && stride % 8 == 0
        && (b.stride()[1] == 1 || rank == 1);
    if !fits {
        return Err(Error::Torch(format!("A {a:?} and B {b:?} are not as a step reads them")));
    }
    Ok(ffi::LowRankTerm {
        a: a.data_ptr() as u64,
        b: b.data_ptr() as u64,
        rank: rank as u32,
        b_stride: stride as u32,
        scale: scale as f32,
        unused: 0,
    })
}

/// Adds the rows' LoRA to `y`, for the layers from `first` on whose outputs it has side by side.
///
/// # Shapes
/// `x` [N, in], `y` [N, sum of `outs`]; `inner` f32 of at least `outs.len()`·N·most
///
/// # Errors
/// Shapes or types that do not fit.
pub fn low_rank(
    x: &Tensor,
    terms: &LowRankTerms,
    first: usize,
    outs: &[i64],
    inner: &Tensor,
    y: &Tensor,
) -> Result<()> {
    if terms.most == 0 {
        return Ok(());
    }
    let (x, all) = (ffi::handle(x), ffi::handle(&terms.terms));
    // SAFETY: all handles are alive during the call.
    ffi::check(unsafe {
        ffi::tailor_step_low_rank(
            x,
            all,
            first as i64,
            outs.as_ptr(),
            outs.len(),
            terms.most,
            writable(inner),
            writable(y),
        )
    })
}
