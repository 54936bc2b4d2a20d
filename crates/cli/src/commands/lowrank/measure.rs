//! Two adapters on the same held-out rows: prompts from the shard that the job's own evaluation used, answers from the
//! gateway, greedy, scores from the dataset service, which alone has the targets.

use std::collections::HashMap;
use std::io::Cursor;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _};
use indicatif::ProgressBar;
use tailor_domain::{EvaluateSpec, TrainSpec};
use tailor_pb::{dataset, inference, registry, training};
use tailor_text::shard::{Content, ShardLimits, ShardReader};
use tailor_text::tokenizer::{CHAT_TEMPLATE_FILE, SETTINGS_FILE, TOKENIZER_FILE};
use tailor_text::{Tokenizer, TokenizerFiles};

use crate::args::VersionedName;
use crate::commands::blobs;
use crate::connect::Endpoints;
use crate::output::Output;

/// Enough for the engine to batch, few enough for its queue.
const AT_ONCE: usize = 8;

/// Rows to ask, and how.
pub struct Evaluation {
    dataset: VersionedName,
    /// By row of the validation split.
    prompts: Vec<(u32, String)>,
    skipped: usize,
    max_new_tokens: u32,
}

pub struct Measured {
    pub rows: usize,
    /// Rows whose prompt is not what its text becomes.
    pub skipped: usize,
    pub before: HashMap<String, f64>,
    pub after: HashMap<String, f64>,
}

impl Evaluation {
    /// # Errors
    /// The dataset is gone or another one, it has no validation row, or a service fails.
    pub async fn prepare(
        endpoints: &Endpoints,
        version: &registry::AdapterVersion,
        rows: usize,
    ) -> anyhow::Result<Self> {
        let named: VersionedName = version.dataset.parse().map_err(anyhow::Error::msg)?;
        let (max_tokens, max_new_tokens) = lengths(endpoints, version).await?;
        let request = dataset::PrepareShardsRequest {
            name: named.name.clone(),
            version: named.version,
            base: version.base.clone(),
            max_tokens,
            ..Default::default()
        };
        let prepared = endpoints.dataset()?.prepare_shards(request).await?.into_inner();
        anyhow::ensure!(
            prepared.dataset_digest == version.dataset_digest,
            "dataset {} is not the one that {}@{} was trained on any more; --rows 0 publishes without measuring",
            version.dataset,
            version.adapter,
            version.version
        );
        let tokenizer = tokenizer(endpoints, &version.base).await?;
        let shard = blobs::download(&mut endpoints.registry()?, &prepared.validation_digest).await?;
        let mut prompts = Vec::new();
        let mut skipped = 0;
        for record in ShardReader::open(Cursor::new(shard), ShardLimits::default())? {
            let record = record?;
            let Content::Prompt(ids) = record.content else { continue };
            match as_text(&tokenizer, &ids)? {
                _ if prompts.len() == rows => break,
                Some(text) => prompts.push((record.row, text)),
                None => skipped += 1,
            }
        }
        anyhow::ensure!(
            !prompts.is_empty(),
            "no validation row of dataset {} can be asked; --rows 0 publishes without measuring",
            version.dataset
        );
        Ok(Self { dataset: named, prompts, skipped, max_new_tokens })
    }

    /// Asks both adapters, by reference.
    ///
    /// # Errors
    /// A service fails.
    pub async fn run(
        &self,
        endpoints: &Endpoints,
        before: &str,
        after: &str,
        output: &Output,
    ) -> anyhow::Result<Measured> {
        let asked = 2 * self.prompts.len() as u64;
        let bar = if output.json { ProgressBar::hidden() } else { ProgressBar::new(asked) };
        let before = self.scores(endpoints, before, &bar).await?;
        let after = self.scores(endpoints, after, &bar).await?;
        bar.finish_and_clear();
        Ok(Measured { rows: self.prompts.len(), skipped: self.skipped, before, after })
    }

    async fn scores(
        &self,
        endpoints: &Endpoints,
        adapter: &str,
        bar: &ProgressBar,
    ) -> anyhow::Result<HashMap<String, f64>> {
        let client = endpoints.inference()?;
        let ask = |(row, prompt): &(u32, String)| {
            let request = inference::GenerateRequest {
                adapter: adapter.to_owned(),
                input: prompt.clone(),
                raw: true,
                max_new_tokens: self.max_new_tokens,
                ..Default::default()
            };
            let (row, mut client) = (*row, client.clone());
            async move {
                let text = client.generate(request).await?.into_inner().text;
                bar.inc(1);
                Ok::<_, tonic::Status>(dataset::Prediction { row, text })
            }
        };
        let predictions: Vec<_> =
            futures::stream::iter(self.prompts.iter().map(ask)).buffer_unordered(AT_ONCE).try_collect().await?;
        let VersionedName { name, version } = self.dataset.clone();
        let request = dataset::ScorePredictionsRequest { name, version, predictions, samples: 0 };
        Ok(endpoints.dataset()?.score_predictions(request).await?.into_inner().metrics)
    }
}

/// How long rows and answers may be: as in the job that trained the adapter, or as in a job that says nothing of it.
async fn lengths(endpoints: &Endpoints, version: &registry::AdapterVersion) -> anyhow::Result<(u32, u32)> {
    let usual = (TrainSpec::default().max_tokens, EvaluateSpec::default().max_new_tokens);
    if version.job_id.is_empty() {
        return Ok(usual);
    }
    let request = training::GetJobRequest { id: version.job_id.clone() };
    let job = endpoints.trainer()?.get_job(request).await?.into_inner();
    let row = job.training.unwrap_or_default().max_tokens;
    let answer = job.evaluation.unwrap_or_default().max_new_tokens;
    Ok((row.unwrap_or(usual.0), answer.unwrap_or(usual.1)))
}

async fn tokenizer(endpoints: &Endpoints, base: &str) -> anyhow::Result<Tokenizer> {
    let mut client = endpoints.registry()?;
    let base = client.get_base(registry::GetBaseRequest { name: base.to_owned() }).await?.into_inner();
    let mut files = HashMap::new();
    for file in &base.files {
        if [TOKENIZER_FILE, SETTINGS_FILE, CHAT_TEMPLATE_FILE].contains(&file.name.as_str()) {
            files.insert(file.name.as_str(), blobs::download(&mut client, &file.digest).await?);
        }
    }
    let bytes = |name: &str| files.get(name).map(Vec::as_slice);
    let files = TokenizerFiles {
        tokenizer: bytes(TOKENIZER_FILE).with_context(|| format!("base {} has no {TOKENIZER_FILE}", base.name))?,
        settings: bytes(SETTINGS_FILE),
        chat_template: bytes(CHAT_TEMPLATE_FILE),
    };
    Ok(Tokenizer::from_files(files)?)
}

/// The text whose ids, as the gateway makes them of a raw prompt, are these; `None` if there is none.
fn as_text(tokenizer: &Tokenizer, ids: &[u32]) -> anyhow::Result<Option<String>> {
    let own = ids.strip_prefix(tokenizer.prefix()).unwrap_or(ids);
    for (ids_of_text, skip_special) in [(ids, true), (own, false), (ids, false)] {
        let text = tokenizer.decode(ids_of_text, skip_special)?;
        if tokenizer.encode_with_special(&text)? == ids {
            return Ok(Some(text));
        }
    }
    Ok(None)
}
