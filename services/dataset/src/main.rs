//! `tailor-dataset`: the dataset service as a process of its own.

use std::process::ExitCode;

use tailor_serverkit::{boot, store};

fn main() -> ExitCode {
    if let Some(code) = tailor_text::serve_if_asked() {
        return code;
    }
    let about = "Checks, cleans, splits and tokenises uploaded rows";
    boot::main("tailor-dataset", 50051, about, |settings, listener, stop| async move {
        let store = store::open(&settings).await?;
        let serving = tailor_dataset::start(&settings, store, listener, stop).await?;
        Ok(serving.finished().await?)
    })
}
