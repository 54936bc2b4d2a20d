//! Asking for answers of a known length, whole or piece by piece, and how they ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tailor_pb::inference::{GenerateChunk, GenerateRequest, GenerateResponse};
use tonic::Status;

use super::Family;
use super::clients::Addresses;

/// For an adapter, or the base alone where it has no name.
pub fn request(family: Family, adapter: &str, number: usize, tokens: u32) -> GenerateRequest {
    let base = if adapter.is_empty() { family.base() } else { "" };
    GenerateRequest {
        base: base.into(),
        adapter: adapter.into(),
        input: format!("anna sees {number} boats"),
        max_new_tokens: tokens,
        // So that no answer ends early.
        logit_bias: [(1, -1000.0)].into(),
        ..Default::default()
    }
}

/// # Errors
/// What the service answered.
pub async fn ask(at: &Addresses, request: GenerateRequest) -> Result<GenerateResponse, Status> {
    Ok(at.gateway().generate(request).await?.into_inner())
}

/// What was heard of a stream, and how it ended.
pub struct Streamed {
    pub text: String,
    pub chunks: usize,
    pub end: Result<GenerateResponse, Status>,
}

/// A stream to its end; counts itself in `begun` when its first piece comes.
pub async fn stream(at: Addresses, request: GenerateRequest, begun: Arc<AtomicUsize>) -> Streamed {
    let mut streamed = Streamed { text: String::new(), chunks: 0, end: Err(Status::unknown("no end")) };
    let mut chunks = match at.gateway().generate_stream(request).await {
        Ok(chunks) => chunks.into_inner(),
        Err(status) => return Streamed { end: Err(status), ..streamed },
    };
    loop {
        match chunks.message().await {
            Ok(Some(GenerateChunk { text, end, .. })) => {
                streamed.text.push_str(&text);
                streamed.chunks += 1;
                if streamed.chunks == 1 {
                    begun.fetch_add(1, Ordering::SeqCst);
                }
                if let Some(end) = end {
                    streamed.end = Ok(end);
                }
            }
            Ok(None) => return streamed,
            Err(status) => return Streamed { end: Err(status), ..streamed },
        }
    }
}
