//! From lease to first step, and how much memory the trainer and the dataset service take, as the rows grow: 10 MB, 100 MB and
//! 1 GB of generated text, 5 GB on request. The services are processes of their own over a local folder and a Redis.
//!
//! Each size is uploaded, cleaned, split and tokenised; then two jobs train a few steps on it. The first finds the base in the
//! cache and its rows untokenised; the second finds both in the cache, which is what a job's next attempt finds.
//! Memory is what Linux counts as resident, at its highest during the stretch.
//!
//! `cargo xtask bench startup [--up-to 5GB] [--base 1b]`

#[path = "support/hardware.rs"]
mod hardware;
#[path = "../it/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod support;

use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::stream;
use serde_json::json;
use support::clients::Addresses;
use support::process::{Process, command};
use support::{Cli, cluster, eventually};
use tailor_pb::dataset::upload_dataset_request::Part;
use tailor_pb::{dataset, training};
use tailor_testkit::{LlamaShape, RedisServer, TempDir, free_port};

const MB: u64 = 1_000_000;
const MIB: u64 = 1 << 20;
/// Words that rows are made of; each is a token.
const WORDS: usize = 4000;
/// Words of a row's input, and of its target.
const WORDS_A_SIDE: usize = 60;
const CHUNK: usize = 1 << 20;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Outcome {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let (mut up_to, mut large_base) = (1000 * MB, false);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--up-to" => up_to = size(value()?)?,
            "--base" => large_base = value()? == "1b",
            other => return Err(format!("unknown setting {other}").into()),
        }
    }
    let Some(mut services) = Services::start(large_base).await? else { return Ok(()) };
    println!("{}\n", hardware::hardware());
    println!(
        "| rows, MB | rows | dataset at rest, MiB | ingesting, MiB | s | tokenising, MiB | s | trainer at rest, MiB \
         | training, MiB | lease → first step, s | rows in the cache too, s | loss | gradient norm |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    // The first job of all brings the base to the cache.
    services.measure(MB, "warm").await?;
    for bytes in [10 * MB, 100 * MB, 1000 * MB, 5000 * MB].into_iter().filter(|bytes| *bytes <= up_to) {
        let row = services.measure(bytes, &format!("rows-{}", bytes / MB)).await?;
        println!("{row}");
    }
    Ok(())
}

/// `10MB`, `5GB`.
fn size(text: &str) -> Outcome<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit = match unit {
        "MB" => MB,
        "GB" => 1000 * MB,
        _ => return Err(format!("{text} is no size; 10MB and 5GB are").into()),
    };
    Ok(number.parse::<u64>()? * unit)
}

struct Services {
    dataset: Process,
    trainer: Process,
    _registry: Process,
    _redis: RedisServer,
    at: Addresses,
    folder: TempDir,
}

impl Services {
    /// None where there is no Redis.
    async fn start(large_base: bool) -> Outcome<Option<Self>> {
        let Some(redis) = RedisServer::spawn() else { return Ok(None) };
        let folder = TempDir::new();
        let url = || format!("http://127.0.0.1:{}", free_port());
        let at = Addresses { dataset: url(), trainer: url(), registry: url(), gateway: url() };
        let start = |program: &str, address: &str| {
            let mut command = command(program);
            command.args(["--listen", address.trim_start_matches("http://")]);
            let cache = folder.join(program).display().to_string();
            for (key, value) in [
                ("STORE__URL", format!("file://{}", folder.join("store").display())),
                ("QUEUE__URL", redis.url()),
                ("CACHE_DIR", cache),
                ("SERVICES__DATASET", at.dataset.clone()),
                ("SERVICES__TRAINER", at.trainer.clone()),
                ("SERVICES__REGISTRY", at.registry.clone()),
                ("SERVICES__GATEWAY", at.gateway.clone()),
            ] {
                command.env(format!("TAILOR__{key}"), value);
            }
            Process::spawn(program, command, folder.path())
        };
        let dataset = start("tailor-dataset", &at.dataset);
        let registry = start("tailor-registry", &at.registry);
        let trainer = start("tailor-trainer", &at.trainer);
        for url in [&at.dataset, &at.registry, &at.trainer] {
            eventually("a service serves", async || {
                (cluster::health(url).await.as_deref() == Some("SERVING")).then_some(())
            })
            .await;
        }
        let base = write_base(folder.path(), large_base)?;
        let cli = Cli::new(folder.path()).at(&at).env("TAILOR_STATE", folder.join("state").display().to_string());
        cli.text(&["base", "add", &base.display().to_string(), "--name", "base", "--dtype", "bf16"]);
        std::fs::remove_dir_all(base)?;
        Ok(Some(Self { dataset, trainer, _registry: registry, _redis: redis, at, folder }))
    }

