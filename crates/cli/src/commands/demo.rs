//! `tailor demo`: the main job on shipped data, by the same calls that everybody makes.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use serde_json::json;
use tailor_domain::{EvaluateSpec, LoraSpec, Recipe, TrainSpec};
use tailor_pb::inference as inf;
use tailor_pb::{registry, training};
use tailor_serverkit::{Settings, telemetry};

use crate::args::{Cli, Demo, DemoBase, Push, VersionedName};
use crate::commands::{base, dataset, job};
use crate::connect::Endpoints;
use crate::embedded;
use crate::output::Output;

const DATASET: &str = "grammar";
const ALIAS: &str = "production";
const TEMPLATE: &str = "Correct the grammar: {input}";
/// Sentences shown before and after; never part of the shipped rows.
const SHOWN: usize = 8;

/// One adapter a base: a version belongs to the base it was trained on.
fn adapter_name(base: DemoBase) -> &'static str {
    match base {
        DemoBase::TinyT5 => "grammar",
        DemoBase::TinyLlama => "grammar-llama",
    }
}

pub async fn run(cli: &Cli, args: &Demo, output: &Output) -> anyhow::Result<()> {
    let assets = find_assets(args.assets.as_deref())?;
    let mut settings = Settings::load(cli.config.as_deref(), &[])?;
    settings.log.filter.clone_from(&cli.log);
    settings.auth.token = settings.auth.token.or_else(|| cli.token.clone());
    let _telemetry = telemetry::init("tailor", &settings)?;

    heading(output, "1  Four services, one process, real gRPC");
    let system = embedded::start(&settings, &cli.state, IpAddr::V4(Ipv4Addr::LOCALHOST), 0).await?;
    let endpoints = system.endpoints(settings.auth.token.clone(), &cli.state);
    let at = &system.addresses;
    output.say(format!(
        "dataset {}  trainer {}  registry {}  gateway {}\neverything is kept in {}",
        at.dataset,
        at.trainer,
        at.registry,
        at.gateway,
        cli.state.display()
    ));
    let outcome = tokio::select! {
        outcome = walk(&endpoints, args, &assets, output) => outcome,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("stopped; the next `tailor demo` goes on with what is kept")),
    };
    system.shut_down().await?;
    outcome
}

async fn walk(endpoints: &Endpoints, args: &Demo, assets: &Path, output: &Output) -> anyhow::Result<()> {
    let adapter = adapter_name(args.base);
    heading(output, "2  A base, quantised to NF4 with double quantisation");
    base::add(endpoints, &assets.join("bases").join(args.base.name()), args.base.name(), "nf4", "f32", output).await?;

    heading(output, "3  Rows of (input, expected output), checked, balanced, split");
    let push = Push {
        file: assets.join("data/grammar.csv"),
        name: DATASET.into(),
        format: None,
        kind: None,
        input: Some("text".into()),
        target: Some("expected text".into()),
        messages: None,
        chosen: None,
        rejected: None,
        id: Some("id".into()),
        label: Some("language".into()),
        template: TEMPLATE.into(),
        validation: 0.1,
        max_label_ratio: 1.6,
        seed: 0,
        new_version: true,
    };
    dataset::push(endpoints, &push, output).await?;
    dataset::report(endpoints, &VersionedName { name: DATASET.into(), version: 0 }, output).await?;

    heading(output, "4  QLoRA: rank 16 on every linear layer");
    let started = Instant::now();
    let created = endpoints.trainer()?.create_job(request(args)).await?.into_inner();
    output.say(format!("job {}", created.id));
    let finished = job::watch(endpoints, &created.id, 1, output).await?;
    job::conclude(&finished, output)?;
    output.say(format!("took {:.0} s, evaluation included", started.elapsed().as_secs_f64()));

    heading(output, "5  Held-out rows, whose answers the trainer never saw");
    output.say(job::evaluation::table(&finished.metrics));
    output.say(format!("every answer: tailor job predictions {}", finished.id));

    heading(output, "6  Into production");
    let request = registry::SetAliasRequest {
        adapter: adapter.into(),
        alias: ALIAS.into(),
        version: finished.adapter_version,
        expected_version: None,
        who: "tailor demo".into(),
        why: "newest".into(),
    };
    let alias = endpoints.registry()?.set_alias(request).await?.into_inner();
    output.say(format!("{adapter}@{ALIAS} → version {}", alias.version));

    heading(output, "7  Unseen sentences: the base beside the adapter");
    before_after(endpoints, args.base, output).await?;
    output.say(format!(
        "\nNext:\n  tailor up &\n  tailor generate --adapter {adapter}@{ALIAS} 'She go to school every day.'\n  \
         tailor adapter show {adapter}@{ALIAS}\n  tailor adapter export {adapter}@{ALIAS} ./{adapter}-peft\n  tailor demo{}",
        match args.base {
            DemoBase::TinyT5 => " --base tiny-llama",
            DemoBase::TinyLlama => "",
        }
    ));
    Ok(())
}

