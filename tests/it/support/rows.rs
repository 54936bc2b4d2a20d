//! Rows to train on.

/// `count` different rows of the shipped format, nothing wrong with any.
pub fn csv(count: usize) -> String {
    const WHO: [&str; 6] = ["anna", "ben", "carla", "dan", "eve", "finn"];
    const DOES: [&str; 5] = ["sees", "paints", "sells", "finds", "likes"];
    const WHAT: [&str; 7] = ["a boat", "the map", "two cups", "his coat", "a song", "the clock", "some tea"];
    const WHEN: [&str; 3] = ["today", "at noon", "in may"];
    let mut text = String::from("id,language,text,expected text\n");
    assert!(count <= WHO.len() * DOES.len() * WHAT.len() * WHEN.len(), "not enough words for {count} rows");
    for row in 0..count {
        let (who, rest) = (WHO[row % WHO.len()], row / WHO.len());
        let (does, rest) = (DOES[rest % DOES.len()], rest / DOES.len());
        let (what, rest) = (WHAT[rest % WHAT.len()], rest / WHAT.len());
        let input = format!("{who} {does} {what} {}", WHEN[rest % WHEN.len()]);
        let mut target = input.clone();
        target[..1].make_ascii_uppercase();
        text.push_str(&format!("{},en-GB,{input},{target}.\n", row + 1));
    }
    text
}
