//! Build-script helper: link arguments for binaries that use libtorch.
//!
//! Cargo does not hand link arguments on from a dependency, so each package with a binary, test, example or benchmark
//! that ends up with libtorch in it has a `build.rs` of one line: `fn main() { tailor_torch_link::emit() }`.
//!
//! `LIBTORCH` comes from `.cargo/config.toml` and names the link that `cargo xtask setup` makes.

use std::env;
use std::path::{Path, PathBuf};
use std::process;

/// Where `.cargo/config.toml` says libtorch is.
const VARIABLE: &str = "LIBTORCH";

/// Libraries that must be in every process, although no symbol of some of them is named in the program: torch
/// registers its operators and device back ends in static initialisers.
const LIBRARIES: [&str; 3] = ["torch_cpu", "torch", "c10"];

/// Prints the link arguments for everything this package links: libtorch's libraries, kept even where the linker sees
/// no use of them, and the places to look for them at run time.
///
/// Ends the build script with an error that names the remedy when libtorch is not there.
pub fn emit() {
    let libtorch = folder();
    for argument in link_args(&libtorch) {
        println!("cargo::rustc-link-arg={argument}");
    }
}

/// libtorch's folder, with links resolved: `lib/` and `include/` are under it.
///
/// Ends the build script with an error that names the remedy when libtorch is not there.
pub fn folder() -> PathBuf {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    match find(env::var_os(VARIABLE).map(PathBuf::from)) {
        Ok(libtorch) => {
            println!("cargo::rerun-if-changed={}", libtorch.join("lib/libtorch_cpu.so").display());
            libtorch
        }
        Err(message) => {
            println!("cargo::error={message}");
            process::exit(1);
        }
    }
}

/// The two folders a C++ file that includes `torch/torch.h` needs on its include path.
pub fn include_folders() -> [PathBuf; 2] {
    let libtorch = folder();
    [libtorch.join("include"), libtorch.join("include/torch/csrc/api/include")]
}

fn find(configured: Option<PathBuf>) -> Result<PathBuf, String> {
    let remedy = "run `cargo xtask setup`, or `TAILOR_LIBTORCH=/your/libtorch cargo xtask setup` to use your own";
    let Some(configured) = configured else {
        return Err(format!("libtorch not found: {VARIABLE} is not set (it is in .cargo/config.toml); {remedy}"));
    };
    let library = configured.join("lib/libtorch_cpu.so");
    if !library.exists() {
        return Err(format!("libtorch not found: there is no {}; {remedy}", library.display()));
    }
    configured
        .canonicalize()
        .map_err(|error| format!("libtorch not found: cannot resolve {}: {error}; {remedy}", configured.display()))
}

fn link_args(libtorch: &Path) -> Vec<String> {
    let lib = libtorch.join("lib");
    let mut arguments = vec![format!("-L{}", lib.display()), "-Wl,--push-state,--no-as-needed".to_owned()];
    arguments.extend(LIBRARIES.map(|library| format!("-l{library}")));
    arguments.push("-Wl,--pop-state".to_owned());
    // First the places beside an installed program, so that an image or an archive can carry its own libtorch.
    for place in ["$ORIGIN/../lib", "$ORIGIN/lib"] {
        arguments.push(format!("-Wl,-rpath,{place}"));
    }
    arguments.push(format!("-Wl,-rpath,{}", lib.display()));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_variable_names_the_remedy() {
        let message = find(None).unwrap_err();
        assert!(message.contains("LIBTORCH is not set"), "{message}");
        assert!(message.contains("cargo xtask setup"), "{message}");
    }

    #[test]
    fn missing_library_names_the_file_and_the_remedy() {
        let message = find(Some(PathBuf::from("/nonexistent/libtorch"))).unwrap_err();
        assert!(message.contains("/nonexistent/libtorch/lib/libtorch_cpu.so"), "{message}");
        assert!(message.contains("cargo xtask setup"), "{message}");
    }

    #[test]
    fn libraries_stand_between_push_and_pop_state() {
        let arguments = link_args(Path::new("/opt/libtorch"));
        let at = |wanted: &str| arguments.iter().position(|argument| argument == wanted).unwrap();
        assert!(at("-Wl,--push-state,--no-as-needed") < at("-ltorch_cpu"));
        assert!(at("-lc10") < at("-Wl,--pop-state"));
    }

    #[test]
    fn libtorch_beside_the_program_is_looked_for_before_the_build_machines() {
        let arguments = link_args(Path::new("/opt/libtorch"));
        let at = |wanted: &str| arguments.iter().position(|argument| argument == wanted).unwrap();
        assert!(at("-Wl,-rpath,$ORIGIN/../lib") < at("-Wl,-rpath,/opt/libtorch/lib"));
    }
}
