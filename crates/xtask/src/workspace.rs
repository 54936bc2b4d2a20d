//! Where things are: the clone, the cache, what Cargo builds.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The clone's root.
pub fn root() -> PathBuf {
    // Cargo sets the variable for `cargo run`; what was compiled in serves a directly started program.
    let here = env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let root = Path::new(&here).ancestors().nth(2).unwrap_or(Path::new("."));
    root.to_owned()
}

/// `$TAILOR_CACHE`, or `~/.cache/tailor`: shared by all clones of a user.
pub fn cache() -> Result<PathBuf> {
    let chosen = env::var_os("TAILOR_CACHE").filter(|value| !value.is_empty()).map(PathBuf::from);
    let standard = || env::var_os("HOME").map(|home| Path::new(&home).join(".cache/tailor"));
    let cache = chosen.or_else(standard).context("neither TAILOR_CACHE nor HOME is set: set one")?;
    std::path::absolute(&cache).with_context(|| format!("cannot resolve {}", cache.display()))
}

/// Cargo, as the user called it.
pub fn cargo() -> Command {
    building(Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into())))
}

/// A command that builds, from the root. What `cargo run` has told this program of itself is taken away: build scripts look at
/// it (`ring`'s does), and half of all crates would be built again whenever `cargo build` and `cargo xtask` take turns.
pub fn building(mut command: Command) -> Command {
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command.current_dir(root());
    command
}

/// What `cargo metadata` says about the workspace's own packages.
pub fn metadata() -> Result<serde_json::Value> {
    let output =
        cargo().args(["metadata", "--format-version", "1", "--no-deps"]).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo metadata failed:\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")
}

/// Where Cargo puts programs of the dev profile.
pub fn programs() -> Result<PathBuf> {
    let metadata = metadata()?;
    let target = metadata.get("target_directory").and_then(|value| value.as_str()).context("no target directory")?;
    Ok(Path::new(target).join("debug"))
}
