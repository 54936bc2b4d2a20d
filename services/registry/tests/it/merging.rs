//! A version in its base's weights, over the wire.

use std::time::Duration;

use tailor_domain::Digest;
use tailor_pb::registry::merge_response::What;
use tailor_pb::registry::{GetBaseRequest, MergeProgress, MergeRequest, Merged};
use tailor_quant::Checkpoint;
use tailor_testkit::TempDir;
use tonic::{Code, Status};

use crate::support::{BASE, QUANTISED, Service, adapter_on, expect_status, pair, sound_adapter};

fn request(reference: &str, name: &str) -> MergeRequest {
    MergeRequest { reference: reference.into(), name: name.into(), ..Default::default() }
}

/// How far it said it was, and the base.
async fn merge(service: &Service, request: MergeRequest) -> Result<(Vec<MergeProgress>, Merged), Status> {
    let mut messages = service.client.clone().merge(request).await?.into_inner();
    let (mut progress, mut merged) = (Vec::new(), None);
    while let Some(message) = messages.message().await? {
        assert!(merged.is_none(), "nothing follows the base");
        match message.what.expect("a message") {
            What::Progress(at) => progress.push(at),
            What::Merged(last) => merged = Some(last),
        }
    }
    Ok((progress, merged.expect("ends with the base")))
}

#[tokio::test]
async fn a_merged_version_is_a_base_whose_weights_are_the_sum() {
    let service = Service::with_versions("grammar", 2).await;
    let (progress, merged) = merge(&service, request("grammar@1", "corrected")).await.expect("merged");
    let stages: Vec<i32> = progress.iter().map(|at| at.stage).collect();
    assert!(stages.is_sorted() && stages.contains(&1) && stages.contains(&5), "{stages:?}");
    assert!(progress.iter().all(|at| at.done <= at.of), "{progress:?}");
    assert_eq!((merged.created, merged.tensors_changed, merged.update_survives), (true, 1, 1.0));
    assert!(merged.update_rms > 0.0 && merged.error_rms == 0.0);

    let base = merged.base.expect("a base");
    assert_eq!((base.name.as_str(), base.quant.as_str(), base.dtype.as_str()), ("corrected", "none", "f32"));
    let from = base.merged_from.clone().expect("what it was made of");
    assert_eq!((from.adapter.as_str(), from.version, from.base.as_str()), ("grammar", 1, BASE));
    let read = service.client.clone().get_base(GetBaseRequest { name: "corrected".into() }).await.expect("registered");
    assert_eq!(read.into_inner(), base);

    // The base's own weight is zero, so that the update alone is there.
    let folder = TempDir::new();
    for file in &base.files {
        let digest = Digest::try_new(file.digest.clone()).expect("a digest");
        service.store.fetch_blob_to(&digest, &folder.join(&file.name)).await.expect("stored");
    }
    let checkpoint = Checkpoint::open(&folder.join("")).expect("a folder");
    let stored = checkpoint.tensor(&format!("{QUANTISED}.weight")).expect("there");
    let values: Vec<f32> = stored.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let adapter = sound_adapter(1);
    let (lora, scale) = (&adapter.pairs()[QUANTISED], 8.0 / 4.0);
    for (at, value) in values.iter().enumerate() {
        let (out, input) = (at / lora.in_features, at % lora.in_features);
        let product = |r: usize| lora.b[out * lora.rank + r] * lora.a[r * lora.in_features + input];
        let expected: f32 = (0..lora.rank).map(product).sum::<f32>() * scale;
        assert!((value - expected).abs() <= expected.abs() * 1e-6, "{out}, {input}: {value} and not {expected}");
    }
    assert_eq!(service.spooled(), 0, "nothing is left behind");
}

#[tokio::test]
async fn the_same_once_more_is_answered_and_anything_else_refused() {
    let service = Service::with_versions("grammar", 2).await;
    let (_, first) = merge(&service, request("grammar@1", "corrected")).await.expect("merged");
    let (progress, again) = merge(&service, request("grammar@1", "corrected")).await.expect("known");
    assert_eq!((again.created, again.base, progress.len()), (false, first.base, 0));
    for other in [
        request("grammar@2", "corrected"),
        request("grammar@1", BASE),
        MergeRequest { quant: "nf4".into(), ..request("grammar@1", "corrected") },
        MergeRequest { dtype: "bf16".into(), ..request("grammar@1", "corrected") },
    ] {
        expect_status(merge(&service, other).await, Code::AlreadyExists, &["exists already", "another name"]);
    }
}

