use tailor_domain::Family;
use tailor_pb::dataset::{Prediction, ScorePredictionsRequest, ScorePredictionsResponse};
use tailor_text::shard::{ShardLimits, ShardReader};
use tonic::{Code, Status};

use crate::support::{NAME, Service, expect_status};

async fn score(service: &Service, texts: &[(u32, &str)], samples: u32) -> Result<ScorePredictionsResponse, Status> {
    let predictions = texts.iter().map(|(row, text)| Prediction { row: *row, text: (*text).into() }).collect();
    let request = ScorePredictionsRequest { name: NAME.into(), version: 0, predictions, samples };
    Ok(service.client.clone().score_predictions(request).await?.into_inner())
}

#[tokio::test]
async fn predictions_are_compared_with_the_hidden_targets() {
    let service = Service::with_dataset().await;
    let wrong = score(&service, &[(0, "?"), (1, "?"), (2, "?"), (3, "?")], 2).await.expect("scored");
    assert_eq!((wrong.metrics["rows"], wrong.metrics["exact_match"]), (4.0, 0.0));
    assert_eq!(wrong.samples.len(), 2);
    assert!(wrong.samples.iter().all(|sample| sample.target.starts_with("Right-1-") && sample.prediction == "?"));
    let first = wrong.samples[0].target.clone();
    let half = score(&service, &[(0, &first), (1, "?")], 0).await.expect("scored");
    assert_eq!((half.metrics["rows"], half.metrics["exact_match"]), (2.0, 0.5));
    assert!(half.metrics["edit_distance"] > 0.0 && half.metrics["gleu"] > 0.0 && half.metrics["chrf"] > 0.0);
    assert!(half.samples.is_empty());
    let none = score(&service, &[], 20).await.expect("nothing to compare");
    assert_eq!(none.metrics.get("rows"), Some(&0.0));
}

#[tokio::test]
async fn repeated_calls_reveal_no_more_than_the_first_rows() {
    let service = Service::with_dataset().await;
    let later = score(&service, &[(2, "?"), (3, "?")], 2).await.expect("scored");
    assert!(later.samples.is_empty(), "rows 2 and 3 are not among the first two");
    let outcome = score(&service, &[(0, "?")], 21).await;
    expect_status(outcome, Code::InvalidArgument, &["samples", "limit of 20"]);
}

#[tokio::test]
async fn a_row_that_the_split_lacks_or_given_twice_is_refused() {
    let service = Service::with_dataset().await;
    let says = ["predictions[1].row: 4 is not in the validation split; its rows are 0 to 3"];
    expect_status(score(&service, &[(0, "a"), (4, "b")], 0).await, Code::InvalidArgument, &says);
    let twice = score(&service, &[(1, "a"), (1, "b")], 0).await;
    expect_status(twice, Code::InvalidArgument, &["predictions[1].row: 1 is predicted twice"]);
    let request = ScorePredictionsRequest { name: "spelling".into(), ..Default::default() };
    expect_status(service.client.clone().score_predictions(request).await, Code::NotFound, &["spelling"]);
}

#[tokio::test]
async fn the_rows_of_the_prompt_shard_are_those_that_are_scored() {
    let service = Service::with_dataset().await;
    service.add_base("t5", Family::EncoderDecoder, None).await;
    let shards = service.shards("t5", 64).await.expect("prepared");
    let bytes = service.blob(&shards.validation_digest).await;
    let rows: Vec<u32> = ShardReader::open(bytes.as_slice(), ShardLimits::default())
        .expect("a shard")
        .map(|record| record.expect("a record").row)
        .collect();
    let answers: Vec<(u32, &str)> = rows.iter().map(|row| (*row, "?")).collect();
    let scored = score(&service, &answers, 20).await.expect("scored");
    assert_eq!(scored.metrics["rows"], rows.len() as f64);
}
