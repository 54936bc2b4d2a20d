use std::io::{Seek as _, Write as _};

use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::json;

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

fn read(bytes: &[u8], limit: u64, wanted: &[u64]) -> Result<Vec<Value>, String> {
    let mut output = Vec::new();
    rows(file(bytes), limit, wanted, &mut output)?;
    Ok(output.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[test]
fn rows_are_those_of_the_wanted_columns_however_they_are_packed() {
    let zstd = Compression::ZSTD(ZstdLevel::default());
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd] {
        let bytes = flat(compression);
        let mut found = Vec::new();
        names(file(&bytes), &mut found).expect("names");
        assert_eq!(found, br#"["id","text","target","unused"]"#);
        let rows = read(&bytes, 1000, &[1, 0, 2]).expect("rows");
        assert_eq!(rows[0], json!({"id": 7, "text": "one", "target": "ONE"}), "{compression}");
        assert_eq!(rows[2], json!({"id": 9, "text": " three ", "target": "THREE"}));
        assert_eq!(rows.len(), 3);
    }
}

#[test]
fn rows_of_more_bytes_than_are_wanted_are_refused() {
    let bytes = flat(Compression::SNAPPY);
    let size: usize = read(&bytes, 1000, &[1]).expect("rows").iter().map(|row| row.to_string().len() + 1).sum();
    assert_eq!(read(&bytes, size as u64, &[1]).expect("just enough").len(), 3);
    let error = read(&bytes, size as u64 - 1, &[1]).expect_err("refused");
    assert!(error.contains("dataset.max_upload_bytes"), "{error}");
}

/// Two conversations, of two messages and of one; a name is null but for the first.
#[test]
fn a_list_of_structures_is_a_list_of_objects() {
    let schema = "message rows { optional group messages (LIST) { repeated group list { optional group element {
        optional binary role (utf8); optional binary name (utf8); } } } }";
    let repetitions = vec![0, 1, 0];
    let text = |texts: &[&'static str], levels: &[i16]| {
        Column::Texts(texts.to_vec(), Some((levels.to_vec(), repetitions.clone())))
    };
    let columns = [text(&["user", "assistant", "user"], &[4, 4, 4]), text(&["Ann"], &[4, 3, 3])];
    let rows = read(&write(schema, WriterProperties::builder().build(), &columns), 1000, &[0]).expect("rows");
    assert_eq!(rows[0], json!({"messages": [{"role": "user", "name": "Ann"}, {"role": "assistant"}]}));
    assert_eq!(rows[1], json!({"messages": [{"role": "user"}]}));
}

#[test]
fn a_map_is_an_object() {
    let schema = "message rows { optional group turn (MAP) { repeated group key_value {
        required binary key (utf8); optional binary value (utf8); } } }";
    let levels = |definitions: Vec<i16>| Some((definitions, vec![0, 1]));
    let columns = [
        Column::Texts(vec!["role", "content"], levels(vec![2, 2])),
        Column::Texts(vec!["user", "hi"], levels(vec![3, 3])),
    ];
    let rows = read(&write(schema, WriterProperties::builder().build(), &columns), 1000, &[0]).expect("rows");
    assert_eq!(rows, [json!({"turn": {"role": "user", "content": "hi"}})]);
}

#[test]
fn bytes_that_are_no_text_are_shown() {
    let schema = "message rows { required binary input; }";
    let plain = WriterProperties::builder().set_dictionary_enabled(false).build();
    let mut bytes = write(schema, plain, &[Column::Texts(vec!["good", "abcd"], None)]);
    let at = bytes.windows(4).position(|window| window == b"abcd").expect("as it lies");
    bytes[at] = 0xff;
    let rows = read(&bytes, 1000, &[0]).expect("rows");
    assert_eq!(rows, [json!({"input": "good"}), json!({"input": [255, 98, 99, 100]})]);
}

#[test]
fn a_file_that_is_none_says_so() {
    let whole = flat(Compression::SNAPPY);
    let cut = &whole[..whole.len() - 20];
    for (bytes, says) in [(&b""[..], "empty"), (b"id,text\n1,2\n", "footer"), (b"PAR1", "Parquet"), (cut, "footer")] {
        let error = names(file(bytes), io::sink()).expect_err("refused");
        assert!(error.contains(says), "{error:?} must say {says:?}");
    }
}
