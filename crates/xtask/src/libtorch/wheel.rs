//! Takes chosen files out of a wheel that stays on its server: list, spans, unpack, check.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::DeflateDecoder;
use sha2::{Digest, Sha256};

use super::download::{Piece, Remote, disk};
use super::record::{self, Record};
use super::set::Wheel;
use super::zip::{self, Compression, Entry};

/// Files closer together than this are fetched by one request, with what lies between them.
const SPAN_GAP_BYTES: u64 = 1 << 20;

/// A member to take, the bytes of the wheel it lies in, and its place in the set.
struct Wanted {
    entry: Entry,
    bytes: Range<u64>,
    place: String,
}

/// Fetches, unpacks and checks a wheel's picks into a folder.
pub fn install(remote: &mut Remote, wheel: &Wheel, folder: &Path) -> Result<()> {
    let listing = Listing::fetch(remote, wheel)?;
    let mut pieces = Vec::new();
    for span in spans(&listing.wanted) {
        let range = span_range(span);
        let piece = remote.piece(range.clone(), Some(wheel.project))?;
        let piece = match unpack(&piece, span, &listing.record, folder)? {
            None => piece,
            Some(damage) => {
                eprintln!("{}: {damage}; fetching it once more", wheel.project);
                piece.discard();
                let again = remote.piece(range, Some(wheel.project))?;
                if let Some(damage) = unpack(&again, span, &listing.record, folder)? {
                    again.discard();
                    bail!("{damage} (twice); the index or a proxy serves a damaged {}", wheel.filename);
                }
                again
            }
        };
        pieces.push(piece);
    }
    pieces.iter().chain(&listing.pieces).for_each(Piece::discard);
    Ok(())
}

/// What the wheel says about itself.
struct Listing {
    wanted: Vec<Wanted>,
    record: Record,
    /// Kept until the wheel is installed, so that a resumed run need not fetch them again.
    pieces: Vec<Piece>,
}

impl Listing {
    fn fetch(remote: &mut Remote, wheel: &Wheel) -> Result<Self> {
        let size = wheel.size_bytes;
        let tail_range = size.saturating_sub(zip::TAIL_LEN)..size;
        let tail = remote.piece(tail_range.clone(), None)?;
        let context = || format!("cannot read the list of files of {}", wheel.filename);
        let directory = zip::find_directory(&tail.read(tail_range)?).with_context(context)?;
        let directory_range = directory.offset..directory.offset + directory.len;
        ensure!(directory_range.end <= size, "{}: the central directory lies beyond its end", wheel.filename);
        let list = remote.piece(directory_range.clone(), None)?;
        let entries = zip::parse_directory(&list.read(directory_range.clone())?).with_context(context)?;

        let record_entry = entries.iter().find(|entry| entry.name.ends_with(".dist-info/RECORD"));
        let record_entry = record_entry.with_context(|| format!("{} has no RECORD", wheel.filename))?;
        let mut sorted_offsets: Vec<u64> = entries.iter().map(|entry| entry.offset).collect();
        sorted_offsets.sort_unstable();
        let record_range = bytes_of(record_entry, &sorted_offsets, directory.offset);
        let record_piece = remote.piece(record_range, None)?;
        let pieces = vec![tail, list, record_piece];
        let record = match read_record(&pieces[2], record_entry, wheel) {
            Ok(record) => record,
            Err(error) => {
                pieces.iter().for_each(Piece::discard);
                return Err(error);
            }
        };

        let mut wanted = pick(&entries, wheel, |entry| bytes_of(entry, &sorted_offsets, directory.offset))?;
        wanted.sort_by_key(|wanted| wanted.bytes.start);
        Ok(Self { wanted, record, pieces })
    }
}

fn read_record(piece: &Piece, entry: &Entry, wheel: &Wheel) -> Result<Record> {
    let mut text = Vec::new();
    open(piece, entry)?.read_to_end(&mut text).with_context(|| format!("cannot inflate {}", entry.name))?;
    let digest: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(
        digest == wheel.record_sha256,
        "checksum mismatch: {} of {} has sha256 {digest}, pinned is {}; the index or a proxy serves another file under \
         that name: check PIP_INDEX_URL, then run the same command again",
        entry.name,
        wheel.filename,
        wheel.record_sha256
    );
    Record::parse(&String::from_utf8(text).context("RECORD is not UTF-8")?)
}

