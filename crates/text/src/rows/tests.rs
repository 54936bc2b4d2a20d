use serde_json::{Value, json};

use super::*;
use crate::seed::SplitMix;

const HEADER: &str = "id,language,text,expected text\n";

fn limits(max_line_bytes: usize) -> RowLimits {
    RowLimits { max_line_bytes, max_skipped_bytes: 100_000, ..RowLimits::default() }
}

fn outcomes(bytes: &[u8], format: Format, max: usize) -> Vec<Outcome> {
    let reader = RowReader::open(bytes, format, &ColumnMap::default(), limits(max)).expect("opens");
    reader.collect::<Result<_>>().expect("reads to the end")
}

fn csv(body: &str) -> Vec<Outcome> {
    outcomes(format!("{HEADER}{body}").as_bytes(), Format::Csv, 200)
}

fn kept(outcome: &Outcome) -> (u64, &str, &str) {
    let Outcome::Row(row) = outcome else { panic!("{outcome:?} is no row") };
    let RowContent::InputTarget { input, target } = &row.content else { panic!("{row:?} is of another kind") };
    (row.line, input, target)
}

fn reason(outcome: &Outcome) -> (u64, Option<&str>, DropReason) {
    let Outcome::Dropped(row) = outcome else { panic!("{outcome:?} was kept") };
    (row.line, row.field.as_deref(), row.reason)
}

#[test]
fn rows_come_with_their_line_id_and_trimmed_texts() {
    let rows = csv("7,en, I is here. ,I am here.\n\n8,en,\"a, \"\"b\"\"\nc\",d\n9,en,x,y");
    assert_eq!(rows.len(), 3);
    assert_eq!(kept(&rows[0]), (2, "I is here.", "I am here."));
    assert_eq!(kept(&rows[1]), (4, "a, \"b\"\nc", "d"));
    assert_eq!(kept(&rows[2]), (6, "x", "y"));
    let Outcome::Row(row) = &rows[0] else { panic!("a row") };
    assert_eq!((row.id.as_deref(), row.label.as_deref()), (Some("7"), None));
}

#[test]
fn each_fault_of_a_csv_row_is_named_by_line_field_and_reason() {
    let long = "z".repeat(300);
    let body = format!("1,en,a\n2,en,a,b,c\n3,en,,b\n4,en,a,  \n5,en,\"a\"x,b\n6,en,{long},b\n7,en,ok,fine\n");
    let rows = csv(&body);
    assert_eq!(reason(&rows[0]), (2, None, DropReason::FieldCount));
    assert_eq!(reason(&rows[1]), (3, None, DropReason::FieldCount));
    assert_eq!(reason(&rows[2]), (4, Some("text"), DropReason::EmptyInput));
    assert_eq!(reason(&rows[3]), (5, Some("expected text"), DropReason::EmptyTarget));
    assert_eq!(reason(&rows[4]), (6, None, DropReason::Malformed));
    assert_eq!(reason(&rows[5]), (7, None, DropReason::TooLong));
    assert_eq!(kept(&rows[6]), (8, "ok", "fine"));
    assert_eq!(rows.len(), 7);
}

#[test]
fn a_stray_quote_costs_one_row_only() {
    for stray in ["1,en,\"He said,b", "1,en,a,\"b"] {
        let rows = csv(&format!("{stray}\n2,en,c,d\n3,en,\"e\",f\n4,en,g,h\n"));
        assert_eq!(reason(&rows[0]), (2, None, DropReason::Malformed), "{stray}");
        let rest: Vec<_> = rows[1..].iter().map(kept).collect();
        assert_eq!(rest, [(3, "c", "d"), (4, "e", "f"), (5, "g", "h")], "{stray}");
    }
}

#[test]
fn quotes_within_a_plain_field_are_letters() {
    let rows = csv("1,en,a 5\" pipe,a 5\" tube\n");
    assert_eq!(kept(&rows[0]), (2, "a 5\" pipe", "a 5\" tube"));
}

