use tailor_pb::common::{PredictedRow, PredictionFilter};
use tailor_pb::dataset::{
    DeleteDatasetRequest, RevealPredictionsRequest, SubmitPredictionsRequest, SubmitPredictionsResponse,
};
use tokio_stream::StreamExt as _;
use tonic::{Code, Status};

use crate::support::{NAME, Service, expect_status};

const JOB: &str = "01m89pt81sh1trx7h1zrarn26e";

/// Row, base's answer, adapter's answer.
type Lines<'a> = &'a [(u32, &'a str, &'a str)];

async fn blob(service: &Service, lines: Lines<'_>) -> String {
    let line = |(row, base, adapter): &(u32, &str, &str)| {
        serde_json::json!({ "row": row, "base": base, "adapter": adapter }).to_string() + "\n"
    };
    service.store.put_blob(lines.iter().map(line).collect::<String>()).await.expect("stored").to_string()
}

async fn submit(service: &Service, fence: u64, lines: Lines<'_>) -> Result<SubmitPredictionsResponse, Status> {
    let request = SubmitPredictionsRequest {
        name: NAME.into(),
        version: 0,
        job_id: JOB.into(),
        fence,
        predictions_digest: blob(service, lines).await,
    };
    Ok(service.client.clone().submit_predictions(request).await?.into_inner())
}

async fn reveal(service: &Service, fence: u64, filter: PredictionFilter) -> Result<Vec<PredictedRow>, Status> {
    let request = RevealPredictionsRequest { job_id: JOB.into(), fence, filter: Some(filter) };
    service.client.clone().reveal_predictions(request).await?.into_inner().collect().await
}

#[tokio::test]
async fn targets_are_shown_only_for_rows_that_were_answered_first() {
    let service = Service::with_dataset().await;
    expect_status(reveal(&service, 1, PredictionFilter::default()).await, Code::NotFound, &["attempt 1", JOB]);
    submit(&service, 1, &[(0, "?", "?"), (2, "?", "!")]).await.expect("taken");
    let shown = reveal(&service, 1, PredictionFilter::default()).await.expect("shown");
    assert_eq!(shown.iter().map(|row| row.row).collect::<Vec<_>>(), [0, 2], "row 1 and 3 were not answered");
    assert!(shown.iter().all(|row| row.target.starts_with("Right-1-") && row.input.starts_with("wrong 1 ")));
    expect_status(reveal(&service, 2, PredictionFilter::default()).await, Code::NotFound, &["attempt 2"]);
}

#[tokio::test]
async fn what_was_handed_in_cannot_be_changed_once_targets_are_known() {
    let service = Service::with_dataset().await;
    let first = submit(&service, 1, &[(0, "?", "?")]).await.expect("taken");
    let target = reveal(&service, 1, PredictionFilter::default()).await.expect("shown").remove(0).target;
    let better = submit(&service, 1, &[(0, "?", &target)]).await;
    expect_status(better, Code::AlreadyExists, &["attempt 1", JOB, "other predictions"]);
    assert_eq!(submit(&service, 1, &[(0, "?", "?")]).await.expect("the same again"), first);
}

#[tokio::test]
async fn base_and_adapter_are_scored_side_by_side_and_can_be_told_apart_row_by_row() {
    let service = Service::with_dataset().await;
    submit(&service, 1, &[(0, "", ""), (1, "", ""), (2, "", ""), (3, "", "")]).await.expect("taken");
    let targets: Vec<String> = reveal(&service, 1, PredictionFilter::default())
        .await
        .expect("shown")
        .into_iter()
        .map(|row| row.target)
        .collect();
    let right = |row: usize| targets[row].as_str();
    let answers = [(0, "?", right(0)), (1, right(1), right(1)), (2, "?", "?"), (3, "?", "!")];
    let metrics = submit(&service, 2, &answers).await.expect("taken").metrics;
    let figures = ["rows", "exact_match", "base_exact_match", "exact_match_difference"].map(|name| metrics[name]);
    assert_eq!(figures, [4.0, 0.5, 0.25, 0.25]);
    for name in ["exact_match", "base_gleu", "chrf", "edit_distance_difference"] {
        let [value, low, high] = ["", "_low", "_high"].map(|end| metrics[&format!("{name}{end}")]);
        assert!(low <= value && value <= high && low < high, "{name}: {low} {value} {high}");
    }

    let rows = async |wrong, changed, limit| {
        let shown = reveal(&service, 2, PredictionFilter { wrong, changed, limit }).await.expect("shown");
        shown.into_iter().map(|row| row.row).collect::<Vec<_>>()
    };
    assert_eq!(rows(false, false, 0).await, [0, 1, 2, 3]);
    assert_eq!(rows(true, false, 0).await, [2, 3]);
    assert_eq!(rows(false, true, 0).await, [0, 3]);
    assert_eq!(rows(true, true, 0).await, [3]);
    assert_eq!(rows(false, false, 2).await, [0, 1]);
    let shown = reveal(&service, 2, PredictionFilter::default()).await.expect("shown");
    let (base, adapter) = (shown[0].base.clone().expect("base"), shown[0].adapter.clone().expect("adapter"));
    assert_eq!((base.exact, base.edit_distance, base.text.as_str()), (false, right(0).len() as u64, "?"));
    assert_eq!((adapter.exact, adapter.edit_distance, adapter.text.as_str()), (true, 0, right(0)));
}

#[tokio::test]
async fn a_blob_that_is_missing_or_holds_something_else_is_refused_and_leaves_nothing() {
    let service = Service::with_dataset().await;
    let twice = submit(&service, 1, &[(1, "a", "b"), (1, "a", "b")]).await;
    expect_status(twice, Code::InvalidArgument, &["predictions line 2: 1 is predicted twice"]);
    let outside = submit(&service, 1, &[(4, "a", "b")]).await;
    expect_status(outside, Code::InvalidArgument, &["line 1: 4 is not in the validation split; its rows are 0 to 3"]);
    let mut request = SubmitPredictionsRequest {
        name: NAME.into(),
        version: 0,
        job_id: JOB.into(),
        fence: 1,
        predictions_digest: format!("sha256:{}", "0".repeat(64)),
    };
    expect_status(service.client.clone().submit_predictions(request.clone()).await, Code::NotFound, &["0000"]);
    request.fence = 0;
    expect_status(service.client.clone().submit_predictions(request).await, Code::InvalidArgument, &["fence"]);
    expect_status(
        reveal(&service, 1, PredictionFilter::default()).await,
        Code::NotFound,
        &["handed in no predictions"],
    );
}

#[tokio::test]
async fn with_the_dataset_go_its_targets() {
    let service = Service::with_dataset().await;
    submit(&service, 1, &[(0, "?", "?")]).await.expect("taken");
    service.client.clone().delete_dataset(DeleteDatasetRequest { name: NAME.into() }).await.expect("deleted");
    expect_status(reveal(&service, 1, PredictionFilter::default()).await, Code::NotFound, &[NAME]);
}
