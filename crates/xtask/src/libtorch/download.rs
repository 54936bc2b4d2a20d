//! Fetches byte ranges of a remote file into partial files, so that what broke off goes on where it stopped.
//!
//! Where a server (or a proxy before it) ignores ranges, the whole file is fetched once instead, and every later piece
//! is read from it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

use super::progress::Progress;

/// A smaller piece is there before a bar could be read.
const BAR_FROM_BYTES: u64 = 4 << 20;

/// How long to go on when nothing comes in. Any byte that does come in starts the count anew.
#[derive(Clone, Copy)]
pub struct Patience {
    pub attempts: u32,
    /// Doubles after each attempt in vain.
    pub first_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { attempts: 6, first_pause: Duration::from_secs(1) }
    }
}

/// A file on a server.
pub struct Remote<'a> {
    agent: &'a Agent,
    url: String,
    filename: String,
    size_bytes: u64,
    /// Where partial files live; they outlast the process.
    folder: PathBuf,
    patience: Patience,
    /// The server ignores ranges: pieces come from the whole file.
    whole: bool,
}

/// Bytes of a remote file, complete on disk but not yet checked.
pub struct Piece {
    path: PathBuf,
    /// Offset in the remote file of the piece's first byte.
    start: u64,
}

/// Why a request gave nothing.
enum Failure {
    /// Worth another try: the connection, a timeout, a busy server.
    Transient(anyhow::Error),
    Permanent(anyhow::Error),
    /// The server sent the whole file where a range was asked for.
    RangesIgnored,
}

/// An agent that trusts what the system trusts, honours the proxy variables, and gives up on silence.
pub fn agent() -> Agent {
    let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
    Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .timeout_resolve(Some(Duration::from_secs(20)))
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(Duration::from_secs(60)))
        .timeout_per_read(Some(Duration::from_secs(60)))
        .build()
        .new_agent()
}

impl<'a> Remote<'a> {
    pub fn new(agent: &'a Agent, url: String, filename: &str, size_bytes: u64, folder: &Path) -> Self {
        Self {
            agent,
            url,
            filename: filename.to_owned(),
            size_bytes,
            folder: folder.to_owned(),
            patience: Patience::default(),
            whole: false,
        }
    }

    #[cfg(test)]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// Brings a range onto the disk. With a label the progress is shown.
    pub fn piece(&mut self, range: Range<u64>, label: Option<&str>) -> Result<Piece> {
        if !self.whole {
            let path = self.folder.join(format!("{}.{}-{}.part", self.filename, range.start, range.end));
            let mut progress = match label {
                Some(label) if range.end - range.start >= BAR_FROM_BYTES => {
                    Progress::new(label, range.end - range.start)
                }
                _ => Progress::silent(),
            };
            if self.fill(&path, &range, &mut progress)? {
                return Ok(Piece { path, start: range.start });
            }
            self.whole = true;
            progress.note("the server ignores byte ranges: fetching the whole file instead");
        }
        let path = self.folder.join(format!("{}.part", self.filename));
        let mut progress = Progress::new(label.unwrap_or(&self.filename), self.size_bytes);
        self.fill(&path, &(0..self.size_bytes), &mut progress)?;
        Ok(Piece { path, start: 0 })
    }

