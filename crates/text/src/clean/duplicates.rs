//! Rows that were there before, and rows that contradict one.
//!
//! What rows ask is compared by 64 bits of a keyed hash, sorted on disk; those that share them are read again and compared word
//! by word.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;

use tailor_domain::DropReason;
use tailor_domain::dataset::DroppedRow;

use super::DROPPED;
use super::report::Drops;
use super::spool::Spooled;
use crate::Column;
use crate::chat::Message;
use crate::error::Result;
use crate::rows::{Row, RowContent};
use crate::sort::Sorter;

pub(super) struct Duplicates {
    hasher: RandomState,
    asked: Sorter,
}

impl Duplicates {
    pub fn new(folder: &Path) -> Result<Self> {
        Ok(Self { hasher: RandomState::new(), asked: Sorter::new(Some(folder))? })
    }

    pub fn note(&mut self, row: usize, content: &RowContent) -> Result<()> {
        Ok(self.asked.push([self.hasher.hash_one(key(content)), row as u64])?)
    }

    /// Marks those that cannot stay beside a row before them.
    pub fn drop_from(self, rows: &Spooled, marks: &mut Column<u8>, drops: &mut Drops) -> Result<()> {
        let mut asked = None;
        // Of the rows with this hash those that stay: almost always one, more only where different questions have the same.
        let mut first = 0;
        let mut kept: Vec<Row> = Vec::new();
        for pair in self.asked.finish()? {
            let [of, row] = pair?;
            if asked.replace(of) != Some(of) {
                first = row as usize;
                kept.clear();
                continue;
            }
            if kept.is_empty() {
                kept.push(rows.read(first)?);
            }
            let found = rows.read(row as usize)?;
            match kept.iter().find_map(|first| Some((first.line, clash(first, &found)?))) {
                None => kept.push(found),
                Some((first, clash)) => {
                    marks.put(row as usize, DROPPED);
                    drops.add(clash.told(found.line, first));
                }
            }
        }
        marks.release();
        rows.known.release();
        Ok(())
    }
}

/// What is the same for two rows of which one must go, and different for almost all others.
#[derive(Hash)]
enum Key<'a> {
    Text(&'a str),
    Turns(Vec<String>),
    /// More pairs to a prompt may stay: only the same two answers meet, in either order.
    Answers(&'a str, &'a str, &'a str),
    TurnAnswers(Vec<String>, &'a str, &'a str),
}

fn key(content: &RowContent) -> Key<'_> {
    match content {
        RowContent::InputTarget { input, .. } => Key::Text(input),
        RowContent::Preference { prompt, chosen, rejected } => {
            Key::Answers(prompt, chosen.min(rejected), chosen.max(rejected))
        }
        RowContent::PreferredTurn { chosen, rejected, .. } => {
            Key::TurnAnswers(turns_before_the_answer(content), chosen.min(rejected), chosen.max(rejected))
        }
        RowContent::Conversation { .. } => Key::Turns(turns_before_the_answer(content)),
    }
}

fn turns_before_the_answer(content: &RowContent) -> Vec<String> {
    content.turns_before().unwrap_or_default().iter().map(Message::to_json).collect()
}

/// Why two rows cannot both stay.
enum Clash {
    Same,
    OtherAnswer,
    Reversed,
}

impl Clash {
    fn told(&self, line: u64, first: u64) -> DroppedRow {
        let (reason, detail) = match self {
            Self::Same => (DropReason::Duplicate, format!("the same as line {first}")),
            Self::OtherAnswer => (DropReason::Conflict, format!("line {first} has the same input with another target")),
            Self::Reversed => (DropReason::Conflict, format!("line {first} prefers the other of the same two answers")),
        };
        DroppedRow { line, field: None, reason, detail }
    }
}

fn clash(first: &Row, row: &Row) -> Option<Clash> {
    if first.content == row.content {
        return Some(Clash::Same);
    }
    match (&first.content, &row.content) {
        (
            RowContent::Preference { prompt, chosen, rejected },
            RowContent::Preference { prompt: same, chosen: better, rejected: worse },
        ) => (prompt == same && chosen == worse && rejected == better).then_some(Clash::Reversed),
        (RowContent::InputTarget { input, .. }, RowContent::InputTarget { input: same, .. }) => {
            (input == same).then_some(Clash::OtherAnswer)
        }
        (
            RowContent::PreferredTurn { messages, chosen, rejected },
            RowContent::PreferredTurn { messages: same, chosen: better, rejected: worse },
        ) => (messages == same && chosen == worse && rejected == better).then_some(Clash::Reversed),
        (RowContent::Conversation { .. }, RowContent::Conversation { .. }) => {
            let turns = [first, row].map(|row| turns_before_the_answer(&row.content));
            (turns[0] == turns[1]).then_some(Clash::OtherAnswer)
        }
        _ => None,
    }
}
