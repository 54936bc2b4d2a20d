//! The wire: parse into domain types, call the logic, convert. No decision is made here.

use std::str::FromStr;

use futures::stream::{self, BoxStream};
use futures::{StreamExt as _, TryStreamExt as _};
use tailor_blobs::ObjectUrl;
use tailor_domain::{BaseName, DatasetName, Digest, Invalid, JobId, Version};
use tailor_pb::common;
use tailor_pb::dataset::dataset_service_server::DatasetService;
use tailor_pb::dataset::upload_dataset_request::Part;
use tailor_pb::dataset::{
    Dataset, DeleteDatasetRequest, DeleteDatasetResponse, GetDatasetRequest, GetReportRequest, GetUploadRequest,
    GetUploadResponse, ImportDatasetRequest, ImportDatasetResponse, ListDatasetsRequest, ListDatasetsResponse,
    PrepareShardsRequest, PrepareShardsResponse, PreviewRequest, PreviewResponse, PreviewRow, PreviewToken, Report,
    RevealPredictionsRequest, ScorePredictionsRequest, ScorePredictionsResponse, ScoredRow, SubmitPredictionsRequest,
    SubmitPredictionsResponse, UploadDatasetRequest, UploadDatasetResponse, UploadHeader,
};
use tailor_serverkit::{Page, status};
use tailor_text::{CleanOptions, ColumnMap, Format, Holdout};
use tonic::{Request, Response, Status, Streaming};

use crate::preview::{Look, Seen, SeenToken};
use crate::score::{Prediction, Sample};
use crate::shards::{Prepared, Wanted};
use crate::submission::{self, Author, Filter, Revealed};
use crate::upload::{Announced, Header};
use crate::{Datasets, Error, Result};

/// Largest piece of a file in one message.
const MAX_CHUNK_BYTES: usize = 1 << 20;
/// Hidden rows where the caller does not say.
const DEFAULT_VALIDATION: f64 = 0.1;

pub struct Api {
    datasets: Datasets,
}

