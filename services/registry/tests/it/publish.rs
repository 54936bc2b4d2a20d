use std::collections::{BTreeMap, HashMap};

use tailor_blobs::Store;
use tailor_domain::{Digest, JobId};
use tailor_pb::common::Page;
use tailor_pb::registry::{
    AdapterVersion, GetVersionRequest, ListVersionsRequest, PublishVersionRequest, ResolveRequest,
};
use tailor_peft::{Adapter, AdapterConfig, Dtype, Tensors, WholeTensor};
use tailor_testkit::{Fault, FlakyStore, Op};
use tonic::Code;

use crate::support::{BASE, QUANTISED, Service, TOKENIZER_CONFIG, adapter_on, expect_status, job, pair};

fn from_job(request: PublishVersionRequest, job: &JobId, fence: u64) -> PublishVersionRequest {
    PublishVersionRequest { job_id: job.to_string(), fence, ..request }
}

async fn version(service: &Service, version: u64) -> Result<AdapterVersion, tonic::Status> {
    let request = GetVersionRequest { adapter: "grammar".into(), version };
    Ok(service.client.clone().get_version(request).await?.into_inner())
}

async fn all_versions(service: &Service) -> Vec<AdapterVersion> {
    let (mut versions, mut token) = (Vec::new(), String::new());
    loop {
        let page = Some(Page { size: 5, token });
        let request = ListVersionsRequest { adapter: "grammar".into(), page, ..Default::default() };
        let answer = service.client.clone().list_versions(request).await.expect("listed").into_inner();
        versions.extend(answer.versions);
        token = answer.next_page_token;
        if token.is_empty() {
            return versions;
        }
    }
}

#[tokio::test]
async fn a_version_carries_its_whole_lineage() {
    let service = Service::start().await;
    service.register_base().await;
    let job = job(1);
    let fence = service.new_attempt(&job).await;
    let mut request = from_job(service.adapter_request("grammar", 1).await, &job, fence);
    request.dataset = "errors@3".into();
    request.metrics = HashMap::from([("exact_match".into(), 0.9)]);
    request.code_commit = "3541e5f".into();
    request.license = "Apache-2.0".into();
    request.tags = vec!["team-a".into(), "nightly".into()];
    request.who = "trainer".into();
    let published = service.publish(request.clone()).await.expect("published");
    assert_eq!(published.version, 1);
    assert_eq!(published.weights_digest, request.weights_digest);
    assert_eq!((published.job_id.as_str(), published.dataset.as_str()), (job.as_str(), "errors@3"));
    assert_eq!(published.metrics, request.metrics);
    assert!(published.tokenizer_digest.starts_with("sha256:") && published.weights_size_bytes > 0);
    assert!(published.base_fingerprint.starts_with("sha256:") && published.config_digest.starts_with("sha256:"));
    assert_eq!(published.chat_template_digest, Digest::of(TOKENIZER_CONFIG).to_string());
    assert_eq!((published.code_commit.as_str(), published.license.as_str()), ("3541e5f", "Apache-2.0"));
    assert_eq!(
        (published.tags.as_slice(), published.published_by.as_str()),
        (&["nightly".into(), "team-a".into()][..], "trainer")
    );
    assert_eq!((published.quant.as_str(), published.fence), ("nf4-single", fence));
    assert_eq!(version(&service, 1).await.expect("there"), published);
}

#[tokio::test]
async fn sixteen_publishers_at_once_make_sixteen_versions_without_gap_or_double() {
    let service = Service::start().await;
    service.register_base().await;
    let mut calls = Vec::new();
    for number in 1..=16 {
        let job = job(number);
        let fence = service.new_attempt(&job).await;
        let request = from_job(service.adapter_request("grammar", number as u32).await, &job, fence);
        // Each publishes three times at once, as a caller that retries too eagerly does.
        for _ in 0..3 {
            let (mut client, request) = (service.client.clone(), request.clone());
            calls.push(async move { client.publish_version(request).await.expect("published").into_inner() });
        }
    }
    let answers = futures::future::join_all(calls).await;
    let mut by_job: HashMap<&str, Vec<u64>> = HashMap::new();
    for answer in &answers {
        by_job.entry(&answer.job_id).or_default().push(answer.version);
    }
    assert!(by_job.values().all(|versions| versions.iter().all(|version| *version == versions[0])), "{by_job:?}");
    let mut numbers: Vec<u64> = by_job.values().map(|versions| versions[0]).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=16).collect::<Vec<_>>());
    let listed: Vec<u64> = all_versions(&service).await.iter().map(|version| version.version).collect();
    assert_eq!(listed, (1..=16).rev().collect::<Vec<_>>());
}