/// The members that the wheel's picks cover.
fn pick(entries: &[Entry], wheel: &Wheel, bytes_of: impl Fn(&Entry) -> Range<u64>) -> Result<Vec<Wanted>> {
    for pick in wheel.picks {
        let found = entries.iter().any(|entry| pick.place(&entry.name).is_some());
        ensure!(found, "{} has no {}", wheel.filename, pick.from);
    }
    let mut wanted = Vec::new();
    for entry in entries {
        let Some(place) = wheel.picks.iter().find_map(|pick| pick.place(&entry.name)) else { continue };
        let plain = place.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        ensure!(plain, "{} names the unsafe path {}", wheel.filename, entry.name);
        wanted.push(Wanted { bytes: bytes_of(entry), entry: entry.clone(), place });
    }
    Ok(wanted)
}

/// From a member's local header to the next member: the local header's length is known only from the header itself.
fn bytes_of(entry: &Entry, sorted_offsets: &[u64], directory_at: u64) -> Range<u64> {
    let next = sorted_offsets.partition_point(|&offset| offset <= entry.offset);
    entry.offset..sorted_offsets.get(next).copied().unwrap_or(directory_at)
}

/// Runs of members that lie near one another.
fn spans(wanted: &[Wanted]) -> impl Iterator<Item = &[Wanted]> {
    wanted.chunk_by(|left, right| right.bytes.start.saturating_sub(left.bytes.end) < SPAN_GAP_BYTES)
}

fn span_range(span: &[Wanted]) -> Range<u64> {
    let start = span.iter().map(|wanted| wanted.bytes.start).min().unwrap_or_default();
    let end = span.iter().map(|wanted| wanted.bytes.end).max().unwrap_or_default();
    start..end
}

/// Unpacks a span. Answers what is damaged, if anything; fails where the disk does.
fn unpack(piece: &Piece, span: &[Wanted], record: &Record, folder: &Path) -> Result<Option<String>> {
    for wanted in span {
        let expected = record.digest(&wanted.entry.name)?;
        let mut reader = match open(piece, &wanted.entry) {
            Ok(reader) => reader,
            Err(error) => return Ok(Some(format!("{} is damaged: {error:#}", wanted.entry.name))),
        };
        let found = match write_checked(&mut reader, &folder.join(&wanted.place))? {
            Ok(found) => found,
            Err(error) => return Ok(Some(format!("{} does not inflate: {error}", wanted.entry.name))),
        };
        if found != expected {
            let name = &wanted.entry.name;
            return Ok(Some(format!("checksum mismatch: {name} has {found}, its wheel's RECORD says {expected}")));
        }
    }
    Ok(None)
}

/// Copies to a file and answers the digest. The inner error is the reader's, the outer one the disk's.
fn write_checked(reader: &mut dyn Read, path: &Path) -> Result<io::Result<String>> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| disk(parent, error))?;
    }
    let mut file = File::create(path).map_err(|error| disk(path, error))?;
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(read) => read,
            Err(error) => return Ok(Err(error)),
        };
        let Some(bytes @ [_, ..]) = buffer.get(..read) else { break };
        sha256.update(bytes);
        file.write_all(bytes).map_err(|error| disk(path, error))?;
    }
    Ok(Ok(record::notation(sha256)))
}

