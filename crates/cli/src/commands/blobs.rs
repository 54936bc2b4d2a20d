//! Blobs to and from the registry, in chunks; what breaks off is gone on with.

use std::io::SeekFrom;
use std::path::Path;

use anyhow::Context as _;
use indicatif::ProgressBar;
use tailor_domain::Digest;
use tailor_pb::registry as pb;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_pb::registry::upload_blob_request::Part;
use tailor_serverkit::client::Client;
use tokio::io::{AsyncRead, AsyncSeekExt as _, AsyncWriteExt as _};

use super::transfer::{self, Attempts};

/// Uploads a file under its digest.
pub async fn upload_file(
    client: &mut AdapterRegistryClient<Client>,
    path: &Path,
    digest: &Digest,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let cannot = || format!("cannot read {}", path.display());
    let size_bytes = tokio::fs::metadata(path).await.with_context(cannot)?.len();
    let open = async |offset| {
        let mut file = tokio::fs::File::open(path).await.with_context(cannot)?;
        file.seek(SeekFrom::Start(offset)).await.with_context(cannot)?;
        Ok(file)
    };
    upload(client, open, size_bytes, digest, bar).await
}

pub async fn upload_bytes(client: &mut AdapterRegistryClient<Client>, bytes: &[u8]) -> anyhow::Result<Digest> {
    let digest = Digest::of(bytes);
    let open = async |offset: u64| Ok(std::io::Cursor::new(bytes.get(offset as usize..).unwrap_or_default().to_vec()));
    upload(client, open, bytes.len() as u64, &digest, &ProgressBar::hidden()).await?;
    Ok(digest)
}

/// `open` gives the bytes from an offset on. What breaks off is gone on with where the registry has it.
async fn upload<S: AsyncRead + Unpin + Send + 'static>(
    client: &mut AdapterRegistryClient<Client>,
    open: impl AsyncFn(u64) -> anyhow::Result<S>,
    size_bytes: u64,
    digest: &Digest,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let begun_at = bar.position();
    let mut offset = 0;
    let mut attempts = Attempts::default();
    loop {
        bar.set_position(begun_at + offset);
        let header = pb::BlobHeader { digest: digest.to_string(), size_bytes, offset };
        let header = pb::UploadBlobRequest { part: Some(Part::Header(header)) };
        let chunk = |bytes| pb::UploadBlobRequest { part: Some(Part::Chunk(bytes)) };
        let sent =
            transfer::send(header, open(offset).await?, chunk, bar, async |parts| client.upload_blob(parts).await);
        let Err(error) = sent.await else { return Ok(()) };
        attempts.after(error).await?;
        let request = pb::GetUploadRequest { digest: digest.to_string() };
        // A registry that is away has this attempt count as well.
        let Ok(answer) = client.get_upload(request).await else { continue };
        let answer = answer.into_inner();
        if answer.stored {
            return Ok(());
        }
        offset = answer.received_bytes.min(size_bytes);
    }
}

/// The blob's chunks from the beginning to the end, gone on with where the stream breaks off; each is given to `take`.
async fn receive(
    client: &mut AdapterRegistryClient<Client>,
    digest: &str,
    mut take: impl AsyncFnMut(Vec<u8>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut offset = 0;
    let mut attempts = Attempts::default();
    loop {
        let request = pb::DownloadBlobRequest { digest: digest.to_owned(), offset };
        let error = match client.download_blob(request).await {
            Err(error) => error,
            Ok(stream) => {
                let mut stream = stream.into_inner();
                loop {
                    match stream.message().await {
                        Ok(None) => return Ok(()),
                        Ok(Some(part)) => {
                            offset += part.chunk.len() as u64;
                            take(part.chunk).await?;
                        }
                        Err(error) => break error,
                    }
                }
            }
        };
        attempts.after(error).await?;
    }
}

/// Downloads a blob and checks it.
pub async fn download(client: &mut AdapterRegistryClient<Client>, digest: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    receive(client, digest, async |chunk| {
        bytes.extend_from_slice(&chunk);
        Ok(())
    })
    .await?;
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
    let cannot = || format!("cannot write {}", path.display());
    let mut file = tokio::fs::File::create_new(path).await.with_context(cannot)?;
    let mut hasher = <sha2::Sha256 as sha2::Digest>::new();
    receive(client, digest, async |chunk| {
        sha2::Digest::update(&mut hasher, &chunk);
        file.write_all(&chunk).await.with_context(cannot)?;
        bar.inc(chunk.len() as u64);
        Ok(())
    })
    .await?;
    file.flush().await.with_context(cannot)?;
    let found = Digest::from_sha256(&sha2::Digest::finalize(hasher).into());
    anyhow::ensure!(found.as_str() == digest, "blob {digest} arrived as {found}; download it again");
    Ok(())
}
