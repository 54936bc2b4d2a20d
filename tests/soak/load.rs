//! The requests: of the base and of each adapter, short prompts of several lengths, greedy, so that each has one right answer.

use std::time::Instant;

use tailor_pb::inference::adapter_admin_client::AdapterAdminClient;
use tailor_pb::inference::inference_service_client::InferenceServiceClient;
use tailor_pb::inference::{GenerateRequest, ListResidentRequest};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::Outcome;
use crate::figures::Asked;
use crate::system::{ADAPTERS, BASE, System};

/// Different requests: each adapter and the base, with some prompts each.
pub const PROMPTS: usize = 8 * (ADAPTERS.len() + 1);
const MAX_NEW_TOKENS: u32 = 32;
/// Every so many readers one goes away after so many pieces.
const DROP_EVERY: usize = 7;
const DROP_AFTER: usize = 4;
/// Connections that callers share.
const CHANNELS: usize = 8;

pub struct Load {
    channels: Vec<Channel>,
    /// What each request got alone.
    alone: Vec<String>,
}

impl Load {
    /// Asks every request once, alone.
    pub async fn on(system: &System) -> Outcome<Self> {
        let channels = (0..CHANNELS).map(|_| Ok(Endpoint::from_shared(system.gateway.clone())?.connect_lazy()));
        let mut load = Self { channels: channels.collect::<Outcome<_>>()?, alone: Vec::new() };
        for number in 0..PROMPTS {
            let mut text = String::new();
            let mut client = InferenceServiceClient::new(load.channels[0].clone());
            let mut stream = client.generate_stream(request(number)).await?.into_inner();
            while let Some(chunk) = stream.message().await? {
                text.push_str(&chunk.text);
            }
            load.alone.push(text);
        }
        Ok(load)
    }

    /// One request, to its end or until its reader goes away.
    pub async fn ask(&self, number: usize) -> Asked {
        let begun = Instant::now();
        let mut client = InferenceServiceClient::new(self.channels[number % CHANNELS].clone());
        let mut stream = match client.generate_stream(request(number)).await {
            Ok(stream) => stream.into_inner(),
            Err(status) if status.code() == Code::ResourceExhausted => return Asked::Refused,
            Err(status) => return Asked::Failed(status.to_string()),
        };
        let (mut text, mut pieces, mut first, mut ended) = (String::new(), 0, None, false);
        loop {
            match stream.message().await {
                Ok(Some(chunk)) => {
                    first.get_or_insert_with(|| begun.elapsed());
                    text.push_str(&chunk.text);
                    ended |= chunk.end.is_some();
                    pieces += 1;
                }
                Ok(None) => break,
                Err(status) => return Asked::Failed(status.to_string()),
            }
            if number.is_multiple_of(DROP_EVERY) && pieces == DROP_AFTER {
                return Asked::Dropped { first: first.unwrap_or_default() };
            }
        }
        let wanted = &self.alone[number % PROMPTS];
        match (ended, first) {
            (true, Some(first)) if text == *wanted => Asked::Answered { first, whole: begun.elapsed() },
            (true, _) => Asked::Failed(format!("request {number} got {text:?}, alone it gets {wanted:?}")),
            (false, _) => Asked::Failed(format!("request {number} was lost in mid-stream")),
        }
    }

    /// What the engines still hold when nobody asks any more; empty where nothing.
    pub async fn left(&self, system: &System) -> Outcome<String> {
        let mut admin = AdapterAdminClient::new(Endpoint::from_shared(system.gateway.clone())?.connect_lazy());
        // The last readers have only just gone.
        for _ in 0..50 {
            let resident = admin.list_resident(ListResidentRequest {}).await?.into_inner();
            let usage = resident.bases.iter().filter_map(|base| base.usage);
            if usage.clone().all(|usage| usage.running + usage.waiting + usage.kv_blocks_held == 0) {
                return Ok(String::new());
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        Ok("sequences or blocks of the cache were not given back".into())
    }
}

fn request(number: usize) -> GenerateRequest {
    let number = number % PROMPTS;
    let adapter = ADAPTERS.get(number % (ADAPTERS.len() + 1)).copied().unwrap_or_default();
    GenerateRequest {
        base: if adapter.is_empty() { BASE.into() } else { String::new() },
        adapter: adapter.into(),
        input: "She have seen the boats at noon. ".repeat(1 + number % 5),
        max_new_tokens: MAX_NEW_TOKENS,
        ..Default::default()
    }
}
