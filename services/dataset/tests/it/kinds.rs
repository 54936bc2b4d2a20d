//! Conversations and preference pairs, from the file to the shards.

use tailor_domain::{Digest, Family};
use tailor_pb::dataset::{Prediction, PreviewRequest, PreviewRow, ScorePredictionsRequest, UploadHeader};
use tailor_text::shard::{Content, ShardKind};
use tailor_text::{Example, Preference};
use tonic::{Code, Status};

use crate::shards::{CHAT, holds, records};
use crate::support::{EOS, NAME, Service, csv, expect_status, header, ids_of};

const ROWS: usize = 20;

fn conversations() -> Vec<u8> {
    let row = |n: usize| {
        let turns = [
            ("system", "Be kind."),
            ("user", &format!("first {n}")),
            ("assistant", &format!("reply {n}")),
            ("user", &format!("second {n}")),
            ("assistant", &format!("Answer-{n}!")),
        ]
        .map(|(role, content)| serde_json::json!({"role": role, "content": content}));
        serde_json::json!({"id": n, "topic": if n.is_multiple_of(2) { "even" } else { "odd" }, "messages": turns})
            .to_string()
    };
    let bad = ["{\"messages\": [{\"role\": \"user\", \"content\": \"unanswered\"}]}", "{\"text\": \"no messages\"}"];
    (0..ROWS).map(row).chain([row(0)]).chain(bad.map(str::to_owned)).collect::<Vec<_>>().join("\n").into_bytes()
}

fn preferences() -> Vec<u8> {
    let mut text = "prompt,chosen,rejected\n".to_owned();
    for n in 0..ROWS {
        text += &format!("ask {n},Good-{n}!,Bad-{n}.\n");
    }
    (text + "ask 0,Bad-0.,Good-0!\nask 99,same,same\nask 98,,Bad\n").into_bytes()
}

fn chats(name: &str) -> UploadHeader {
    UploadHeader { file_name: "chats.jsonl".into(), prompt_template: String::new(), ..header(name) }
}

async fn service(header: UploadHeader, bytes: &[u8]) -> Service {
    let service = Service::start().await;
    service.upload(header, bytes).await.expect("uploaded");
    service.add_base("t5", Family::EncoderDecoder, None).await;
    service.add_base("llama", Family::Decoder, None).await;
    service.add_base("chatty", Family::Decoder, Some(CHAT)).await;
    service
}

async fn preview(service: &Service, base: &str, loss_on: &str) -> Result<PreviewRow, Status> {
    let request = PreviewRequest { name: NAME.into(), version: 0, base: base.into(), rows: 1, loss_on: loss_on.into() };
    Ok(service.client.clone().preview(request).await?.into_inner().rows.remove(0))
}

/// The characters that count in the loss of a row's tokens.
fn counted(row: &PreviewRow) -> String {
    row.tokens.iter().filter(|token| token.in_loss).map(|token| token.text.as_str()).collect()
}

#[tokio::test]
async fn conversations_become_a_dataset_of_their_kind_with_its_report() {
    let labelled = UploadHeader { label_column: "topic".into(), ..chats(NAME) };
    let service = service(labelled, &conversations()).await;
    let dataset = service.get(0).await.expect("there");
    assert_eq!((dataset.kind.as_str(), dataset.rows_train, dataset.rows_validation), ("conversation", 18, 2));
    let report = service.report().await;
    for reason in ["duplicate", "empty_target", "missing_field"] {
        assert_eq!(report.dropped.get(reason), Some(&1), "{reason}: {:?}", report.dropped);
    }
    let missing = report.examples.iter().find(|row| row.reason == "missing_field").expect("an example");
    assert_eq!((missing.line, missing.field.as_str()), (ROWS as u64 + 3, "messages"));
    assert_eq!(report.labels_after.get("odd"), Some(&10));
    assert_eq!(report.length_histogram.iter().map(|bucket| bucket.rows).sum::<u64>(), ROWS as u64);
}

