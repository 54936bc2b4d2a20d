//! Words for messages: what exists, when what was asked for does not.

/// Names listed in a message before it only counts.
const LISTED: usize = 10;

/// `the bases are a, b and c`, or `none` where there is nothing to list.
pub fn one_of(lead: &str, names: &[String], none: &str) -> String {
    let shown: Vec<&str> = names.iter().take(LISTED).map(String::as_str).collect();
    let more = names.len() - shown.len();
    match (shown.as_slice(), more) {
        ([], _) => none.to_owned(),
        ([only], 0) => format!("{lead} {only}"),
        ([first @ .., last], 0) => format!("{lead} {} and {last}", first.join(", ")),
        (shown, more) => format!("{lead} {} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_lists_what_exists_and_counts_the_rest() {
        let names = |count: usize| (0..count).map(|n| format!("n{n}")).collect::<Vec<_>>();
        assert_eq!(one_of("it has", &names(0), "it has none"), "it has none");
        assert_eq!(one_of("it has", &names(1), ""), "it has n0");
        assert_eq!(one_of("it has", &names(3), ""), "it has n0, n1 and n2");
        assert!(one_of("it has", &names(12), "").ends_with("n9 and 2 more"));
    }
}
