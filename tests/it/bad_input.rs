//! What comes in at each door may be wrong: the message names the object, the value and the remedy, and nothing is spoilt.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use tailor_pb::dataset;
use tailor_pb::dataset::upload_dataset_request::Part;
use tailor_testkit::{HUB_REPO, HubServer, SmallDisk, TempDir};
use tonic::Code;

use crate::support::{Cli, Family, Training, Up, rows};

const TRAIN: [&str; 13] = [
    "--rank",
    "4",
    "--epochs",
    "1000",
    "--max-steps",
    "3",
    "--batch",
    "8",
    "--max-new-tokens",
    "4",
    "--max-validation-rows",
    "2",
    "--detach",
];

/// Writes a file and pushes it as dataset `name`.
struct Pushing<'a> {
    cli: &'a Cli,
    folder: &'a Path,
}

impl Pushing<'_> {
    fn file(&self, file: &str, bytes: &[u8]) -> String {
        let path = self.folder.join(file);
        std::fs::write(&path, bytes).expect("write a file");
        path.display().to_string()
    }

    #[track_caller]
    fn refused(&self, file: &str, bytes: &[u8], code: &str, parts: &[&str]) {
        let path = self.file(file, bytes);
        self.cli.refused(&["dataset", "push", &path, "--name", "bad"]).says(code, parts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_no_table_of_rows_is_refused_whole() {
    let up = Up::with(&[("TAILOR__DATASET__MAX_UPLOAD_BYTES", "100000000")]).await;
    let cli = up.cli();
    let pushing = Pushing { cli: &cli, folder: up.folder.path() };
    let nothing = "nothing was stored";
    pushing.refused("empty.csv", b"", "INVALID_ARGUMENT", &["empty.csv", "the file is empty", nothing]);
    pushing.refused("blank.csv", b"\n\n  \n", "INVALID_ARGUMENT", &["blank.csv", nothing]);
    let header_only = b"text,expected text\n";
    pushing.refused("header.csv", header_only, "INVALID_ARGUMENT", &["header.csv", nothing]);
    let elf = std::fs::read(crate::support::program("tailor-dataset")).expect("a program");
    pushing.refused("program.csv", &elf[..200_000], "INVALID_ARGUMENT", &["program.csv", "not text", nothing]);
    pushing.refused("image.jsonl", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "INVALID_ARGUMENT", &["image.jsonl", "not text"]);
    let utf16: Vec<u8> = "\u{feff}text,expected text\na,b\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    pushing.refused("wide.csv", &utf16, "INVALID_ARGUMENT", &["wide.csv", "UTF-16", "UTF-8", nothing]);
    let latin1 = [&b"text,expected text\n"[..], b"caf\xe9 noir,Caf\xe9 noir.\n"].concat();
    pushing.refused("latin1.csv", &latin1, "INVALID_ARGUMENT", &["latin1.csv", nothing]);
    let columns = b"sentence,language\na,en\n";
    let parts = ["columns.csv", "no column for", "\"sentence\", \"language\"", nothing];
    pushing.refused("columns.csv", columns, "INVALID_ARGUMENT", &parts);
    pushing.refused("rows.xlsx", b"text,expected text\na,b\n", "INVALID_ARGUMENT", &["xlsx", "csv, jsonl or parquet"]);
    let parts = ["rows.parquet", "the Parquet file cannot be read", nothing];
    pushing.refused("rows.parquet", b"PAR1, but no more of it", "INVALID_ARGUMENT", &parts);
    pushing.refused("broken.jsonl", b"{\"text\": \"a\"\n", "INVALID_ARGUMENT", &["broken.jsonl", nothing]);

    let missing = up.folder.join("missing.csv").display().to_string();
    cli.refused(&["dataset", "push", &missing, "--name", "bad"]).says("ERROR", &["cannot read", "missing.csv"]);
    let good = pushing.file("good.csv", rows::csv(20).as_bytes());
    let column = cli.refused(&["dataset", "push", &good, "--name", "bad", "--target", "expected_txt"]);
    column.says("INVALID_ARGUMENT", &["expected_txt", "did you mean \"expected text\"?"]);
    let template = cli.refused(&["dataset", "push", &good, "--name", "bad", "--template", "Correct this"]);
    template.says("INVALID_ARGUMENT", &["Correct this", "{input}"]);
    for name in ["../up", "Upper", "", &"x".repeat(65)] {
        cli.refused(&["dataset", "push", &good, "--name", name]).says("INVALID_ARGUMENT", &["dataset", "name"]);
    }
    let fraction = cli.refused(&["dataset", "push", &good, "--name", "bad", "--validation", "0.9"]);
    fraction.says("INVALID_ARGUMENT", &["validation", "0.9", "0.5"]);
    assert_eq!(cli.json(&["dataset", "list"]), serde_json::json!([]), "none of them left anything");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_wrong_are_dropped_by_line_field_and_reason_and_the_rest_is_kept() {
    let up = Up::start().await;
    let mut file = rows::csv(30).into_bytes();
    file.extend_from_slice(
        b"31,en-GB,,Empty.\n32,en-GB,caf\xe9,Caf\xe9.\n33,en-GB,too few\n34,en-GB,anna sees a boat today,Other.\n",
    );
    let kept = up.addresses.upload("mixed", &file).await.expect("the rest is good");
    assert!(kept.rows_train + kept.rows_validation >= 29, "{kept:?}");
    let report = up.cli().json(&["dataset", "report", "mixed"]);
    for (line, reason) in [(32, "empty_input"), (33, "invalid_utf8"), (34, "field_count"), (35, "conflict")] {
        let examples = report["examples"].as_array().expect("examples");
        let found = examples.iter().any(|row| row["line"] == line && row["reason"] == reason);
        assert!(found, "line {line} was dropped as {reason}: {report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_without_an_end_is_refused_long_before_its_end() {
    let up = Up::with(&[("TAILOR__DATASET__MAX_UPLOAD_BYTES", "90000000")]).await;
    let path = up.folder.join("line.csv");
    let mut file = File::create(&path).expect("a file");
    file.write_all(b"text,expected text\n").expect("write");
    let block = vec![b'x'; 1 << 20];
    for _ in 0..70 {
        file.write_all(&block).expect("write");
    }
    let refused = up.cli().refused(&["dataset", "push", &path.display().to_string(), "--name", "line"]);
    refused.says("INVALID_ARGUMENT", &["line.csv", "line 2", "bytes without an end of line", "nothing was stored"]);

    // 10 GB as a stream: the service hangs up at its limit, whatever is still to come.
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = sent.clone();
    let header = dataset::UploadHeader { name: "flood".into(), file_name: "flood.csv".into(), ..Default::default() };
    let chunks = std::iter::repeat_with(move || {
        counted.fetch_add(1 << 20, std::sync::atomic::Ordering::Relaxed);
        Part::Chunk(vec![b'x'; 1 << 20])
    });
    let parts = std::iter::once(Part::Header(header)).chain(chunks.take(10_000));
    let messages = parts.map(|part| dataset::UploadDatasetRequest { part: Some(part) });
    let refused = up.addresses.dataset().upload_dataset(tokio_stream::iter(messages)).await.expect_err("too large");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    for part in ["90000000", "dataset.max_upload_bytes"] {
        assert!(refused.message().contains(part), "{part:?} is missing in: {}", refused.message());
    }
    let sent = sent.load(std::sync::atomic::Ordering::Relaxed);
    assert!(sent < 1 << 30, "{sent} of 10 GB were sent before the service hung up");
    assert_eq!(up.cli().json(&["dataset", "list"]), serde_json::json!([]));
    let spooled = std::fs::read_dir(up.state.join("cache/spool")).map_or(0, Iterator::count);
    assert_eq!(spooled, 0, "nothing is left on the service's disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_taken_stays_what_it_was() {
    let up = Up::start().await;
    let cli = up.cli();
    let pushing = Pushing { cli: &cli, folder: up.folder.path() };
    let (one, two) = (pushing.file("1.csv", rows::csv(20).as_bytes()), pushing.file("2.csv", rows::csv(30).as_bytes()));
    let first = cli.json(&["dataset", "push", &one, "--name", "taken"]);
    let refused = cli.refused(&["dataset", "push", &two, "--name", "taken"]);
    refused.says("ALREADY_EXISTS", &["taken", "--new-version"]);
    assert_eq!(cli.json(&["dataset", "show", "taken"])["digest"], first["digest"]);

    let base = Family::T5.write(up.folder.path()).display().to_string();
    let other = Family::Llama.write(up.folder.path()).display().to_string();
    let added = cli.json(&["base", "add", &base, "--name", "base"]);
    let refused = cli.refused(&["base", "add", &other, "--name", "base"]);
    refused.says("ALREADY_EXISTS", &["base", added["fingerprint"].as_str().expect("a fingerprint")]);
    assert_eq!(cli.json(&["base", "list"])[0]["fingerprint"], added["fingerprint"]);
    assert_eq!(cli.json(&["base", "add", &base, "--name", "base"])["fingerprint"], added["fingerprint"], "idempotent");
    let again = cli.json(&["base", "add", &base, "--name", "base-again"]);
    for what in ["fingerprint", "files", "parameters", "family"] {
        assert_eq!(again[what], added[what], "{what} of the same folder under another name");
    }
    let dense = cli.json(&["base", "add", &base, "--name", "other-type", "--dtype", "f32"]);
    assert_ne!(dense["fingerprint"], added["fingerprint"], "another type of arithmetic is another base");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_no_base_is_refused_before_anything_is_sent() {
    let up = Up::start().await;
    let cli = up.cli();
    let add = |folder: &Path| cli.refused(&["base", "add", &folder.display().to_string(), "--name", "bad"]);
    add(&up.folder.join("nowhere")).says("ERROR", &["nowhere"]);
    let folder = Family::Llama.write(up.folder.path());
    let config = std::fs::read_to_string(folder.join("config.json")).expect("config");
    let rewrite = |config: &str| std::fs::write(folder.join("config.json"), config).expect("write");
    rewrite(&config.replace("\"llama\"", "\"mamba\""));
    add(&folder).says("ERROR", &["config.json", "\"mamba\" is not supported", "llama"]);
    rewrite("{");
    add(&folder).says("ERROR", &["config.json"]);
    rewrite(&config);
    let weights = std::fs::read(folder.join("model.safetensors")).expect("weights");
    std::fs::write(folder.join("model.safetensors"), &weights[..weights.len() / 2]).expect("write");
    add(&folder).says("ERROR", &["model.safetensors"]);
    std::fs::write(folder.join("model.safetensors"), b"\xff\xff\xff\xff\xff\xff\xff\x7f{}").expect("write");
    add(&folder).says("ERROR", &["model.safetensors"]);
    std::fs::write(folder.join("model.safetensors"), &weights).expect("write");
    std::fs::remove_file(folder.join("tokenizer.json")).expect("remove");
    let refused = add(&folder);
    assert!(refused.message.contains("tokenizer.json"), "{refused:?}");
    assert_eq!(cli.json(&["base", "list"]), serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_comes_from_a_hub_by_its_id_or_is_refused_with_the_reason() {
    let up = Up::start().await;
    let hub = HubServer::of_folder(&Family::T5.write(up.folder.path())).await;
    hub.require_token("hf_secret");
    let anyone = up.cli().env("HF_ENDPOINT", hub.url());
    let cli = anyone.clone().env("HF_TOKEN", "hf_secret");
    let add = ["base", "add", HUB_REPO, "--name", "little-t5"];
    anyone.refused(&add).says("FAILED_PRECONDITION", &[HUB_REPO, "401", "HF_TOKEN"]);
    cli.refused(&["base", "add", "nobody/nothing", "--name", "b"]).says("NOT_FOUND", &["nobody/nothing", "not found"]);
    cli.refused(&[&add[..], &["--offline"]].concat()).says("NOT_FOUND", &["not in the cache", "--offline"]);
    cli.refused(&[&add[..], &["--revision", "../x"]].concat()).says("INVALID_ARGUMENT", &["../x", "is no revision"]);
    assert_eq!(cli.json(&["base", "list"]), serde_json::json!([]));
    let added = cli.json(&add);
    assert_eq!(cli.json(&["base", "list"])[0]["fingerprint"], added["fingerprint"]);
    let asked = hub.requests();
    assert_eq!(cli.json(&[&add[..], &["--offline"]].concat())["fingerprint"], added["fingerprint"]);
    assert_eq!(hub.requests(), asked, "offline asks nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_do_not_exist_and_settings_outside_their_limits_make_no_job() {
    let up = Up::start().await;
    up.add_base_and_rows(Family::T5).await;
    let cli = up.cli();
    let train = |base: &str, dataset: &str, more: &[&str]| {
        let named = ["train", "--base", base, "--dataset", dataset, "--adapter", "a"];
        cli.refused(&[&named[..], &["--detach"], more].concat())
    };
    train("nobody", "rows", &[]).says("NOT_FOUND", &["base", "nobody", "little-t5"]);
    train("little-t5", "nothing", &[]).says("NOT_FOUND", &["dataset", "nothing", "rows"]);
    train("little-t5", "rows@9", &[]).says("NOT_FOUND", &["rows", "9"]);
    train("little-t5", "rows", &["--rank", "0"]).says("INVALID_ARGUMENT", &["lora.rank: 0 is outside 1 to 1024"]);
    train("little-t5", "rows", &["--lr", "7"]).says("INVALID_ARGUMENT", &["train.learning_rate: 7 is outside"]);
    train("little-t5", "rows", &["--batch", "4", "--micro-batch", "8"])
        .says("INVALID_ARGUMENT", &["train.micro_batch_rows: 8 is outside 0 to 4"]);
    train("little-t5", "rows", &["--targets", "q_proj_typo"])
        .says("INVALID_ARGUMENT", &["lora.target_modules[0]", "ends in \"q_proj_typo\"; it has k, lm_head, o, q"]);
    assert_eq!(cli.json(&["job", "list"]), serde_json::json!([]), "no job was made");

    // What only the worker can find fails the job with the same kind of sentence.
    let named = ["train", "--base", "little-t5", "--dataset", "rows", "--adapter", "a"];
    let refused = cli.refused(&[&named[..], &TRAIN[..12], &["--max-tokens", "8"]].concat());
    refused.says("ERROR", &["failed", "max_tokens"]);

    let keyed = [&named[..], &TRAIN, &["--idempotency-key", "once"]].concat();
    let job = cli.json(&keyed)["id"].as_str().expect("an id").to_owned();
    let refused = cli.refused(&[&keyed[..], &["--seed", "5"]].concat());
    refused.says("ALREADY_EXISTS", &["once", &job, "use a new key"]);
    cli.text(&["job", "watch", &job]);
    cli.refused(&["job", "cancel", &job]).says("FAILED_PRECONDITION", &[&job, "SUCCEEDED"]);
    cli.refused(&["job", "show", "nonsense"]).says("INVALID_ARGUMENT", &["nonsense"]);
    let unknown = "01arz3ndektsv4rrffq69g5fav";
    cli.refused(&["job", "watch", unknown]).says("NOT_FOUND", &[unknown, "tailor job list"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_for_another_base_is_never_served_and_an_unknown_alias_is_named() {
    let up = Up::start().await;
    for family in Family::ALL {
        up.add_base_and_rows(family).await;
    }
    let cli = up.cli();
    let training = Training { base: "little-t5", dataset: "rows", adapter: "polish", steps: 3, key: "" };
    let job = up.addresses.create(&training).await;
    up.addresses.succeeded(&job.id).await;

    let other = ["generate", "--base", "little-llama", "--adapter", "polish", "x"];
    cli.refused(&other).says("FAILED_PRECONDITION", &["polish", "made for base little-t5", "not for little-llama"]);
    let score = ["score", "--base", "little-llama", "--adapter", "polish", "--text", "x"];
    cli.refused(&score).says("FAILED_PRECONDITION", &["made for base little-t5"]);
    let peft = up.folder.join("peft").display().to_string();
    cli.json(&["adapter", "export", "polish", &peft]);
    let import = ["adapter", "import", &peft, "--name", "wrong", "--base", "little-llama"];
    cli.refused(&import).says("INVALID_ARGUMENT", &["wrong", "does not fit", "use the base it was trained on"]);
    cli.refused(&["adapter", "show", "wrong"]).says("NOT_FOUND", &["wrong"]);
    cli.refused(&["adapter", "export", "polish", &peft]).says("ERROR", &[&peft, "not empty"]);

    cli.json(&["adapter", "set-alias", "polish", "production", "1"]);
    cli.refused(&["generate", "--adapter", "polish@staging", "x"])
        .says("NOT_FOUND", &["staging", "polish", "production"]);
    cli.refused(&["generate", "--adapter", "polish@7", "x"]).says("NOT_FOUND", &["polish", "7", "1"]);
    cli.refused(&["generate", "--adapter", "nobody", "x"]).says("NOT_FOUND", &["nobody", "polish"]);
    cli.refused(&["generate", "--base", "nobody", "x"]).says("NOT_FOUND", &["nobody", "little-t5"]);
    cli.refused(&["generate", "--adapter", "polish@No Such", "x"]).says("INVALID_ARGUMENT", &["alias", "No Such"]);
    cli.refused(&["adapter", "set-alias", "polish", "production", "2"]).says("NOT_FOUND", &["polish", "2"]);
    let swap = cli.refused(&["adapter", "set-alias", "polish", "production", "1", "--expect", "5"]);
    swap.says("ABORTED", &["production", "1", "5"]);
    cli.refused(&["adapter", "rollback", "polish", "production"]).says("FAILED_PRECONDITION", &["production"]);
    assert_eq!(cli.json(&["adapter", "history", "polish", "production"]).as_array().map(Vec::len), Some(1));

    let long = "word ".repeat(2000);
    let refused = cli.refused(&["generate", "--base", "little-llama", &long]);
    assert_eq!(refused.code, "INVALID_ARGUMENT", "{refused:?}");
    let hot = cli.refused(&["generate", "--base", "little-t5", "--temperature", "-1", "x"]);
    hot.says("INVALID_ARGUMENT", &["temperature", "-1"]);
    let token = cli.refused(&["score", "--base", "little-t5", "--prompt-ids", "5", "--token-ids", "4000000"]);
    token.says("INVALID_ARGUMENT", &["4000000"]);
    let after = cli.json(&["generate", "--adapter", "polish@production", "--max-new-tokens", "3", "anna"]);
    assert_eq!(after["adapter_version"], 1, "the engine survived all of that");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_folder_that_is_damaged_is_refused_by_file_and_field() {
    let up = Up::start().await;
    up.add_base_and_rows(Family::T5).await;
    let cli = up.cli();
    let training = Training { base: "little-t5", dataset: "rows", adapter: "polish", steps: 3, key: "" };
    let job = up.addresses.create(&training).await;
    up.addresses.succeeded(&job.id).await;
    let peft = up.folder.join("peft");
    let path = peft.display().to_string();
    cli.json(&["adapter", "export", "polish", &path]);
    let import = || cli.refused(&["adapter", "import", &path, "--name", "damaged", "--base", "little-t5"]);
    let weights = std::fs::read(peft.join("adapter_model.safetensors")).expect("weights");
    let config = std::fs::read_to_string(peft.join("adapter_config.json")).expect("config");

    std::fs::write(peft.join("adapter_model.safetensors"), &weights[..weights.len() - 4]).expect("write");
    import().says("ERROR", &["adapter_model.safetensors"]);
    let mut poisoned = weights.clone();
    let end = poisoned.len();
    poisoned[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(peft.join("adapter_model.safetensors"), poisoned).expect("write");
    import().says("ERROR", &["adapter_model.safetensors", "tensor"]);
    std::fs::write(peft.join("adapter_model.safetensors"), &weights).expect("write");
    std::fs::write(peft.join("adapter_config.json"), config.replace("\"r\": 4", "\"r\": 5")).expect("write");
    assert!(import().message.contains("adapter_"), "{:?}", import());
    std::fs::remove_file(peft.join("adapter_config.json")).expect("remove");
    import().says("ERROR", &["adapter_config.json"]);
    cli.refused(&["adapter", "show", "damaged"]).says("NOT_FOUND", &["damaged"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_what_is_new_and_keeps_what_is_there() {
    let Some(disk) = SmallDisk::mount(6 << 20) else { return };
    let up = Up::on(TempDir::new(), Some(disk.join("state")), &[]).await;
    let cli = up.cli();
    let kept = up.addresses.upload("kept", rows::csv(40).as_bytes()).await.expect("there is room");
    let large = up.folder.join("large.csv");
    let mut file = String::from("text,expected text\n");
    for row in 0..120_000 {
        file.push_str(&format!("sentence number {row} is wrong,Sentence number {row} is right.\n"));
    }
    std::fs::write(&large, file).expect("write rows");
    let refused = cli.refused(&["dataset", "push", &large.display().to_string(), "--name", "large"]);
    refused.says("RESOURCE_EXHAUSTED", &["no room left", "free some space"]);
    assert_eq!(refused.status, 2, "a script may try again when there is room");
    let shown = cli.json(&["dataset", "show", "kept"]);
    assert_eq!(shown["digest"], kept.digest.as_str());
    cli.refused(&["dataset", "show", "large"]).says("NOT_FOUND", &["large"]);

    // Fill the rest by hand: a job cannot even be noted, and says so.
    let ballast = disk.join("ballast");
    let base = Family::T5.write(up.folder.path()).display().to_string();
    cli.json(&["base", "add", &base, "--name", "little-t5", "--dtype", "f32"]);
    fill(&ballast);
    let training = Training { base: "little-t5", dataset: "kept", adapter: "a", steps: 3, key: "" };
    let refused = up.addresses.try_create(&training).await.expect_err("no room");
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("no room left"), "{refused:?}");
    std::fs::remove_file(&ballast).expect("make room");
    let job = up.addresses.create(&training).await;
    let job = up.addresses.succeeded(&job.id).await;
    assert_eq!(job.adapter_version, 1, "with room again everything works");
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("a file");
    for size in [1 << 20, 64 << 10, 4 << 10, 512, 1] {
        while file.write_all(&vec![0; size]).is_ok() && file.sync_all().is_ok() {}
    }
}