/// The settings of `docs/bases.md`: what takes each tiny base past 80 % in minutes on two cores.
fn request(args: &Demo) -> training::CreateJobRequest {
    let (learning_rate, epochs, dropout) = match args.base {
        DemoBase::TinyT5 => (2e-3, 9.0, 0.1),
        DemoBase::TinyLlama => (2e-3, 4.0, 0.0),
    };
    let recipe = Recipe {
        lora: LoraSpec { rank: 16, alpha: 32.0, dropout, ..Default::default() },
        train: TrainSpec {
            learning_rate,
            epochs: args.epochs.unwrap_or(epochs),
            batch_rows: 32,
            max_tokens: 128,
            ..Default::default()
        },
        evaluate: EvaluateSpec { max_new_tokens: 48, ..Default::default() },
        ..Default::default()
    };
    training::CreateJobRequest {
        base: args.base.name().into(),
        dataset: DATASET.into(),
        adapter: adapter_name(args.base).into(),
        ..(&recipe).into()
    }
}

async fn before_after(endpoints: &Endpoints, base: DemoBase, output: &Output) -> anyhow::Result<()> {
    let mut client = endpoints.inference()?;
    let mut right = 0;
    for pair in tailor_corpus::rows::held_out(SHOWN) {
        let ask = |adapter: String| inf::GenerateRequest {
            base: base.name().into(),
            adapter,
            input: pair.text.clone(),
            max_new_tokens: 48,
            prompt_template: TEMPLATE.into(),
            ..Default::default()
        };
        let before = client.generate(ask(String::new())).await?.into_inner().text;
        let after = client.generate(ask(format!("{}@{ALIAS}", adapter_name(base)))).await?.into_inner().text;
        let is_right = after.trim() == pair.expected;
        right += usize::from(is_right);
        let document = json!({ "input": pair.text, "expected": pair.expected, "base": before, "adapter": after });
        output.show(&document, || {
            let mark = if is_right { console::style("✓").green() } else { console::style("✗").red() };
            println!("  input    {}\n  base     {}\n  adapter  {} {mark}", pair.text, before.trim(), after.trim());
            if !is_right {
                println!("  wanted   {}", pair.expected);
            }
            println!();
        })?;
    }
    output.say(format!("{right} of {SHOWN} right"));
    Ok(())
}

fn heading(output: &Output, text: &str) {
    output.say(format!("\n{}", console::style(text).bold()));
}

/// The folder with `bases/` and `data/`: given, or this one, or one above it.
fn find_assets(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let holds_assets = |dir: &Path| dir.join("data/grammar.csv").is_file() && dir.join("bases").is_dir();
    if let Some(dir) = given {
        anyhow::ensure!(holds_assets(dir), "{} has no bases/ and data/grammar.csv", dir.display());
        return Ok(dir.to_owned());
    }
    let here = std::env::current_dir()?;
    let found = here.ancestors().find(|dir| holds_assets(dir)).map(Path::to_owned);
    found.context("bases/ and data/grammar.csv are not here; run in a clone of Tailor, or give --assets DIR")
}
