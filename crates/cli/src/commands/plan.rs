//! `tailor plan`: what a job would take, as tables.

use anyhow::Context as _;
use serde_json::{Value, json};
use tailor_pb::training as pb;

use crate::args::{Plan, VersionedName};
use crate::commands::train::job_file::{JobFile, set};
use crate::connect::Endpoints;
use crate::output::{Output, bytes};
use crate::table;

pub async fn run(endpoints: &Endpoints, args: &Plan, output: &Output) -> anyhow::Result<()> {
    let plan = endpoints.trainer()?.plan_job(request(args)?).await?.into_inner();
    output.show(&describe(&plan), || print(&plan))
}

fn request(args: &Plan) -> anyhow::Result<pb::PlanJobRequest> {
    let mut file = args.file.as_deref().map(JobFile::read).transpose()?.unwrap_or_default();
    set(&mut file.base, &args.base);
    set(&mut file.dataset, &args.dataset.as_ref().map(ToString::to_string));
    file.override_with(&args.recipe);
    let dataset: VersionedName = file.dataset.parse().map_err(anyhow::Error::msg).context("dataset")?;
    let recipe = file.recipe();
    recipe.validate().context("these settings cannot be trained")?;
    let job = pb::CreateJobRequest {
        base: file.base,
        dataset: dataset.name,
        dataset_version: dataset.version,
        ..(&recipe).into()
    };
    let card = |(name, memory_bytes): &(String, u64)| pb::Card { name: name.clone(), memory_bytes: *memory_bytes };
    Ok(pb::PlanJobRequest {
        job: Some(job),
        cards: args.cards.iter().map(card).collect(),
        price_per_hour: args.price.unwrap_or(0.0),
    })
}

fn print(plan: &pb::Plan) {
    println!(
        "{} of {} parameters are trained, in {}; {} steps, {} tokens\n",
        plan.trainable, plan.parameters, plan.compute, plan.steps, plan.tokens
    );
    let Some(first) = plan.fits.first() else { return };
    println!("Memory on {}, {} sequences in a pass:", first.device, first.micro_batch);
    let mut parts: Vec<(&str, String)> =
        first.parts.iter().map(|part| (part.name.as_str(), bytes(part.bytes))).collect();
    parts.push(("in all", bytes(first.needed_bytes)));
    table::fields(&parts);
    println!();
    let fit = |fit: &pb::Fit| {
        vec![
            fit.device.clone(),
            bytes(fit.memory_bytes),
            bytes(fit.needed_bytes),
            fit.micro_batch.to_string(),
            if fit.fits { "fits" } else { "does not fit" }.to_owned(),
            time(fit.seconds),
            money(fit.cost),
        ]
    };
    let rows: Vec<_> = plan.fits.iter().map(fit).collect();
    table::print(&["device", "has", "needed", "rows in a pass", "", "time", "cost"], &rows);
    println!();
    let way = |way: &pb::Way| {
        let card = if way.smallest_card.is_empty() { "none of these" } else { &way.smallest_card };
        vec![way.name.clone(), bytes(way.needed_bytes), card.to_owned(), time(way.seconds), money(way.cost)]
    };
    let rows: Vec<_> = plan.ways.iter().map(way).collect();
    table::print(&["way", "needed", "smallest card", "time", "cost"], &rows);
    if plan.fits_a_trainer.is_none() {
        println!("\nno trainer has said what it has, so there is no time; start one with the worker role");
    }
    if plan.fits_a_trainer == Some(false) {
        println!("\nIt fits on no trainer; `tailor train` would be refused.");
    }
    if !plan.waiting.is_empty() && plan.fits_a_trainer == Some(true) {
        println!("\nIt would wait: {}.", plan.waiting);
    }
    for change in &plan.nearest {
        println!("It would with {}: {}", words(change), bytes(change.needed_bytes));
    }
}

fn words(change: &pb::Change) -> String {
    let each = change.settings.iter().map(|setting| format!("{}: {}", setting.field, setting.value));
    each.collect::<Vec<_>>().join(", ")
}

fn time(seconds: Option<f64>) -> String {
    seconds.map_or_else(
        || "not measured".to_owned(),
        |seconds| match seconds {
            seconds if seconds < 120.0 => format!("{seconds:.0} s"),
            seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
            seconds => format!("{:.1} h", seconds / 3600.0),
        },
    )
}

fn money(cost: Option<f64>) -> String {
    cost.map_or_else(String::new, |cost| format!("{cost:.2}"))
}

fn describe(plan: &pb::Plan) -> Value {
    let parts = |fit: &pb::Fit| -> serde_json::Map<String, Value> {
        fit.parts.iter().map(|part| (part.name.clone(), part.bytes.into())).collect()
    };
    let fit = |fit: &pb::Fit| {
        json!({
            "device": fit.device, "own": fit.own, "memory_bytes": fit.memory_bytes, "needed_bytes": fit.needed_bytes,
            "parts": parts(fit), "micro_batch": fit.micro_batch, "fits": fit.fits, "seconds": fit.seconds,
            "cost": fit.cost,
        })
    };
    let way = |way: &pb::Way| {
        json!({
            "name": way.name, "needed_bytes": way.needed_bytes, "seconds": way.seconds, "cost": way.cost,
            "smallest_card": way.smallest_card,
        })
    };
    let change = |change: &pb::Change| {
        let settings: serde_json::Map<String, Value> =
            change.settings.iter().map(|setting| (setting.field.clone(), setting.value.clone().into())).collect();
        json!({ "settings": settings, "needed_bytes": change.needed_bytes })
    };
    json!({
        "parameters": plan.parameters, "trainable": plan.trainable, "compute": plan.compute, "steps": plan.steps,
        "tokens": plan.tokens, "fits_a_trainer": plan.fits_a_trainer, "waiting": plan.waiting,
        "fits": plan.fits.iter().map(fit).collect::<Vec<_>>(),
        "ways": plan.ways.iter().map(way).collect::<Vec<_>>(),
        "nearest": plan.nearest.iter().map(change).collect::<Vec<_>>(),
    })
}
