//! `tailor up`, and every command against it as a script calls it.

use std::net::TcpListener;
use std::path::Path;

use serde_json::Value;
use tailor_testkit::TempDir;

use crate::support::process::command;
use crate::support::{Cli, Family, Process, Training, Up, repository, rows};

/// Every command with the words that its help must teach.
const HELP: [(&[&str], &[&str]); 44] = [
    (&[], &["A first walk", "tailor demo", "tailor up", "TAILOR_TRAINER_URL", "--json"]),
    (&["up"], &["--port", "0 finds free ones"]),
    (&["demo"], &["--base", "tiny-t5", "tiny-llama"]),
    (&["dataset"], &["push", "list", "show", "preview", "report", "rm"]),
    (
        &["dataset", "push"],
        &[
            "Examples",
            "--template",
            "--label",
            "--new-version",
            "{input}",
            "--messages",
            "--chosen",
            "--rejected",
            "--kind",
        ],
    ),
    (&["dataset", "list"], &["--json"]),
    (&["dataset", "show"], &["NAME"]),
    (&["dataset", "preview"], &["--base", "--rows", "--loss-on", "assistant", "everything"]),
    (&["dataset", "report"], &["NAME"]),
    (&["dataset", "rm"], &["NAME"]),
    (&["base"], &["add", "list"]),
    (&["base", "add"], &["--name", "nf4", "--dtype", "safetensors"]),
    (&["train"], &["--base", "--dataset", "--adapter", "--learning-rate", "--idempotency-key", "--detach"]),
    (&["plan"], &["--base", "--dataset", "--price", "--card", "Examples", "Job file"]),
    (&["job"], &["list", "show", "watch", "pause", "resume", "cancel", "predictions", "plot", "tensorboard"]),
    (&["job", "watch"], &["--from"]),
    (&["job", "cancel"], &["ID"]),
    (&["job", "pause"], &["ID", "free for others"]),
    (&["job", "resume"], &["ID", "the same result"]),
    (&["job", "predictions"], &["--wrong", "--changed", "--limit", "hidden from training", "Example"]),
    (&["job", "plot"], &["FILE.svg or FILE.png", "Example"]),
    (&["job", "tensorboard"], &["--no-follow", "DIR", "tensorboard --logdir"]),
    (&["adapter"], &["list", "show", "versions", "set-alias", "rollback", "history", "export", "import"]),
    (&["adapter", "show"], &["name@version", "name@alias"]),
    (&["adapter", "set-alias"], &["--expect", "VERSION"]),
    (&["adapter", "policy", "set"], &["--min", "--max-drop", "--approvals", "--same-base", "--serving", "Examples"]),
    (&["adapter", "policy", "check"], &["gate by gate"]),
    (&["adapter", "approve"], &["--alias", "unless you published it"]),
    (&["rollout"], &["set", "status", "abort", "promote"]),
    (&["rollout", "set"], &["--canary", "--percent", "--shadow-percent", "--golden", "Examples", "moves nobody back"]),
    (&["adapter", "rollback"], &["--why"]),
    (&["adapter", "history"], &["ALIAS"]),
    (&["adapter", "export"], &["PEFT", "DIR", "Examples", "--format", "gguf", "--lora", "DoRA"]),
    (&["adapter", "merge"], &["Examples", "transformers", "--dtype", "--quant", "--shard-size", "whole or not at all"]),
    (&["adapter", "merge"], &["--register", "NAME", "base of this name"]),
    (&["adapter", "merge"], &["--format", "gguf", "llama.cpp", "Qwen3", "llama-quantize"]),
    (&["adapter", "import"], &["PEFT", "--base", "--template"]),
    (&["adapter", "spectrum"], &["singular values", "effective rank", "--output", "Example"]),
    (&["adapter", "compress"], &["--rank", "--energy", "--as", "--rows", "NAME.candidate", "DoRA"]),
    (&["adapter", "compare"], &["Overlap", "Distance", "chance"]),
    (&["generate"], &["--adapter", "--temperature", "greedy", "--raw"]),
    (&["score"], &["--token-ids", "--prompt-ids", "encoder"]),
    (&["completions"], &["bash"]),
    (&["base", "list"], &["--json"]),
];

