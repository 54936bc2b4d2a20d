//! Weights in bf16 in three quarters of their bytes, without loss. A tensor's exponents are much alike, so four bits name one of
//! sixteen; sign and mantissa take eight more. The idea is DFloat11's (arXiv 2504.11651), which codes exponents by Huffman; here
//! every value has a place of its own, so that a row is decoded as fast as memory gives it.

use std::sync::Mutex;

use half::bf16;

use crate::product::{Workers, spread};

/// Values that are decoded together: 32 bytes of signs and mantissas, then 16 of codes, whose low halves are of the first sixteen.
pub(crate) const STEP: usize = 32;
/// Their bytes.
pub(crate) const BYTES: usize = STEP + STEP / 2;
/// Rows that are coded at a time.
const ROWS: usize = 64;
/// Of so many values one may have an exponent that is none of the sixteen.
const RARE: usize = 256;
/// The exponent that codes zeros, and what stands where a value is kept beside.
const ZERO: usize = 15;

/// W [out, in].
pub struct CompactBf16 {
    out: usize,
    width: usize,
    /// [out, in / 32, 48]
    bytes: Vec<u8>,
    /// The exponents in their place.
    exponents: [u16; 16],
    /// Where each row's exceptions begin, and where the last one's end.
    starts: Vec<u32>,
    exceptions: Vec<Exception>,
}

/// A column and its value, which is a zero among the coded ones.
type Exception = (u32, bf16);

/// Some rows on their way.
struct Part<'a> {
    values: &'a [bf16],
    bytes: &'a mut [u8],
    /// Of each row.
    exceptions: Vec<Vec<Exception>>,
}

impl CompactBf16 {
    /// None where it would not do: rows that are no whole steps, too many different exponents, a processor without the products
    /// that take it.
    ///
    /// # Shapes
    /// `values` [out, width], row by row
    pub fn new(values: &[bf16], width: usize, workers: &dyn Workers) -> Option<Self> {
        let whole = width > 0 && width.is_multiple_of(STEP) && values.len().is_multiple_of(width) && !values.is_empty();
        if !whole || !Self::is_taken() {
            return None;
        }
        let out = values.len() / width;
        let exponents = most_frequent(values, width);
        let mut codes = [None; 256];
        for (code, exponent) in exponents.iter().enumerate() {
            codes[usize::from(*exponent >> 7)] = Some(code as u8);
        }
        let mut bytes = vec![0u8; out * (width / STEP) * BYTES];
        let row_bytes = width / STEP * BYTES;
        let parts = values.chunks(ROWS * width).zip(bytes.chunks_mut(ROWS * row_bytes));
        let parts: Vec<Mutex<Part<'_>>> =
            parts.map(|(values, bytes)| Mutex::new(Part { values, bytes, exceptions: Vec::new() })).collect();
        spread(workers, parts.len(), &|part| {
            // Nobody else takes this part; a panic elsewhere ends the whole.
            let Ok(mut part) = parts[part].lock() else { return };
            let Part { values, bytes, exceptions } = &mut *part;
            let rows = values.chunks_exact(width).zip(bytes.chunks_exact_mut(row_bytes));
            exceptions.extend(rows.map(|(values, bytes)| code_row(values, &codes, bytes)));
        });
        let (mut starts, mut exceptions) = (vec![0], Vec::new());
        for part in parts {
            for row in part.into_inner().ok()?.exceptions {
                exceptions.extend(row);
                starts.push(u32::try_from(exceptions.len()).ok()?);
            }
        }
        (exceptions.len() <= values.len() / RARE).then_some(Self { out, width, bytes, exponents, starts, exceptions })
    }

    /// Whether [`crate::products`] takes one on this processor.
    pub fn is_taken() -> bool {
        crate::product::multiplies_bf16() && !crate::product::has_tiles()
    }

    pub fn out(&self) -> usize {
        self.out
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// What is kept.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len() + self.starts.len() * size_of::<u32>() + self.exceptions.len() * size_of::<Exception>()
    }

    /// The coded bytes of a row, and the exponents.
    pub(crate) fn row(&self, row: usize) -> (&[u8], &[u16; 16]) {
        let size = self.width / STEP * BYTES;
        (&self.bytes[row * size..][..size], &self.exponents)
    }