#[tokio::test]
async fn one_job_publishes_once_whatever_it_sends_the_second_time() {
    let service = Service::start().await;
    service.register_base().await;
    let job = job(1);
    let fence = service.new_attempt(&job).await;
    let first =
        service.publish(from_job(service.adapter_request("grammar", 1).await, &job, fence)).await.expect("first");
    service.publish(service.adapter_request("grammar", 7).await).await.expect("an import in between");
    let newer = service.new_attempt(&job).await;
    let second = from_job(service.adapter_request("grammar", 2).await, &job, newer);
    assert_eq!(service.publish(second).await.expect("second"), first);
    assert_eq!(all_versions(&service).await.len(), 2);
}

#[tokio::test]
async fn a_zombie_cannot_publish() {
    let service = Service::start().await;
    service.register_base().await;
    let job = job(1);
    let old = service.new_attempt(&job).await;
    let newer = service.new_attempt(&job).await;
    let request = service.adapter_request("grammar", 1).await;
    let outcome = service.publish(from_job(request.clone(), &job, old)).await;
    expect_status(outcome, Code::Aborted, &["attempt 1 of job", "attempt 2 took over"]);
    let outcome = service.publish(from_job(request.clone(), &job, newer + 1)).await;
    expect_status(outcome, Code::FailedPrecondition, &["attempt 3", "not on record"]);
    let outcome = service.publish(from_job(request.clone(), &job, 0)).await;
    expect_status(outcome, Code::Aborted, &["attempt 0"]);
    expect_status(version(&service, 1).await, Code::NotFound, &["adapter grammar does not exist"]);
    assert_eq!(service.publish(from_job(request, &job, newer)).await.expect("the newest may").version, 1);
}

#[tokio::test]
async fn a_publish_whose_answer_was_lost_is_answered_again_even_after_a_newer_attempt_began() {
    let service = Service::start().await;
    service.register_base().await;
    let job = job(1);
    let fence = service.new_attempt(&job).await;
    let request = from_job(service.adapter_request("grammar", 1).await, &job, fence);
    let first = service.publish(request.clone()).await.expect("first");
    let newer = service.new_attempt(&job).await;
    assert_eq!(service.publish(request.clone()).await.expect("asked again"), first);
    let other = from_job(service.adapter_request("grammar", 2).await, &job, newer);
    assert_eq!(service.publish(other).await.expect("the newer attempt"), first);
    assert_eq!(all_versions(&service).await.len(), 1);
}

/// Every write of a publish fails in turn, in each way; the retry must end with exactly one version of the job.
#[tokio::test]
async fn a_publish_that_breaks_anywhere_is_taken_up_by_the_next() {
    for fault in [Fault::Away, Fault::AnswerLost] {
        for failing_create in 1..=2 {
            let (backend, faults) = FlakyStore::memory();
            let service = Service::over(Store::over(backend, "memory://flaky")).await;
            service.register_base().await;
            let (first, broken) = (job(1), job(2));
            let fence = service.new_attempt(&first).await;
            let request = service.adapter_request("grammar", 1).await;
            service.publish(from_job(request, &first, fence)).await.expect("version 1");
            let fence = service.new_attempt(&broken).await;
            let request = from_job(service.adapter_request("grammar", 2).await, &broken, fence);

            faults.fail_nth(Op::Create, failing_create, fault);
            let outcome = service.publish(request.clone()).await;
            expect_status(outcome, Code::Unavailable, &["does not answer"]);
            let version = service.publish(request).await.expect("the retry").version;
            assert_eq!(version, 2, "create {failing_create} failed by {fault:?}");
            assert_eq!(all_versions(&service).await.len(), 2, "create {failing_create} failed by {fault:?}");
        }
    }
}

#[tokio::test]
async fn an_adapter_of_another_base_is_refused_with_module_and_shapes() {
    let service = Service::start().await;
    service.register_base().await;
    for (adapter, says) in [
        (adapter_on(QUANTISED, pair(4, 8, 8, 1)), vec![QUANTISED, "8x8 in the adapter and 8x16 in the base"]),
        (adapter_on("encoder.block.0.layer.0.SelfAttention.q", pair(4, 16, 8, 1)), vec!["not in the base"]),
        (adapter_on("model.embed_tokens", pair(4, 16, 4, 1)), vec!["not in the base"]),
    ] {
        let request = service.request_for("grammar", &adapter).await;
        expect_status(service.publish(request).await, Code::InvalidArgument, &says);
    }
    let mut idle = pair(4, 16, 8, 1);
    idle.b.fill(0.0);
    let request = service.request_for("grammar", &adapter_on(QUANTISED, idle)).await;
    expect_status(service.publish(request).await, Code::InvalidArgument, &["changes nothing"]);
    let request = service.request_for("grammar", &adapter_on("lm_head", pair(4, 16, 4, 1))).await;
    assert_eq!(service.publish(request).await.expect("the head is a linear layer").version, 1);
}