#[test]
fn every_commands_help_teaches_it() {
    for (words, taught) in HELP {
        let help = Cli::new(".").text(&[words, &["--help"]].concat());
        for word in taught {
            assert!(help.contains(word), "{word:?} is missing in `tailor {words:?} --help`:\n{help}");
        }
    }
}

#[test]
fn a_wrong_word_is_told_apart_from_what_can_be_tried_again() {
    let cli = Cli::new(".");
    let refused = cli.refused(&["train", "--base", "b", "--dataset", "d", "--adapter", "a", "--epoch", "3"]);
    refused.says("USAGE", &["--epoch", "--epochs"]);
    assert_eq!(refused.status, 64, "2 says that a script may try again");
}

#[test]
fn completions_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Cli::new(".").text(&["completions", shell]);
        for word in ["set-alias", "preview", "score", "prompt-ids"] {
            assert!(script.contains(word), "{word:?} is missing in the completions of {shell}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_does_its_work_and_says_so_in_json() {
    let mut up = Up::start().await;
    let cli = up.cli();
    data_and_bases(&up, &cli);
    let job = jobs(&cli);
    adapters(&up, &cli, &job);
    ranks(&up, &cli);
    merged(&up, &cli);
    for_llama_cpp(&up, &cli);
    text(&cli);
    let removed = cli.json(&["dataset", "rm", "rows"]);
    assert_eq!(removed["versions_deleted"], 2);
    cli.refused(&["dataset", "show", "rows"]).says("NOT_FOUND", &["rows"]);
    assert_eq!(cli.json(&["adapter", "show", "polish@1"])["dataset"], "rows@1", "the lineage outlives the dataset");
    assert_eq!(up.stop(), Some(0));
}

fn data_and_bases(up: &Up, cli: &Cli) {
    let file = up.folder.join("rows.csv");
    let path = file.display().to_string();
    let push = ["dataset", "push", &path, "--name", "rows", "--template", "Polish: {input}", "--label", "language"];
    std::fs::write(&file, rows::csv(60)).expect("write rows");
    let pushed = cli.json(&push);
    assert_eq!((&pushed["name"], &pushed["version"], &pushed["created"]), (&"rows".into(), &1.into(), &true.into()));
    assert_eq!(pushed["rows_train"].as_u64().zip(pushed["rows_validation"].as_u64()), Some((54, 6)));
    let again = cli.json(&push);
    assert_eq!(
        (&again["version"], &again["created"]),
        (&1.into(), &false.into()),
        "the same bytes are the same version"
    );
    std::fs::write(&file, rows::csv(70)).expect("write rows");
    assert_eq!(cli.json(&[&push[..], &["--new-version"]].concat())["version"], 2);

    assert_eq!(cli.json(&["dataset", "list"])[0]["version"], 2, "a list shows the latest");
    assert_eq!(cli.json(&["dataset", "show", "rows@1"])["digest"], pushed["digest"]);
    let report = cli.json(&["dataset", "report", "rows@1"]);
    assert_eq!((&report["rows_read"], &report["labels_after"]["en-GB"]), (&60.into(), &60.into()));

    for family in Family::ALL {
        let folder = family.write(up.folder.path()).display().to_string();
        let added = cli.json(&["base", "add", &folder, "--name", family.base(), "--dtype", "f32"]);
        assert_eq!((&added["name"], &added["quant"]), (&family.base().into(), &"nf4".into()));
    }
    let listed = cli.json(&["base", "list"]);
    let names: Vec<_> = listed.as_array().expect("a list").iter().filter_map(|base| base["name"].as_str()).collect();
    assert_eq!(names, ["little-llama", "little-t5"]);
    let preview = cli.json(&["dataset", "preview", "rows", "--base", "little-llama", "--rows", "1"]);
    let tokens = preview[0]["tokens"].as_array().expect("tokens");
    assert!(
        tokens.iter().any(|token| token["in_loss"] == true) && tokens.iter().any(|token| token["in_loss"] == false)
    );
}

fn jobs(cli: &Cli) -> String {
    let train = ["train", "--base", "little-t5", "--dataset", "rows@1", "--adapter", "polish", "--rank", "4"];
    let small = ["--epochs", "1000", "--batch", "8", "--micro-batch", "8", "--max-new-tokens", "6"];
    let few = ["--max-steps", "4", "--max-validation-rows", "2"];
    let lines = cli.lines(&[&train[..], &small, &few].concat());
    let done = lines.last().expect("the job");
    assert_eq!((&done["state"], &done["adapter_version"]), (&"SUCCEEDED".into(), &1.into()));
    assert!(lines.len() > 5 && lines[0]["sequence"] == 1, "its events come first, one a line");
    let id = done["id"].as_str().expect("id").to_owned();
    assert_eq!(cli.json(&["job", "show", &id])["train"]["max_steps"], 4);
    assert_eq!(cli.lines(&["job", "watch", &id, "--from", "3"])[0]["sequence"], 3);

    let endless = [&train[..], &small, &["--max-steps", "1000000", "--detach", "--idempotency-key", "k"]].concat();
    let detached = cli.json(&endless)["id"].as_str().expect("id").to_owned();
    assert_eq!(cli.json(&endless)["id"], *detached, "the same key is the same job");
    let cancelled = cli.json(&["job", "cancel", &detached]);
    assert_eq!(cancelled["state"], "CANCELLED");
    let listed = cli.json(&["job", "list"]);
    let ids: Vec<_> = listed.as_array().expect("a list").iter().filter_map(|job| job["id"].as_str()).collect();
    assert_eq!(ids, [&detached, &id], "newest first");
    id
}

fn adapters(up: &Up, cli: &Cli, job: &str) {
    let shown = cli.json(&["adapter", "show", "polish"]);
    assert_eq!((&shown["version"], &shown["job_id"]), (&1.into(), &job.into()));
    let folder = up.folder.join("peft").display().to_string();
    cli.json(&["adapter", "export", "polish@1", &folder]);
    let template = ["--template", "Polish: {input}"];
    let imported =
        cli.json(&[&["adapter", "import", &folder, "--name", "polish", "--base", "little-t5"][..], &template].concat());
    assert_eq!(imported["version"], 2);
    assert_eq!(imported["weights_digest"], shown["weights_digest"], "what went out came in unchanged");
    assert_eq!(imported["digest"], shown["digest"], "and is the same adapter");

    assert_eq!(cli.json(&["adapter", "set-alias", "polish", "production", "1", "--expect", "0"])["sequence"], 1);
    assert_eq!(
        cli.json(&["adapter", "set-alias", "polish", "production", "2", "--why", "newer"])["previous_version"],
        1
    );
    let back = cli.json(&["adapter", "rollback", "polish", "production", "--why", "worse"]);
    assert_eq!((&back["version"], &back["rollback"]), (&1.into(), &true.into()));
    let history = cli.json(&["adapter", "history", "polish", "production"]);
    let to: Vec<_> = history.as_array().expect("moves").iter().filter_map(|moved| moved["version"].as_u64()).collect();
    assert_eq!(to, [1, 2, 1], "newest first");
    let listed = cli.json(&["adapter", "list"]);
    assert_eq!((&listed[0]["latest_version"], &listed[0]["aliases"]["production"]), (&2.into(), &1.into()));
    let versions = cli.json(&["adapter", "versions", "polish"]);
    assert_eq!(versions.as_array().expect("versions").len(), 2);
}

/// A base and its adapter as one folder answer as the two apart.
fn merged(up: &Up, cli: &Cli) {
    let folder = |name: &str| up.folder.join(name).display().to_string();
    let (whole, half, coded) = (folder("whole"), folder("half"), folder("coded"));
    let merge = |dir: &str, how: &[&str]| cli.json(&[&["adapter", "merge", "polish@production", dir], how].concat());
    let exact = merge(&whole, &["--dtype", "f32"]);
    assert_eq!((&exact["version"], &exact["difference"]["update_survives"]), (&1.into(), &1.0.into()));
    assert_eq!(exact["difference"]["largest_error"], 0.0);
    cli.json(&["base", "add", &whole, "--name", "polished", "--dtype", "f32", "--quant", "none"]);
    let score = |model: &[&str]| -> Vec<f64> {
        let ask = [&["score", "--prompt-ids", "40,41,42", "--token-ids", "43,44,45,1"], model].concat();
        let tokens = cli.json(&ask)["tokens"].as_array().expect("tokens").clone();
        tokens.iter().map(|token| token["logprob"].as_f64().expect("a figure")).collect()
    };
    let (apart, together) = (score(&["--adapter", "polish@production"]), score(&["--base", "polished"]));
    let differences = apart.iter().zip(&together).map(|(apart, together)| (apart - together).abs());
    assert!(differences.fold(0.0, f64::max) < 1e-4, "{apart:?} {together:?}");
    // The registry's own merge is the same base.
    let there = ["adapter", "merge", "polish@production", "--register", "polished-there", "--dtype", "f32"];
    let made = cli.json(&there);
    assert_eq!((&made["created"], &made["version"], &made["update_survives"]), (&true.into(), &1.into(), &1.0.into()));
    assert_eq!(score(&["--base", "polished-there"]), together);
    assert_eq!(cli.json(&there)["created"], false);

    let rounded = merge(&half, &["--shard-size", "20KB"]);
    assert!(rounded["files"].as_u64() > Some(1) && rounded["difference"]["largest_error"].as_f64() > Some(0.0));
    assert!(rounded["worst"]["tensor"].as_str().is_some_and(|name| name.ends_with(".weight")), "{rounded}");
    for file in ["model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"] {
        assert!(up.folder.join("half").join(file).is_file(), "{file}");
    }
    let four_bits = merge(&coded, &["--quant", "nf4"]);
    let error = |report: &Value| report["difference"]["error_of_update"].as_f64().expect("a figure");
    assert!(error(&four_bits) > error(&rounded), "{four_bits} {rounded}");
    let said = cli.text(&["adapter", "merge", "polish@1", &folder("said")]);
    for part in ["of the update", "survives", "worst: ", "loads with transformers"] {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
    cli.refused(&["adapter", "merge", "polish@1", &coded]).says("ERROR", &["coded", "is not empty"]);
}

/// GGUF files; llama.cpp reads such ones in tests/parity/check_gguf.py.
fn for_llama_cpp(up: &Up, cli: &Cli) {
    let path = |name: &str| up.folder.join(name).display().to_string();
    let (peft, whole, alone, new) = (path("turned"), path("whole.gguf"), path("alone.gguf"), path("new.gguf"));
    let base = repository().join("bases/tiny-llama").display().to_string();
    cli.json(&["base", "add", &base, "--name", "tiny-llama"]);
    little_adapter(Path::new(&peft));
    cli.json(&["adapter", "import", &peft, "--name", "turned", "--base", "tiny-llama"]);

    let merged = cli.json(&["adapter", "merge", "turned", &whole, "--format", "gguf", "--dtype", "f16"]);
    assert_eq!((&merged["gguf"]["architecture"], &merged["files"]), (&"llama".into(), &1.into()));
    assert!(merged["difference"]["update_survives"].as_f64() > Some(0.9), "{merged}");
    let exported = cli.json(&["adapter", "export", "turned@1", &alone, "--format", "gguf"]);
    assert_eq!((&exported["gguf"]["layers"], &exported["gguf"]["alpha"]), (&1.into(), &4.0.into()));
    for (report, file) in [(&merged, &whole), (&exported, &alone)] {
        let bytes = std::fs::read(file).expect("the file");
        assert!(bytes.starts_with(b"GGUF") && report["gguf"]["size_bytes"] == bytes.len(), "{report}");
    }
    let said = cli.text(&["adapter", "export", "turned", &path("said.gguf"), "--format", "gguf", "--dtype", "bf16"]);
    assert!(said.contains("--lora") && said.contains("trained on tiny-llama in nf4"), "{said}");

    let refused = |command: &str, adapter: &str, file: &str, how: &[&str]| {
        cli.refused(&[&["adapter", command, adapter, file, "--format", "gguf"], how].concat())
    };
    refused("merge", "turned", &whole, &[]).says("ERROR", &["whole.gguf", "new file"]);
    refused("merge", "turned", &new, &["--quant", "nf4"]).says("ERROR", &["--quant nf4", "llama-quantize"]);
    for command in ["merge", "export"] {
        refused(command, "polish@1", &new, &[]).says("ERROR", &["\"t5\"", "transformers"]);
    }
    cli.refused(&["adapter", "export", "turned", &new, "--dtype", "f16"]).says("ERROR", &["--dtype", "--format gguf"]);
}

/// A PEFT folder for one layer of tiny-llama, of rank 2.
fn little_adapter(folder: &Path) {
    std::fs::create_dir(folder).expect("a folder");
    let config = r#"{"peft_type":"LORA","task_type":"CAUSAL_LM","r":2,"lora_alpha":4,"target_modules":["q_proj"],
"layers_to_transform":[0]}"#;
    std::fs::write(folder.join("adapter_config.json"), config).expect("write");
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora";
    let header = format!(
        r#"{{"{name}_A.weight":{{"dtype":"F32","shape":[2,128],"data_offsets":[0,1024]}},"{name}_B.weight":{{"dtype":"F32",
"shape":[128,2],"data_offsets":[1024,2048]}}}}"#
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..512).flat_map(|at| ((at % 7) as f32 * 0.01 - 0.03).to_le_bytes()));
    std::fs::write(folder.join("adapter_model.safetensors"), bytes).expect("write");
}

