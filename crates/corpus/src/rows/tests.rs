use std::collections::{HashMap, HashSet};

use super::*;
use crate::{Dialect, FaultKind};

const SHIPPED_FILE: &[u8] = include_bytes!("../../../../data/grammar.csv");

#[test]
fn the_shipped_file_is_what_the_generator_writes() {
    assert!(
        csv(SHIPPED_SEED, SHIPPED_ROWS, &Flaws::SHIPPED) == SHIPPED_FILE,
        "run `cargo run -p tailor-corpus -- csv`"
    );
}

#[test]
fn the_shipped_file_has_the_flaws_that_it_says() {
    let lines: Vec<&[u8]> = SHIPPED_FILE.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 1 + SHIPPED_ROWS + Flaws::SHIPPED.total());

    let mut seen: HashMap<String, String> = HashMap::new();
    let mut counted = Flaws {
        duplicates: 0,
        conflicts: 0,
        missing_field: 0,
        extra_field: 0,
        empty_text: 0,
        empty_expected: 0,
        invalid_utf8: 0,
        unclosed_quote: false,
    };
    let mut good = 0;
    for line in &lines[1..] {
        let Ok(line) = str::from_utf8(line) else {
            counted.invalid_utf8 += 1;
            continue;
        };
        if line.matches('"').count() % 2 == 1 {
            counted.unclosed_quote = true;
            continue;
        }
        let fields = fields(line);
        match fields.as_slice() {
            [_, _, _] => counted.missing_field += 1,
            [_, _, text, expected] => match (text.is_empty(), expected.is_empty(), seen.get(text)) {
                (true, _, _) => counted.empty_text += 1,
                (_, true, _) => counted.empty_expected += 1,
                (_, _, Some(before)) if before == expected => counted.duplicates += 1,
                (_, _, Some(_)) => counted.conflicts += 1,
                (_, _, None) => {
                    good += 1;
                    seen.insert(text.clone(), expected.clone());
                }
            },
            _ => counted.extra_field += 1,
        }
    }
    assert_eq!(counted, Flaws::SHIPPED);
    assert_eq!(good, SHIPPED_ROWS);
}

/// Splits a line whose quotes are balanced.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut inside = false;
    for letter in line.chars() {
        match letter {
            '"' => inside = !inside,
            ',' if !inside => fields.push(String::new()),
            _ => fields.last_mut().expect("there is always a field").push(letter),
        }
    }
    fields
}

#[test]
fn no_two_good_rows_share_a_sentence() {
    let rows = table(SHIPPED_SEED, SHIPPED_ROWS);
    let texts: HashSet<&str> = rows.iter().map(|pair| pair.text.as_str()).collect();
    let expected: HashSet<&str> = rows.iter().map(|pair| pair.expected.as_str()).collect();
    assert_eq!(texts.len(), SHIPPED_ROWS);
    assert_eq!(expected.len(), SHIPPED_ROWS);
}

#[test]
fn few_rows_are_correct_already() {
    let rows = table(SHIPPED_SEED, SHIPPED_ROWS);
    let correct = rows.iter().filter(|pair| pair.text == pair.expected).count();
    assert!(correct * 100 <= SHIPPED_ROWS * 8, "{correct} of {SHIPPED_ROWS}");
    assert!(correct > 0, "a corrector must also see what to leave alone");
}

#[test]
fn every_kind_of_fault_is_in_the_table() {
    let rows = table(SHIPPED_SEED, SHIPPED_ROWS);
    for kind in FaultKind::ALL {
        let count = rows.iter().filter(|pair| pair.faults.contains(&kind)).count();
        assert!(count >= 40, "{kind:?} stands in {count} rows only");
    }
}

#[test]
fn languages_are_unbalanced() {
    let rows = table(SHIPPED_SEED, SHIPPED_ROWS);
    let american = rows.iter().filter(|pair| pair.dialect == Dialect::Us).count() as f64 / SHIPPED_ROWS as f64;
    assert!((0.60..0.68).contains(&american), "{american}");
}

#[test]
fn held_out_sentences_are_faulty_and_not_in_the_table() {
    let shipped: HashSet<String> =
        table(SHIPPED_SEED, SHIPPED_ROWS).into_iter().flat_map(|pair| [pair.text, pair.expected]).collect();
    let unseen = held_out(200);
    assert_eq!(unseen.len(), 200);
    for pair in unseen {
        assert!(pair.text != pair.expected);
        assert!(!shipped.contains(&pair.text) && !shipped.contains(&pair.expected), "{}", pair.expected);
    }
}