#[tokio::test]
async fn an_adapter_with_its_own_head_is_published_with_what_others_make_of_it() {
    let service = Service::start().await;
    service.register_base().await;
    let with_head = |out: usize| {
        let json = r#"{"peft_type":"LORA","r":4,"target_modules":["q_proj"],"modules_to_save":["lm_head"]}"#;
        let head = WholeTensor { dtype: Dtype::BF16, shape: vec![out, 16], bytes: vec![0; 2 * out * 16] };
        let pairs = BTreeMap::from([(QUANTISED.to_owned(), pair(4, 16, 8, 1))]);
        let whole = BTreeMap::from([("lm_head.weight".to_owned(), head)]);
        let config = AdapterConfig::parse(json.as_bytes()).expect("config");
        Adapter::with_tensors(config, Tensors { pairs, whole, ..Tensors::default() }).expect("well-formed adapter")
    };
    let request = service.request_for("grammar", &with_head(5)).await;
    let says = ["lm_head.weight is 5x16 in the adapter and 4x16 in the base"];
    expect_status(service.publish(request).await, Code::InvalidArgument, &says);
    let request = service.request_for("grammar", &with_head(4)).await;
    let published = service.publish(request).await.expect("published");
    assert!(published.notes.contains("vLLM refuses adapters with modules_to_save"), "{}", published.notes);
}

#[tokio::test]
async fn files_that_are_no_adapter_are_refused_and_missing_ones_named() {
    let service = Service::start().await;
    service.register_base().await;
    let sound = service.adapter_request("grammar", 1).await;
    let garbage = service.upload(b"garbage").await;
    let config = PublishVersionRequest { config_digest: garbage.clone(), ..sound.clone() };
    expect_status(service.publish(config).await, Code::InvalidArgument, &["adapter_config.json"]);
    let weights = PublishVersionRequest { weights_digest: garbage, ..sound.clone() };
    expect_status(service.publish(weights).await, Code::InvalidArgument, &["adapter_model.safetensors"]);
    let absent = tailor_domain::Digest::of(b"absent").to_string();
    let missing = PublishVersionRequest { weights_digest: absent, ..sound.clone() };
    expect_status(service.publish(missing).await, Code::FailedPrecondition, &["weights_digest", "upload it first"]);
    let base = PublishVersionRequest { base: "tiny-t5".into(), ..sound };
    expect_status(service.publish(base).await, Code::NotFound, &["tiny-t5 does not exist", BASE]);
}

#[tokio::test]
async fn words_that_cannot_be_kept_are_refused_by_field() {
    let service = Service::start().await;
    service.register_base().await;
    let sound = service.adapter_request("grammar", 1).await;
    let template = PublishVersionRequest { prompt_template: "Correct this".into(), ..sound.clone() };
    expect_status(service.publish(template).await, Code::InvalidArgument, &["prompt_template", "{input}"]);
    let metrics = HashMap::from([("loss".to_owned(), f64::NAN)]);
    let nan = PublishVersionRequest { metrics, ..sound.clone() };
    expect_status(service.publish(nan).await, Code::InvalidArgument, &["metrics.loss", "NaN"]);
    let tags = PublishVersionRequest { tags: vec!["two words".into()], ..sound.clone() };
    expect_status(service.publish(tags).await, Code::InvalidArgument, &["tags", "two words"]);
    let license = PublishVersionRequest { license: "x".repeat(257), ..sound.clone() };
    expect_status(service.publish(license).await, Code::InvalidArgument, &["license", "257 bytes", "256"]);
    let name = PublishVersionRequest { adapter: "Grammar".into(), ..sound };
    expect_status(service.publish(name).await, Code::InvalidArgument, &["adapter", "'G'"]);
}

#[tokio::test]
async fn a_missing_version_says_which_exist() {
    let service = Service::with_versions("grammar", 3).await;
    expect_status(version(&service, 9).await, Code::NotFound, &["no version 9", "versions 1 to 3"]);
    expect_status(version(&service, 999_999_999).await, Code::NotFound, &["versions 1 to 3"]);
    expect_status(version(&service, 0).await, Code::InvalidArgument, &["versions count from 1"]);
    let resolve = |reference: &str| {
        let (mut client, request) = (service.client.clone(), ResolveRequest { reference: reference.into() });
        async move { client.resolve(request).await.map(|answer| answer.into_inner().version) }
    };
    assert_eq!(resolve("grammar").await.expect("latest"), 3);
    assert_eq!(resolve("grammar@2").await.expect("by number"), 2);
    expect_status(resolve("grammar@4").await, Code::NotFound, &["versions 1 to 3"]);
    expect_status(resolve("grammar@").await, Code::InvalidArgument, &["alias"]);
    expect_status(resolve("spelling").await, Code::NotFound, &["adapter spelling does not exist", "grammar"]);
}
