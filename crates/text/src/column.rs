//! A number for each row of a file, in a mapped temporary file: an order, a length, a mark.
//!
//! What is not looked at need not be in memory: [`Column::release`] gives the pages back, and the numbers stay in the file.
//! [`Column::look`] and [`Column::put`] do so by themselves before much of it is there; places without any order go by
//! [`Column::gather`], and a shuffle by [`Column::swap_all`]. So work on five gigabytes of rows holds no more than work on ten
//! megabytes. Who takes the column as a slice gives it back himself.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, BufWriter, IntoInnerError, Write as _};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::path::Path;

use bytemuck::Pod;
use memmap2::{MmapMut, UncheckedAdvice};

/// Bytes of a column that are in memory while its items are looked at one by one.
const RESIDENT: usize = 1 << 20;
/// What Linux brings along with a page that it finds in its cache (`fault_around_bytes`).
const WINDOW: usize = 1 << 16;
/// Swaps that are made together: enough for a pass over the column to be worth it, and a few MiB.
const SWAPS: usize = 1 << 17;
/// A shorter one is in memory: a page of numbers is not worth a file.
const IN_MEMORY: usize = 1 << 12;
/// Numbers, or a few of them together; reads and writes as a slice.
#[derive(Debug)]
pub struct Column<T = u32> {
    place: Place<T>,
    length: usize,
    touched: RefCell<Touched>,
}

#[derive(Debug)]
enum Place<T> {
    Memory(Vec<T>),
    Mapped(MmapMut),
}

/// The windows of a map that were looked at since its memory was given back.
#[derive(Debug, Default)]
struct Touched {
    /// A bit each.
    windows: Vec<u64>,
    count: usize,
}

impl<T: Pod> Column<T> {
    /// `length` zeros, in an unnamed file in `folder`; in memory where there is no folder or few of them.
    ///
    /// # Errors
    /// The disk is full, or the folder cannot be written to.
    pub fn zeros(length: usize, folder: Option<&Path>) -> io::Result<Self> {
        match folder.filter(|_| length > IN_MEMORY) {
            None => Ok(Self::at(Place::Memory(vec![T::zeroed(); length]), length)),
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
        Ok(Self::at(Place::Mapped(map), length))
    }

    fn at(place: Place<T>, length: usize) -> Self {
        Self { place, length, touched: RefCell::default() }
    }

    /// The item at a place. Any number of them in any order take no more than [`RESIDENT`] bytes of memory.
    pub fn look(&self, at: usize) -> T {
        self.touch(at);
        self[at]
    }

    /// Writes the item at a place; as [`Self::look`].
    pub fn put(&mut self, at: usize, item: T) {
        self.touch(at);
        self[at] = item;
    }

    /// Gives the memory back before the place would be too much of it.
    fn touch(&self, at: usize) {
        let Place::Mapped(map) = &self.place else { return };
        let window = at * size_of::<T>() / WINDOW;
        if map.len() <= RESIDENT || self.touched.borrow_mut().add(window) {
            return;
        }
        self.release();
        self.touched.borrow_mut().add(window);
    }

    /// Writes every item anew, in order, from its place.
    pub fn fill(&mut self, mut item: impl FnMut(usize) -> T) {
        for at in 0..self.length {
            self.put(at, item(at));
        }
        self.release();
    }

    /// Looks at every item, in order, with its place.
    pub fn each(&self, mut look: impl FnMut(usize, T)) {
        for at in 0..self.length {
            look(at, self.look(at));
        }
        self.release();
    }

    /// Lets the column be changed in pieces of so many items, in order.
    pub fn each_piece(&mut self, items: usize, mut change: impl FnMut(&mut [T])) {
        let mut changed = 0;
        for begin in (0..self.length).step_by(items.max(1)) {
            let end = begin.saturating_add(items).min(self.length);
            change(&mut self[begin..end]);
            changed += (end - begin) * size_of::<T>();
            if changed >= RESIDENT {
                self.release();
                changed = 0;
            }
        }
        self.release();
    }

    /// Swaps the items of two places, pair of places after pair of places. Many pairs are taken together and what they touch
    /// is visited in order, once to read and once to write: to shuffle a column it need not be in memory, nor come from the
    /// disk item by item.
    pub fn swap_all(&mut self, mut swaps: impl Iterator<Item = [u32; 2]>) {
        if self.length * size_of::<T>() <= RESIDENT {
            return swaps.for_each(|[one, other]| self.swap(one as usize, other as usize));
        }
        loop {
            let some: Vec<[u32; 2]> = swaps.by_ref().take(SWAPS).collect();
            if some.is_empty() {
                return self.release();
            }
            let mut places = some.as_flattened().to_vec();
            places.sort_unstable();
            places.dedup();
            let mut items: Vec<T> = places.iter().map(|place| self.look(*place as usize)).collect();
            let found = |place| places.partition_point(|other| *other < place);
            some.into_iter().for_each(|[one, other]| items.swap(found(one), found(other)));
            for (place, item) in places.iter().zip(items) {
                self.put(*place as usize, item);
            }
        }
    }

    /// The items at places, in the places' order. Those that they touch are visited in the order of the column, once, so that
    /// places without any order do not come from the disk one by one. They are as many as the caller has memory for.
    pub fn gather(&self, places: &[u32]) -> Vec<T> {
        let mut order: Vec<u32> = (0..places.len() as u32).collect();
        order.sort_unstable_by_key(|at| places[*at as usize]);
        let mut items = vec![T::zeroed(); places.len()];
        for at in order {
            items[at as usize] = self.look(places[at as usize] as usize);
        }
        items
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
            self.touched.borrow_mut().clear();
        }
    }
}

