//! The registry as a model hub: the stock client of hubs, and our own, load adapters and bases by pointing at it.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tailor_pb::registry;

use crate::support::clients::Addresses;
use crate::support::process::repository;
use crate::support::{Family, Training, Up};

/// What huggingface_hub finds under a name.
fn read(python: &std::ffi::OsStr, at: &Addresses, up: &Up, name: &str, revision: &str) -> Value {
    let ended = Command::new(python)
        .arg(repository().join("tests/python/hub_client.py"))
        .arg(up.folder.join("hub-cache"))
        .args([name, revision])
        .env("HF_ENDPOINT", &at.registry)
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .output()
        .expect("python runs");
    assert!(ended.status.success(), "{name} at {revision}: {}", String::from_utf8_lossy(&ended.stderr));
    serde_json::from_slice(&ended.stdout).expect("json")
}

async fn version(at: &Addresses, number: u64) -> registry::AdapterVersion {
    let request = registry::GetVersionRequest { adapter: "polish".into(), version: number };
    at.registry().get_version(request).await.expect("a version").into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_client_reads_versions_by_number_alias_and_commit() {
    let Some(python) = std::env::var_os("TAILOR_TEST_PYTHON").filter(|path| !path.is_empty()) else {
        println!("skipped: TAILOR_TEST_PYTHON is not set; `cargo xtask test` sets it");
        return;
    };
    let mut up = Up::start().await;
    up.add_base_and_rows(Family::T5).await;
    let at = up.addresses.clone();
    for key in ["one", "two"] {
        let steps = if key == "one" { 2 } else { 3 };
        at.succeeded(
            &at.create(&Training { base: Family::T5.base(), dataset: "rows", adapter: "polish", steps, key }).await.id,
        )
        .await;
    }
    up.cli().json(&["adapter", "set-alias", "polish", "production", "1"]);
    let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
    let found = |name: &str, revision: &str| read(&python, &at, &up, name, revision);
    let (latest, first) = (found("adapters/polish", "main"), found("adapters/polish", "production"));
    for (repository, number) in [(&latest, 2), (&first, 1)] {
        let version = version(&at, number).await;
        assert_eq!(repository["files"]["adapter_model.safetensors"], hex(&version.weights_digest));
        assert_eq!(repository["files"]["adapter_config.json"], hex(&version.config_digest));
        assert_eq!(repository["sizes"]["adapter_model.safetensors"], version.weights_size_bytes);
        assert_eq!(repository["files"]["tokenizer.json"], hex(&version.tokenizer_digest), "its tokenizer is with it");
        assert_eq!(repository["info"]["sha"], repository["commit"]);
        let siblings = repository["info"]["siblings"].as_array().expect("files").len();
        assert_eq!(siblings, repository["files"].as_object().expect("files").len());
        let refused = json!({"repository": "RepositoryNotFoundError", "revision": "RevisionNotFoundError",
            "entry": "RemoteEntryNotFoundError"});
        assert_eq!(repository["refused"], refused);
    }
    assert_ne!(latest["commit"], first["commit"]);
    assert_eq!(found("adapters/polish", "1")["files"], first["files"], "by number");
    assert_eq!(found("adapters/polish", first["commit"].as_str().expect("text"))["files"], first["files"], "by commit");

    // A base under its own name is what an adapter's base_model_name_or_path asks for.
    let request = registry::GetBaseRequest { name: Family::T5.base().into() };
    let base = at.registry().get_base(request).await.expect("a base").into_inner();
    for name in [Family::T5.base().to_owned(), format!("bases/{}", Family::T5.base())] {
        let got = found(&name, "main");
        for file in &base.files {
            assert_eq!(got["files"][&file.name], hex(&file.digest), "{name}: {}", file.name);
        }
    }
    is_an_artefact(&up, &version(&at, 2).await);
    // Our own client takes a base from there, as from any hub.
    let id = format!("bases/{}", Family::T5.base());
    let cli = up.cli().env("HF_ENDPOINT", at.registry.clone());
    let again = cli.json(&["base", "add", &id, "--name", "fetched", "--dtype", "f32"]);
    assert_eq!((&again["parameters"], &again["quant"]), (&base.parameters.into(), &"nf4".into()), "{again}");
    assert_eq!(up.stop(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_behind_a_token_lets_nobody_else_in_and_parts_are_parts() {
    let mut up = Up::with(&[("TAILOR__AUTH__TOKEN", "s3cret")]).await;
    let folder = Family::T5.write(up.folder.path());
    let cli = up.cli().env("TAILOR_TOKEN", "s3cret");
    cli.json(&["base", "add", &folder.display().to_string(), "--name", "little", "--dtype", "f32"]);
    let ask = |headers: &[&str], path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-i", "--max-time", "20"]);
        for header in headers {
            curl.args(["-H", header]);
        }
        let ended = curl.arg(format!("{}{path}", up.addresses.registry)).output().expect("curl runs");
        String::from_utf8_lossy(&ended.stdout).into_owned()
    };
    let path = "/little/resolve/main/config.json";
    let refused = ask(&[], path);
    assert!(!refused.contains("model_type"), "{refused}");
    let token = "Authorization: Bearer s3cret";
    let whole = ask(&[token], path);
    let (_, body) = whole.split_once("\r\n\r\n").expect("a body");
    assert!(whole.starts_with("HTTP/1.1 200") && body.contains("model_type"), "{whole}");
    let part = ask(&[token, "Range: bytes=3-9"], path);
    let (head, seven) = part.split_once("\r\n\r\n").expect("a body");
    assert!(head.starts_with("HTTP/1.1 206"), "{head}");
    assert!(head.contains(&format!("content-range: bytes 3-9/{}", body.len())), "{head}");
    assert_eq!(seven, &body[3..10]);
    let beyond = ask(&[token, "Range: bytes=999999-"], path);
    assert!(beyond.starts_with("HTTP/1.1 416") && beyond.contains("there is none from 999999 on"), "{beyond}");
    let other = ask(&[token], "/little/resolve/main/..%2F..%2Fjobs");
    assert!(other.starts_with("HTTP/1.1 404") && other.contains("EntryNotFound"), "{other}");
    assert_eq!(up.stop(), Some(0));
}

/// `tailor adapter export --format oci`: every blob is named by its digest, and the manifest leads to the registry's own.
fn is_an_artefact(up: &Up, version: &registry::AdapterVersion) {
    let folder = up.folder.join("artefact");
    up.cli().json(&["adapter", "export", "polish@2", &folder.display().to_string(), "--format", "oci"]);
    let json = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("json") };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        let path = folder.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
        let bytes = std::fs::read(&path).expect("a blob");
        assert_eq!(tailor_domain::Digest::of(&bytes).to_string(), digest);
        assert_eq!(descriptor["size"], bytes.len());
        path
    };
    assert_eq!(json(&folder.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let entry = &json(&folder.join("index.json"))["manifests"][0];
    assert_eq!(entry["annotations"]["org.opencontainers.image.ref.name"], "polish-2");
    let manifest = json(&blob(entry));
    assert_eq!(manifest["artifactType"], "application/vnd.tailor.adapter.v1");
    assert_eq!(manifest["annotations"]["dev.tailor.digest"], version.digest);
    assert_eq!(std::fs::read(blob(&manifest["config"])).expect("the empty config"), b"{}");
    let expected =
        [("adapter_config.json", &version.config_digest), ("adapter_model.safetensors", &version.weights_digest)];
    for (layer, (title, digest)) in manifest["layers"].as_array().expect("layers").iter().zip(expected) {
        assert_eq!(
            (&layer["annotations"]["org.opencontainers.image.title"], &layer["digest"]),
            (&title.into(), &json!(digest))
        );
        blob(layer);
    }
    // The client of container registries reads it, where there is one.
    let target = up.folder.join("copied");
    let from = format!("oci:{}:polish-2", folder.display());
    match Command::new("skopeo").args(["copy", "-q", &from, &format!("dir:{}", target.display())]).status() {
        Ok(status) => assert!(status.success() && target.join("manifest.json").is_file()),
        Err(_) => println!("skopeo is not installed; the layout was checked by itself"),
    }
}
