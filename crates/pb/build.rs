//! Compiles the protos with protox, so that no `protoc` is needed to build Tailor.

use std::path::PathBuf;

use prost::Message as _;

const PROTOS: [&str; 8] = [
    "tailor/dataset/v1/dataset.proto",
    "tailor/training/v1/training.proto",
    "tailor/registry/v1/registry.proto",
    "tailor/registry/v1/rollouts.proto",
    "tailor/inference/v1/inference.proto",
    "tailor/inference/v1/adapter_admin.proto",
    "tailor/inference/v1/rollout_admin.proto",
    "tailor/inference/v1/engine.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let descriptors = protox::compile(PROTOS, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // Server reflection answers from these bytes.
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().build_transport(true).compile_fds(descriptors)?;
    Ok(())
}
