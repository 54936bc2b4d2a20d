//! Comparing predictions with the hidden targets. What goes back is figures, and the targets of a few rows for people to
//! look at: always the first rows of the split, so that no number of calls reveals more than [`MAX_SAMPLES`] of them.

use std::collections::{BTreeMap, HashMap};

use tailor_domain::{DatasetName, Invalid, Version};
use tailor_text::metrics::Scorer;

use crate::{Datasets, Result, rows};

pub const MAX_SAMPLES: u32 = 20;

/// What a model answered for a row of the validation split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prediction {
    pub row: u32,
    pub text: String,
}

/// A row with its target revealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub row: u32,
    pub input: String,
    pub target: String,
    pub prediction: String,
}

/// Figures by name, with their intervals.
pub type Figures = BTreeMap<String, f64>;

#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    pub metrics: Figures,
    pub samples: Vec<Sample>,
}

impl Datasets {
    /// # Errors
    /// [`crate::Error::NotFound`]; [`crate::Error::Invalid`]: a row that the split does not have, or the same one twice.
    pub async fn score(
        &self,
        name: &DatasetName,
        version: Option<Version>,
        predictions: Vec<Prediction>,
        samples: u32,
    ) -> Result<Scores> {
        if samples > MAX_SAMPLES {
            return Err(Invalid::new("samples", format!("{samples} is above the limit of {MAX_SAMPLES}")).into());
        }
        let dataset = self.version(name, version).await?;
        let by_row = by_row(predictions, dataset.report.rows_validation)?;
        let split = self.fetch_rows(&dataset.validation).await?;
        let name = name.to_string();
        self.off_thread(move || {
            let mut scorer = Scorer::default();
            let mut revealed = Vec::new();
            for (row, index) in rows::read(&name, &split)?.zip(0..) {
                let row = row?;
                let Some(prediction) = by_row.get(&index) else { continue };
                let content = &row.content;
                scorer.add(prediction, content.answer(), content.question());
                if index < samples {
                    let (input, target) = (content.asked().into_owned(), content.answer().to_owned());
                    revealed.push(Sample { row: index, input, target, prediction: prediction.clone() });
                }
            }
            Ok(Scores { metrics: scorer.finish(), samples: revealed })
        })
        .await
    }
}

fn by_row(predictions: Vec<Prediction>, rows: u64) -> Result<HashMap<u32, String>, Invalid> {
    let mut by_row = HashMap::with_capacity(predictions.len());
    for (at, Prediction { row, text }) in predictions.into_iter().enumerate() {
        let field = format!("predictions[{at}].row");
        expect_rows(row, rows).map_err(|problem| Invalid::new(&field, problem))?;
        if by_row.insert(row, text).is_some() {
            return Err(Invalid::new(field, format!("{row} is predicted twice")));
        }
    }
    Ok(by_row)
}

/// Says what is wrong with a row's index.
pub(crate) fn expect_rows(row: u32, rows: u64) -> Result<(), String> {
    match rows {
        0 => Err(format!("{row} is not in the validation split, which is empty")),
        _ if u64::from(row) >= rows => {
            Err(format!("{row} is not in the validation split; its rows are 0 to {}", rows - 1))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predictions(rows: &[u32]) -> Vec<Prediction> {
        rows.iter().map(|row| Prediction { row: *row, text: String::new() }).collect()
    }

    #[test]
    fn a_row_outside_the_split_or_given_twice_is_refused_by_its_place() {
        assert_eq!(by_row(predictions(&[0, 2]), 3).map(|rows| rows.len()), Ok(2));
        let outside = by_row(predictions(&[0, 3]), 3).expect_err("outside").to_string();
        assert_eq!(outside, "predictions[1].row: 3 is not in the validation split; its rows are 0 to 2");
        let twice = by_row(predictions(&[1, 1]), 3).expect_err("twice").to_string();
        assert_eq!(twice, "predictions[1].row: 1 is predicted twice");
        assert!(by_row(predictions(&[0]), 0).expect_err("empty").to_string().contains("which is empty"));
    }
}
