//! An adapter as an OCI artefact: an image layout that `oras`, `skopeo` and container registries take as it is.
//!
//! Image specification 1.1: `oci-layout`, `index.json`, and blobs by their sha256. The manifest has an artifact type, the empty
//! config, and a layer for each file with its name in `org.opencontainers.image.title`. The blobs' digests are those of the
//! registry's own blobs, so what is the same there is the same here.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use oci_spec::image::{
    ANNOTATION_REF_NAME, ANNOTATION_TITLE, Descriptor, DescriptorBuilder, ImageIndexBuilder, ImageManifestBuilder,
    MediaType, OciLayoutBuilder, SCHEMA_VERSION, Sha256Digest,
};
use sha2::Digest as _;
use tailor_pb::registry as pb;

use crate::output::time;

const ARTIFACT_TYPE: &str = "application/vnd.tailor.adapter.v1";
const CONFIG_TYPE: &str = "application/vnd.tailor.adapter.config.v1+json";
const WEIGHTS_TYPE: &str = "application/vnd.tailor.adapter.weights.v1+safetensors";
/// The two bytes `{}`: an artefact without a config of its own.
const EMPTY: &[u8] = b"{}";

/// Writes `version`, whose files these are, as an image layout to the folder `target`.
///
/// # Errors
/// The folder cannot be written.
pub fn write(target: &Path, version: &pb::AdapterVersion, config: &[u8], weights: &[u8]) -> Result<()> {
    let blobs = target.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
    let put = |bytes: &[u8], media: MediaType, title: Option<&str>| -> Result<Descriptor> {
        let digest: Sha256Digest = format!("{:x}", sha2::Sha256::digest(bytes)).parse().context("a digest")?;
        let path = blobs.join(digest.digest());
        std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        let descriptor = DescriptorBuilder::default().media_type(media).digest(digest).size(bytes.len() as u64);
        let annotations = title.map(|title| HashMap::from([(ANNOTATION_TITLE.to_owned(), title.to_owned())]));
        Ok(match annotations {
            Some(annotations) => descriptor.annotations(annotations).build()?,
            None => descriptor.build()?,
        })
    };
    let other = |name: &str| MediaType::Other(name.to_owned());
    let layers = vec![
        put(config, other(CONFIG_TYPE), Some("adapter_config.json"))?,
        put(weights, other(WEIGHTS_TYPE), Some("adapter_model.safetensors"))?,
    ];
    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .artifact_type(other(ARTIFACT_TYPE))
        .config(put(EMPTY, MediaType::EmptyJSON, None)?)
        .layers(layers)
        .annotations(annotations(version))
        .build()?;
    let mut entry = put(manifest.to_string()?.as_bytes(), MediaType::ImageManifest, None)?;
    entry.set_artifact_type(Some(other(ARTIFACT_TYPE)));
    let reference = format!("{}-{}", version.adapter, version.version);
    entry.set_annotations(Some(HashMap::from([(ANNOTATION_REF_NAME.to_owned(), reference)])));
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests(vec![entry])
        .build()?;
    OciLayoutBuilder::default().image_layout_version("1.0.0").build()?.to_file(target.join("oci-layout"))?;
    // Last: a folder with an index is whole.
    index.to_file(target.join("index.json"))?;
    Ok(())
}

/// Where it comes from, so that whoever has the artefact alone can find it.
fn annotations(version: &pb::AdapterVersion) -> HashMap<String, String> {
    let created = format!("{}Z", time(version.created_at_ms).replace(' ', "T")); // RFC 3339
    let mut all: HashMap<String, String> = [
        ("org.opencontainers.image.title", version.adapter.clone()),
        ("org.opencontainers.image.version", version.version.to_string()),
        ("org.opencontainers.image.created", created),
        ("dev.tailor.digest", version.digest.clone()),
        ("dev.tailor.base", version.base.clone()),
        ("dev.tailor.base-fingerprint", version.base_fingerprint.clone()),
        ("dev.tailor.quant", version.quant.clone()),
        ("dev.tailor.prompt-template", version.prompt_template.clone()),
        ("dev.tailor.dataset", version.dataset.clone()),
        ("dev.tailor.job", version.job_id.clone()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    all.retain(|_, value| !value.is_empty());
    all
}
