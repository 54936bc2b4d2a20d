//! Against bitsandbytes' bytes (tests/golden/quant), and whole folders against what transformers saves
//! (tests/golden/models).

mod folders;
mod golden;

use std::path::PathBuf;

/// A folder of tests/golden.
fn golden_folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}
