//! Conversations and preferences from the command line to the shards that a trainer reads.

use serde_json::{Value, json};
use tailor_pb::dataset::PrepareShardsRequest;
use tailor_pb::training;
use tonic::Code;

use crate::support::{Cli, Family, Training, Up, repository};

const ROWS: usize = 30;

fn push(up: &Up, cli: &Cli, file: &str, text: &str, flags: &[&str]) -> Value {
    let path = up.folder.join(file);
    std::fs::write(&path, text).expect("write rows");
    cli.json(&[&["dataset", "push", &path.display().to_string()][..], flags].concat())
}

fn add_bases(up: &Up, cli: &Cli) {
    for family in Family::ALL {
        let folder = family.write(up.folder.path()).display().to_string();
        cli.text(&["base", "add", &folder, "--name", family.base(), "--dtype", "f32"]);
    }
}

async fn refused_job(up: &Up, job: Training<'_>, objective: &str, loss_on: &str, says: &[&str]) {
    let mut request = job.request();
    let train = training::Training {
        objective: objective.into(),
        loss_on: loss_on.into(),
        ..request.training.take().unwrap_or_default()
    };
    request.training = Some(train);
    let error = up.addresses.trainer().create_job(request).await.expect_err("refused at creation");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    for part in says {
        assert!(error.message().contains(part), "{part:?} is missing in: {}", error.message());
    }
}

/// By the program that runs: `tailor up` reads the file in a process of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_parquet_file_of_conversations_is_pushed_as_it_is() {
    let up = Up::start().await;
    let file = repository().join("tests/golden/text/parquet/chats.parquet").display().to_string();
    let pushed = up.cli().json(&["dataset", "push", &file, "--name", "chats"]);
    assert_eq!((&pushed["kind"], &pushed["rows_dropped"]), (&"conversation".into(), &4.into()), "{pushed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_shown_token_by_token_and_prepared_by_what_counts() {
    let up = Up::start().await;
    let cli = up.cli();
    let row = |n: usize| {
        let turns = [
            ("user", format!("first {n}")),
            ("assistant", format!("Reply {n}.")),
            ("user", format!("then {n}")),
            ("assistant", format!("Last {n}!")),
        ];
        let messages: Vec<Value> =
            turns.iter().map(|(role, content)| json!({"role": role, "content": content})).collect();
        json!({"talk": messages}).to_string() + "\n"
    };
    let text: String = (0..ROWS).map(row).collect();
    let pushed = push(&up, &cli, "chats.jsonl", &text, &["--name", "chats", "--messages", "talk"]);
    assert_eq!((&pushed["kind"], &pushed["rows_train"]), (&"conversation".into(), &27.into()));
    assert_eq!(cli.json(&["dataset", "show", "chats"])["kind"], "conversation");
    assert!(cli.text(&["dataset", "report", "chats"]).contains("chats@1 (conversation): 30 rows read"));
    add_bases(&up, &cli);

    let preview = ["dataset", "preview", "chats", "--base", "little-llama", "--rows", "1", "--loss-on"];
    let counted = |mode: &str| -> String {
        let shown = cli.json(&[&preview[..], &[mode]].concat());
        let tokens = shown[0]["tokens"].as_array().expect("tokens").clone();
        let counts = tokens.iter().filter(|token| token["in_loss"] == true);
        counts.filter_map(|token| token["text"].as_str()).collect()
    };
    let target =
        cli.json(&["dataset", "preview", "chats", "--rows", "1"])[0]["target"].as_str().expect("text").to_owned();
    let reply = target.replace("Last", "Reply").replace('!', ".");
    assert_eq!(counted("completion"), format!("{target}</s>"));
    assert_eq!(counted("assistant"), format!("{reply}</s>{target}</s>"));
    let everything = counted("everything");
    assert!(everything.starts_with("u]first ") && everything.ends_with(&format!("{target}</s>")), "{everything}");
    cli.refused(&["dataset", "preview", "chats", "--loss-on", "everything"]).says("USAGE", &["--base"]);
    let on_t5 = ["dataset", "preview", "chats", "--base", "little-t5", "--loss-on", "everything"];
    cli.refused(&on_t5).says("INVALID_ARGUMENT", &["train.loss_on", "take completion"]);

    let prepare = |loss_on: &str| PrepareShardsRequest {
        name: "chats".into(),
        base: "little-llama".into(),
        max_tokens: 128,
        loss_on: loss_on.into(),
        ..Default::default()
    };
    let (mut dataset, mut digests) = (up.addresses.dataset(), Vec::new());
    for mode in ["completion", "assistant", "everything"] {
        let shards = dataset.prepare_shards(prepare(mode)).await.expect("prepared").into_inner();
        assert_eq!((shards.train_rows, shards.validation_rows, shards.rows_refused), (27, 3, 0));
        digests.push(shards.train_digest);
    }
    assert!(digests[0] != digests[1] && digests[1] != digests[2]);

    let job = |base| Training { base, dataset: "chats", adapter: "talk", steps: 2, key: "" };
    refused_job(&up, job("little-llama"), "dpo", "completion", &["train.objective", "conversation", "rejected"]).await;
    refused_job(&up, job("little-t5"), "sft", "assistant", &["train.loss_on", "take completion"]).await;
    let trained = up.addresses.create(&job("little-llama")).await;
    assert_eq!(up.addresses.succeeded(&trained.id).await.adapter_version, 1, "a decoder learns from conversations");
}

