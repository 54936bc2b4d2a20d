//! Speed of quantising and dequantising a 4096×4096 matrix to and from NF4, beside bitsandbytes' on the same CPU.
//!
//! Both sides run in turn, three calls each of which the median counts, so that a machine whose speed drifts drifts for both; medians and the median of
//! the pairs' ratios are printed. We dequantise into memory that is there already, as a training step does, and then also
//! into new memory; bitsandbytes on the CPU always makes a new tensor. `cargo xtask bench quant` brings the Python that has bitsandbytes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use half::bf16;
use rand::{Rng as _, SeedableRng as _};
use tailor_quant::{Backend, BlockSize, Code, Float, Instructions, quantize_bytes};

type Failure = Box<dyn std::error::Error>;

const SIDE: usize = 4096;
const WARM_UP: usize = 2;
const CALLS: usize = 3;
/// Of a cache, bytes.
const LINE: usize = 64;

/// Work, type of the weight, and whether the scales are quantised too.
const ROWS: [(&str, Float, bool); 8] = [
    ("quantize", Float::F32, false),
    ("quantize", Float::F32, true),
    ("quantize", Float::Bf16, true),
    ("dequantize", Float::F32, false),
    ("dequantize", Float::F32, true),
    ("dequantize", Float::Bf16, true),
    (ANEW, Float::F32, true),
    (ANEW, Float::Bf16, true),
];

const ANEW: &str = "dequantize into new memory";

/// Where dequantised values go.
struct Out {
    wide: Vec<f32>,
    narrow: Vec<bf16>,
}

impl Out {
    /// Room for a matrix of one type.
    fn new(dtype: Float) -> Self {
        let (wide, narrow) = if dtype == Float::F32 { (SIDE * SIDE + LINE, 0) } else { (0, SIDE * SIDE + LINE) };
        Self { wide: vec![0.0; wide], narrow: vec![bf16::ZERO; narrow] }
    }
}

/// A matrix' worth, beginning at a cache line as libtorch's memory does.
fn aligned<T>(room: &mut [T]) -> &mut [T] {
    let offset = (LINE - room.as_ptr().addr() % LINE) % LINE / size_of::<T>();
    &mut room[offset..offset + SIDE * SIDE]
}

/// bitsandbytes in a process of its own, waiting for work.
struct Peer {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(threads: usize) -> Result<Self, Failure> {
        let python = std::env::var("TAILOR_PEER_PYTHON")
            .map_err(|_| "TAILOR_PEER_PYTHON names no Python with bitsandbytes; run `cargo xtask bench quant`")?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/bench/quant_peer.py");
        let mut command = Command::new(python);
        // Its idle threads would spin for a while, and take our turn's cores.
        command.env("OMP_WAIT_POLICY", "passive").env("GOMP_SPINCOUNT", "0").env("KMP_BLOCKTIME", "0");
        command.arg(script).arg(threads.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let input = process.stdin.take().ok_or("no input")?;
        let output = BufReader::new(process.stdout.take().ok_or("no output")?);
        let mut peer = Self { process, input, output };
        peer.line()?;
        Ok(peer)
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(format!("the peer ended: {}", self.process.wait()?).into());
        }
        Ok(line.trim().to_owned())
    }

    fn seconds(&mut self, work: &str, dtype: Float, double: bool) -> Result<f64, Failure> {
        let dtype = if dtype == Float::F32 { "f32" } else { "bf16" };
        writeln!(self.input, "{work} {dtype} {}", if double { "double" } else { "single" })?;
        Ok(self.line()?.parse()?)
    }
}

fn main() -> Result<(), Failure> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(15), |text| text.parse())?;
    let threads = rayon::current_num_threads();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(0);
    let values: Vec<f32> = (0..SIDE * SIDE).map(|_| (random.random::<f32>() - 0.5) * 0.08).collect();
    let wide: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let narrow: Vec<u8> = values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect();
    let mut peer = Peer::start(threads)?;

    println!("{SIDE}×{SIDE}, blocks of 64, {threads} threads, {:?}, {rounds} pairs", Instructions::detect());
    println!("| work | ours, ms | bitsandbytes, ms | ratio of pairs (median) |");
    println!("| --- | --- | --- | --- |");
    for (work, dtype, double) in ROWS {
        let bytes = if dtype == Float::F32 { &wide } else { &narrow };
        let quantize = || {
            let shape = [SIDE, SIDE];
            quantize_bytes(bytes, &shape, dtype, Code::Nf4, BlockSize::DEFAULT, double, Backend::Cpu)
        };
        let weight = quantize()?;
        let dequantize = |out: &mut Out| match dtype {
            Float::F32 => weight.dequantize_f32(aligned(&mut out.wide)),
            _ => weight.dequantize_bf16(aligned(&mut out.narrow)),
        };
        let mut out = Out::new(dtype);
        let mut work_once = || match work {
            "quantize" => drop(quantize()),
            ANEW => {
                let mut out = Out::new(dtype);
                dequantize(&mut out);
                std::hint::black_box((&out.wide, &out.narrow));
            }
            _ => dequantize(&mut out),
        };
        let mut pairs = Vec::new();
        for round in 0..rounds + WARM_UP {
            let ours = median((0..CALLS).map(|_| {
                let start = Instant::now();
                work_once();
                start.elapsed().as_secs_f64()
            }));
            let theirs = peer.seconds(work.split(' ').next().unwrap_or_default(), dtype, double)?;
            if round >= WARM_UP {
                pairs.push((ours, theirs));
            }
        }
        let name = if dtype == Float::F32 { "f32" } else { "bf16" };
        let scales = if double { "nested scales" } else { "plain scales" };
        println!(
            "| {work} {name}, {scales} | {:.2} | {:.2} | {:.1} |",
            1e3 * median(pairs.iter().map(|pair| pair.0)),
            1e3 * median(pairs.iter().map(|pair| pair.1)),
            median(pairs.iter().map(|(ours, theirs)| theirs / ours))
        );
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
