//! Runs programs where the user sees them.

use std::env;
use std::io::{self, Read as _};
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

/// Runs to the end without a word. What it printed, output and errors in the order in which they came, and the exit status.
pub fn heard(command: &mut Command) -> Result<(String, ExitStatus)> {
    let line = line(command);
    let (mut reader, writer) = io::pipe().context("cannot make a pipe")?;
    let errors = writer.try_clone().context("cannot share a pipe")?;
    let child = command.stdin(Stdio::null()).stdout(writer).stderr(errors).spawn();
    // The command holds the pipe's other end as the child does; while it is held, reading comes to no end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.with_context(|| format!("cannot run {line}"))?;
    let mut said = Vec::new();
    let heard = reader.read_to_end(&mut said);
    let status = child.wait().with_context(|| format!("cannot wait for {line}"))?;
    heard.with_context(|| format!("cannot read what {line} prints"))?;
    Ok((String::from_utf8_lossy(&said).into_owned(), status))
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
    fn what_a_command_prints_is_heard_in_its_order_with_how_it_ended() {
        let (said, status) =
            heard(Command::new("sh").args(["-c", "echo one; echo two >&2; echo three; exit 3"])).unwrap();
        assert_eq!((said.as_str(), status.code()), ("one\ntwo\nthree\n", Some(3)));
    }

    #[test]
    fn command_is_shown_as_one_would_type_it() {
        assert_eq!(line(Command::new("/opt/rust/bin/cargo").args(["fmt", "--check"])), "cargo fmt --check");
    }
}