#[tokio::test(flavor = "multi_thread")]
async fn preferences_are_shown_with_both_answers_and_prepared_as_pairs() {
    let up = Up::start().await;
    let cli = up.cli();
    let mut text = "question,good,bad\n".to_owned();
    text.extend((0..ROWS).map(|n| format!("ask {n},Yes {n}.,No {n}.\n")));
    let flags = [
        "--name",
        "taste",
        "--input",
        "question",
        "--chosen",
        "good",
        "--rejected",
        "bad",
        "--template",
        "Q: {question}",
    ];
    let pushed = push(&up, &cli, "pairs.csv", &text, &flags);
    assert_eq!((&pushed["kind"], &pushed["prompt_template"]), (&"preference".into(), &"Q: {input}".into()));
    add_bases(&up, &cli);
    let shown = cli.text(&["dataset", "preview", "taste", "--base", "little-t5", "--rows", "1"]);
    for part in ["prompt  Q: ask ", "target  Yes ", "worse   No "] {
        assert!(shown.contains(part), "{part:?} is missing in: {shown}");
    }
    let (mut dataset, mut digests) = (up.addresses.dataset(), Vec::new());
    for (base, objective) in [("little-llama", "dpo"), ("little-t5", "dpo"), ("little-t5", "sft")] {
        let request = PrepareShardsRequest {
            name: "taste".into(),
            base: base.into(),
            max_tokens: 64,
            objective: objective.into(),
            ..Default::default()
        };
        let shards = dataset.prepare_shards(request).await.expect("prepared").into_inner();
        assert_eq!((shards.train_rows, shards.validation_rows, shards.rows_refused), (27, 3, 0));
        digests.push(shards.train_digest);
    }
    assert!(digests[0] != digests[1] && digests[1] != digests[2]);

    up.addresses.upload("rows", crate::support::rows::csv(60).as_bytes()).await.expect("rows uploaded");
    let job = |dataset| Training { base: "little-llama", dataset, adapter: "taste", steps: 2, key: "" };
    refused_job(&up, job("rows"), "dpo", "completion", &["train.objective", "input-target", "take sft"]).await;
    refused_job(&up, job("taste"), "dpo", "everything", &["train.loss_on", "take completion"]).await;
    let trained = up.addresses.create(&job("taste")).await;
    assert_eq!(up.addresses.succeeded(&trained.id).await.adapter_version, 1, "sft learns the chosen answers");
}