#[test]
fn a_quote_that_never_closes_is_given_up_at_the_limit() {
    let body = format!("1,en,\"open,b\n{}", "2,en,c,d\n".repeat(200));
    let rows = csv(&body);
    assert_eq!(reason(&rows[0]), (2, None, DropReason::Malformed));
    assert_eq!(rows.len(), 201, "the swallowed lines are read again");
    assert!(rows[1..].iter().all(|row| matches!(row, Outcome::Row(_))));
}

#[test]
fn rows_in_another_encoding_are_dropped_by_field() {
    let bytes = [HEADER.as_bytes(), b"1,en,gr\xFC\xDFe,b\n2,en,a,b\n"].concat();
    let rows = outcomes(&bytes, Format::Csv, 200);
    assert_eq!(reason(&rows[0]), (2, Some("text"), DropReason::InvalidUtf8));
    let Outcome::Dropped(row) = &rows[0] else { panic!("dropped") };
    assert_eq!(row.detail, "byte 0xFC at position 3 is not UTF-8; save the file as UTF-8");
    assert_eq!(kept(&rows[1]), (3, "a", "b"));
}

#[test]
fn semicolons_tabs_marks_and_windows_line_ends_are_understood() {
    for file in ["text;target\r\na, b;c\r\n", "text\ttarget\na, b\tc", "\u{FEFF}text;target\na, b;c\n"] {
        let rows = outcomes(file.as_bytes(), Format::Csv, 200);
        assert_eq!(kept(&rows[0]), (2, "a, b", "c"), "{file:?}");
    }
}

#[test]
fn labels_come_from_the_named_column() {
    let map = ColumnMap { label: Some("language".into()), ..ColumnMap::default() };
    let file = format!("{HEADER}1,en,a,b\n2,,c,d\n");
    let reader = RowReader::open(file.as_bytes(), Format::Csv, &map, limits(200)).expect("opens");
    let labels: Vec<Option<String>> = reader
        .map(|outcome| match outcome.expect("reads") {
            Outcome::Row(row) => row.label,
            Outcome::Dropped(row) => panic!("{row:?}"),
        })
        .collect();
    assert_eq!(labels, [Some("en".to_owned()), None]);
}

#[test]
fn json_lines_are_read_and_their_faults_named() {
    let file = "not json\n{\"prompt\": \"a\", \"completion\": \" b \", \"id\": 7}\n\n{\"prompt\": \"a\"}\n\
                {\"prompt\": 3, \"completion\": \"b\"}\n[1]\n{\"prompt\": null, \"completion\": \"b\"}\n\
                {\"prompt\": \"a\", \"completion\": \"\"}\n{\"prompt\": \"line\\nbreak\", \"completion\": \"ü\"}";
    let rows = outcomes(file.as_bytes(), Format::Jsonl, 200);
    assert_eq!(reason(&rows[0]), (1, None, DropReason::Malformed));
    assert_eq!(kept(&rows[1]), (2, "a", "b"));
    assert_eq!(reason(&rows[2]), (4, Some("completion"), DropReason::MissingField));
    assert_eq!(reason(&rows[3]), (5, Some("prompt"), DropReason::Malformed));
    assert_eq!(reason(&rows[4]), (6, None, DropReason::Malformed));
    assert_eq!(reason(&rows[5]), (7, Some("prompt"), DropReason::EmptyInput));
    assert_eq!(reason(&rows[6]), (8, Some("completion"), DropReason::EmptyTarget));
    assert_eq!(kept(&rows[7]), (9, "line\nbreak", "ü"));
}

