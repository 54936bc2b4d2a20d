//! The same adapter in fewer ranks: of each layer's update the largest singular values are kept, which is the nearest
//! update of that rank in Frobenius norm (Eckart and Young, 1936).
//!
//! The result is a plain LoRA adapter in f32 whose scale is folded into B and A: alpha equals the rank in every module, so
//! α/R is 1. Whole modules and biases are carried over as they are.

use std::collections::BTreeMap;

use crate::adapter::Adapter;
use crate::config::{AdapterConfig, MAX_RANK};
use crate::error::{Error, Result};
use crate::spectrum::{LayerSpectrum, Spectrum, Update};
use crate::tensors::{LoraPair, Tensors};

/// What is to be kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Keep {
    /// This rank in every layer; a layer that has less keeps what it has.
    Rank(usize),
    /// In every layer the least rank that keeps this share of its energy, between 0 and 1.
    Energy(f64),
}

/// A compressed adapter and what it lost.
#[derive(Debug, Clone)]
pub struct Compressed {
    pub adapter: Adapter,
    /// Before.
    pub spectrum: Spectrum,
    /// Rank of each layer now, in the order of `spectrum`.
    pub ranks: Vec<usize>,
}

impl Compressed {
    /// The share of the energy of all layers together that is gone.
    pub fn energy_lost(&self) -> f64 {
        let total: f64 = self.spectrum.layers.iter().map(LayerSpectrum::energy).sum();
        let lost: f64 = self.layers().map(|(layer, rank)| layer.energy_lost(rank)).sum();
        if total == 0.0 { 0.0 } else { lost / total }
    }

    /// The layer that lost most of its own energy, and that share.
    pub fn worst_layer(&self) -> Option<(&str, f64)> {
        let lost = self.layers().map(|(layer, rank)| (layer.path.as_str(), 1.0 - layer.energy_kept(rank)));
        lost.max_by(|left, right| left.1.total_cmp(&right.1))
    }

    /// Each layer before, with its rank now.
    pub fn layers(&self) -> impl Iterator<Item = (&LayerSpectrum, usize)> {
        self.spectrum.layers.iter().zip(self.ranks.iter().copied())
    }
}

impl Adapter {
    /// # Errors
    /// `keep` is outside its limits or would keep every rank that there is; DoRA, where it would change the norms; no
    /// low-rank update.
    pub fn compress(&self, keep: Keep) -> Result<Compressed> {
        check(keep)?;
        if self.config().use_dora {
            return Err(Error::Unsupported {
                field: "use_dora".into(),
                value: "true".into(),
                reason:
                    "its magnitudes divide by the norm of the weight with the whole update, so a smaller update would \
                         change what stays too; compress an adapter without DoRA"
                        .into(),
            });
        }
        let mut pairs = BTreeMap::new();
        let (mut layers, mut ranks) = (Vec::new(), Vec::new());
        for (path, pair) in self.pairs() {
            let update = Update::of(path, pair, self.scale_for(path))?;
            let layer = LayerSpectrum::of(path, pair, &update);
            let wanted = match keep {
                Keep::Rank(rank) => rank.min(layer.singular_values.len()),
                Keep::Energy(share) => layer.rank_for_energy(share),
            };
            // PEFT knows no rank 0: an update of zero is one of rank 1.
            let rank = wanted.max(1);
            pairs.insert(path.clone(), update.truncated(rank));
            layers.push(layer);
            ranks.push(rank);
        }
        if layers.iter().zip(&ranks).all(|(layer, rank)| *rank >= layer.rank) {
            let problem = match self.max_rank() {
                0 => self.instead_of_pairs().to_owned(),
                rank => format!("every layer would keep the rank it has, the largest {rank}; ask for less"),
            };
            return Err(Error::Compress { problem });
        }
        let spectrum = Spectrum { layers };
        let adapter = self.with_pairs(pairs)?;
        Ok(Compressed { adapter, spectrum, ranks })
    }

    /// The same adapter with these updates, at scale 1, in place of its own.
    fn with_pairs(&self, pairs: BTreeMap<String, LoraPair>) -> Result<Self> {
        let ranks = pairs.iter().map(|(path, pair)| (path.as_str(), pair.rank as u32));
        let config = self.config().with_ranks(&ranks.collect::<Vec<_>>())?;
        // PEFT adds the bias of B before it scales.
        let biases = self.tensors().lora_biases.iter().map(|(path, bias)| {
            let scale = self.scale_for(path);
            (path.clone(), bias.iter().map(|value| (f64::from(*value) * scale) as f32).collect())
        });
        let tensors = Tensors {
            pairs,
            lora_biases: biases.collect(),
            magnitudes: BTreeMap::new(),
            whole: self.tensors().whole.clone(),
            prompt: None,
            narrow: BTreeMap::new(),
        };
        Self::with_tensors(config, tensors)
    }
}

fn check(keep: Keep) -> Result<()> {
    match keep {
        Keep::Rank(rank) if rank == 0 || rank as u64 > MAX_RANK => {
            Err(Error::Compress { problem: format!("rank {rank} is outside 1 to {MAX_RANK}") })
        }
        Keep::Energy(share) if !(share > 0.0 && share < 1.0) => {
            let problem = format!("{share} of the energy is not between 0 and 1; 0.99 keeps 99 %");
            Err(Error::Compress { problem })
        }
        Keep::Rank(_) | Keep::Energy(_) => Ok(()),
    }
}

impl Update {
    /// B = U·√Σ and A = √Σ·Vᵀ of the `rank` largest: both of one size, as a trained pair's are not torn apart.
    fn truncated(&self, rank: usize) -> LoraPair {
        let (out_features, in_features) = (self.u.nrows(), self.v.nrows());
        let roots: Vec<f64> = self.sigma.iter().take(rank).map(|value| value.sqrt()).collect();
        let mut a = Vec::with_capacity(rank * in_features);
        for (at, root) in roots.iter().enumerate() {
            a.extend(self.v.column(at).iter().map(|value| (value * root) as f32));
        }
        let mut b = Vec::with_capacity(rank * out_features);
        for row in 0..out_features {
            b.extend(roots.iter().enumerate().map(|(at, root)| (self.u[(row, at)] * root) as f32));
        }
        LoraPair { a, b, rank, in_features, out_features }
    }
}

impl AdapterConfig {
    /// The same config with these ranks, by path, and scale 1 everywhere. The commonest rank is the adapter's, the others
    /// are its `rank_pattern` and `alpha_pattern`.
    fn with_ranks(&self, ranks: &[(&str, u32)]) -> Result<Self> {
        let mut counts = BTreeMap::new();
        for (_, rank) in ranks {
            *counts.entry(*rank).or_insert(0u32) += 1;
        }
        let commonest = counts.iter().max_by_key(|(_, count)| **count).map_or(self.r, |(rank, _)| *rank);
        let others: Vec<(String, u32)> = ranks
            .iter()
            .filter(|(_, rank)| *rank != commonest)
            // Anchored, since PEFT takes a key for the end of a path.
            .map(|(path, rank)| (format!("^{}", regex::escape(path)), *rank))
            .collect();
        self.with_scale_one(commonest, &others)
    }
}

#[cfg(test)]
mod tests;
