//! Where the engine's own account of a template's work has holes: lists that double, values that nest or hold themselves,
//! numbers in format strings, and code so deep that it takes the stack.

use std::cell::RefCell;
use std::thread;

use minijinja::value::{ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, context};

/// The filter that the left operand of every `+` goes through.
pub(super) const COUNTED: &str = "__counted";
/// The filter that both operands of every `*` go through.
pub(super) const SINGLE: &str = "__single";
/// Items of a list to be joined that cost a unit of fuel.
const ITEMS_A_UNIT: u64 = 2;
/// `elif` of one template; the parser calls itself for each.
const MAX_ELIFS: usize = 500;
/// Namespaces of one run; real templates have a few.
const MAX_NAMESPACES: usize = 1000;
/// Letters that a format string may ask for at once.
const MAX_WIDTH: usize = 10_000;
/// Fuel and the template's length bound how deep a value or an expression can be; dropping either takes some hundred
/// bytes of the stack a level. Only what is used of this becomes memory.
const STACK_BYTES: usize = 64 << 20;
/// Operators of one tag: at each the parser looks for a constant in all that stands before it.
const MAX_OPERATORS: usize = 2000;
/// Words after which a sign is no operator.
const KEYWORDS: [&str; 11] = ["and", "or", "not", "in", "is", "if", "else", "elif", "for", "set", "do"];

/// Runs on a stack that no template can use up. Nothing that holds values may be in the answer.
pub(super) fn on_large_stack<T: Send>(work: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    thread::scope(|scope| {
        let handle =
            thread::Builder::new().name("chat-template".into()).stack_size(STACK_BYTES).spawn_scoped(scope, work)?;
        handle.join().or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// # Errors
/// More branches than the parser's recursion is good for.
pub(super) fn check_source(source: &str) -> Result<(), String> {
    match source.matches("elif").count() {
        count if count > MAX_ELIFS => Err(format!("{count} elif, the limit is {MAX_ELIFS}")),
        _ => Ok(()),
    }
}

/// The engine joins lists without a charge, some thirty times lazily and then at once: `x + x` in a loop takes all memory.
/// So the left one is charged first, and none grows faster than what is paid for.
pub(super) fn counted(state: &State<'_, '_>, value: Value) -> Result<Value, Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) || value.is_tuple() {
        return Ok(value);
    }
    if let Some(count) = value.len() {
        state.consume_fuel(count as u64 / ITEMS_A_UNIT)?;
        return Ok(value);
    }
    let mut items = Vec::new();
    for item in value.try_iter()?.checked() {
        state.consume_fuel(1)?;
        items.push(item?);
    }
    Ok(Value::from(items))
}

/// A list times a number costs the engine nothing and whoever goes through it a hundred million steps.
pub(super) fn single(value: Value) -> Result<Value, Error> {
    match matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) && !value.is_tuple() {
        true => Err(Error::new(ErrorKind::InvalidOperation, "a list cannot be repeated with *; loop over range(…)")),
        false => Ok(value),
    }
}

/// A tag with the filters after the operands of every `+` and `*`. They leave values as they are, so precedence does not
/// matter; a longer sum has its parts counted one by one.
///
/// # Errors
/// The tag has too many operators.
pub(super) fn with_counted(tag: &str) -> Result<String, String> {
    let mut out = String::with_capacity(tag.len());
    let mut operand = None; // where the last one ends, if it came just before
    let mut depth = 0; // of brackets
    let mut factor = None; // at which depth the right operand of a product is
    let mut operators = 0;
    let body = tag.len().saturating_sub(2);
    let mut at = 0;
    while let Some(letter) = tag[at..].chars().next() {
        let end = match letter {
            _ if at < 2 || at >= body => at + letter.len_utf8(),
            '"' | '\'' => end_of_text(tag, at, letter),
            '*' if tag[at..].starts_with("**") => at + 2,
            _ if is_word(letter) => tag[at..].find(|letter| !is_word(letter)).map_or(tag.len(), |length| at + length),
            _ => at + letter.len_utf8(),
        };
        let token = &tag[at..end];
        let is_end = at >= body || !(letter.is_whitespace() || matches!(letter, '.' | '(' | '[' | '|'));
        if let (Some(place), true) = (operand, is_end && factor == Some(depth)) {
            out.insert_str(place, &format!("|{SINGLE}"));
            factor = None;
        }
        // A sign at either edge is for whitespace.
        if let (Some(place), "+" | "*", true) = (operand, token, end < body) {
            out.insert_str(place, &format!("|{}", if token == "+" { COUNTED } else { SINGLE }));
            factor = if token == "*" { Some(depth) } else { factor };
        }
        match letter {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        out.push_str(token);
        operators += usize::from(matches!(token, "+" | "-" | "*" | "**" | "/" | "%" | "~" | "and" | "or" | "not"));
        let ends_operand =
            is_word(letter) && !KEYWORDS.contains(&token) || matches!(letter, '"' | '\'' | ')' | ']' | '}');
        if at >= 2 && !letter.is_whitespace() {
            operand = ends_operand.then_some(out.len());
        }
        at = end;
    }
    match operators > MAX_OPERATORS {
        true => Err(format!("{operators} operators in one tag, the limit is {MAX_OPERATORS}")),
        false => Ok(out),
    }
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// After the closing quote, or the whole rest.
fn end_of_text(tag: &str, start: usize, quote: char) -> usize {
    let mut letters = tag[start + 1..].char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => drop(letters.next()),
            _ if letter == quote => return start + 1 + at + 1,
            _ => {}
        }
    }
    tag.len()
}

