//! Blobs to and from the registry, in chunks; what breaks off is gone on with.

use std::io::SeekFrom;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use indicatif::ProgressBar;
use tailor_domain::Digest;
use tailor_pb::registry as pb;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_serverkit::client::Client;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

const CHUNK: usize = 512 << 10;

/// Times that a transfer which broke off is gone on with.
const CONTINUATIONS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

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
    for attempt in 0.. {
        bar.set_position(begun_at + offset);
        let header = pb::BlobHeader { digest: digest.to_string(), size_bytes, offset };
        let Err(error) = send(client, header, open(offset).await?, bar).await else { return Ok(()) };
        if attempt == CONTINUATIONS || !broke_off(&error) {
            return Err(error.into());
        }
        tokio::time::sleep(PAUSE * (attempt + 1)).await;
        let request = pb::GetUploadRequest { digest: digest.to_string() };
        // A registry that is away has this attempt count as well.
        let Ok(answer) = client.get_upload(request).await else { continue };
        let answer = answer.into_inner();
        if answer.stored {
            return Ok(());
        }
        offset = answer.received_bytes.min(size_bytes);
    }
    Ok(())
}

async fn send(
    client: &mut AdapterRegistryClient<Client>,
    header: pb::BlobHeader,
    mut source: impl AsyncRead + Unpin + Send + 'static,
    bar: &ProgressBar,
) -> Result<(), Status> {
    let (parts, stream) = mpsc::channel(4);
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
    let read = reading.await.map_err(|error| Status::internal(error.to_string()))?;
    read.map_err(|error| Status::internal(format!("the file cannot be read: {error}")))
}

/// Whether the same transfer may get further: the registry or the connection went away in the middle.
fn broke_off(error: &Status) -> bool {
    matches!(error.code(), Code::Unavailable | Code::Cancelled | Code::Unknown)
}

/// The blob's chunks from the beginning to the end, gone on with where the stream breaks off; each is given to `take`.
async fn receive(
    client: &mut AdapterRegistryClient<Client>,
    digest: &str,
    mut take: impl AsyncFnMut(Vec<u8>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut offset = 0;
    let mut attempt = 0;
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
        if attempt == CONTINUATIONS || !broke_off(&error) {
            return Err(error.into());
        }
        attempt += 1;
        tokio::time::sleep(PAUSE * attempt).await;
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
