//! The float types a checkpoint holds, and exact conversion to f32.

use half::{bf16, f16};

/// A float type of a tensor file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Float {
    F32,
    Bf16,
    F16,
}

impl Float {
    /// PyTorch's name, as bitsandbytes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
            Self::F16 => "float16",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "float32" => Some(Self::F32),
            "bfloat16" => Some(Self::Bf16),
            "float16" => Some(Self::F16),
            _ => None,
        }
    }

    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// `value` rounded to this type (to nearest, ties to even).
    #[inline]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::Bf16 => bf16::from_f32(value).to_f32(),
            Self::F16 => f16::from_f32(value).to_f32(),
        }
    }

    /// Place of the first value that is infinite or no number.
    pub fn first_not_finite(self, bytes: &[u8]) -> Option<usize> {
        // An exponent of all ones. Read without a branch a run at a time, so that it becomes vector code.
        fn first<const N: usize>(bytes: &[u8], is_finite: impl Fn(&[u8; N]) -> bool) -> Option<usize> {
            const RUN: usize = 1024;
            let values = bytes.as_chunks::<N>().0;
            let run = values.chunks(RUN).position(|run| !run.iter().fold(true, |all, value| all & is_finite(value)))?;
            values[run * RUN..].iter().position(|value| !is_finite(value)).map(|at| run * RUN + at)
        }
        match self {
            Self::F32 => first(bytes, |value| u32::from_le_bytes(*value) & 0x7f80_0000 != 0x7f80_0000),
            Self::Bf16 => first(bytes, |value| u16::from_le_bytes(*value) & 0x7f80 != 0x7f80),
            Self::F16 => first(bytes, |value| u16::from_le_bytes(*value) & 0x7c00 != 0x7c00),
        }
    }

    /// Largest finite value.
    pub(crate) fn largest(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::Bf16 => bf16::MAX.to_f32(),
            Self::F16 => f16::MAX.to_f32(),
        }
    }

    /// Little-endian bytes of this type as f32. `bytes` need not be aligned; an incomplete last value is left out.
    pub fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            Self::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            Self::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_not_finite_is_found_in_its_place() {
        for (float, one, bad) in [
            (Float::F32, 1f32.to_le_bytes().to_vec(), f32::NAN.to_le_bytes().to_vec()),
            (Float::Bf16, bf16::MAX.to_le_bytes().to_vec(), bf16::INFINITY.to_le_bytes().to_vec()),
            (Float::F16, f16::MIN.to_le_bytes().to_vec(), f16::NEG_INFINITY.to_le_bytes().to_vec()),
        ] {
            let mut bytes = one.repeat(3000);
            assert_eq!(float.first_not_finite(&bytes), None, "{float:?}");
            for at in [2999, 1024, 0] {
                bytes[at * bad.len()..][..bad.len()].copy_from_slice(&bad);
                assert_eq!(float.first_not_finite(&bytes), Some(at), "{float:?}");
            }
        }
    }
}
