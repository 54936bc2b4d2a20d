//! A shard on disk, whose rows are read one by one wherever they stand: what a job of any size learns from.
//!
//! The first opening reads the shard once from end to end, as strictly as [`ShardReader`], and writes down beside it where
//! each row stands and how long it is; a later one maps what was written down. Rows are read, not mapped, and the index gives
//! its pages back, so that neither is resident: a job takes the memory of its batches, whatever its shard weighs.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytemuck::{Pod, Zeroable};
use memmap2::{Mmap, UncheckedAdvice};

use super::{Content, Record, ShardKind, ShardLimits, ShardReader};
use crate::error::{Error, Result};
use crate::example::Example;

const MAGIC: [u8; 8] = *b"TLRIDX01";
/// Rows of a pass between two releases of the index.
const RELEASE_EVERY: usize = 1 << 14;

/// The beginning of an index.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    /// Of the shard: another one than was indexed is not of this size, or of another name.
    shard_bytes: u64,
    rows: u64,
    kind: u32,
    vocabulary: u32,
    /// The largest id of any row, and the first row that has it.
    largest_id: u32,
    largest_at: u32,
}

/// What is known of a row without reading it.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Entry {
    offset: u64,
    bytes: u32,
    /// Of the row; of a pair both answers, each with its prompt.
    tokens: u32,
    /// Of the longer of a pair's answers with its prompt; else as `tokens`.
    longest: u32,
    /// Tokens that something is learnt from; of a pair those of the chosen answer.
    targets: u32,
}

/// See the module. Rows are named by their place in the shard, from 0.
#[derive(Debug)]
pub struct ShardFile {
    shard: File,
    folder: PathBuf,
    head: Head,
    kind: ShardKind,
    limits: ShardLimits,
    /// None where there is no row.
    index: Option<Mmap>,
}

impl ShardFile {
    /// Opens a shard that lies at `path` and is not changed any more. Its index lies beside it, in `<path>.index`, and is made
    /// where it is missing or of another shard.
    ///
    /// # Errors
    /// The file is no shard, breaks a rule of it or is damaged; the disk is full.
    pub fn open(path: &Path, limits: ShardLimits) -> Result<Self> {
        let shard = File::open(path)?;
        let shard_bytes = shard.metadata()?.len();
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".index");
        let at = path.with_file_name(name);
        let folder = path.parent().unwrap_or(Path::new(".")).to_owned();
        let index = match read_index(&at, shard_bytes)? {
            Some(found) => found,
            None => {
                write_index(&shard, shard_bytes, limits, &folder, &at)?;
                let broken = || Error::shard(format!("its index {} is not what was written", at.display()));
                read_index(&at, shard_bytes)?.ok_or_else(broken)?
            }
        };
        let (head, index) = index;
        let kind = u8::try_from(head.kind).map_err(|_| Error::shard("its index is damaged; delete it"))?;
        let kind = ShardKind::from_code(kind)?;
        Ok(Self { shard, folder, head, kind, limits, index })
    }

    /// Where it lies: there is room for files of its size.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn kind(&self) -> ShardKind {
        self.kind
    }

    pub fn rows(&self) -> usize {
        self.entries().len()
    }

    /// The largest id of any row, and the first row that has it; none without rows.
    pub fn largest_id(&self) -> Option<(u32, usize)> {
        (self.rows() > 0).then_some((self.head.largest_id, self.head.largest_at as usize))
    }

    /// Tokens of a row; of a pair both answers, each with its prompt. 0 for a row that is not there.
    pub fn tokens(&self, row: usize) -> usize {
        self.entry(row).map_or(0, |entry| entry.tokens as usize)
    }

    /// Tokens of a row, or of the longer of a pair's answers with its prompt.
    pub fn longest(&self, row: usize) -> usize {
        self.entry(row).map_or(0, |entry| entry.longest as usize)
    }

    /// Tokens that something is learnt from; of a pair those of the chosen answer; 0 of a prompt.
    pub fn targets(&self, row: usize) -> usize {
        self.entry(row).map_or(0, |entry| entry.targets as usize)
    }

    /// Reads a row.
    ///
    /// # Errors
    /// There is no such row; the file cannot be read, or was changed.
    pub fn read(&self, row: usize) -> Result<Record> {
        let missing = || Error::shard(format!("there is no row {row}, there are {}", self.rows()));
        let entry = self.entry(row).ok_or_else(missing)?;
        let mut bytes = vec![0; entry.bytes as usize];
        self.shard.read_exact_at(&mut bytes, entry.offset)?;
        let mut reader = ShardReader::at_record(bytes.as_slice(), self.kind, self.head.vocabulary, self.limits);
        reader.read()?.ok_or_else(|| Error::shard(format!("row {row} is not where it was; the file was changed")))
    }

    /// Calls `look` for every row, in order, with its tokens, the longest of its texts and its targets.
    pub fn each(&self, mut look: impl FnMut(usize, usize, usize, usize)) {
        for (row, entry) in self.entries().iter().enumerate() {
            look(row, entry.tokens as usize, entry.longest as usize, entry.targets as usize);
            if row % RELEASE_EVERY == RELEASE_EVERY - 1 {
                self.release();
            }
        }
        self.release();
    }

    /// Gives back the memory of what was looked up in the index.
    pub fn release(&self) {
        if let Some(index) = &self.index {
            // SAFETY: the map is of a file and never written to, so its pages come back as they were.
            let released = unsafe { index.unchecked_advise(UncheckedAdvice::DontNeed) };
            // Advice: where it is not taken, more memory is used and nothing else is different.
            drop(released);
        }
    }

    fn entries(&self) -> &[Entry] {
        self.index.as_ref().map_or(&[], |index| bytemuck::cast_slice(&index[size_of::<Head>()..]))
    }

    fn entry(&self, row: usize) -> Option<&Entry> {
        self.entries().get(row)
    }
}

