use std::collections::BTreeMap;

use super::*;
use crate::adapter::tests::{PATH, config, one, pair, whole};
use crate::config::AdapterConfig;
use crate::tensors::Tensors;

/// Deterministic numbers between -1 and 1 (splitmix64).
pub(crate) struct Numbers(pub u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64 * 2.0 - 1.0
    }

    pub fn matrix(&mut self, rows: usize, columns: usize) -> DMatrix<f64> {
        DMatrix::from_fn(rows, columns, |_, _| self.next())
    }

    /// Orthonormal columns.
    pub fn basis(&mut self, rows: usize, columns: usize) -> DMatrix<f64> {
        self.matrix(rows, columns).qr().q()
    }
}

/// A pair with B·A = u·M·M⁻¹·diag(sigma)·vᵀ: the factors themselves show nothing of the values.
pub(crate) fn pair_with(u: &DMatrix<f64>, sigma: &[f64], v: &DMatrix<f64>, numbers: &mut Numbers) -> LoraPair {
    let rank = sigma.len();
    let mix = numbers.basis(rank, rank) * DMatrix::from_diagonal(&DVector::from_fn(rank, |at, _| 0.5 + at as f64));
    let b = u * &mix;
    let a = mix.try_inverse().expect("well conditioned")
        * DMatrix::from_diagonal(&DVector::from_column_slice(sigma))
        * v.transpose();
    LoraPair {
        // nalgebra keeps columns together, the file rows.
        a: a.transpose().iter().map(|value| *value as f32).collect(),
        b: b.transpose().iter().map(|value| *value as f32).collect(),
        rank,
        in_features: v.nrows(),
        out_features: u.nrows(),
    }
}

/// s·B·A in full: what the code under test never makes.
pub(crate) fn full(adapter: &Adapter, path: &str) -> DMatrix<f64> {
    let pair = &adapter.pairs()[path];
    factor_b(pair) * factor_a(pair).transpose() * adapter.scale_for(path)
}

fn adapter_with(sigma: &[f64], out: usize, inputs: usize) -> Adapter {
    let mut numbers = Numbers(7);
    let (u, v) = (numbers.basis(out, sigma.len()), numbers.basis(inputs, sigma.len()));
    let pair = pair_with(&u, sigma, &v, &mut numbers);
    Adapter::new(config(sigma.len() as u32), one(PATH, pair)).expect("sound")
}

fn layer(singular_values: &[f64]) -> LayerSpectrum {
    LayerSpectrum {
        path: PATH.into(),
        rank: singular_values.len(),
        out_features: 9,
        in_features: 9,
        singular_values: singular_values.to_vec(),
    }
}

fn near(found: f64, wanted: f64, tolerance: f64) {
    assert!((found - wanted).abs() <= tolerance, "{found} is not {wanted} ± {tolerance}");
}

#[test]
fn singular_values_put_into_an_update_are_found_in_it_times_its_scale() {
    let sigma = [3.0, 1.0, 0.25, 0.01];
    let adapter = adapter_with(&sigma, 40, 30);
    let spectrum = adapter.spectrum().expect("spectrum");
    let found = &spectrum.layers[0];
    assert_eq!((found.path.as_str(), found.rank, found.out_features, found.in_features), (PATH, 4, 40, 30));
    for (found, sigma) in found.singular_values.iter().zip(sigma) {
        near(*found, 2.0 * sigma, 1e-5); // alpha 8 over rank 4
    }
    near(found.energy(), full(&adapter, PATH).norm_squared(), 1e-9);
}

#[test]
fn the_decomposition_gives_the_update_back_whatever_its_shape() {
    let mut numbers = Numbers(1);
    for (rank, out, inputs) in [(1, 5, 7), (4, 12, 9), (8, 6, 20), (8, 20, 6), (8, 3, 5), (16, 64, 48)] {
        let value = |matrix: DMatrix<f64>| matrix.iter().map(|value| *value as f32).collect();
        let a = value(numbers.matrix(inputs, rank));
        let b = value(numbers.matrix(rank, out));
        let pair = LoraPair { a, b, rank, in_features: inputs, out_features: out };
        let adapter = Adapter::new(config(rank as u32), one(PATH, pair.clone())).expect("sound");
        let update = Update::of(PATH, &pair, adapter.scale_for(PATH)).expect("update");
        assert_eq!(update.sigma.len(), rank.min(out).min(inputs));
        assert!(update.sigma.as_slice().is_sorted_by(|left, right| left >= right), "largest first");
        let back = &update.u * DMatrix::from_diagonal(&update.sigma) * update.v.transpose();
        near((back - full(&adapter, PATH)).norm(), 0.0, 1e-10);
    }
}

#[test]
fn effective_rank_is_the_rank_of_equal_values_and_one_of_a_single_one() {
    near(layer(&[2.0, 2.0, 2.0]).effective_rank(), 3.0, 1e-12);
    near(layer(&[5.0, 0.0, 0.0]).effective_rank(), 1.0, 1e-12);
    // Shares 0.75 and 0.25: exp(0.75·ln(4/3) + 0.25·ln 4).
    near(layer(&[3.0, 1.0]).effective_rank(), 1.754_765_350_603_323, 1e-12);
    assert_eq!(layer(&[0.0, 0.0]).effective_rank(), 0.0);
}

#[test]
fn energy_is_counted_in_squares_and_a_share_asks_for_the_least_rank() {
    let layer = layer(&[3.0, 1.0, 0.0]);
    near(layer.energy_kept(1), 0.9, 1e-12);
    assert_eq!((layer.energy_kept(0), layer.energy_kept(2), layer.energy_kept(9)), (0.0, 1.0, 1.0));
    let ranks = [0.5, 0.9 - 1e-9, 0.9 + 1e-9, 1.0].map(|share| layer.rank_for_energy(share));
    assert_eq!(ranks, [1, 1, 2, 2]);
}

#[test]
fn an_update_of_zero_has_no_rank_and_loses_nothing() {
    let mut zero = pair(2, 6, 4);
    zero.b.fill(0.0);
    let mut pairs = BTreeMap::from([("model.layers.1.self_attn.q_proj".to_owned(), zero)]);
    pairs.insert(PATH.to_owned(), pair(2, 6, 4));
    let spectrum = Adapter::new(config(2), pairs).expect("sound").spectrum().expect("spectrum");
    let zero = &spectrum.layers[1];
    assert_eq!((zero.effective_rank(), zero.rank_for_energy(0.99), zero.energy_kept(0)), (0.0, 0, 1.0));
    assert_eq!(
        spectrum.mean_energy_kept(1),
        spectrum.layers[0].energy_kept(1),
        "a layer without change is not counted"
    );
}

#[test]
fn an_adapter_of_whole_modules_only_is_refused() {
    let json = r#"{"peft_type":"LORA","r":2,"target_modules":["q_proj"],"modules_to_save":["lm_head"]}"#;
    let config = AdapterConfig::parse(json.as_bytes()).expect("valid");
    let tensors = Tensors { whole: one("lm_head.weight", whole(&[3, 6], 0.5)), ..Tensors::default() };
    let error = Adapter::with_tensors(config, tensors).expect("sound").spectrum().expect_err("nothing to see");
    assert!(error.to_string().contains("whole modules only"), "{error}");
}
