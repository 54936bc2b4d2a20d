//! `tailor`: what a person types. A thin client of the four services, which it can also run in one process.

mod args;
mod commands;
mod connect;
mod embedded;
mod fault;
mod output;
mod picture;
mod table;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Cli, Command};
use crate::connect::Endpoints;
use crate::output::Output;

fn main() -> ExitCode {
    // `tailor up` holds the dataset service.
    if let Some(code) = tailor_text::serve_if_asked() {
        return code;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return fault::usage(&error),
    };
    let output = Output { json: cli.json };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fault::report(&output, &error.into()),
    };
    let outcome = runtime.block_on(run(cli, &output));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fault::report(&output, &error),
    }
}

async fn run(cli: Cli, output: &Output) -> anyhow::Result<()> {
    match &cli.command {
        Command::Up(up) => return commands::up::run(&cli, up).await,
        Command::Demo(demo) => return commands::demo::run(&cli, demo, output).await,
        Command::Completions { shell } => {
            let mut command = <Cli as clap::CommandFactory>::command();
            clap_complete::generate(*shell, &mut command, "tailor", &mut std::io::stdout());
            return Ok(());
        }
        Command::Dataset(_)
        | Command::Base(_)
        | Command::Hub(_)
        | Command::Plan(_)
        | Command::Train(_)
        | Command::Job(_)
        | Command::Adapter(_)
        | Command::Rollout(_)
        | Command::Generate(_)
        | Command::Score(_) => {}
    }
    let mut settings = tailor_serverkit::Settings::load(cli.config.as_deref(), &[])?;
    settings.log.filter = cli.log.clone();
    let _telemetry = tailor_serverkit::telemetry::init("tailor", &settings)?;
    // The root of the trace that follows a job through queue, trainer and registry.
    let span = tracing::info_span!("tailor.cli", command = cli.command.name());
    let work = async {
        let keys = tailor_serverkit::trust::Keys::of(&settings)?;
        let endpoints = Endpoints::find(&cli).trusting(keys.trusted);
        match &cli.command {
            Command::Dataset(command) => commands::dataset::run(&endpoints, command, output).await,
            Command::Base(command) => commands::base::run(&endpoints, command, output).await,
            Command::Hub(command) => commands::hub::run(&endpoints, command, output),
            Command::Plan(plan) => commands::plan::run(&endpoints, plan, output).await,
            Command::Train(train) => commands::train::run(&endpoints, train, output).await,
            Command::Job(command) => commands::job::run(&endpoints, command, output).await,
            Command::Adapter(command) => commands::adapter::run(&endpoints, command, output).await,
            Command::Rollout(command) => commands::rollout::run(&endpoints, command, output).await,
            Command::Generate(generate) => commands::generate::run(&endpoints, generate, output).await,
            Command::Score(score) => commands::score::run(&endpoints, score, output).await,
            Command::Up(_) | Command::Demo(_) | Command::Completions { .. } => Ok(()),
        }
    };
    tracing::Instrument::instrument(work, span).await
}
