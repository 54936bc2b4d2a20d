//! Which rows are hidden. Rows that share a sentence stay on one side: the same input (whatever its case and spacing), the
//! same target, or one's target as the other's input. Otherwise a model could know the answer from training. Of preferences
//! both answers count as targets; of conversations every turn but the system's.

use std::collections::{BTreeSet, HashMap};

use crate::chat::Message;
use crate::error::{Error, Result};
use crate::rows::{Row, RowContent};
use crate::seed::SplitMix;

/// A text that more rows have as their target is a class ("yes", "spam"), not a sentence, and does not tie them. Nor does a
/// turn that more conversations have ("hello").
const MAX_SHARED_TARGET: usize = 16;

/// For each row, whether it goes to validation. Takes whole groups in a drawn order until `wanted` rows are hidden, and
/// passes over those that would be too many.
pub(super) fn choose(rows: &[Row], wanted: usize, seed: u64) -> Result<Vec<bool>> {
    let mut hidden = vec![false; rows.len()];
    if wanted == 0 {
        return Ok(hidden);
    }
    if wanted >= rows.len() {
        let problem = format!("{} rows are too few to hide {wanted} of them from training", rows.len());
        return Err(Error::NoRows { problem });
    }
    let mut groups = groups(rows);
    SplitMix::new(seed).shuffle(&mut groups);
    let mut left = wanted;
    for group in groups {
        if group.len() <= left {
            left -= group.len();
            for index in group {
                hidden[index] = true;
            }
        }
    }
    if left == wanted {
        let problem =
            format!("the {} rows share their sentences, so that none can be hidden from training", rows.len());
        return Err(Error::NoRows { problem });
    }
    Ok(hidden)
}

/// Groups of rows that share a sentence, by their first row.
fn groups(rows: &[Row]) -> Vec<Vec<usize>> {
    let mut target_counts: HashMap<String, usize> = HashMap::new();
    for row in rows {
        for target in sentences(&row.content).classes {
            *target_counts.entry(target).or_default() += 1;
        }
    }
    let mut sets = DisjointSets::new(rows.len());
    let mut first_with: HashMap<String, usize> = HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        let Sentences { always, classes } = sentences(&row.content);
        let is_class = |target: &String| target_counts.get(target).is_some_and(|count| *count > MAX_SHARED_TARGET);
        for text in always.into_iter().chain(classes.into_iter().filter(|target| !is_class(target))) {
            let first = *first_with.entry(text).or_insert(index);
            sets.join(first, index);
        }
    }
    let mut by_root: HashMap<usize, usize> = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for index in 0..rows.len() {
        let group = *by_root.entry(sets.root(index)).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push(index);
    }
    groups
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
        RowContent::Conversation { messages } => {
            let turns = messages.iter().filter(|message| !matches!(message.role(), "system" | "developer"));
            (None, turns.map(Message::text).filter(|text| !text.trim().is_empty()).collect())
        }
    };
    Sentences { always: always.map(sentence), classes: classes.into_iter().map(sentence).collect() }
}

/// A sentence as people tell them apart: without case and spacing.
pub(super) fn sentence(text: &str) -> String {
    text.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Union-find with path halving.
struct DisjointSets(Vec<usize>);

impl DisjointSets {
    fn new(count: usize) -> Self {
        Self((0..count).collect())
    }

    fn root(&mut self, mut item: usize) -> usize {
        while self.0[item] != item {
            self.0[item] = self.0[self.0[item]];
            item = self.0[item];
        }
        item
    }

    /// The smaller root stays, so that groups come in the order of the file.
    fn join(&mut self, left: usize, right: usize) {
        let (left, right) = (self.root(left), self.root(right));
        self.0[left.max(right)] = left.min(right);
    }
}
