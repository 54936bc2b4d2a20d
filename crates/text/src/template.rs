//! How an input becomes a prompt: text with `{input}` in it. `{{` and `}}` are literal braces.

use std::fmt;

use crate::error::{Error, Result};

const MAX_BYTES: usize = 16 << 10;
const PLACEHOLDER: &str = "input";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptTemplate {
    /// The literal texts before, between and after the placeholders: one more than there are placeholders.
    literals: Vec<String>,
}

impl Default for PromptTemplate {
    /// The input as it is.
    fn default() -> Self {
        Self { literals: vec![String::new(), String::new()] }
    }
}

impl PromptTemplate {
    /// Empty text means `{input}`. The name of the dataset's input column may stand for `input`; the template is kept
    /// with `{input}`, so that serving needs no dataset.
    ///
    /// # Errors
    /// No placeholder, an unknown one, or an unpaired brace; says at which character.
    pub fn parse(text: &str, input_column: Option<&str>) -> Result<Self> {
        let bad = |problem: String| Error::PromptTemplate { problem };
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.len() > MAX_BYTES {
            return Err(bad(format!("{} bytes, the limit is {MAX_BYTES}", text.len())));
        }
        let mut literals = vec![String::new()];
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let position = text.len() - rest.len() + at + 1;
            let (before, from) = rest.split_at(at);
            let literal = literals.last_mut().ok_or_else(|| bad("has no text".into()))?;
            literal.push_str(before);
            if let Some(after) = from.strip_prefix("{{") {
                literal.push('{');
                rest = after;
            } else if let Some(after) = from.strip_prefix("}}") {
                literal.push('}');
                rest = after;
            } else if from.starts_with('}') {
                return Err(bad(format!("the }} at byte {position} closes nothing; write }}}} for a brace")));
            } else {
                let Some((name, after)) = from[1..].split_once('}') else {
                    return Err(bad(format!("the {{ at byte {position} is never closed; write {{{{ for a brace")));
                };
                let known = name.trim() == PLACEHOLDER || input_column.is_some_and(|column| column == name.trim());
                if !known {
                    return Err(bad(format!("{{{name}}} is not known; write {{{PLACEHOLDER}}}")));
                }
                literals.push(String::new());
                rest = after;
            }
        }
        if let Some(literal) = literals.last_mut() {
            literal.push_str(rest);
        }
        if literals.len() < 2 {
            return Err(bad(format!("{text:?} has no {{{PLACEHOLDER}}}; every row would give the same prompt")));
        }
        Ok(Self { literals })
    }

    /// Bytes that [`Self::render`] makes of an input of so many: it may stand in the template any number of times.
    pub fn rendered_bytes(&self, input: usize) -> usize {
        let literals: usize = self.literals.iter().map(String::len).sum();
        self.literals.len().saturating_sub(1).saturating_mul(input).saturating_add(literals)
    }

    pub fn render(&self, input: &str) -> String {
        self.literals.join(input)
    }
}

impl fmt::Display for PromptTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped: Vec<String> =
            self.literals.iter().map(|literal| literal.replace('{', "{{").replace('}', "}}")).collect();
        f.write_str(&escaped.join("{input}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_renders_and_reads_back_as_it_is_kept() {
        let template = PromptTemplate::parse("Correct {text} as JSON {{}}: {input}", Some("text")).expect("valid");
        assert_eq!(template.render("a {b} c"), "Correct a {b} c as JSON {}: a {b} c");
        assert_eq!(template.rendered_bytes(7), template.render("a {b} c").len());
        assert_eq!(template.to_string(), "Correct {input} as JSON {{}}: {input}");
        assert_eq!(PromptTemplate::parse(&template.to_string(), None).expect("own output"), template);
        assert_eq!(PromptTemplate::parse("", None).expect("empty").render("x"), "x");
    }

    #[test]
    fn a_wrong_template_says_what_is_wrong_where() {
        for (text, wanted) in [
            ("Correct the grammar:", "has no {input}"),
            ("Correct {txt}", "{txt} is not known"),
            ("Correct {input", "byte 9 is never closed"),
            ("Correct } {input}", "byte 9 closes nothing"),
        ] {
            let error = PromptTemplate::parse(text, Some("text")).expect_err(text);
            assert!(error.to_string().contains(wanted), "{text}: {error}");
        }
        let long = format!("{{input}}{}", "x".repeat(MAX_BYTES));
        assert!(PromptTemplate::parse(&long, None).is_err(), "a template is bounded");
    }
}
