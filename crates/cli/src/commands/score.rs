//! `tailor score`: the log-probability of each given token.

use serde_json::json;
use tailor_pb::inference as pb;

use crate::args::Score;
use crate::connect::Endpoints;
use crate::output::Output;
use crate::table;

pub async fn run(endpoints: &Endpoints, args: &Score, output: &Output) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.base.is_some() || args.adapter.is_some(),
        "name a model: --base B, or --adapter A (its own base is used)"
    );
    let request = pb::ScoreRequest {
        base: args.base.clone().unwrap_or_default(),
        adapter: args.adapter.clone().unwrap_or_default(),
        prompt: args.prompt.clone().unwrap_or_default(),
        prompt_ids: args.prompt_ids.clone(),
        text: args.text.clone().unwrap_or_default(),
        token_ids: args.token_ids.clone(),
        caller: None,
    };
    let answer = endpoints.inference()?.score(request).await?.into_inner();
    let tokens: Vec<_> = answer
        .tokens
        .iter()
        .map(|token| json!({ "id": token.id, "text": token.text, "logprob": token.logprob }))
        .collect();
    let document = json!({
        "tokens": tokens,
        "adapter_version": answer.adapter_version,
        "adapter_digest": answer.adapter_digest,
        "base_fingerprint": answer.base_fingerprint,
    });
    output.show(&document, || {
        let logprob = |token: &pb::ScoredToken| token.logprob.map_or("-".into(), |value| format!("{value:.4}"));
        let rows: Vec<_> =
            answer.tokens.iter().map(|t| vec![t.id.to_string(), format!("{:?}", t.text), logprob(t)]).collect();
        table::print(&["id", "token", "log-probability"], &rows);
        let sum: f64 = answer.tokens.iter().filter_map(|token| token.logprob).sum();
        println!("sum {sum:.4} nats");
    })
}
