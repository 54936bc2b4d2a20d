//! GGUF files for llama.cpp: the adapter alone here; the merged model for [`super::merge`].

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};
use tailor_gguf::{AdapterOptions, AdapterReport, ModelOptions, ModelReport, write_adapter, write_model};
use tailor_pb::registry as pb;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_peft::{Adapter, Limits};
use tailor_quant::Float;
use tailor_serverkit::client::Client;

use crate::args::Export;
use crate::commands::{adapter, blobs, merge};
use crate::connect::Endpoints;
use crate::output::{Output, bytes};

/// `tailor adapter export --format gguf`
pub async fn export(endpoints: &Endpoints, command: &Export, output: &Output) -> anyhow::Result<()> {
    let mut client = endpoints.registry()?;
    let version = adapter::resolve(endpoints, &command.reference).await?;
    let base = merge::base_of(&mut client, &version).await?;
    let base_config = config(&mut client, &base).await?;
    let config = blobs::download(&mut client, &version.config_digest).await?;
    let weights = blobs::download(&mut client, &version.weights_digest).await?;
    let read = Adapter::from_bytes(&config, &weights, &Limits::default())?;
    let options = AdapterOptions {
        float: merge::float(command.dtype.as_deref().unwrap_or("f32")),
        name: format!("{}@{}", version.adapter, version.version),
        extra: lineage(&version),
    };
    let report = write_adapter(&base_config, &read, &command.dir, &options)?;
    let mut document = adapter::describe(&version);
    document["file"] = json!(command.dir);
    document["gguf"] = json!({
        "architecture": report.architecture, "layers": report.layers, "size_bytes": report.bytes,
        "alpha": report.alpha, "folded": report.folded,
    });
    output.show(&document, || say(&version, &base, &command.dir, &report))
}

fn say(version: &pb::AdapterVersion, base: &pb::Base, file: &Path, report: &AdapterReport) {
    let (name, file) = (format!("{}@{}", version.adapter, version.version), file.display());
    let layers = if report.layers == 1 { "1 layer".to_owned() } else { format!("{} layers", report.layers) };
    let size = bytes(report.bytes);
    println!("exported {name} to {file}: A and B of {layers}, {size} (llama-cli -m BASE.gguf --lora {file})");
    if report.folded > 0 {
        let alpha = report.alpha;
        println!(
            "{} layers have another rank or scale than alpha {alpha} says; the rest is multiplied into B",
            report.folded
        );
    }
    if base.quant != "none" {
        let (base, quant) = (&base.name, &base.quant);
        println!(
            "it was trained on {base} in {quant}; on {base} in other bits answers differ a little, merged they do not"
        );
    }
    say_template(version);
}

/// config.json of a base, and whether llama.cpp knows such a model: both before anything large travels.
pub async fn config(client: &mut AdapterRegistryClient<Client>, base: &pb::Base) -> anyhow::Result<Vec<u8>> {
    let file = base.files.iter().find(|file| file.name == "config.json");
    let file = file.with_context(|| format!("base {} has no config.json", base.name))?;
    let config = blobs::download(client, &file.digest).await?;
    tailor_gguf::check_config(&config)?;
    Ok(config)
}

/// The merged folder as the file `target`.
pub async fn model(
    folder: PathBuf,
    target: PathBuf,
    version: &pb::AdapterVersion,
    float: Float,
    output: &Output,
) -> anyhow::Result<ModelReport> {
    let name = format!("{} {}@{}", version.base, version.adapter, version.version);
    let options = ModelOptions { float, name, extra: lineage(version) };
    let bar = output.bar(0, "writing     [{bar:30}] {pos}/{len} tensors  {eta} left");
    let shown = bar.clone();
    let writing = tokio::task::spawn_blocking(move || {
        write_model(&folder, &target, &options, &mut |at| {
            shown.set_length(at.of as u64);
            shown.set_position(at.done as u64);
        })
    });
    let report = writing.await?;
    bar.finish_and_clear();
    Ok(report?)
}

pub fn document(report: &ModelReport) -> Value {
    json!({
        "architecture": report.architecture, "tensors": report.tensors, "size_bytes": report.bytes, "notes": report.notes,
    })
}

pub fn say_model(version: &pb::AdapterVersion, report: &ModelReport) {
    for note in &report.notes {
        println!("note: {note}");
    }
    say_template(version);
}

/// llama.cpp does not know what Tailor makes of an input.
fn say_template(version: &pb::AdapterVersion) {
    if !matches!(version.prompt_template.as_str(), "" | "{input}") {
        println!("prompts for it are made so: {:?}", version.prompt_template);
    }
}

/// Where the file is from, in its own metadata.
fn lineage(version: &pb::AdapterVersion) -> Vec<(String, tailor_gguf::Value)> {
    let facts = [
        ("tailor.adapter", format!("{}@{}", version.adapter, version.version)),
        ("tailor.adapter_digest", version.digest.clone()),
        ("tailor.base", version.base.clone()),
        ("tailor.base_fingerprint", version.base_fingerprint.clone()),
        ("tailor.prompt_template", version.prompt_template.clone()),
    ];
    facts.into_iter().map(|(key, text)| (key.to_owned(), tailor_gguf::Value::Text(text))).collect()
}
