//! PiSSA (arXiv 2404.02948 §3): A and B begin as the weight's R principal directions, which are taken off the weight.
//!
//! Our base is shared and stays as it is. What the paper takes off the weight, W − s·B₀·A₀, is taken off in the pass, by a
//! second and constant pair. So the published adapter can be a plain one of rank 2R: s·(B·A − B₀·A₀).

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use tailor_models::Result;

/// Up to this many rows or columns the whole decomposition is made; above, an approximate one.
const WHOLE: i64 = 512;
/// Directions beyond R that the approximation looks at, and how often it multiplies with W·Wᵀ (arXiv 0909.4061 §4.5).
const EXTRA: i64 = 10;
const POWERS: usize = 4;
/// Keeps the numbers of the approximation apart from others under one seed.
const STREAM: u64 = u64::MAX - 2;

/// A `[R, in]` and B `[out, R]` with s·B·A the best approximation of rank R to `weight` [out, in] f32.
///
/// # Errors
/// The decomposition does not converge; no memory.
pub fn principal(weight: &Tensor, rank: i64, scale: f64, seed: u64) -> Result<(Tensor, Tensor)> {
    tch::no_grad(|| {
        let (out, input) = weight.size2()?;
        let least = out.min(input);
        let rank = rank.min(least);
        let (u, s, v) = match least <= WHOLE {
            true => weight.f_svd(true, true)?,
            false => {
                let near = range(weight, (rank + EXTRA).min(least), seed)?; // [out, R + EXTRA]
                let (u, s, v) = near.f_tr()?.f_matmul(weight)?.f_svd(true, true)?;
                (near.f_matmul(&u)?, s, v)
            }
        };
        let root = (s.f_narrow(0, 0, rank)? / scale).f_sqrt()?;
        let a = v.f_narrow(1, 0, rank)?.f_mul(&root)?.f_tr()?.f_contiguous()?;
        let b = u.f_narrow(1, 0, rank)?.f_mul(&root)?.f_contiguous()?;
        Ok((a, b))
    })
}

/// An orthonormal basis [out, count] of nearly what `weight` reaches: Halko's algorithm 4.4.
fn range(weight: &Tensor, count: i64, seed: u64) -> Result<Tensor> {
    let input = weight.size()[1];
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(STREAM);
    let draws: Vec<f32> = (0..input * count).map(|_| random.random_range(-1.0..=1.0)).collect();
    let draws = Tensor::f_from_slice(&draws)?.f_view([input, count])?.f_to_device(weight.device())?;
    let (mut basis, _) = Tensor::f_linalg_qr(&weight.f_matmul(&draws)?, "reduced")?;
    for _ in 0..POWERS {
        let (back, _) = Tensor::f_linalg_qr(&weight.f_tr()?.f_matmul(&basis)?, "reduced")?;
        (basis, _) = Tensor::f_linalg_qr(&weight.f_matmul(&back)?, "reduced")?;
    }
    Ok(basis.f_to_kind(Kind::Float)?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Singular values 1/1, 1/2, 1/3, …
    fn weight(out: i64, input: i64) -> Tensor {
        tch::manual_seed(5);
        let options = (Kind::Float, Device::Cpu);
        let least = out.min(input);
        let (u, _) = Tensor::linalg_qr(&Tensor::randn([out, least], options), "reduced");
        let (v, _) = Tensor::linalg_qr(&Tensor::randn([input, least], options), "reduced");
        let values = Tensor::arange_start(1, least + 1, options).reciprocal();
        (u * values).matmul(&v.tr())
    }

    fn left_over(weight: &Tensor, rank: i64, scale: f64) -> f64 {
        let (a, b) = principal(weight, rank, scale, 1).expect("decomposed");
        f64::try_from((weight - b.matmul(&a) * scale).norm()).expect("norm")
    }

    #[test]
    fn what_is_left_is_the_smaller_singular_values() {
        let wanted = |from: i64, to: i64| (from..=to).map(|k| 1.0 / (k as f64).powi(2)).sum::<f64>().sqrt();
        let small = weight(40, 64);
        assert!((left_over(&small, 4, 2.0) - wanted(5, 40)).abs() < 1e-4);
        let large = weight(600, 530);
        let (got, best) = (left_over(&large, 4, 0.5), wanted(5, 530));
        assert!(got < best * 1.001, "{got} for {best}");
    }

    #[test]
    fn the_same_seed_gives_the_same_bits() {
        let large = weight(520, 530);
        let (a, b) = principal(&large, 3, 1.0, 7).expect("decomposed");
        let again = principal(&large, 3, 1.0, 7).expect("decomposed");
        assert!(a == again.0 && b == again.1);
    }
}
