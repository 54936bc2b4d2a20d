use std::io::{Seek as _, Write as _};

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::super::{Outcome, Row, RowContent, RowReader};
use super::*;

fn write(schema: &str, properties: WriterProperties, columns: &[Column]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let schema = Arc::new(parse_message_type(schema).expect("a schema"));
    let mut writer = SerializedFileWriter::new(&mut bytes, schema, Arc::new(properties)).expect("a writer");
    let mut group = writer.next_row_group().expect("a group");
    for column in columns {
        let mut writer = group.next_column().expect("opens").expect("another column");
        match column {
            Column::Texts(texts, levels) => {
                let texts: Vec<ByteArray> = texts.iter().map(|text| ByteArray::from(*text)).collect();
                let (definitions, repetitions) = match levels {
                    Some((definitions, repetitions)) => (Some(&definitions[..]), Some(&repetitions[..])),
                    None => (None, None),
                };
                writer.typed::<ByteArrayType>().write_batch(&texts, definitions, repetitions).expect("written");
            }
            Column::Numbers(numbers) => {
                writer.typed::<Int64Type>().write_batch(numbers, None, None).expect("written");
            }
        }
        writer.close().expect("closed");
    }
    group.close().expect("closed");
    writer.close().expect("closed");
    bytes
}

enum Column {
    Texts(Vec<&'static str>, Option<(Vec<i16>, Vec<i16>)>),
    Numbers(Vec<i64>),
}

const FLAT: &str = "message rows { required int64 id; required binary text (utf8); required binary target (utf8);
                    required binary unused (utf8); }";

fn flat(compression: Compression) -> Vec<u8> {
    let properties = WriterProperties::builder().set_compression(compression).build();
    let texts = |texts: &[&'static str]| Column::Texts(texts.to_vec(), None);
    let columns = [
        Column::Numbers(vec![7, 8, 9]),
        texts(&["one", "", " three "]),
        texts(&["ONE", "TWO", "THREE"]),
        texts(&["x", "y", "z"]),
    ];
    write(FLAT, properties, &columns)
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file.rewind().expect("rewound");
    file
}

fn limits(max_line_bytes: usize) -> RowLimits {
    RowLimits { max_line_bytes, ..RowLimits::default() }
}

fn open(bytes: &[u8]) -> Result<RowReader<File>> {
    RowReader::open_file(file(bytes), Format::Parquet, &ColumnMap::default(), limits(100))
}

fn outcomes(bytes: &[u8]) -> Vec<Outcome> {
    open(bytes).expect("opens").map(|outcome| outcome.expect("reads")).collect()
}

#[test]
fn rows_are_those_of_their_columns_however_they_are_packed() {
    let zstd = Compression::ZSTD(ZstdLevel::default());
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd] {
        let rows = outcomes(&flat(compression));
        let content =
            |input: &str, target: &str| RowContent::InputTarget { input: input.into(), target: target.into() };
        let row = |line, id: &str, content| Outcome::Row(Row { line, id: Some(id.into()), label: None, content });
        assert_eq!(rows[0], row(1, "7", content("one", "ONE")), "{compression}");
        let Outcome::Dropped(dropped) = &rows[1] else { panic!("{:?}", rows[1]) };
        assert_eq!((dropped.line, dropped.reason, dropped.field.as_deref()), (2, DropReason::EmptyInput, Some("text")));
        assert_eq!(rows[2], row(3, "9", content("three", "THREE")));
        assert_eq!(rows.len(), 3);
    }
}

/// Two conversations, of two messages and of one; a name is null but for the first.
#[test]
fn a_list_of_structures_is_a_conversation() {
    let schema = "message rows { optional group messages (LIST) { repeated group list { optional group element {
        optional binary role (utf8); optional binary content (utf8); optional binary name (utf8); } } } }";
    let repetitions = vec![0, 1, 0];
    let text = |texts: &[&'static str], levels: &[i16]| {
        Column::Texts(texts.to_vec(), Some((levels.to_vec(), repetitions.clone())))
    };
    let columns = [
        text(&["user", "assistant", "user"], &[4, 4, 4]),
        text(&["hi", "ho", "hm"], &[4, 4, 4]),
        text(&["Ann"], &[4, 3, 3]),
    ];
    let rows = outcomes(&write(schema, WriterProperties::builder().build(), &columns));
    let Outcome::Row(Row { content: RowContent::Conversation { messages }, .. }) = &rows[0] else {
        panic!("{:?}", rows[0])
    };
    let written = serde_json::to_value(messages).expect("JSON");
    let first = serde_json::json!({"role": "user", "content": "hi", "name": "Ann"});
    assert_eq!(written, serde_json::json!([first, {"role": "assistant", "content": "ho"}]));
    let Outcome::Dropped(dropped) = &rows[1] else { panic!("{:?}", rows[1]) };
    assert_eq!((dropped.line, dropped.reason), (2, DropReason::EmptyTarget), "nobody answers");
}