fn ranks(up: &Up, cli: &Cli) {
    let plot = up.folder.join("spectrum.svg").display().to_string();
    let spectrum = cli.json(&["adapter", "spectrum", "polish@1", "-o", &plot]);
    let layers = spectrum["layers"].as_array().expect("layers");
    assert!(layers.iter().all(|layer| layer["rank"] == 4 && layer["singular_values"][3].is_f64()), "{layers:?}");
    let drawn = std::fs::read_to_string(&plot).expect("the plot");
    assert!(drawn.starts_with("<svg") && drawn.contains("polish@1 on little-t5"), "{drawn}");

    let compress = ["adapter", "compress", "polish@1", "--as", "slim"];
    let slim = cli.json(&[&compress[..], &["--rank", "2", "--rows", "3"]].concat());
    let metrics = &slim["metrics"];
    assert_eq!((&slim["version"], &slim["from"], &metrics["rows"]), (&1.into(), &"polish@1".into(), &3.0.into()));
    let chrf = ["chrf", "uncompressed_chrf"].map(|name| metrics[name].as_f64());
    assert!(chrf.iter().all(Option::is_some), "{metrics}");
    let lost = slim["energy_lost"].as_f64().expect("a share");
    assert!(lost > 0.0 && lost < 1.0 && metrics["energy_lost"] == lost, "{metrics}");
    let shown = cli.json(&["adapter", "show", "slim@1"]);
    let notes = shown["notes"].as_str().expect("notes");
    for part in ["compressed from polish@1", "rank 4 → 2", "energy lost", "3 held-out rows"] {
        assert!(notes.contains(part), "{part:?} is missing in {notes}");
    }
    assert_eq!((&shown["dataset"], &shown["metrics"]), (&"rows@1".into(), metrics), "the lineage is its parent's");
    let candidate = cli.json(&["adapter", "show", "slim.candidate"]);
    assert_eq!(candidate["digest"], shown["digest"], "what was measured is what was published");
    let refused = cli.refused(&[&compress[..], &["--rank", "4", "--rows", "0"]].concat());
    refused.says("ERROR", &["every layer would keep the rank it has", "ask for less"]);
    cli.refused(&compress).says("USAGE", &["--rank", "--energy"]);

    let same = cli.json(&["adapter", "compare", "polish@1", "polish@2"]);
    let mean = |found: &Value, name: &str| found["mean"][name].as_f64().expect("a mean");
    assert!((mean(&same, "input_overlap") - 1.0).abs() < 1e-6 && mean(&same, "distance") < 1e-6, "{same}");
    // What is left lies within what was, and its distance is the root of the energy that is gone.
    let less = cli.json(&["adapter", "compare", "polish@1", "slim"]);
    assert!((mean(&less, "output_overlap") - 1.0).abs() < 1e-4, "{less}");
    let pairs = less["layers"].as_array().expect("layers").iter().zip(slim["layers"].as_array().expect("layers"));
    for (compared, compressed) in pairs.filter(|(compared, _)| compared["distance"].is_f64()) {
        let distance = compared["distance"].as_f64().expect("a distance");
        let lost = compressed["energy_lost"].as_f64().expect("a share");
        assert!((distance * distance - lost).abs() < 1e-4, "{compared} lost {lost}");
    }
    let text = cli.text(&["generate", "--adapter", "slim", "--max-new-tokens", "4", "anna sees a boat"]);
    assert!(text.ends_with('\n'), "it is served: {text:?}");
}

