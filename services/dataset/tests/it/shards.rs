use tailor_blobs::Store;
use tailor_domain::Family;
use tailor_pb::dataset::{PrepareShardsRequest, UploadHeader};
use tailor_testkit::{FlakyStore, Op};
use tailor_text::Example;
use tailor_text::shard::{Content, Record, ShardKind, ShardLimits, ShardReader};
use tonic::Code;

use crate::support::{EOS, NAME, ROWS, Service, csv, expect_status, header, ids_of, target};

pub const CHAT: &str = "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}\
                    {% if message['role'] == 'assistant' %}</s>{% endif %}{% endfor %}\
                    {% if add_generation_prompt %}[assistant]{% endif %}";

async fn with_bases() -> Service {
    let service = Service::with_dataset().await;
    service.add_base("t5", Family::EncoderDecoder, None).await;
    service.add_base("llama", Family::Decoder, None).await;
    service.add_base("chatty", Family::Decoder, Some(CHAT)).await;
    service
}

pub fn records(bytes: &[u8], kind: ShardKind) -> Vec<Record> {
    let reader = ShardReader::open(bytes, ShardLimits::default()).expect("a shard");
    assert_eq!(reader.kind(), kind);
    reader.map(|record| record.expect("a record")).collect()
}

pub fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn validation_targets_are_in_no_byte_that_a_trainer_sees() {
    let service = with_bases().await;
    for base in ["t5", "llama", "chatty"] {
        let shards = service.shards(base, 256).await.expect("prepared");
        assert_eq!((shards.train_rows, shards.validation_rows), (36, 4));
        let (train, validation) =
            (service.blob(&shards.train_digest).await, service.blob(&shards.validation_digest).await);
        let hidden: Vec<usize> = (0..ROWS)
            .filter(|row| {
                let input = ids_of(&format!("wrong 1 {row}"));
                records(&validation, ShardKind::Prompts).iter().any(|record| match &record.content {
                    Content::Prompt(ids) => {
                        ids.windows(input.len() + 1).any(|window| {
                            window.starts_with(&input) && !ids_of("0123456789").contains(&window[input.len()])
                        }) || ids.ends_with(&input)
                    }
                    Content::Example(_) | Content::Preference(_) => false,
                })
            })
            .collect();
        assert_eq!(hidden.len(), 4, "{base}: {hidden:?}");
        for row in 0..ROWS {
            let target = target(1, row);
            let as_ids: Vec<u8> = ids_of(&target).iter().flat_map(|id| id.to_le_bytes()).collect();
            assert!(!holds(&validation, &as_ids) && !holds(&validation, target.as_bytes()), "{base}: {target}");
            assert_eq!(holds(&train, &as_ids), !hidden.contains(&row), "{base}: {target}");
        }
    }
}

#[tokio::test]
async fn only_the_target_and_the_end_token_count_in_the_loss() {
    let service = with_bases().await;
    let first = |bytes: &[u8], kind| match records(bytes, kind).into_iter().next().map(|record| record.content) {
        Some(Content::Example(example)) => example,
        other => panic!("no example: {other:?}"),
    };
    let llama = service.blob(&service.shards("llama", 256).await.expect("prepared").train_digest).await;
    let Example::Decoder { ids, in_loss } = first(&llama, ShardKind::Decoder) else { panic!("a decoder's example") };
    let learnt: Vec<u32> = ids.iter().zip(&in_loss).filter(|(_, counts)| **counts).map(|(id, _)| *id).collect();
    let text = ids_of("Correct: wrong 1 ");
    assert!(ids.starts_with(&text), "{ids:?}");
    assert!(learnt.starts_with(&ids_of("Right-1-")) && learnt.last() == Some(&EOS), "{learnt:?}");

    let t5 = service.blob(&service.shards("t5", 256).await.expect("prepared").train_digest).await;
    let Example::EncoderDecoder { encoder, labels } = first(&t5, ShardKind::EncoderDecoder) else {
        panic!("an encoder-decoder's example")
    };
    assert!(encoder.starts_with(&text) && encoder.last() == Some(&EOS), "{encoder:?}");
    assert!(labels.starts_with(&ids_of("Right-1-")) && labels.last() == Some(&EOS), "{labels:?}");

    let chatty = service.blob(&service.shards("chatty", 256).await.expect("prepared").train_digest).await;
    let Example::Decoder { ids, in_loss } = first(&chatty, ShardKind::Decoder) else { panic!("a decoder's example") };
    assert!(ids.starts_with(&ids_of("[user]Correct: wrong 1 ")), "{ids:?}");
    let at = in_loss.iter().position(|counts| *counts).expect("something to learn");
    assert!(ids[..at].ends_with(&ids_of("[assistant]")) && ids[at..].starts_with(&ids_of("Right-1-")), "{ids:?}");
}

