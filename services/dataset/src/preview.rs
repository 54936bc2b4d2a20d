//! Training rows as a model will see them: template applied, tokens, and which of them count in the loss.

use tailor_domain::spec::{LossOn, Objective};
use tailor_domain::{BaseName, DatasetName, Invalid, Version};
use tailor_text::{Error as TextError, Example, ExampleBuilder, PromptTemplate, Row, RowContent, Tokenizer};

use crate::{Datasets, Error, Result};

const DEFAULT_ROWS: u32 = 3;
const MAX_ROWS: u32 = 100;
/// No row is left out of a preview for its length, short of what a line may hold.
const MAX_TOKENS: usize = 1 << 20;

/// What is to be shown of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// None: text only.
    pub base: Option<BaseName>,
    pub rows: u32,
    pub loss_on: LossOn,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    pub prompt: String,
    pub target: String,
    pub tokens: Vec<SeenToken>,
    pub encoder_tokens: Vec<SeenToken>,
    /// The answer that a preference turns down.
    pub rejected: String,
    pub rejected_tokens: Vec<SeenToken>,
    /// Why training leaves the row out.
    pub refused: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenToken {
    pub id: u32,
    pub text: String,
    pub in_loss: bool,
}

impl Datasets {
    /// # Errors
    /// [`Error::NotFound`]: no such dataset, version or base. [`Error::Invalid`]: more rows than the limit, or the base
    /// cannot learn from such rows in this way.
    pub async fn preview(&self, name: &DatasetName, version: Option<Version>, look: Look) -> Result<Vec<Seen>> {
        let Look { base, rows, loss_on } = look;
        if rows > MAX_ROWS {
            return Err(Invalid::new("rows", format!("{rows} is above the limit of {MAX_ROWS}")).into());
        }
        let count = if rows == 0 { DEFAULT_ROWS } else { rows } as usize;
        let dataset = self.version(name, version).await?;
        let rows = self.first_rows(name.as_str(), &dataset.train, count).await?;
        let Some(base) = base else {
            let template = PromptTemplate::parse(&dataset.prompt_template, None)
                .map_err(|source| Error::Shard { dataset: name.to_string(), source })?;
            return Ok(rows.into_iter().map(|row| text_only(&template, &row.content)).collect());
        };
        let base = self.base(&base).await?;
        dataset.kind.check(Objective::Sft, loss_on, base.family)?;
        let builder = self.example_builder(&base, &dataset.prompt_template).await?;
        let base = base.name.to_string();
        self.off_thread(move || {
            let failed = |source| Error::Base { base: base.clone(), source };
            rows.into_iter().map(|row| seen(&builder, &row, loss_on).map_err(failed)).collect()
        })
        .await
    }
}

fn text_only(template: &PromptTemplate, row: &RowContent) -> Seen {
    let prompt = match row {
        RowContent::Conversation { .. } | RowContent::PreferredTurn { .. } => row.asked().into_owned(),
        RowContent::InputTarget { .. } | RowContent::Preference { .. } => template.render(&row.asked()),
    };
    let rejected = row.rejected().unwrap_or_default().to_owned();
    Seen { prompt, target: row.answer().to_owned(), rejected, ..Seen::default() }
}

fn seen(builder: &ExampleBuilder, row: &Row, loss_on: LossOn) -> Result<Seen, TextError> {
    let row = &row.content;
    let (target, rejected) = (row.answer().to_owned(), row.rejected().unwrap_or_default().to_owned());
    let mut seen = Seen { target, rejected, ..Seen::default() };
    // A row that training leaves out is shown as text.
    match builder.row_prompt(row) {
        Ok(prompt) => seen.prompt = prompt.text,
        Err(TextError::Row(refusal)) => {
            return Ok(Seen { prompt: row.asked().into_owned(), refused: refusal.to_string(), ..seen });
        }
        Err(error) => return Err(error),
    }
    let tokenizer = builder.tokenizer();
    match row {
        RowContent::Preference { .. } | RowContent::PreferredTurn { .. } => match builder.preference(row, MAX_TOKENS) {
            Ok(pair) => {
                seen.rejected_tokens = shown(tokenizer, pair.rejected).1;
                // Of the chosen answer what counts is what sft would learn of it.
                (seen.encoder_tokens, seen.tokens) = shown(tokenizer, builder.row_example(row, loss_on, MAX_TOKENS)?);
            }
            Err(TextError::Row(refusal)) => seen.refused = refusal.to_string(),
            Err(error) => return Err(error),
        },
        RowContent::InputTarget { .. } | RowContent::Conversation { .. } => {
            match builder.row_example(row, loss_on, MAX_TOKENS) {
                Ok(example) => (seen.encoder_tokens, seen.tokens) = shown(tokenizer, example),
                Err(TextError::Row(refusal)) => seen.refused = refusal.to_string(),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(seen)
}

/// The encoder's tokens, and those that are predicted.
fn shown(tokenizer: &Tokenizer, example: Example) -> (Vec<SeenToken>, Vec<SeenToken>) {
    let token = |id: u32, in_loss: bool| SeenToken { id, text: tokenizer.token(id).unwrap_or_default(), in_loss };
    let all = |ids: Vec<u32>, in_loss: bool| ids.into_iter().map(|id| token(id, in_loss)).collect();
    match example {
        Example::Decoder { ids, in_loss } => {
            (Vec::new(), ids.into_iter().zip(in_loss).map(|(id, in_loss)| token(id, in_loss)).collect())
        }
        Example::EncoderDecoder { encoder, labels } => (all(encoder, false), all(labels, true)),
    }
}
