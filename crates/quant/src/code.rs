//! The code books: what each of the 16 (or 256) numbers stands for.

/// NF4: quantiles of the standard normal, scaled to [-1, 1], with an exact zero (arXiv 2305.14314 appendix E).
#[allow(clippy::excessive_precision)] // as published; the nearest f32 is what bitsandbytes stores
pub const NF4: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// FP4 in bit order: sign, two exponent bits, one mantissa bit, scaled so that the largest is 1.
pub const FP4: [f32; 16] = {
    let magnitudes = [0.0f32, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut code = [0.0; 16];
    let mut i = 0;
    while i < 8 {
        code[i] = magnitudes[i] / 12.0;
        code[i + 8] = -(magnitudes[i] / 12.0);
        i += 1;
    }
    // As bitsandbytes: its list has the integer -0, which is plain zero.
    code[8] = 0.0;
    code
};

/// How a 4-bit number becomes a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    Nf4,
    Fp4,
    /// A block scaled to 0..1 by its minimum and maximum, 16 equidistant values. Not in bitsandbytes.
    Uniform4,
}

impl Code {
    /// As written in `quant_state` and in the key that holds it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
            Self::Uniform4 => "uniform4",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "nf4" => Some(Self::Nf4),
            "fp4" => Some(Self::Fp4),
            "uniform4" => Some(Self::Uniform4),
            _ => None,
        }
    }

    /// Value of each 4-bit number, before scaling.
    pub fn values(self) -> [f32; 16] {
        match self {
            Self::Nf4 => NF4,
            Self::Fp4 => FP4,
            Self::Uniform4 => std::array::from_fn(|i| i as f32 / 15.0),
        }
    }

    /// Thresholds between neighbouring values in ascending order, and the 4-bit number of each interval.
    pub(crate) fn intervals(self) -> ([f32; 15], [u8; 16]) {
        let values = self.values();
        let mut order: [u8; 16] = std::array::from_fn(|i| i as u8);
        order.sort_by(|&a, &b| values[a as usize].total_cmp(&values[b as usize]));
        let sorted = order.map(|i| values[i as usize]);
        (std::array::from_fn(|i| (sorted[i] + sorted[i + 1]) / 2.0), order)
    }
}

/// Whose rounding the 8-bit numbers of double quantisation follow where bitsandbytes' back ends differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Backend {
    /// Nearest entry of the map, found through a table over 65,536 equidistant points of [-1, 1].
    #[default]
    Cpu,
    /// Nearest entry of the map by the midpoints between its entries.
    Cuda,
}

/// The signed dynamic 8-bit map: an exponent in unary, the remaining bits a linear fraction (arXiv 1511.04561).
///
/// All arithmetic in f32 and in the order PyTorch has it, so that every entry has bitsandbytes' bits.
pub fn dynamic_map() -> [f32; 256] {
    const EXPONENTS: usize = 7;
    let mut map = Vec::with_capacity(256);
    for exponent in 0..EXPONENTS {
        let bounds = linspace(0.1, 1.0, (1 << exponent) + 1);
        let power = 10f64.powi(exponent as i32 - (EXPONENTS as i32 - 1)) as f32;
        for pair in bounds.windows(2) {
            let mean = (pair[0] + pair[1]) / 2.0;
            map.push(power * mean);
            map.push(-power * mean);
        }
    }
    map.push(0.0);
    map.push(1.0);
    map.sort_by(f32::total_cmp);
    map.try_into().unwrap_or([0.0; 256]) // 2·(1 + 2 + … + 64) + 2 entries: always 256
}

/// PyTorch's `linspace`: from both ends towards the middle, each multiply and add fused.
fn linspace(start: f32, end: f32, points: usize) -> Vec<f32> {
    let step = (end - start) / (points - 1) as f32;
    let from_either_end = |i: usize| match i < points / 2 {
        true => step.mul_add(i as f32, start),
        false => (-step).mul_add((points - 1 - i) as f32, end),
    };
    (0..points).map(from_either_end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nf4_thresholds_are_the_midpoints() {
        let (thresholds, order) = Code::Nf4.intervals();
        assert_eq!(order, std::array::from_fn(|i| i as u8));
        assert_eq!(thresholds[7], (0.0 + 0.079_580_3) / 2.0);
    }

    #[test]
    fn dynamic_map_has_256_ascending_entries_with_zero_and_one() {
        let map = dynamic_map();
        assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(map.contains(&0.0));
        assert_eq!(map[255], 1.0);
    }
}