#[tokio::test]
async fn the_same_request_gives_the_same_digests_and_does_no_work_twice() {
    let (backend, faults) = FlakyStore::memory();
    let service = Service::over(Store::over(backend, "memory://counted")).await;
    service.upload(header(NAME), &csv(1, ROWS)).await.expect("uploaded");
    service.add_base("t5", Family::EncoderDecoder, None).await;
    let first = service.shards("t5", 64).await.expect("prepared");
    let writes = faults.count(Op::Put) + faults.count(Op::Create);
    assert_eq!(service.shards("t5", 64).await.expect("remembered"), first);
    assert_eq!(faults.count(Op::Put) + faults.count(Op::Create), writes);
    assert_eq!(first.dataset_digest, service.get(0).await.expect("dataset").digest);
    assert_eq!(first.prompt_template, "Correct: {input}");
    assert_eq!(service.spooled(), 0);

    // The record and the blobs are lost: made again, to the last byte.
    for prefix in ["shards", "blobs"] {
        let keys = service.store.list(prefix).await.expect("listed");
        let shard = |digest: &str, key: &str| key.ends_with(digest.trim_start_matches("sha256:"));
        for key in keys {
            if prefix == "shards" || shard(&first.train_digest, &key) || shard(&first.validation_digest, &key) {
                service.store.delete(&key).await.expect("deleted");
            }
        }
    }
    assert_eq!(service.shards("t5", 64).await.expect("made again"), first);
}

#[tokio::test]
async fn lost_blobs_are_made_again_although_the_record_remembers_them() {
    let service = with_bases().await;
    let first = service.shards("t5", 64).await.expect("prepared");
    let hex = first.train_digest.trim_start_matches("sha256:");
    service.store.delete(&format!("blobs/sha256/{}/{hex}", &hex[..2])).await.expect("deleted");
    assert_eq!(service.shards("t5", 64).await.expect("made again"), first);
    assert!(!service.blob(&first.train_digest).await.is_empty());
}

#[tokio::test]
async fn another_base_or_length_gives_other_shards() {
    let service = with_bases().await;
    let t5 = service.shards("t5", 64).await.expect("prepared");
    let llama = service.shards("llama", 64).await.expect("prepared");
    assert_ne!(t5.train_digest, llama.train_digest);
    assert_eq!(t5.rows_too_long, 0);
    // "Correct: wrong 1 7" and an end token, "Right-1-7!" and one: 30. Rows from 10 on have two more.
    let shorter = service.shards("t5", 30).await.expect("prepared");
    assert!(shorter.train_rows > 0 && shorter.train_rows <= 10, "{shorter:?}");
    assert_eq!(shorter.train_rows + shorter.rows_too_long, t5.train_rows, "prompts alone are short enough");
    assert_eq!(shorter.validation_rows, 4);
}

#[tokio::test]
async fn a_length_that_leaves_no_row_or_makes_no_sense_is_refused() {
    let service = with_bases().await;
    let says = ["max_tokens", "10 leaves none of the 36 training rows"];
    expect_status(service.shards("t5", 10).await, Code::InvalidArgument, &says);
    for senseless in [0, 7, u32::MAX] {
        expect_status(service.shards("t5", senseless).await, Code::InvalidArgument, &["max_tokens", "outside 8"]);
    }
}

#[tokio::test]
async fn an_unknown_base_or_dataset_is_answered_with_the_known_ones() {
    let service = with_bases().await;
    let says = ["base gpt does not exist; the bases are chatty, llama and t5"];
    expect_status(service.shards("gpt", 64).await, Code::NotFound, &says);
    let other = |name: &str, version| PrepareShardsRequest {
        name: name.into(),
        version,
        base: "t5".into(),
        max_tokens: 64,
        ..Default::default()
    };
    let outcome = service.client.clone().prepare_shards(other("spelling", 0)).await;
    expect_status(outcome, Code::NotFound, &["dataset spelling does not exist; the datasets are errors"]);
    let outcome = service.client.clone().prepare_shards(other(NAME, 9)).await;
    expect_status(outcome, Code::NotFound, &["no version 9"]);
}

#[tokio::test]
async fn a_broken_tokenizer_is_reported_by_base_and_file() {
    let service = with_bases().await;
    service.add_base("broken", Family::Decoder, Some("{% for message in")).await;
    expect_status(service.shards("broken", 64).await, Code::InvalidArgument, &["base broken", "chat template"]);
}

#[tokio::test]
async fn a_pinned_version_gives_its_own_rows_whatever_is_newest() {
    let service = with_bases().await;
    let pinned = service.shards("t5", 64).await.expect("prepared");
    let next = UploadHeader { new_version: true, ..header(NAME) };
    service.upload(next, &csv(2, ROWS)).await.expect("next version");
    let request =
        PrepareShardsRequest { name: NAME.into(), version: 1, base: "t5".into(), max_tokens: 64, ..Default::default() };
    let again = service.client.clone().prepare_shards(request).await.expect("prepared").into_inner();
    assert_eq!(again, pinned);
    assert_ne!(service.shards("t5", 64).await.expect("newest").train_digest, pinned.train_digest);
}