#[tokio::test]
async fn each_mode_counts_what_it_says_and_gives_shards_of_its_own() {
    let service = service(chats(NAME), &conversations()).await;
    let row = preview(&service, "", "").await.expect("text");
    assert!(row.prompt.starts_with("system: Be kind.\nuser: first ") && row.target.starts_with("Answer-"), "{row:?}");
    let mut digests = Vec::new();
    for (mode, wanted) in [
        ("completion", format!("{}</s>", row.target)),
        ("assistant", format!("{}</s>{}</s>", row.target.replace("Answer-", "reply ").replace('!', ""), row.target)),
    ] {
        let seen = preview(&service, "chatty", mode).await.expect("tokens");
        assert_eq!(counted(&seen), wanted);
        digests.push(service.shards_for("chatty", 256, mode, "sft").await.expect("prepared"));
    }
    let everything = preview(&service, "chatty", "everything").await.expect("tokens");
    assert_eq!(everything.tokens.iter().filter(|token| !token.in_loss).count(), 1, "the first has no predictor");
    digests.push(service.shards_for("chatty", 256, "everything", "").await.expect("prepared"));
    assert_eq!(service.shards("chatty", 256).await.expect("the default"), digests[0]);
    let examples = |bytes: &[u8]| -> Vec<(Vec<u32>, Vec<bool>)> {
        let example = |content| match content {
            Content::Example(Example::Decoder { ids, in_loss }) => (ids, in_loss),
            other => panic!("{other:?} is no decoder's example"),
        };
        records(bytes, ShardKind::Decoder).into_iter().map(|record| example(record.content)).collect()
    };
    let mut made = Vec::new();
    for shards in &digests {
        assert_eq!((shards.train_rows, shards.validation_rows, shards.rows_refused), (18, 2, 0));
        assert_eq!(shards.validation_digest, digests[0].validation_digest, "what is asked is the same");
        made.push(examples(&service.blob(&shards.train_digest).await));
    }
    for (row, (ids, in_loss)) in made[0].iter().enumerate() {
        assert!(ids == &made[1][row].0 && ids == &made[2][row].0, "ids do not depend on the mode");
        let within = |small: &[bool], large: &[bool]| small.iter().zip(large).all(|(small, large)| !small || *large);
        assert!(within(in_loss, &made[1][row].1) && within(&made[1][row].1, &made[2][row].1));
        assert_ne!(in_loss, &made[1][row].1);
    }
}

#[tokio::test]
async fn the_last_answer_of_a_hidden_conversation_is_in_no_byte_that_a_trainer_sees() {
    let service = service(chats(NAME), &conversations()).await;
    let shards = service.shards_for("chatty", 256, "everything", "").await.expect("prepared");
    let validation = service.blob(&shards.validation_digest).await;
    let train = service.blob(&shards.train_digest).await;
    let mut hidden = 0;
    for row in 0..ROWS {
        let as_ids = |text: &str| ids_of(text).iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
        let (answer, asked) = (as_ids(&format!("Answer-{row}!")), as_ids(&format!("second {row}[")));
        assert!(!holds(&validation, &answer));
        assert_ne!(holds(&train, &answer), holds(&validation, &asked), "row {row} is on one side");
        hidden += usize::from(holds(&validation, &asked));
    }
    assert_eq!(hidden, 2);
    for record in records(&validation, ShardKind::Prompts) {
        let Content::Prompt(ids) = record.content else { panic!("a prompt") };
        assert!(ids.ends_with(&ids_of("[assistant]")), "what is asked ends where the answer starts");
    }
    let predictions = vec![Prediction { row: 0, text: "?".into() }];
    let request = ScorePredictionsRequest { name: NAME.into(), version: 0, predictions, samples: 1 };
    let scored = service.client.clone().score_predictions(request).await.expect("scored").into_inner();
    assert!(scored.samples[0].target.starts_with("Answer-") && scored.samples[0].input.contains("user: second "));
}

