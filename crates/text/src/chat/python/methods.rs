//! Methods of Python's texts and lists that the engine's own compatibility layer lacks or answers otherwise.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::view::View;

/// Alignment beyond this is a template that wastes memory.
const MAX_WIDTH: usize = 10_000;

pub(super) fn call(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match value.kind() {
        ValueKind::String => on_text(value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Map => View::of(value, method, args)?,
        ValueKind::Seq | ValueKind::Iterable if method == "index" => Some(index(state, value, args)?),
        _ => None,
    };
    match own {
        Some(answer) => Ok(answer),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn on_text(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let one = || from_args::<(&str,)>(args).map(|(argument,)| argument);
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => {
            let (letters,): (Option<&str>,) = from_args(args)?;
            Value::from(strip(text, letters, method != "rstrip", method != "lstrip"))
        }
        "split" | "rsplit" => split(text, method == "rsplit", args)?,
        "splitlines" => {
            let (rest, kwargs): (Rest<Value>, Kwargs) = from_args(args)?;
            let keep = rest.first().cloned().or(kwargs.get("keepends")?).is_some_and(|keep| keep.is_true());
            kwargs.assert_all_used()?;
            lines(text, keep).into_iter().map(Value::from).collect()
        }
        "partition" => partition(text, one()?, text.find(one()?), false)?,
        "rpartition" => partition(text, one()?, text.rfind(one()?), true)?,
        "removeprefix" => text.strip_prefix(one()?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(one()?).unwrap_or(text).into(),
        "index" | "rindex" => {
            let found = if method == "index" { text.find(one()?) } else { text.rfind(one()?) };
            let at = found.ok_or_else(|| wrong(format!("{:?} is not in the text", one().unwrap_or_default())))?;
            Value::from(text[..at].chars().count())
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            let mut out = String::new();
            for (index, item) in items.try_iter()?.checked().enumerate() {
                let item = item?;
                let piece = item.as_str().ok_or_else(|| {
                    wrong(format!("join: item {index} is {}, not a text; join with the filter instead", item.kind()))
                })?;
                out.push_str(if index > 0 { text } else { "" });
                out.push_str(piece);
                super::repr::within(&out, 0)?;
            }
            out.into()
        }
        "zfill" | "ljust" | "rjust" | "center" => aligned(text, method, args)?,
        "isdigit" | "isdecimal" => {
            let () = from_args(args)?;
            if let Some(letter) = text.chars().find(|letter| !letter.is_ascii() && letter.is_numeric()) {
                return Err(wrong(format!("{method} of {letter:?} is known to Python only")));
            }
            (!text.is_empty() && text.chars().all(|letter| letter.is_ascii_digit())).into()
        }
        "isspace" => {
            let () = from_args(args)?;
            (!text.is_empty() && text.chars().all(is_space)).into()
        }
        "format" => {
            super::super::bounds::check_format(text)?;
            return Ok(None);
        }
        "title" => {
            let () = from_args(args)?;
            title(text).into()
        }
        _ => return Ok(None),
    }))
}

fn wrong(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.into())
}

/// Python also takes the four separators of ASCII for blanks.
pub(super) fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

pub(super) fn strip<'a>(text: &'a str, letters: Option<&str>, left: bool, right: bool) -> &'a str {
    let strippable = |letter: char| letters.map_or(is_space(letter), |letters| letters.contains(letter));
    let text = if left { text.trim_start_matches(strippable) } else { text };
    if right { text.trim_end_matches(strippable) } else { text }
}

fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (rest, kwargs): (Rest<Value>, Kwargs) = from_args(args)?;
    let argument = |at: usize, name: &str| -> Result<Option<Value>, Error> {
        let value: Option<Value> = rest.get(at).cloned().or(kwargs.get(name)?);
        Ok(value.filter(|value| !value.is_none()))
    };
    let (separator, most) = (argument(0, "sep")?, argument(1, "maxsplit")?);
    kwargs.assert_all_used()?;
    let most = most.and_then(|most| most.as_i64()).and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    let pieces = most.saturating_add(1);
    let collect = |pieces: Vec<&str>| pieces.into_iter().map(Value::from).collect();
    let Some(separator) = separator else { return Ok(collect(words(text, most, from_right))) };
    let separator = separator.as_str().ok_or_else(|| wrong("split: the separator must be a text"))?;
    if separator.is_empty() {
        return Err(wrong("split: empty separator"));
    }
    if !from_right {
        return Ok(collect(text.splitn(pieces, separator).collect()));
    }
    let mut pieces: Vec<&str> = text.rsplitn(pieces, separator).collect();
    pieces.reverse();
    Ok(collect(pieces))
}

/// Cut at blanks, of which the ends have none.
fn words(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = strip(text, None, true, true);
    while !rest.is_empty() {
        let cut = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = cut.filter(|_| words.len() < most) else {
            words.push(rest);
            break;
        };
        if from_right {
            let blank = rest[at..].chars().next().map_or(1, char::len_utf8);
            words.push(&rest[at + blank..]);
            rest = strip(&rest[..at], None, false, true);
        } else {
            words.push(&rest[..at]);
            rest = strip(&rest[at..], None, true, false);
        }
    }
    if from_right {
        words.reverse();
    }
    words
}

fn lines(text: &str, keep: bool) -> Vec<&str> {
    const ENDS: [char; 10] =
        ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ENDS) {
        let end = if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(1, char::len_utf8) };
        lines.push(&rest[..if keep { at + end } else { at }]);
        rest = &rest[at + end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn partition(text: &str, separator: &str, at: Option<usize>, from_right: bool) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(wrong("partition: empty separator"));
    }
    let parts = match at {
        Some(at) => [&text[..at], separator, &text[at + separator.len()..]],
        None if from_right => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from).to_vec())))
}

fn aligned(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    if width > MAX_WIDTH {
        return Err(wrong(format!("{method} to {width} letters, the limit is {MAX_WIDTH}")));
    }
    let missing = width.saturating_sub(text.chars().count());
    let fill = if method == "zfill" { "0" } else { fill.unwrap_or(" ") };
    let left = match method {
        "ljust" => 0,
        // Python puts the odd one to the left where the width is odd.
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let (sign, digits) = match text.strip_prefix(['-', '+']) {
        Some(digits) if method == "zfill" => text.split_at(text.len() - digits.len()),
        _ => ("", text),
    };
    Ok(format!("{sign}{}{digits}{}", fill.repeat(left), fill.repeat(missing - left)).into())
}

/// Every letter after one that is none is large.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for letter in text.chars() {
        if inside {
            out.extend(letter.to_lowercase());
        } else {
            out.extend(letter.to_uppercase());
        }
        inside = letter.is_alphabetic();
    }
    out
}

fn index(state: &State<'_, '_>, list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (wanted,): (&Value,) = from_args(args)?;
    for (at, item) in list.try_iter()?.checked().enumerate() {
        state.consume_fuel(1)?;
        if item? == *wanted {
            return Ok(at.into());
        }
    }
    Err(wrong(format!("{} is not in the list", super::repr::text(wanted)?)))
}
