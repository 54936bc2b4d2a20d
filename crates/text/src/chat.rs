//! Chat templates: messages to one text, as `transformers` renders them.
//!
//! Templates come with a base, so they are hostile: work and output are bounded, and they reach nothing but the values
//! they are given. Differs from `transformers` in that `strftime_now` is UTC, and that the work is limited.

mod json;
mod strftime;

use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const MAX_TEMPLATE_BYTES: usize = 256 << 10;
const MAX_OUTPUT_BYTES: usize = 8 << 20;
/// About one unit an instruction and one for each 64 bytes made: real templates use some thousands.
const FUEL: u64 = 500_000;
const NAME: &str = "chat_template";

/// Seconds since 1970, for templates that print the date.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// The texts of the special tokens that templates refer to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTexts {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    pub unk: Option<String>,
}

#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: SpecialTexts,
}

impl ChatTemplate {
    /// # Errors
    /// The template is too large or has a syntax error; says in which line.
    pub fn parse(source: &str, special: SpecialTexts) -> Result<Self> {
        Self::parse_with_clock(source, special, Arc::new(system_clock))
    }

    /// # Errors
    /// As `parse`.
    pub fn parse_with_clock(source: &str, special: SpecialTexts, clock: Clock) -> Result<Self> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let problem = format!("{} bytes, the limit is {MAX_TEMPLATE_BYTES}", source.len());
            return Err(Error::ChatTemplate { problem });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", json::tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |format: String| strftime::format_utc(clock(), &format));
        environment.add_template_owned(NAME, without_generation_marks(source)).map_err(failed)?;
        Ok(Self { environment, special })
    }

    /// With `add_generation_prompt` the text ends where the assistant's answer starts.
    ///
    /// # Errors
    /// The template refuses the messages, fails, or does too much work.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(failed)?;
        // A special token that the tokenizer lacks is undefined, as in transformers, and prints as nothing.
        let text = |value: &Option<String>| value.as_deref().map_or(Value::UNDEFINED, Value::from);
        let values = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => add_generation_prompt,
            tools => Value::from(()),
            documents => Value::from(()),
            bos_token => text(&self.special.bos),
            eos_token => text(&self.special.eos),
            pad_token => text(&self.special.pad),
            unk_token => text(&self.special.unk),
        };
        let rendered = template.render(values).map_err(failed)?;
        if rendered.len() > MAX_OUTPUT_BYTES {
            let problem = format!("its output has {} bytes, the limit is {MAX_OUTPUT_BYTES}", rendered.len());
            return Err(Error::ChatTemplate { problem });
        }
        Ok(rendered)
    }
}

fn system_clock() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The engine's message, and what was raised beneath it.
fn failed(error: minijinja::Error) -> Error {
    let problem = match error.kind() {
        ErrorKind::OutOfFuel => format!("it does more than {FUEL} steps of work; it may loop"),
        _ => error.to_string(),
    };
    Error::ChatTemplate { problem }
}

/// `{% generation %}` marks what the assistant said, for training by others; here it is a block without effect.
fn without_generation_marks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        let name = tag.trim_matches(|c: char| "{%-+}".contains(c) || c.is_whitespace());
        match name {
            "generation" => out.push_str(&tag.replace(name, "if true")),
            "endgeneration" => out.push_str(&tag.replace(name, "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests;
