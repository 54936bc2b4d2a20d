//! Parquet files as the Hub's tools write them, beside the same rows as JSON lines (tests/golden/make_parquet.py).

use std::fs::File;
use std::path::Path;

use tailor_domain::DatasetKind;
use tailor_text::{ColumnMap, Format, Outcome, RowLimits, RowReader};

fn read(name: &str, format: Format) -> (DatasetKind, Vec<Outcome>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/text/parquet");
    let file = File::open(folder.join(name)).expect("the fixture is committed");
    let label = Some("language".to_owned()).filter(|_| name.starts_with("pairs"));
    let columns = ColumnMap { label, ..ColumnMap::default() };
    let reader = RowReader::open_file(file, format, &columns, RowLimits::default()).expect("opens");
    (reader.columns().roles.kind(), reader.map(|outcome| outcome.expect("reads")).collect())
}

#[test]
fn a_row_is_the_same_in_parquet_and_in_json() {
    for (name, kind, count, kept) in [
        ("pairs", DatasetKind::InputTarget, 50, 42),
        ("chats", DatasetKind::Conversation, 20, 16),
        ("tools", DatasetKind::Conversation, 3, 3),
        ("preferences", DatasetKind::Preference, 5, 4),
    ] {
        let (found, rows) = read(&format!("{name}.parquet"), Format::Parquet);
        let (_, expected) = read(&format!("{name}.jsonl"), Format::Jsonl);
        assert_eq!((found, rows.len()), (kind, count), "{name}");
        assert_eq!(rows.iter().filter(|outcome| matches!(outcome, Outcome::Row(_))).count(), kept, "{name}");
        for (row, expected) in rows.iter().zip(&expected) {
            match (row, expected) {
                (Outcome::Row(row), Outcome::Row(expected)) => assert_eq!(row, expected, "{name}"),
                (Outcome::Dropped(row), Outcome::Dropped(expected)) => {
                    assert_eq!((row.line, row.reason, &row.field), (expected.line, expected.reason, &expected.field));
                }
                different => panic!("{name}: {different:?}"),
            }
        }
    }
}
