//! Values about to be quantised: floats in memory, or a tensor's bytes in a map that are decoded a task at a time, so that
//! no tensor is ever in memory as f32.

use half::f16;
use half::slice::HalfFloatSliceExt as _;

use crate::Float;

#[derive(Clone, Copy)]
pub(crate) enum Values<'a> {
    Plain(&'a [f32]),
    /// Little-endian, of any alignment.
    Encoded(Float, &'a [u8]),
}

impl<'a> Values<'a> {
    pub fn len(&self) -> usize {
        match self {
            Self::Plain(values) => values.len(),
            Self::Encoded(float, bytes) => bytes.len() / float.size(),
        }
    }

    /// Values `first..first + count`; `count` may reach over the end.
    pub fn part(&self, first: usize, count: usize) -> Self {
        let end = self.len().min(first.saturating_add(count));
        let first = first.min(end);
        match self {
            Self::Plain(values) => Self::Plain(&values[first..end]),
            Self::Encoded(float, bytes) => Self::Encoded(*float, &bytes[first * float.size()..end * float.size()]),
        }
    }

    /// As f32: what is f32 in memory already stays where it is, the rest is decoded into `buffer`.
    pub fn decoded<'b>(&self, buffer: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        let Self::Encoded(float, bytes) = *self else {
            let Self::Plain(values) = *self else { return &[] };
            return values;
        };
        match float {
            Float::F32 => {
                if let Ok(values) = bytemuck::try_cast_slice(bytes) {
                    return values;
                }
                buffer.clear();
                buffer.extend(bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            }
            Float::Bf16 => {
                buffer.clear();
                let wide = |bytes: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                buffer.extend(bytes.as_chunks::<2>().0.iter().map(wide));
            }
            Float::F16 => {
                buffer.resize(bytes.len() / 2, 0.0);
                match bytemuck::try_cast_slice::<u8, f16>(bytes) {
                    // Uses the processor's own conversion where it has one.
                    Ok(halves) => halves.convert_to_f32_slice(buffer),
                    Err(_) => {
                        for (value, bytes) in buffer.iter_mut().zip(bytes.as_chunks::<2>().0) {
                            *value = f16::from_le_bytes(*bytes).to_f32();
                        }
                    }
                }
            }
        }
        buffer
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn every_type_decodes_to_the_same_values_at_any_alignment() {
        let values: Vec<f32> = (0..97).map(|i| (i as f32 - 48.0) / 16.0).collect();
        for float in [Float::F32, Float::Bf16, Float::F16] {
            let encode = |&value: &f32| match float {
                Float::F32 => value.to_le_bytes().to_vec(),
                Float::Bf16 => bf16::from_f32(value).to_le_bytes().to_vec(),
                Float::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
            };
            let encoded: Vec<u8> = values.iter().flat_map(encode).collect();
            for offset in 0..4 {
                let shifted = [vec![0; offset], encoded.clone()].concat();
                let there = Values::Encoded(float, &shifted[offset..]);
                assert_eq!(there.len(), values.len());
                assert_eq!(there.decoded(&mut Vec::new()), values, "{float:?} at {offset}");
                assert_eq!(there.part(90, 1000).decoded(&mut Vec::new()), &values[90..], "{float:?} at {offset}");
            }
        }
    }
}
