//! What the update of each layer consists of: its singular values, and what follows from them.
//!
//! The update s·B·A is never formed: with the thin QR of B = Qb·Rb and of Aᵀ = Qa·Ra its singular value decomposition is
//! that of the small core s·Rb·Raᵀ, turned by Qb and Qa. All of it is f64, so that the f32 of the files is the larger
//! error. DoRA's magnitude is left aside: for such an adapter these are the figures of s·B·A alone.

use nalgebra::{DMatrix, DVector};

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::tensors::LoraPair;

/// What is below this share of the largest singular value is rounding: A and B are products of f32.
const NOISE: f64 = 1e-6;

/// The singular values of every layer's update, by the layer's path.
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrum {
    pub layers: Vec<LayerSpectrum>,
}

/// The singular values of one layer's update s·B·A, largest first: as many as A has rows, or as the layer has inputs or
/// outputs where those are fewer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpectrum {
    pub path: String,
    /// Of A and B as they are stored.
    pub rank: usize,
    pub out_features: usize,
    pub in_features: usize,
    pub singular_values: Vec<f64>,
}

/// A thin singular value decomposition of s·B·A.
///
/// # Shapes
/// `u`: (out, K), `v`: (in, K), with K = min(R, out, in).
#[derive(Debug)]
pub(crate) struct Update {
    pub u: DMatrix<f64>,
    pub sigma: DVector<f64>,
    pub v: DMatrix<f64>,
}

impl Adapter {
    /// What an adapter without any pair has.
    pub(crate) fn instead_of_pairs(&self) -> &'static str {
        match self.tensors().prompt {
            Some(_) => "it has virtual tokens only (prompt tuning)",
            None => "it has whole modules only",
        }
    }

    /// What limits the figures of its ranks.
    pub fn limits_of_figures(&self) -> Option<&'static str> {
        self.config()
            .use_dora
            .then_some("DoRA: these are the figures of B·A, before the magnitudes scale the whole weight")
    }

    /// # Errors
    /// The adapter has no low-rank update, or a layer's values are beyond what f64 can decompose.
    pub fn spectrum(&self) -> Result<Spectrum> {
        if self.pairs().is_empty() {
            let problem = format!("{}; there is no low-rank update to look at", self.instead_of_pairs());
            return Err(Error::NoEffect { problem });
        }
        let layer = |(path, pair): (&String, &LoraPair)| {
            Ok(LayerSpectrum::of(path, pair, &Update::of(path, pair, self.scale_for(path))?))
        };
        Ok(Spectrum { layers: self.pairs().iter().map(layer).collect::<Result<_>>()? })
    }
}

impl Spectrum {
    pub fn max_rank(&self) -> usize {
        self.layers.iter().map(|layer| layer.rank).max().unwrap_or(0)
    }

    /// The mean over the layers that change anything of [`LayerSpectrum::energy_kept`]; 1 where no layer does.
    pub fn mean_energy_kept(&self, rank: usize) -> f64 {
        let shares: Vec<f64> =
            self.layers.iter().filter(|layer| layer.energy() > 0.0).map(|layer| layer.energy_kept(rank)).collect();
        if shares.is_empty() { 1.0 } else { shares.iter().sum::<f64>() / shares.len() as f64 }
    }
}

impl LayerSpectrum {
    pub(crate) fn of(path: &str, pair: &LoraPair, update: &Update) -> Self {
        Self {
            path: path.to_owned(),
            rank: pair.rank,
            out_features: pair.out_features,
            in_features: pair.in_features,
            singular_values: update.sigma.as_slice().to_vec(),
        }
    }

    /// The sum of the squares, which is the squared Frobenius norm of the update.
    pub fn energy(&self) -> f64 {
        self.singular_values.iter().map(|value| value * value).sum()
    }

    /// The share of the energy in the `rank` largest singular values; 1 for an update of zero.
    pub fn energy_kept(&self, rank: usize) -> f64 {
        let total = self.energy();
        if total == 0.0 { 1.0 } else { 1.0 - self.energy_lost(rank) / total }
    }

    /// The energy beyond the `rank` largest singular values.
    pub fn energy_lost(&self, rank: usize) -> f64 {
        self.singular_values.iter().skip(rank).map(|value| value * value).sum()
    }

    /// The least rank that keeps this share of the energy; 0 for an update of zero.
    pub fn rank_for_energy(&self, share: f64) -> usize {
        let total = self.energy();
        if total == 0.0 {
            return 0;
        }
        let most = self.singular_values.len();
        let enough = |rank: &usize| self.energy_lost(*rank) <= (1.0 - share) * total;
        (1..most).find(enough).unwrap_or(most)
    }

    /// exp of the entropy of the singular values over their sum (Roy and Vetterli, "The effective rank: a measure of
    /// effective dimensionality", EUSIPCO 2007, §2): R for R equal values, near 1 where one stands alone, 0 for zero.
    pub fn effective_rank(&self) -> f64 {
        let sum: f64 = self.singular_values.iter().sum();
        if sum == 0.0 {
            return 0.0;
        }
        let shares = self.singular_values.iter().map(|value| value / sum).filter(|share| *share > 0.0);
        (-shares.map(|share| share * share.ln()).sum::<f64>()).exp()
    }
}

impl Update {
    pub fn of(path: &str, pair: &LoraPair, scale: f64) -> Result<Self> {
        let (b, a) = (factor_b(pair), factor_a(pair));
        let (b, a) = (b.qr(), a.qr());
        let core = b.r() * a.r().transpose() * scale; // (min(out, R), min(in, R))
        let failed =
            || Error::tensor(path, "the singular values of B·A cannot be computed; its values are too far apart");
        let svd = nalgebra::SVD::try_new(core, true, true, f64::EPSILON, 0).ok_or_else(failed)?;
        let (Some(u), Some(v_t)) = (svd.u, svd.v_t) else { return Err(failed()) };
        if svd.singular_values.iter().any(|value| !value.is_finite()) {
            return Err(failed());
        }
        Ok(Self { u: b.q() * u, sigma: svd.singular_values, v: a.q() * v_t.transpose() })
    }

    /// How many singular values are more than rounding.
    pub fn numerical_rank(&self) -> usize {
        let largest = self.sigma.iter().copied().fold(0.0, f64::max);
        self.sigma.iter().filter(|value| **value > largest * NOISE).count()
    }
}

/// (out, R)
pub(crate) fn factor_b(pair: &LoraPair) -> DMatrix<f64> {
    DMatrix::from_row_iterator(pair.out_features, pair.rank, pair.b.iter().map(|value| f64::from(*value)))
}

/// Aᵀ (in, R): A's rows are its columns.
pub(crate) fn factor_a(pair: &LoraPair) -> DMatrix<f64> {
    DMatrix::from_iterator(pair.in_features, pair.rank, pair.a.iter().map(|value| f64::from(*value)))
}

#[cfg(test)]
pub(crate) mod tests;
