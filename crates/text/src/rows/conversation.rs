//! What a conversation may be: bounded, of known roles, asked by a user and ended by the assistant.
//!
//! Fields beside `role` and `content` (tool calls, reasoning) are kept: templates read them.

use serde_json::Value;
use tailor_domain::DropReason;
use tailor_domain::dataset::DroppedRow;

use super::{dropped, excerpt};
use crate::chat::Message;

/// More turns than any template renders within its budget.
const MAX_MESSAGES: usize = 1000;
const MAX_FIELDS: usize = 32;
/// Of lists and objects in one another, within a message: tool calls need five.
const MAX_DEPTH: usize = 12;
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// The messages of a JSON value.
pub(super) fn parse(line: u64, column: &str, value: Value) -> Result<Vec<Message>, DroppedRow> {
    let malformed = |field: &str, detail: String| dropped(line, Some(field), DropReason::Malformed, detail);
    let items = match value {
        Value::Array(items) => items,
        Value::Null => Vec::new(),
        other => {
            return Err(malformed(column, format!("{} is no list of messages", excerpt(&other.to_string()))));
        }
    };
    if items.len() > MAX_MESSAGES {
        let detail = format!("{} messages, the limit is {MAX_MESSAGES}; split the conversation", items.len());
        return Err(dropped(line, Some(column), DropReason::TooLong, detail));
    }
    let mut messages = Vec::with_capacity(items.len());
    for (at, item) in items.into_iter().enumerate() {
        let field = format!("{column}[{at}]");
        let Value::Object(fields) = item else {
            return Err(malformed(&field, format!("{} is no message", excerpt(&item.to_string()))));
        };
        if fields.len() > MAX_FIELDS {
            return Err(malformed(&field, format!("{} fields, the limit is {MAX_FIELDS}", fields.len())));
        }
        if fields.values().any(|value| is_deeper(value, MAX_DEPTH)) {
            return Err(malformed(&field, format!("lists and objects nested deeper than {MAX_DEPTH}")));
        }
        match fields.get("role") {
            Some(Value::String(role)) if ROLES.contains(&role.as_str()) => {}
            Some(other) => {
                let detail = format!("{} is none of {}", excerpt(&other.to_string()), ROLES.join(", "));
                return Err(malformed(&format!("{field}.role"), detail));
            }
            None => {
                let detail = "the message has no such key";
                return Err(dropped(line, Some(&format!("{field}.role")), DropReason::MissingField, detail));
            }
        }
        let calls_tools = fields.get("tool_calls").is_some_and(|calls| !calls.is_null());
        match fields.get("content") {
            Some(Value::String(_)) => {}
            Some(Value::Null) | None if calls_tools => {}
            Some(Value::Null) | None => {
                let detail = "the message has no content";
                return Err(dropped(line, Some(&format!("{field}.content")), DropReason::MissingField, detail));
            }
            Some(other) => {
                let detail = format!("{} is no text", excerpt(&other.to_string()));
                return Err(malformed(&format!("{field}.content"), detail));
            }
        }
        messages.push(Message::from_fields(fields));
    }
    Ok(messages)
}

/// Whether somebody asks and the assistant has the last word.
pub(super) fn check(line: u64, column: &str, messages: &[Message]) -> Result<(), DroppedRow> {
    let Some((last, before)) = messages.split_last() else {
        return Err(dropped(line, Some(column), DropReason::EmptyInput, "there are no messages"));
    };
    let field = |at: usize, name: &str| format!("{column}[{at}].{name}");
    if last.role() != "assistant" {
        let detail = format!("{}; a conversation ends with the assistant's answer", last.role());
        return Err(dropped(line, Some(&field(before.len(), "role")), DropReason::EmptyTarget, detail));
    }
    if last.text().trim().is_empty() {
        let detail = "the last answer is empty";
        return Err(dropped(line, Some(&field(before.len(), "content")), DropReason::EmptyTarget, detail));
    }
    if !before.iter().any(asks) {
        let detail = "no message of a user stands before the last answer";
        return Err(dropped(line, Some(column), DropReason::EmptyInput, detail));
    }
    check_asked(line, column, before)
}

/// Whether somebody asks, and no user's message is empty.
pub(super) fn check_asked(line: u64, column: &str, messages: &[Message]) -> Result<(), DroppedRow> {
    if !messages.iter().any(asks) {
        return Err(dropped(line, Some(column), DropReason::EmptyInput, "there is no message of a user"));
    }
    match messages.iter().position(|message| asks(message) && message.text().trim().is_empty()) {
        Some(at) => {
            let field = format!("{column}[{at}].content");
            Err(dropped(line, Some(&field), DropReason::EmptyInput, "the field is empty"))
        }
        None => Ok(()),
    }
}

fn asks(message: &Message) -> bool {
    message.role() == "user"
}

fn is_deeper(value: &Value, left: usize) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        Value::Array(_) | Value::Object(_) if left == 0 => true,
        Value::Array(values) => values.iter().any(|value| is_deeper(value, left - 1)),
        Value::Object(fields) => fields.values().any(|value| is_deeper(value, left - 1)),
    }
}
