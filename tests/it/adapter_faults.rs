//! A bad adapter never hurts a neighbour: what lies in the store is broken under load, and every other stream says what it
//! says alone.

use std::path::PathBuf;

use tailor_pb::inference::GenerateRequest;
use tailor_pb::registry::ResolveRequest;
use tonic::Code;

use crate::support::{Family, Up};

fn request(adapter: &str, input: &str) -> GenerateRequest {
    let base = if adapter.is_empty() { Family::Llama.base() } else { "" };
    GenerateRequest {
        base: base.into(),
        adapter: adapter.into(),
        input: input.into(),
        max_new_tokens: 40,
        ..Default::default()
    }
}

async fn answer(up: &Up, request: GenerateRequest) -> String {
    up.addresses.gateway().generate(request).await.expect("an answer").into_inner().text
}

/// Streams of the base and of a healthy adapter, with what each says alone.
async fn neighbours(up: &Up) -> Vec<(GenerateRequest, String)> {
    let mut neighbours = Vec::new();
    for n in 0..4 {
        for adapter in ["", "healthy"] {
            let request = request(adapter, &format!("anna sees {n} boats"));
            neighbours.push((request.clone(), answer(up, request).await));
        }
    }
    neighbours
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_cut_off_fails_its_own_adapter_alone_until_it_is_whole_again() {
    let up = Up::start().await;
    up.add_base_and_rows(Family::Llama).await;
    for (adapter, rank) in [("healthy", "2"), ("cut", "4")] {
        let job = ["train", "--base", Family::Llama.base(), "--dataset", "rows", "--adapter", adapter, "--rank", rank];
        up.cli().json(&[&job[..], &["--max-steps", "2", "--max-new-tokens", "2"]].concat());
    }
    let neighbours = neighbours(&up).await;
    let resolved = up.addresses.registry().resolve(ResolveRequest { reference: "cut".into() }).await;
    let digest = resolved.expect("resolved").into_inner().weights_digest;
    let hex = digest.strip_prefix("sha256:").expect("a digest");
    let blob: PathBuf = up.state.join("store/blobs/sha256").join(&hex[..2]).join(hex);
    let whole = std::fs::read(&blob).expect("the adapter's weights");
    std::fs::write(&blob, &whole[..whole.len() / 2]).expect("cut off");

    let beside = neighbours.iter().map(|(request, _)| answer(&up, request.clone()));
    let faults = async {
        for _ in 0..10 {
            let status =
                up.addresses.gateway().generate(request("cut", "x")).await.expect_err("never the base's answer");
            assert_ne!(status.code(), Code::Unknown, "{status}");
        }
    };
    let (said, ()) = tokio::join!(futures::future::join_all(beside), faults);
    for (said, (request, alone)) in said.iter().zip(&neighbours) {
        assert_eq!(said, alone, "{request:?}");
    }
    std::fs::write(&blob, &whole).expect("whole again");
    // A fault of the store is not held against the adapter.
    answer(&up, request("cut", "x")).await;
}
