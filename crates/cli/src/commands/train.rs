//! `tailor train`: creates a job and follows it.

pub mod job_file;

use anyhow::Context as _;
use tailor_pb::training as pb;

use self::job_file::{JobFile, set};
use crate::args::{Train, VersionedName};
use crate::commands::job;
use crate::connect::Endpoints;
use crate::output::Output;

pub async fn run(endpoints: &Endpoints, args: &Train, output: &Output) -> anyhow::Result<()> {
    if args.schema {
        println!("{}", serde_json::to_string_pretty(&job_file::schema())?);
        return Ok(());
    }
    let request = request(args)?;
    let created = endpoints.trainer()?.create_job(request).await?.into_inner();
    if args.detach {
        return output.show(&job::describe(&created), || {
            println!("created job {}; follow it with `tailor job watch {}`", created.id, created.id);
            if !created.waiting.is_empty() {
                println!("it waits: {}", created.waiting);
            }
        });
    }
    output.say(format!("job {} (Ctrl-C stops watching, not the job)", created.id));
    let finished = job::watch(endpoints, &created.id, 1, output).await?;
    job::report(&finished, output)
}

fn request(args: &Train) -> anyhow::Result<pb::CreateJobRequest> {
    let mut file = args.file.as_deref().map(JobFile::read).transpose()?.unwrap_or_default();
    override_with(&mut file, args);
    let dataset: VersionedName = file.dataset.parse().map_err(anyhow::Error::msg).context("dataset")?;
    let recipe = file.recipe();
    // The service checks again; here nothing has been sent yet, and the file's name can be said.
    recipe.validate().with_context(|| match &args.file {
        Some(path) => format!("{} cannot be trained", path.display()),
        None => "these settings cannot be trained".to_owned(),
    })?;
    Ok(pb::CreateJobRequest {
        base: file.base,
        dataset: dataset.name,
        dataset_version: dataset.version,
        adapter: file.adapter,
        idempotency_key: args.idempotency_key.clone().unwrap_or_default(),
        ..(&recipe).into()
    })
}

/// A flag that is given wins over the file.
fn override_with(file: &mut JobFile, args: &Train) {
    set(&mut file.base, &args.base);
    set(&mut file.dataset, &args.dataset.as_ref().map(ToString::to_string));
    set(&mut file.adapter, &args.adapter);
    file.override_with(&args.recipe);
    set(&mut file.lora.alpha, &args.alpha);
    set(&mut file.lora.dropout, &args.dropout);
    if !args.targets.is_empty() {
        file.lora.target_modules.clone_from(&args.targets);
    }
    set(&mut file.train.learning_rate, &args.learning_rate);
    set(&mut file.train.seed, &args.seed);
    set(&mut file.stop.target_loss, &args.target_loss);
    set(&mut file.evaluate.max_new_tokens, &args.max_new_tokens);
    set(&mut file.evaluate.max_validation_rows, &args.max_validation_rows);
}
