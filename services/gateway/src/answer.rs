//! One answer: the input becomes ids, the engine's ids become text.

use tailor_domain::Invalid;
use tailor_engine::{Event, GenerateJob, Sampling, ScoreJob};
use tailor_pb::inference as pb;
use tailor_text::{ExampleBuilder, PromptTemplate};
use tokio::sync::mpsc;

use crate::error::Result;
use crate::models::Model;

/// Pieces of text on their way to one reader.
pub const STREAM_BUFFER: usize = 32;

/// Tokens made when the caller does not say.
const DEFAULT_NEW_TOKENS: u32 = 128;
/// Longest input in bytes, checked before it is tokenised.
const MAX_INPUT_BYTES: usize = 1 << 20;

/// A running answer: text piece by piece, then the figures.
pub struct Answer {
    pub events: mpsc::Receiver<std::result::Result<Event, tailor_engine::Error>>,
    pub prompt_tokens: u32,
}

/// Starts generating.
pub async fn generate(model: &Model, request: &pb::GenerateRequest) -> Result<Answer> {
    let prompt_ids = prompt_ids(model, request)?;
    let prompt_tokens = prompt_ids.len() as u32;
    let job = GenerateJob {
        prompt_ids,
        adapter: model.adapter.as_ref().map(|version| version.digest.clone()),
        sampling: Sampling {
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            seed: request.seed,
        },
        max_new_tokens: if request.max_new_tokens == 0 { DEFAULT_NEW_TOKENS } else { request.max_new_tokens },
    };
    Ok(Answer { events: model.base.engine.generate(job).await?, prompt_tokens })
}

/// Turns tokens into text as they come; returns the figures of the whole answer, its text left out.
pub async fn pump(model: &Model, mut answer: Answer, pieces: mpsc::Sender<String>) -> Result<pb::GenerateResponse> {
    let mut decoder = model.base.tokenizer.stream(true);
    let mut completion_tokens = 0;
    let mut finish_reason = "stop";
    while let Some(event) = answer.events.recv().await {
        match event? {
            Event::Token { id } => {
                completion_tokens += 1;
                let piece = decoder.push(id)?;
                if !piece.is_empty() && pieces.send(piece).await.is_err() {
                    break;
                }
            }
            Event::End { reason } => finish_reason = reason.as_str(),
        }
    }
    let rest = decoder.finish()?;
    if !rest.is_empty() {
        let _ = pieces.send(rest).await;
    }
    Ok(pb::GenerateResponse {
        text: String::new(),
        finish_reason: finish_reason.into(),
        prompt_tokens: answer.prompt_tokens,
        completion_tokens,
        adapter_digest: model.adapter.as_ref().map(|v| v.digest.to_string()).unwrap_or_default(),
        adapter_version: model.adapter.as_ref().map_or(0, |v| v.version.0),
        base_fingerprint: model.base.manifest.fingerprint.to_string(),
        rollout_side: String::new(),
    })
}

/// The text of a whole answer, for those who do not wait for its pieces.
pub async fn whole(model: &Model, request: &pb::GenerateRequest) -> Result<String> {
    let answer = generate(model, request).await?;
    let (pieces, mut text) = mpsc::channel::<String>(STREAM_BUFFER);
    let collect = async {
        let mut whole = String::new();
        while let Some(piece) = text.recv().await {
            whole.push_str(&piece);
        }
        whole
    };
    let (end, text) = tokio::join!(pump(model, answer, pieces), collect);
    end?;
    Ok(text)
}

/// The prompt as training rendered it: the adapter's template, then the base's chat template where it has one.
fn prompt_ids(model: &Model, request: &pb::GenerateRequest) -> Result<Vec<u32>> {
    if request.input.len() > MAX_INPUT_BYTES {
        let problem = format!("{} bytes; the limit is {MAX_INPUT_BYTES}", request.input.len());
        return Err(Invalid::new("input", problem).into());
    }
    if request.raw {
        return Ok(model.base.tokenizer.encode_with_special(&request.input)?);
    }
    let template = match (request.prompt_template.as_str(), &model.adapter) {
        ("", Some(version)) => version.prompt_template.as_str(),
        ("", None) => "",
        (given, _) => given,
    };
    let template = PromptTemplate::parse(template, None)?;
    let builder = ExampleBuilder::new(model.base.tokenizer.clone(), template, model.base.manifest.family)?;
    Ok(builder.prompt(&request.input)?.ids)
}

/// The log-probability of each given token.
pub async fn score(model: &Model, request: &pb::ScoreRequest) -> Result<Vec<pb::ScoredToken>> {
    let tokenizer = &model.base.tokenizer;
    let prompt_ids = match (&request.prompt_ids[..], request.prompt.as_str()) {
        ([], "") => Vec::new(),
        ([], text) => tokenizer.encode_with_special(text)?,
        (ids, _) => ids.to_vec(),
    };
    let token_ids = match &request.token_ids[..] {
        [] if model.base.is_encoder_decoder() || !prompt_ids.is_empty() => tokenizer.encode(&request.text)?,
        [] => tokenizer.encode_with_special(&request.text)?,
        ids => ids.to_vec(),
    };
    let job = ScoreJob {
        prompt_ids,
        token_ids: token_ids.clone(),
        adapter: model.adapter.as_ref().map(|version| version.digest.clone()),
    };
    let scores = model.base.engine.score(job).await?;
    let mut tokens = Vec::with_capacity(scores.len());
    for (id, logprob) in token_ids.into_iter().zip(scores) {
        tokens.push(pb::ScoredToken {
            id,
            text: tokenizer.token(id).unwrap_or_default(),
            logprob: logprob.map(f64::from),
        });
    }
    Ok(tokens)
}
