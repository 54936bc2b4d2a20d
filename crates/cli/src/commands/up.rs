//! `tailor up`: the whole system in this process until it is told to stop.

use tailor_serverkit::{Settings, shutdown, telemetry};

use crate::args::{Cli, Up};
use crate::connect::Addresses;
use crate::embedded;

pub async fn run(cli: &Cli, args: &Up) -> anyhow::Result<()> {
    let mut settings = Settings::load(cli.config.as_deref(), &[])?;
    if cli.log != "warn" {
        settings.log.filter.clone_from(&cli.log);
    }
    settings.auth.token = settings.auth.token.or_else(|| cli.token.clone());
    let _telemetry = telemetry::init("tailor", &settings)?;
    let stop = shutdown::on_signal()?;
    let system = embedded::start(&settings, &cli.state, args.host, args.port).await?;
    let addresses = &system.addresses;
    addresses.save(&cli.state)?;
    if cli.json {
        println!("{}", serde_json::to_string(addresses)?);
    } else {
        println!("dataset   {}", addresses.dataset);
        println!("trainer   {}", addresses.trainer);
        println!("registry  {}", addresses.registry);
        println!("gateway   {}", addresses.gateway);
        println!(
            "\nEverything is kept in {}. Other shells here find these addresses by themselves.",
            cli.state.display()
        );
        println!("Ctrl-C stops in order; a job that runs then goes on at the next start.");
    }
    stop.cancelled().await;
    Addresses::forget(&cli.state);
    system.shut_down().await
}