    /// Appends to a partial file until it holds the range. Answers false where the server ignores ranges.
    fn fill(&self, path: &Path, range: &Range<u64>, progress: &mut Progress) -> Result<bool> {
        let wanted = range.end - range.start;
        let mut have = held(path);
        if have > wanted {
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
            have = 0;
        }
        if (1..wanted).contains(&have) {
            progress.resume_at(have);
        }
        let mut in_vain = 0;
        while have < wanted {
            let failure = match self.append(path, range.start + have..range.end, progress) {
                Ok(()) => anyhow!("the connection was closed early"),
                Err(Failure::Transient(error)) => error,
                Err(Failure::RangesIgnored) => return Ok(false),
                Err(Failure::Permanent(error)) => return Err(error),
            };
            let now = held(path);
            in_vain = if now > have { 0 } else { in_vain + 1 };
            have = now;
            if have >= wanted {
                break;
            }
            if in_vain == self.patience.attempts {
                let remedy = "check the network and the proxy settings (HTTPS_PROXY, PIP_INDEX_URL), then run the same \
                              command again: it goes on where it stopped";
                return Err(failure.context(format!(
                    "cannot fetch {}: {have} of {wanted} bytes after {in_vain} tries in vain; {remedy}",
                    self.url
                )));
            }
            let pause = self.patience.first_pause * 2u32.pow(in_vain);
            progress.note(&format!("{failure:#}; trying again in {:.0} s", pause.as_secs_f64()));
            thread::sleep(pause);
        }
        Ok(true)
    }

    /// One request for a range, written to the end of the partial file.
    fn append(&self, path: &Path, range: Range<u64>, progress: &mut Progress) -> Result<(), Failure> {
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let response = self
            .agent
            .get(&self.url)
            .header("Range", &header)
            .call()
            .map_err(|error| Failure::Transient(error.into()))?;
        let status = response.status().as_u16();
        let skip = match status {
            206 => 0,
            200 if self.whole => range.start,
            200 => return Err(Failure::RangesIgnored),
            408 | 429 | 500..=599 => return Err(Failure::Transient(anyhow!("HTTP {status} from {}", self.url))),
            _ => return Err(Failure::Permanent(anyhow!("HTTP {status} from {}", self.url))),
        };
        let said = response.headers().get("Content-Range").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let expected = format!("bytes {}-", range.start);
        if status == 206 && !said.as_deref().unwrap_or_default().starts_with(&expected) {
            let error = anyhow!("{} answered {header} with range {said:?}", self.url);
            return Err(Failure::Permanent(error));
        }

        let mut body = response.into_body().into_reader();
        io::copy(&mut body.by_ref().take(skip), &mut io::sink()).map_err(|error| Failure::Transient(error.into()))?;
        let open = || OpenOptions::new().create(true).append(true).open(path);
        let mut file = open().map_err(|error| Failure::Permanent(disk(path, error)))?;
        let mut body = body.take(range.end - range.start);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let read = body.read(&mut buffer).map_err(|error| Failure::Transient(error.into()))?;
            let Some(bytes @ [_, ..]) = buffer.get(..read) else { return Ok(()) };
            file.write_all(bytes).map_err(|error| Failure::Permanent(disk(path, error)))?;
            progress.add(read as u64);
        }
    }
}

impl Piece {
    /// A reader at an offset of the remote file.
    pub fn reader_at(&self, offset: u64) -> Result<File> {
        let context = || format!("cannot read {}", self.path.display());
        let mut file = File::open(&self.path).with_context(context)?;
        let place = offset.checked_sub(self.start).with_context(context)?;
        file.seek(SeekFrom::Start(place)).with_context(context)?;
        Ok(file)
    }

    /// All bytes of a range of the remote file.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let wanted = range.end - range.start;
        let mut bytes = Vec::new();
        self.reader_at(range.start)?.take(wanted).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Removes the partial file: it was unpacked, or turned out to be damaged.
    pub fn discard(&self) {
        // What cannot be removed is overwritten or ignored next time.
        let _ = fs::remove_file(&self.path);
    }
}

/// Says which file could not be written, and what to do when the disk is full.
pub fn disk(path: &Path, error: io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        io::ErrorKind::StorageFull => ": free about 700 MB there, or set TAILOR_CACHE to a folder on another disk",
        io::ErrorKind::PermissionDenied => ": make it writable, or set TAILOR_CACHE to a folder of your own",
        _ => "",
    };
    anyhow!(error).context(format!("cannot write {}{remedy}", path.display()))
}

