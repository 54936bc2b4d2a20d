//! Values as Python's `str` and `repr` write them.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::view::View;

/// Templates nest a handful; a value made to nest without end must not take the stack with it.
pub(in super::super) const MAX_DEPTH: usize = 100;

/// A long text is a template gone astray: what it shares in memory is written out in full.
pub(in super::super) fn within(text: &str, depth: usize) -> Result<(), Error> {
    let problem = if depth > MAX_DEPTH {
        format!("a value is nested more than {MAX_DEPTH} deep")
    } else if text.len() > super::super::MAX_OUTPUT_BYTES {
        format!("a value takes more than {} bytes as text", super::super::MAX_OUTPUT_BYTES)
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::InvalidOperation, problem))
}

/// `str(value)`.
pub(in super::super) fn text(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => Ok(value.to_string()),
        _ => {
            let mut out = String::new();
            repr(value, 0, &mut out)?;
            Ok(out)
        }
    }
}

fn repr(value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    within(out, depth)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => quoted(value.as_str().unwrap_or_default(), out),
        ValueKind::Number if !value.is_integer() => out.push_str(&float(f64::try_from(value.clone())?)),
        // A slice and a sum of lists are iterators here.
        ValueKind::Seq | ValueKind::Iterable => {
            let view = value.downcast_object_ref::<View>().map(|view| view.kind);
            out.extend(view.map(|kind| format!("dict_{kind}(")));
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            let mut count = 0;
            for item in value.try_iter()?.checked() {
                out.push_str(if count > 0 { ", " } else { "" });
                repr(&item?, depth + 1, out)?;
                count += 1;
            }
            out.push_str(if tuple && count == 1 { "," } else { "" });
            out.push(if tuple { ')' } else { ']' });
            out.push_str(if view.is_some() { ")" } else { "" });
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.checked().enumerate() {
                let key = key?;
                out.push_str(if index > 0 { ", " } else { "" });
                repr(&key, depth + 1, out)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// `repr` of a float: the fewest digits that mean it, with an exponent below 1e-4 and from 1e16 on.
pub(in super::super) fn float(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() { "nan".into() } else { format!("{number}") };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = number.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

fn quoted(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for letter in text.chars() {
        match letter {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if letter == quote => out.extend(['\\', letter]),
            _ if printable(letter) => out.push(letter),
            _ => match letter as u32 {
                code @ 0..=0xff => out.push_str(&format!("\\x{code:02x}")),
                code @ 0..=0xffff => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
        }
    }
    out.push(quote);
}

/// Python's `isprintable` but for code points that Unicode has not assigned.
fn printable(letter: char) -> bool {
    let format_or_private = matches!(letter, '\u{AD}' | '\u{600}'..='\u{605}' | '\u{61C}' | '\u{6DD}' | '\u{70F}'
        | '\u{180E}' | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}'
        | '\u{E000}'..='\u{F8FF}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' | '\u{E0000}'..='\u{E007F}'
        | '\u{F0000}'..);
    letter == ' ' || !(letter.is_control() || letter.is_whitespace() || format_or_private)
}
