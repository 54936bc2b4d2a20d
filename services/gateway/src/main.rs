//! `tailor-gateway`: text from bases and adapters as a process of its own.

use std::process::ExitCode;

use tailor_serverkit::{boot, store};

fn main() -> ExitCode {
    let about = "Serves many adapters on one 4-bit base";
    boot::main("tailor-gateway", 50054, about, |settings, listener, stop| async move {
        let store = store::open(&settings).await?;
        let serving = tailor_gateway::start(&settings, store, listener, stop).await?;
        Ok(serving.finished().await?)
    })
}
