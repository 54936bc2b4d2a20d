use tailor_domain::Family;

use super::*;
use crate::seed::SplitMix;

const VOCABULARY: u32 = 1000;

fn random_record(random: &mut SplitMix, kind: ShardKind, row: u32) -> Record {
    let ids = |random: &mut SplitMix| {
        let length = 2 + random.below(20);
        (0..length).map(|_| random.below(VOCABULARY as usize) as u32).collect::<Vec<_>>()
    };
    let content = match kind {
        ShardKind::Decoder => {
            let ids = ids(random);
            let mut in_loss: Vec<bool> = ids.iter().map(|_| random.below(2) == 1).collect();
            in_loss[1 + random.below(ids.len() - 1)] = true;
            Content::Example(Example::Decoder { ids, in_loss })
        }
        ShardKind::EncoderDecoder => {
            Content::Example(Example::EncoderDecoder { encoder: ids(random), labels: ids(random) })
        }
        ShardKind::Prompts => Content::Prompt(ids(random)),
        ShardKind::DecoderPreferences => Content::Preference(preference(Family::Decoder, || ids(random))),
        ShardKind::EncoderDecoderPreferences => Content::Preference(preference(Family::EncoderDecoder, || ids(random))),
    };
    Record { row, content }
}

fn preference(family: Family, mut ids: impl FnMut() -> Vec<u32>) -> Preference {
    let (prompt, chosen, rejected) = (ids(), ids(), ids());
    let chosen = Example::answered(family, prompt.clone(), chosen);
    Preference { chosen, rejected: Example::answered(family, prompt, rejected) }
}

fn write(kind: ShardKind, records: &[Record]) -> Vec<u8> {
    let mut writer = ShardWriter::new(Vec::new(), kind, VOCABULARY).expect("writes");
    for record in records {
        writer.push(record).expect("writes");
    }
    writer.finish().expect("writes")
}

fn read(bytes: &[u8]) -> Result<Vec<Record>> {
    ShardReader::open(bytes, ShardLimits { max_tokens_a_row: 64 })?.collect()
}

fn sample(kind: ShardKind, seed: u64) -> Vec<Record> {
    let mut random = SplitMix::new(seed);
    (0..30).map(|row| random_record(&mut random, kind, row)).collect()
}

const KINDS: [ShardKind; 5] = [
    ShardKind::Decoder,
    ShardKind::EncoderDecoder,
    ShardKind::Prompts,
    ShardKind::DecoderPreferences,
    ShardKind::EncoderDecoderPreferences,
];

#[test]
fn records_come_back_as_they_went() {
    for kind in KINDS {
        for seed in 0..20 {
            let records = sample(kind, seed);
            let bytes = write(kind, &records);
            assert_eq!(read(&bytes).expect("reads"), records);
            assert_eq!(write(kind, &records), bytes, "the same records give the same bytes");
        }
        assert_eq!(read(&write(kind, &[])).expect("reads"), []);
    }
}

#[test]
fn a_reader_says_what_it_holds() {
    let bytes = write(ShardKind::Prompts, &sample(ShardKind::Prompts, 1));
    let reader = ShardReader::open(bytes.as_slice(), ShardLimits::default()).expect("opens");
    assert_eq!((reader.kind(), reader.vocabulary()), (ShardKind::Prompts, VOCABULARY));
}

#[test]
fn every_truncation_and_every_changed_byte_is_found() {
    for kind in KINDS {
        let bytes = write(kind, &sample(kind, 9)[..4]);
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "{kind:?} cut to {length} of {}", bytes.len());
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << (at % 8);
            assert!(read(&changed).is_err(), "{kind:?} with byte {at} changed");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(read(&longer).is_err(), "{kind:?} with a byte more");
    }
}

#[test]
fn a_claim_of_many_ids_allocates_nothing() {
    let mut bytes = write(ShardKind::Prompts, &[]);
    bytes.truncate(16);
    bytes.push(RECORD);
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(u32::MAX.to_le_bytes());
    let error = read(&bytes).expect_err("too many");
    assert!(error.to_string().contains("claims 4294967295 ids, the limit is 64"), "{error}");
}

#[test]
fn what_breaks_a_rule_is_not_written() {
    let mut writer = ShardWriter::new(Vec::new(), ShardKind::Decoder, 10).expect("writes");
    for content in [
        Content::Prompt(vec![1]),
        Content::Example(Example::EncoderDecoder { encoder: vec![1], labels: vec![1] }),
        Content::Example(Example::Decoder { ids: vec![1, 2], in_loss: vec![true] }),
        Content::Example(Example::Decoder { ids: vec![10], in_loss: vec![true] }),
        Content::Example(Example::Decoder { ids: vec![], in_loss: vec![] }),
        // Nothing counts, or only what nothing predicts.
        Content::Example(Example::Decoder { ids: vec![1, 2], in_loss: vec![false, false] }),
        Content::Example(Example::Decoder { ids: vec![1, 2], in_loss: vec![true, false] }),
        Content::Preference(preference(Family::Decoder, || vec![1])),
    ] {
        assert!(writer.push(&Record { row: 3, content: content.clone() }).is_err(), "{content:?}");
    }
    let bytes = writer.finish().expect("writes");
    assert_eq!(read(&bytes).expect("the refused left no trace"), []);
}