#[tokio::test]
async fn of_two_at_once_one_makes_the_base() {
    let service = Service::with_versions("grammar", 2).await;
    let ask = || merge(&service, request("grammar@1", "corrected"));
    let (one, two) = tokio::join!(ask(), ask());
    let (one, two) = (one.expect("merged").1, two.expect("merged").1);
    assert_eq!(one.base, two.base);
    assert!(one.created != two.created, "{} and {}", one.created, two.created);
}

#[tokio::test]
async fn a_sum_that_no_blob_may_be_is_refused_before_anything_is_fetched() {
    let large = Service::with_versions("grammar", 1).await;
    // 128 parameters in f32.
    let service = Service::with(large.store.clone(), |settings| settings.registry.max_blob_bytes = 511).await;
    let answer = merge(&service, request("grammar", "corrected")).await;
    expect_status(answer, Code::ResourceExhausted, &["takes 512 bytes", "511 (registry.max_blob_bytes)", "4 bits"]);
    assert_eq!(service.spooled(), 0);
}

#[tokio::test]
async fn in_4_bits_it_says_what_of_the_update_is_left() {
    let service = Service::with_versions("grammar", 1).await;
    let coded = MergeRequest { quant: "nf4".into(), ..request("grammar", "coded") };
    let (progress, merged) = merge(&service, coded).await.expect("merged");
    assert!(progress.iter().any(|at| at.stage == 3), "{progress:?}");
    assert_eq!(merged.base.expect("a base").quant, "nf4");
    assert!(merged.error_rms > 0.0 && merged.update_survives < 1.0, "{}", merged.update_survives);
}

#[tokio::test]
async fn what_cannot_be_merged_is_told_by_its_reason() {
    let service = Service::with_versions("grammar", 1).await;
    let refused = async |request, code, says: &[&str]| expect_status(merge(&service, request).await, code, says);
    refused(request("absent", "x"), Code::NotFound, &["absent"]).await;
    refused(request("grammar@7", "x"), Code::NotFound, &["no version 7"]).await;
    refused(request("grammar", "Not a name!"), Code::InvalidArgument, &["base"]).await;
    let f16 = MergeRequest { dtype: "f16".into(), ..request("grammar", "x") };
    refused(f16, Code::InvalidArgument, &["dtype", "bf16"]).await;
    let q7 = MergeRequest { quant: "q7".into(), ..request("grammar", "x") };
    refused(q7, Code::InvalidArgument, &["q7", "nf4"]).await;
    // A sum that the type cannot hold.
    let mut large = pair(4, 16, 8, 1);
    large.a.fill(3e38);
    large.b.fill(3e38);
    let sent = service.request_for("large", &adapter_on(QUANTISED, large)).await;
    service.publish(sent).await.expect("published");
    refused(request("large", "x"), Code::InvalidArgument, &["large@1 was not merged", QUANTISED]).await;
    assert_eq!(service.spooled(), 0, "nothing is left behind");
}

#[tokio::test]
async fn what_a_process_left_behind_when_it_died_is_cleared_away() {
    let service = Service::with_versions("grammar", 1).await;
    let folder = |name: &str| {
        let folder = service.spool().join(name);
        std::fs::create_dir_all(folder.join("merged")).expect("made");
        let held = std::fs::File::create(folder.join("held")).expect("made");
        std::fs::write(folder.join("merged/model.safetensors"), b"half").expect("written");
        (folder, held)
    };
    let (left, _) = folder("merge-left");
    let (others, held) = folder("merge-others");
    held.lock().expect("another process is at work there");
    merge(&service, request("grammar", "corrected")).await.expect("merged");
    assert!(!left.exists() && others.exists());
    assert_eq!(service.spooled(), 1, "the other's alone");
}

#[tokio::test]
async fn a_caller_that_leaves_has_no_base() {
    let service = Service::with_versions("grammar", 1).await;
    let mut messages = service.client.clone().merge(request("grammar", "left")).await.expect("begun").into_inner();
    messages.message().await.expect("a message");
    drop(messages);
    // Whether it was in time or not, the next one has the whole base, and nothing is left behind.
    let (_, merged) = merge(&service, request("grammar", "left")).await.expect("merged");
    assert_eq!(merged.base.expect("a base").name, "left");
    for _ in 0..100 {
        if service.spooled() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{} are left behind", service.spooled());
}
