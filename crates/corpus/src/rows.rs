//! The shipped table: `id,language,text,expected text`, with the flaws that a real export has.
//!
//! The flaws are counted ([`Flaws`]), so a report over the file can be checked against them. Every good row has a
//! sentence of its own: no two share a text or an expected text.

use std::collections::HashSet;

use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::generator::{Generator, Pair};

/// The seed of `data/grammar.csv`.
pub const SHIPPED_SEED: u64 = 20_260;
/// The good rows of `data/grammar.csv`.
pub const SHIPPED_ROWS: usize = 10_000;
/// The header line of the table.
pub const HEADER: &str = "id,language,text,expected text";

/// The seed of [`held_out`]: another stream than the table's.
const HELD_OUT_SEED: u64 = 77_001;

/// How many rows of each flaw stand in a table beside its good rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flaws {
    /// A row above again under a new id.
    pub duplicates: usize,
    /// The text of a row above with another expected text: the text itself.
    pub conflicts: usize,
    /// The row ends after its text.
    pub missing_field: usize,
    /// The row has a fifth field.
    pub extra_field: usize,
    pub empty_text: usize,
    pub empty_expected: usize,
    /// The text has a byte that is not UTF-8.
    pub invalid_utf8: usize,
    /// The last line opens a quote that never closes. At most one, since it would swallow every line after it.
    pub unclosed_quote: bool,
}

impl Flaws {
    /// What `data/grammar.csv` contains.
    pub const SHIPPED: Self = Self {
        duplicates: 60,
        conflicts: 5,
        missing_field: 9,
        extra_field: 7,
        empty_text: 8,
        empty_expected: 6,
        invalid_utf8: 4,
        unclosed_quote: true,
    };

    /// Rows that are not four non-empty UTF-8 fields.
    pub const fn malformed(&self) -> usize {
        self.missing_field
            + self.extra_field
            + self.empty_text
            + self.empty_expected
            + self.invalid_utf8
            + self.unclosed_quote as usize
    }

    /// All rows beside the good ones.
    pub const fn total(&self) -> usize {
        self.malformed() + self.duplicates + self.conflicts
    }
}

/// `rows` pairs that share neither a text nor an expected text.
pub fn table(seed: u64, rows: usize) -> Vec<Pair> {
    distinct(seed, HashSet::new()).take(rows).collect()
}

/// `count` faulty sentences, none of them in the shipped table.
pub fn held_out(count: usize) -> Vec<Pair> {
    let shipped = table(SHIPPED_SEED, SHIPPED_ROWS).into_iter().flat_map(|pair| [pair.text, pair.expected]).collect();
    distinct(HELD_OUT_SEED, shipped).filter(|pair| !pair.faults.is_empty()).take(count).collect()
}

/// An endless stream of pairs none of whose sentences is in `taken` or came before.
fn distinct(seed: u64, mut taken: HashSet<String>) -> impl Iterator<Item = Pair> {
    let mut generator = Generator::new(seed);
    std::iter::repeat_with(move || generator.pair()).filter(move |pair| {
        if taken.contains(&pair.text) || taken.contains(&pair.expected) {
            return false;
        }
        taken.insert(pair.text.clone());
        taken.insert(pair.expected.clone());
        true
    })
}

/// The bytes of a table with `rows` good rows and the given flaws, shuffled in by the seed.
pub fn csv(seed: u64, rows: usize, flaws: &Flaws) -> Vec<u8> {
    let pairs = table(seed, rows);
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x5eed);
    let mut order = line_kinds(rows, flaws);
    order.shuffle(&mut rng);

    let mut out = format!("{HEADER}\n").into_bytes();
    let mut written: Vec<&Pair> = Vec::with_capacity(rows);
    let mut fresh = pairs.iter();
    let mut id = 0;
    let mut postponed = Vec::new();
    for kind in order {
        // A copy needs a row above it that it can copy; before there is one it waits for the end.
        if matches!(kind, Line::Duplicate | Line::Conflict) && written.len() < 20 {
            postponed.push(kind);
            continue;
        }
        id += 1;
        write_line(&mut out, id, kind, &mut fresh, &mut written, &mut rng);
    }
    for kind in postponed {
        id += 1;
        write_line(&mut out, id, kind, &mut fresh, &mut written, &mut rng);
    }
    if flaws.unclosed_quote {
        out.extend_from_slice(format!("{},en-US,\"She walk to the park every day.,She walks\n", id + 1).as_bytes());
    }
    out
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Good,
    Duplicate,
    Conflict,
    MissingField,
    ExtraField,
    EmptyText,
    EmptyExpected,
    InvalidUtf8,
}

fn line_kinds(rows: usize, flaws: &Flaws) -> Vec<Line> {
    [
        (Line::Good, rows),
        (Line::Duplicate, flaws.duplicates),
        (Line::Conflict, flaws.conflicts),
        (Line::MissingField, flaws.missing_field),
        (Line::ExtraField, flaws.extra_field),
        (Line::EmptyText, flaws.empty_text),
        (Line::EmptyExpected, flaws.empty_expected),
        (Line::InvalidUtf8, flaws.invalid_utf8),
    ]
    .into_iter()
    .flat_map(|(kind, count)| std::iter::repeat_n(kind, count))
    .collect()
}

fn write_line<'a>(
    out: &mut Vec<u8>,
    id: usize,
    kind: Line,
    fresh: &mut std::slice::Iter<'a, Pair>,
    written: &mut Vec<&'a Pair>,
    rng: &mut ChaCha8Rng,
) {
    if kind == Line::Good {
        written.extend(fresh.next());
    }
    let pick = if kind == Line::Good { written.len().checked_sub(1) } else { random_index(rng, written) };
    // Without a single row above there is nothing to damage; only an empty table comes here.
    let Some(pair) = pick.and_then(|index| written.get(index)) else { return };
    let language = pair.dialect.tag();
    let (text, expected) = (quoted(&pair.text), quoted(&pair.expected));
    let line = match kind {
        Line::Good | Line::Duplicate => format!("{id},{language},{text},{expected}\n"),
        Line::Conflict => format!("{id},{language},{text},{text}\n"),
        Line::MissingField => format!("{id},{language},{text}\n"),
        Line::ExtraField => format!("{id},{language},{text},{expected},checked\n"),
        Line::EmptyText => format!("{id},{language},,{expected}\n"),
        Line::EmptyExpected => format!("{id},{language},{text},\n"),
        Line::InvalidUtf8 => {
            out.extend_from_slice(format!("{id},{language},Caf").as_bytes());
            out.push(0xe9); // é in Latin-1
            out.extend_from_slice(format!(" is open every day.,{expected}\n").as_bytes());
            return;
        }
    };
    out.extend_from_slice(line.as_bytes());
}

/// A row whose text and expected text differ, so that a conflict is one.
fn random_index(rng: &mut ChaCha8Rng, written: &[&Pair]) -> Option<usize> {
    let faulty: Vec<usize> =
        written.iter().enumerate().filter(|(_, pair)| !pair.faults.is_empty()).map(|(index, _)| index).collect();
    (!faulty.is_empty()).then(|| faulty[rng.random_range(0..faulty.len())])
}

fn quoted(field: &str) -> String {
    if field.contains(',') { format!("\"{field}\"") } else { field.to_owned() }
}

#[cfg(test)]
mod tests;