impl Api {
    pub fn new(datasets: Datasets) -> Self {
        Self { datasets }
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(outcome: Result<T>) -> Answer<T> {
    outcome.map(Response::new).map_err(|error| status(&error))
}

#[tonic::async_trait]
impl DatasetService for Api {
    async fn upload_dataset(&self, request: Request<Streaming<UploadDatasetRequest>>) -> Answer<UploadDatasetResponse> {
        let mut parts = request.into_inner();
        let outcome = async {
            let first = parts.message().await.map_err(broken_off)?;
            let header = match first.and_then(|message| message.part) {
                Some(Part::Header(wire)) => header(wire)?,
                Some(Part::Chunk(_)) | None => {
                    return Err(Invalid::new("header", "the first message must carry it").into());
                }
            };
            let chunks = parts.map_err(broken_off).and_then(|message| std::future::ready(chunk(message)));
            let uploaded = self.datasets.upload(header, chunks).await?;
            Ok(UploadDatasetResponse { dataset: Some((&uploaded.manifest).into()), created: uploaded.created })
        };
        answer(outcome.await)
    }

    async fn import_dataset(&self, request: Request<ImportDatasetRequest>) -> Answer<ImportDatasetResponse> {
        let outcome = async {
            let ImportDatasetRequest { url, header: wire } = request.into_inner();
            let url = ObjectUrl::parse(&url)?;
            let mut wire = wire.ok_or_else(|| Invalid::new("header", "it must name the dataset"))?;
            if wire.offset > 0 {
                return Err(Invalid::new("header.offset", "an import begins anew; leave it out").into());
            }
            if wire.file_name.is_empty() {
                url.name().clone_into(&mut wire.file_name);
            }
            let imported = self.datasets.import(header(wire)?, &url).await?;
            Ok(ImportDatasetResponse { dataset: Some((&imported.manifest).into()), created: imported.created })
        };
        answer(outcome.await)
    }

    async fn get_upload(&self, request: Request<GetUploadRequest>) -> Answer<GetUploadResponse> {
        let outcome = async {
            let digest = Digest::try_new(request.into_inner().sha256)?;
            Ok(GetUploadResponse { received_bytes: self.datasets.received(&digest).await })
        };
        answer(outcome.await)
    }

    async fn get_dataset(&self, request: Request<GetDatasetRequest>) -> Answer<Dataset> {
        let outcome = async {
            let GetDatasetRequest { name, version } = request.into_inner();
            let manifest = self.datasets.version(&DatasetName::try_new(name)?, newest_or(version)).await?;
            Ok(Dataset::from(&manifest))
        };
        answer(outcome.await)
    }

    async fn list_datasets(&self, request: Request<ListDatasetsRequest>) -> Answer<ListDatasetsResponse> {
        let outcome = async {
            let page = Page::parse(request.into_inner().page)?;
            let (datasets, next_page_token) = self.datasets.list(&page).await?;
            Ok(ListDatasetsResponse { datasets: datasets.iter().map(Into::into).collect(), next_page_token })
        };
        answer(outcome.await)
    }

    async fn delete_dataset(&self, request: Request<DeleteDatasetRequest>) -> Answer<DeleteDatasetResponse> {
        let outcome = async {
            let name = DatasetName::try_new(request.into_inner().name)?;
            Ok(DeleteDatasetResponse { versions_deleted: self.datasets.delete(&name).await? })
        };
        answer(outcome.await)
    }

    async fn get_report(&self, request: Request<GetReportRequest>) -> Answer<Report> {
        let outcome = async {
            let GetReportRequest { name, version } = request.into_inner();
            let manifest = self.datasets.version(&DatasetName::try_new(name)?, newest_or(version)).await?;
            Ok(Report::from(&manifest))
        };
        answer(outcome.await)
    }

    async fn preview(&self, request: Request<PreviewRequest>) -> Answer<PreviewResponse> {
        let outcome = async {
            let PreviewRequest { name, version, base, rows, loss_on } = request.into_inner();
            let base = given(base).map(BaseName::try_new).transpose()?;
            let name = DatasetName::try_new(name)?;
            let look = Look { base, rows, loss_on: named(loss_on)? };
            let seen = self.datasets.preview(&name, newest_or(version), look).await?;
            Ok(PreviewResponse { rows: seen.into_iter().map(wire_row).collect() })
        };
        answer(outcome.await)
    }

    async fn prepare_shards(&self, request: Request<PrepareShardsRequest>) -> Answer<PrepareShardsResponse> {
        let outcome = async {
            let PrepareShardsRequest { name, version, base, max_tokens, loss_on, objective } = request.into_inner();
            let (name, base) = (DatasetName::try_new(name)?, BaseName::try_new(base)?);
            let wanted = Wanted { max_tokens, loss_on: named(loss_on)?, objective: named(objective)? };
            let prepared = self.datasets.prepare_shards(&name, newest_or(version), &base, wanted).await?;
            Ok(wire_shards(prepared))
        };
        answer(outcome.await)
    }

    async fn score_predictions(&self, request: Request<ScorePredictionsRequest>) -> Answer<ScorePredictionsResponse> {
        let outcome = async {
            let ScorePredictionsRequest { name, version, predictions, samples } = request.into_inner();
            let name = DatasetName::try_new(name)?;
            let predictions =
                predictions.into_iter().map(|wire| Prediction { row: wire.row, text: wire.text }).collect();
            let scores = self.datasets.score(&name, newest_or(version), predictions, samples).await?;
            let samples = scores.samples.into_iter().map(wire_sample).collect();
            Ok(ScorePredictionsResponse { metrics: scores.metrics.into_iter().collect(), samples })
        };
        answer(outcome.await)
    }

    async fn submit_predictions(
        &self,
        request: Request<SubmitPredictionsRequest>,
    ) -> Answer<SubmitPredictionsResponse> {
        let outcome = async {
            let SubmitPredictionsRequest { name, version, job_id, fence, predictions_digest } = request.into_inner();
            let (name, predictions) = (DatasetName::try_new(name)?, Digest::try_new(predictions_digest)?);
            let author = author(job_id, fence)?;
            let metrics = self.datasets.submit(&author, &name, newest_or(version), &predictions).await?;
            Ok(SubmitPredictionsResponse { metrics: metrics.into_iter().collect() })
        };
        answer(outcome.await)
    }

    type RevealPredictionsStream = BoxStream<'static, Result<common::PredictedRow, Status>>;

    async fn reveal_predictions(
        &self,
        request: Request<RevealPredictionsRequest>,
    ) -> Answer<Self::RevealPredictionsStream> {
        let outcome = async {
            let RevealPredictionsRequest { job_id, fence, filter: wanted } = request.into_inner();
            let rows = self.datasets.reveal(&author(job_id, fence)?, filter(wanted.unwrap_or_default())).await?;
            Ok(stream::iter(rows.into_iter().map(|row| Ok(wire_revealed(row)))).boxed())
        };
        answer(outcome.await)
    }
}

fn author(job: String, fence: u64) -> Result<Author> {
    if fence == 0 {
        return Err(Invalid::new("fence", "0 is no attempt; they are numbered from 1").into());
    }
    Ok(Author { job: JobId::try_new(job)?, fence })
}

fn filter(wire: common::PredictionFilter) -> Filter {
    let limit = if wire.limit == 0 { usize::MAX } else { wire.limit as usize };
    Filter { wrong: wire.wrong, changed: wire.changed, limit }
}

fn broken_off(cause: Status) -> Error {
    Error::BrokenOff { problem: cause.message().to_owned() }
}

fn chunk(message: UploadDatasetRequest) -> Result<Vec<u8>> {
    match message.part {
        Some(Part::Chunk(bytes)) if bytes.len() <= MAX_CHUNK_BYTES => Ok(bytes),
        Some(Part::Chunk(bytes)) => {
            Err(Invalid::new("chunk", format!("{} bytes; the limit is {MAX_CHUNK_BYTES}", bytes.len())).into())
        }
        Some(Part::Header(_)) => Err(Invalid::new("header", "only the first message may carry it").into()),
        None => Err(Invalid::new("chunk", "the message is empty").into()),
    }
}

fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// A name that may be left out.
fn named<T: Default + FromStr<Err = Invalid>>(text: String) -> Result<T, Invalid> {
    given(text).map_or_else(|| Ok(T::default()), |name| name.parse())
}

/// On the wire, version 0 means the latest.
fn newest_or(version: u64) -> Option<Version> {
    Some(Version(version)).filter(|version| version.0 > 0)
}

fn header(wire: UploadHeader) -> Result<Header> {
    const MAX_FILE_NAME: usize = 255;
    if wire.file_name.len() > MAX_FILE_NAME {
        let problem = format!("{} bytes; the limit is {MAX_FILE_NAME}", wire.file_name.len());
        return Err(Invalid::new("file_name", problem).into());
    }
    let format = Format::detect(&wire.format, &wire.file_name)
        .map_err(|source| Error::File { file: wire.file_name.clone(), source })?;
    let fraction = if wire.validation_fraction == 0.0 { DEFAULT_VALIDATION } else { wire.validation_fraction };
    let label_column = given(wire.label_column);
    let mut clean = CleanOptions {
        holdout: Holdout::Fraction(fraction),
        max_label_ratio: wire.max_label_ratio,
        seed: wire.seed,
        ..CleanOptions::default()
    };
    if let Some(column) = &label_column {
        clean.label_column.clone_from(column);
    }
    // Said before gigabytes are sent.
    clean.validate().map_err(|source| Error::File { file: wire.file_name.clone(), source })?;
    let sha256 = given(wire.sha256).map(Digest::try_new).transpose()?;
    if wire.offset > 0 && sha256.is_none() {
        let problem = format!("{}; a file without its sha256 cannot be gone on with", wire.offset);
        return Err(Invalid::new("offset", problem).into());
    }
    let size_bytes = Some(wire.size_bytes).filter(|size| *size > 0);
    Ok(Header {
        name: DatasetName::try_new(wire.name)?,
        format,
        columns: ColumnMap {
            kind: given(wire.kind).map(|kind| kind.parse()).transpose()?,
            id: given(wire.id_column),
            label: label_column,
            input: given(wire.input_column),
            target: given(wire.target_column),
            messages: given(wire.messages_column),
            chosen: given(wire.chosen_column),
            rejected: given(wire.rejected_column),
        },
        prompt_template: wire.prompt_template,
        clean,
        announced: Announced { sha256, size_bytes, offset: wire.offset },
        new_version: wire.new_version,
        file_name: wire.file_name,
    })
}

fn wire_token(token: SeenToken) -> PreviewToken {
    PreviewToken { id: token.id, text: token.text, in_loss: token.in_loss }
}

fn wire_row(seen: Seen) -> PreviewRow {
    PreviewRow {
        prompt: seen.prompt,
        target: seen.target,
        tokens: seen.tokens.into_iter().map(wire_token).collect(),
        encoder_tokens: seen.encoder_tokens.into_iter().map(wire_token).collect(),
        rejected: seen.rejected,
        rejected_tokens: seen.rejected_tokens.into_iter().map(wire_token).collect(),
        refused: seen.refused,
    }
}

fn wire_shards(Prepared { dataset, shards }: Prepared) -> PrepareShardsResponse {
    PrepareShardsResponse {
        train_digest: shards.train.to_string(),
        validation_digest: shards.validation.to_string(),
        train_rows: shards.train_rows,
        train_tokens: shards.train_tokens,
        longest_row: shards.longest.row,
        longest_input: shards.longest.input,
        longest_target: shards.longest.target,
        most_in_loss: shards.longest.in_loss,
        validation_rows: shards.validation_rows,
        rows_too_long: shards.rows_too_long,
        rows_refused: shards.rows_refused,
        refused: shards.refused.iter().map(Into::into).collect(),
        dataset_digest: dataset.digest().to_string(),
        prompt_template: dataset.prompt_template,
    }
}

fn wire_sample(sample: Sample) -> ScoredRow {
    ScoredRow { row: sample.row, input: sample.input, target: sample.target, prediction: sample.prediction }
}

fn wire_revealed(revealed: Revealed) -> common::PredictedRow {
    let wire = |answer: submission::Answer| common::Answer {
        text: answer.text,
        exact: answer.exact,
        edit_distance: answer.edit_distance,
    };
    common::PredictedRow {
        row: revealed.row,
        input: revealed.input,
        target: revealed.target,
        base: Some(wire(revealed.base)),
        adapter: Some(wire(revealed.adapter)),
    }
}
