//! The real redis-server. The tests start and stop their own on free ports; here it is only found or installed.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process;

const OVERRIDE: &str = "TAILOR_REDIS_SERVER";

/// The path of redis-server.
pub fn server() -> Result<PathBuf> {
    if let Some(own) = env::var_os(OVERRIDE).map(PathBuf::from) {
        ensure!(own.is_file(), "{OVERRIDE} is {}, which is not a file", own.display());
        return Ok(own);
    }
    for program in ["redis-server", "valkey-server"] {
        if let Some(found) = process::find(program) {
            return Ok(found);
        }
    }
    let is_root = process_owner().as_deref() == Some("0");
    if !is_root || process::find("apt-get").is_none() {
        bail!(
            "redis-server is not installed: install it (Debian, Ubuntu: `sudo apt-get install redis-server`; Fedora: \
             `sudo dnf install valkey`), or name one by {OVERRIDE}"
        );
    }
    process::heading("installing redis-server with apt-get");
    let mut install = apt_get(&["install", "--yes", "--no-install-recommends", "redis-server"]);
    if !process::status(&mut install)?.success() {
        process::run(&mut apt_get(&["update"]))?;
        process::run(&mut install)?;
    }
    process::find("redis-server").context("apt-get installed redis-server, but it is not on PATH")
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn process_owner() -> Option<String> {
    let output = Command::new("id").arg("-u").output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
