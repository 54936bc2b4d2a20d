//! T5's positions: a learned bias on the scores, by bucketed distance (arXiv 1910.10683 §2.1).

use tch::{Kind, Tensor};

pub(super) struct PositionBias {
    pub weight: Tensor, // [buckets, H]
    pub bidirectional: bool,
    pub buckets: i64,
    pub max_distance: i64,
}

impl PositionBias {
    /// For the last `queries` of `keys` tokens → [1, H, T, S].
    pub fn bias(&self, queries: i64, keys: i64) -> Tensor {
        let options = (Kind::Int64, self.weight.device());
        let of_queries = Tensor::arange_start(keys - queries, keys, options).unsqueeze(1); // [T, 1]
        let distance = Tensor::arange(keys, options).unsqueeze(0) - of_queries; // [T, S]
        let bias = Tensor::embedding(&self.weight, &self.bucket(&distance), -1, false, false); // [T, S, H]
        bias.permute([2, 0, 1]).unsqueeze(0)
    }

    /// Half of the buckets for near distances one by one, half for far ones by their logarithm.
    fn bucket(&self, distance: &Tensor) -> Tensor {
        let (buckets, sign, distance) = match self.bidirectional {
            true => (self.buckets / 2, distance.gt(0).to_kind(Kind::Int64) * (self.buckets / 2), distance.abs()),
            false => (self.buckets, distance.zeros_like(), (-distance).clamp_min(0)),
        };
        let exact = buckets / 2;
        let logarithm = (distance.to_kind(Kind::Float) / exact as f64).log()
            / (self.max_distance as f64 / exact as f64).ln()
            * (buckets - exact) as f64;
        // ln 0 is minus infinity, but those entries are near ones; clamp so that the conversion is defined.
        let far = (logarithm.clamp(0.0, buckets as f64).to_kind(Kind::Int64) + exact).clamp_max(buckets - 1);
        sign + distance.where_self(&distance.lt(exact), &far)
    }
}
