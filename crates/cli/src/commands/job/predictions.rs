//! `tailor job predictions`: input, target, and what base and adapter answered, one under the other.

use console::{Style, style};
use serde_json::{Value, json};
use tailor_pb::common::{Answer, PredictedRow, PredictionFilter};
use tailor_pb::training as pb;

use crate::connect::Endpoints;
use crate::output::Output;

/// Words of a text up to which it is compared word by word; beyond, it is shown as it is.
const MAX_WORDS: usize = 2000;

pub async fn list(endpoints: &Endpoints, id: &str, filter: PredictionFilter, output: &Output) -> anyhow::Result<()> {
    let request = pb::ListPredictionsRequest { job_id: id.to_owned(), filter: Some(filter) };
    let mut rows = endpoints.trainer()?.list_predictions(request).await?.into_inner();
    let (mut count, mut right) = (0_u64, 0_u64);
    while let Some(row) = rows.message().await? {
        count += 1;
        right += u64::from(row.adapter.as_ref().is_some_and(|answer| answer.exact));
        output.show(&describe(&row), || print(&row))?;
    }
    output.say(match count {
        0 => "no row is like that".to_owned(),
        _ => format!("{right} of {count} rows right"),
    });
    Ok(())
}

fn describe(row: &PredictedRow) -> Value {
    let answer = |answer: &Option<Answer>| {
        answer
            .as_ref()
            .map(|answer| json!({ "text": answer.text, "exact": answer.exact, "edit_distance": answer.edit_distance }))
    };
    json!({
        "row": row.row,
        "input": row.input,
        "target": row.target,
        "base": answer(&row.base),
        "adapter": answer(&row.adapter),
    })
}

fn print(row: &PredictedRow) {
    println!("{} {}", style(format!("row {}", row.row)).bold(), style(one_line(&row.input)).dim());
    println!("  target   {}", one_line(&row.target));
    for (name, answer) in [("base   ", &row.base), ("adapter", &row.adapter)] {
        let Some(answer) = answer else { continue };
        match answer.exact {
            true => println!("  {name}  {} {}", one_line(&answer.text), style("✓").green()),
            false => println!(
                "  {name}  {} {} {} off",
                marked(&one_line(&answer.text), &one_line(&row.target)),
                style("✗").red(),
                answer.edit_distance
            ),
        }
    }
    println!();
}

/// A text from outside on one line, with nothing in it that a terminal would obey.
fn one_line(text: &str) -> String {
    let shown = |character: char| match character {
        '\n' => '⏎',
        other if other.is_control() => '\u{fffd}',
        other => other,
    };
    text.trim().chars().map(shown).collect()
}

/// An answer with what it has too much and what it lacks against the target, word by word.
fn marked(answer: &str, target: &str) -> String {
    let (answer, target): (Vec<&str>, Vec<&str>) = (answer.split(' ').collect(), target.split(' ').collect());
    if answer.len().max(target.len()) > MAX_WORDS {
        return answer.join(" ");
    }
    let mut out = Vec::new();
    for (kind, words) in differences(&answer, &target) {
        let words = words.join(" ");
        out.push(match kind {
            Kind::Same => words,
            Kind::TooMuch => Style::new().red().apply_to(format!("[-{words}-]")).to_string(),
            Kind::Lacking => Style::new().green().apply_to(format!("{{+{words}+}}")).to_string(),
        });
    }
    out.join(" ")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Same,
    TooMuch,
    Lacking,
}

/// Runs of words along a longest common subsequence; what is too much stands before what is lacking.
fn differences<'a>(answer: &[&'a str], target: &[&'a str]) -> Vec<(Kind, Vec<&'a str>)> {
    // lengths[i][j]: the longest common subsequence of answer[i..] and target[j..].
    let mut lengths = vec![vec![0_u32; target.len() + 1]; answer.len() + 1];
    for i in (0..answer.len()).rev() {
        for j in (0..target.len()).rev() {
            lengths[i][j] = match answer[i] == target[j] {
                true => lengths[i + 1][j + 1] + 1,
                false => lengths[i + 1][j].max(lengths[i][j + 1]),
            };
        }
    }
    let mut runs: Vec<(Kind, Vec<&str>)> = Vec::new();
    let mut push = |kind: Kind, word| match runs.last_mut() {
        Some((last, words)) if *last == kind => words.push(word),
        _ => runs.push((kind, vec![word])),
    };
    let (mut i, mut j) = (0, 0);
    while i < answer.len() || j < target.len() {
        match (answer.get(i), target.get(j)) {
            (Some(ours), Some(theirs)) if ours == theirs => {
                push(Kind::Same, *ours);
                (i, j) = (i + 1, j + 1);
            }
            (Some(ours), theirs) if theirs.is_none() || lengths[i + 1][j] >= lengths[i][j + 1] => {
                push(Kind::TooMuch, *ours);
                i += 1;
            }
            (_, Some(theirs)) => {
                push(Kind::Lacking, *theirs);
                j += 1;
            }
            (_, None) => break,
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(answer: &str, target: &str) -> String {
        console::strip_ansi_codes(&marked(answer, target)).into_owned()
    }

    #[test]
    fn an_answer_shows_what_it_has_too_much_and_what_it_lacks() {
        assert_eq!(plain("she go home now", "she goes home now"), "she [-go-] {+goes+} home now");
        assert_eq!(plain("she goes", "she goes home now"), "she goes {+home now+}");
        assert_eq!(plain("oh she goes", "she goes"), "[-oh-] she goes");
        assert_eq!(plain("a b", "c d"), "[-a b-] {+c d+}");
        let long = "word ".repeat(MAX_WORDS + 1);
        assert_eq!(plain(&long, "x"), long);
    }

    #[test]
    fn a_terminal_obeys_nothing_that_a_model_says() {
        assert_eq!(one_line(" a\nb\u{1b}[2Jc\r "), "a⏎b\u{fffd}[2Jc");
    }
}