fn held(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::super::testserver::{Answer, TestServer};
    use super::*;

    const PATIENCE: Patience = Patience { attempts: 2, first_pause: Duration::from_millis(1) };

    fn body() -> Vec<u8> {
        (0..300_000u32).map(|index| (index % 251) as u8).collect()
    }

    fn fetch(server: &TestServer, folder: &Path, range: Range<u64>) -> Result<Vec<u8>> {
        let agent = agent();
        let size = body().len() as u64;
        let mut remote = Remote::new(&agent, server.url(), "file.whl", size, folder).with_patience(PATIENCE);
        let piece = remote.piece(range.clone(), None)?;
        piece.read(range)
    }

    #[test]
    fn broken_off_range_goes_on_where_it_stopped() {
        let server = TestServer::start(body(), vec![Answer::BreakOffAfter(70_000), Answer::BreakOffAfter(1)]);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(fetch(&server, folder.path(), 1_000..250_000).unwrap(), &body()[1_000..250_000]);
        assert_eq!(server.ranges(), ["bytes=1000-249999", "bytes=71000-249999", "bytes=71001-249999"]);
    }

    #[test]
    fn later_run_goes_on_from_what_an_earlier_one_left() {
        let folder = tempfile::tempdir().unwrap();
        let breaking =
            TestServer::start(body(), vec![Answer::BreakOffAfter(500), Answer::Status(503), Answer::Status(503)]);
        let message = format!("{:#}", fetch(&breaking, folder.path(), 0..1_000).unwrap_err());
        assert!(message.contains("500 of 1000 bytes"), "{message}");
        assert!(message.contains("goes on where it stopped"), "{message}");

        let healthy = TestServer::start(body(), vec![]);
        assert_eq!(fetch(&healthy, folder.path(), 0..1_000).unwrap(), &body()[..1_000]);
        assert_eq!(healthy.ranges(), ["bytes=500-999"]);
    }

    #[test]
    fn complete_piece_asks_the_server_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let server = TestServer::start(body(), vec![]);
        fetch(&server, folder.path(), 0..1_000).unwrap();
        fetch(&server, folder.path(), 0..1_000).unwrap();
        assert_eq!(server.ranges().len(), 1);
    }

    #[test]
    fn server_that_ignores_ranges_is_read_whole() {
        let server = TestServer::start(body(), vec![Answer::Whole, Answer::WholeBreakOffAfter(90_000), Answer::Whole]);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(fetch(&server, folder.path(), 100..200).unwrap(), &body()[100..200]);
        assert_eq!(server.ranges(), ["bytes=100-199", "bytes=0-299999", "bytes=90000-299999"]);
    }

    #[test]
    fn missing_file_fails_at_once_and_names_the_url() {
        let server = TestServer::start(body(), vec![Answer::Status(404)]);
        let folder = tempfile::tempdir().unwrap();
        let message = format!("{:#}", fetch(&server, folder.path(), 0..10).unwrap_err());
        assert!(message.contains("HTTP 404") && message.contains(&server.url()), "{message}");
        assert_eq!(server.ranges().len(), 1);
    }

    #[test]
    fn unreachable_server_names_the_remedy() {
        let url = TestServer::start(body(), vec![]).stop();
        let folder = tempfile::tempdir().unwrap();
        let agent = agent();
        let mut remote = Remote::new(&agent, url.clone(), "file.whl", 10, folder.path()).with_patience(PATIENCE);
        let message = format!("{:#}", remote.piece(0..10, None).err().unwrap());
        assert!(message.contains(&url) && message.contains("check the network"), "{message}");
    }

    #[test]
    fn full_disk_names_the_file_and_the_remedy() {
        let error = disk(Path::new("/cache/x.part"), io::Error::from(io::ErrorKind::StorageFull));
        let message = format!("{error:#}");
        assert!(message.contains("/cache/x.part") && message.contains("TAILOR_CACHE"), "{message}");
    }
}