impl Touched {
    /// False where it would be one too many.
    fn add(&mut self, window: usize) -> bool {
        let (word, bit) = (window / 64, 1 << (window % 64));
        if self.windows.len() <= word {
            self.windows.resize(word + 1, 0);
        }
        let is_new = self.windows[word] & bit == 0;
        if is_new && self.count == RESIDENT / WINDOW {
            return false;
        }
        self.windows[word] |= bit;
        self.count += usize::from(is_new);
        true
    }

    fn clear(&mut self) {
        self.windows.fill(0);
        self.count = 0;
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
    use crate::seed::SplitMix;

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
    fn any_order_of_looking_and_writing_is_that_of_a_slice() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut random = SplitMix::new(5);
        let mut column = Column::counting(700_000, Some(folder.path())).expect("made");
        let mut plain: Vec<u32> = (0..700_000).collect();
        for _ in 0..20_000 {
            let (from, to) = (random.below(plain.len()), random.below(plain.len()));
            assert_eq!(column.look(from), plain[from]);
            column.put(to, from as u32);
            plain[to] = from as u32;
        }
        assert!(column.touched.borrow().count <= RESIDENT / WINDOW);
        assert!(*column == *plain);
        let mut pieces = Vec::new();
        column.each_piece(300_000, |piece| {
            piece.reverse();
            pieces.push(piece.len());
        });
        plain.chunks_mut(300_000).for_each(<[u32]>::reverse);
        assert_eq!(pieces, [300_000, 300_000, 100_000]);
        assert!(*column == *plain);
    }

    #[test]
    fn gathered_items_stand_in_the_order_of_their_places() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut random = SplitMix::new(6);
        for length in [1, 700_000] {
            let column = Column::counting(length, Some(folder.path())).expect("made");
            let places: Vec<u32> = (0..10_000).map(|_| random.below(length) as u32).collect();
            assert_eq!(column.gather(&places), places, "places that come twice included");
            assert!(column.touched.borrow().count <= RESIDENT / WINDOW);
        }
        assert!(Column::counting(3, None).expect("made").gather(&[]).is_empty());
    }

    #[test]
    fn many_swaps_together_are_the_swaps_one_by_one() {
        let folder = tempfile::tempdir().expect("a folder");
        for length in [10, 300_000] {
            let mut random = SplitMix::new(length as u64);
            let mut place = || random.below(length) as u32;
            let swaps: Vec<[u32; 2]> = (0..3 * SWAPS + 1).map(|_| [place(), place()]).collect();
            let mut column = Column::counting(length, Some(folder.path())).expect("made");
            let mut plain = column.to_vec();
            column.swap_all(swaps.iter().copied());
            swaps.iter().for_each(|[one, other]| plain.swap(*one as usize, *other as usize));
            assert!(*column == *plain, "{length} items");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let gone = Path::new("/nonexistent-folder-of-a-column");
        assert!(Column::<u32>::zeros(IN_MEMORY + 1, Some(gone)).is_err());
        assert!(Column::<u32>::zeros(IN_MEMORY + 1, None).is_ok());
    }
}
