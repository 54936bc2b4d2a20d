//! The mean of the scales, to the last bit of what PyTorch gives for it.
//!
//! Double quantisation centres the scales on their mean, and a mean in f32 depends on the order of its additions. This is
//! the order of PyTorch on an x86 CPU (vectors of 8, also where there is AVX-512) with one thread: four sums of vectors side
//! by side, each in a cascade of four levels, so that small numbers are added to small ones. From 32,768 scales on PyTorch
//! gives each of its threads a share, so there its own result depends on the number of threads (measured: by up to 2 units
//! in the last place).

/// Floats in a vector.
const LANES: usize = 8;
/// Sums side by side.
const ROWS: usize = 4;
const LEVELS: usize = 4;
/// Additions before a level's sum is handed to the next level, as a power of two, at the least.
const LEAST_BITS: usize = 4;

/// The mean of `values`; no number where there are none.
pub(crate) fn mean(values: &[f32]) -> f32 {
    sum(values) / values.len() as f32
}

fn sum(values: &[f32]) -> f32 {
    let (vectors, rest) = values.as_chunks::<LANES>();
    if vectors.is_empty() {
        return rows(values.as_chunks::<1>().0)[0];
    }
    let lanes = rows(vectors);
    rest.iter().chain(&lanes).fold(0.0, |sum, value| sum + value)
}

fn rows<const L: usize>(vectors: &[[f32; L]]) -> [f32; L] {
    let (groups, rest) = vectors.as_chunks::<ROWS>();
    let [mut first, others @ ..] = cascade(groups);
    for vector in rest.iter().chain(&others) {
        add(&mut first, vector);
    }
    first
}

fn cascade<const L: usize>(groups: &[[[f32; L]; ROWS]]) -> [[f32; L]; ROWS] {
    let bits = (groups.len().max(1).next_power_of_two().ilog2() as usize / LEVELS).max(LEAST_BITS);
    let step = 1 << bits;
    let zero = [[0f32; L]; ROWS];
    let mut levels = [zero; LEVELS];
    let mut done = 0;
    for chunk in groups.chunks(step) {
        for group in chunk {
            add_rows(&mut levels[0], group);
        }
        if chunk.len() < step {
            break;
        }
        done += step;
        for level in 1..LEVELS {
            let carried = std::mem::replace(&mut levels[level - 1], zero);
            add_rows(&mut levels[level], &carried);
            let full = done & ((step - 1) << (level * bits)) == 0;
            if !full {
                break;
            }
        }
    }
    let [mut lowest, higher @ ..] = levels;
    for level in &higher {
        add_rows(&mut lowest, level);
    }
    lowest
}

#[inline(always)]
fn add_rows<const L: usize>(sums: &mut [[f32; L]; ROWS], rows: &[[f32; L]; ROWS]) {
    for (sum, row) in sums.iter_mut().zip(rows) {
        add(sum, row);
    }
}

#[inline(always)]
fn add<const L: usize>(sums: &mut [f32; L], values: &[f32; L]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of values, and the bits of `torch.tensor(values).mean()` in f32 with one thread, torch 2.11.
    const PYTORCH: [(usize, u32); 13] = [
        (1, 0x38b9_5ab6),
        (5, 0x393a_e55e),
        (7, 0x3926_ec90),
        (8, 0x392d_c4f4),
        (9, 0x395d_2594),
        (31, 0x3984_fd78),
        (64, 0x3994_6aa4),
        (100, 0x39b6_d14f),
        (1_000, 0x3a08_ee94),
        (5_000, 0x3a10_9717),
        (32_767, 0x3a30_69f8),
        (70_001, 0x3a30_ea13),
        (1 << 20, 0x3a33_446e),
    ];

    /// Fractions of 0.7, of which nearly every addition rounds.
    fn values(count: usize) -> Vec<f32> {
        (1..=count).map(|i| 0.7 / ((i * 7919) % 10_007 + 1) as f32).collect()
    }

    #[test]
    fn mean_has_the_bits_of_pytorch() {
        for (count, bits) in PYTORCH {
            assert_eq!(mean(&values(count)).to_bits(), bits, "{count} values");
        }
    }

    #[test]
    fn mean_is_near_the_exact_one_at_every_length() {
        for count in (1..200).chain([4095, 4096, 4097, 70_001, 1 << 20]) {
            let values = values(count);
            let exact = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count as f64;
            assert!((f64::from(mean(&values)) / exact - 1.0).abs() < 1e-6, "{count} values");
        }
    }
}
