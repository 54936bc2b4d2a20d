//! What a row says, by its kind: what is asked, and what is answered.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use tailor_domain::dataset::DroppedRow;
use tailor_domain::{DatasetKind, DropReason};

use super::columns::{Columns, Roles};
use super::{conversation, dropped, trimmed};
use crate::chat::Message;

/// Untagged: the names of the fields tell the kinds apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RowContent {
    InputTarget {
        input: String,
        target: String,
    },
    /// Two different answers to a conversation in which a user has asked. (Before the next kind, which has one of its fields.)
    PreferredTurn {
        messages: Vec<Message>,
        chosen: String,
        rejected: String,
    },
    /// The last message is the assistant's and has a text; a user asked before it.
    Conversation {
        messages: Vec<Message>,
    },
    /// Two different answers.
    Preference {
        prompt: String,
        chosen: String,
        rejected: String,
    },
}

impl RowContent {
    pub fn kind(&self) -> DatasetKind {
        match self {
            Self::InputTarget { .. } => DatasetKind::InputTarget,
            Self::Conversation { .. } => DatasetKind::Conversation,
            Self::Preference { .. } | Self::PreferredTurn { .. } => DatasetKind::Preference,
        }
    }

    /// What a conversation says before the answer; None where a text is asked.
    pub fn turns_before(&self) -> Option<&[Message]> {
        match self {
            Self::InputTarget { .. } | Self::Preference { .. } => None,
            Self::PreferredTurn { messages, .. } => Some(messages),
            Self::Conversation { messages } => Some(messages.split_last().map_or(&[][..], |(_, before)| before)),
        }
    }

    /// What is asked, for people: of a conversation all turns before the answer, one a line.
    pub fn asked(&self) -> Cow<'_, str> {
        match self {
            Self::InputTarget { input: text, .. } | Self::Preference { prompt: text, .. } => Cow::Borrowed(text),
            Self::PreferredTurn { .. } | Self::Conversation { .. } => {
                let before = self.turns_before().unwrap_or_default();
                Cow::Owned(before.iter().map(transcribed).collect::<Vec<_>>().join("\n"))
            }
        }
    }

    /// The last thing that is said before the answer: what an idle model would repeat.
    pub fn question(&self) -> &str {
        match self {
            Self::InputTarget { input: text, .. } | Self::Preference { prompt: text, .. } => text,
            Self::PreferredTurn { .. } | Self::Conversation { .. } => {
                self.turns_before().and_then(<[Message]>::last).map_or("", Message::text)
            }
        }
    }

    /// What is hidden of a held-out row: the target, the last turn, or the chosen answer.
    pub fn answer(&self) -> &str {
        match self {
            Self::InputTarget { target: text, .. }
            | Self::Preference { chosen: text, .. }
            | Self::PreferredTurn { chosen: text, .. } => text,
            Self::Conversation { messages } => messages.last().map_or("", Message::text),
        }
    }

    /// The answer as a chat template is given it.
    pub(crate) fn answer_message(&self) -> Cow<'_, Message> {
        let last = match self {
            Self::Conversation { messages } => messages.last(),
            Self::InputTarget { .. } | Self::Preference { .. } | Self::PreferredTurn { .. } => None,
        };
        last.map_or_else(|| Cow::Owned(Message::new("assistant", self.answer())), Cow::Borrowed)
    }

    /// The answer that a preference's row turns down.
    pub fn rejected(&self) -> Option<&str> {
        match self {
            Self::Preference { rejected, .. } | Self::PreferredTurn { rejected, .. } => Some(rejected),
            Self::InputTarget { .. } | Self::Conversation { .. } => None,
        }
    }

    /// Characters of all its texts.
    pub fn characters(&self) -> u64 {
        let count = |text: &str| text.chars().count() as u64;
        let all = |messages: &[Message]| messages.iter().map(|message| count(message.text())).sum::<u64>();
        match self {
            Self::InputTarget { input, target } => count(input) + count(target),
            Self::Conversation { messages } => all(messages),
            Self::PreferredTurn { messages, chosen, rejected } => all(messages) + count(chosen) + count(rejected),
            Self::Preference { prompt, chosen, rejected } => count(prompt) + count(chosen) + count(rejected),
        }
    }
}

fn transcribed(message: &Message) -> String {
    format!("{}: {}", message.role(), message.text())
}

/// The rules that hold whatever the format: something is asked, something is answered, and two answers differ.
pub(super) fn checked(line: u64, columns: &Columns, content: RowContent) -> Result<RowContent, DroppedRow> {
    let filled = |text: String, name: &str, reason| match trimmed(text) {
        text if text.is_empty() => Err(dropped(line, Some(name), reason, "the field is empty")),
        text => Ok(text),
    };
    let answer = |text, name: &str| filled(text, name, DropReason::EmptyTarget);
    match (content, &columns.roles) {
        (RowContent::InputTarget { input, target }, Roles::InputTarget { input: asked, target: answered }) => {
            let input = filled(input, asked, DropReason::EmptyInput)?;
            Ok(RowContent::InputTarget { input, target: answer(target, answered)? })
        }
        (
            RowContent::Preference { prompt, chosen, rejected },
            Roles::Preference { prompt: asked, chosen: a, rejected: b },
        ) => {
            let prompt = filled(prompt, asked, DropReason::EmptyInput)?;
            let (chosen, rejected) = different(line, (a, answer(chosen, a)?), (b, answer(rejected, b)?))?;
            Ok(RowContent::Preference { prompt, chosen, rejected })
        }
        (
            RowContent::PreferredTurn { messages, chosen, rejected },
            Roles::Preference { prompt: asked, chosen: a, rejected: b },
        ) => {
            conversation::check_asked(line, asked, &messages)?;
            let (chosen, rejected) = different(line, (a, answer(chosen, a)?), (b, answer(rejected, b)?))?;
            Ok(RowContent::PreferredTurn { messages, chosen, rejected })
        }
        (RowContent::Conversation { messages }, Roles::Conversation { messages: name }) => {
            conversation::check(line, name, &messages)?;
            Ok(RowContent::Conversation { messages })
        }
        (
            RowContent::InputTarget { .. }
            | RowContent::Conversation { .. }
            | RowContent::Preference { .. }
            | RowContent::PreferredTurn { .. },
            Roles::InputTarget { .. } | Roles::Conversation { .. } | Roles::Preference { .. },
        ) => Err(dropped(line, None, DropReason::Malformed, "the row is of another kind than the file")),
    }
}

/// Two answers, each with its column.
fn different(
    line: u64,
    (a, chosen): (&str, String),
    (b, rejected): (&str, String),
) -> Result<(String, String), DroppedRow> {
    if chosen == rejected {
        let detail = format!("the same answer as {a:?}; there is nothing to prefer");
        return Err(dropped(line, Some(b), DropReason::SameAnswer, detail));
    }
    Ok((chosen, rejected))
}
