//! `tailor generate`: text as it comes.

use std::io::Write as _;

use anyhow::Context as _;
use serde_json::json;
use tailor_pb::inference as pb;
use tailor_pb::inference::generate_request::Format;

use crate::args::Generate;
use crate::connect::Endpoints;
use crate::output::Output;

pub async fn run(endpoints: &Endpoints, args: &Generate, output: &Output) -> anyhow::Result<()> {
    anyhow::ensure!(
        args.base.is_some() || args.adapter.is_some(),
        "name a model: --base B, or --adapter A (its own base is used)"
    );
    let mut stream = endpoints.inference()?.generate_stream(request(args)?).await?.into_inner();
    let mut text = String::new();
    let mut end = pb::GenerateResponse::default();
    while let Some(chunk) = stream.message().await? {
        text.push_str(&chunk.text);
        if !output.json {
            print!("{}", chunk.text);
            std::io::stdout().flush()?;
        }
        if let Some(figures) = chunk.end {
            end = figures;
        }
    }
    let document = json!({
        "text": text,
        "finish_reason": end.finish_reason,
        "prompt_tokens": end.prompt_tokens,
        "completion_tokens": end.completion_tokens,
        "adapter_version": end.adapter_version,
        "adapter_digest": end.adapter_digest,
        "base_fingerprint": end.base_fingerprint,
        "rollout_side": end.rollout_side,
    });
    output.show(&document, || println!())
}

fn request(args: &Generate) -> anyhow::Result<pb::GenerateRequest> {
    let format = match (&args.json_schema, &args.regex) {
        (Some(file), _) => {
            let schema = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            Some(Format::JsonSchema(schema))
        }
        (None, Some(pattern)) => Some(Format::Regex(pattern.clone())),
        (None, None) => None,
    };
    Ok(pb::GenerateRequest {
        base: args.base.clone().unwrap_or_default(),
        adapter: args.adapter.clone().unwrap_or_default(),
        input: args.prompt.clone(),
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
        stop: args.stop.clone(),
        format,
        seed: args.seed,
        raw: args.raw,
        prompt_template: args.template.clone().unwrap_or_default(),
        caller: Some(pb::Caller {
            tenant: args.tenant.clone(),
            session: args.session.clone(),
            user: args.user.clone(),
        }),
        ..Default::default()
    })
}
