//! The `main` of every service binary: flags, settings, logs, serve, stop.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::settings::Settings;

#[derive(Debug, Parser)]
struct Flags {
    /// Settings in TOML; `TAILOR__SECTION__KEY` in the environment wins over it, flags win over both.
    #[arg(long, env = "TAILOR_CONFIG")]
    config: Option<PathBuf>,
    /// Address to listen on, e.g. 0.0.0.0:50051.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Any setting by its dotted key, e.g. --set store.url=s3://bucket. May be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask a running service for its health; exits 0 when it serves.
    Health {
        /// host:port
        #[arg(long)]
        addr: String,
    },
}

/// Runs a service binary. `start` gets valid settings, a bound listener and the token that ends it.
pub fn main<F, R>(service: &'static str, default_port: u16, about: &'static str, start: F) -> ExitCode
where
    F: FnOnce(Settings, TcpListener, CancellationToken) -> R,
    R: Future<Output = Result<(), Box<dyn std::error::Error + Send + Sync>>>,
{
    let command =
        <Flags as clap::CommandFactory>::command().name(service).about(about).version(env!("CARGO_PKG_VERSION"));
    let flags = match <Flags as clap::FromArgMatches>::from_arg_matches(&command.get_matches()) {
        Ok(flags) => flags,
        Err(error) => error.exit(),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(service, &error),
    };
    let outcome = runtime.block_on(async {
        if let Some(Command::Health { addr }) = &flags.command {
            return crate::health::probe(addr, Duration::from_secs(3)).await.map_err(Into::into);
        }
        run(service, default_port, flags, start).await
    });
    // A worker thread may still sit in a step; it holds nothing that must be saved.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(service, error.as_ref()),
    }
}

async fn run<F, R>(
    service: &'static str,
    default_port: u16,
    flags: Flags,
    start: F,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    F: FnOnce(Settings, TcpListener, CancellationToken) -> R,
    R: Future<Output = Result<(), Box<dyn std::error::Error + Send + Sync>>>,
{
    let mut overrides = Vec::new();
    for pair in &flags.overrides {
        match pair.split_once('=') {
            Some((key, value)) => overrides.push((key.to_owned(), value.to_owned())),
            None => return Err(format!("--set {pair:?} has no '='; write --set KEY=VALUE").into()),
        }
    }
    if let Some(listen) = flags.listen {
        overrides.push(("listen".into(), listen.to_string()));
    }
    let mut settings = Settings::load(flags.config.as_deref(), &overrides)?;
    if settings.listen.port() == 0 && flags.listen.is_none() {
        settings.listen.set_port(default_port);
    }
    let _telemetry = crate::telemetry::init(service, &settings)?;
    let stop = crate::shutdown::on_signal()?;
    let listener = crate::server::bind(settings.listen).await?;
    start(settings, listener, stop).await
}

fn fail(service: &str, error: &dyn std::error::Error) -> ExitCode {
    eprintln!("{service}: error: {error}");
    ExitCode::FAILURE
}
