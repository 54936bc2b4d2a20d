use tailor_blobs::Store;
use tailor_domain::Digest;
use tailor_pb::dataset::UploadHeader;
use tailor_pb::dataset::upload_dataset_request::Part;
use tonic::Code;

use crate::support::{NAME, ROWS, Service, csv, expect_status, header};

#[tokio::test]
async fn an_upload_becomes_version_one_with_its_report() {
    let service = Service::start().await;
    let mut file = csv(1, ROWS);
    file.extend(b"90,en,wrong 1 0,Right-1-0!\n91,en,,nothing\n92,en,too,many,fields\n93,en,wrong 1 1,other\n");
    let sha256 = Digest::of(&file).to_string();
    let answer = service.upload(UploadHeader { sha256, ..header(NAME) }, &file).await.expect("uploaded");
    let dataset = answer.dataset.expect("dataset");
    assert!(answer.created);
    assert_eq!((dataset.version, dataset.rows_train, dataset.rows_validation), (1, 36, 4));
    assert_eq!((dataset.rows_dropped, dataset.source_size_bytes), (4, file.len() as u64));
    assert_eq!(dataset.prompt_template, "Correct: {input}");
    assert_eq!(dataset.file_name, header(NAME).file_name);
    assert_eq!(service.get(0).await.expect("latest"), dataset);
    assert_eq!(service.get(1).await.expect("by number"), dataset);

    let report = service.report().await;
    assert_eq!(report.rows_read, 44);
    for reason in ["duplicate", "empty_input", "field_count", "conflict"] {
        assert_eq!(report.dropped.get(reason), Some(&1), "{reason}");
    }
    let conflict = report.examples.iter().find(|row| row.reason == "conflict").expect("an example");
    assert_eq!(conflict.line, 45);
    assert_eq!(report.length_histogram.iter().map(|bucket| bucket.rows).sum::<u64>(), 40);
    assert_eq!(service.spooled(), 0);
}

#[tokio::test]
async fn the_same_upload_again_is_the_same_dataset() {
    let service = Service::start().await;
    let first = service.upload(header(NAME), &csv(1, ROWS)).await.expect("first");
    for again in [header(NAME), UploadHeader { new_version: true, ..header(NAME) }] {
        let answer = service.upload(again, &csv(1, ROWS)).await.expect("again");
        assert!(!answer.created);
        assert_eq!(answer.dataset, first.dataset);
    }
}

#[tokio::test]
async fn eight_uploads_of_one_file_at_once_make_one_version() {
    let service = Service::start().await;
    let file = csv(1, ROWS);
    let answers = futures::future::join_all((0..8).map(|_| service.upload(header(NAME), &file))).await;
    let answers: Vec<_> = answers.into_iter().map(|answer| answer.expect("uploaded")).collect();
    assert_eq!(answers.iter().filter(|answer| answer.created).count(), 1);
    assert!(answers.iter().all(|answer| answer.dataset.as_ref().is_some_and(|dataset| dataset.version == 1)));
    expect_status(service.get(2).await, Code::NotFound, &["no version 2"]);
}