#[test]
fn a_file_that_cannot_be_rows_is_refused_as_a_whole() {
    let open = |bytes: &[u8], format| RowReader::open(bytes, format, &ColumnMap::default(), limits(200)).err();
    for (bytes, format, wanted) in [
        (&b""[..], Format::Csv, "the file is empty"),
        (b"\n \n\n", Format::Csv, "the file is empty"),
        (b"\n\n", Format::Jsonl, "the file is empty"),
        (b"a,b\n1,2\n", Format::Csv, "no column for the input; the file has \"a\", \"b\""),
        (b"text,b\n1,2\n", Format::Csv, "no column for the target"),
        (b"te\xFFxt,b\n", Format::Csv, "not UTF-8"),
        (b"\"text,b\n", Format::Csv, "never closed"),
        (b"a,b\n1,2\n", Format::Jsonl, "is this a JSONL file"),
        (b"\xFF\xFEt\0", Format::Csv, "UTF-16"),
        (b"text\0,b\n", Format::Csv, "binary"),
    ] {
        let error = open(bytes, format).unwrap_or_else(|| panic!("{wanted}: was opened"));
        assert!(error.to_string().contains(wanted), "{wanted}: {error}");
        assert_eq!(error.code(), tailor_domain::ErrorCode::InvalidArgument);
    }
    let header = "x".repeat(300);
    assert!(open(header.as_bytes(), Format::Csv).expect("refused").to_string().contains("the header has 300 bytes"));
}

#[test]
fn a_fault_in_mid_file_ends_the_reading_once() {
    let bytes = [HEADER.as_bytes(), b"1,en,a,b\n2,en,a\0,b\n3,en,c,d\n"].concat();
    let mut reader = RowReader::open(bytes.as_slice(), Format::Csv, &ColumnMap::default(), limits(200)).expect("opens");
    assert!(matches!(reader.next(), Some(Ok(Outcome::Row(_)))));
    assert!(matches!(reader.next(), Some(Err(Error::NotText { .. }))));
    assert!(reader.next().is_none());
}

#[test]
fn formats_are_known_by_name_or_ending() {
    assert_eq!(Format::detect("", "rows.CSV").expect("csv"), Format::Csv);
    assert_eq!(Format::detect("jsonl", "rows.txt").expect("jsonl"), Format::Jsonl);
    assert_eq!(Format::detect("", "train-00000-of-00001.parquet").expect("parquet"), Format::Parquet);
    for (name, file) in [("", "rows.xlsx"), ("xml", "rows.csv"), ("", "rows")] {
        assert!(Format::detect(name, file).expect_err(file).to_string().contains("use csv, jsonl or parquet"));
    }
}

#[test]
fn every_written_row_is_read_back() {
    let alphabet: Vec<char> = "ab \",;\n\r\t'éß日🙂".chars().collect();
    let mut random = SplitMix::new(42);
    for _ in 0..300 {
        let mut text = || {
            let letters: String = (0..1 + random.below(12)).map(|_| alphabet[random.below(alphabet.len())]).collect();
            // A return before a line end is taken as part of it, so texts with one do not survive; the edges are trimmed.
            format!("x{}x", letters.replace('\r', ""))
        };
        let rows: Vec<(String, String)> = (0..4).map(|_| (text(), text())).collect();
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let body: String = rows.iter().map(|(a, b)| format!("1,en,{},{}\n", quoted(a), quoted(b))).collect();
        let read = csv(&body);
        let read: Vec<_> = read.iter().map(kept).map(|(_, a, b)| (a.to_owned(), b.to_owned())).collect();
        assert_eq!(read, rows);
    }
}

#[test]
fn no_bytes_make_a_reader_panic_or_keep_a_row_over_the_limit() {
    let pieces: [&[u8]; 12] = [
        b"\"",
        b",",
        b"\n",
        b"a",
        b"\r\n",
        b"\"\"",
        b"\xFF",
        b"{",
        b"}",
        b"\"input\":\"x\"",
        b"\"target\":\"y\"",
        b"\x80\xE2",
    ];
    let mut random = SplitMix::new(99);
    for round in 0..2000 {
        let format = if round % 2 == 0 { Format::Csv } else { Format::Jsonl };
        let head: &[u8] =
            if format == Format::Csv { b"input,target\n" } else { b"{\"input\":\"x\",\"target\":\"y\"}\n" };
        let body = (0..random.below(60)).flat_map(|_| pieces[random.below(pieces.len())].to_vec());
        let bytes: Vec<u8> = head.iter().copied().chain(body).collect();
        let Ok(reader) = RowReader::open(bytes.as_slice(), format, &ColumnMap::default(), limits(40)) else { continue };
        for outcome in reader.flatten() {
            if let Outcome::Row(row) = outcome {
                assert!(row.content.characters() <= 40, "{row:?}");
            }
        }
    }
}

