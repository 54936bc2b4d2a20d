//! Virtualenvs in the cache. Running Tailor needs no Python; testing it against the real peers does.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::lock::Lock;
use crate::{process, workspace};

/// Written last: what the virtualenv holds, and for which Python.
const MARKER: &str = "tailor-requirements.txt";
/// How llama-cpp-python is compiled, which comes as source alone. Its build brings its own cmake and ninja; a C++ compiler
/// must be there.
pub enum LlamaCpp {
    /// The library and nothing else, for any processor of the last ten years (a cache may outlive the machine), not
    /// optimised, since the models that it runs are tiny: 3.5 minutes of one core. For what it computes, not how fast.
    Anywhere,
    /// As its makers mean it to be on this processor: their defaults, without what is not used.
    Here,
}

impl LlamaCpp {
    fn cmake(&self) -> &'static str {
        match self {
            Self::Anywhere => {
                "-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DGGML_LLAMAFILE=OFF -DGGML_CPU_REPACK=OFF \
                 -DLLAMA_OPENSSL=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O0 -DCMAKE_C_FLAGS_RELEASE=-O0"
            }
            Self::Here => "-DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF",
        }
    }

    /// More for its compilers. GCC 12 believes that a tile's configuration is eight bytes long and drops what is written
    /// behind them, so that products by tiles (AMX) end in a segmentation fault.
    fn flags(&self) -> &'static str {
        match self {
            Self::Anywhere => "",
            Self::Here => "-fno-tree-dse -fno-dse",
        }
    }

    /// What pip is told about it. Its cache keeps what was compiled by name and version alone, however that was done.
    fn tell(&self, pip: &mut Command) {
        pip.env("CMAKE_ARGS", self.cmake()).env("CFLAGS", self.flags()).env("CXXFLAGS", self.flags());
        if let Self::Here = self {
            pip.arg("--no-cache-dir");
        }
    }

    /// For what it is made, if not for all: part of what a virtualenv must hold.
    fn made_for(&self) -> String {
        match self {
            Self::Anywhere => String::new(),
            Self::Here => {
                let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
                let features = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
                format!("# {features}\n")
            }
        }
    }
}

pub struct Venv {
    folder: PathBuf,
}

impl Venv {
    /// A virtualenv that holds a committed list of requirements; made or brought up to date where it does not.
    pub fn ensure(name: &str, requirements: &str, note: &str) -> Result<Self> {
        Self::ensure_with(name, requirements, note, &LlamaCpp::Anywhere)
    }

    /// The same, with llama.cpp made in a given way where it is among the requirements.
    pub fn ensure_with(name: &str, requirements: &str, note: &str, llama: &LlamaCpp) -> Result<Self> {
        let cache = workspace::cache()?;
        let venv = Self { folder: cache.join(name) };
        let requirements = workspace::root().join(requirements);
        let wanted =
            fs::read_to_string(&requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
        let wanted = format!("# {}\n{}{wanted}", version()?, llama.made_for());
        if venv.holds(&wanted) {
            return Ok(venv);
        }
        let _lock = Lock::take(&cache.join(format!("{name}.lock")), name)?;
        if venv.holds(&wanted) {
            return Ok(venv);
        }
        process::heading(&format!("installing {note} into {}", venv.folder.display()));
        venv.install(&requirements, llama)?;
        let marker = venv.folder.join(MARKER);
        fs::write(&marker, wanted).with_context(|| format!("cannot write {}", marker.display()))?;
        Ok(venv)
    }

    pub fn python(&self) -> PathBuf {
        self.script("python")
    }

    /// A program that a package brought.
    pub fn script(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    fn holds(&self, wanted: &str) -> bool {
        fs::read_to_string(self.folder.join(MARKER)).is_ok_and(|held| held == wanted)
    }

    fn install(&self, requirements: &Path, llama: &LlamaCpp) -> Result<()> {
        let quiet = ["install", "--quiet", "--disable-pip-version-check", "--requirement"];
        if process::succeeds(Command::new(self.python()).args(["-m", "pip", "--version"]))
            || process::succeeds(Command::new(interpreter()).args(["-m", "venv"]).arg(&self.folder))
        {
            let mut pip = Command::new(self.python());
            pip.args(["-m", "pip"]).args(quiet).arg(requirements);
            llama.tell(&mut pip);
            return process::run(&mut pip);
        }
        // Debian's python3 cannot put pip into a virtualenv without the package python3-venv; the pip outside can serve it.
        let bare = ["-m", "venv", "--clear", "--without-pip"];
        process::run(Command::new(interpreter()).args(bare).arg(&self.folder))?;
        let mut pip = Command::new(interpreter());
        pip.args(["-m", "pip", "--python"]).arg(self.python()).args(quiet).arg(requirements);
        llama.tell(&mut pip);
        process::run(&mut pip)
            .context("pip is needed, 22.3 or newer (Debian: apt-get install python3-pip python3-venv)")
    }
}

/// The Python that virtualenvs are made with.
fn interpreter() -> String {
    env::var("TAILOR_PYTHON").unwrap_or_else(|_| "python3".to_owned())
}

fn version() -> Result<String> {
    let interpreter = interpreter();
    let output = Command::new(&interpreter).arg("--version").output();
    let output = output
        .with_context(|| format!("cannot run {interpreter}: install Python 3.10 or newer, or set TAILOR_PYTHON"))?;
    ensure!(output.status.success(), "{interpreter} --version failed");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
