use std::collections::{BTreeMap, BTreeSet, HashSet};

use tailor_domain::DropReason;
use tailor_domain::dataset::DroppedRow;

use super::*;
use crate::chat::Message;
use crate::clean::split::sentence;
use crate::rows::{Row, RowContent};
use crate::seed::SplitMix;

fn row(line: u64, input: &str, target: &str) -> Row {
    let content = RowContent::InputTarget { input: input.into(), target: target.into() };
    Row { line, id: None, label: None, content }
}

fn labelled(line: u64, label: &str) -> Row {
    Row { label: Some(label.into()), ..row(line, &format!("input {line}"), &format!("target {line}")) }
}

/// What came out, read from the files.
#[derive(Debug)]
struct Read {
    train: Vec<Row>,
    validation: Vec<Row>,
    report: Report,
}

fn clean(rows: impl IntoIterator<Item = Row>, options: CleanOptions) -> Result<Read> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cleaner = Cleaner::new(options, folder.path())?;
    for row in rows {
        cleaner.push(Outcome::Row(row))?;
    }
    let Cleaned { train, validation, report } = cleaner.finish()?;
    let read = |file: RowFile| -> Vec<Row> {
        let text = std::fs::read_to_string(&file.path).expect("read");
        let rows: Vec<Row> = text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect();
        assert_eq!(rows.len() as u64, file.rows);
        rows
    };
    Ok(Read { train: read(train), validation: read(validation), report })
}

/// The checks that are made before anything is read.
fn refused(options: CleanOptions) -> String {
    options.validate().expect_err("refused").to_string()
}

fn options(holdout: Holdout) -> CleanOptions {
    CleanOptions { holdout, ..CleanOptions::default() }
}

fn numbered(count: u64) -> Vec<Row> {
    (1..=count).map(|n| row(n, &format!("input {n}"), &format!("target {n}"))).collect()
}

#[test]
fn duplicates_and_conflicts_are_dropped_and_the_first_stays() {
    let rows = [row(2, "a", "b"), row(3, "a", "b"), row(4, "a", "c"), row(5, "d", "e")];
    let cleaned = clean(rows, options(Holdout::Rows(0))).expect("rows left");
    assert_eq!(cleaned.train.iter().map(|row| row.line).collect::<Vec<_>>(), [2, 5]);
    let report = cleaned.report;
    assert_eq!((report.rows_read, report.rows_train, report.rows_validation), (4, 2, 0));
    assert_eq!(report.dropped, BTreeMap::from([(DropReason::Duplicate, 1), (DropReason::Conflict, 1)]));
    assert_eq!(report.examples[0].detail, "the same as line 2");
    assert_eq!((report.examples[1].line, report.examples[1].reason), (4, DropReason::Conflict));
}

#[test]
fn every_row_is_kept_or_counted_as_dropped() {
    let mut rows = numbered(200);
    rows.extend(numbered(50));
    let cleaned = clean(rows, options(Holdout::Fraction(0.2))).expect("rows left");
    let report = &cleaned.report;
    assert_eq!(report.rows_kept() + report.rows_dropped(), report.rows_read);
    assert_eq!(cleaned.validation.len(), 40);
    assert_eq!(report.examples.len(), 10, "examples are bounded, counts are not");
    assert_eq!(report.dropped[&DropReason::Duplicate], 50);
}

#[test]
fn validation_shares_no_sentence_with_training() {
    // Chains: each target is a later row's input in other case, and several inputs share a target.
    let mut random = SplitMix::new(5);
    let mut rows = Vec::new();
    for n in 0..600 {
        let topic = random.below(250);
        let input = if n % 7 == 0 { format!("Sentence  {topic}") } else { format!("wrong {n}") };
        rows.push(row(n + 2, &input, &format!("sentence {topic}")));
    }
    let cleaned = clean(rows, options(Holdout::Fraction(0.2))).expect("rows left");
    assert!(cleaned.validation.len() > 80, "{} rows hidden", cleaned.validation.len());
    let seen: HashSet<String> =
        cleaned.train.iter().flat_map(|row| [sentence(&row.content.asked()), sentence(row.content.answer())]).collect();
    for row in &cleaned.validation {
        for text in [&*row.content.asked(), row.content.answer()] {
            assert!(!seen.contains(&sentence(text)), "{text} was seen in training");
        }
    }
}

