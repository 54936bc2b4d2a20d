//! A registry with 100,000 versions and 1,000 aliases on local disk: how long names take to resolve, pages to list, and a new
//! process to be ready. `cargo xtask bench registry`.

use std::path::Path;
use std::time::{Duration, Instant};

use tailor_blobs::{Store, numbered_key};
use tailor_domain::{AdapterManifest, AdapterName, AdapterRef, AliasMove, AliasName, Digest, Version};
use tailor_pb::registry::ResolveRequest;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_registry::Registry;
use tailor_serverkit::{Page, Settings, clock, connect};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// One adapter with half of all versions and aliases, and many small ones.
const LARGE_VERSIONS: u64 = 50_000;
const LARGE_ALIASES: u64 = 500;
const SMALL_ADAPTERS: u64 = 500;
const SMALL_VERSIONS: u64 = 100;
const NAMES: usize = 1_000;
const PAGES: u64 = 200;

fn main() -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run())
}

async fn run() -> Outcome<()> {
    let folder = tempfile::tempdir()?;
    println!("writing 100,000 versions and 1,000 aliases to {}", folder.path().display());
    write_adapter(folder.path(), "large", LARGE_VERSIONS, LARGE_ALIASES)?;
    for number in 0..SMALL_ADAPTERS {
        write_adapter(folder.path(), &format!("small-{number:03}"), SMALL_VERSIONS, 1)?;
    }
    let open = || Store::open(&folder.path().display().to_string(), &Default::default());

    println!("\n| what | median, ms | p99, ms | worst, ms | times |\n| --- | --- | --- | --- | --- |");
    let started = Instant::now();
    let registry = registry(open()?)?;
    registry.resolve(&"large@alias-007".parse()?).await?;
    once("cold start: a new process resolves its first name", started);
    let started = Instant::now();
    let large = AdapterName::try_new("large")?;
    registry.list_versions(&large, &page(100, None), false).await?;
    once("cold start: its first page of versions", started);

    let mut random = 1;
    let names: Vec<String> = (0..NAMES).map(|_| any_reference(&mut random)).collect();
    for (what, rounds) in [("resolve 1,000 names in process, first time", 1), ("the same again, from the cache", 3)] {
        let mut times = Vec::new();
        for name in names.iter().cycle().take(NAMES * rounds) {
            let reference: AdapterRef = name.parse()?;
            let started = Instant::now();
            registry.resolve(&reference).await?;
            times.push(started.elapsed());
        }
        report(what, &mut times);
    }

    let (client, stop) = served(open()?).await?;
    for (what, rounds) in [("resolve them over gRPC, first time", 1), ("the same again over gRPC", 3)] {
        let mut times = Vec::new();
        for name in names.iter().cycle().take(NAMES * rounds) {
            let request = ResolveRequest { reference: name.clone() };
            let started = Instant::now();
            client.clone().resolve(request).await?;
            times.push(started.elapsed());
        }
        report(what, &mut times);
    }
    stop.cancel();

    for size in [100, 1000] {
        let mut times = Vec::new();
        for _ in 0..PAGES {
            let token = next(&mut random) % (LARGE_VERSIONS - 1000) + 1000;
            let started = Instant::now();
            registry.list_versions(&large, &page(size, Some(token.to_string())), false).await?;
            times.push(started.elapsed());
        }
        report(&format!("a page of {size} versions"), &mut times);
    }
    let mut times = Vec::new();
    for _ in 0..PAGES / 4 {
        let token = format!("small-{:03}", next(&mut random) % 400);
        let started = Instant::now();
        registry.list_adapters(&page(100, Some(token))).await?;
        times.push(started.elapsed());
    }
    report("a page of 100 adapters", &mut times);

    let started = Instant::now();
    registry.usage().await?;
    once("usage report, which reads every version and writes the segments", started);
    let started = Instant::now();
    self::registry(open()?)?.usage().await?;
    once("cold start: usage report from the segments", started);
    Ok(())
}

