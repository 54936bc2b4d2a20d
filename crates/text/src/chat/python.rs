//! What templates expect of Python, where the engine differs: how values print, methods, tests and a few filters.

mod methods;
pub(super) mod repr;
pub(super) mod view;

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, Value};

pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable => {
            minijinja::escape_formatter(out, state, &Value::from(repr::text(value)?))
        }
        _ => minijinja::escape_formatter(out, state, value),
    });
    environment.remove_global("debug");
    environment.remove_filter("pprint");
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_function("cycler", minijinja_contrib::globals::cycler);

    environment.add_filter("string", |value: &Value| match value.kind() {
        ValueKind::String => Ok(value.clone()),
        _ => repr::text(value).map(Value::from),
    });
    environment.add_filter("trim", |value: &Value, letters: Option<&str>| -> Result<String, Error> {
        Ok(methods::strip(&repr::text(value)?, letters, true, true).to_owned())
    });
    // Python's `attr` sees an object's own attributes, never a mapping's items; those that it would see are private.
    environment.add_filter("attr", |_: &Value, _: &str| Value::UNDEFINED);

    let iterable = |value: &Value| {
        let kind = value.kind();
        matches!(kind, ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Undefined)
    };
    environment.add_test("iterable", iterable);
    // Python asks for a length and items: a range has them.
    environment.add_test("sequence", iterable);
}
