//! A prompt and two answers in JSON: texts, or messages as TRL and the Hub's datasets have them.
//!
//! Either answer may be a text, a list with the assistant's message, or the whole conversation that ends with it, and the prompt a
//! text or the messages before. A single question of a user is a text again: a prompt template applies to it, and every base takes it.

use serde_json::Value;
use tailor_domain::DropReason;
use tailor_domain::dataset::DroppedRow;

use super::jsonl::as_text;
use super::{RowContent, conversation, dropped};
use crate::chat::Message;

/// A column and what a row has there.
type Field<'a> = (&'a String, Value);

/// What is said before an answer, if it is a list, and the answer.
type Answer = (Vec<Message>, String);

pub(super) fn parse(
    line: u64,
    (prompt, asked): Field<'_>,
    (chosen_name, chosen): Field<'_>,
    (rejected_name, rejected): Field<'_>,
) -> Result<RowContent, DroppedRow> {
    let (before, chosen) = answer(line, chosen_name, chosen)?;
    let (before_other, rejected) = answer(line, rejected_name, rejected)?;
    if before != before_other {
        let detail = format!("it does not follow the same messages as {chosen_name:?}");
        return Err(dropped(line, Some(rejected_name), DropReason::Malformed, detail));
    }
    let differs = || {
        let detail = format!("{prompt:?} is not what it begins with");
        dropped(line, Some(chosen_name), DropReason::Malformed, detail)
    };
    let messages = match asked {
        Value::Array(_) => {
            let messages = conversation::parse(line, prompt, asked)?;
            if !before.is_empty() && before != messages {
                return Err(differs());
            }
            messages
        }
        asked => {
            let asked = as_text(line, prompt, asked)?;
            // Some datasets have as a prompt the first question of several, some the last.
            let is_there = |message: &Message| message.role() == "user" && message.text().trim() == asked.trim();
            match before.is_empty() {
                true => return Ok(RowContent::Preference { prompt: asked, chosen, rejected }),
                false if before.iter().any(is_there) => before,
                false => return Err(differs()),
            }
        }
    };
    Ok(match &messages[..] {
        [only] if *only == Message::new("user", only.text()) => {
            RowContent::Preference { prompt: only.text().to_owned(), chosen, rejected }
        }
        _ => RowContent::PreferredTurn { messages, chosen, rejected },
    })
}

fn answer(line: u64, name: &str, value: Value) -> Result<Answer, DroppedRow> {
    let Value::Array(_) = value else { return Ok((Vec::new(), as_text(line, name, value)?)) };
    let mut messages = conversation::parse(line, name, value)?;
    let at = messages.len().saturating_sub(1);
    let Some(last) = messages.pop() else {
        return Err(dropped(line, Some(name), DropReason::EmptyTarget, "there are no messages"));
    };
    if last.role() != "assistant" {
        let detail = format!("{}; an answer is the assistant's", last.role());
        return Err(dropped(line, Some(&format!("{name}[{at}].role")), DropReason::EmptyTarget, detail));
    }
    if last != Message::new("assistant", last.text()) {
        let detail = "answers are compared by their text; leave other fields out";
        return Err(dropped(line, Some(&format!("{name}[{at}]")), DropReason::Malformed, detail));
    }
    Ok((messages, last.text().to_owned()))
}