#[test]
fn a_class_as_target_does_not_tie_rows() {
    let rows: Vec<Row> =
        (0..100).map(|n| row(n + 2, &format!("text {n}"), if n % 2 == 0 { "yes" } else { "no" })).collect();
    let cleaned = clean(rows, options(Holdout::Fraction(0.1))).expect("rows left");
    assert_eq!(cleaned.validation.len(), 10);
}

#[test]
fn the_seed_decides_the_split_and_nothing_else_does() {
    let lines = |seed| {
        let options = CleanOptions { seed, ..options(Holdout::Rows(20)) };
        let cleaned = clean(numbered(100), options).expect("rows left");
        cleaned.validation.iter().map(|row| row.line).collect::<Vec<_>>()
    };
    assert_eq!(lines(1), lines(1));
    assert_ne!(lines(1), lines(2));
    assert!(lines(3).is_sorted(), "rows keep the order of the file");
}

#[test]
fn no_label_keeps_more_than_its_share() {
    let mut rows: Vec<Row> = (0..90).map(|n| labelled(n + 2, "en")).collect();
    rows.extend((90..110).map(|n| labelled(n + 2, "de")));
    let options = CleanOptions { max_label_ratio: 2.0, ..options(Holdout::Rows(0)) };
    let cleaned = clean(rows, options).expect("rows left");
    let report = cleaned.report;
    assert_eq!(report.labels_before, BTreeMap::from([("de".into(), 20), ("en".into(), 90)]));
    assert_eq!(report.labels_after, BTreeMap::from([("de".into(), 20), ("en".into(), 40)]));
    assert_eq!(report.dropped[&DropReason::Balanced], 50);
    assert_eq!(cleaned.train.len(), 60);
    let kept: Vec<u64> = cleaned.train.iter().map(|row| row.line).take(40).collect();
    assert_ne!(kept, (2..42).collect::<Vec<_>>(), "drawn from all of them, not the first ones");
}

#[test]
fn without_labels_nothing_is_balanced() {
    let options = CleanOptions { max_label_ratio: 1.0, ..options(Holdout::Rows(0)) };
    let cleaned = clean(numbered(10), options).expect("rows left");
    assert_eq!(cleaned.train.len(), 10);
    assert!(cleaned.report.labels_before.is_empty());
}

#[test]
fn a_free_text_column_is_no_label_column() {
    let rows = (0..2000).map(|n| labelled(n, &format!("label {n}")));
    let options = CleanOptions { label_column: "comment".into(), ..CleanOptions::default() };
    let error = clean(rows, options).expect_err("too many labels");
    assert!(error.to_string().contains("column comment has more than 1000"), "{error}");
}

#[test]
fn a_label_that_is_a_text_is_refused_by_its_line() {
    let long = |bytes: usize| [labelled(2, "en"), labelled(3, &"x".repeat(bytes))];
    assert!(clean(long(MAX_LABEL_BYTES), options(Holdout::Rows(0))).is_ok());
    let error = clean(long(MAX_LABEL_BYTES + 1), options(Holdout::Rows(0))).expect_err("too long").to_string();
    assert_eq!(
        error,
        "line 3: its label in column label has 257 bytes, the limit is 256; it is no label column, name another or none"
    );
}

#[test]
fn a_file_without_usable_rows_says_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cleaner = Cleaner::new(CleanOptions::default(), folder.path()).expect("valid");
    let dropped =
        DroppedRow { line: 2, field: None, reason: DropReason::InvalidUtf8, detail: "byte 0xFC is not UTF-8".into() };
    cleaner.push(Outcome::Dropped(dropped)).expect("counts");
    let error = cleaner.finish().expect_err("nothing left");
    assert_eq!(
        error.to_string(),
        "no row is left: of 1 rows 1 dropped as invalid_utf8, first line 2: byte 0xFC is not UTF-8"
    );
    assert!(clean([], CleanOptions::default()).is_err(), "a header alone is no dataset");
}

#[test]
fn too_few_or_inseparable_rows_are_refused() {
    assert!(clean(numbered(1), options(Holdout::Rows(1))).is_err(), "nothing would be left to train on");
    let tied = (0..10).map(|n| row(n + 2, &format!("input {n}"), "the same target"));
    let error = clean(tied, options(Holdout::Rows(2))).expect_err("all share a sentence");
    assert!(error.to_string().contains("share their sentences"), "{error}");
}

