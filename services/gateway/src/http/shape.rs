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
            // The engine takes 0 for off, as gRPC sends it unset. Here it is meant: the likeliest token alone.
            top_p: self.top_p.map_or(1.0, |top_p| if top_p == 0.0 { f32::MIN_POSITIVE } else { top_p }),
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

/// An answer that has begun.
pub struct Begun {
    pub answer: Answer,
    /// What came of it while it was waited for.
    pub first: Option<Piece>,
}

/// Starts `count` answers to each of these; what they have in common is computed once. In a rollout the first piece of each
/// is waited for: until then the other side can answer where this one fails by its own fault.
pub async fn begin(http: &Http, choice: &mut Choice, asks: &[Ask], count: u32) -> Result<Vec<Begun>, ApiError> {
    asks.iter().try_for_each(Ask::check)?;
    loop {
        match begin_on(choice, asks, count).await {
            Ok(begun) => return Ok(begun),
            Err(error) => other_side(http, choice, error).await?,
        }
    }
}

/// As [`begin`], to the end of every answer: nothing has been sent before, so the other side can answer until then.
pub async fn complete(
    http: &Http,
    choice: &mut Choice,
    asks: &[Ask],
    count: u32,
) -> Result<Vec<(Answer, Piece)>, ApiError> {
    asks.iter().try_for_each(Ask::check)?;
    loop {
        let whole = async {
            let mut all = Vec::new();
            for begun in begin_on(choice, asks, count).await? {
                all.push(whole(begun).await?);
            }
            Ok(all)
        };
        match whole.await {
            Ok(all) => return Ok(all),
            Err(error) => other_side(http, choice, error).await?,
        }
    }
}

async fn begin_on(choice: &Choice, asks: &[Ask], count: u32) -> Result<Vec<Begun>, Error> {
    let mut all = Vec::new();
    for ask in asks {
        for number in 0..count {
            let mut ask = ask.clone();
            ask.sampling.seed = ask.sampling.seed.map(|seed| seed.wrapping_add(number.into()));
            all.push(Begun { answer: answer::generate(&choice.model, ask).await?, first: None });
        }
    }
    if choice.turn.is_some() {
        for begun in &mut all {
            begun.first = begun.answer.next().await?;
        }
    }
    Ok(all)
}

async fn other_side(http: &Http, choice: &mut Choice, error: Error) -> Result<(), ApiError> {
    let failed = Choice { model: choice.model.clone(), turn: choice.turn.take() };
    *choice = instead(&http.rollouts, failed, error).await?;
    Ok(())
}

/// All of an answer in one piece.
async fn whole(begun: Begun) -> Result<(Answer, Piece), Error> {
    let Begun { mut answer, first } = begun;
    let mut whole = first.unwrap_or_default();
    while let Some(piece) = answer.next().await? {
        whole.text.push_str(&piece.text);
        whole.tokens.extend(piece.tokens);
    }
    Ok((answer, whole))
}

/// Says to a rollout that its side has answered; `text` is the first answer, to `ask`, and may get a shadow.
pub fn answered(turn: Option<Turn>, ask: Ask, text: String) {
    if let Some(turn) = turn {
        turn.answered(text, move |model| async move { answer::unheard(&model, ask).await });
    }
}

/// Tokens of one answer.
#[derive(Debug, Clone, Copy)]
pub struct Spent {
    pub prompt: u32,
    pub completion: u32,
    pub cached: u32,
}

impl From<&Answer> for Spent {
    fn from(answer: &Answer) -> Self {
        Self { prompt: answer.prompt_tokens, completion: answer.completion_tokens, cached: answer.cached_tokens }
    }
}

/// Of one request's answers, `count` to each prompt, in the order of the prompts. A prompt counts once, whatever number of
/// answers it has.
pub fn usage(answers: impl IntoIterator<Item = Spent>, count: u32) -> Value {
    let (mut prompt, mut completion, mut cached) = (0, 0, 0);
    for (number, spent) in (0..).zip(answers) {
        completion += u64::from(spent.completion);
        if number % count == 0 {
            prompt += u64::from(spent.prompt);
            cached += u64::from(spent.cached);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn choosing(request: Value) -> Choosing {
        serde_json::from_value(request).expect("a request")
    }

    #[test]
    fn zero_is_meant_and_not_off() {
        let sampling = |request| choosing(request).sampling().expect("within its limits");
        let asked = sampling(json!({ "temperature": 0, "top_p": 0 }));
        assert_eq!(asked.temperature, 0.0, "greedy");
        assert!(asked.top_p > 0.0 && asked.top_p < 1e-30, "the likeliest token alone: {}", asked.top_p);
        let unasked = sampling(json!({}));
        assert_eq!((unasked.temperature, unasked.top_p), (1.0, 1.0), "OpenAI's defaults");
        assert_eq!(sampling(json!({ "top_p": 0.25 })).top_p, 0.25);
    }

    #[test]
    fn a_json_object_is_a_format_and_two_formats_are_too_many() {
        let format = |request| choosing(request).format();
        let object = json!({ "response_format": { "type": "json_object" } });
        assert_eq!(format(object.clone()).expect("known"), Some(Format::JsonObject));
        assert_eq!(format(json!({ "response_format": { "type": "text" } })).expect("known"), None);
        let mut both = object;
        both["guided_regex"] = "a+".into();
        assert!(format(both).is_err());
        assert!(format(json!({ "response_format": { "type": "json_schema", "json_schema": {} } })).is_err());
    }

    #[test]
    fn every_prompt_counts_once_and_every_answer_too() {
        let spent = |prompt, completion| Spent { prompt, completion, cached: 1 };
        let usage = usage([spent(3, 10), spent(3, 20), spent(5, 30), spent(5, 40)], 2);
        assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(8), &json!(100)));
        assert_eq!(
            (&usage["total_tokens"], &usage["prompt_tokens_details"]["cached_tokens"]),
            (&json!(108), &json!(2))
        );
    }
}
