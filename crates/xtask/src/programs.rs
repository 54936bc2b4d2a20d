//! `cargo xtask demo|make-bases`: builds a program of ours and runs it.

use std::process::Command;

use anyhow::Result;

use crate::{libtorch, process, workspace};

/// `cargo xtask demo [ARGUMENTS]`
pub fn demo(arguments: &[String]) -> Result<()> {
    libtorch::setup()?;
    process::heading("building tailor (the first time takes some minutes)");
    process::run(workspace::cargo().args(["build", "--package", "tailor-cli"]))?;
    let tailor = workspace::programs()?.join("tailor");
    process::run(Command::new(tailor).arg("demo").args(arguments).current_dir(workspace::root()))
}

/// `cargo xtask make-bases [ARGUMENTS]`
pub fn make_bases(arguments: &[String]) -> Result<()> {
    libtorch::setup()?;
    process::run(workspace::cargo().args(["run", "--release", "--package", "tailor-bases", "--"]).args(arguments))
}