#[test]
fn options_outside_their_limits_are_refused_by_name() {
    for holdout in [0.6, -0.1, f64::NAN] {
        let error = refused(options(Holdout::Fraction(holdout)));
        assert!(error.contains("validation_fraction"), "{error}");
    }
    for max_label_ratio in [0.5, -1.0, f64::NAN] {
        let options = CleanOptions { max_label_ratio, ..CleanOptions::default() };
        assert!(refused(options).contains("max_label_ratio"));
    }
}

#[test]
fn lengths_fall_into_doubling_buckets() {
    let rows = [
        row(1, "1234567", "12345678"),
        row(2, "12345678", "12345678"),
        row(3, "87654321", "123456789"),
        row(4, &"x".repeat(40), "y"),
    ];
    let cleaned = clean(rows, options(Holdout::Rows(0))).expect("rows left");
    assert_eq!(cleaned.report.length_histogram, [(16, 2), (32, 1), (64, 1)]);
}

fn preference(line: u64, prompt: &str, chosen: &str, rejected: &str) -> Row {
    let content = RowContent::Preference { prompt: prompt.into(), chosen: chosen.into(), rejected: rejected.into() };
    Row { line, id: None, label: None, content }
}

fn conversation(line: u64, turns: &[&str]) -> Row {
    let role = |at: usize| if (turns.len() - at) % 2 == 1 { "assistant" } else { "user" };
    let messages = turns.iter().enumerate().map(|(at, text)| Message::new(role(at), *text));
    let system = std::iter::once(Message::new("system", "be kind"));
    Row {
        line,
        id: None,
        label: None,
        content: RowContent::Conversation { messages: system.chain(messages).collect() },
    }
}

#[test]
fn more_pairs_to_a_prompt_are_kept_and_a_reversed_one_conflicts() {
    let rows = [
        preference(1, "q", "a", "b"),
        preference(2, "q", "a", "c"),
        preference(3, "q", "a", "b"),
        preference(4, "q", "b", "a"),
        preference(5, "r", "b", "a"),
    ];
    let cleaned = clean(rows, options(Holdout::Rows(0))).expect("rows left");
    assert_eq!(cleaned.train.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 5]);
    let report = cleaned.report;
    assert_eq!(report.dropped, BTreeMap::from([(DropReason::Duplicate, 1), (DropReason::Conflict, 1)]));
    assert_eq!(report.examples[1].detail, "line 1 prefers the other of the same two answers");
    assert_eq!(report.length_histogram, [(16, 3)]);
}

#[test]
fn answers_to_the_same_turns_conflict_only_reversed() {
    let row = |line: u64, question: &str, chosen: &str, rejected: &str| {
        let messages = vec![Message::new("system", "be kind"), Message::new("user", question)];
        let content = RowContent::PreferredTurn { messages, chosen: chosen.into(), rejected: rejected.into() };
        Row { line, id: None, label: None, content }
    };
    let rows = [
        row(1, "q", "a", "b"),
        row(2, "q", "a", "c"),
        row(3, "q", "a", "b"),
        row(4, "q", "b", "a"),
        row(5, "r", "b", "a"),
    ];
    let cleaned = clean(rows, options(Holdout::Rows(0))).expect("rows left");
    assert_eq!(cleaned.train.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 5]);
    assert_eq!(cleaned.report.dropped, BTreeMap::from([(DropReason::Duplicate, 1), (DropReason::Conflict, 1)]));
}