fn registry(store: Store) -> Outcome<Registry> {
    Ok(Registry::new(&Settings::default(), store, clock::system())?)
}

async fn served(store: Store) -> Outcome<(AdapterRegistryClient<tailor_serverkit::Client>, CancellationToken)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let stop = CancellationToken::new();
    let serving = tailor_registry::start(&Settings::default(), store, listener, stop.clone()).await?;
    let channel = connect("registry", &format!("http://{}", serving.address), None)?;
    Ok((AdapterRegistryClient::new(channel), stop))
}

fn page(size: usize, after: Option<String>) -> Page {
    Page { size, after }
}

/// A name, a version and an alias in equal parts.
fn any_reference(random: &mut u64) -> String {
    let adapter = match next(random) % 2 {
        0 => "large".to_owned(),
        _ => format!("small-{:03}", next(random) % SMALL_ADAPTERS),
    };
    let (versions, aliases) = if adapter == "large" { (LARGE_VERSIONS, LARGE_ALIASES) } else { (SMALL_VERSIONS, 1) };
    match next(random) % 3 {
        0 => adapter,
        1 => format!("{adapter}@{}", next(random) % versions + 1),
        _ => format!("{adapter}@alias-{:03}", next(random) % aliases),
    }
}

/// xorshift64: the same every time.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("| {what} | {:.3} | {:.3} | {:.3} | {} |", at(0.5), at(0.99), at(1.0), times.len());
}

fn once(what: &str, started: Instant) {
    println!("| {what} | {:.1} | | | 1 |", started.elapsed().as_secs_f64() * 1e3);
}

/// The records as the registry writes them, without a flush to disk for each.
fn write_adapter(folder: &Path, name: &str, versions: u64, aliases: u64) -> Outcome<()> {
    let prefix = format!("adapters/{name}");
    std::fs::create_dir_all(folder.join(&prefix).join("versions"))?;
    let adapter = AdapterName::try_new(name)?;
    for number in 1..=versions {
        let manifest = manifest(&adapter, number)?;
        let key = numbered_key(&format!("{prefix}/versions"), number);
        std::fs::write(folder.join(key), serde_json::to_vec(&manifest)?)?;
    }
    for number in 0..aliases {
        let alias = AliasName::try_new(format!("alias-{number:03}"))?;
        let log = format!("{prefix}/aliases/{alias}");
        std::fs::create_dir_all(folder.join(&log))?;
        for seq in 1..=3 {
            let to = Version((number * 31 + seq) % versions + 1);
            let from = if seq > 1 { Some(Version((number * 31 + seq - 1) % versions + 1)) } else { None };
            let (who, why) = ("bench".to_owned(), "a move".to_owned());
            let entry = AliasMove { alias: alias.clone(), seq, from, to, who, why, at_ms: seq, rollback: false };
            std::fs::write(folder.join(numbered_key(&log, seq)), serde_json::to_vec(&entry)?)?;
        }
    }
    Ok(())
}

fn manifest(adapter: &AdapterName, number: u64) -> Outcome<AdapterManifest> {
    let digest = |what: &str| Digest::of(format!("{what} {adapter} {number}").as_bytes()).to_string();
    let shared = |what: &str| Digest::of(what.as_bytes()).to_string();
    let text = serde_json::json!({
        "adapter": adapter.as_str(), "version": number, "weights": digest("weights"), "weights_size_bytes": 1 << 20,
        "config": digest("config"), "tokenizer": shared("tokenizer"), "base": "tiny", "base_fingerprint": shared("base"),
        "quant": "nf4", "prompt_template": "Correct the grammar: {input}", "dataset": "errors@3",
        "dataset_digest": shared("dataset"), "job": null, "fence": 0,
        "metrics": {"exact_match": 0.8, "loss": 0.25}, "notes": "", "created_at_ms": 1_700_000_000_000_u64 + number,
        "code_commit": "3541e5f", "license": "Apache-2.0", "tags": ["nightly"], "published_by": "trainer",
    });
    Ok(serde_json::from_value(text)?)
}
