//! Which rows are hidden. Rows that share a sentence stay on one side: the same input (whatever its case and spacing), the
//! same target, or one's target as the other's input. Otherwise a model could know the answer from training. Of preferences
//! both answers count as targets; of conversations every turn but the system's.
//!
//! Sentences are compared by 64 bits of their sha256, sorted on disk. Two that are different and have the same bits (one chance
//! in a hundred thousand among ten million) would tie their rows, which then are hidden or seen together.

use std::collections::BTreeSet;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{DROPPED, HIDDEN};
use crate::Column;
use crate::chat::Message;
use crate::error::{Error, Result};
use crate::rows::RowContent;
use crate::seed::SplitMix;
use crate::sort::{Sorted, Sorter};

/// A text that more rows have as their target is a class ("yes", "spam"), not a sentence, and does not tie them. Nor does a
/// turn that more conversations have ("hello").
const MAX_SHARED_TARGET: usize = 16;

/// Says of a row's sentences which they are, to be sorted.
pub(super) fn note(sorter: &mut Sorter, row: usize, content: &RowContent) -> Result<()> {
    let Sentences { always, classes } = sentences(content);
    let row = (row as u64) << 1;
    for (text, is_target) in always.iter().map(|text| (text, 0)).chain(classes.iter().map(|text| (text, 1))) {
        sorter.push([bits(text), row | is_target])?;
    }
    Ok(())
}

/// Marks the rows that go to validation among those that are not dropped. Takes whole groups in a drawn order until `wanted`
/// rows are hidden, and passes over those that would be too many. `kept` is how many rows are not dropped.
pub(super) fn choose(
    marks: &mut Column<u8>,
    kept: usize,
    wanted: usize,
    seed: u64,
    noted: Sorted,
    folder: &Path,
) -> Result<()> {
    if wanted == 0 {
        return Ok(());
    }
    if wanted >= kept {
        let problem = format!("{kept} rows are too few to hide {wanted} of them from training");
        return Err(Error::NoRows { problem });
    }
    let mut sets = DisjointSets(Column::counting(marks.len(), Some(folder))?);
    tie(&mut sets, marks, noted)?;
    // Groups by their first row, in the order of the file.
    let mut groups = Column::zeros(kept, Some(folder))?;
    let mut sizes = Column::zeros(marks.len(), Some(folder))?;
    let mut count = 0;
    for row in 0..marks.len() {
        if marks.look(row) != DROPPED {
            let root = sets.root(row as u32) as usize;
            sizes.put(root, sizes.look(root) + 1);
            if root == row {
                groups.put(count, root as u32);
                count += 1;
            }
        }
    }
    groups.truncate(count);
    SplitMix::new(seed).shuffle(&mut groups);
    let mut left = wanted;
    for at in 0..groups.len() {
        if left == 0 {
            break;
        }
        let group = groups.look(at) as usize;
        let size = sizes.look(group) as usize;
        if size <= left {
            left -= size;
            sizes.put(group, 0); // all of it is hidden
        }
    }
    if left == wanted {
        let problem = format!("the {kept} rows share their sentences, so that none can be hidden from training");
        return Err(Error::NoRows { problem });
    }
    for row in 0..marks.len() {
        if marks.look(row) != DROPPED && sizes.look(sets.root(row as u32) as usize) == 0 {
            marks.put(row, HIDDEN);
        }
    }
    marks.release();
    Ok(())
}

/// Joins the rows that share a sentence. What is noted comes sorted: all of one sentence side by side.
fn tie(sets: &mut DisjointSets, marks: &Column<u8>, noted: Sorted) -> Result<()> {
    let mut present = Sentence::default();
    let mut bits = None;
    // Almost every sentence is of one row and ties nothing: that row is looked up once there is another.
    let mut alone = None;
    for pair in noted {
        let [of, noted] = pair?;
        if bits.replace(of) != Some(of) {
            std::mem::take(&mut present).end(sets);
            alone = Some(noted);
            continue;
        }
        for noted in alone.take().into_iter().chain([noted]) {
            let row = (noted >> 1) as u32;
            if marks.look(row as usize) != DROPPED {
                present.see(row, noted & 1 == 1, sets);
            }
        }
    }
    present.end(sets);
    sets.0.release();
    marks.release();
    Ok(())
}

/// Rows with the same sentence, as they come.
#[derive(Default)]
struct Sentence {
    /// The first row that has it in a place where it always ties.
    first: Option<u32>,
    /// Rows that have it as a target, while they are few enough for it not to be a class.
    targets: Vec<u32>,
    is_class: bool,
}

impl Sentence {
    fn see(&mut self, row: u32, is_target: bool, sets: &mut DisjointSets) {
        if !is_target {
            let first = *self.first.get_or_insert(row);
            sets.join(first, row);
        } else if self.targets.len() < MAX_SHARED_TARGET {
            self.targets.push(row);
        } else {
            self.is_class = true;
        }
    }

    fn end(mut self, sets: &mut DisjointSets) {
        for row in self.targets.into_iter().filter(|_| !self.is_class) {
            let first = *self.first.get_or_insert(row);
            sets.join(first, row);
        }
    }
}

/// The sentences of a row.
struct Sentences {
    /// Ties rows however many have it.
    always: Option<String>,
    /// Each once; ties rows unless it is a class.
    classes: BTreeSet<String>,
}

fn sentences(content: &RowContent) -> Sentences {
    let (always, classes): (Option<&str>, Vec<&str>) = match content {
        RowContent::InputTarget { input, target } => (Some(input), vec![target]),
        RowContent::Preference { prompt, chosen, rejected } => (Some(prompt), vec![chosen, rejected]),
        RowContent::PreferredTurn { messages, chosen, rejected } => {
            (None, said(messages).chain([&chosen[..], rejected]).collect())
        }
        RowContent::Conversation { messages } => (None, said(messages).collect()),
    };
    Sentences { always: always.map(sentence), classes: classes.into_iter().map(sentence).collect() }
}

/// What users, assistants and tools say.
fn said(messages: &[Message]) -> impl Iterator<Item = &str> {
    let turns = messages.iter().filter(|message| !matches!(message.role(), "system" | "developer"));
    turns.map(Message::text).filter(|text| !text.trim().is_empty())
}

/// A sentence as people tell them apart: without case and spacing.
pub(super) fn sentence(text: &str) -> String {
    text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The same for ever, since versions are named by their content.
fn bits(sentence: &str) -> u64 {
    let digest: [u8; 32] = Sha256::digest(sentence).into();
    u64::from_le_bytes(*digest.first_chunk().unwrap_or(&[0; 8]))
}

/// Union-find with path halving.
struct DisjointSets(Column);

impl DisjointSets {
    fn root(&mut self, mut item: u32) -> u32 {
        loop {
            let above = self.0.look(item as usize);
            if above == item {
                return item;
            }
            let next = self.0.look(above as usize);
            if next != above {
                self.0.put(item as usize, next);
            }
            item = next;
        }
    }

    /// The smaller root stays, so that groups come in the order of the file.
    fn join(&mut self, left: u32, right: u32) {
        if left == right {
            return;
        }
        let (left, right) = (self.root(left), self.root(right));
        self.0.put(left.max(right) as usize, left.min(right));
    }
}