    /// Columns of a row whose values are not among the coded ones.
    pub(crate) fn exceptions(&self, row: usize) -> &[Exception] {
        &self.exceptions[self.starts[row] as usize..self.starts[row + 1] as usize]
    }
}

/// The fifteen exponents that most values of some rows have, and zero's.
fn most_frequent(values: &[bf16], width: usize) -> [u16; 16] {
    let mut counts = [0u32; 256];
    let rows = values.len() / width;
    for row in values.chunks_exact(width).step_by(rows.div_ceil(2048)) {
        row.iter().for_each(|value| counts[usize::from(value.to_bits() >> 7 & 255)] += 1);
    }
    let mut order: Vec<u16> = (1..256).collect();
    order.sort_by_key(|exponent| std::cmp::Reverse(counts[usize::from(*exponent)]));
    let mut exponents = [0; 16];
    exponents[..ZERO].iter_mut().zip(order).for_each(|(to, exponent)| *to = exponent << 7);
    exponents
}

/// Gives what it keeps beside.
fn code_row(values: &[bf16], codes: &[Option<u8>; 256], bytes: &mut [u8]) -> Vec<Exception> {
    let mut beside = Vec::new();
    for (step, (values, bytes)) in values.chunks_exact(STEP).zip(bytes.chunks_exact_mut(BYTES)).enumerate() {
        let (short, names) = bytes.split_at_mut(STEP);
        for (at, value) in values.iter().enumerate() {
            let bits = value.to_bits();
            let (rest, code) = match codes[usize::from(bits >> 7 & 255)] {
                Some(code) => ((bits >> 8 & 0x80 | bits & 0x7f) as u8, code),
                None => {
                    beside.push(((step * STEP + at) as u32, *value));
                    (0, ZERO as u8)
                }
            };
            short[at] = rest;
            names[at % (STEP / 2)] |= if at < STEP / 2 { code } else { code << 4 };
        }
    }
    beside
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::product::Alone;

    fn decoded(compact: &CompactBf16) -> Vec<bf16> {
        let mut values = Vec::new();
        for row in 0..compact.out() {
            let (bytes, exponents) = compact.row(row);
            let first = values.len();
            for step in bytes.chunks_exact(BYTES) {
                values.extend((0..STEP).map(|at| {
                    let code = step[STEP + at % (STEP / 2)] >> if at < STEP / 2 { 0 } else { 4 } & 15;
                    let rest = u16::from(step[at]);
                    bf16::from_bits((rest & 0x80) << 8 | exponents[usize::from(code)] | rest & 0x7f)
                }));
            }
            for (column, value) in compact.exceptions(row) {
                assert_eq!(values[first + *column as usize].to_bits(), 0);
                values[first + *column as usize] = *value;
            }
        }
        values
    }

    #[test]
    fn every_value_comes_back_to_the_bit() {
        if !CompactBf16::is_taken() {
            return;
        }
        let (out, width) = (150, 96);
        // More exponents than have a code, but few values of those that have none.
        let value = |i: usize| ((i * 7919 % 1009) as f32 - 504.0) * 0.5f32.powi((i % 8) as i32);
        let mut values: Vec<bf16> = (0..out * width).map(|i| bf16::from_f32(value(i))).collect();
        values[5] = bf16::from_f32(-0.0);
        values[77] = bf16::from_bits(1); // denormal: zero's exponent
        for (at, odd) in [(200, 3e38), (201, -1e-30), (14_399, 7e20)] {
            values[at] = bf16::from_f32(odd);
        }
        let compact = CompactBf16::new(&values, width, &Alone).expect("a tensor like others");
        let bits = |values: &[bf16]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&decoded(&compact)), bits(&values));
        assert!(!compact.exceptions(2).is_empty(), "some are kept beside");
        assert!(compact.size_bytes() < values.len() * 2 * 4 / 5, "{} bytes", compact.size_bytes());
    }

    #[test]
    fn what_it_does_not_suit_is_left_as_it_is() {
        let wild: Vec<bf16> = (0..64 * 64).map(|i| bf16::from_bits((i * 9973 % 0x7f00) as u16)).collect();
        assert!(CompactBf16::new(&wild, 64, &Alone).is_none(), "exponents of all kinds");
        assert!(CompactBf16::new(&[bf16::ONE; 33], 33, &Alone).is_none(), "no whole steps");
        assert!(CompactBf16::new(&[], 0, &Alone).is_none(), "nothing");
    }
}
