//! `cargo xtask bench`: the table of benchmarks. A new one is a new row.

use anyhow::{Result, bail};

use crate::{checks, libtorch, package, process, workspace};

struct Bench {
    name: &'static str,
    about: &'static str,
    /// How Cargo finds it: package, and the flag and name of the target.
    package: &'static str,
    target: [&'static str; 2],
    peer: Peer,
    /// Packages of the programs that it starts, as they are shipped, from beside itself.
    programs: &'static [&'static str],
}

/// Whom it runs beside us.
enum Peer {
    Nobody,
    /// PEFT, bitsandbytes and torch.
    Python,
    /// llama.cpp as fast as its compiler makes it here.
    LlamaCpp,
}

const BENCHES: &[Bench] = &[
    Bench {
        name: "memory",
        about: "predicted and measured peaks of training over a grid, and beside PEFT with bitsandbytes (--no-peer)",
        package: "tailor-train",
        target: ["--example", "bench_memory"],
        peer: Peer::Python,
        programs: &[],
    },
    Bench {
        name: "dense",
        about: "peak memory of one training step with and without the 4-bit base",
        package: "tailor-train",
        target: ["--example", "bench_dense"],
        peer: Peer::Nobody,
        programs: &[],
    },
    Bench {
        name: "train",
        about: "tokens a second in turn with PEFT and bitsandbytes, and where a step's time goes (--no-peer)",
        package: "tailor-train",
        target: ["--example", "bench_train"],
        peer: Peer::Python,
        programs: &[],
    },
    Bench {
        name: "serve",
        about: "tokens a second of serving in turn with llama.cpp, share of the bandwidth, what adapters cost (--no-peer; --device cuda)",
        package: "tailor-engine",
        target: ["--example", "bench_serve"],
        peer: Peer::LlamaCpp,
        programs: &[],
    },
    Bench {
        name: "ranks",
        about: "one job on one rank and on several, a thread each: tokens a second, and what the gradients take",
        package: "tailor-train",
        target: ["--example", "bench_ranks"],
        peer: Peer::Nobody,
        programs: &[],
    },
    Bench {
        name: "share",
        about: "1, 4 and 8 jobs on one resident base against as many processes: tokens a second, memory, same bytes",
        package: "tailor-train",
        target: ["--example", "bench_share"],
        peer: Peer::Nobody,
        programs: &[],
    },
    Bench {
        name: "startup",
        about: "from lease to first step, and the services' memory at 10 MB, 100 MB and 1 GB of rows (--up-to 5GB)",
        package: "tailor-tests",
        target: ["--example", "bench_startup"],
        peer: Peer::Nobody,
        programs: &["tailor-cli", "tailor-dataset", "tailor-registry", "tailor-trainer"],
    },
    Bench {
        name: "adapters",
        about: "time to the first token by where an adapter is, and 1 to 1,000 adapters under a Zipf load (--only cold)",
        package: "tailor-tests",
        target: ["--example", "bench_adapters"],
        peer: Peer::Nobody,
        programs: &["tailor-cli", "tailor-gateway", "tailor-registry"],
    },
    Bench {
        name: "gpu",
        about: "training on an NVIDIA GPU, 7B to 70B shapes; --package DIR makes a folder that does it elsewhere",
        package: "tailor-train",
        target: ["--example", "bench_gpu"],
        peer: Peer::Nobody,
        programs: &[],
    },
    Bench {
        name: "load",
        about: "a sharded 7B-shaped folder quantised, loaded and scored: times and peak memory",
        package: "tailor-train",
        target: ["--example", "bench_load"],
        peer: Peer::Python,
        programs: &[],
    },
    Bench {
        name: "registry",
        about: "100,000 versions and 1,000 aliases on local disk: resolve, list, cold start",
        package: "tailor-registry",
        target: ["--example", "bench_registry"],
        peer: Peer::Nobody,
        programs: &[],
    },
    Bench {
        name: "codes",
        about: "error of each 4-bit code: by layer, and in perplexity on held-out rows",
        package: "tailor-bases",
        target: ["--example", "bench_codes"],
        peer: Peer::Nobody,
        programs: &[],
    },
    Bench {
        name: "quant",
        about: "quantising and dequantising 4096×4096 beside bitsandbytes",
        package: "tailor-quant",
        target: ["--example", "bench_quant"],
        peer: Peer::Python,
        programs: &[],
    },
];

/// `cargo xtask bench NAME [ARGUMENTS]`
pub fn bench(arguments: &[String]) -> Result<()> {
    let Some((name, rest)) = arguments.split_first() else {
        println!("{}", list());
        return Ok(());
    };
    let Some(bench) = BENCHES.iter().find(|bench| bench.name == name) else {
        bail!("there is no benchmark {name}; there are:\n{}", list());
    };
    if let ("gpu", [flag, rest @ ..]) = (bench.name, rest)
        && flag == "--package"
    {
        let [folder] = rest else { bail!("--package needs one folder, as in `cargo xtask bench gpu --package out`") };
        return package::gpu(&std::path::absolute(folder)?);
    }
    libtorch::setup()?;
    if !bench.programs.is_empty() {
        let packages = bench.programs.iter().flat_map(|program| ["--package", program]);
        process::run(workspace::cargo().args(["build", "--release", "--bins"]).args(packages))?;
    }
    let mut command = workspace::cargo();
    command.args(["run", "--release", "--package", bench.package]).args(bench.target).arg("--").args(rest);
    // A Python that is there already serves as well; without the peer none is needed, and on a GPU serving has none.
    let alone = |word: &String| word == "--no-peer" || (bench.name == "serve" && word == "--device");
    if std::env::var_os("TAILOR_PEER_PYTHON").is_none() && !rest.iter().any(alone) {
        let venv = match bench.peer {
            Peer::Nobody => None,
            Peer::Python => Some(checks::parity_venv()?),
            Peer::LlamaCpp => Some(checks::llama_venv()?),
        };
        if let Some(venv) = venv {
            command.env("TAILOR_PEER_PYTHON", venv.python());
        }
    }
    process::run(&mut command)
}

fn list() -> String {
    let rows = BENCHES.iter().map(|bench| format!("  {:10} {}", bench.name, bench.about));
    rows.collect::<Vec<_>>().join("\n")
}
