//! OpenAI's pages: `limit` items after the one that `after` names.

use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Debug, Default, Deserialize)]
pub struct Paging {
    after: Option<String>,
    limit: Option<usize>,
}

impl Paging {
    /// Items must have ids.
    pub fn page(&self, items: Vec<Value>, default: usize) -> Value {
        let after = |items: &[Value]| match &self.after {
            Some(after) => items.iter().position(|item| item["id"] == after.as_str()).map_or(items.len(), |at| at + 1),
            None => 0,
        };
        let from = after(&items);
        let limit = self.limit.unwrap_or(default).clamp(1, 10_000);
        let has_more = items.len() > from + limit;
        let data: Vec<Value> = items.into_iter().skip(from).take(limit).collect();
        let id = |item: Option<&Value>| item.map(|item| item["id"].clone());
        let (first, last) = (id(data.first()), id(data.last()));
        json!({ "object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_one_another_without_gap_or_repetition() {
        let items = || (0..5).map(|n| json!({ "id": format!("item-{n}") })).collect::<Vec<_>>();
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let page = Paging { after: after.take(), limit: Some(2) }.page(items(), 20);
            seen.extend(page["data"].as_array().expect("data").clone());
            if page["has_more"] == false {
                break;
            }
            after = page["last_id"].as_str().map(str::to_owned);
        }
        assert_eq!(seen, items());
        let beyond = Paging { after: Some("nobody".into()), limit: None }.page(items(), 20);
        assert_eq!(beyond["data"], json!([]));
    }
}
