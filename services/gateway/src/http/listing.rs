//! OpenAI's pages: `limit` items after the one that `after` names.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::error::ApiError;

/// Items of one page.
const MAX_ITEMS: usize = 10_000;

#[derive(Debug, Default)]
pub struct Paging {
    after: Option<String>,
    limit: Option<usize>,
}

impl Paging {
    /// # Errors
    /// `limit` is no number, or outside its limits.
    pub fn of(params: &HashMap<String, String>) -> Result<Self, ApiError> {
        let limit = params.get("limit").map(|text| match text.parse() {
            Ok(limit @ 1..=MAX_ITEMS) => Ok(limit),
            _ => Err(ApiError::param("limit", format!("{text:?} is no number of items from 1 to {MAX_ITEMS}"))),
        });
        Ok(Self { after: params.get("after").cloned(), limit: limit.transpose()? })
    }

    /// Items must have ids.
    pub fn page(&self, items: Vec<Value>, default: usize) -> Value {
        let after = |items: &[Value]| match &self.after {
            Some(after) => items.iter().position(|item| item["id"] == after.as_str()).map_or(items.len(), |at| at + 1),
            None => 0,
        };
        let from = after(&items);
        let limit = self.limit.unwrap_or(default);
        let has_more = items.len() > from + limit;
        let data: Vec<Value> = items.into_iter().skip(from).take(limit).collect();
        let id = |item: Option<&Value>| item.map(|item| item["id"].clone());
        let (first, last) = (id(data.first()), id(data.last()));
        json!({ "object": "list", "data": data, "first_id": first, "last_id": last, "has_more": has_more })
    }
}

/// By the time of creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    NewestFirst,
    OldestFirst,
}

impl Order {
    /// # Errors
    /// `order` is neither `asc` nor `desc`.
    pub fn of(params: &HashMap<String, String>) -> Result<Self, ApiError> {
        match params.get("order").map(String::as_str) {
            None | Some("desc") => Ok(Self::NewestFirst),
            Some("asc") => Ok(Self::OldestFirst),
            Some(other) => Err(ApiError::param("order", format!("{other:?} is no order; use asc or desc"))),
        }
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

    #[test]
    fn a_limit_that_is_no_number_of_items_is_refused_with_its_limits() {
        let of = |limit: &str| Paging::of(&HashMap::from([("limit".to_owned(), limit.to_owned())]));
        assert_eq!(of("7").expect("a limit").limit, Some(7));
        for wrong in ["x", "0", "-1", "10001", ""] {
            let body = of(wrong).expect_err("refused").body();
            assert_eq!(body["error"]["param"], "limit");
            assert!(body["error"]["message"].as_str().expect("words").contains("from 1 to 10000"), "{body}");
        }
    }

    #[test]
    fn the_newest_comes_first_unless_the_oldest_is_asked_for() {
        let of = |order: &str| Order::of(&HashMap::from([("order".to_owned(), order.to_owned())]));
        assert_eq!(Order::of(&HashMap::new()).expect("OpenAI's default"), Order::NewestFirst);
        assert_eq!((of("asc").expect("known"), of("desc").expect("known")), (Order::OldestFirst, Order::NewestFirst));
        assert_eq!(of("up").expect_err("refused").body()["error"]["param"], "order");
    }
}