/// None where there is no index, or one of something else.
fn read_index(at: &Path, shard_bytes: u64) -> Result<Option<(Head, Option<Mmap>)>> {
    let mut file = match File::open(at) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut head = Head::zeroed();
    if file.read_exact(bytemuck::bytes_of_mut(&mut head)).is_err() {
        return Ok(None);
    }
    let expected = (head.rows as u128) * size_of::<Entry>() as u128 + size_of::<Head>() as u128;
    let is_ours = head.magic == MAGIC && head.shard_bytes == shard_bytes;
    if !is_ours || u128::from(file.metadata()?.len()) != expected {
        return Ok(None);
    }
    if head.rows == 0 {
        return Ok(Some((head, None)));
    }
    // SAFETY: an index gets its name when it is whole and is never written to again; who replaces it leaves this one as it is.
    let map = unsafe { Mmap::map(&file) }?;
    Ok(Some((head, Some(map))))
}

fn write_index(shard: &File, shard_bytes: u64, limits: ShardLimits, folder: &Path, at: &Path) -> Result<()> {
    let mut shard = shard;
    shard.seek(SeekFrom::Start(0))?;
    let counted = Counted { input: BufReader::with_capacity(1 << 20, shard), read: 0 };
    let mut reader = ShardReader::open(counted, limits)?;
    let mut head = Head {
        magic: MAGIC,
        shard_bytes,
        rows: 0,
        kind: u32::from(reader.kind().code()),
        vocabulary: reader.vocabulary(),
        largest_id: 0,
        largest_at: 0,
    };
    let partial = tempfile::NamedTempFile::new_in(folder)?;
    let mut out = BufWriter::new(partial.as_file());
    out.write_all(bytemuck::bytes_of(&head))?;
    loop {
        let offset = reader.input().read;
        let Some(record) = reader.next().transpose()? else { break };
        let bytes = u32::try_from(reader.input().read - offset)
            .map_err(|_| Error::shard(format!("row {} is longer than 4 GiB", record.row)))?;
        let seen = Seen::of(&record.content);
        if seen.largest_id > head.largest_id || head.rows == 0 {
            (head.largest_id, head.largest_at) = (seen.largest_id, head.rows as u32);
        }
        let Seen { tokens, longest, targets, .. } = seen;
        let entry = Entry { offset, bytes, tokens, longest, targets };
        out.write_all(bytemuck::bytes_of(&entry))?;
        head.rows += 1;
        if head.rows > u64::from(u32::MAX) {
            return Err(Error::shard("it has more than 4294967295 rows; split the dataset"));
        }
    }
    out.flush()?;
    drop(out);
    let mut file = partial.as_file();
    file.seek(SeekFrom::Start(0))?;
    file.write_all(bytemuck::bytes_of(&head))?;
    file.sync_all()?;
    partial.persist(at).map_err(|error| error.error)?;
    Ok(())
}

/// What the index keeps of a row.
struct Seen {
    tokens: u32,
    longest: u32,
    targets: u32,
    largest_id: u32,
}

impl Seen {
    fn of(content: &Content) -> Self {
        match content {
            Content::Example(example) => Self::of_example(example),
            Content::Preference(pair) => {
                let (chosen, rejected) = (Self::of_example(&pair.chosen), Self::of_example(&pair.rejected));
                Self {
                    tokens: chosen.tokens + rejected.tokens,
                    longest: chosen.longest.max(rejected.longest),
                    targets: chosen.targets,
                    largest_id: chosen.largest_id.max(rejected.largest_id),
                }
            }
            Content::Prompt(ids) => {
                let tokens = ids.len() as u32;
                Self { tokens, longest: tokens, targets: 0, largest_id: largest(ids) }
            }
        }
    }

    fn of_example(example: &Example) -> Self {
        let largest_id = match example {
            Example::Decoder { ids, .. } => largest(ids),
            Example::EncoderDecoder { encoder, labels } => largest(encoder).max(largest(labels)),
        };
        // Each stream is within the reader's limit, which is far below 2^31.
        let tokens = example.tokens() as u32;
        Self { tokens, longest: tokens, targets: example.targets() as u32, largest_id }
    }
}

fn largest(ids: &[u32]) -> u32 {
    ids.iter().copied().max().unwrap_or(0)
}

/// Knows how many bytes it gave.
struct Counted<R> {
    input: R,
    read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.read += read as u64;
        Ok(read)
    }
}