#[test]
fn conversations_are_told_apart_by_all_their_turns() {
    let rows = [
        conversation(1, &["q", "a"]),
        conversation(2, &["q", "a", "q2", "a2"]),
        conversation(3, &["q", "other", "q2", "a2"]),
        conversation(4, &["q", "a", "q2", "a3"]),
        conversation(5, &["q", "a"]),
    ];
    let cleaned = clean(rows, options(Holdout::Rows(0))).expect("rows left");
    assert_eq!(cleaned.train.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(cleaned.report.dropped, BTreeMap::from([(DropReason::Duplicate, 1), (DropReason::Conflict, 1)]));
}

#[test]
fn held_out_conversations_and_preferences_share_no_sentence_with_training() {
    let mut random = SplitMix::new(8);
    let mut texts =
        |count: usize| -> Vec<String> { (0..count).map(|_| format!("sentence {}", random.below(4000))).collect() };
    let conversations: Vec<Row> = (0..400)
        .map(|n| {
            let own = texts(4);
            let turns: Vec<&str> = own.iter().map(String::as_str).collect();
            // All of them begin alike: a greeting ties nothing.
            conversation(n, &[&["hello", "Hello!"], &turns[..2 + 2 * (n as usize % 2)]].concat())
        })
        .collect();
    let pairs: Vec<Row> = (0..400)
        .map(|n| match texts(3).as_slice() {
            [prompt, chosen, rejected] => preference(n, prompt, chosen, rejected),
            _ => panic!("three texts"),
        })
        .collect();
    let sentences = |row: &Row| -> Vec<String> {
        match &row.content {
            RowContent::Conversation { messages } => messages
                .iter()
                .map(|message| sentence(message.text()))
                .filter(|text| text.starts_with("sentence"))
                .collect(),
            content => {
                [&*content.asked(), content.answer(), content.rejected().unwrap_or_default()].map(sentence).into()
            }
        }
    };
    for rows in [conversations, pairs] {
        let cleaned = clean(rows, options(Holdout::Fraction(0.1))).expect("rows left");
        assert!(cleaned.validation.len() > 20, "{} rows hidden", cleaned.validation.len());
        let seen: HashSet<String> = cleaned.train.iter().flat_map(&sentences).collect();
        for row in &cleaned.validation {
            assert!(sentences(row).iter().all(|text| !seen.contains(text)), "{row:?} was seen in training");
        }
    }
}

#[test]
fn what_is_dropped_is_shown_in_the_order_of_the_file() {
    let rows = [row(2, "a", "b"), row(3, "c", "d"), row(4, "c", "d"), row(5, "a", "x"), row(6, "c", "y")];
    let options = CleanOptions { max_examples: 2, ..options(Holdout::Rows(0)) };
    let report = clean(rows, options).expect("rows left").report;
    let shown: Vec<_> = report.examples.iter().map(|dropped| (dropped.line, dropped.reason)).collect();
    assert_eq!(shown, [(4, DropReason::Duplicate), (5, DropReason::Conflict), (6, DropReason::Conflict)]);
}

/// The split as it was when rows were in memory: datasets of then have the same versions now.
mod in_memory {
    use std::collections::HashMap;

    use super::*;

    const MAX_SHARED_TARGET: usize = 16;

    pub fn hidden_lines(rows: &[Row], wanted: usize, seed: u64) -> Vec<u64> {
        let mut groups = groups(rows);
        let mut random = SplitMix::new(seed);
        for at in (1..groups.len()).rev() {
            groups.swap(at, random.below(at + 1));
        }
        let (mut left, mut lines) = (wanted, Vec::new());
        for group in groups {
            if group.len() <= left {
                left -= group.len();
                lines.extend(group.into_iter().map(|index| rows[index].line));
            }
        }
        lines.sort_unstable();
        lines
    }

    fn texts(content: &RowContent) -> (Option<String>, BTreeSet<String>) {
        match content {
            RowContent::InputTarget { input, target } => (Some(sentence(input)), BTreeSet::from([sentence(target)])),
            RowContent::Preference { prompt, chosen, rejected } => {
                (Some(sentence(prompt)), BTreeSet::from([sentence(chosen), sentence(rejected)]))
            }
            RowContent::PreferredTurn { messages, chosen, rejected } => {
                let said = messages.iter().map(|message| sentence(message.text()));
                (None, said.chain([sentence(chosen), sentence(rejected)]).collect())
            }
            RowContent::Conversation { messages } => {
                (None, messages.iter().map(|message| sentence(message.text())).collect())
            }
        }
    }

    fn groups(rows: &[Row]) -> Vec<Vec<usize>> {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for row in rows {
            texts(&row.content).1.into_iter().for_each(|target| *counts.entry(target).or_default() += 1);
        }
        let mut group_of: Vec<usize> = (0..rows.len()).collect();
        let mut first_with: HashMap<String, usize> = HashMap::new();
        for (index, row) in rows.iter().enumerate() {
            let (always, targets) = texts(&row.content);
            let tying = targets.into_iter().filter(|target| counts[target] <= MAX_SHARED_TARGET);
            for text in always.into_iter().chain(tying) {
                let first = *first_with.entry(text).or_insert(index);
                let (one, other) = (group_of[first], group_of[index]);
                let (from, to) = (one.max(other), one.min(other));
                group_of.iter_mut().filter(|group| **group == from).for_each(|group| *group = to);
            }
        }
        let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        group_of.into_iter().enumerate().for_each(|(index, group)| groups.entry(group).or_default().push(index));
        groups.into_values().collect()
    }
}

#[test]
fn the_split_on_disk_is_that_in_memory() {
    for seed in 0..6 {
        let mut random = SplitMix::new(seed);
        let mut text = |most: usize| format!("Sentence {}", random.below(most));
        let rows: Vec<Row> = (0..900)
            .map(|n| match (seed % 3, n % 9) {
                (0, 0) => row(n, &text(300), "a class"),
                (0, _) => row(n, &format!("own {n}"), &text(900)),
                (1, _) => preference(n, &text(700), &text(2000), &format!("own {n}")),
                _ => conversation(n, &["hello", &format!("own {n}"), &text(2500), &text(2500)]),
            })
            .collect();
        let cleaned = clean(rows, CleanOptions { seed, ..options(Holdout::Fraction(0.2)) }).expect("rows left");
        let mut kept: Vec<Row> = cleaned.train.iter().chain(&cleaned.validation).cloned().collect();
        kept.sort_by_key(|row| row.line);
        let wanted = (kept.len() as f64 * 0.2).round() as usize;
        let hidden: Vec<u64> = cleaned.validation.iter().map(|row| row.line).collect();
        assert!(hidden.len() > 50, "seed {seed}: {} rows hidden", hidden.len());
        assert_eq!(hidden, in_memory::hidden_lines(&kept, wanted, seed), "seed {seed}");
    }
}

const CHILD: &str = "TAILOR_TEST_CLEAN_CHILD";
/// Enough that everything that fills up is full: what sorts, and what a column has in memory.
const FEW: u64 = 160_000;
const MANY: u64 = 1_280_000;
/// How much more memory the many may take: less than 4 bytes for each row more.
const MORE_KIB: u64 = 4 << 10;

/// Cleans so many rows, of which a quarter goes as labels are balanced, and prints by how much the process grew.
fn clean_many(rows: u64) {
    let peak = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("read");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        line.expect("VmHWM").trim().parse().expect("a number")
    };
    let before = peak();
    let folder = tempfile::tempdir().expect("a folder");
    let options = CleanOptions { max_label_ratio: 2.0, ..options(Holdout::Fraction(0.1)) };
    let mut cleaner = Cleaner::new(options, folder.path()).expect("valid");
    let mut random = SplitMix::new(3);
    for n in 0..rows {
        let mut text = || format!("{:0>40}", random.next() % (rows * 20));
        let label = if n % 4 == 0 { "rare" } else { "common" };
        let row = Row { label: Some(label.into()), ..row(n + 2, &text(), &text()) };
        cleaner.push(Outcome::Row(row)).expect("room");
    }
    let cleaned = cleaner.finish().expect("rows left");
    assert!(cleaned.validation.rows > rows / 20 && cleaned.report.rows_kept() > rows * 6 / 10);
    println!("GREW {}", peak() - before);
}

#[test]
fn eight_times_the_rows_are_cleaned_in_the_same_memory() {
    if let Ok(rows) = std::env::var(CHILD) {
        return clean_many(rows.parse().expect("a number"));
    }
    let growth = |rows: u64| -> u64 {
        let run = std::process::Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "clean::tests::eight_times_the_rows_are_cleaned_in_the_same_memory", "--nocapture"])
            .env(CHILD, rows.to_string())
            .output()
            .expect("runs");
        let text = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "{text}\n{}", String::from_utf8_lossy(&run.stderr));
        let grew = text.lines().find_map(|line| line.split_once("GREW ")).expect("a figure").1;
        grew.trim().parse().expect("a number")
    };
    let (small, large) = (growth(FEW), growth(MANY));
    println!("{FEW} rows: {small} KiB, {MANY}: {large} KiB");
    assert!(large < small + MORE_KIB, "{small} KiB and {large} KiB");
}
