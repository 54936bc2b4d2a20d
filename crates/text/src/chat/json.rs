//! The `tojson` of chat templates: Python's `json.dumps`, not the HTML-safe one of Jinja.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::python::repr::{float, within};
use super::python::view::View;

const MAX_INDENT: usize = 16;

/// The arguments of `json.dumps` that `transformers` passes on.
struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    separators: (String, String),
    sort_keys: bool,
}

pub(super) fn tojson(value: &Value, rest: Rest<Value>, options: Kwargs) -> Result<String, Error> {
    let argument = |at: usize, name: &str| -> Result<Value, Error> {
        let value: Option<Value> = rest.get(at).cloned().or(options.get(name)?);
        Ok(value.unwrap_or_else(|| Value::from(())))
    };
    let (ensure_ascii, indent) = (argument(0, "ensure_ascii")?, argument(1, "indent")?);
    let (separators, sort_keys) = (argument(2, "separators")?, argument(3, "sort_keys")?);
    options.assert_all_used()?;
    let indent = match indent.kind() {
        ValueKind::None => None,
        ValueKind::String => Some(indent.to_string()),
        _ => {
            let blanks = indent.as_i64().ok_or_else(|| wrong("indent must be a number or a text"))?;
            // One more than the limit is as good as any.
            Some(" ".repeat(usize::try_from(blanks).unwrap_or(0).min(MAX_INDENT + 1)))
        }
    };
    if indent.as_ref().is_some_and(|indent| indent.len() > MAX_INDENT) {
        return Err(wrong(format!("indent is more than {MAX_INDENT} letters")));
    }
    let separators = if separators.is_none() {
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned())
    } else {
        let text = |at: usize| separators.get_item_by_index(at).map(|separator| separator.to_string());
        (text(0)?, text(1)?)
    };
    let style = Style { ensure_ascii: ensure_ascii.is_true(), indent, separators, sort_keys: sort_keys.is_true() };
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

fn wrong(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::BadSerialization, problem.into())
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        within(out, depth)?;
        match value.kind() {
            ValueKind::Iterable if value.downcast_object_ref::<View>().is_some() => {
                return Err(wrong("a view of a mapping is not JSON serializable; make a list of it (| list)"));
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked().map(|item| item.map(|item| (None, item)));
                return self.container(['[', ']'], items.collect::<Result<_, _>>()?, depth, out);
            }
            ValueKind::Map => {
                let mut keys = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                if self.sort_keys {
                    keys.sort();
                }
                let pair = |key: Value| Ok((Some(key_text(&key)?), value.get_item(&key)?));
                return self.container(
                    ['{', '}'],
                    keys.into_iter().map(pair).collect::<Result<_, Error>>()?,
                    depth,
                    out,
                );
            }
            ValueKind::String => self.text(value.as_str().unwrap_or_default(), out),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => out.push_str(&key_text(value)?),
            kind => return Err(wrong(format!("{kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn container(
        &self,
        [open, close]: [char; 2],
        items: Vec<(Option<String>, Value)>,
        depth: usize,
        out: &mut String,
    ) -> Result<(), Error> {
        let new_line = |depth: usize, out: &mut String| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(open);
        for (index, (key, item)) in items.iter().enumerate() {
            out.push_str(if index > 0 { &self.separators.0 } else { "" });
            new_line(depth + 1, out);
            if let Some(key) = key {
                self.text(key, out);
                out.push_str(&self.separators.1);
            }
            self.write(item, depth + 1, out)?;
        }
        if !items.is_empty() {
            new_line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn text(&self, text: &str, out: &mut String) {
        out.push('"');
        for letter in text.chars() {
            match letter {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                '\0'..' ' => out.push_str(&format!("\\u{:04x}", letter as u32)),
                _ if letter.is_ascii() || !self.ensure_ascii => out.push(letter),
                _ => {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
            }
        }
        out.push('"');
    }
}

/// A scalar as JSON writes it, which is also how `json.dumps` makes a key of it.
fn key_text(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String => Ok(value.to_string()),
        ValueKind::None => Ok("null".into()),
        ValueKind::Bool => Ok(if value.is_true() { "true" } else { "false" }.into()),
        ValueKind::Number if value.is_integer() => Ok(value.to_string()),
        ValueKind::Number => {
            let number = f64::try_from(value.clone())?;
            Ok(match (number.is_nan(), number.is_infinite()) {
                (true, _) => "NaN".into(),
                (_, true) => if number > 0.0 { "Infinity" } else { "-Infinity" }.into(),
                _ => float(number),
            })
        }
        kind => Err(wrong(format!("a key must be a text, not {kind}"))),
    }
}
