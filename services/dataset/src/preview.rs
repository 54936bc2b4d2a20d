//! Training rows as a model will see them: template applied, tokens, and which of them count in the loss.

use tailor_domain::{BaseName, DatasetName, Invalid, Version};
use tailor_text::{Error as TextError, Example, ExampleBuilder, PromptTemplate, Row};

use crate::{Datasets, Error, Result};

const DEFAULT_ROWS: u32 = 3;
const MAX_ROWS: u32 = 100;
/// No row is left out of a preview for its length, short of what a line may hold.
const MAX_TOKENS: usize = 1 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub prompt: String,
    pub target: String,
    pub tokens: Vec<SeenToken>,
    pub encoder_tokens: Vec<SeenToken>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenToken {
    pub id: u32,
    pub text: String,
    pub in_loss: bool,
}

impl Datasets {
    /// # Errors
    /// [`Error::NotFound`]: no such dataset, version or base. [`Error::Invalid`]: more rows than the limit.
    pub async fn preview(
        &self,
        name: &DatasetName,
        version: Option<Version>,
        base: Option<BaseName>,
        rows: u32,
    ) -> Result<Vec<Seen>> {
        if rows > MAX_ROWS {
            return Err(Invalid::new("rows", format!("{rows} is above the limit of {MAX_ROWS}")).into());
        }
        let count = if rows == 0 { DEFAULT_ROWS } else { rows } as usize;
        let dataset = self.version(name, version).await?;
        let rows = self.first_rows(name.as_str(), &dataset.train, count).await?;
        let Some(base) = base else {
            let template = PromptTemplate::parse(&dataset.prompt_template, None)
                .map_err(|source| Error::Shard { dataset: name.to_string(), source })?;
            return Ok(rows.into_iter().map(|row| text_only(&template, row)).collect());
        };
        let base = self.base(&base).await?;
        let builder = self.example_builder(&base, &dataset.prompt_template).await?;
        let base = base.name.to_string();
        self.off_thread(move || {
            let seen = |row| seen(&builder, row).map_err(|source| Error::Base { base: base.clone(), source });
            rows.into_iter().map(seen).collect()
        })
        .await
    }
}

fn text_only(template: &PromptTemplate, row: Row) -> Seen {
    let prompt = template.render(&row.input);
    Seen { prompt, target: row.target, tokens: Vec::new(), encoder_tokens: Vec::new() }
}

fn seen(builder: &ExampleBuilder, row: Row) -> Result<Seen, TextError> {
    let tokenizer = builder.tokenizer();
    let token = |id: u32, in_loss: bool| SeenToken { id, text: tokenizer.token(id).unwrap_or_default(), in_loss };
    let all = |ids: Vec<u32>, in_loss: bool| ids.into_iter().map(|id| token(id, in_loss)).collect();
    let prompt = builder.prompt(&row.input)?.text;
    let (tokens, encoder_tokens) = match builder.example(&row.input, &row.target, MAX_TOKENS) {
        Ok(Example::Decoder { ids, in_loss }) => {
            (ids.into_iter().zip(in_loss).map(|(id, in_loss)| token(id, in_loss)).collect(), Vec::new())
        }
        Ok(Example::EncoderDecoder { encoder, labels }) => (all(labels, true), all(encoder, false)),
        // A row that training leaves out: shown as text.
        Err(TextError::Row(_)) => (Vec::new(), Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(Seen { prompt, target: row.target, tokens, encoder_tokens })
}