#[test]
fn a_row_above_the_limit_is_dropped_and_others_stay() {
    let long: &'static str = "x".repeat(200).leak();
    let texts = |texts: &[&'static str]| Column::Texts(texts.to_vec(), None);
    let schema = "message rows { required binary input (utf8); required binary target (utf8); }";
    let bytes = write(schema, WriterProperties::builder().build(), &[texts(&[long, "b"]), texts(&["A", "B"])]);
    let rows = outcomes(&bytes);
    let Outcome::Dropped(dropped) = &rows[0] else { panic!("{:?}", rows[0]) };
    assert_eq!((dropped.line, dropped.reason), (1, DropReason::TooLong));
    assert!(matches!(&rows[1], Outcome::Row(row) if row.line == 2));
}

#[test]
fn bytes_that_are_no_text_drop_their_row() {
    let schema = "message rows { required binary input; required binary target; }";
    let texts = |texts: &[&'static str]| Column::Texts(texts.to_vec(), None);
    let mut bytes = write(
        schema,
        WriterProperties::builder().set_dictionary_enabled(false).build(),
        &[texts(&["good", "abcd"]), texts(&["A", "B"])],
    );
    let at = bytes.windows(4).position(|window| window == b"abcd").expect("as it lies");
    bytes[at] = 0xff;
    let rows = outcomes(&bytes);
    assert!(matches!(&rows[0], Outcome::Row(_)), "{:?}", rows[0]);
    let Outcome::Dropped(dropped) = &rows[1] else { panic!("{:?}", rows[1]) };
    assert!(dropped.detail.contains("[255,98,99,100] is no text"), "{}", dropped.detail);
}

#[test]
fn a_file_that_is_none_says_so() {
    let whole = flat(Compression::SNAPPY);
    let gzip = write(
        "message rows { required binary a (utf8); }",
        WriterProperties::builder().build(),
        &[Column::Texts(vec!["x"], None)],
    );
    let cut = &whole[..whole.len() - 20];
    let mut secret = whole.clone();
    let end = secret.len();
    secret[end - 4..].copy_from_slice(b"PARE");
    let mut footer = whole.clone();
    footer[end - 8..end - 4].copy_from_slice(&u32::MAX.to_le_bytes());
    for (bytes, says) in [
        (&b""[..], "the file is empty"),
        (b"id,text\n1,2\n", "is it one, and whole?"),
        (b"PAR1", "is it one, and whole?"),
        (cut, "is it one, and whole?"),
        (&secret, "encrypted"),
        (&footer, "4294967295 bytes"),
        (&gzip, "no column for the input; the file has \"a\""),
    ] {
        let error = open(bytes).err().expect("refused").to_string();
        assert!(error.contains(says), "{error:?} must say {says:?}");
    }
    let stream = RowReader::open(&whole[..], Format::Parquet, &ColumnMap::default(), limits(100));
    assert!(stream.err().expect("refused").to_string().contains("from a file"));
}

/// Bytes of a file changed, one after the other and many at a time: each is read or refused, and nothing else happens.
#[test]
fn a_damaged_file_is_read_or_refused() {
    std::panic::set_hook(Box::new(|_| {}));
    let zstd = Compression::ZSTD(ZstdLevel::default());
    for whole in [flat(Compression::UNCOMPRESSED), flat(Compression::SNAPPY), flat(zstd)] {
        let mut refused = 0;
        for at in 0..whole.len() {
            for change in [1, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                match open(&bytes) {
                    Ok(reader) => refused += usize::from(reader.take(10).any(|outcome| outcome.is_err())),
                    Err(error) => {
                        refused += 1;
                        assert!(error.to_string().len() < 1500, "{error}");
                    }
                }
            }
        }
        assert!(refused > whole.len() / 4, "{refused} of {}", 3 * whole.len());
    }
}
