//! Blobs to and from the registry, in chunks.

use std::path::Path;

use anyhow::Context as _;
use indicatif::ProgressBar;
use tailor_domain::Digest;
use tailor_pb::registry as pb;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_serverkit::client::Client;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const CHUNK: usize = 512 << 10;

/// Uploads a file under its digest.
pub async fn upload_file(
    client: &mut AdapterRegistryClient<Client>,
    path: &Path,
    digest: &Digest,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let file = tokio::fs::File::open(path).await.with_context(|| format!("cannot read {}", path.display()))?;
    let size_bytes = file.metadata().await?.len();
    upload(client, file, size_bytes, digest, bar).await
}

pub async fn upload_bytes(client: &mut AdapterRegistryClient<Client>, bytes: &[u8]) -> anyhow::Result<Digest> {
    let digest = Digest::of(bytes);
    let size_bytes = bytes.len() as u64;
    upload(client, std::io::Cursor::new(bytes.to_vec()), size_bytes, &digest, &ProgressBar::hidden()).await?;
    Ok(digest)
}

async fn upload(
    client: &mut AdapterRegistryClient<Client>,
    mut source: impl AsyncRead + Unpin + Send + 'static,
    size_bytes: u64,
    digest: &Digest,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let (parts, stream) = mpsc::channel(4);
    let header = pb::BlobHeader { digest: digest.to_string(), size_bytes };
    let bar = bar.clone();
    let reading = tokio::spawn(async move {
        let mut next = pb::UploadBlobRequest { part: Some(pb::upload_blob_request::Part::Header(header)) };
        // The server hangs up when it needs no more; its answer says why.
        while parts.send(next).await.is_ok() {
            let mut chunk = vec![0; CHUNK];
            let count = source.read(&mut chunk).await?;
            if count == 0 {
                break;
            }
            chunk.truncate(count);
            bar.inc(count as u64);
            next = pb::UploadBlobRequest { part: Some(pb::upload_blob_request::Part::Chunk(chunk)) };
        }
        std::io::Result::Ok(())
    });
    client.upload_blob(ReceiverStream::new(stream)).await?;
    reading.await??;
    Ok(())
}

/// Downloads a blob and checks it.
pub async fn download(client: &mut AdapterRegistryClient<Client>, digest: &str) -> anyhow::Result<Vec<u8>> {
    let request = pb::DownloadBlobRequest { digest: digest.to_owned() };
    let mut stream = client.download_blob(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = stream.message().await? {
        bytes.extend_from_slice(&part.chunk);
    }
    let found = Digest::of(&bytes);
    anyhow::ensure!(found.as_str() == digest, "blob {digest} arrived as {found}; download it again");
    Ok(bytes)
}

/// Downloads a blob into the new file `path` and checks it; no more than a chunk of it is in memory.
pub async fn download_file(
    client: &mut AdapterRegistryClient<Client>,
    digest: &str,
    path: &Path,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let request = pb::DownloadBlobRequest { digest: digest.to_owned() };
    let mut stream = client.download_blob(request).await?.into_inner();
    let cannot = || format!("cannot write {}", path.display());
    let mut file = tokio::fs::File::create_new(path).await.with_context(cannot)?;
    let mut hasher = <sha2::Sha256 as sha2::Digest>::new();
    while let Some(part) = stream.message().await? {
        sha2::Digest::update(&mut hasher, &part.chunk);
        file.write_all(&part.chunk).await.with_context(cannot)?;
        bar.inc(part.chunk.len() as u64);
    }
    file.flush().await.with_context(cannot)?;
    let found = Digest::from_sha256(&sha2::Digest::finalize(hasher).into());
    anyhow::ensure!(found.as_str() == digest, "blob {digest} arrived as {found}; download it again");
    Ok(())
}
