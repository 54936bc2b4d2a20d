//! Which column is what, and by that of which kind the rows are.

use tailor_domain::DatasetKind;

use super::Format;
use crate::error::{Error, Result};
use crate::metrics;

/// What the caller says; absent ones are found by their usual names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ColumnMap {
    /// None: told by the columns.
    pub kind: Option<DatasetKind>,
    pub id: Option<String>,
    /// Never guessed: balancing is only done when it is asked for.
    pub label: Option<String>,
    /// The prompt, where rows are preferences.
    pub input: Option<String>,
    pub target: Option<String>,
    pub messages: Option<String>,
    pub chosen: Option<String>,
    pub rejected: Option<String>,
}

/// The columns as they are called in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns {
    pub id: Option<String>,
    pub label: Option<String>,
    pub roles: Roles,
}

/// The columns that a row of one kind is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roles<Column = String> {
    InputTarget { input: Column, target: Column },
    Conversation { messages: Column },
    Preference { prompt: Column, chosen: Column, rejected: Column },
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
const PROMPT_NAMES: [&str; 5] = ["prompt", "input", "question", "instruction", "text"];
const CHOSEN_NAMES: [&str; 4] = ["chosen", "chosen response", "preferred", "better"];
const REJECTED_NAMES: [&str; 4] = ["rejected", "rejected response", "dispreferred", "worse"];
const MESSAGES_NAMES: [&str; 4] = ["messages", "conversation", "conversations", "turns"];

impl<Column> Roles<Column> {
    pub fn kind(&self) -> DatasetKind {
        match self {
            Self::InputTarget { .. } => DatasetKind::InputTarget,
            Self::Conversation { .. } => DatasetKind::Conversation,
            Self::Preference { .. } => DatasetKind::Preference,
        }
    }

    /// What takes the place of `{input}` in a prompt; a conversation has no such column.
    pub fn input(&self) -> Option<&Column> {
        match self {
            Self::InputTarget { input: column, .. } | Self::Preference { prompt: column, .. } => Some(column),
            Self::Conversation { .. } => None,
        }
    }

    pub(super) fn all(&self) -> Vec<&Column> {
        match self {
            Self::InputTarget { input, target } => vec![input, target],
            Self::Conversation { messages } => vec![messages],
            Self::Preference { prompt, chosen, rejected } => vec![prompt, chosen, rejected],
        }
    }

    pub(super) fn try_map<T, E>(&self, mut map: impl FnMut(&Column) -> Result<T, E>) -> Result<Roles<T>, E> {
        Ok(match self {
            Self::InputTarget { input, target } => Roles::InputTarget { input: map(input)?, target: map(target)? },
            Self::Conversation { messages } => Roles::Conversation { messages: map(messages)? },
            Self::Preference { prompt, chosen, rejected } => {
                Roles::Preference { prompt: map(prompt)?, chosen: map(chosen)?, rejected: map(rejected)? }
            }
        })
    }
}

impl ColumnMap {
    /// The kind that was asked for, or that the named columns or else the found ones have.
    fn kind(&self, found: &[String], format: Format) -> Result<DatasetKind> {
        let named = |column: &Option<String>| column.is_some();
        let usual = |names: &[&str]| names.iter().any(|usual| found.iter().any(|name| plain(name) == *usual));
        let kind = if let Some(kind) = self.kind {
            kind
        } else if named(&self.chosen) || named(&self.rejected) {
            DatasetKind::Preference
        } else if named(&self.messages) {
            DatasetKind::Conversation
        } else if named(&self.target) {
            DatasetKind::InputTarget
        } else if usual(&CHOSEN_NAMES) && usual(&REJECTED_NAMES) {
            DatasetKind::Preference
        } else if format != Format::Csv && usual(&MESSAGES_NAMES) && !(usual(&INPUT_NAMES) && usual(&TARGET_NAMES)) {
            DatasetKind::Conversation
        } else {
            DatasetKind::InputTarget
        };
        let (input, target, messages) = (&self.input, &self.target, &self.messages);
        let of_others = match kind {
            DatasetKind::InputTarget => {
                [("messages_column", messages), ("chosen_column", &self.chosen), ("rejected_column", &self.rejected)]
            }
            DatasetKind::Conversation => {
                [("input_column", input), ("target_column", target), ("chosen_column", &self.chosen)]
            }
            DatasetKind::Preference => [("target_column", target), ("messages_column", messages), ("", &None)],
        };
        match of_others.into_iter().find(|(_, column)| named(column)) {
            Some((field, _)) => {
                Err(Error::Option { field, problem: format!("rows of kind {kind} have none; leave it out") })
            }
            None if kind == DatasetKind::Conversation && format == Format::Csv => {
                let problem =
                    "conversation rows are read from jsonl or parquet; a field of csv holds no messages".into();
                Err(Error::Option { field: "kind", problem })
            }
            None => Ok(kind),
        }
    }
}