    async fn measure(&mut self, bytes: u64, name: &str) -> Outcome<String> {
        let file = self.folder.join("rows.jsonl");
        let rows = write_rows(&file, bytes)?;
        let resting = peak_after(&self.dataset, async || Ok(())).await?.0;
        let (ingesting, seconds) = peak_after(&self.dataset, async || self.upload(&file, name).await).await?;
        std::fs::remove_file(&file)?;
        let (tokenising, tokenised) = peak_after(&self.dataset, async || self.prepare(name).await).await?;
        let trainer_rests = peak_after(&self.trainer, async || Ok(())).await?.0;
        let mut first = None;
        let (training, _) = peak_after(&self.trainer, async || {
            first = Some(self.train(name, "first").await?);
            Ok(())
        })
        .await?;
        let first = first.ok_or("the job had no first step")?;
        let second = self.train(name, "second").await?;
        let megabytes = bytes / MB;
        Ok(format!(
            "| {megabytes} | {rows} | {resting} | {ingesting} | {seconds:.1} | {tokenising} | {tokenised:.1} \
             | {trainer_rests} | {training} | {:.1} | {:.1} | {:.4} | {:.4} |",
            first.seconds, second.seconds, first.loss, first.grad_norm
        ))
    }

    async fn upload(&self, file: &Path, name: &str) -> Outcome {
        let header = dataset::UploadHeader {
            name: name.into(),
            format: "jsonl".into(),
            file_name: "rows.jsonl".into(),
            validation_fraction: 0.01,
            ..Default::default()
        };
        let first = dataset::UploadDatasetRequest { part: Some(Part::Header(header)) };
        let pieces = stream::unfold(File::open(file)?, |mut file| async move {
            let mut piece = vec![0; CHUNK];
            let read = file.read(&mut piece).unwrap_or(0);
            piece.truncate(read);
            let request = dataset::UploadDatasetRequest { part: Some(Part::Chunk(piece)) };
            (read > 0).then_some((request, file))
        });
        let all = futures::StreamExt::chain(stream::iter([first]), pieces);
        self.at.dataset().upload_dataset(all).await?;
        Ok(())
    }

    async fn prepare(&self, name: &str) -> Outcome {
        let request = dataset::PrepareShardsRequest {
            name: name.into(),
            version: 1,
            base: "base".into(),
            max_tokens: 256,
            loss_on: "completion".into(),
            objective: "sft".into(),
        };
        self.at.dataset().prepare_shards(request).await?;
        Ok(())
    }