#[test]
fn what_is_no_pair_is_not_written() {
    let decoder = |prompt: &[u32], answer: &[u32]| Example::answered(Family::Decoder, prompt.into(), answer.into());
    let masked = |in_loss: Vec<bool>| Example::Decoder { ids: vec![1, 2, 3], in_loss };
    let mut writer = ShardWriter::new(Vec::new(), ShardKind::DecoderPreferences, 10).expect("writes");
    for (chosen, rejected) in [
        (decoder(&[1], &[2]), decoder(&[3], &[2])),
        (decoder(&[1], &[2]), Example::EncoderDecoder { encoder: vec![1], labels: vec![2] }),
        (decoder(&[1], &[]), decoder(&[1], &[2])),
        (decoder(&[1], &[2]), masked(vec![false, true, false])),
        (decoder(&[], &[2]), decoder(&[], &[3])),
        (decoder(&[1], &[2]), masked(vec![false, true])),
        (decoder(&[1], &[2]), decoder(&[1], &[10])),
    ] {
        let content = Content::Preference(Preference { chosen, rejected });
        assert!(writer.push(&Record { row: 3, content: content.clone() }).is_err(), "{content:?}");
    }
    let pair = Preference { chosen: decoder(&[1], &[2]), rejected: decoder(&[1], &[3, 4]) };
    let record = Record { row: 4, content: Content::Preference(pair) };
    writer.push(&record).expect("a pair");
    assert_eq!(read(&writer.finish().expect("writes")).expect("the refused left no trace"), [record]);
}

#[test]
fn a_row_that_is_all_masked_is_refused_by_the_reader_too() {
    let content = Content::Example(Example::Decoder { ids: vec![1, 2], in_loss: vec![false, true] });
    let mut bytes = write(ShardKind::Decoder, &[Record { row: 7, content }]);
    let mask = 16 + 1 + 4 + 4 + 8 + 1;
    assert_eq!(bytes[mask], 1);
    bytes[mask] = 0;
    let error = read(&bytes).expect_err("nothing counts");
    assert!(error.to_string().contains("row 7: no token counts in the loss"), "{error}");
}

#[test]
fn bytes_of_something_else_are_refused_by_what_they_are() {
    for (bytes, wanted) in [
        (&b"TLRSHD01aaaaaaaaaaaaaaaa"[..], "another version"),
        (b"PK\x03\x04aaaaaaaaaaaaaaaaaaa", "no shard"),
        (b"TLRSHD02\x09\0\0\0aaaaaaaaaa", "kind 9"),
        (b"", "breaks off"),
    ] {
        let error = read(bytes).expect_err(wanted);
        assert!(error.to_string().contains(wanted), "{error}");
        assert_eq!(error.code(), tailor_domain::ErrorCode::DataLoss);
    }
}

#[test]
fn a_shard_on_disk_gives_each_row_wherever_it_stands() {
    let folder = tempfile::tempdir().expect("a folder");
    for (n, kind) in KINDS.into_iter().enumerate() {
        let path = folder.path().join(format!("shard-{n}"));
        let records = sample(kind, 3);
        std::fs::write(&path, write(kind, &records)).expect("written");
        // The second opening finds the first one's index.
        for _ in 0..2 {
            let file = ShardFile::open(&path, ShardLimits::default()).expect("opens");
            assert_eq!((file.kind(), file.rows()), (kind, records.len()));
            for row in (0..records.len()).rev().chain([0, 7]) {
                assert_eq!(file.read(row).expect("reads"), records[row]);
                file.release();
            }
            for (row, record) in records.iter().enumerate() {
                let (tokens, longest, targets) = match &record.content {
                    Content::Example(example) => (example.tokens(), example.tokens(), example.targets()),
                    Content::Prompt(ids) => (ids.len(), ids.len(), 0),
                    Content::Preference(pair) => {
                        let longest = pair.chosen.tokens().max(pair.rejected.tokens());
                        (pair.tokens(), longest, pair.chosen.targets())
                    }
                };
                assert_eq!((file.tokens(row), file.longest(row), file.targets(row)), (tokens, longest, targets));
            }
            let mut seen = Vec::new();
            file.each(|row, tokens, _, _| seen.push((row, tokens)));
            assert_eq!(seen, (0..records.len()).map(|row| (row, file.tokens(row))).collect::<Vec<_>>());
            let (id, row) = file.largest_id().expect("rows");
            assert!(format!("{:?}", records[row].content).contains(&id.to_string()), "{id} in row {row}");
            assert!(file.read(records.len()).is_err(), "there is no such row");
        }
    }
}

#[test]
fn an_index_of_something_else_is_made_anew_and_a_damaged_shard_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("shard");
    let index = folder.path().join("shard.index");
    let records = sample(ShardKind::Decoder, 4);
    let bytes = write(ShardKind::Decoder, &records);
    std::fs::write(&path, &bytes).expect("written");
    ShardFile::open(&path, ShardLimits::default()).expect("opens");
    let whole = std::fs::read(&index).expect("an index");
    for wrong in [&b""[..], b"nonsense", &whole[..whole.len() - 1], &[whole.clone(), vec![0]].concat()] {
        std::fs::write(&index, wrong).expect("written");
        let file = ShardFile::open(&path, ShardLimits::default()).expect("opens");
        assert_eq!(file.read(5).expect("reads"), records[5]);
        assert_eq!(std::fs::read(&index).expect("made anew"), whole);
    }
    let other = write(ShardKind::Decoder, &records[..7]);
    std::fs::write(&path, other).expect("written");
    assert_eq!(ShardFile::open(&path, ShardLimits::default()).expect("opens").rows(), 7);
    std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("written");
    assert!(ShardFile::open(&path, ShardLimits::default()).is_err(), "it has no end");
    assert!(ShardFile::open(&folder.path().join("none"), ShardLimits::default()).is_err());
}

#[test]
fn a_shard_without_rows_opens() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("shard");
    std::fs::write(&path, write(ShardKind::Prompts, &[])).expect("written");
    let file = ShardFile::open(&path, ShardLimits::default()).expect("opens");
    assert_eq!((file.rows(), file.largest_id()), (0, None));
}
