//! One tensor of the merged folder: where its values come from, and what the adapter does to them, row by row.

use std::ops::Range;

use rayon::prelude::*;
use tailor_peft::{Dtype, LoraPair, WholeTensor};
use tailor_quant::{Bytes, Checkpoint, Float, Quantized};

use crate::{Error, Result};

/// A tensor of the folder to be.
pub(crate) struct Weight<'a> {
    pub name: String,
    pub shape: Vec<usize>,
    pub source: Source,
    pub edit: Edit<'a>,
}

/// The base's values.
#[derive(Clone)]
pub(crate) enum Source {
    Plain(Float, Bytes),
    FourBit(Box<Quantized>),
    /// What the base lacks and counts as zero: a bias.
    Zeros,
}

/// What the adapter does, in this order.
#[derive(Default)]
pub(crate) struct Edit<'a> {
    /// Stands in the base's place.
    pub own: Option<&'a WholeTensor>,
    /// B, A and s: + s·B·A.
    pub pair: Option<(&'a LoraPair, f32)>,
    /// DoRA's m: each row is given this length.
    pub magnitude: Option<&'a [f32]>,
    /// The bias of B and s, for a bias: + s·β.
    pub plus: Option<(&'a [f32], f32)>,
}

impl Edit<'_> {
    pub fn is_none(&self) -> bool {
        self.own.is_none() && self.pair.is_none() && self.magnitude.is_none() && self.plus.is_none()
    }
}

impl Source {
    /// Of the tensor called `name`; with its true shape.
    pub fn of(checkpoint: &Checkpoint, name: &str) -> Result<(Self, Vec<usize>)> {
        if let Some(weight) = checkpoint.quantized(name)? {
            let shape = weight.shape().to_vec();
            return Ok((Self::FourBit(Box::new(weight)), shape));
        }
        let tensor = checkpoint.tensor(name)?;
        let float = tensor.float().ok_or_else(|| {
            let problem = format!("type {:?}; F32, BF16, F16 or a 4-bit code is needed", tensor.dtype);
            Error::from(checkpoint.tensor_error(name, problem))
        })?;
        Ok((Self::Plain(float, tensor.bytes), tensor.shape))
    }

    /// With the values of a 4-bit weight at hand; those of others are read a row at a time.
    pub fn open(&self) -> Opened<'_> {
        match self {
            Self::Plain(float, bytes) => Opened::Encoded(*float, bytes),
            Self::FourBit(weight) => {
                let mut values = vec![0f32; weight.elements()];
                weight.dequantize_f32(&mut values);
                Opened::Wide(values)
            }
            Self::Zeros => Opened::Zeros,
        }
    }

    /// Lets go of the mapped pages.
    pub fn evict(&self) {
        if let Self::Plain(_, bytes) = self {
            bytes.evict();
        }
    }
}

pub(crate) enum Opened<'a> {
    Encoded(Float, &'a [u8]),
    Wide(Vec<f32>),
    Zeros,
}

impl Opened<'_> {
    /// Values `at..at + out.len()`.
    pub fn read(&self, at: usize, out: &mut [f32]) {
        match self {
            Self::Encoded(float, bytes) => decode(*float, &bytes[at * float.size()..], out),
            Self::Wide(values) => out.copy_from_slice(&values[at..at + out.len()]),
            Self::Zeros => out.fill(0.0),
        }
    }
}

fn decode(float: Float, bytes: &[u8], out: &mut [f32]) {
    match float {
        Float::F32 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        Float::Bf16 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *value = half::bf16::from_le_bytes(*bytes).to_f32();
            }
        }
        Float::F16 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *value = half::f16::from_le_bytes(*bytes).to_f32();
            }
        }
    }
}

/// The little-endian bytes of values that are already rounded to the type.
pub(crate) fn encode(float: Float, values: &[f32]) -> Vec<u8> {
    match float {
        Float::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Float::Bf16 => values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect(),
        Float::F16 => values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect(),
    }
}

/// What an adapter's whole tensor is made of.
pub(crate) fn float_of(whole: &WholeTensor) -> Float {
    match whole.dtype {
        Dtype::BF16 => Float::Bf16,
        Dtype::F16 => Float::F16,
        // Reading an adapter lets nothing else through.
        _ => Float::F32,
    }
}

impl Weight<'_> {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Values of a row; a vector is one row.
    pub fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1).max(1)
    }

    pub fn rows(&self) -> usize {
        self.elements() / self.columns()
    }

    /// Calls `visit` with each of the rows, on all cores: its number, the base's values and the merged ones. Both are
    /// rounded to `compute` before anything is added, as where base and adapter run.
    pub fn map_rows<T: Send>(
        &self,
        opened: &Opened<'_>,
        rows: Range<usize>,
        compute: Float,
        visit: impl Fn(usize, &[f32], &[f32]) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let columns = self.columns();
        let scratch = || (vec![0f32; columns], vec![0f32; columns], vec![0f32; columns]);
        let one = |(base, merged, update): &mut (Vec<f32>, Vec<f32>, Vec<f32>), row: usize| {
            opened.read(row * columns, base);
            round(base, compute);
            self.merge_row(row, base, merged, update, compute);
            visit(row, base, merged)
        };
        rows.into_par_iter().map_init(scratch, one).collect()
    }

    /// # Shapes
    /// `base`, `merged` and `update` [in]
    fn merge_row(&self, row: usize, base: &[f32], merged: &mut [f32], update: &mut [f32], compute: Float) {
        match self.edit.own {
            None => merged.copy_from_slice(base),
            Some(own) => {
                let float = float_of(own);
                decode(float, &own.bytes[row * merged.len() * float.size()..], merged);
                round(merged, compute);
            }
        }
        if let Some((pair, scale)) = self.edit.pair {
            update.fill(0.0);
            let of_row = &pair.b[row * pair.rank..][..pair.rank];
            for (b, a) in of_row.iter().zip(pair.a.chunks_exact(pair.in_features)) {
                update.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
            }
            merged.iter_mut().zip(&*update).for_each(|(value, update)| *value += scale * update);
        }
        if let Some(magnitude) = self.edit.magnitude {
            let squares: f64 = merged.iter().map(|value| f64::from(*value) * f64::from(*value)).sum();
            let gain = (f64::from(magnitude[row]) / squares.sqrt()) as f32;
            merged.iter_mut().for_each(|value| *value *= gain);
        }
        if let Some((bias, scale)) = self.edit.plus {
            merged.iter_mut().zip(bias).for_each(|(value, bias)| *value += scale * bias);
        }
    }
}

fn round(values: &mut [f32], float: Float) {
    if float != Float::F32 {
        values.iter_mut().for_each(|value| *value = float.round(*value));
    }
}
