//! Many adapters on one base, through a gateway as a process of its own: the time to the first token by where an adapter is when it
//! is asked for, and tokens a second when 1 to 1,000 of them are asked for as often as words of a language (Zipf).
//!
//! A random Llama of 1.1B parameters in NF4, adapters of rank 16 on the query and value projections (4.5 MB in bf16). The load is
//! closed: so many callers, each of whom asks again at once.
//!
//! `cargo xtask bench adapters [--only cold|zipf] [--seconds N] [--small]`

#[path = "support/hardware.rs"]
mod hardware;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod support;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::clients::Addresses;
use support::{Family, Fleet};
use tailor_domain::Digest;
use tailor_pb::inference::{GenerateRequest, ListResidentRequest};
use tailor_testkit::LlamaShape;

const ADAPTERS: usize = 1000;
const CALLERS: usize = 8;
const NEW_TOKENS: u32 = 32;
const COLD_TIMES: usize = 9;
const RANK: usize = 16;
/// Of the device, for the load: a hundred adapters, a tenth of all.
const DEVICE_BYTES: &str = "500000000";

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Outcome {
    let (mut only, mut seconds, mut small) = (None, 30.0, false);
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--only" => only = Some(value()?),
            "--seconds" => seconds = value()?.parse()?,
            "--small" => small = true,
            other => return Err(format!("unknown setting {other}").into()),
        }
    }
    let shape = match small {
        true => LlamaShape { vocab: 128, context: 512, bf16: true, ..LlamaShape::default() },
        false => LlamaShape {
            hidden: 2048,
            layers: 22,
            feed_forward: 5632,
            heads: 32,
            kv_heads: 4,
            vocab: 32000,
            context: 2048,
            bf16: true,
            ..LlamaShape::default()
        },
    };
    println!("{}\n", hardware::hardware());
    let wants = |name: &str| only.as_deref().is_none_or(|only| only == name);
    if wants("cold") {
        cold(&shape).await?;
    }
    if wants("zipf") {
        zipf(&shape, Duration::from_secs_f64(seconds)).await?;
    }
    Ok(())
}

/// One registry and one gateway with adapters `grammar@1` to `@count`.
async fn system(shape: &LlamaShape, count: usize, settings: &[(&str, &str)]) -> Outcome<Fleet> {
    let fleet = Fleet::start(1, &[0], settings).await;
    let base = Family::write_llama(fleet.folder.path(), shape);
    let cli = fleet.cli(0, 0);
    cli.text(&["base", "add", &base.display().to_string(), "--name", Family::Llama.base(), "--dtype", "bf16"]);
    std::fs::remove_dir_all(base)?;
    let folder = fleet.folder.join("adapter");
    write_adapter(&folder, shape)?;
    cli.text(&[
        "adapter",
        "import",
        &folder.display().to_string(),
        "--name",
        "grammar",
        "--base",
        Family::Llama.base(),
    ]);
    // The others past the registry: a thousand uploads would measure nothing here.
    let store = fleet.folder.join("store");
    let (versions, blobs) = (store.join("adapters/grammar/versions"), store.join("blobs/sha256"));
    let first: Value = serde_json::from_slice(&std::fs::read(versions.join("00000001.json"))?)?;
    let mut weights = std::fs::read(folder.join("adapter_model.safetensors"))?;
    for version in 2..=count {
        // Other bits at the end make another digest.
        let end = weights.len() - 2;
        weights[end..].copy_from_slice(&(version as u16).to_le_bytes());
        let digest = Digest::of(&weights);
        let blob = blobs.join(&digest.hex()[..2]).join(digest.hex());
        std::fs::create_dir_all(blob.parent().ok_or("a blob has a folder")?)?;
        std::fs::write(blob, &weights)?;
        let mut manifest = first.clone();
        manifest["version"] = version.into();
        manifest["weights"] = digest.to_string().into();
        std::fs::write(versions.join(format!("{version:08}.json")), manifest.to_string())?;
    }
    Ok(fleet)
}

/// Rank 16 on q and v, bf16, of small values.
fn write_adapter(folder: &Path, shape: &LlamaShape) -> Outcome {
    std::fs::create_dir(folder)?;
    let config = format!(
        r#"{{"peft_type":"LORA","task_type":"CAUSAL_LM","r":{RANK},"lora_alpha":{RANK},"target_modules":["q_proj","v_proj"]}}"#
    );
    std::fs::write(folder.join("adapter_config.json"), config)?;
    let kv = shape.hidden / shape.heads * shape.kv_heads;
    let (mut header, mut at) = (serde_json::Map::new(), 0usize);
    for layer in 0..shape.layers {
        for (module, out) in [("q_proj", shape.hidden), ("v_proj", kv)] {
            for (matrix, sizes) in [("A", [RANK, shape.hidden]), ("B", [out, RANK])] {
                let name = format!("base_model.model.model.layers.{layer}.self_attn.{module}.lora_{matrix}.weight");
                let end = at + 2 * sizes[0] * sizes[1];
                let entry = serde_json::json!({"dtype": "BF16", "shape": sizes, "data_offsets": [at, end]});
                header.insert(name, entry);
                at = end;
            }
        }
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    let mut state = 1u32;
    bytes.extend((0..at / 2).flat_map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * 0.02;
        ((value.to_bits() >> 16) as u16).to_le_bytes()
    }));
    std::fs::write(folder.join("adapter_model.safetensors"), bytes)?;
    Ok(())
}

