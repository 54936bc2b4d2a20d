//! Stop strings in a text that comes in pieces: what may still become one is held back until it is known.

/// Limits of what a request may ask for; the text that is held back is bounded by them.
pub const MAX_STOPS: usize = 16;
pub const MAX_STOP_BYTES: usize = 256;

#[derive(Debug, Default)]
pub struct StopScanner {
    stops: Vec<String>,
    held: String,
}

impl StopScanner {
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes more text; gives what is certain, and whether a stop string follows it.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let certain = self.held.len() - self.may_become();
        let rest = self.held.split_off(certain);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// The rest, when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end that are a stop string's beginning.
    fn may_become(&self) -> usize {
        let beginning = |stop: &String| {
            let longest = stop.len().saturating_sub(1).min(self.held.len());
            let fits = |size: &usize| self.held.is_char_boundary(self.held.len() - size);
            let mut sizes = (1..=longest).rev().filter(fits);
            sizes.find(|size| stop.as_bytes().starts_with(&self.held.as_bytes()[self.held.len() - size..])).unwrap_or(0)
        };
        self.stops.iter().map(beginning).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut scanner = StopScanner::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut whole = String::new();
        for piece in pieces {
            let (text, stopped) = scanner.push(piece);
            whole.push_str(&text);
            if stopped {
                return (whole, true);
            }
        }
        whole.push_str(&scanner.finish());
        (whole, false)
    }

    #[test]
    fn a_stop_string_ends_the_text_however_it_is_cut() {
        for pieces in [&["one STOP two"][..], &["one ST", "OP two"], &["one ", "S", "T", "O", "P"], &["one S", "TOP"]] {
            assert_eq!(said(&["STOP"], pieces), ("one ".into(), true), "{pieces:?}");
        }
    }

    #[test]
    fn what_only_began_like_one_is_given_out() {
        assert_eq!(said(&["STOP"], &["one ST", "ART"]), ("one START".into(), false));
        assert_eq!(said(&["aab"], &["aa", "aab"]), ("aa".into(), true));
        assert_eq!(said(&["ü!"], &["ü", "ä"]), ("üä".into(), false));
        assert_eq!(said(&[], &["any", "thing"]), ("anything".into(), false));
    }

    #[test]
    fn the_first_of_several_counts() {
        assert_eq!(said(&["world", "lo"], &["hello ", "world"]), ("hel".into(), true));
    }
}
