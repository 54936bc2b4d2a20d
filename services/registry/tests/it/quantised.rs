//! Bases as the client makes them: real folders, quantised with each code, their layers found from headers alone.

use std::path::Path;

use tailor_domain::QuantCode;
use tailor_pb::common::FileRef;
use tailor_pb::registry::{PublishVersionRequest, RegisterBaseRequest};
use tailor_quant::{QuantOptions, quantize_folder};
use tailor_testkit::{LlamaShape, T5Shape, TempDir};
use tonic::Code;

use crate::support::{Service, adapter_on, expect_status, pair};

const CODES: [QuantCode; 5] =
    [QuantCode::Nf4, QuantCode::Nf4Single, QuantCode::Fp4, QuantCode::Uniform4, QuantCode::None];

/// Quantises and registers a folder under a name that says how.
async fn add(service: &Service, family: &str, source: &Path, code: QuantCode) -> String {
    let name = format!("{family}-{}", code.as_str());
    std::fs::write(source.join("tokenizer.json"), b"{}").expect("a tokenizer");
    let work = TempDir::new();
    let target = work.join("quantised");
    let options = QuantOptions { code, ..QuantOptions::default() };
    let report = quantize_folder(source, &target, &options, &mut |_| {}).expect("quantised");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&target).expect("the folder") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("a file");
        let file_name = path.file_name().expect("a name").to_string_lossy().into_owned();
        files.push(FileRef { name: file_name, digest: service.upload(&bytes).await, size_bytes: bytes.len() as u64 });
    }
    let request = RegisterBaseRequest {
        name: name.clone(),
        fingerprint: report.fingerprint.to_string(),
        quant: code.as_str().into(),
        dtype: "bf16".into(),
        files,
        parameters: report.parameters,
    };
    service.client.clone().register_base(request).await.expect("registered");
    name
}

async fn publish(
    service: &Service,
    base: &str,
    module: &str,
    inputs: usize,
    outputs: usize,
) -> Result<u64, tonic::Status> {
    let request = service.request_for("grammar", &adapter_on(module, pair(4, inputs, outputs, 1))).await;
    let request = PublishVersionRequest { base: base.into(), ..request };
    Ok(service.publish(request).await?.version)
}

#[tokio::test]
async fn the_true_shapes_of_a_llama_are_known_under_every_code() {
    let service = Service::start().await;
    let source = TempDir::new();
    LlamaShape::default().write(source.path(), 1).expect("written");
    for code in CODES {
        let base = add(&service, "llama", source.path(), code).await;
        for (module, inputs, outputs) in [
            ("model.layers.1.mlp.down_proj", 128, 64),
            ("model.layers.0.self_attn.k_proj", 64, 32),
            ("lm_head", 64, 96),
        ] {
            publish(&service, &base, module, inputs, outputs).await.unwrap_or_else(|error| panic!("{base}: {error}"));
            let turned = publish(&service, &base, module, outputs, inputs).await;
            expect_status(turned, Code::InvalidArgument, &[module, &format!("{outputs}x{inputs} in the base")]);
        }
        let beyond = publish(&service, &base, "model.layers.2.mlp.down_proj", 128, 64).await;
        expect_status(beyond, Code::InvalidArgument, &["not in the base"]);
    }
}

#[tokio::test]
async fn the_true_shapes_of_a_t5_are_known_under_every_code() {
    let service = Service::start().await;
    let source = TempDir::new();
    T5Shape::default().write(source.path(), 1).expect("written");
    for code in CODES {
        let base = add(&service, "t5", source.path(), code).await;
        for (module, inputs, outputs) in [
            ("encoder.block.1.layer.1.DenseReluDense.wi_0", 64, 128),
            ("decoder.block.0.layer.1.EncDecAttention.q", 64, 64),
            ("decoder.block.0.layer.2.DenseReluDense.wo", 128, 64),
        ] {
            publish(&service, &base, module, inputs, outputs).await.unwrap_or_else(|error| panic!("{base}: {error}"));
        }
        for embedding in ["shared", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"] {
            let outcome = publish(&service, &base, embedding, 64, 96).await;
            expect_status(outcome, Code::InvalidArgument, &["not in the base"]);
        }
    }
}
