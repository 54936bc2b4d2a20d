//! Parquet files as the Hub's tools write them (tests/golden/make_parquet.py), and as somebody who means harm does. The program that
//! reads them apart is the service's own.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use tailor_blobs::Store;
use tailor_domain::DatasetKind;
use tailor_pb::dataset::UploadHeader;
use tailor_text::{ColumnMap, Error, Format, Outcome, RowLimits, RowReader};
use tonic::Code;

use crate::support::{NAME, Service, expect_status};

fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_tailor-dataset"))
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/text/parquet").join(name)
}

fn open(file: File, format: Format, columns: &ColumnMap) -> Result<RowReader<File>, Error> {
    RowReader::open_file(file, format, columns, RowLimits::default(), program())
}

fn read(name: &str, format: Format) -> (DatasetKind, Vec<Outcome>) {
    let label = Some("language".to_owned()).filter(|_| name.starts_with("pairs"));
    let file = File::open(fixture(name)).expect("the fixture is committed");
    let reader = open(file, format, &ColumnMap { label, ..ColumnMap::default() }).expect("opens");
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

async fn service() -> Service {
    Service::with(Store::memory(), |settings| settings.dataset.parquet_reader = Some(program().into())).await
}

fn header() -> UploadHeader {
    UploadHeader { name: NAME.into(), file_name: "rows.parquet".into(), ..Default::default() }
}

#[tokio::test]
async fn a_parquet_file_becomes_a_dataset() {
    let service = service().await;
    let file = std::fs::read(fixture("pairs.parquet")).expect("the fixture is committed");
    let dataset = service.upload(header(), &file).await.expect("uploaded").dataset.expect("a dataset");
    assert_eq!((dataset.rows_train + dataset.rows_validation, dataset.rows_dropped), (42, 8));
    let report = service.report().await;
    assert_eq!((report.rows_read, report.dropped.get("empty_input")), (50, Some(&8)));
    let wanted = UploadHeader { target_column: "answer".into(), new_version: true, ..header() };
    expect_status(service.upload(wanted, &file).await, Code::InvalidArgument, &["\"answer\"", "\"expected text\""]);
}

/// A footer whose groups lie in one another as deep as nothing that reads them by recursion can go.
fn deep(levels: usize) -> Vec<u8> {
    // version, and a list of structures whose number takes three bytes
    let mut footer = vec![0x15, 2, 0x19, 0xfc];
    let count = levels + 1;
    footer.extend([count as u8 & 0x7f | 0x80, (count >> 7) as u8 & 0x7f | 0x80, (count >> 14) as u8]);
    // a name and one child
    (0..levels).for_each(|_| footer.extend([0x48, 1, b'a', 0x15, 2, 0]));
    footer.extend([0x15, 12, 0x25, 2, 0x18, 1, b'a', 0]);
    // no rows
    footer.extend([0x16, 0, 0x19, 0x0c, 0]);
    let mut bytes = b"PAR1".to_vec();
    bytes.extend(&footer);
    bytes.extend((footer.len() as u32).to_le_bytes());
    bytes.extend(b"PAR1");
    bytes
}

#[tokio::test]
async fn a_file_that_ends_its_reader_is_refused_and_the_service_goes_on() {
    let service = service().await;
    let outcome = service.upload(header(), &deep(1_000_000)).await;
    expect_status(
        outcome,
        Code::InvalidArgument,
        &["rows.parquet", "the Parquet file cannot be read", "nothing was stored"],
    );
    assert_eq!(service.spooled(), 0);
    let file = std::fs::read(fixture("pairs.parquet")).expect("the fixture is committed");
    assert!(service.upload(header(), &file).await.expect("the next one").created);
    for (bytes, says) in
        [(&b""[..], "it is empty"), (b"id,text\n1,2\n", "cannot be read"), (&file[..file.len() - 9], "cannot be read")]
    {
        let next = UploadHeader { new_version: true, ..header() };
        expect_status(service.upload(next, bytes).await, Code::InvalidArgument, &["rows.parquet", says]);
    }
}

/// Each byte of a file changed in turn: every one is read or refused, in a moment, and nothing is left running.
#[test]
fn a_damaged_file_is_read_or_refused() {
    let whole = std::fs::read(fixture("preferences.parquet")).expect("the fixture is committed");
    let mut refused = 0;
    let changed = (0..whole.len()).step_by(31);
    let count = changed.len();
    for at in changed {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&bytes).and_then(|()| file.rewind()).expect("written");
        let begun = Instant::now();
        match open(file, Format::Parquet, &ColumnMap::default()) {
            Ok(reader) => refused += usize::from(reader.take(20).any(|outcome| outcome.is_err())),
            Err(error) => {
                refused += 1;
                assert!(error.to_string().len() < 6000, "{error}");
            }
        }
        assert!(begun.elapsed().as_secs() < 60, "byte {at}");
    }
    assert!(refused > count / 3, "{refused} of {count}");
}
