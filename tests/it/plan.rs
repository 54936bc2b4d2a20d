//! `tailor plan`, and the refusal of what cannot fit.

use serde_json::Value;

use crate::support::{Family, Training, Up, eventually};

async fn planned(up: &Up, arguments: &[&str]) -> Value {
    let base = Family::Llama.base();
    let words = [&["plan", "--base", base, "--dataset", "rows", "--json"], arguments].concat();
    // The worker says what it has a moment after the services answer.
    let cli = up.cli();
    eventually("a trainer that has said what it has", async || {
        let plan = cli.json(&words);
        (!plan["fits_a_trainer"].is_null()).then_some(plan)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_memory_time_money_and_the_dearer_ways() {
    let up = Up::with(&[("TAILOR__TRAINER__CALIBRATE", "true")]).await;
    up.add_base_and_rows(Family::Llama).await;
    let plan = planned(&up, &["--price", "3.6", "--card", "mine=96GB", "--epochs", "2"]).await;
    let fits = plan["fits"].as_array().expect("devices");
    let own = &fits[0];
    assert_eq!((&own["own"], &own["fits"]), (&Value::Bool(true), &Value::Bool(true)), "{plan}");
    let parts = own["parts"].as_object().expect("parts");
    let sum: u64 = parts.values().map(|bytes| bytes.as_u64().expect("bytes")).sum();
    assert_eq!(own["needed_bytes"].as_u64(), Some(sum));
    let (seconds, cost) = (own["seconds"].as_f64().expect("measured"), own["cost"].as_f64().expect("a price"));
    assert!(seconds > 0.0 && (cost - seconds / 1000.0).abs() < 1e-9, "{own}");
    assert!(
        fits.iter().any(|fit| fit["device"] == "mine" && fit["seconds"].is_null()),
        "no time without a measurement"
    );
    let ways = plan["ways"].as_array().expect("ways");
    let needed = |at: usize| ways[at]["needed_bytes"].as_u64().expect("bytes");
    // The job computes in f32 and the ways beside it in bf16, which counts for more than the weights of a base as little as this.
    assert!(needed(1) < needed(2), "{ways:?}");
    assert!(up.cli().json(&["job", "list", "--json"])["jobs"].as_array().is_none_or(Vec::is_empty), "no job was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fits_on_no_trainer_is_refused_with_the_settings_that_would() {
    let roomy = Up::start().await;
    roomy.add_base_and_rows(Family::Llama).await;
    let needed = |plan: &Value| plan["fits"][0]["needed_bytes"].as_u64().expect("bytes");
    let whole = needed(&planned(&roomy, &["--micro-batch", "8", "--batch", "8", "--rank", "4"]).await);
    let single = needed(&planned(&roomy, &["--micro-batch", "1", "--batch", "8", "--rank", "4"]).await);
    assert!(single < whole);
    drop(roomy);

    let limit = ((whole + single) / 2).to_string();
    let up = Up::with(&[("TAILOR__TRAINER__MEMORY_BYTES", &limit)]).await;
    up.add_base_and_rows(Family::Llama).await;
    let plan = planned(&up, &["--micro-batch", "8", "--batch", "8", "--rank", "4"]).await;
    assert_eq!(plan["fits_a_trainer"], false);
    let change = &plan["nearest"][0]["settings"]["train.micro_batch_rows"];
    let rows: u32 = change.as_str().expect("a change").parse().expect("a number");

    let job = Training { base: Family::Llama.base(), dataset: "rows", adapter: "a", steps: 2, key: "" };
    let refused = up.addresses.try_create(&job).await.expect_err("does not fit");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    for word in ["GiB", &format!("train.micro_batch_rows to {rows}")] {
        assert!(refused.message().contains(word), "{}", refused.message());
    }
    let mut request = job.request();
    request.training.as_mut().expect("settings").micro_batch_rows = Some(rows);
    let job = up.addresses.trainer().create_job(request).await.expect("what was proposed is accepted").into_inner();
    assert_eq!(up.addresses.succeeded(&job.id).await.state, "SUCCEEDED");
}
