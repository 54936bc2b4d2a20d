//! Sorting more pairs of numbers than memory should hold: sorted runs in one unnamed file, read back side by side.
//!
//! What is equal comes out side by side, so that finding it takes the memory of the runs' buffers and no table of everything.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Two numbers, the first of which counts first.
pub type Pair = [u64; 2];

const PAIR: usize = size_of::<Pair>();
/// Pairs that are sorted in memory: 2 MiB.
const RUN: usize = 1 << 17;
/// Pairs that are read ahead: at most of one run, and of all together. Many runs share what one may have, so that more of them
/// take no more memory.
const READ: usize = 1 << 9;
const READ_OF_ALL: usize = 1 << 16;

/// Takes pairs in any order.
#[derive(Debug)]
pub struct Sorter {
    run: Vec<Pair>,
    /// None: all is one run in memory.
    runs: Option<Runs>,
    capacity: usize,
}

#[derive(Debug)]
struct Runs {
    file: File,
    /// Where each run ends, in pairs.
    ends: Vec<u64>,
}

impl Sorter {
    /// Runs lie in an unnamed file in `folder`; in memory where there is none.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn new(folder: Option<&Path>) -> io::Result<Self> {
        Self::with_runs_of(RUN, folder)
    }

    fn with_runs_of(capacity: usize, folder: Option<&Path>) -> io::Result<Self> {
        let file = folder.map(tempfile::tempfile_in).transpose()?;
        let runs = file.map(|file| Runs { file, ends: Vec::new() });
        Ok(Self { run: Vec::new(), runs, capacity })
    }

    /// # Errors
    /// The disk is full.
    pub fn push(&mut self, pair: Pair) -> io::Result<()> {
        self.run.push(pair);
        match &mut self.runs {
            Some(runs) if self.run.len() >= self.capacity => runs.write(&mut self.run),
            Some(_) | None => Ok(()),
        }
    }

    /// All pairs, the smallest first.
    ///
    /// # Errors
    /// As [`Self::push`]; as items where the file cannot be read.
    pub fn finish(mut self) -> io::Result<Sorted> {
        let Some(mut runs) = self.runs else {
            self.run.sort_unstable_by_key(|pair| Reverse(*pair));
            let all = Reader { next: 0, end: 0, read: self.run };
            return Sorted::begin(None, vec![all]);
        };
        runs.write(&mut self.run)?;
        drop(self.run);
        let mut begin = 0;
        let mut readers = Vec::new();
        for end in runs.ends {
            readers.push(Reader { next: begin, end, read: Vec::new() });
            begin = end;
        }
        Sorted::begin(Some(runs.file), readers)
    }
}

impl Runs {
    fn write(&mut self, run: &mut Vec<Pair>) -> io::Result<()> {
        run.sort_unstable();
        let begin = self.ends.last().copied().unwrap_or(0);
        self.file.write_all_at(bytemuck::cast_slice(run), begin * PAIR as u64)?;
        self.ends.push(begin + run.len() as u64);
        run.clear();
        Ok(())
    }
}

/// Gives pairs in order.
#[derive(Debug)]
pub struct Sorted {
    /// None where no reader has more to read.
    file: Option<File>,
    readers: Vec<Reader>,
    /// Pairs of a run that are read at a time.
    at_once: usize,
    /// The next pair of each run.
    heads: BinaryHeap<Reverse<(Pair, usize)>>,
}

#[derive(Debug)]
struct Reader {
    next: u64,
    end: u64,
    /// Those that were read, the next one last.
    read: Vec<Pair>,
}

impl Sorted {
    fn begin(file: Option<File>, readers: Vec<Reader>) -> io::Result<Self> {
        let at_once = (READ_OF_ALL / readers.len().max(1)).clamp(1, READ);
        let mut sorted = Self { file, readers, at_once, heads: BinaryHeap::new() };
        for run in 0..sorted.readers.len() {
            sorted.advance(run)?;
        }
        Ok(sorted)
    }

    fn advance(&mut self, run: usize) -> io::Result<()> {
        let Some(reader) = self.readers.get_mut(run) else { return Ok(()) };
        if reader.read.is_empty()
            && reader.next < reader.end
            && let Some(file) = &self.file
        {
            let count = (reader.end - reader.next).min(self.at_once as u64);
            reader.read = vec![[0; 2]; count as usize];
            file.read_exact_at(bytemuck::cast_slice_mut(&mut reader.read), reader.next * PAIR as u64)?;
            reader.read.reverse();
            reader.next += count;
        }
        if let Some(pair) = reader.read.pop() {
            self.heads.push(Reverse((pair, run)));
        }
        Ok(())
    }
}

impl Iterator for Sorted {
    type Item = io::Result<Pair>;

    fn next(&mut self) -> Option<io::Result<Pair>> {
        let Reverse((pair, run)) = self.heads.pop()?;
        Some(self.advance(run).map(|()| pair))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::SplitMix;

    #[test]
    fn pairs_come_out_in_order_however_many_runs_they_take() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut random = SplitMix::new(11);
        for count in [0, 1, 99, 100, 101, 5000] {
            let mut pairs: Vec<Pair> = (0..count).map(|_| [random.below(700) as u64, random.next()]).collect();
            let sort = |folder: Option<&Path>| -> Vec<Pair> {
                let mut sorter = Sorter::with_runs_of(100, folder).expect("a file");
                pairs.iter().for_each(|pair| sorter.push(*pair).expect("written"));
                sorter.finish().expect("sorted").map(|pair| pair.expect("read")).collect()
            };
            let (on_disk, in_memory) = (sort(Some(folder.path())), sort(None));
            pairs.sort_unstable();
            assert_eq!(on_disk, pairs);
            assert_eq!(in_memory, pairs);
        }
    }

    #[test]
    fn more_runs_read_less_of_each() {
        let folder = tempfile::tempdir().expect("a folder");
        let at_once = |runs: usize| {
            let mut sorter = Sorter::with_runs_of(1, Some(folder.path())).expect("a file");
            (0..runs as u64).rev().for_each(|at| sorter.push([at, 0]).expect("written"));
            let sorted = sorter.finish().expect("sorted");
            let at_once = sorted.at_once;
            assert!(sorted.map(|pair| pair.expect("read")[0]).eq(0..runs as u64));
            at_once
        };
        assert_eq!([1, 100, 1000].map(at_once), [READ, READ, READ_OF_ALL / 1000]);
    }
}