/// A reader of a member's plain bytes.
fn open(piece: &Piece, entry: &Entry) -> Result<Box<dyn Read>> {
    let mut file = piece.reader_at(entry.offset)?;
    let mut header = [0; zip::LOCAL_HEADER_LEN];
    file.read_exact(&mut header).context("local header is cut off")?;
    let data_at = entry.offset + zip::data_offset(&header)?;
    let packed = piece.reader_at(data_at)?.take(entry.compressed_bytes);
    Ok(match entry.compression {
        Compression::Stored => Box::new(packed),
        Compression::Deflated => {
            Box::new(DeflateDecoder::new_with_buf(packed, vec![0; 256 * 1024]).take(entry.size_bytes))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::download::{Patience, agent};
    use super::super::set::Pick;
    use super::super::testserver::{Answer, TestServer};
    use super::super::testzip::TestZip;
    use super::*;
    use std::time::Duration;

    const PICKS: &[Pick] =
        &[Pick { from: "torch/include/", to: "include/" }, Pick { from: "torch/lib/libc10.so", to: "lib/libc10.so" }];

    fn library() -> Vec<u8> {
        (0..100_000u32).map(|index| (index % 253) as u8).collect()
    }

    /// A wheel, and its description with RECORD's digest pinned.
    fn wheel_of(library: &[u8], record: &str) -> (Vec<u8>, Wheel) {
        let archive = TestZip::new()
            .deflated("torch/include/c10/Half.h", b"struct Half;")
            .stored("torch/unwanted.py", b"import this")
            .deflated("torch/lib/libc10.so", library)
            .deflated("torch-1.dist-info/RECORD", record.as_bytes())
            .finish();
        let digest: String = Sha256::digest(record).iter().map(|byte| format!("{byte:02x}")).collect();
        let size_bytes = archive.len() as u64;
        let record_sha256 = Box::leak(digest.into_boxed_str());
        (archive, Wheel { project: "torch", filename: "torch-1.whl", size_bytes, record_sha256, picks: PICKS })
    }

    fn record_of(library: &[u8]) -> String {
        let line = |name: &str, data: &[u8]| {
            let mut sha256 = Sha256::new();
            sha256.update(data);
            format!("{name},{},{}\n", record::notation(sha256), data.len())
        };
        line("torch/include/c10/Half.h", b"struct Half;") + &line("torch/lib/libc10.so", library)
    }

    fn run(archive: Vec<u8>, wheel: &Wheel, answers: Vec<Answer>, folder: &Path) -> Result<()> {
        let server = TestServer::start(archive, answers);
        let agent = agent();
        let patience = Patience { attempts: 2, first_pause: Duration::from_millis(1) };
        let downloads = folder.join("downloads");
        fs::create_dir_all(&downloads).unwrap();
        let mut remote =
            Remote::new(&agent, server.url(), wheel.filename, wheel.size_bytes, &downloads).with_patience(patience);
        install(&mut remote, wheel, &folder.join("set"))
    }

    #[test]
    fn picked_files_are_unpacked_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (archive, wheel) = wheel_of(&library(), &record_of(&library()));
        run(archive, &wheel, vec![], folder.path()).unwrap();
        assert_eq!(fs::read(folder.path().join("set/lib/libc10.so")).unwrap(), library());
        assert_eq!(fs::read(folder.path().join("set/include/c10/Half.h")).unwrap(), b"struct Half;");
        assert!(!folder.path().join("set/unwanted.py").exists());
        assert_eq!(fs::read_dir(folder.path().join("downloads")).unwrap().count(), 0, "partial files are left over");
    }

    #[test]
    fn wheel_comes_whole_where_ranges_are_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let (archive, wheel) = wheel_of(&library(), &record_of(&library()));
        run(archive, &wheel, vec![Answer::Whole, Answer::Whole], folder.path()).unwrap();
        assert_eq!(fs::read(folder.path().join("set/lib/libc10.so")).unwrap(), library());
    }

    #[test]
    fn wrong_checksum_of_a_file_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let (archive, wheel) = wheel_of(&library(), &record_of(b"another library"));
        let message = format!("{:#}", run(archive, &wheel, vec![], folder.path()).unwrap_err());
        assert!(message.contains("checksum mismatch: torch/lib/libc10.so"), "{message}");
        assert!(message.contains("(twice)"), "{message}");
    }

    #[test]
    fn wrong_checksum_of_record_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (archive, mut wheel) = wheel_of(&library(), &record_of(&library()));
        wheel.record_sha256 = "00";
        let message = format!("{:#}", run(archive, &wheel, vec![], folder.path()).unwrap_err());
        assert!(message.contains("checksum mismatch: torch-1.dist-info/RECORD"), "{message}");
    }

    #[test]
    fn file_that_record_does_not_list_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (archive, wheel) = wheel_of(&library(), "torch/other.py,sha256=AAA,1\n");
        let message = format!("{:#}", run(archive, &wheel, vec![], folder.path()).unwrap_err());
        assert!(message.contains("RECORD does not list"), "{message}");
    }

    #[test]
    fn missing_pick_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let (archive, mut wheel) = wheel_of(&library(), &record_of(&library()));
        wheel.picks = &[Pick { from: "torch/lib/libgone.so", to: "lib/libgone.so" }];
        let message = format!("{:#}", run(archive, &wheel, vec![], folder.path()).unwrap_err());
        assert!(message.contains("torch-1.whl has no torch/lib/libgone.so"), "{message}");
    }
}
