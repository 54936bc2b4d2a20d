//! A number for each row of a file, in a mapped temporary file: an order, a length, a mark.
//!
//! What is not looked at need not be in memory: [`Column::release`] gives the pages back, and the numbers stay in the file.
//! So a pass over five gigabytes of rows holds no more than one over ten megabytes.

use std::fs::File;
use std::io::{self, BufWriter, IntoInnerError, Write as _};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::path::Path;

use bytemuck::Pod;
use memmap2::{MmapMut, UncheckedAdvice};

/// Items of a pass in order between two releases.
const RELEASE_EVERY: usize = 1 << 16;
/// A shorter one is in memory: a page of numbers is not worth a file.
const IN_MEMORY: usize = 1 << 12;
/// Numbers, or a few of them together; reads and writes as a slice.
#[derive(Debug)]
pub struct Column<T = u32> {
    place: Place<T>,
    length: usize,
}

#[derive(Debug)]
enum Place<T> {
    Memory(Vec<T>),
    Mapped(MmapMut),
}

impl<T: Pod> Column<T> {
    /// `length` zeros, in an unnamed file in `folder`; in memory where there is no folder or few of them.
    ///
    /// # Errors
    /// The disk is full, or the folder cannot be written to.
    pub fn zeros(length: usize, folder: Option<&Path>) -> io::Result<Self> {
        match folder.filter(|_| length > IN_MEMORY) {
            None => Ok(Self { place: Place::Memory(vec![T::zeroed(); length]), length }),
            Some(folder) => Self::mapped(length, folder),
        }
    }

    fn mapped(length: usize, folder: &Path) -> io::Result<Self> {
        let mut file = tempfile::tempfile_in(folder)?;
        write_zeros(&mut file, length * size_of::<T>())?;
        Self::map(&file, length)
    }

    fn map(file: &File, length: usize) -> io::Result<Self> {
        // SAFETY: the file has no name, so nobody else changes or shortens it.
        let map = unsafe { MmapMut::map_mut(file) }?;
        Ok(Self { place: Place::Mapped(map), length })
    }

    /// Writes every item anew, in order, from its place.
    pub fn fill(&mut self, mut item: impl FnMut(usize) -> T) {
        for at in 0..self.length {
            self[at] = item(at);
            if at % RELEASE_EVERY == RELEASE_EVERY - 1 {
                self.release();
            }
        }
        self.release();
    }

    /// Looks at every item, in order, with its place.
    pub fn each(&self, mut look: impl FnMut(usize, T)) {
        for at in 0..self.length {
            look(at, self[at]);
            if at % RELEASE_EVERY == RELEASE_EVERY - 1 {
                self.release();
            }
        }
        self.release();
    }

    /// Keeps the first numbers only.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Gives the memory back; the numbers stay, and come back when they are looked at.
    pub fn release(&self) {
        if let Place::Mapped(map) = &self.place {
            // SAFETY: the map is of a file and shared with it, so nothing that was written is lost with its page.
            let released = unsafe { map.unchecked_advise(UncheckedAdvice::DontNeed) };
            // Advice: where it is not taken, more memory is used and nothing else is different.
            drop(released);
        }
    }
}

impl Column {
    /// The numbers from 0 on.
    ///
    /// # Errors
    /// As [`Self::zeros`].
    pub fn counting(length: usize, folder: Option<&Path>) -> io::Result<Self> {
        let mut column = Self::zeros(length, folder)?;
        column.fill(|at| at as u32);
        Ok(column)
    }
}

/// A column in the making, whose length is known at the end.
#[derive(Debug)]
pub struct Appending<T> {
    out: BufWriter<File>,
    length: usize,
    item: PhantomData<T>,
}

impl<T: Pod> Appending<T> {
    /// # Errors
    /// The folder cannot be written to.
    pub fn new(folder: &Path) -> io::Result<Self> {
        Ok(Self { out: BufWriter::new(tempfile::tempfile_in(folder)?), length: 0, item: PhantomData })
    }

    /// # Errors
    /// The disk is full.
    pub fn push(&mut self, item: &T) -> io::Result<()> {
        self.length += 1;
        self.out.write_all(bytemuck::bytes_of(item))
    }

    pub fn len(&self) -> usize {
        self.length
    }

    /// # Errors
    /// As [`Self::push`].
    pub fn finish(self) -> io::Result<Column<T>> {
        let file = self.out.into_inner().map_err(IntoInnerError::into_error)?;
        match self.length {
            0 => Column::zeros(0, None), // an empty file cannot be mapped
            length => Column::map(&file, length),
        }
    }
}

/// A file with holes would take what it needs later, and a full disk would then end the process.
fn write_zeros(file: &mut File, mut bytes: usize) -> io::Result<()> {
    static PIECE: [u8; 1 << 16] = [0; 1 << 16];
    while bytes > 0 {
        let piece = bytes.min(PIECE.len());
        file.write_all(&PIECE[..piece])?;
        bytes -= piece;
    }
    Ok(())
}

impl<T: Pod> Deref for Column<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let all: &[T] = match &self.place {
            Place::Memory(numbers) => numbers,
            Place::Mapped(map) => bytemuck::cast_slice(map),
        };
        &all[..self.length]
    }
}

impl<T: Pod> DerefMut for Column<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let all: &mut [T] = match &mut self.place {
            Place::Memory(numbers) => numbers,
            Place::Mapped(map) => bytemuck::cast_slice_mut(map),
        };
        &mut all[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_after_its_memory_is_given_back() {
        let folder = tempfile::tempdir().expect("a folder");
        for length in [0, 1, IN_MEMORY, IN_MEMORY + 1, 300_000] {
            let mut column = Column::counting(length, Some(folder.path())).expect("made");
            assert_eq!(column.len(), length);
            if let Some(last) = column.last_mut() {
                *last += 7;
            }
            column.release();
            let mut seen = 0;
            column.each(|at, number| {
                assert_eq!(at, seen);
                assert_eq!(number as usize, at + if at + 1 == length { 7 } else { 0 });
                seen += 1;
            });
            assert_eq!(seen, length);
            for (at, number) in column.iter().enumerate() {
                assert_eq!(*number as usize, at + if at + 1 == length { 7 } else { 0 });
            }
            column.truncate(length / 2);
            assert_eq!(column.len(), length / 2);
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("read").count(), 0, "the files have no name");
    }

    #[test]
    fn what_was_appended_is_there() {
        let folder = tempfile::tempdir().expect("a folder");
        for length in [0, 1, 10_000] {
            let mut column = Appending::<[u64; 2]>::new(folder.path()).expect("made");
            (0..length).for_each(|at| column.push(&[at, at * at]).expect("written"));
            let column = column.finish().expect("mapped");
            assert_eq!(column.len() as u64, length);
            assert!((0..).zip(column.iter()).all(|(at, item)| *item == [at, at * at]));
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let gone = Path::new("/nonexistent-folder-of-a-column");
        assert!(Column::<u32>::zeros(IN_MEMORY + 1, Some(gone)).is_err());
        assert!(Column::<u32>::zeros(IN_MEMORY + 1, None).is_ok());
    }
}
