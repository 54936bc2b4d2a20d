//! What the assistant said in the turns before the last answer.
//!
//! A template's own `generation` marks say it, where it has them. Otherwise each turn is rendered as it was asked for (what
//! stands before it, with the generation prompt) and as it was answered: if both are beginnings of the whole text, the turn
//! is what the second has more than the first. A template that writes a turn otherwise once more turns follow (some drop
//! the reasoning) cannot be followed, and is refused rather than guessed at.

use std::ops::Range;

use super::Prompt;
use crate::chat::{ChatOptions, ChatTemplate, Message};
use crate::error::{Error, Refusal, Result};
use crate::tokenizer::Tokenizer;

/// For each of the prompt's ids whether it is the assistant's. `messages` are those that the prompt was made of.
///
/// # Errors
/// `Error::Row`: the template does not take the turns. `Error::ChatTemplate`: it cannot be followed.
pub(super) fn assistant(
    chat: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Message],
    prompt: &Prompt,
    eos: u32,
) -> Result<Vec<bool>> {
    let silent = || vec![false; prompt.ids.len()];
    if !messages.iter().any(is_assistant) {
        return Ok(silent());
    }
    let options = ChatOptions { add_generation_prompt: true, ..ChatOptions::default() };
    let (spans, are_marked) = match chat.render_with_spans(messages, &options) {
        Ok(rendered) if !rendered.spoken.is_empty() && rendered.text == prompt.text => (rendered.spoken, true),
        // No marks, or none that can be followed.
        Ok(_) | Err(_) => (turns(chat, messages, &prompt.text)?, false),
    };
    let (ids, mut turn_of) = tokenizer.encode_with_span_numbers(&prompt.text, &spans)?;
    if ids != prompt.ids {
        return Err(Error::chat_template("the same text gave other ids the second time"));
    }
    if !are_marked {
        end_turns(&ids, &mut turn_of, eos);
    }
    Ok(turn_of.into_iter().map(|turn| turn.is_some()).collect())
}

/// As with the last answer: what a template writes after an end token is never asked for.
fn end_turns(ids: &[u32], turn_of: &mut [Option<usize>], eos: u32) {
    let mut ended = None;
    for (id, turn) in ids.iter().zip(turn_of) {
        match *turn {
            Some(_) if *turn == ended => *turn = None,
            Some(_) if *id == eos => ended = *turn,
            Some(_) | None => {}
        }
    }
}

/// The bytes of the assistant's turns in the text, by rendering turn by turn.
fn turns(chat: &ChatTemplate, messages: &[Message], text: &str) -> Result<Vec<Range<usize>>> {
    let mut spans = Vec::new();
    for at in (0..messages.len()).filter(|at| messages.get(*at).is_some_and(is_assistant)) {
        let (before, through) = (messages.get(..at).unwrap_or_default(), messages.get(..=at).unwrap_or_default());
        if before.is_empty() {
            let problem =
                "the assistant speaks first, and without generation marks in the template nobody can say where";
            return Err(Error::Row(Refusal::Template { problem: problem.into() }));
        }
        let asked = chat.render(before, true).map_err(refused)?;
        let answered = chat.render(through, false).map_err(refused)?;
        if !(text.starts_with(&answered) && answered.starts_with(&asked)) {
            let problem = format!(
                "it has no generation marks, and it writes message {} otherwise once more turns follow, so that nobody can \
                 say what the assistant said; train with loss_on completion, or mark the turns with generation",
                at + 1
            );
            return Err(Error::ChatTemplate { problem });
        }
        spans.push(asked.len()..answered.len());
    }
    Ok(spans)
}

fn is_assistant(message: &Message) -> bool {
    message.role() == "assistant"
}

/// The template may take the next conversation.
pub(super) fn refused(error: Error) -> Error {
    match error {
        Error::ChatTemplate { problem } => Error::Row(Refusal::Template { problem }),
        other => other,
    }
}