fn jsonl(body: &str) -> Vec<Outcome> {
    outcomes(body.as_bytes(), Format::Jsonl, 4000)
}

fn detail(outcome: &Outcome) -> &str {
    let Outcome::Dropped(row) = outcome else { panic!("{outcome:?} was kept") };
    &row.detail
}

#[test]
fn conversations_are_read_with_all_their_fields() {
    let file = r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": " q "},
        {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
        {"role": "tool", "content": "1"}, {"role": "assistant", "content": "a", "reasoning_content": "hm"}], "id": "x"}"#;
    let rows = jsonl(&file.replace('\n', " "));
    let [Outcome::Row(row)] = rows.as_slice() else { panic!("{rows:?}") };
    assert_eq!((row.line, row.id.as_deref()), (1, Some("x")));
    assert_eq!((row.content.question(), row.content.answer()), ("1", "a"));
    assert_eq!(row.content.asked(), "system: s\nuser:  q \nassistant: \ntool: 1", "turns are kept as they are");
    let kept = serde_json::to_string(row).expect("JSON");
    assert!(kept.contains(r#""arguments":{"x":1}"#) && kept.contains(r#""reasoning_content":"hm""#), "{kept}");
    assert_eq!(&serde_json::from_str::<Row>(&kept).expect("its own output"), row);
}

#[test]
fn each_fault_of_a_conversation_is_named_by_line_and_message() {
    let (user, answer) = (r#"{"role":"user","content":"q"}"#, r#"{"role":"assistant","content":"a"}"#);
    let deep = format!(r#"{{"role":"user","content":"q","x":{}{}}}"#, "[".repeat(14), "]".repeat(14));
    let wide: String = (0..40).map(|n| format!(r#","f{n}":1"#)).collect();
    let many = vec![r#"{"role":"user","content":""}"#; 60].join(",");
    let cases = [
        ("[]".to_owned(), "messages", DropReason::EmptyInput, "no messages"),
        ("null".to_owned(), "messages", DropReason::EmptyInput, "no messages"),
        (r#""hello""#.to_owned(), "messages", DropReason::Malformed, "no list of messages"),
        (format!("[{user},3]"), "messages[1]", DropReason::Malformed, "3 is no message"),
        (format!("[{user}]"), "messages[0].role", DropReason::EmptyTarget, "ends with the assistant's answer"),
        (format!("[{answer}]"), "messages", DropReason::EmptyInput, "no message of a user"),
        (
            format!(r#"[{{"role":"bot","content":"q"}},{answer}]"#),
            "messages[0].role",
            DropReason::Malformed,
            "none of system",
        ),
        (format!(r#"[{{"content":"q"}},{answer}]"#), "messages[0].role", DropReason::MissingField, "no such key"),
        (format!(r#"[{{"role":"user"}},{answer}]"#), "messages[0].content", DropReason::MissingField, "no content"),
        (
            format!(r#"[{{"role":"user","content":["q"]}},{answer}]"#),
            "messages[0].content",
            DropReason::Malformed,
            "no text",
        ),
        (
            format!(r#"[{{"role":"user","content":" "}},{answer}]"#),
            "messages[0].content",
            DropReason::EmptyInput,
            "empty",
        ),
        (
            format!(r#"[{user},{{"role":"assistant","content":" "}}]"#),
            "messages[1].content",
            DropReason::EmptyTarget,
            "empty",
        ),
        (format!("[{deep},{answer}]"), "messages[0]", DropReason::Malformed, "deeper than 12"),
        (
            format!(r#"[{{"role":"user","content":"q"{wide}}},{answer}]"#),
            "messages[0]",
            DropReason::Malformed,
            "42 fields",
        ),
        (format!("[{many},{answer}]"), "messages[0].content", DropReason::EmptyInput, "empty"),
    ];
    let good = format!("[{user},{answer}]");
    let lines: Vec<String> = std::iter::once(&good)
        .chain(cases.iter().map(|(value, ..)| value))
        .map(|value| format!("{{\"messages\":{value}}}\n"))
        .collect();
    let rows = jsonl(&lines.concat());
    assert!(matches!(rows[0], Outcome::Row(_)));
    for (at, (row, (value, field, why, says))) in rows[1..].iter().zip(&cases).enumerate() {
        assert_eq!(reason(row), (at as u64 + 2, Some(*field), *why), "{value}");
        assert!(detail(row).contains(says), "{value}: {}", detail(row));
    }
    assert_eq!(rows.len(), cases.len() + 1);
}

#[test]
fn a_conversation_without_end_is_dropped_as_too_long() {
    let many = vec![r#"{"role":"user","content":"q"}"#; 1001].join(",");
    let file = format!(r#"{{"messages":[{many}]}}"#);
    let rows = outcomes(file.as_bytes(), Format::Jsonl, 1 << 20);
    assert_eq!(reason(&rows[0]), (1, Some("messages"), DropReason::TooLong));
    assert!(detail(&rows[0]).contains("1001 messages, the limit is 1000"), "{}", detail(&rows[0]));
    let deep = format!(r#"{{"messages":{}{}}}"#, "[".repeat(40_000), "]".repeat(40_000));
    let file = format!("{{\"messages\":[]}}\n{deep}");
    let rows = outcomes(file.as_bytes(), Format::Jsonl, 1 << 20);
    assert_eq!(reason(&rows[1]), (2, None, DropReason::Malformed), "the parser has a limit of its own");
}

#[test]
fn preferences_are_read_from_both_formats_and_their_faults_named() {
    let csv = "prompt,chosen,rejected\n q , good ,bad\nq,,bad\nq,good,\nq,same, same \n,good,bad\nq,good\n";
    let json =
        [["q", "good", "bad"], ["q", "", "bad"], ["q", "good", ""], ["q", "same", "same "], [" ", "good", "bad"]]
            .map(|[prompt, chosen, rejected]| {
                serde_json::json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}).to_string()
            })
            .join("\n")
            + "\n{\"prompt\": \"q\", \"chosen\": \"good\"}\n{\"prompt\": \"q\", \"chosen\": [], \"rejected\": \"bad\"}";
    for (file, format, first) in [(csv, Format::Csv, 2), (json.as_str(), Format::Jsonl, 1)] {
        let rows = outcomes(file.as_bytes(), format, 4000);
        let Outcome::Row(row) = &rows[0] else { panic!("{:?}", rows[0]) };
        let (prompt, chosen, rejected) = ("q".to_owned(), "good".to_owned(), "bad".to_owned());
        assert_eq!(row.content, RowContent::Preference { prompt, chosen, rejected });
        assert_eq!((row.content.answer(), row.content.rejected()), ("good", Some("bad")));
        let faults: Vec<_> = rows[1..5].iter().map(reason).collect();
        let wanted = [
            (first + 1, Some("chosen"), DropReason::EmptyTarget),
            (first + 2, Some("rejected"), DropReason::EmptyTarget),
            (first + 3, Some("rejected"), DropReason::SameAnswer),
            (first + 4, Some("prompt"), DropReason::EmptyInput),
        ];
        assert_eq!(faults, wanted, "{format:?}");
        let (_, field, why) = reason(&rows[5]);
        let missing = if format == Format::Csv {
            (None, DropReason::FieldCount)
        } else {
            (Some("rejected"), DropReason::MissingField)
        };
        assert_eq!((field, why), missing);
    }
    let rows = outcomes(json.as_bytes(), Format::Jsonl, 4000);
    assert_eq!(reason(&rows[6]), (7, Some("chosen"), DropReason::EmptyTarget));
}

#[test]
fn preferences_may_be_lists_of_messages() {
    let one = |prompt: Value, chosen: Value, rejected: Value| {
        let line = serde_json::json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}).to_string();
        outcomes(line.as_bytes(), Format::Jsonl, 4000).remove(0)
    };
    let said = |role: &str, text: &str| serde_json::json!({"role": role, "content": text});
    let (user, good, bad) = (said("user", "q"), said("assistant", " good "), said("assistant", "bad"));
    let single = [
        (json!([user]), json!([good]), json!([bad])),
        (json!(" q"), json!([user, good]), json!([user, bad])),
        (json!([user]), json!([user, good]), json!([user, bad])),
        (json!("q"), json!([good]), json!([bad])),
        (json!([user]), json!("good"), json!([bad])),
    ];
    for (prompt, chosen, rejected) in single {
        let Outcome::Row(row) = one(prompt.clone(), chosen, rejected) else { panic!("{prompt}") };
        let texts = ["q", "good", "bad"].map(str::to_owned);
        let [prompt, chosen, rejected] = texts;
        assert_eq!(row.content, RowContent::Preference { prompt, chosen, rejected });
    }
    let system = said("system", "be brief");
    let turns = [system, said("user", "first"), said("assistant", "a"), user.clone()];
    let whole = |last: &Value| Value::Array(turns.iter().chain([last]).cloned().collect());
    for (prompt, chosen, rejected) in [
        (Value::Array(turns.to_vec()), json!([good]), json!([bad])),
        (json!("first"), whole(&good), whole(&bad)),
        (json!("q"), whole(&good), whole(&bad)),
    ] {
        let Outcome::Row(row) = one(prompt.clone(), chosen, rejected) else { panic!("{prompt}") };
        let RowContent::PreferredTurn { messages, chosen, rejected } = &row.content else { panic!("{row:?}") };
        assert_eq!((messages.len(), chosen.as_str(), rejected.as_str()), (4, "good", "bad"));
        assert_eq!((row.content.question(), row.content.kind()), ("q", tailor_domain::DatasetKind::Preference));
    }
    let called = json!({"role": "assistant", "content": "good", "tool_calls": [{}]});
    for (prompt, chosen, rejected, field, why) in [
        (json!("q"), json!([user, good]), json!([bad]), "rejected", DropReason::Malformed),
        (json!("other"), json!([user, good]), json!([user, bad]), "chosen", DropReason::Malformed),
        (json!([said("user", "other")]), json!([user, good]), json!([user, bad]), "chosen", DropReason::Malformed),
        (json!([user]), json!([good, user]), json!([bad]), "chosen[1].role", DropReason::EmptyTarget),
        (json!([user]), json!([called]), json!([bad]), "chosen[0]", DropReason::Malformed),
        (json!([user]), json!([good]), json!([]), "rejected", DropReason::EmptyTarget),
        (json!([user]), json!([good]), json!([said("assistant", "good")]), "rejected", DropReason::SameAnswer),
        (json!([]), json!([good]), json!([bad]), "prompt", DropReason::EmptyInput),
        (json!([said("system", "s")]), json!([good]), json!([bad]), "prompt", DropReason::EmptyInput),
        (
            json!([said("system", "s"), said("user", " ")]),
            json!([good]),
            json!([bad]),
            "prompt[1].content",
            DropReason::EmptyInput,
        ),
        (json!(7), json!([good]), json!([bad]), "prompt", DropReason::Malformed),
    ] {
        let outcome = one(prompt.clone(), chosen.clone(), rejected);
        assert_eq!(reason(&outcome), (1, Some(field), why), "{prompt} {chosen}: {outcome:?}");
    }
}

#[test]
fn kept_rows_of_each_kind_are_read_back() {
    let old = r#"{"line":2,"id":"7","input":"a","target":"b"}"#;
    let row: Row = serde_json::from_str(old).expect("as rows were kept before there were kinds");
    assert_eq!(serde_json::to_string(&row).expect("JSON"), old);
    let texts = |text: &str| text.to_owned();
    for content in [
        RowContent::Preference { prompt: texts("p"), chosen: texts("c"), rejected: texts("r") },
        RowContent::PreferredTurn {
            messages: vec![crate::Message::new("system", "s"), crate::Message::new("user", "q")],
            chosen: texts("c"),
            rejected: texts("r"),
        },
        RowContent::Conversation {
            messages: vec![crate::Message::new("user", "q"), crate::Message::new("assistant", "a")],
        },
    ] {
        let row = Row { line: 3, id: None, label: Some("en".into()), content };
        let kept = serde_json::to_string(&row).expect("JSON");
        assert_eq!(serde_json::from_str::<Row>(&kept).expect("its own output"), row, "{kept}");
    }
}
