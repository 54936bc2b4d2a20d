//! How alike two adapters are, layer by layer: whether their updates write into and read from the same directions, and how
//! far apart the updates are. Nothing of a layer's full size is formed.

use nalgebra::DMatrix;

use crate::adapter::Adapter;
use crate::error::{Error, Result};
use crate::spectrum::{Update, factor_a, factor_b};
use crate::tensors::LoraPair;

#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Layers of both, by path.
    pub layers: Vec<LayerComparison>,
    pub only_in_first: Vec<String>,
    pub only_in_second: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LayerComparison {
    pub path: String,
    /// Numerical ranks of the two updates.
    pub ranks: (usize, usize),
    /// Overlap of the column spaces: where the updates write to. `None` if either update is zero.
    pub output_overlap: Option<f64>,
    /// Overlap of the row spaces: what the updates look at.
    pub input_overlap: Option<f64>,
    /// The overlaps (output, input) that two random updates of these ranks would have on average.
    pub by_chance: (f64, f64),
    /// ‖Δ1−Δ2‖/‖Δ1‖ in Frobenius norm. `None` if the first is zero.
    pub distance: Option<f64>,
}

impl Adapter {
    /// # Errors
    /// A layer of both has other sizes in each, by name; the two have no layer in common.
    pub fn compare(&self, other: &Self) -> Result<Comparison> {
        let mut layers = Vec::new();
        for (path, first) in self.pairs() {
            let Some(second) = other.pairs().get(path) else { continue };
            layers.push(self.compare_layer(path, first, other, second)?);
        }
        let missing = |of: &Self, from: &Self| -> Vec<String> {
            of.pairs().keys().filter(|path| !from.pairs().contains_key(*path)).cloned().collect()
        };
        if layers.is_empty() {
            let problem = "the two adapters have no layer with a low-rank update in common".into();
            return Err(Error::DoesNotFit { problem });
        }
        Ok(Comparison { layers, only_in_first: missing(self, other), only_in_second: missing(other, self) })
    }

    fn compare_layer(&self, path: &str, first: &LoraPair, other: &Self, second: &LoraPair) -> Result<LayerComparison> {
        let sides = |pair: &LoraPair| (pair.out_features, pair.in_features);
        if sides(first) != sides(second) {
            let ((out, inputs), (other_out, other_inputs)) = (sides(first), sides(second));
            let problem = format!("{path} is {out}x{inputs} in the one and {other_out}x{other_inputs} in the other");
            return Err(Error::DoesNotFit { problem });
        }
        let scales = (self.scale_for(path), other.scale_for(path));
        let (one, two) = (Update::of(path, first, scales.0)?, Update::of(path, second, scales.1)?);
        let ranks = (one.numerical_rank(), two.numerical_rank());
        let most = ranks.0.max(ranks.1) as f64;
        let norm = one.sigma.norm();
        Ok(LayerComparison {
            path: path.to_owned(),
            ranks,
            output_overlap: overlap(&one.u, &two.u, ranks),
            input_overlap: overlap(&one.v, &two.v, ranks),
            by_chance: (most / first.out_features as f64, most / first.in_features as f64),
            distance: (norm > 0.0).then(|| distance(first, second, scales) / norm),
        })
    }
}

impl Comparison {
    /// ‖Δ1−Δ2‖ and the overlaps, averaged over the layers that have them: output, input, distance.
    pub fn means(&self) -> [Option<f64>; 3] {
        let mean = |of: fn(&LayerComparison) -> Option<f64>| {
            let values: Vec<f64> = self.layers.iter().filter_map(of).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        [mean(|layer| layer.output_overlap), mean(|layer| layer.input_overlap), mean(|layer| layer.distance)]
    }
}

/// ‖U1ᵀU2‖²/min(r1, r2) of the leading r1 and r2 columns: 0 for orthogonal spaces, 1 if one contains the other
/// (arXiv 2106.09685, §7.2, eq. 4).
fn overlap(one: &DMatrix<f64>, two: &DMatrix<f64>, ranks: (usize, usize)) -> Option<f64> {
    let least = ranks.0.min(ranks.1);
    if least == 0 {
        return None;
    }
    let between = one.columns(0, ranks.0).tr_mul(&two.columns(0, ranks.1)); // (r1, r2)
    Some(between.norm_squared() / least as f64)
}

/// ‖s1·B1·A1 − s2·B2·A2‖ as the norm of [s1·B1, −s2·B2]·[A1; A2]: of the difference itself, so that near updates lose no
/// digits as the difference of their norms would.
fn distance(first: &LoraPair, second: &LoraPair, scales: (f64, f64)) -> f64 {
    let left = beside(&(factor_b(first) * scales.0), &(factor_b(second) * -scales.1)); // (out, R1 + R2)
    let right = beside(&factor_a(first), &factor_a(second)); // (in, R1 + R2)
    (left.qr().r() * right.qr().r().transpose()).norm()
}

fn beside(left: &DMatrix<f64>, right: &DMatrix<f64>) -> DMatrix<f64> {
    let mut both = DMatrix::zeros(left.nrows(), left.ncols() + right.ncols());
    both.columns_mut(0, left.ncols()).copy_from(left);
    both.columns_mut(left.ncols(), right.ncols()).copy_from(right);
    both
}

#[cfg(test)]
mod tests;