#[tokio::test]
async fn sixteen_next_versions_at_once_are_numbered_without_gap_or_double() {
    let service = Service::start().await;
    let files: Vec<_> = (0..16).map(|seed| csv(seed, ROWS)).collect();
    let header = || UploadHeader { new_version: true, ..header(NAME) };
    let answers = futures::future::join_all(files.iter().map(|file| service.upload(header(), file))).await;
    let mut versions: Vec<_> =
        answers.into_iter().map(|answer| answer.expect("uploaded").dataset.expect("dataset").version).collect();
    versions.sort_unstable();
    assert_eq!(versions, (1..=16).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_name_with_other_content_is_taken_unless_the_next_version_is_wanted() {
    let service = Service::with_dataset().await;
    let outcome = service.upload(header(NAME), &csv(2, ROWS)).await;
    expect_status(outcome, Code::AlreadyExists, &["errors exists already", "version 1", "--new-version"]);
    let options = UploadHeader { validation_fraction: 0.5, ..header(NAME) };
    expect_status(service.upload(options, &csv(1, ROWS)).await, Code::AlreadyExists, &["other content"]);
    let next = UploadHeader { new_version: true, ..header(NAME) };
    let answer = service.upload(next, &csv(2, ROWS)).await.expect("next version");
    assert_eq!(answer.dataset.expect("dataset").version, 2);
    assert_eq!(service.get(1).await.expect("the first stays").version, 1);
}

#[tokio::test]
async fn labels_are_balanced_by_the_column_that_is_named() {
    let service = Service::start().await;
    let mut file = csv(1, 30);
    file.extend((0..10).flat_map(|row| format!("x{row},de,falsch {row},Richtig-{row}\n").into_bytes()));
    let balanced = UploadHeader { label_column: "language".into(), max_label_ratio: 1.5, ..header(NAME) };
    service.upload(balanced, &file).await.expect("uploaded");
    let report = service.report().await;
    assert_eq!((report.labels_before["en"], report.labels_after["en"]), (30, 15));
    assert_eq!((report.labels_after["de"], report.dropped["balanced"]), (10, 15));
}

#[tokio::test]
async fn json_lines_are_taken_as_well() {
    let service = Service::start().await;
    let lines: String =
        (0..20).map(|row| format!("{{\"prompt\": \"in {row}\", \"completion\": \"out {row}\"}}\n")).collect();
    let jsonl = UploadHeader { file_name: "rows.jsonl".into(), ..header(NAME) };
    let dataset = service.upload(jsonl, lines.as_bytes()).await.expect("uploaded").dataset.expect("dataset");
    assert_eq!((dataset.rows_train, dataset.rows_validation), (18, 2));
}

#[tokio::test]
async fn a_file_that_cannot_be_a_dataset_is_refused_with_the_reason_and_leaves_nothing() {
    let service = Service::start().await;
    let utf16: Vec<u8> = "\u{feff}text,target\na,b\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for (bytes, says) in [
        (&b""[..], "the file is empty"),
        (b"text,target\n", "no row is left"),
        (b"text,target\n,\n,\n", "no row is left"),
        (b"text,target\na\0b,c\n", "binary"),
        (b"\x7fELF\x02\x01\x01\0\0\0", "binary"),
        (&utf16, "UTF-16"),
        (b"PK\x03\x04\x14\0", "spreadsheet"),
        (b"id,satz,korrektur\n1,a,b\n", "no column for the input"),
        (b"text,text,target\na,b,c\n", "is there twice"),
        (b"text,target\na,b\n", "too few"),
    ] {
        let validation = UploadHeader { validation_fraction: 0.5, ..header(NAME) };
        expect_status(service.upload(validation, bytes).await, Code::InvalidArgument, &["errors.csv", says]);
    }
    let misspelt = UploadHeader { target_column: "expcted text".into(), ..header(NAME) };
    let says = ["no column for \"expcted text\"", "did you mean \"expected text\"?"];
    expect_status(service.upload(misspelt, &csv(1, ROWS)).await, Code::InvalidArgument, &says);
    expect_status(service.get(0).await, Code::NotFound, &["dataset errors does not exist", "tailor dataset push"]);
    assert_eq!(service.spooled(), 0);
    assert!(service.store.list("datasets").await.expect("listed").is_empty());
    assert!(service.store.list("blobs").await.expect("listed").is_empty(), "not even its bytes are kept");
}

#[tokio::test]
async fn a_line_over_the_limit_is_dropped_by_its_number_and_the_others_stay() {
    let service = Service::with(Store::memory(), |settings| settings.dataset.max_line_bytes = 10_000).await;
    let long = format!("99,en,{},short\n", "x".repeat(10 << 20));
    let file = [csv(1, 20), long.into_bytes(), b"100,en,last one,Stays!\n".to_vec()].concat();
    let dataset = service.upload(header(NAME), &file).await.expect("uploaded").dataset.expect("dataset");
    assert_eq!((dataset.rows_train + dataset.rows_validation, dataset.rows_dropped), (21, 1));
    let example = service.report().await.examples.remove(0);
    assert_eq!((example.line, example.reason.as_str()), (22, "too_long"));
}

#[tokio::test]
async fn a_line_without_end_is_refused() {
    let service = Service::start().await;
    let file = [b"text,target\n".to_vec(), vec![b'x'; 70 << 20]].concat();
    let outcome = service.upload(header(NAME), &file).await;
    expect_status(outcome, Code::InvalidArgument, &["line 2", "without an end of line"]);
    assert_eq!(service.spooled(), 0);
}

#[tokio::test]
async fn a_wrong_option_is_refused_by_its_field_before_the_file_is_sent() {
    let service = Service::start().await;
    let cases = [
        (UploadHeader { name: "Errors".into(), ..header(NAME) }, "dataset: name"),
        (UploadHeader { file_name: "errors.xlsx".into(), ..header(NAME) }, "field format"),
        (UploadHeader { format: "xlsx".into(), ..header(NAME) }, "use csv, jsonl or parquet"),
        (UploadHeader { validation_fraction: 0.9, ..header(NAME) }, "validation_fraction"),
        (UploadHeader { validation_fraction: f64::NAN, ..header(NAME) }, "validation_fraction"),
        (UploadHeader { max_label_ratio: 0.5, ..header(NAME) }, "max_label_ratio"),
        (UploadHeader { sha256: "beef".into(), ..header(NAME) }, "digest"),
        (UploadHeader { file_name: "x".repeat(300), ..header(NAME) }, "file_name"),
    ];
    for (header, says) in cases {
        expect_status(service.upload_parts(vec![Part::Header(header)]).await, Code::InvalidArgument, &[says]);
    }
    let template = UploadHeader { prompt_template: "Correct this".into(), ..header(NAME) };
    expect_status(service.upload(template, &csv(1, ROWS)).await, Code::InvalidArgument, &["has no {input}"]);
}

#[tokio::test]
async fn the_input_columns_name_may_stand_for_the_input() {
    let service = Service::start().await;
    let named = UploadHeader { prompt_template: "Correct the {text}".into(), ..header(NAME) };
    let dataset = service.upload(named, &csv(1, ROWS)).await.expect("uploaded").dataset.expect("dataset");
    assert_eq!(dataset.prompt_template, "Correct the {input}");
}
