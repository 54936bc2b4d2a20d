//! `/v1/completions`: prompts as they are, without any template.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::error::ApiError;
use super::extract::Body;
use super::shape::{Choosing, answered, begin, complete, fingerprint, usage};
use super::stream::{Chunks, Ending, events};
use super::{Http, models, new_id, now};
use crate::answer::Piece;
use crate::ask::{Ask, MaxNew, Prompt};
use crate::caller::Caller;
use crate::rollout::Choice;
use crate::said::SaidToken;

/// OpenAI's own.
const DEFAULT_NEW_TOKENS: u32 = 16;
/// Prompts in one request.
const MAX_PROMPTS: usize = 128;

#[derive(Debug, Deserialize)]
pub struct CompletionRequest {
    model: String,
    prompt: Prompts,
    max_tokens: Option<u32>,
    logprobs: Option<u8>,
    echo: Option<bool>,
    suffix: Option<String>,
    best_of: Option<u32>,
    /// Whom the answer is for: keeps its side of a rollout.
    user: Option<String>,
    #[serde(flatten)]
    choosing: Choosing,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompts {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    ManyIds(Vec<Vec<u32>>),
}

impl Prompts {
    fn list(self) -> Vec<Prompt> {
        match self {
            Self::Text(text) => vec![Prompt::Raw(text)],
            Self::Ids(ids) => vec![Prompt::Ids(ids)],
            Self::Texts(texts) => texts.into_iter().map(Prompt::Raw).collect(),
            Self::ManyIds(many) => many.into_iter().map(Prompt::Ids).collect(),
        }
    }
}

pub async fn create(
    State(http): State<Http>,
    headers: HeaderMap,
    Body(request): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    if request.echo == Some(true) {
        return Err(ApiError::param("echo", "prompts are not repeated; leave it out, or use Score over gRPC"));
    }
    if request.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::param("suffix", "nothing can be put between two texts; leave it out"));
    }
    let max_new_tokens = match request.max_tokens.unwrap_or(DEFAULT_NEW_TOKENS) {
        0 => return Err(ApiError::param("max_tokens", "0 tokens are asked for; ask for at least 1")),
        count => MaxNew::Exactly(count),
    };
    let (choosing, prompts) = (request.choosing, request.prompt.list());
    if prompts.is_empty() || prompts.len() > MAX_PROMPTS {
        let problem = format!("{} prompts are outside 1 to {MAX_PROMPTS}", prompts.len());
        return Err(ApiError::param("prompt", problem));
    }
    let (sampling, format, count) = (choosing.sampling()?, choosing.format()?, choosing.choices()?);
    if let Some(best_of) = request.best_of.filter(|best_of| *best_of != count) {
        let problem =
            format!("{best_of} answers are asked for and {count} of them; all are given, so leave it out or give n");
        return Err(ApiError::param("best_of", problem));
    }
    let Caller { tenant, deadline } = Caller::of_headers(&headers);
    let user = request.user.clone().unwrap_or_default();
    let caller = tailor_domain::rollout::Caller::try_new(tenant.clone(), String::new(), user)?;
    let mut choice = models::find(&http, &request.model, &caller).await?;
    let ask = |prompt| Ask {
        prompt,
        sampling: sampling.clone(),
        max_new_tokens,
        stop: choosing.stop(),
        top_logprobs: request.logprobs,
        format: format.clone(),
        tenant: tenant.clone(),
        deadline,
    };
    let mut asks: Vec<Ask> = prompts.into_iter().map(ask).collect();
    let head = |choice: &Choice| Head {
        id: new_id("cmpl"),
        created: now(),
        model: request.model.clone(),
        fingerprint: fingerprint(&choice.model),
        logprobs: request.logprobs.is_some(),
    };
    if choosing.stream.unwrap_or(false) {
        let begun = begin(&http, &mut choice, &asks, count).await?;
        let head = head(&choice);
        let (include_usage, ask) = (choosing.include_usage(), asks.swap_remove(0));
        return Ok(events(begun, head, Ending { include_usage, count, turn: choice.turn, ask }));
    }
    let mut answers = complete(&http, &mut choice, &asks, count).await?;
    let head = head(&choice);
    let choices = answers.iter().enumerate();
    let choices = choices.map(|(index, (answer, whole))| head.choice(index, whole, Some(answer.finish_reason)));
    let mut response = head.object(choices.collect());
    response["usage"] = usage(answers.iter().map(|(answer, _)| answer.into()), count);
    answered(choice.turn, asks.swap_remove(0), std::mem::take(&mut answers[0].1.text));
    Ok(Json(response).into_response())
}

#[derive(Clone)]
struct Head {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    logprobs: bool,
}

impl Head {
    fn object(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint, "choices": choices,
        })
    }

    fn choice(&self, index: usize, piece: &Piece, finish_reason: Option<&str>) -> Value {
        json!({
            "index": index, "text": piece.text, "logprobs": self.logprobs(piece), "finish_reason": finish_reason,
        })
    }

    fn logprobs(&self, piece: &Piece) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let named = |said: &SaidToken| {
            let mut named = Map::new();
            // Should two have one name all the same, the likelier keeps it.
            for (token, logprob) in &said.top {
                named.entry(token.name()).or_insert_with(|| json!(logprob));
            }
            named
        };
        let tokens = &piece.tokens;
        json!({
            "tokens": tokens.iter().map(|said| said.token.name()).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|said| said.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(named).collect::<Vec<_>>(),
            "text_offset": tokens.iter().map(|said| said.offset).collect::<Vec<_>>(),
        })
    }
}

impl Chunks for Head {
    fn begin(&self, _: usize) -> Option<Value> {
        None
    }

    fn piece(&self, index: usize, piece: &Piece) -> Value {
        self.object(vec![self.choice(index, piece, None)])
    }

    fn end(&self, index: usize, finish_reason: &str) -> Value {
        self.object(vec![self.choice(index, &Piece::default(), Some(finish_reason))])
    }

    fn usage(&self, usage: Value) -> Value {
        let mut chunk = self.object(Vec::new());
        chunk["usage"] = usage;
        chunk
    }
}

#[cfg(test)]
mod tests {
    use tailor_engine::Logprobs;

    use super::*;
    use crate::said::tests::llama;

    #[test]
    fn tokens_have_names_of_their_own_and_offsets_that_go_on_from_chunk_to_chunk() {
        let head = Head {
            id: "cmpl-1".into(),
            created: 0,
            model: "little".into(),
            fingerprint: String::new(),
            logprobs: true,
        };
        let logprobs = Logprobs { chosen: -0.5, top: vec![(1, -0.5), (2, -1.0), (3, -2.0), (4, -3.0)] };
        let said = |id, offset| SaidToken::new(&llama(), id, &logprobs, offset);
        let piece = |tokens| head.piece(0, &Piece { text: String::new(), tokens });
        let first = &piece(vec![said(1, 0), said(2, 3)])["choices"][0]["logprobs"];
        assert_eq!((&first["tokens"], &first["text_offset"]), (&json!([" the", "the"]), &json!([0, 3])));
        let top = json!({ " the": -0.5, "the": -1.0, r"bytes:\xe2": -2.0, r"bytes:\x96": -3.0 });
        assert_eq!(first["top_logprobs"][0], top);
        let second = &piece(vec![said(3, 6)])["choices"][0]["logprobs"];
        assert_eq!((&second["tokens"], &second["text_offset"]), (&json!([r"bytes:\xe2"]), &json!([6])));
    }
}
