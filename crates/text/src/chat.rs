//! Chat templates: messages to one text, as `transformers` renders them.
//!
//! Templates come with a base, so they are hostile: work and output are bounded, and they reach nothing but the values
//! they are given. They are written for Python's Jinja; the engine is made to answer as it does (`python`), and
//! tests/golden/make_chat.py compares both construct by construct. What still differs:
//!
//! - Refused: `text % values`, a list times a number, bare tuples, `varargs` and `kwargs` of macros, `cycler`, `lipsum`,
//!   `is callable`, the filters that format prose (`truncate`, `wordwrap`, `wordcount`, `center`, `striptags`, `urlencode`,
//!   `filesizeformat`, `pprint`), `int` and `float` of what is no number, rare methods of texts (`swapcase`, `casefold`,
//!   `istitle`, `encode`), more than 500 `elif`, 2000 operators in a tag or 1000 namespaces, and work without end.
//! - Not refused although Python does: comparing values of different types, or with an undefined one, and private names.
//! - Printed otherwise: a range, and what `~` joins that is a float of 1e16 and more or below 1e-4, or a list of such.
//! - `strftime_now` is UTC.

mod bounds;
mod generation;
mod json;
mod message;
mod python;
mod strftime;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};

pub use message::{ChatOptions, Message};

use crate::error::{Error, Result};

/// The longest in use have 20 KB; how deep an expression can be follows from this.
const MAX_TEMPLATE_BYTES: usize = 64 << 10;
const MAX_OUTPUT_BYTES: usize = 8 << 20;
/// About one unit an instruction and one for each 64 bytes made: real templates use some thousands.
const FUEL: u64 = 500_000;
const NAME: &str = "chat_template";
/// The template that is taken where there are tools.
const TOOL_NAME: &str = "chat_template_for_tools";

/// Seconds since 1970, for templates that print the date.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The texts of the special tokens by the names under which templates know them, e.g. `bos_token`.
pub type SpecialTexts = BTreeMap<String, String>;

/// A conversation as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// The bytes of the text that the assistant said, by the template's `generation` marks; in order.
    pub spoken: Vec<Range<usize>>,
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
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        environment.set_syntax(syntax);
        environment.set_fuel(Some(FUEL));
        python::install(&mut environment);
        environment.add_filter("tojson", json::tojson);
        environment.add_filter(bounds::COUNTED, bounds::counted);
        environment.add_filter(bounds::SINGLE, bounds::single);
        environment.add_function("namespace", bounds::namespace);
        environment.add_function("raise_exception", |message: Value| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, python::repr::text(&message)?))
        });
        environment.add_function("strftime_now", move |format: String| strftime::format_utc(clock(), &format));
        let mut template = Self { environment, special };
        template.add(NAME, source)?;
        Ok(template)
    }

    /// With another template for conversations that have tools.
    ///
    /// # Errors
    /// As `parse`.
    pub fn with_tool_template(mut self, source: &str) -> Result<Self> {
        self.add(TOOL_NAME, source)?;
        Ok(self)
    }

    fn add(&mut self, name: &'static str, source: &str) -> Result<()> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let problem = format!("{} bytes, the limit is {MAX_TEMPLATE_BYTES}", source.len());
            return Err(Error::ChatTemplate { problem });
        }
        bounds::check_source(source).map_err(|problem| Error::chat_template(&problem))?;
        let source = generation::replace_tags(&one_kind_of_line_end(source));
        let source = source.map_err(|problem| Error::chat_template(&problem))?;
        bounds::on_large_stack(|| self.environment.add_template_owned(name, source).map_err(failed))?
    }

    /// With `add_generation_prompt` the text ends where the assistant's answer starts.
    ///
    /// # Errors
    /// The template refuses the messages, fails, or does too much work.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, &ChatOptions { add_generation_prompt, ..ChatOptions::default() })
    }

    /// # Errors
    /// As `render`; a variable has the name of something that the template is given anyway.
    pub fn render_with(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        self.run(messages, options, ["", ""])
    }

    /// As `render_with`, and where the assistant speaks. A template without `generation` marks gives no spans.
    ///
    /// # Errors
    /// As `render_with`; the spans cannot be followed, since the template rewrites what it encloses in the marks.
    pub fn render_with_spans(&self, messages: &[Message], options: &ChatOptions) -> Result<Rendered> {
        let unmarked = self.run(messages, options, ["", ""])?;
        let marks = [generation::START, generation::END];
        if unmarked.contains(marks) {
            let problem =
                "the text holds the noncharacter U+FDD0 or U+FDD1, which mark what the assistant said; remove it";
            return Err(Error::ChatTemplate { problem: problem.into() });
        }
        let marks = marks.map(|mark| mark.to_string());
        let marked = self.run(messages, options, [&marks[0], &marks[1]])?;
        let (text, spoken) = generation::spans(&marked).filter(|(text, _)| *text == unmarked).ok_or_else(|| {
            let problem = "it rewrites what stands in a generation block, so that nobody can say where it is in the text; \
                           write the block where its text is printed";
            Error::ChatTemplate { problem: problem.into() }
        })?;
        Ok(Rendered { text, spoken })
    }

    fn run(&self, messages: &[Message], options: &ChatOptions, marks: [&str; 2]) -> Result<String> {
        if messages.is_empty() {
            return Err(Error::ChatTemplate { problem: "there is no message; give it at least one".into() });
        }
        let messages: Vec<_> = messages.iter().map(Message::prepared).collect();
        let given = [
            ("messages", Value::from(Serde(&messages))),
            ("add_generation_prompt", options.add_generation_prompt.into()),
            ("tools", Value::from(Serde(&options.tools))),
            ("documents", Value::from(Serde(&options.documents))),
            (generation::START_VARIABLE, marks[0].into()),
            (generation::END_VARIABLE, marks[1].into()),
        ];
        // A special token that the tokenizer lacks is undefined, as in transformers, and prints as nothing.
        let mut values: BTreeMap<&str, Value> =
            self.special.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str()))).collect();
        for (name, value) in &options.variables {
            if given.iter().any(|(taken, _)| taken == name) {
                let problem = format!("variable {name} is given to every template; name yours otherwise");
                return Err(Error::ChatTemplate { problem });
            }
            values.insert(name, Value::from(Serde(value)));
        }
        values.extend(given);
        let own = options.tools.as_ref().and_then(|_| self.environment.get_template(TOOL_NAME).ok());
        let template = own.map_or_else(|| self.environment.get_template(NAME), Ok).map_err(failed)?;
        let rendered = bounds::on_large_stack(|| {
            // An error may hold values: it ends where they can be dropped.
            let rendered = template.render(values).map_err(failed);
            bounds::empty_namespaces(&self.environment);
            rendered
        })??;
        if rendered.len() > MAX_OUTPUT_BYTES {
            let problem = format!("its output has {} bytes, the limit is {MAX_OUTPUT_BYTES}", rendered.len());
            return Err(Error::ChatTemplate { problem });
        }
        Ok(rendered)
    }
}

/// Jinja reads every end of line as a line feed.
fn one_kind_of_line_end(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
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
    Error::chat_template(&problem)
}

#[cfg(test)]
mod tests;
