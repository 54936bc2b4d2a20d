use super::*;
use crate::clean::split::sentence;

fn row(line: u64, input: &str, target: &str) -> Row {
    let content = RowContent::InputTarget { input: input.into(), target: target.into() };
    Row { line, id: None, label: None, content }
}

fn labelled(line: u64, label: &str) -> Row {
    Row { label: Some(label.into()), ..row(line, &format!("input {line}"), &format!("target {line}")) }
}

fn clean(rows: impl IntoIterator<Item = Row>, options: CleanOptions) -> Result<Cleaned> {
    let mut cleaner = Cleaner::new(options)?;
    for row in rows {
        cleaner.push(Outcome::Row(row))?;
    }
    cleaner.finish()
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
fn a_file_without_usable_rows_says_why() {
    let mut cleaner = Cleaner::new(CleanOptions::default()).expect("valid");
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
        let error = Cleaner::new(options(Holdout::Fraction(holdout))).err().expect("refused");
        assert!(error.to_string().contains("validation_fraction"), "{error}");
    }
    for max_label_ratio in [0.5, -1.0, f64::NAN] {
        let options = CleanOptions { max_label_ratio, ..CleanOptions::default() };
        assert!(Cleaner::new(options).err().expect("refused").to_string().contains("max_label_ratio"));
    }
}

#[test]
fn kept_text_is_bounded() {
    let options = CleanOptions { max_bytes: 1000, ..CleanOptions::default() };
    let error = clean(numbered(100), options).expect_err("too much");
    assert!(matches!(error, Error::TooMuch { limit: 1000 }), "{error}");
}

#[test]
fn lengths_fall_into_doubling_buckets() {
    let rows = [
        row(1, "1234567", "12345678"),
        row(2, "12345678", "12345678"),
        row(3, "12345678", "123456789"),
        row(4, &"x".repeat(40), "y"),
    ];
    let histogram = super::report::length_histogram(&rows);
    assert_eq!(histogram, [(16, 2), (32, 1), (64, 1)]);
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
fn memory_of_hostile_conversations_is_counted_by_value() {
    let nested = serde_json::json!(vec![serde_json::json!([]); 500]);
    let messages = vec![Message::new("user", "q").with("x", nested), Message::new("assistant", "a")];
    let row = Row { line: 1, id: None, label: None, content: RowContent::Conversation { messages } };
    let options = CleanOptions { max_bytes: 40_000, ..options(Holdout::Rows(0)) };
    assert!(matches!(clean([row], options), Err(Error::TooMuch { limit: 40_000 })), "500 lists are no 1000 bytes");
}