#[tokio::test]
async fn preferences_become_pairs_for_dpo_and_rows_for_sft() {
    let service = service(header(NAME), &preferences()).await;
    let dataset = service.get(0).await.expect("there");
    assert_eq!((dataset.kind.as_str(), dataset.rows_train, dataset.rows_validation), ("preference", 18, 2));
    let report = service.report().await;
    for reason in ["conflict", "same_answer", "empty_target"] {
        assert_eq!(report.dropped.get(reason), Some(&1), "{reason}: {:?}", report.dropped);
    }
    for (base, family) in [("llama", Family::Decoder), ("chatty", Family::Decoder), ("t5", Family::EncoderDecoder)] {
        let pairs = service.shards_for(base, 256, "", "dpo").await.expect("prepared");
        let single = service.shards_for(base, 256, "", "sft").await.expect("prepared");
        assert_ne!(pairs.train_digest, single.train_digest);
        assert_eq!(pairs.validation_digest, single.validation_digest);
        let (of_pairs, of_rows) = match family {
            Family::Decoder => (ShardKind::DecoderPreferences, ShardKind::Decoder),
            Family::EncoderDecoder => (ShardKind::EncoderDecoderPreferences, ShardKind::EncoderDecoder),
        };
        let learnt = records(&service.blob(&single.train_digest).await, of_rows);
        let compared = records(&service.blob(&pairs.train_digest).await, of_pairs);
        assert_eq!((learnt.len(), compared.len()), (18, 18));
        for (row, pair) in learnt.into_iter().zip(compared) {
            let Content::Preference(Preference { chosen, rejected }) = pair.content else { panic!("a pair") };
            assert_eq!(row.content, Content::Example(chosen), "sft learns the chosen answer");
            let said: Vec<u32> = match rejected {
                Example::Decoder { ids, in_loss } => {
                    ids.into_iter().zip(in_loss).filter(|(_, counts)| *counts).map(|(id, _)| id).collect()
                }
                Example::EncoderDecoder { labels, .. } => labels,
            };
            assert!(said.starts_with(&ids_of("Bad-")) && said.last() == Some(&EOS), "{said:?}");
        }
    }
    let seen = preview(&service, "llama", "").await.expect("tokens");
    assert!(seen.prompt.starts_with("Correct: ask ") && seen.rejected.starts_with("Bad-"), "{seen:?}");
    let worse: String =
        seen.rejected_tokens.iter().filter(|token| token.in_loss).map(|token| token.text.as_str()).collect();
    assert_eq!((counted(&seen), worse), (format!("{}</s>", seen.target), format!("{}</s>", seen.rejected)));
}

#[tokio::test]
async fn a_held_out_prompt_is_scored_against_the_chosen_answer_and_both_are_hidden() {
    let service = service(header(NAME), &preferences()).await;
    let shards = service.shards_for("llama", 256, "", "dpo").await.expect("prepared");
    let validation = service.blob(&shards.validation_digest).await;
    let train = service.blob(&shards.train_digest).await;
    let as_ids = |text: &str| ids_of(text).iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let hidden: Vec<usize> = (0..ROWS).filter(|row| !holds(&train, &as_ids(&format!("Good-{row}!")))).collect();
    assert_eq!(hidden.len(), 2);
    for row in 0..ROWS {
        for answer in [format!("Good-{row}!"), format!("Bad-{row}.")] {
            assert!(!holds(&validation, &as_ids(&answer)), "{answer}");
            assert_ne!(holds(&train, &as_ids(&answer)), hidden.contains(&row), "{answer}");
        }
    }
    let predictions = hidden.iter().zip(0..).map(|(row, at)| Prediction { row: at, text: format!("Good-{row}!") });
    let request =
        ScorePredictionsRequest { name: NAME.into(), version: 0, predictions: predictions.collect(), samples: 0 };
    let scored = service.client.clone().score_predictions(request).await.expect("scored").into_inner();
    assert_eq!(scored.metrics["exact_match"], 1.0);
}

#[tokio::test]
async fn the_length_of_a_pair_is_that_of_its_longer_half() {
    let rows = "prompt,chosen,rejected\nask 1,a,b\nask 2,c,this one is long\nask 3,this other is long,d\n";
    let whole = UploadHeader { validation_fraction: 1e-9, prompt_template: String::new(), ..header(NAME) };
    let service = service(whole, rows.as_bytes()).await;
    let shards = service.shards_for("t5", 12, "", "dpo").await.expect("prepared");
    assert_eq!((shards.train_rows, shards.rows_too_long), (1, 2));
    assert_eq!(service.shards_for("t5", 12, "", "sft").await.expect("prepared").train_rows, 2, "chosen alone");
}

