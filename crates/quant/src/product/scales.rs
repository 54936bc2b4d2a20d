//! Nested scales: their codes stand for 256 floats. With AVX2 each is a load of its own, put together to registers of eight;
//! with AVX-512's look-ups of bytes (VBMI) 64 at a time, from four tables of the floats' bytes, each in four registers.

use std::arch::x86_64::*;

/// `map[code] · scale + offset`
///
/// # Safety
/// The processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn decode(codes: &[u8], map: &[f32; 256], scale: f32, offset: f32, out: &mut [f32]) {
    let (wide_scale, wide_offset) = (_mm256_set1_ps(scale), _mm256_set1_ps(offset));
    let (codes, rest) = codes.as_chunks::<8>();
    let (out, out_rest) = out.as_chunks_mut::<8>();
    for (codes, out) in codes.iter().zip(out) {
        // Not a gather: where it is not slow by itself, microcode against its side channel made it so.
        let [a, b, c, d, e, f, g, h] = codes.map(|code| map[code as usize]);
        let values = _mm256_setr_ps(a, b, c, d, e, f, g, h);
        let values = _mm256_add_ps(_mm256_mul_ps(values, wide_scale), wide_offset);
        // SAFETY: room for eight.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), values) };
    }
    for (out, code) in out_rest.iter_mut().zip(rest) {
        *out = map[*code as usize] * scale + offset;
    }
}

/// Codes that a register holds.
const CODES: usize = 64;

pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi")
}

/// The floats' first bytes, their second, third and fourth.
#[derive(Clone, Copy)]
pub(super) struct Planes([[u8; 256]; 4]);

impl Planes {
    pub fn new(map: &[f32; 256]) -> Self {
        let mut planes = [[0; 256]; 4];
        for (at, value) in map.iter().enumerate() {
            for (plane, byte) in planes.iter_mut().zip(value.to_le_bytes()) {
                plane[at] = byte;
            }
        }
        Self(planes)
    }

    /// `map[code] · scale + offset`
    ///
    /// # Safety
    /// [`available`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    pub unsafe fn decode(&self, codes: &[u8], scale: f32, offset: f32, out: &mut [f32]) {
        let (scale, offset) = (_mm512_set1_ps(scale), _mm512_set1_ps(offset));
        // What is interleaved below comes out in order if lane i of sixteen bytes has four of each run of sixteen.
        let order = _mm512_set_epi32(
            0x3f3e3d3c, 0x2f2e2d2c, 0x1f1e1d1c, 0x0f0e0d0c, 0x3b3a3938, 0x2b2a2928, 0x1b1a1918, 0x0b0a0908, 0x37363534,
            0x27262524, 0x17161514, 0x07060504, 0x33323130, 0x23222120, 0x13121110, 0x03020100,
        );
        for (codes, out) in codes.chunks(CODES).zip(out.chunks_mut(CODES)) {
            let present = u64::MAX >> (CODES - codes.len());
            // SAFETY: what is not present is not read.
            let codes = unsafe { _mm512_maskz_loadu_epi8(present, codes.as_ptr().cast()) };
            let codes = _mm512_permutexvar_epi8(order, codes);
            let (bit_6, bit_7) = (
                _mm512_test_epi8_mask(codes, _mm512_set1_epi8(0x40)),
                _mm512_test_epi8_mask(codes, _mm512_set1_epi8(0x80_u8 as i8)),
            );
            let mut bytes = [codes; 4];
            for (bytes, plane) in bytes.iter_mut().zip(&self.0) {
                // SAFETY: four times 64 bytes.
                let quarter = |i: usize| unsafe { _mm512_loadu_si512(plane.as_ptr().add(i * CODES).cast()) };
                let found = _mm512_permutexvar_epi8(codes, quarter(0));
                let found = _mm512_mask_permutexvar_epi8(found, bit_6 & !bit_7, codes, quarter(1));
                let found = _mm512_mask_permutexvar_epi8(found, bit_7 & !bit_6, codes, quarter(2));
                *bytes = _mm512_mask_permutexvar_epi8(found, bit_7 & bit_6, codes, quarter(3));
            }
            let [a, b, c, d] = bytes;
            let (low, high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
            let (low_2, high_2) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
            let values = [
                _mm512_unpacklo_epi16(low, low_2),
                _mm512_unpackhi_epi16(low, low_2),
                _mm512_unpacklo_epi16(high, high_2),
                _mm512_unpackhi_epi16(high, high_2),
            ];
            for (at, values) in values.into_iter().enumerate() {
                let values = _mm512_add_ps(_mm512_mul_ps(_mm512_castsi512_ps(values), scale), offset);
                // SAFETY: what is not present is not written.
                unsafe {
                    _mm512_mask_storeu_ps(
                        out.as_mut_ptr().wrapping_add(16 * at),
                        (present >> (16 * at)) as __mmask16,
                        values,
                    )
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways that this processor has, against one by one.
    #[test]
    fn every_code_of_any_number_of_them_is_looked_up_as_one_by_one() {
        let map: [f32; 256] = std::array::from_fn(|at| (at as f32 - 128.0).powi(3) * 0.37e-6);
        let planes = Planes::new(&map);
        let codes: Vec<u8> = (0..700).map(|i| (i * 89 % 256) as u8).collect();
        for count in [1, 3, 8, 16, 32, 63, 64, 65, 88, 200, 700] {
            let codes = &codes[..count];
            let expected: Vec<f32> = codes.iter().map(|code| map[*code as usize] * 0.7 + 0.11).collect();
            let check = |look_up: &dyn Fn(&mut [f32])| {
                let mut out = vec![7.0; count + 1];
                look_up(&mut out[..count]);
                assert_eq!(out[..count], expected);
                assert_eq!(out[count], 7.0);
            };
            if super::super::avx2::available() {
                // SAFETY: just looked at.
                check(&|out| unsafe { decode(codes, &map, 0.7, 0.11, out) });
            }
            if available() {
                // SAFETY: just looked at.
                check(&|out| unsafe { planes.decode(codes, 0.7, 0.11, out) });
            }
        }
    }
}
