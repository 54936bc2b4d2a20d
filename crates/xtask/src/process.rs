//! Runs programs where the user sees them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};

/// Says what happens next.
pub fn heading(text: &str) {
    println!("\n==> {text}");
}

/// Runs to the end and answers the exit status.
pub fn status(command: &mut Command) -> Result<ExitStatus> {
    let line = line(command);
    command.status().with_context(|| format!("cannot run {line}"))
}

/// Runs to the end; anything but success is an error that names the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    ensure!(status.success(), "{} failed ({status})", line(command));
    Ok(())
}

/// Whether a command runs and succeeds; what it prints is not shown.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Where a program is on PATH.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

/// The command as one would type it.
fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    let words = std::iter::once(program).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_is_shown_as_one_would_type_it() {
        assert_eq!(line(Command::new("/opt/rust/bin/cargo").args(["fmt", "--check"])), "cargo fmt --check");
    }
}
