//! `tailor train`: creates a job and follows it.

use tailor_pb::training as pb;

use crate::args::Train;
use crate::commands::job;
use crate::connect::Endpoints;
use crate::output::Output;

pub async fn run(endpoints: &Endpoints, args: &Train, output: &Output) -> anyhow::Result<()> {
    let request = request(args);
    let created = endpoints.trainer()?.create_job(request).await?.into_inner();
    if args.detach {
        return output.show(&job::describe(&created), || {
            println!("created job {}; follow it with `tailor job watch {}`", created.id, created.id);
        });
    }
    output.say(format!("job {} (Ctrl-C stops watching, not the job)", created.id));
    let finished = job::watch(endpoints, &created.id, 1, output).await?;
    job::conclude(&finished, output)
}

pub fn request(args: &Train) -> pb::CreateJobRequest {
    pb::CreateJobRequest {
        base: args.base.clone(),
        dataset: args.dataset.name.clone(),
        dataset_version: args.dataset.version,
        adapter: args.adapter.clone(),
        lora: Some(pb::Lora {
            rank: args.rank,
            alpha: args.alpha,
            dropout: args.dropout,
            target_modules: args.targets.clone(),
        }),
        training: Some(pb::Training {
            learning_rate: args.learning_rate,
            warmup_ratio: None,
            weight_decay: None,
            max_grad_norm: None,
            epochs: args.epochs,
            max_steps: args.max_steps,
            batch_rows: args.batch,
            micro_batch_rows: args.micro_batch,
            max_tokens: args.max_tokens,
            target_loss: args.target_loss,
            seed: args.seed,
            max_new_tokens: args.max_new_tokens,
            max_validation_rows: args.max_validation_rows,
        }),
        idempotency_key: args.idempotency_key.clone().unwrap_or_default(),
    }
}
