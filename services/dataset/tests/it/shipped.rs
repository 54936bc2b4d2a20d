//! The shipped file, as the demo uploads it: what is dropped is dropped, and validation shares no sentence with training.

use std::collections::HashSet;
use std::path::Path;

use tailor_domain::{DatasetManifest, Digest};
use tailor_pb::dataset::UploadHeader;
use tailor_text::Row;

use crate::support::{NAME, Service, header};

async fn rows(service: &Service, digest: &Digest) -> Vec<Row> {
    let lines = service.blob(digest.as_str()).await;
    let lines = String::from_utf8(lines).expect("text");
    lines.lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
}

/// As people tell sentences apart: without case and spacing.
fn sentences(rows: &[Row]) -> HashSet<String> {
    let plain = |text: &str| text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
    rows.iter().flat_map(|row| [plain(&row.content.asked()), plain(row.content.answer())]).collect()
}

#[tokio::test]
async fn the_shipped_file_gives_a_clean_balanced_split_that_shares_no_sentence() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/grammar.csv");
    let file = std::fs::read(&path).expect("the shipped file");
    let service = Service::start().await;
    let demo = UploadHeader { label_column: "language".into(), max_label_ratio: 1.6, ..header(NAME) };
    service.upload(demo, &file).await.expect("uploaded");
    let report = service.report().await;
    for reason in ["malformed", "field_count", "empty_target", "duplicate", "conflict", "balanced"] {
        assert!(report.dropped.get(reason).is_some_and(|count| *count > 0), "{reason}: {:?}", report.dropped);
    }
    let (fewest, most) = (report.labels_after.values().min(), report.labels_after.values().max());
    let ratio = most.zip(fewest).map_or(f64::NAN, |(most, fewest)| *most as f64 / *fewest as f64);
    assert!(ratio <= 1.6, "{:?}", report.labels_after);

    let manifest: DatasetManifest =
        service.store.get_json(&format!("datasets/{NAME}/00000001.json")).await.expect("the manifest");
    let (train, validation) = (rows(&service, &manifest.train).await, rows(&service, &manifest.validation).await);
    assert!(train.len() > 1000 && validation.len() > 100, "{} and {}", train.len(), validation.len());
    let (seen, hidden) = (sentences(&train), sentences(&validation));
    let shared: Vec<_> = hidden.intersection(&seen).collect();
    assert!(shared.is_empty(), "{shared:?}");
}
