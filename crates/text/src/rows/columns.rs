//! Which column is what.

use crate::error::{Error, Result};
use crate::metrics;

/// What the caller says; absent ones are found by their usual names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ColumnMap {
    pub id: Option<String>,
    /// Never guessed: balancing is only done when it is asked for.
    pub label: Option<String>,
    pub input: Option<String>,
    pub target: Option<String>,
}

/// The columns as they are called in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    pub id: Option<String>,
    pub label: Option<String>,
    pub input: String,
    pub target: String,
}

const INPUT_NAMES: [&str; 8] = ["input", "text", "prompt", "source", "question", "instruction", "sentence", "original"];
const TARGET_NAMES: [&str; 11] = [
    "target",
    "expected text",
    "expected output",
    "expected",
    "output",
    "completion",
    "answer",
    "response",
    "corrected",
    "correction",
    "corrected text",
];

impl Columns {
    pub(super) fn find(wanted: &ColumnMap, found: &[String]) -> Result<Self> {
        let columns = Self {
            input: required("input", wanted.input.as_deref(), &INPUT_NAMES, found)?,
            target: required("target", wanted.target.as_deref(), &TARGET_NAMES, found)?,
            label: wanted.label.as_deref().map(|name| named(name, found)).transpose()?,
            id: match wanted.id.as_deref() {
                Some(name) => Some(named(name, found)?),
                None => found.iter().find(|name| plain(name) == "id").cloned(),
            },
        };
        if columns.input == columns.target {
            return Err(Error::Option {
                field: "target_column",
                problem: format!("{:?} is the input column too; name another", columns.target),
            });
        }
        for name in [Some(&columns.input), Some(&columns.target), columns.label.as_ref(), columns.id.as_ref()] {
            let Some(name) = name else { continue };
            if found.iter().filter(|other| *other == name).count() > 1 {
                return Err(Error::Header { line: 1, problem: format!("column {name:?} is there twice; rename one") });
            }
        }
        Ok(columns)
    }
}

fn required(role: &str, wanted: Option<&str>, usual: &[&str], found: &[String]) -> Result<String> {
    if let Some(name) = wanted.filter(|name| !name.is_empty()) {
        return named(name, found);
    }
    let by_name = usual.iter().find_map(|usual| found.iter().find(|name| plain(name) == *usual));
    by_name.cloned().ok_or_else(|| Error::MissingColumn {
        wanted: format!("the {role}"),
        found: found.to_vec(),
        likeliest: usual.iter().find_map(|usual| likeliest(usual, found)),
    })
}

fn named(name: &str, found: &[String]) -> Result<String> {
    let exact = found.iter().find(|candidate| *candidate == name);
    exact.or_else(|| found.iter().find(|candidate| plain(candidate) == plain(name))).cloned().ok_or_else(|| {
        Error::MissingColumn { wanted: format!("{name:?}"), found: found.to_vec(), likeliest: likeliest(name, found) }
    })
}

/// How people mean a name: `Expected_Text` is `expected text`.
fn plain(name: &str) -> String {
    let spaced: String = name.chars().map(|c| if c == '_' || c == '-' { ' ' } else { c }).collect();
    spaced.trim().to_lowercase()
}

/// The nearest name, if it is near enough to be a slip of the hand, or has the wanted name in it.
fn likeliest(wanted: &str, found: &[String]) -> Option<String> {
    let wanted = plain(wanted);
    let near = |name: &&String| {
        let plain = plain(name);
        let close = metrics::edit_distance(&plain, &wanted) <= wanted.chars().count().div_ceil(3);
        close || (wanted.len() > 2 && plain.len() > 2 && (plain.contains(&wanted) || wanted.contains(&plain)))
    };
    found.iter().filter(near).min_by_key(|name| metrics::edit_distance(&plain(name), &wanted)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn find(found: &[&str]) -> Result<Columns> {
        Columns::find(&ColumnMap::default(), &names(found))
    }

    #[test]
    fn usual_names_are_found() {
        for (header, input, target) in [
            (["id", "language", "text", "expected text"], "text", "expected text"),
            (["Input", "x", "y", "Output"], "Input", "Output"),
            (["prompt", "completion", "a", "b"], "prompt", "completion"),
            (["ID", "source", "expected_text", "n"], "source", "expected_text"),
        ] {
            let columns = find(&header).unwrap_or_else(|error| panic!("{header:?}: {error}"));
            assert_eq!((columns.input.as_str(), columns.target.as_str()), (input, target));
            assert_eq!(columns.label, None, "labels are never guessed");
        }
    }

    #[test]
    fn a_named_column_wins_over_a_usual_one() {
        let map = ColumnMap { input: Some("bad".into()), label: Some("Language".into()), ..ColumnMap::default() };
        let columns = Columns::find(&map, &names(&["text", "bad", "target", "language"])).expect("all there");
        assert_eq!(columns.input, "bad");
        assert_eq!(columns.label.as_deref(), Some("language"));
    }

    #[test]
    fn a_missing_column_names_what_is_there_and_the_likeliest() {
        let map = ColumnMap { target: Some("expcted text".into()), ..ColumnMap::default() };
        let error = Columns::find(&map, &names(&["id", "text", "expected text"])).expect_err("misspelt");
        assert_eq!(
            error.to_string(),
            "no column for \"expcted text\"; the file has \"id\", \"text\", \"expected text\"; \
             did you mean \"expected text\"?"
        );
        let error = find(&["id", "satz", "korrektur"]).expect_err("foreign names");
        assert!(error.to_string().ends_with("name the column"), "{error}");
        let error = find(&["input_text", "output"]).expect_err("near name");
        assert!(error.to_string().contains("did you mean \"input_text\""), "{error}");
    }

    #[test]
    fn one_column_cannot_be_both_and_no_name_may_be_there_twice() {
        let map = ColumnMap { target: Some("text".into()), ..ColumnMap::default() };
        assert!(Columns::find(&map, &names(&["text", "b"])).is_err(), "input is target");
        assert!(find(&["text", "text", "target"]).is_err(), "two columns of one name");
    }
}