fn text(cli: &Cli) {
    let ask = ["generate", "--adapter", "polish@production", "--max-new-tokens", "8", "anna sees a boat"];
    let answer = cli.json(&ask);
    assert_eq!(answer["adapter_version"], 1);
    assert_eq!(cli.json(&ask)["text"], answer["text"], "greedy answers repeat");
    assert_eq!(cli.text(&ask).trim_end_matches('\n'), answer["text"].as_str().expect("text"));
    let base = cli.json(&["generate", "--base", "little-llama", "--max-new-tokens", "3", "--raw", "x"]);
    assert_eq!(
        (&base["adapter_digest"], &base["completion_tokens"].as_u64().is_some_and(|n| n <= 3)),
        (&"".into(), &true)
    );
    let sampled = |seed: &str| {
        let sampling = ["--temperature", "1.5", "--seed", seed, "--max-new-tokens", "16"];
        cli.json(&[&["generate", "--base", "little-llama", "anna"][..], &sampling].concat())["text"].clone()
    };
    assert_eq!(sampled("7"), sampled("7"), "a seed repeats its answer");

    let by_text = cli.json(&["score", "--base", "little-t5", "--prompt", "anna", "--text", "Anna"]);
    let tokens = by_text["tokens"].as_array().expect("tokens");
    assert!(tokens.iter().all(|token| token["logprob"].as_f64().is_some_and(|logprob| logprob < 0.0)), "{tokens:?}");
    let decoder = cli.json(&["score", "--base", "little-llama", "--token-ids", "40,41,42"]);
    assert_eq!(decoder["tokens"][0]["logprob"], Value::Null, "nothing predicts a decoder's first token");
    assert!(decoder["tokens"][2]["logprob"].is_f64());
    let prefixed = cli.json(&["score", "--base", "little-llama", "--prompt-ids", "40", "--token-ids", "41,42"]);
    assert_eq!(prefixed["tokens"][1]["logprob"], decoder["tokens"][2]["logprob"], "a prefix is a prefix");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_use_is_refused_to_a_second_system() {
    let up = Up::start().await;
    let refused = up.cli().refused(&["up", "--port", "0"]);
    refused.says("ERROR", &["another tailor runs on", &up.state.display().to_string(), "--state"]);
    assert!(up.cli().json(&["base", "list"]).is_array(), "the first one goes on");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let folder = TempDir::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let refused = Cli::new(folder.path()).refused(&["up", "--port", &address.port().to_string()]);
    refused.says("ERROR", &["--port", &address.to_string(), "another program listens there", "0 finds a free one"]);

    for service in ["tailor-dataset", "tailor-registry", "tailor-gateway"] {
        let mut command = command(service);
        command.args(["--listen", &address.to_string(), "--set", "store.url=memory://"]);
        let done = command.current_dir(folder.path()).output().expect("run a service");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(done.status.code(), Some(1));
        for part in [&format!("settings: listen: {address} cannot be bound"), "another program listens there"] {
            assert!(said.contains(part), "{part:?} is missing in: {said}");
        }
    }
}

#[test]
fn where_nobody_answers_the_command_line_says_how_to_start_one() {
    let folder = TempDir::new();
    let nobody = format!("http://127.0.0.1:{}", tailor_testkit::free_port());
    let cli = Cli::new(folder.path()).env("TAILOR_DATASET_URL", nobody);
    let refused = cli.refused(&["dataset", "list"]);
    refused.says("UNAVAILABLE", &["no Tailor answers there", "`tailor up`", "TAILOR_DATASET_URL"]);
    assert_eq!(refused.status, 2, "a script may try this again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_under_way_goes_on_after_a_restart_whichever_way_it_ended() {
    let mut up = Up::start().await;
    up.add_base_and_rows(Family::T5).await;
    for (adapter, end) in [("stopped", in_order as fn(&mut Process)), ("killed", Process::kill)] {
        let training = Training { base: Family::T5.base(), dataset: "rows", adapter, steps: 250, key: "" };
        let job = up.addresses.create(&training).await;
        up.addresses.wait_for_steps(&job.id).await;
        up.again(end).await;
        let job = up.addresses.succeeded(&job.id).await;
        assert_eq!((job.attempts, job.adapter_version), (2, 1), "{adapter}");
        assert_eq!(up.addresses.versions(adapter).await, 1, "{adapter}");
    }
}

fn in_order(process: &mut Process) {
    process.terminate();
    let ended = process.wait(std::time::Duration::from_secs(30));
    assert_eq!(ended.code(), Some(0), "a stop in mid-job is in order");
}
