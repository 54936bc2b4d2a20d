//! One weight in 4 bits: packed numbers, scales, and what is needed to turn it back.

use half::bf16;

use crate::dequantize::View;
use crate::state::NestedState;
use crate::{Bytes, Code, Error, Float, QuantState, Result};

/// Scales that share one second-level scale in double quantisation, as bitsandbytes has it.
pub const NESTED_BLOCK: usize = 256;

/// Per-block scales.
#[derive(Debug, Clone)]
pub enum Scales {
    /// One f32 a block.
    Single(Vec<f32>),
    /// One byte a block: `map[codes[i]] · absmax[i / blocksize] + offset`.
    Nested { codes: Bytes, map: Box<[f32; 256]>, absmax: Vec<f32>, blocksize: usize, offset: f32 },
    /// Uniform code: width and minimum of each block.
    Affine { width: Vec<f32>, minimum: Vec<f32> },
}

/// A weight `[out, in]` in 4 bits, blocks running over its flattened values.
#[derive(Debug, Clone)]
pub struct Quantized {
    code: Code,
    values: [f32; 16],
    blocksize: usize,
    dtype: Float,
    shape: Vec<usize>,
    packed: Bytes,
    scales: Scales,
}

impl Quantized {
    /// Puts the parts together and checks every length, so that dequantising cannot go out of bounds.
    ///
    /// `values` is the code book that came with the weight; without one the code's own is taken.
    ///
    /// # Errors
    /// Lengths that do not fit the shape, scales or a code book that are not finite.
    pub fn new(state: &QuantState, values: Option<[f32; 16]>, packed: Bytes, scales: Scales) -> Result<Self> {
        let elements = state
            .shape
            .iter()
            .try_fold(1usize, |product, &side| product.checked_mul(side))
            .filter(|&elements| elements > 0)
            .ok_or_else(|| Error::Value(format!("shape {:?} is empty or too large", state.shape)))?;
        if state.blocksize < 2 || !state.blocksize.is_power_of_two() {
            return Err(Error::Value(format!("block size {} is not a power of two above 1", state.blocksize)));
        }
        let blocks = elements.div_ceil(state.blocksize);
        let expect = |what: &str, has: usize, wants: usize| {
            if has == wants {
                return Ok(());
            }
            Err(Error::Value(format!("{what} has {has} entries; shape {:?} needs {wants}", state.shape)))
        };
        let finite = |what: &str, values: &[f32]| match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(Error::Value(format!("{what} contains {value}"))),
            None => Ok(()),
        };
        expect("packed weight", packed.len(), elements.div_ceil(2))?;
        match &scales {
            Scales::Single(absmax) => {
                expect("absmax", absmax.len(), blocks)?;
                finite("absmax", absmax)?;
            }
            Scales::Nested { codes, map, absmax, blocksize, offset } => {
                expect("absmax", codes.len(), blocks)?;
                expect("nested_absmax", absmax.len(), blocks.div_ceil((*blocksize).max(1)))?;
                finite("nested_absmax", absmax)?;
                finite("nested_quant_map", map.as_slice())?;
                finite("nested_offset", &[*offset])?;
            }
            Scales::Affine { width, minimum } => {
                expect("width", width.len(), blocks)?;
                expect("minimum", minimum.len(), blocks)?;
                finite("width", width)?;
                finite("minimum", minimum)?;
            }
        }
        let values = values.unwrap_or_else(|| state.code.values());
        finite("quant_map", &values)?;
        Ok(Self {
            code: state.code,
            values,
            blocksize: state.blocksize,
            dtype: state.dtype,
            shape: state.shape.clone(),
            packed,
            scales,
        })
    }

    pub fn code(&self) -> Code {
        self.code
    }

    /// The 16 values before scaling.
    pub fn values(&self) -> &[f32; 16] {
        &self.values
    }

    pub fn blocksize(&self) -> usize {
        self.blocksize
    }

    /// Type of the weight before quantisation; dequantised values are rounded to it, as in bitsandbytes.
    pub fn dtype(&self) -> Float {
        self.dtype
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Two numbers a byte, the first in the high nibble.
    pub fn packed(&self) -> &Bytes {
        &self.packed
    }

    pub fn scales(&self) -> &Scales {
        &self.scales
    }

    /// A bound on the magnitude of its values; infinite where they are more than f32 holds.
    pub(crate) fn largest(&self) -> f32 {
        let largest = |values: &[f32]| values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        match &self.scales {
            Scales::Single(absmax) => largest(&self.values) * largest(absmax),
            Scales::Nested { map, absmax, offset, .. } => {
                largest(&self.values) * (largest(map.as_slice()) * largest(absmax) + offset.abs())
            }
            Scales::Affine { width, minimum } => largest(width) + largest(minimum),
        }
    }

    /// Bytes this weight keeps in memory, mapped pages included.
    pub fn resident_bytes(&self) -> usize {
        let scales = match &self.scales {
            Scales::Single(absmax) => absmax.len() * 4,
            Scales::Nested { codes, absmax, .. } => codes.len() + absmax.len() * 4 + 256 * 4,
            Scales::Affine { width, minimum } => (width.len() + minimum.len()) * 4,
        };
        self.packed.len() + scales
    }

    pub fn state(&self) -> QuantState {
        let nested = match &self.scales {
            Scales::Nested { blocksize, offset, .. } => Some(NestedState { blocksize: *blocksize, offset: *offset }),
            Scales::Single(_) | Scales::Affine { .. } => None,
        };
        let (code, blocksize, dtype, shape) = (self.code, self.blocksize, self.dtype, self.shape.clone());
        QuantState { code, blocksize, dtype, shape, nested }
    }

    /// Writes all values, rounded to [`Self::dtype`], in parallel.
    ///
    /// # Panics
    /// `out` has not [`Self::elements`] entries.
    pub fn dequantize_f32(&self, out: &mut [f32]) {
        View::new(self).dequantize_f32(out);
    }

    /// As [`Self::dequantize_f32`], then rounded to bf16.
    ///
    /// # Panics
    /// `out` has not [`Self::elements`] entries.
    pub fn dequantize_bf16(&self, out: &mut [bf16]) {
        View::new(self).dequantize_bf16(out);
    }
}
