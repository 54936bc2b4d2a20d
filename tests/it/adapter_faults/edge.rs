//! The same faults behind an edge: they happen in engines that are processes of their own, and callers hear of them at the edge.

use super::{cut_off, loaded_at_once, pushed_out, quarantined, replaced};
use crate::support::faults::Served::ByEngines;

#[tokio::test(flavor = "multi_thread")]
async fn behind_an_edge_a_blob_that_is_cut_off_fails_its_own_adapter_alone() {
    cut_off(ByEngines).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_an_edge_what_is_no_good_adapter_is_quarantined_and_says_why() {
    quarantined(ByEngines).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_an_edge_adapters_that_push_each_other_out_answer_as_if_alone() {
    pushed_out(ByEngines).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_an_edge_an_alias_that_moves_in_the_middle_of_streams_mixes_no_two_versions() {
    replaced(ByEngines).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_an_edge_many_loads_at_once_load_each_adapter_once() {
    // Fewer than one gateway is given: two engines share the cores.
    loaded_at_once(ByEngines, 200).await;
}
