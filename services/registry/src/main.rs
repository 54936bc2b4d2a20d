//! `tailor-registry`: the registry as a process of its own.

use std::process::ExitCode;

use tailor_serverkit::{boot, store};

fn main() -> ExitCode {
    let about = "Keeps bases, adapter versions and the aliases that point to them";
    boot::main("tailor-registry", 50053, about, |settings, listener, stop| async move {
        let store = store::open(&settings).await?;
        let serving = tailor_registry::start(&settings, store, listener, stop).await?;
        Ok(serving.finished().await?)
    })
}