    /// A job of a few steps, to its end.
    async fn train(&self, name: &str, key: &str) -> Outcome<FirstStep> {
        let request = training::CreateJobRequest {
            base: "base".into(),
            dataset: name.into(),
            adapter: format!("{name}-{key}"),
            lora: Some(training::Lora { rank: Some(8), ..Default::default() }),
            training: Some(training::Training {
                max_steps: Some(3),
                batch_rows: Some(2),
                micro_batch_rows: Some(2),
                max_tokens: Some(256),
                ..Default::default()
            }),
            evaluation: Some(training::Evaluation {
                max_new_tokens: Some(2),
                max_validation_rows: Some(2),
                tuning_fraction: Some(0.0),
                ..Default::default()
            }),
            ..Default::default()
        };
        let job = self.at.trainer().create_job(request).await?.into_inner();
        let (mut leased, mut first) = (0, None);
        let watch = training::WatchJobRequest { id: job.id.clone(), from_sequence: 1, no_follow: false };
        let mut events = self.at.trainer().watch_job(watch).await?.into_inner();
        while let Some(event) = events.message().await? {
            if event.state == "LEASED" && leased == 0 {
                leased = event.at_ms;
            }
            if let (None, Some(step)) = (&first, event.steps.first()) {
                let seconds = event.at_ms.saturating_sub(leased) as f64 / 1000.0;
                first = Some(FirstStep { seconds, loss: step.loss, grad_norm: step.grad_norm });
            }
            match event.state.as_str() {
                "SUCCEEDED" => break,
                "FAILED" | "CANCELLED" => return Err(format!("job {}: {}", job.id, event.message).into()),
                _ => {}
            }
        }
        first.ok_or_else(|| format!("job {} told of no step", job.id).into())
    }
}

struct FirstStep {
    /// From the lease to the log entry with the step.
    seconds: f64,
    loss: f64,
    grad_norm: f64,
}

/// The process's highest resident memory in MiB while `work` is done, and the seconds that took.
async fn peak_after(process: &Process, mut work: impl AsyncFnMut() -> Outcome) -> Outcome<(u64, f64)> {
    let status = format!("/proc/{}/status", process.id());
    std::fs::write(format!("/proc/{}/clear_refs", process.id()), "5")?;
    let started = Instant::now();
    work().await?;
    let seconds = started.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let text = std::fs::read_to_string(&status)?;
    let kilobytes = text
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok((kilobytes.ok_or("no VmHWM")? * 1024 / MIB, seconds))
}

/// Rows of random words: no two alike, and no sentence twice.
fn write_rows(file: &Path, bytes: u64) -> Outcome<u64> {
    let mut out = BufWriter::with_capacity(CHUNK, File::create(file)?);
    let (mut written, mut rows, mut random) = (0, 0u64, 0x9e37_79b9_7f4a_7c15u64);
    let mut line = String::new();
    while written < bytes {
        let mut words = |line: &mut String| {
            for at in 0..WORDS_A_SIDE {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                if at > 0 {
                    line.push(' ');
                }
                line.push_str(&word((random >> 33) as usize % WORDS));
            }
        };
        line.clear();
        line.push_str("{\"input\":\"");
        words(&mut line);
        line.push_str("\",\"target\":\"");
        words(&mut line);
        line.push_str("\"}\n");
        out.write_all(line.as_bytes())?;
        written += line.len() as u64;
        rows += 1;
    }
    out.flush()?;
    Ok(rows)
}

/// Six letters.
fn word(number: usize) -> String {
    let letter = |place: u32| char::from(b'a' + (number / 26usize.pow(place) % 26) as u8);
    ['w', 'o', 'r', letter(2), letter(1), letter(0)].iter().collect()
}

/// A random base whose tokens are the words.
fn write_base(folder: &Path, large: bool) -> Outcome<PathBuf> {
    let base = folder.join("base");
    std::fs::create_dir(&base)?;
    let specials = ["<pad>", "</s>", "<unk>"];
    let small = LlamaShape { vocab: WORDS + 16, context: 512, bf16: true, ..LlamaShape::default() };
    let shape = match large {
        false => small,
        true => {
            LlamaShape { hidden: 2048, layers: 22, feed_forward: 5632, heads: 32, kv_heads: 4, vocab: 32000, ..small }
        }
    };
    shape.write(&base, 3)?;
    let words = (0..WORDS).map(word);
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        specials.iter().map(|special| (*special).to_owned()).chain(words).zip((0..).map(|id: u32| json!(id))).collect();
    let added: Vec<_> = specials
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    });
    std::fs::write(base.join("tokenizer.json"), tokenizer.to_string())?;
    let settings = json!({"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>",
                          "unk_token": "<unk>"});
    std::fs::write(base.join("tokenizer_config.json"), settings.to_string())?;
    Ok(base)
}
