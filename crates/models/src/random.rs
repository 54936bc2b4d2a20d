//! Random weights in 4 bits, made where they are used: for measuring shapes that no disk need hold.

use tailor_quant::{Bytes, Code, Float, NESTED_BLOCK, NestedState, QuantState, Quantized, Scales, dynamic_map};
use tailor_torch::QuantWeight;
use tailor_torch::device::{DeviceParts, DeviceScales, DeviceWeight, has_kernels_on};
use tch::{Device, Kind, Tensor};

use crate::linear::Weight;
use crate::{Error, Result};

const BLOCK: i64 = 64;
/// Root mean square of NF4's sixteen values, each as likely as the others.
const NF4_SPREAD: f64 = 0.517;
/// Codes of scales from here on stand for 0.55 and more, so that no block is nearly zero.
const LEAST_SCALE: i64 = 224;

/// A weight [out, in] in NF4 with double quantisation, whose values deviate by about `std`.
pub(crate) struct RandomFourBit {
    pub out: i64,
    pub input: i64,
    pub std: f64,
    pub dtype: Float,
}

impl RandomFourBit {
    fn blocks(&self) -> i64 {
        (self.out * self.input + BLOCK - 1) / BLOCK
    }

    fn nested(&self) -> i64 {
        (self.blocks() + NESTED_BLOCK as i64 - 1) / NESTED_BLOCK as i64
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        ((self.out * self.input + 1) / 2 + self.blocks() + self.nested() * 4 + 256 * 4) as usize
    }

    /// # Errors
    /// No memory.
    pub fn make(&self, device: Device) -> Result<Weight> {
        let packed = Tensor::f_randint(256, [(self.out * self.input + 1) / 2], (Kind::Uint8, device))?;
        let codes = Tensor::f_randint_low(LEAST_SCALE, 256, [self.blocks()], (Kind::Uint8, device))?;
        let absmax = Tensor::f_full([self.nested()], self.std / NF4_SPREAD, (Kind::Float, device))?;
        let map = dynamic_map();
        if has_kernels_on(device) {
            let floats = |values: &[f32]| Tensor::f_from_slice(values)?.f_to_device(device);
            let map = floats(&map)?;
            let scales = DeviceScales::Nested { codes, map, absmax, block: NESTED_BLOCK, offset: 0.0 };
            let values = floats(&Code::Nf4.values())?;
            let parts = DeviceParts { packed, values, scales, block: BLOCK as usize, dtype: self.dtype };
            return Ok(Weight::OnDevice(DeviceWeight::from_parts(self.out, self.input, &parts)?));
        }
        let state = QuantState {
            code: Code::Nf4,
            blocksize: BLOCK as usize,
            dtype: self.dtype,
            shape: vec![self.out as usize, self.input as usize],
            nested: Some(NestedState { blocksize: NESTED_BLOCK, offset: 0.0 }),
        };
        let scales = Scales::Nested {
            codes: Bytes::from(Vec::<u8>::try_from(&codes)?),
            map: Box::new(map),
            absmax: Vec::try_from(&absmax)?,
            blocksize: NESTED_BLOCK,
            offset: 0.0,
        };
        let weight = Quantized::new(&state, None, Bytes::from(Vec::<u8>::try_from(&packed)?), scales)?;
        let weight = QuantWeight::new(weight).ok_or_else(|| Error::Request("a 4-bit weight is a matrix".into()))?;
        Ok(Weight::FourBit(weight))
    }
}
