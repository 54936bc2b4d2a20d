//! What `items()`, `keys()` and `values()` of a mapping give: to be gone through, not a list.

use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Tuple, from_args};
use minijinja::{Error, Value};

#[derive(Debug)]
pub(in super::super) struct View {
    pub kind: &'static str,
    items: Vec<Value>,
}

impl View {
    /// Nothing where the mapping's method is another.
    pub(super) fn of(mapping: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
        let Some(kind) = ["items", "keys", "values"].into_iter().find(|kind| *kind == method) else { return Ok(None) };
        let () = from_args(args)?;
        let mut items = Vec::new();
        for key in mapping.try_iter()?.checked() {
            let key = key?;
            items.push(match kind {
                "keys" => key,
                "values" => mapping.get_item(&key)?,
                _ => {
                    let value = mapping.get_item(&key)?;
                    Value::from(Tuple::from([key, value]))
                }
            });
        }
        Ok(Some(Value::from_object(Self { kind, items })))
    }
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        Some(self.items.len())
    }
}
