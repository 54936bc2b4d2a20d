//! `cargo xtask bench gpu --package DIR`: a folder that measures on a machine with a GPU and libtorch, and nothing else.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{libtorch, process, workspace};

/// What goes over a slow line to a borrowed machine.
const LIMIT_BYTES: u64 = 64 << 20;
/// Training and serving: the package and its example.
const PROGRAMS: [(&str, &str); 2] = [("tailor-train", "bench_gpu"), ("tailor-engine", "bench_serve")];
const PEER: &str = "tests/bench/gpu_peer.py";

const RUN: &str = r#"#!/bin/sh
# Measures training on this machine's GPU, or with `serve` as the first word serving. Needs NVIDIA's driver and libtorch 2.11 with CUDA 13: either a folder of it named
# by LIBTORCH, or the torch 2.11 of `python3` (PYTHON names another). With a Python that has peft, bitsandbytes and
# transformers too, PEFT runs beside us. All arguments go to the program: see README.md.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
if [ -n "${LIBTORCH:-}" ]; then
    lib=$LIBTORCH/lib
elif lib=$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))' 2>/dev/null); then
    :
else
    echo "no libtorch: set LIBTORCH to a folder of libtorch 2.11 with CUDA 13, or PYTHON to a Python that has torch 2.11" >&2
    exit 3
fi
if [ ! -e "$lib/libtorch_cpu.so" ]; then
    echo "$lib has no libtorch_cpu.so: LIBTORCH must name the folder above lib/" >&2
    exit 3
