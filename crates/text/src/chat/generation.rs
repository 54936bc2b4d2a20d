//! `{% generation %}…{% endgeneration %}`: what the assistant says, and where it stands in the text.
//!
//! The engine does not know the tag, so it becomes a scope of its own (in Python's Jinja it is one too) that writes a mark
//! before and after what it encloses. The marks are noncharacters, which are no text, or nothing where nobody asks.

use std::ops::Range;

use super::bounds::with_counted;

/// Noncharacters: Unicode keeps them for a program's own use.
pub(super) const START: char = '\u{FDD0}';
pub(super) const END: char = '\u{FDD1}';
/// The variables that write them.
pub(super) const START_VARIABLE: &str = "__generation_start";
pub(super) const END_VARIABLE: &str = "__generation_end";

/// The template with the tag replaced, wherever it is a tag and not in a comment, a text or a raw block.
///
/// # Errors
/// A tag that is too much for the engine.
pub(super) fn replace_tags(source: &str) -> Result<String, String> {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let length = match from.as_bytes().get(1) {
            Some(b'#') => from.find("#}").map(|at| at + 2),
            Some(b'{') => end_of(from, "}}"),
            Some(b'%') => end_of(from, "%}"),
            _ => Some(1),
        };
        // What never ends is the engine's to complain about.
        let (tag, after) = from.split_at(length.unwrap_or(from.len()));
        rest = after;
        let inside = tag.strip_prefix("{%").and_then(|tag| tag.strip_suffix("%}"));
        match inside.map(|inside| inside.trim_matches(|c: char| "-+".contains(c) || c.is_whitespace())) {
            Some("generation") => {
                let (open, close) = edges(tag);
                out.push_str(&format!("{open} with %}}{{{{ {START_VARIABLE} }}}}{{% if true {close}"));
            }
            Some("endgeneration") => {
                let (open, close) = edges(tag);
                out.push_str(&format!("{open} endif %}}{{{{ {END_VARIABLE} }}}}{{% endwith {close}"));
            }
            Some("raw") => {
                let raw = end_of_raw(rest);
                out.push_str(tag);
                out.push_str(&rest[..raw]);
                rest = &rest[raw..];
            }
            _ if !tag.starts_with("{{") && !tag.starts_with("{%") => out.push_str(tag),
            _ if tag.contains("\\U") => out.push_str(&with_counted(&without_long_escapes(tag))?),
            _ => out.push_str(&with_counted(tag)?),
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// Python's `\U0001F642` as the letter itself: the engine knows only the shorter escapes.
fn without_long_escapes(tag: &str) -> String {
    let mut out = String::with_capacity(tag.len());
    let mut rest = tag;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let code = escape.strip_prefix("\\U").and_then(|digits| digits.get(..8));
        let letter = code.and_then(|code| u32::from_str_radix(code, 16).ok()).and_then(char::from_u32);
        let taken = match letter {
            Some(letter) if !"'\"\\".contains(letter) => {
                out.push(letter);
                10
            }
            // The letter after a backslash belongs to it, be it another backslash.
            _ => {
                let taken = 1 + escape[1..].chars().next().map_or(0, char::len_utf8);
                out.push_str(&escape[..taken]);
                taken
            }
        };
        rest = &escape[taken..];
    }
    out + rest
}

/// The tag's own beginning and end with their signs for whitespace.
fn edges(tag: &str) -> (&str, &str) {
    let signed = |sign: Option<&u8>| matches!(sign, Some(b'-' | b'+'));
    let bytes = tag.as_bytes();
    let open = if signed(bytes.get(2)) { 3 } else { 2 };
    let close = if signed(bytes.get(tag.len() - 3)) { 3 } else { 2 };
    (&tag[..open], &tag[tag.len() - close..])
}

/// Where an expression that starts `from` ends, after `closing`; texts in it may hold anything.
fn end_of(from: &str, closing: &str) -> Option<usize> {
    let mut quote = None;
    let mut letters = from.char_indices().skip(2);
    while let Some((at, letter)) = letters.next() {
        match quote {
            Some(_) if letter == '\\' => {
                letters.next();
            }
            Some(open) if letter == open => quote = None,
            Some(_) => {}
            None if letter == '"' || letter == '\'' => quote = Some(letter),
            None if from[at..].starts_with(closing) => return Some(at + closing.len()),
            None => {}
        }
    }
    None
}

/// Where the tag that ends a raw block starts.
fn end_of_raw(rest: &str) -> usize {
    let is_end = |at: usize| {
        let tag = rest[at + 2..].trim_start_matches(['-', '+']).trim_start();
        tag.starts_with("endraw")
    };
    rest.match_indices("{%").map(|(at, _)| at).find(|at| is_end(*at)).unwrap_or(rest.len())
}

/// The text without the marks, and the byte ranges that stood between them, joined where they are nested. None where an end
/// has no start, or a start no end.
pub(super) fn spans(marked: &str) -> Option<(String, Vec<Range<usize>>)> {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let (mut depth, mut start) = (0u32, 0);
    for letter in marked.chars() {
        match letter {
            START => {
                if depth == 0 {
                    start = text.len();
                }
                depth += 1;
            }
            END => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    spans.push(start..text.len());
                }
            }
            other => text.push(other),
        }
    }
    (depth == 0).then_some((text, spans))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_in_a_comment_a_text_or_a_raw_block_is_none() {
        for same in [
            "{# {% generation %} #}",
            "{{ '{% generation %}' }}",
            "{% if '%}{% generation %}' %}{% endif %}",
            "{% raw %}{% generation %}{% endraw %}",
            "{%- raw -%}{% endgeneration %}{%- endraw -%}",
            "{% set generation = 1 %}",
            "{ {% never ends",
            "{{ 'a \\' {% generation %}' }}",
        ] {
            assert_eq!(replace_tags(same).as_deref(), Ok(same));
        }
        let replaced = replace_tags("{# ' #}{%- generation +%}x{% endgeneration -%}").expect("few operators");
        assert_eq!(
            replaced,
            "{# ' #}{%- with %}{{ __generation_start }}{% if true +%}x{% endif %}{{ __generation_end }}{% endwith -%}"
        );
    }

    #[test]
    fn spans_are_bytes_and_nested_ones_join() {
        let marked = format!("ü{START}a{START}ß{END}{END}b{START}{END}");
        assert_eq!(spans(&marked), Some(("üaßb".to_owned(), vec![2..5, 6..6])));
        for torn in [format!("a{START}b"), format!("a{END}b"), format!("{END}a{START}")] {
            assert_eq!(spans(&torn), None, "{torn:?}");
        }
    }
}
