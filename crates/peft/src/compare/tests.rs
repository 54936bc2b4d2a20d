use std::collections::BTreeMap;

use super::*;
use crate::adapter::tests::{PATH, config, one, pair};
use crate::spectrum::tests::{Numbers, full, pair_with};

const OTHER: &str = "model.layers.1.self_attn.q_proj";

fn adapter(pair: LoraPair) -> Adapter {
    Adapter::new(config(pair.rank as u32), one(PATH, pair)).expect("sound")
}

fn compared(first: &Adapter, second: &Adapter) -> LayerComparison {
    first.compare(second).expect("comparable").layers.remove(0)
}

fn near(found: Option<f64>, wanted: f64) {
    assert!(found.is_some_and(|found| (found - wanted).abs() < 1e-6), "{found:?} is not {wanted}");
}

#[test]
fn an_adapter_is_itself() {
    let mut numbers = Numbers(3);
    let (u, v) = (numbers.basis(24, 3), numbers.basis(16, 3));
    let adapter = adapter(pair_with(&u, &[2.0, 1.0, 0.5], &v, &mut numbers));
    let found = compared(&adapter, &adapter);
    assert_eq!(found.ranks, (3, 3));
    assert_eq!(found.by_chance, (3.0 / 24.0, 3.0 / 16.0));
    near(found.output_overlap, 1.0);
    near(found.input_overlap, 1.0);
    near(found.distance, 0.0);
}

#[test]
fn orthogonal_updates_do_not_overlap_and_lie_as_far_apart_as_they_are_long() {
    let mut numbers = Numbers(5);
    let (u, v) = (numbers.basis(24, 4), numbers.basis(16, 4));
    let half = |matrix: &DMatrix<f64>, start: usize| matrix.columns(start, 2).into_owned();
    let first = adapter(pair_with(&half(&u, 0), &[2.0, 1.0], &half(&v, 0), &mut numbers));
    let second = adapter(pair_with(&half(&u, 2), &[2.0, 1.0], &half(&v, 2), &mut numbers));
    let found = compared(&first, &second);
    near(found.output_overlap, 0.0);
    near(found.input_overlap, 0.0);
    near(found.distance, 2f64.sqrt());
    // The same directions of the output, read from others of the input.
    let mixed = adapter(pair_with(&half(&u, 0), &[3.0, 0.1], &half(&v, 2), &mut numbers));
    let found = compared(&first, &mixed);
    near(found.output_overlap, 1.0);
    near(found.input_overlap, 0.0);
}

#[test]
fn a_space_inside_another_overlaps_wholly_and_one_half_shared_by_half() {
    let mut numbers = Numbers(9);
    let (u, v) = (numbers.basis(24, 4), numbers.basis(16, 4));
    let columns = |matrix: &DMatrix<f64>, start, count| matrix.columns(start, count).into_owned();
    let wide = adapter(pair_with(&u, &[1.0; 4], &v, &mut numbers));
    let inside = adapter(pair_with(&columns(&u, 1, 2), &[1.0; 2], &columns(&v, 1, 2), &mut numbers));
    near(compared(&wide, &inside).output_overlap, 1.0);
    assert_eq!(compared(&wide, &inside).ranks, (4, 2));
    let shifted = adapter(pair_with(&columns(&u, 2, 2), &[1.0; 2], &columns(&v, 2, 2), &mut numbers));
    near(compared(&inside, &shifted).input_overlap, 0.5);
}

#[test]
fn the_distance_is_that_of_the_full_updates() {
    let mut numbers = Numbers(11);
    let mut random = |rank: usize| {
        let mut values = |rows, columns| numbers.matrix(rows, columns).iter().map(|value| *value as f32).collect();
        adapter(LoraPair { a: values(7, rank), b: values(10, rank), rank, in_features: 7, out_features: 10 })
    };
    let (first, second) = (random(3), random(5));
    let (one, two) = (full(&first, PATH), full(&second, PATH));
    near(compared(&first, &second).distance, (&one - two).norm() / one.norm());
}

#[test]
fn an_update_of_zero_has_no_space_to_compare() {
    let mut zero = pair(2, 6, 4);
    zero.b.fill(0.0);
    let (zero, some) = (adapter(zero), adapter(pair(2, 6, 4)));
    let found = compared(&zero, &some);
    assert_eq!((found.output_overlap, found.input_overlap, found.distance), (None, None, None));
    assert_eq!(zero.compare(&some).expect("comparable").means(), [None, None, None]);
    near(compared(&some, &zero).distance, 1.0);
}

#[test]
fn layers_of_one_alone_are_named_and_layers_of_other_sizes_refused() {
    let both = BTreeMap::from([(PATH.to_owned(), pair(2, 6, 4)), (OTHER.to_owned(), pair(2, 6, 4))]);
    let both = Adapter::new(config(2), both).expect("sound");
    let first = adapter(pair(2, 6, 4));
    let found = first.compare(&both).expect("comparable");
    assert_eq!((found.only_in_first.len(), found.only_in_second.as_slice()), (0, &[OTHER.to_owned()][..]));
    let error = first.compare(&adapter(pair(2, 5, 4))).expect_err("sizes").to_string();
    assert!(error.contains(&format!("{PATH} is 4x6 in the one and 4x5 in the other")), "{error}");
    let apart = Adapter::new(config(2), one(OTHER, pair(2, 6, 4))).expect("sound");
    let error = first.compare(&apart).expect_err("nothing in common").to_string();
    assert!(error.contains("no layer with a low-rank update in common"), "{error}");
}
