//! What the ranks of versions hold, and versions of fewer ranks, over the wire.

use tailor_blobs::Store;
use tailor_domain::Digest;
use tailor_pb::registry::compress_request::Keep;
use tailor_pb::registry::{
    CompareRequest, Comparison, CompressRequest, CompressResponse, GetSpectrumRequest, Spectrum,
};
use tailor_peft::{Adapter, Limits};
use tonic::{Code, Status};

use crate::support::{QUANTISED, Service, expect_status, sound_adapter};
use crate::world::KEY;

async fn spectrum(service: &Service, reference: &str) -> Result<Spectrum, Status> {
    let request = GetSpectrumRequest { reference: reference.into() };
    Ok(service.client.clone().get_spectrum(request).await?.into_inner())
}

async fn compare(service: &Service, first: &str, second: &str) -> Result<Comparison, Status> {
    let request = CompareRequest { first: first.into(), second: second.into() };
    Ok(service.client.clone().compare(request).await?.into_inner())
}

async fn compress(service: &Service, reference: &str, keep: Option<Keep>) -> Result<CompressResponse, Status> {
    let request = CompressRequest { reference: reference.into(), keep, name: String::new(), who: "ops".into() };
    Ok(service.client.clone().compress(request).await?.into_inner())
}

#[tokio::test]
async fn a_spectrum_is_that_of_the_stored_weights() {
    let service = Service::with_versions("grammar", 2).await;
    let found = spectrum(&service, "grammar@1").await.expect("a spectrum");
    assert_eq!((found.adapter.as_str(), found.version, found.notes.len()), ("grammar", 1, 0));
    let expected = sound_adapter(1).spectrum().expect("a spectrum");
    let (layer, expected) = (&found.layers[0], &expected.layers[0]);
    assert_eq!((layer.path.as_str(), layer.rank, found.layers.len()), (QUANTISED, 4, 1));
    assert_eq!((layer.out_features, layer.in_features), (8, 16));
    assert_eq!(layer.singular_values, expected.singular_values);
    assert_eq!(layer.effective_rank, expected.effective_rank());
    assert_eq!(spectrum(&service, "grammar").await.expect("the latest").version, 2);
    expect_status(spectrum(&service, "grammar@9").await, Code::NotFound, &["no version 9"]);
    expect_status(spectrum(&service, "Grammar!").await, Code::InvalidArgument, &["adapter"]);
}

#[tokio::test]
async fn two_versions_are_compared_layer_by_layer() {
    let service = Service::with_versions("grammar", 2).await;
    let same = compare(&service, "grammar@1", "grammar@1").await.expect("compared");
    let near = |value: Option<f64>, wanted: f64| value.is_some_and(|value| (value - wanted).abs() < 1e-9);
    assert!(near(same.mean_output_overlap, 1.0) && near(same.mean_distance, 0.0), "{same:?}");
    let other = compare(&service, "grammar@1", "grammar@2").await.expect("compared");
    let layer = &other.layers[0];
    assert_eq!((layer.path.as_str(), other.layers.len()), (QUANTISED, 1));
    assert!(layer.distance.is_some_and(|distance| distance > 0.01), "{layer:?}");
    assert!(layer.first_rank <= 4 && layer.output_overlap_by_chance > 0.0, "{layer:?}");
    assert!(other.only_in_first.is_empty() && other.notes.is_empty());
    expect_status(compare(&service, "grammar", "absent").await, Code::NotFound, &["absent"]);
}

#[tokio::test]
async fn a_version_of_fewer_ranks_is_published_once() {
    let service = Service::with_versions("grammar", 2).await;
    let answer = compress(&service, "grammar@1", Some(Keep::Rank(1))).await.expect("compressed");
    let version = answer.version.expect("a version");
    assert_eq!((answer.created, version.version, version.adapter.as_str()), (true, 3, "grammar"));
    assert_eq!((version.published_by.as_str(), version.prompt_template.contains("{input}")), ("ops", true));
    assert!(version.notes.contains("compressed from grammar@1: rank 4 → 1"), "{}", version.notes);
    assert!(answer.energy_lost > 0.0 && answer.energy_lost < 0.1, "{}", answer.energy_lost);
    assert_eq!(version.metrics["energy_lost"], answer.energy_lost);
    assert_eq!((answer.layers[0].rank_before, answer.layers[0].rank), (4, 1));

    // What is stored is an adapter, and the nearest of that rank.
    let blob = async |digest: &str| service.store.get_blob(&Digest::try_new(digest).expect("a digest")).await;
    let (config, weights) = (blob(&version.config_digest).await, blob(&version.weights_digest).await);
    let adapter = Adapter::from_bytes(&config.expect("stored"), &weights.expect("stored"), &Limits::default());
    let adapter = adapter.expect("sound");
    assert_eq!(adapter.max_rank(), 1);
    let distance = compare(&service, "grammar@1", "grammar@3").await.expect("compared").mean_distance;
    let distance = distance.expect("a distance");
    assert!((distance * distance - answer.energy_lost).abs() < 1e-6, "{distance}");

    let again = compress(&service, "grammar@1", Some(Keep::Rank(1))).await.expect("the same");
    assert_eq!((again.created, again.version.expect("a version").version), (false, 3));
    let named = CompressRequest {
        reference: "grammar@1".into(),
        keep: Some(Keep::Energy(0.9)),
        name: "grammar-light".into(),
        who: String::new(),
    };
    let other = service.client.clone().compress(named).await.expect("compressed").into_inner();
    let other = other.version.expect("a version");
    assert_eq!((other.adapter.as_str(), other.version), ("grammar-light", 1));
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_and_publishes_nothing() {
    let service = Service::with_versions("grammar", 1).await;
    for (keep, says) in [
        (None, "keep"),
        (Some(Keep::Rank(0)), "rank"),
        (Some(Keep::Rank(4)), "grammar@1"),
        (Some(Keep::Energy(1.5)), "1.5"),
        (Some(Keep::Energy(f64::NAN)), "NaN"),
    ] {
        expect_status(compress(&service, "grammar", keep).await, Code::InvalidArgument, &[says]);
    }
    assert_eq!(spectrum(&service, "grammar").await.expect("the latest").version, 1);
}

#[tokio::test]
async fn what_no_trusted_key_has_signed_is_not_looked_at() {
    let store = Store::memory();
    let unsigned = Service::over(store.clone()).await;
    unsigned.register_base().await;
    unsigned.publish(unsigned.adapter_request("grammar", 1).await).await.expect("published");
    let signing = Service::with(store, |settings| settings.trust.signing_key = Some(KEY.into())).await;
    expect_status(spectrum(&signing, "grammar").await, Code::FailedPrecondition, &["grammar@1", "trust.trusted_keys"]);
    let refused = compress(&signing, "grammar", Some(Keep::Rank(1))).await;
    expect_status(refused, Code::FailedPrecondition, &["trust.trusted_keys"]);
    signing.publish(signing.adapter_request("grammar", 2).await).await.expect("published");
    let answer = compress(&signing, "grammar", Some(Keep::Rank(1))).await.expect("compressed");
    assert!(answer.version.expect("a version").attestation.is_some(), "it is signed in its turn");
}
