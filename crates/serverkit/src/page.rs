//! Pages of a listing. A token is the key of the last item given out, so a listing that grows meanwhile repeats nothing.

use tailor_domain::Invalid;
use tailor_pb::common;

const DEFAULT_SIZE: u32 = 100;
const MAX_SIZE: u32 = 1000;
/// The longest key in use is far shorter.
const MAX_TOKEN_BYTES: usize = 256;

/// Which part of a listing is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    pub size: usize,
    /// The key after which the page begins; absent for the first.
    pub after: Option<String>,
}

impl Page {
    /// # Errors
    /// A size above the limit, or a token that no listing gave out.
    pub fn parse(wire: Option<common::Page>) -> Result<Self, Invalid> {
        let wire = wire.unwrap_or_default();
        if wire.size > MAX_SIZE {
            return Err(Invalid::new("page.size", format!("{} is above the limit of {MAX_SIZE}", wire.size)));
        }
        if wire.token.len() > MAX_TOKEN_BYTES {
            return Err(Invalid::new("page.token", "it is no token of ours; send next_page_token as it came"));
        }
        let size = if wire.size == 0 { DEFAULT_SIZE } else { wire.size } as usize;
        Ok(Self { size, after: Some(wire.token).filter(|token| !token.is_empty()) })
    }

    /// Takes this page's part of keys that are sorted ascending, and the token of the next page (empty at the end).
    pub fn ascending(&self, keys: Vec<String>) -> (Vec<String>, String) {
        self.cut(keys, |key, after| key > after)
    }

    /// As [`Page::ascending`] for keys sorted descending.
    pub fn descending(&self, keys: Vec<String>) -> (Vec<String>, String) {
        self.cut(keys, |key, after| key < after)
    }

    fn cut(&self, keys: Vec<String>, follows: impl Fn(&str, &str) -> bool) -> (Vec<String>, String) {
        let mut rest = keys.into_iter().filter(|key| self.after.as_deref().is_none_or(|after| follows(key, after)));
        let page: Vec<String> = rest.by_ref().take(self.size).collect();
        let next = match (rest.next(), page.last()) {
            (Some(_), Some(last)) => last.clone(),
            _ => String::new(),
        };
        (page, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(size: u32, token: &str) -> Page {
        Page::parse(Some(common::Page { size, token: token.into() })).expect("valid page")
    }

    #[test]
    fn pages_together_are_the_listing() {
        let keys: Vec<String> = ["a", "b", "c", "d", "e"].map(String::from).to_vec();
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let (part, next) = page(2, &token).ascending(keys.clone());
            seen.extend(part);
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(seen, keys);
    }

    #[test]
    fn an_exact_last_page_has_no_next_one() {
        let keys: Vec<String> = ["d", "c", "b", "a"].map(String::from).to_vec();
        assert_eq!(page(2, "c").descending(keys), (vec!["b".to_owned(), "a".to_owned()], String::new()));
    }

    #[test]
    fn a_size_above_the_limit_is_refused() {
        assert!(Page::parse(Some(common::Page { size: 1001, token: String::new() })).is_err());
        assert_eq!(Page::parse(None).expect("default").size, 100);
    }
}