thread_local! {
    /// Those of the run that this thread is for.
    static NAMESPACES: RefCell<Vec<Value>> = const { RefCell::new(Vec::new()) };
}

/// The engine's, remembered: a template can put a namespace into itself, and then nothing drops either.
pub(super) fn namespace(defaults: Option<ValueOrKwargs>) -> Result<Value, Error> {
    let made = minijinja::functions::namespace(defaults)?;
    NAMESPACES.with_borrow_mut(|all| {
        if all.len() == MAX_NAMESPACES {
            let problem = format!("more than {MAX_NAMESPACES} namespaces");
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        all.push(made.clone());
        Ok(made)
    })
}

/// Empties this thread's namespaces. What was there when one was made cannot hold it, so it is enough to overwrite what can
/// be assigned, which only a template can do.
pub(super) fn empty_namespaces(environment: &Environment<'_>) {
    for made in NAMESPACES.take() {
        let names = made.try_iter().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned));
        let assigned =
            names.filter(|name| name.chars().all(is_word)).map(|name| format!("{{% set made.{name} = 0 %}}"));
        let source: String = assigned.collect();
        // A name that cannot be assigned was not.
        let _ = environment.render_str(&source, context! { made });
    }
}

/// The engine makes what a format string asks for before it charges.
pub(super) fn check_format(format: &str) -> Result<(), Error> {
    let widths = format.split('{').skip(1).flat_map(|field| field.split('}').next());
    for number in widths.flat_map(|field| field.split(|letter: char| !letter.is_ascii_digit())) {
        if !number.is_empty() && number.parse::<usize>().map_or(true, |number| number > MAX_WIDTH) {
            let problem = format!("format to {number:.40} letters, the limit is {MAX_WIDTH}");
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_left_operand_of_a_sum_or_a_product_is_counted() {
        for (tag, expected) in [
            ("{{ a + b }}", "{{ a|__counted + b }}"),
            ("{%- set ns.x = ns.x+[1] -%}", "{%- set ns.x = ns.x|__counted+[1] -%}"),
            ("{{ 'a + \\' b' + f(x)[1:] * 2 }}", "{{ 'a + \\' b'|__counted + f(x)[1:]|__single * 2|__single }}"),
            ("{{ 2 * [x][0].y | f(1, 2) + 1 }}", "{{ 2|__single * [x][0].y | f(1, 2)|__counted|__single + 1 }}"),
            ("{{ f(2 * -[1]) * 3 ** 2 }}", "{{ f(2|__single * -[1]|__single)|__single * 3|__single ** 2 }}"),
            ("{% set x = 2*x%}", "{% set x = 2|__single*x|__single%}"),
            ("{{+ -a ** b, (+1) +}}", "{{+ -a ** b, (+1) +}}"),
            ("{% if not +1 or f(*a, **b) %}", "{% if not +1 or f(*a, **b) %}"),
            ("{{ x | default('ü') + {'a': 1} }}", "{{ x | default('ü')|__counted + {'a': 1} }}"),
            ("{{ a +}}", "{{ a +}}"),
        ] {
            assert_eq!(with_counted(tag).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn a_namespace_that_holds_itself_is_emptied() {
        let mut environment = Environment::new();
        environment.add_function("namespace", namespace);
        let source = "{% set a = namespace(x=1) %}{% set b = namespace(a=a) %}{% set a.b = [b] %}{% set a.if = a %}";
        environment.render_str(source, ()).expect("renders");
        let made = NAMESPACES.with_borrow(|all| all[0].clone());
        assert_eq!(made.get_attr("b").expect("there").len(), Some(1));
        empty_namespaces(&environment);
        assert!(["x", "b", "if"].iter().all(|name| made.get_attr(name).expect("there") == Value::from(0)), "{made}");
        let many = "{% for i in range(1001) %}{% set a = namespace() %}{% endfor %}";
        assert!(environment.render_str(many, ()).expect_err("too many").to_string().contains("1000 namespaces"));
    }

    #[test]
    fn widths_of_a_format_string_are_limited() {
        assert!(check_format("year 123456 {:>10} {0:.3f} {{x}}").is_ok());
        for format in ["{:1000000000}", "{:.99999f}", "{:{}}{:99999999999999999999999}"] {
            assert!(check_format(format).is_err(), "{format}");
        }
    }
}