impl Columns {
    pub(super) fn find(wanted: &ColumnMap, found: &[String], format: Format) -> Result<Self> {
        let required = |role, wanted: &Option<String>, usual| required(role, wanted.as_deref(), usual, found);
        let roles = match wanted.kind(found, format)? {
            DatasetKind::InputTarget => Roles::InputTarget {
                input: required("input", &wanted.input, &INPUT_NAMES[..])?,
                target: required("target", &wanted.target, &TARGET_NAMES)?,
            },
            DatasetKind::Conversation => {
                Roles::Conversation { messages: required("messages", &wanted.messages, &MESSAGES_NAMES)? }
            }
            DatasetKind::Preference => Roles::Preference {
                prompt: required("prompt", &wanted.input, &PROMPT_NAMES)?,
                chosen: required("chosen answer", &wanted.chosen, &CHOSEN_NAMES)?,
                rejected: required("rejected answer", &wanted.rejected, &REJECTED_NAMES)?,
            },
        };
        let columns = Self {
            roles,
            label: wanted.label.as_deref().map(|name| named(name, found)).transpose()?,
            id: match wanted.id.as_deref() {
                Some(name) => Some(named(name, found)?),
                None => found.iter().find(|name| plain(name) == "id").cloned(),
            },
        };
        let all = columns.roles.all();
        if let Some(at) = (1..all.len()).find(|at| all[..*at].contains(&all[*at])) {
            let field = match (&columns.roles, at) {
                (Roles::Preference { .. }, 1) => "chosen_column",
                (Roles::Preference { .. }, _) => "rejected_column",
                (Roles::InputTarget { .. } | Roles::Conversation { .. }, _) => "target_column",
            };
            let problem = match &columns.roles {
                Roles::InputTarget { .. } => format!("{:?} is the input column too; name another", all[at]),
                Roles::Conversation { .. } | Roles::Preference { .. } => {
                    format!("{:?} is another column of the row too; name another", all[at])
                }
            };
            return Err(Error::Option { field, problem });
        }
        for name in all.into_iter().chain(&columns.label).chain(&columns.id) {
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
        Columns::find(&ColumnMap::default(), &names(found), Format::Csv)
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
            let wanted = Roles::InputTarget { input: input.to_owned(), target: target.to_owned() };
            assert_eq!(columns.roles, wanted);
            assert_eq!(columns.label, None, "labels are never guessed");
        }
    }

    #[test]
    fn a_named_column_wins_over_a_usual_one() {
        let map = ColumnMap { input: Some("bad".into()), label: Some("Language".into()), ..ColumnMap::default() };
        let columns =
            Columns::find(&map, &names(&["text", "bad", "target", "language"]), Format::Csv).expect("all there");
        assert_eq!(columns.roles.input().map(String::as_str), Some("bad"));
        assert_eq!(columns.label.as_deref(), Some("language"));
    }

    #[test]
    fn a_missing_column_names_what_is_there_and_the_likeliest() {
        let map = ColumnMap { target: Some("expcted text".into()), ..ColumnMap::default() };
        let error = Columns::find(&map, &names(&["id", "text", "expected text"]), Format::Csv).expect_err("misspelt");
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
        assert!(Columns::find(&map, &names(&["text", "b"]), Format::Csv).is_err(), "input is target");
        assert!(find(&["text", "text", "target"]).is_err(), "two columns of one name");
    }

    #[test]
    fn the_columns_tell_the_kind() {
        use DatasetKind::{Conversation, InputTarget, Preference};
        for (header, format, kind) in [
            (&["prompt", "chosen", "rejected"][..], Format::Csv, Preference),
            (&["question", "chosen_response", "rejected_response", "messages"], Format::Jsonl, Preference),
            (&["id", "messages"], Format::Jsonl, Conversation),
            (&["messages", "input", "output"], Format::Jsonl, InputTarget),
            (&["prompt", "completion", "chosen"], Format::Csv, InputTarget),
        ] {
            let columns = Columns::find(&ColumnMap::default(), &names(header), format).expect("all there");
            assert_eq!(columns.roles.kind(), kind, "{header:?}");
        }
        let asked = ColumnMap { kind: Some(Conversation), ..ColumnMap::default() };
        let columns = Columns::find(&asked, &names(&["input", "output", "messages"]), Format::Jsonl).expect("there");
        assert_eq!(columns.roles, Roles::Conversation { messages: "messages".into() });
        let named = ColumnMap { chosen: Some("a".into()), rejected: Some("b".into()), ..ColumnMap::default() };
        let columns = Columns::find(&named, &names(&["text", "output", "a", "b"]), Format::Csv).expect("there");
        assert_eq!(columns.roles.all(), ["text", "a", "b"]);
    }

    #[test]
    fn columns_of_two_kinds_are_refused_by_flag() {
        let chosen = || Some("chosen".to_owned());
        let found = names(&["prompt", "chosen", "rejected", "messages", "target"]);
        for (map, says) in [
            (ColumnMap { chosen: chosen(), target: Some("target".into()), ..ColumnMap::default() }, "target_column"),
            (
                ColumnMap { kind: Some(DatasetKind::InputTarget), chosen: chosen(), ..ColumnMap::default() },
                "chosen_column: rows of kind input-target have none",
            ),
            (ColumnMap { messages: Some("messages".into()), ..ColumnMap::default() }, "read from jsonl"),
            (ColumnMap { rejected: chosen(), ..ColumnMap::default() }, "rejected_column"),
            (ColumnMap { chosen: Some("best".into()), ..ColumnMap::default() }, "no column for \"best\""),
        ] {
            let error = Columns::find(&map, &found, Format::Csv).expect_err(says);
            assert!(error.to_string().contains(says), "{says}: {error}");
        }
        let error = find(&["prompt", "chosen"]).expect_err("half a pair");
        assert!(error.to_string().contains("no column for the target"), "{error}");
    }
}