#[tokio::test]
async fn what_a_kind_or_a_base_cannot_serve_is_refused_with_the_remedy() {
    let plain = service(header(NAME), &csv(1, ROWS)).await;
    for mode in ["completion", "assistant", "everything"] {
        plain.shards_for("llama", 256, mode, "sft").await.expect("a decoder takes them all");
    }
    let refused = |outcome, says: &[&str]| expect_status(outcome, Code::InvalidArgument, says);
    refused(plain.shards_for("llama", 256, "", "dpo").await, &["train.objective", "input-target", "take sft"]);
    refused(plain.shards_for("t5", 256, "everything", "").await, &["train.loss_on", "encoder", "take completion"]);
    refused(plain.shards_for("llama", 256, "all", "").await, &["train.loss_on", "completion, assistant, everything"]);
    refused(plain.shards_for("llama", 256, "", "ppo").await, &["train.objective", "sft, dpo"]);
    expect_status(preview(&plain, "t5", "everything").await, Code::InvalidArgument, &["train.loss_on"]);

    let chats = service(chats(NAME), &conversations()).await;
    refused(chats.shards_for("chatty", 256, "", "dpo").await, &["conversation", "chosen and rejected"]);
    refused(chats.shards_for("llama", 256, "", "").await, &["base llama", "chat template", "input and target"]);
    refused(chats.shards_for("t5", 256, "assistant", "").await, &["train.loss_on", "take completion"]);

    let pairs = service(header(NAME), &preferences()).await;
    refused(pairs.shards_for("llama", 256, "everything", "dpo").await, &["train.loss_on", "take completion"]);
}

#[tokio::test]
async fn a_row_of_which_nothing_counts_is_left_out_by_line_and_reason_in_every_mode() {
    let mut file = csv(1, ROWS);
    file.extend(b"90,en,nothing,</s>after\n");
    let whole = UploadHeader { validation_fraction: 1e-9, ..header(NAME) };
    let plain = service(whole.clone(), &file).await;
    for mode in ["completion", "assistant", "everything"] {
        let shards = plain.shards_for("llama", 256, mode, "").await.expect("prepared");
        assert_eq!((shards.train_rows, shards.rows_refused), (ROWS as u64, 1), "{mode}");
        let row = &shards.refused[0];
        assert_eq!((row.line, row.reason.as_str()), (ROWS as u64 + 2, "nothing_to_learn"), "{mode}");
    }
    let empty = service(whole.clone(), b"text,target\nq,</s>x\n").await;
    let says = ["none of the 1 training rows", "line 2", "no token of the target"];
    expect_status(empty.shards_for("llama", 256, "", "").await, Code::InvalidArgument, &says);
    let same = service(whole, b"prompt,chosen,rejected\nq,a</s>x,a</s>y\nr,a,b\n").await;
    let shards = same.shards_for("llama", 256, "", "dpo").await.expect("prepared");
    assert_eq!((shards.train_rows, shards.refused[0].reason.as_str()), (1, "same_answer"));
}

#[tokio::test]
async fn uploads_of_the_wrong_kind_are_refused_by_field() {
    let service = Service::start().await;
    let refused = |outcome, says: &[&str]| expect_status(outcome, Code::InvalidArgument, says);
    let with_template = UploadHeader { prompt_template: "Say {input}".into(), ..chats(NAME) };
    refused(service.upload(with_template, &conversations()).await, &["prompt template", "leave"]);
    let unknown = UploadHeader { kind: "pairs".into(), ..header(NAME) };
    refused(service.upload(unknown, &preferences()).await, &["kind", "input-target, conversation, preference"]);
    let missing = UploadHeader { kind: "preference".into(), ..header(NAME) };
    refused(service.upload(missing, &csv(1, 3)).await, &["no column for the chosen answer"]);
    let in_csv = UploadHeader { kind: "conversation".into(), prompt_template: String::new(), ..header(NAME) };
    refused(service.upload(in_csv, b"messages\n[]\n").await, &["jsonl"]);
    assert_eq!(service.spooled(), 0);
}

#[tokio::test]
async fn datasets_and_rows_from_before_there_were_kinds_are_read() {
    let service = Service::start().await;
    let lines = b"{\"line\":2,\"id\":\"7\",\"input\":\"a b\",\"target\":\"A b.\"}\n".to_vec();
    let train = service.store.put_blob(lines).await.expect("stored");
    let none = service.store.put_blob(Vec::new()).await.expect("stored");
    let report = serde_json::json!({"rows_read": 1, "rows_train": 1, "rows_validation": 0, "dropped": {}, "examples": [],
        "labels_before": {}, "labels_after": {}, "length_histogram": [[16, 1]]});
    let old = serde_json::json!({"name": NAME, "version": 1, "source": Digest::of(b"x"), "source_size_bytes": 1,
        "train": train, "validation": none, "prompt_template": "{input}", "report": report, "created_at_ms": 0});
    service.store.create_json(&format!("datasets/{NAME}/00000001.json"), &old).await.expect("stored");
    service.add_base("llama", Family::Decoder, None).await;
    assert_eq!(service.get(0).await.expect("read").kind, "input-target");
    assert_eq!(service.shards("llama", 64).await.expect("prepared").train_rows, 1);
}
