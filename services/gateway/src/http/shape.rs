//! What chat and plain completions have in common: sampling, stops, formats, usage, and answers that run side by side.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};
use tailor_constrain::Format;
use tailor_domain::Invalid;
use tailor_engine::Sampling;

use super::Http;
use super::error::ApiError;
use crate::answer::{self, Answer, Piece};
use crate::ask::Ask;
use crate::error::Error;
use crate::grpc::instead;
use crate::models::Model;
use crate::rollout::{Choice, Turn};

/// Answers to one request.
const MAX_CHOICES: u32 = 128;

#[derive(Debug, Clone, Deserialize)]
pub struct Choosing {
    temperature: Option<f32>,
    top_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    stop: Option<OneOrMany>,
    n: Option<u32>,
    #[serde(default)]
    pub stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    response_format: Option<ResponseFormat>,
    // What others have beside OpenAI's: `extra_body` in the stock client.
    top_k: Option<u32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    guided_regex: Option<String>,
    guided_grammar: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Clone, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ResponseFormat {
    Text,
    JsonObject,
    JsonSchema { json_schema: JsonSchema },
}

#[derive(Debug, Clone, Deserialize)]
struct JsonSchema {
    schema: Option<Value>,
}

impl Choosing {
    pub fn sampling(&self) -> Result<Sampling, ApiError> {
        let bias = self.logit_bias.iter().flatten().map(|(token, bias)| {
            let token = token.parse().map_err(|_| Invalid::new("logit_bias", format!("{token:?} is no token id")))?;
            Ok((token, *bias))
        });
        Ok(Sampling {
            // OpenAI's defaults, not ours: greedy is 0.
            temperature: self.temperature.unwrap_or(1.0),
            top_p: self.top_p.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            logit_bias: bias.collect::<Result<_, Invalid>>()?,
            seed: self.seed.map(|seed| seed as u64),
        })
    }

    pub fn stop(&self) -> Vec<String> {
        match &self.stop {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop.clone()],
            Some(OneOrMany::Many(stops)) => stops.clone(),
        }
    }

    pub fn format(&self) -> Result<Option<Format>, ApiError> {
        let given = match &self.response_format {
            None | Some(ResponseFormat::Text) => None,
            Some(ResponseFormat::JsonObject) => Some(Format::JsonObject),
            Some(ResponseFormat::JsonSchema { json_schema: JsonSchema { schema: Some(schema) } }) => {
                Some(Format::JsonSchema(schema.clone()))
            }
            Some(ResponseFormat::JsonSchema { .. }) => {
                return Err(ApiError::param("response_format", "json_schema has no schema"));
            }
        };
        let formats =
            [given, self.guided_regex.clone().map(Format::Regex), self.guided_grammar.clone().map(Format::Lark)];
        let mut formats = formats.into_iter().flatten();
        match (formats.next(), formats.next()) {
            (format, None) => Ok(format),
            _ => Err(ApiError::param("response_format", "more than one format is asked for; an answer has one")),
        }
    }

    pub fn choices(&self) -> Result<u32, ApiError> {
        match self.n.unwrap_or(1) {
            n @ 1..=MAX_CHOICES => Ok(n),
            n => Err(ApiError::param("n", format!("{n} is outside 1 to {MAX_CHOICES}"))),
        }
    }

    pub fn include_usage(&self) -> bool {
        self.stream_options.as_ref().is_some_and(|options| options.include_usage)
    }
}

/// Starts `count` answers to the same; what they have in common is computed once. The other side of a rollout answers where
/// the first fails by its own fault.
pub async fn start(http: &Http, choice: &mut Choice, ask: &Ask, count: u32) -> Result<Vec<Answer>, ApiError> {
    ask.check()?;
    loop {
        let error = match start_on(&choice.model, ask, count).await {
            Ok(answers) => return Ok(answers),
            Err(error) => error,
        };
        let failed = Choice { model: choice.model.clone(), turn: choice.turn.take() };
        *choice = instead(&http.rollouts, failed, error).await?;
    }
}

async fn start_on(model: &Model, ask: &Ask, count: u32) -> Result<Vec<Answer>, Error> {
    let mut answers = Vec::with_capacity(count as usize);
    for number in 0..count {
        let mut ask = ask.clone();
        ask.sampling.seed = ask.sampling.seed.map(|seed| seed.wrapping_add(number.into()));
        answers.push(answer::generate(model, ask).await?);
    }
    Ok(answers)
}

/// All of an answer in one piece.
pub async fn whole(answer: &mut Answer) -> Result<Piece, Error> {
    let mut whole = Piece::default();
    while let Some(piece) = answer.next().await? {
        whole.text.push_str(&piece.text);
        whole.tokens.extend(piece.tokens);
    }
    Ok(whole)
}

/// Says to a rollout how its side did.
pub fn tell(turn: Option<Turn>, outcome: Result<(), &Error>) {
    match (turn, outcome) {
        (None, _) => {}
        (Some(turn), Ok(())) => turn.scored(),
        (Some(turn), Err(error)) => drop(turn.failed(error)),
    }
}

/// Of one request's answers, which share their prompt.
pub fn usage(answers: &[Answer]) -> Value {
    usage_of(
        answers.first().map_or(0, |answer| answer.prompt_tokens),
        answers.iter().map(|answer| answer.completion_tokens).sum(),
        answers.first().map_or(0, |answer| answer.cached_tokens),
    )
}

pub fn usage_of(prompt: u32, completion: u32, cached: u32) -> Value {
    json!({
        "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
        "prompt_tokens_details": { "cached_tokens": cached },
    })
}

/// Which weights answered: a moved alias shows here.
pub fn fingerprint(model: &Model) -> String {
    let base = model.base.manifest.fingerprint.to_string();
    match &model.adapter {
        Some(version) => format!("{base}+{}", version.digest),
        None => base,
    }
}
