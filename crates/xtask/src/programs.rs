//! `cargo xtask demo|soak|make-bases`: builds a program of ours and runs it.

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

/// `cargo xtask soak [--minutes N | --overload]`
pub fn soak(arguments: &[String]) -> Result<()> {
    libtorch::setup()?;
    process::heading("building tailor in release mode");
    process::run(workspace::cargo().args(["build", "--release", "--package", "tailor-cli"]))?;
    let folder = workspace::programs()?.with_file_name("release");
    let mut soak = workspace::cargo();
    soak.args(["run", "--release", "--package", "tailor-tests", "--example", "soak", "--"]).args(arguments);
    process::run(soak.env("TAILOR_BIN_DIR", folder))
}