fi
path=$lib
# A wheel keeps CUDA's libraries in packages beside torch.
for folder in "$lib"/../../nvidia/*/lib; do
    if [ -d "$folder" ]; then path=$path:$folder; fi
done
export LD_LIBRARY_PATH="$path${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
if [ "${1:-}" = serve ]; then
    shift
    exec "$here/bench_serve" --device cuda "$@"
fi
if "$python" -c 'import peft, bitsandbytes, transformers' 2>/dev/null; then
    # Python finds its own libraries.
    exec "$here/bench_gpu" --peer "$here/peer.sh" "$here/gpu_peer.py" "$@"
fi
echo "no peft, bitsandbytes and transformers for $python: PEFT is not run" >&2
exec "$here/bench_gpu" "$@"
"#;

const RUN_PEER: &str = r#"#!/bin/sh
unset LD_LIBRARY_PATH
exec "${PYTHON:-python3}" "$@"
"#;

/// Builds the programs, and puts them, the scripts and a page about them into `folder`.
pub fn gpu(folder: &Path) -> Result<()> {
    libtorch::setup()?;
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(workspace::root()).output();
    let commit = commit.ok().and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    let commit = commit.trim();
    for (package, example) in PROGRAMS {
        let mut build = workspace::cargo();
        build.args(["build", "--release", "--package", package, "--example", example]);
        build.env("TAILOR_COMMIT", commit);
        process::run(&mut build)?;
    }
    let examples = workspace::programs()?.with_file_name("release").join("examples");
    fill(folder, &examples, commit)?;
    let bytes = size_of_folder(folder)?;
    ensure!(bytes <= LIMIT_BYTES, "{} has {bytes} bytes; the limit is {LIMIT_BYTES}", folder.display());
    println!(
        "\n{}: {:.1} MB; copy it to a machine with a GPU and run ./run.sh there",
        folder.display(),
        bytes as f64 / 1e6
    );
    Ok(())
}

/// Puts everything in its place; what lies there under the same names is written over.
fn fill(folder: &Path, examples: &Path, commit: &str) -> Result<()> {
    let disk = |path: &Path| format!("cannot write {}", path.display());
    fs::create_dir_all(folder).with_context(|| disk(folder))?;
    let place = |name: &str| folder.join(name);
    let executable =
        |path: PathBuf| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).with_context(|| disk(&path));
    for (_, program) in PROGRAMS {
        let built = examples.join(program);
        fs::copy(&built, place(program)).with_context(|| format!("cannot copy {}", built.display()))?;
        executable(place(program))?;
    }
    fs::copy(workspace::root().join(PEER), place("gpu_peer.py")).with_context(|| disk(folder))?;
    for (name, text) in [("run.sh", RUN), ("peer.sh", RUN_PEER)] {
        fs::write(place(name), text).with_context(|| disk(&place(name)))?;
        executable(place(name))?;
    }
    fs::write(place("README.md"), readme(commit)).with_context(|| disk(&place("README.md")))
}

fn readme(commit: &str) -> String {
    format!(
        "# Tailor's benchmark on a GPU, commit {commit}\n\n\
         Needs: Linux on x86-64 with glibc 2.36 or newer, an NVIDIA GPU of compute capability 8.0 or newer with its driver,\n\
         and libtorch 2.11 with CUDA 13 (`pip install torch==2.11.0` has it).\n\n\
         ```\n\
         ./run.sh                              all shapes; PEFT beside us where this Python has it\n\
         LIBTORCH=/opt/libtorch ./run.sh       a libtorch without Python\n\
         ./run.sh serve --shape llama3-8b      decoding, prompts and adapters; the products beside what the card copies\n\
         ./run.sh --shape llama3-8b --steps 20 --json figures.json\n\
         ./run.sh --device cpu --shape tiny    tries the program out without a GPU\n\
         ./run.sh --device emulated --shape tiny   the same by the GPU's kernels, on the host (needs a C++ compiler)\n\
         ```\n\n\
         Shapes: llama3-8b, llama2-7b, t5-11b, llama2-70b, tiny. Weights are random and made on the card. It prints a table\n\
         and, with --json, writes the same figures. Without a usable GPU it says what is missing and ends with status 3.\n"
    )
}

fn size_of_folder(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder whose programs say what they were started with.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (_, program) in PROGRAMS {
            let text = format!("#!/bin/sh\necho \"{program} path=$LD_LIBRARY_PATH args=$*\"\n");
            fs::write(folder.path().join(program), text).unwrap();
        }
        fill(&folder.path().join("package"), folder.path(), "abc1234").unwrap();
        folder
    }

    fn run(folder: &Path, libtorch: &Path, words: &[&str]) -> std::process::Output {
        let mut command = Command::new(folder.join("package/run.sh"));
        command.env("LIBTORCH", libtorch).env("PYTHON", "/nonexistent/python").env_remove("LD_LIBRARY_PATH");
        command.args(words).output().unwrap()
    }

    #[test]
    fn the_package_starts_the_program_with_libtorch_on_its_path() {
        let folder = folder();
        let lib = folder.path().join("libtorch/lib");
        fs::create_dir_all(&lib).unwrap();
        fs::write(lib.join("libtorch_cpu.so"), "").unwrap();
        let output = run(folder.path(), &folder.path().join("libtorch"), &["--shape", "tiny"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        assert!(said.contains(&format!("path={}", lib.display())) && said.contains("args=--shape tiny"), "{said}");
        assert!(said.starts_with("bench_gpu "), "{said}");
        let output = run(folder.path(), &folder.path().join("libtorch"), &["serve", "--pairs", "3"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.starts_with("bench_serve ") && said.contains("args=--device cuda --pairs 3"), "{said}");
        let read = |name: &str| fs::read_to_string(folder.path().join("package").join(name)).unwrap();
        assert!(read("README.md").contains("abc1234"));
        assert!(read("gpu_peer.py").contains("PEFT + bitsandbytes"));
    }

    #[test]
    fn a_machine_without_libtorch_is_told_so_with_status_3() {
        let folder = folder();
        let output = run(folder.path(), &folder.path().join("nowhere"), &[]);
        assert_eq!(output.status.code(), Some(3));
        assert!(String::from_utf8_lossy(&output.stderr).contains("has no libtorch_cpu.so"), "{output:?}");
    }
}