fn request(adapter: &str, number: u64, tokens: u32) -> GenerateRequest {
    let base = if adapter.is_empty() { Family::Llama.base() } else { "" };
    GenerateRequest {
        base: base.into(),
        adapter: adapter.into(),
        input: format!("{number:016}"),
        raw: true,
        max_new_tokens: tokens,
        logit_bias: [(1, -1000.0)].into(),
        // A chunk for each token, also for those that have no text.
        top_logprobs: Some(0),
        ..Default::default()
    }
}

/// Seconds to the first token.
async fn first_token(at: &Addresses, adapter: &str, number: u64) -> Outcome<f64> {
    let begun = Instant::now();
    let mut chunks = at.gateway().generate_stream(request(adapter, number, 2)).await?.into_inner();
    chunks.message().await?.ok_or("an answer has a first piece")?;
    let took = begun.elapsed().as_secs_f64();
    while chunks.message().await?.is_some() {}
    Ok(took)
}

/// Where an adapter is, and the settings under which it is nowhere nearer.
const TIERS: [(&str, &[(&str, &str)]); 4] = [
    ("object storage", &[]),
    ("disk", &[("GATEWAY__ADAPTER_MEMORY_BYTES", "1"), ("GATEWAY__ADAPTER_BYTES", "1")]),
    ("memory", &[("GATEWAY__ADAPTER_BYTES", "1")]),
    ("device", &[]),
];

async fn cold(shape: &LlamaShape) -> Outcome {
    println!("| the adapter is in | time to the first token, ms (median) | least | most |");
    println!("| --- | --- | --- | --- |");
    for (tier, settings) in TIERS {
        let fleet = system(shape, COLD_TIMES + 1, settings).await?;
        let at = fleet.at(0, 0);
        // The base is loaded by this; what is measured is the adapter.
        first_token(&at, "", 0).await?;
        let mut alone = Vec::new();
        let mut times = Vec::new();
        for version in 1..=COLD_TIMES {
            let adapter = format!("grammar@{version}");
            if tier != "object storage" {
                first_token(&at, &adapter, 1).await?;
                // Pushes it out of the tiers that have no room.
                if tier != "device" {
                    first_token(&at, &format!("grammar@{}", COLD_TIMES + 1), 2).await?;
                }
            }
            times.push(first_token(&at, &adapter, 3 + version as u64).await?);
            alone.push(first_token(&at, "", 100 + version as u64).await?);
        }
        print_times(tier, &mut times);
        if tier == "device" {
            print_times("(the base alone)", &mut alone);
        }
    }
    println!();
    Ok(())
}

fn print_times(name: &str, times: &mut [f64]) {
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times[(times.len() - 1) * share / 2] * 1e3;
    println!("| {name} | {:.0} | {:.0} | {:.0} |", at(1), at(0), at(2));
}

async fn zipf(shape: &LlamaShape, time: Duration) -> Outcome {
    let fleet = system(shape, ADAPTERS, &[("GATEWAY__ADAPTER_BYTES", DEVICE_BYTES)]).await?;
    let at = fleet.at(0, 0);
    first_token(&at, "grammar@1", 0).await?;
    println!(
        "{CALLERS} callers, 16 tokens in, {NEW_TOKENS} out, {} MB of the device for adapters\n",
        &DEVICE_BYTES[..3]
    );
    println!("| adapters | tokens/s, each turn | median | against 1 | on the device |");
    println!("| --- | --- | --- | --- | --- |");
    let counts = [1, 10, 100, ADAPTERS];
    let mut rates = vec![Vec::new(); counts.len()];
    let mut resident = vec![0; counts.len()];
    // In turn, so that a machine whose speed drifts drifts for all.
    for turn in 0..3u64 {
        for (which, count) in counts.into_iter().enumerate() {
            rates[which].push(rate(&at, count, turn, time).await?);
            let list = at.admin().list_resident(ListResidentRequest {}).await?.into_inner();
            resident[which] = list.adapters.len();
        }
    }
    let median = |rates: &[f64]| {
        let mut sorted = rates.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    let one = median(&rates[0]);
    for ((count, rates), resident) in counts.into_iter().zip(&rates).zip(resident) {
        let each: Vec<_> = rates.iter().map(|rate| format!("{rate:.1}")).collect();
        let median = median(rates);
        println!("| {count} | {} | {median:.1} | {:.3} | {resident} |", each.join(", "), median / one);
    }
    Ok(())
}

/// Tokens a second with so many adapters, the n-th asked for with a weight of 1/n.
async fn rate(at: &Addresses, count: usize, turn: u64, time: Duration) -> Outcome<f64> {
    let weights: Vec<f64> = (1..=count).map(|n| 1.0 / n as f64).collect();
    let total: f64 = weights.iter().sum();
    let until = Instant::now() + time;
    let made = AtomicU64::new(0);
    let begun = Instant::now();
    let callers = (0..CALLERS as u64).map(|caller| {
        let (weights, made) = (&weights, &made);
        async move {
            let mut state = 1 + turn * 1000 + caller;
            while Instant::now() < until {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let mut left = (state >> 11) as f64 / (1u64 << 53) as f64 * total;
                let drawn = weights.iter().position(|weight| {
                    left -= weight;
                    left <= 0.0
                });
                let adapter = format!("grammar@{}", 1 + drawn.unwrap_or(0));
                let said = at.gateway().generate(request(&adapter, state >> 8, NEW_TOKENS)).await?.into_inner();
                made.fetch_add(u64::from(said.completion_tokens), Ordering::Relaxed);
            }
            Ok::<_, tonic::Status>(())
        }
    });
    futures::future::try_join_all(callers).await?;
    Ok(made.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}
