//! The wire: parse into domain types, call the logic, convert. No decision is made here.

mod low_rank;
mod merge;
mod policy;
mod rollouts;
mod watch;

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use tailor_domain::{AdapterName, AliasName, BaseName, Digest, Invalid, JobId, Version};
use tailor_pb::convert;
use tailor_pb::registry::adapter_registry_server::AdapterRegistry;
use tailor_pb::registry::upload_blob_request::Part;
use tailor_pb::registry::{
    self as pb, Adapter, AdapterVersion, Alias, Approval, ApproveVersionRequest, AuditEntry, Base, CheckPolicyRequest,
    CheckPolicyResponse, CollectRequest, CollectResponse, CompareRequest, Comparison, CompressRequest,
    CompressResponse, DeleteVersionRequest, DownloadBlobRequest, DownloadBlobResponse, ExportAuditRequest,
    GetAliasHistoryRequest, GetAliasHistoryResponse, GetBaseRequest, GetPolicyRequest, GetRetentionRequest,
    GetSpectrumRequest, GetUploadRequest, GetUploadResponse, GetUsageRequest, GetVersionRequest, ListAdaptersRequest,
    ListAdaptersResponse, ListBasesRequest, ListBasesResponse, ListVersionsRequest, ListVersionsResponse, Policy,
    PublishVersionRequest, RegisterBaseRequest, ResolveRequest, RollbackRequest, SetAliasRequest, SetPolicyRequest,
    SetRetentionRequest, SignDownloadRequest, SignDownloadResponse, Spectrum, UndeleteVersionRequest,
    UploadBlobRequest, UploadBlobResponse, VerifyRequest, VerifyResponse, WatchRequest,
};
use tailor_serverkit::{Page, status};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

pub use self::rollouts::RolloutApi;

use crate::aliases::{Expected, Reason};
use crate::bases::NewBase;
use crate::blobs::{Announced, Received};
use crate::catalog::AdapterSummary;
use crate::publish::{NewVersion, Origin};
use crate::retention::Rules;
use crate::versions::AliasedVersion;
use crate::wire_house;
use crate::words::check_words;
use crate::{Error, Registry, Result};

/// Largest piece of a blob in one message, in both directions.
const MAX_CHUNK_BYTES: usize = 1 << 20;
/// An hour.
const DEFAULT_LIFETIME_MS: u64 = 3_600_000;
/// As long as S3 signs for.
const MAX_LIFETIME_MS: u64 = 7 * 24 * 3_600_000;

/// Links of the audit log read at a time.
const LINKS_AT_ONCE: usize = 100;

pub struct Api {
    registry: Registry,
    /// Ends the streams that would otherwise never end.
    stop: CancellationToken,
}

impl Api {
    pub fn new(registry: Registry, stop: CancellationToken) -> Self {
        Self { registry, stop }
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(outcome: Result<T>) -> Answer<T> {
    outcome.map(Response::new).map_err(|error| status(&error))
}

#[tonic::async_trait]
impl AdapterRegistry for Api {
    async fn upload_blob(&self, request: Request<Streaming<UploadBlobRequest>>) -> Answer<UploadBlobResponse> {
        let mut parts = request.into_inner();
        let outcome = async {
            let first = parts.message().await.map_err(broken_off)?;
            let announced = match first.and_then(|message| message.part) {
                Some(Part::Header(header)) => Announced {
                    digest: Digest::try_new(header.digest)?,
                    size_bytes: header.size_bytes,
                    offset: header.offset,
                },
                Some(Part::Chunk(_)) | None => {
                    return Err(Invalid::new("header", "the first message must name digest and size").into());
                }
            };
            let chunks = parts.map_err(broken_off).and_then(|message| std::future::ready(chunk(message)));
            let digest = self.registry.upload_blob(announced, chunks).await?;
            Ok(UploadBlobResponse { digest: digest.to_string() })
        };
        answer(outcome.await)
    }

    async fn get_upload(&self, request: Request<GetUploadRequest>) -> Answer<GetUploadResponse> {
        let outcome = async {
            let digest = Digest::try_new(request.into_inner().digest)?;
            let Received { bytes, stored } = self.registry.received(&digest).await?;
            Ok(GetUploadResponse { received_bytes: bytes, stored })
        };
        answer(outcome.await)
    }

    async fn sign_download(&self, request: Request<SignDownloadRequest>) -> Answer<SignDownloadResponse> {
        let outcome = async {
            let SignDownloadRequest { digest, lifetime_ms } = request.into_inner();
            let lifetime = if lifetime_ms == 0 { DEFAULT_LIFETIME_MS } else { lifetime_ms };
            if lifetime > MAX_LIFETIME_MS {
                let problem = format!("{lifetime} is above the limit of {MAX_LIFETIME_MS}, seven days");
                return Err(Invalid::new("lifetime_ms", problem).into());
            }
            let lifetime = std::time::Duration::from_millis(lifetime);
            let url = self.registry.sign_download(&Digest::try_new(digest)?, lifetime).await?;
            Ok(SignDownloadResponse { url })
        };
        answer(outcome.await)
    }

    type DownloadBlobStream = BoxStream<'static, Result<DownloadBlobResponse, Status>>;

    async fn download_blob(&self, request: Request<DownloadBlobRequest>) -> Answer<Self::DownloadBlobStream> {
        let outcome = async {
            let DownloadBlobRequest { digest, offset } = request.into_inner();
            let digest = Digest::try_new(digest)?;
            match offset {
                0 => Ok(self.registry.download_blob(&digest).await?.map_err(Error::from).boxed()),
                _ => self.registry.download_rest(&digest, offset).await,
            }
        };
        let pieces = outcome.await.map_err(|error| status(&error))?;
        let messages = pieces
            .map_ok(|piece| {
                let chunks: Vec<_> = piece.chunks(MAX_CHUNK_BYTES).map(<[u8]>::to_vec).collect();
                futures::stream::iter(chunks.into_iter().map(|chunk| Ok(DownloadBlobResponse { chunk })))
            })
            .map_err(|error| status(&error))
            .try_flatten();
        Ok(Response::new(messages.boxed()))
    }

    async fn register_base(&self, request: Request<RegisterBaseRequest>) -> Answer<Base> {
        let outcome = async {
            let base = new_base(request.into_inner())?;
            Ok(Base::from(&self.registry.register_base(base).await?))
        };
        answer(outcome.await)
    }

    async fn get_base(&self, request: Request<GetBaseRequest>) -> Answer<Base> {
        let outcome = async {
            let name = BaseName::try_new(request.into_inner().name)?;
            Ok(Base::from(&self.registry.base(&name).await?))
        };
        answer(outcome.await)
    }

    async fn list_bases(&self, request: Request<ListBasesRequest>) -> Answer<ListBasesResponse> {
        let outcome = async {
            let page = Page::parse(request.into_inner().page)?;
            let (bases, next_page_token) = self.registry.list_bases(&page).await?;
            Ok(ListBasesResponse { bases: bases.iter().map(Into::into).collect(), next_page_token })
        };
        answer(outcome.await)
    }

    async fn publish_version(&self, request: Request<PublishVersionRequest>) -> Answer<AdapterVersion> {
        let outcome = async {
            let new = new_version(request.into_inner())?;
            let manifest = self.registry.publish(new).await?;
            Ok(AdapterVersion::from(&*manifest))
        };
        answer(outcome.await)
    }

    async fn get_version(&self, request: Request<GetVersionRequest>) -> Answer<AdapterVersion> {
        let outcome = async {
            let GetVersionRequest { adapter, version } = request.into_inner();
            let version = self.registry.version(&AdapterName::try_new(adapter)?, Version(version)).await?;
            Ok(wire_version(version))
        };
        answer(outcome.await)
    }

    async fn list_versions(&self, request: Request<ListVersionsRequest>) -> Answer<ListVersionsResponse> {
        let outcome = async {
            let ListVersionsRequest { adapter, page, with_deleted } = request.into_inner();
            let (adapter, page) = (AdapterName::try_new(adapter)?, Page::parse(page)?);
            let (versions, next_page_token) = self.registry.list_versions(&adapter, &page, with_deleted).await?;
            Ok(ListVersionsResponse { versions: versions.into_iter().map(wire_version).collect(), next_page_token })
        };
        answer(outcome.await)
    }

    async fn list_adapters(&self, request: Request<ListAdaptersRequest>) -> Answer<ListAdaptersResponse> {
        let outcome = async {
            let page = Page::parse(request.into_inner().page)?;
            let (adapters, next_page_token) = self.registry.list_adapters(&page).await?;
            Ok(ListAdaptersResponse { adapters: adapters.into_iter().map(wire_adapter).collect(), next_page_token })
        };
        answer(outcome.await)
    }

    async fn set_alias(&self, request: Request<SetAliasRequest>) -> Answer<Alias> {
        let outcome = async {
            let SetAliasRequest { adapter, alias, version, expected_version, who, why } = request.into_inner();
            let (adapter, alias) = (AdapterName::try_new(adapter)?, AliasName::try_new(alias)?);
            let expected = match expected_version {
                None => Expected::Anything,
                Some(0) => Expected::Absent,
                Some(version) => Expected::Version(Version(version)),
            };
            let reason = Reason::try_new(who, why)?;
            let entry = self.registry.set_alias(&adapter, &alias, Version(version), expected, reason).await?;
            Ok(convert::alias(&adapter, &entry))
        };
        answer(outcome.await)
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Answer<Alias> {
        let outcome = async {
            let RollbackRequest { adapter, alias, who, why } = request.into_inner();
            let (adapter, alias) = (AdapterName::try_new(adapter)?, AliasName::try_new(alias)?);
            let entry = self.registry.rollback(&adapter, &alias, Reason::try_new(who, why)?).await?;
            Ok(convert::alias(&adapter, &entry))
        };
        answer(outcome.await)
    }

    async fn get_alias_history(&self, request: Request<GetAliasHistoryRequest>) -> Answer<GetAliasHistoryResponse> {
        let outcome = async {
            let GetAliasHistoryRequest { adapter, alias } = request.into_inner();
            let (adapter, alias) = (AdapterName::try_new(adapter)?, AliasName::try_new(alias)?);
            let moves = self.registry.alias_history(&adapter, &alias).await?;
            Ok(GetAliasHistoryResponse { moves: moves.iter().map(|entry| convert::alias(&adapter, entry)).collect() })
        };
        answer(outcome.await)
    }

    async fn resolve(&self, request: Request<ResolveRequest>) -> Answer<AdapterVersion> {
        let outcome = async {
            let reference = request.into_inner().reference.parse()?;
            Ok(wire_version(self.registry.resolve(&reference).await?))
        };
        answer(outcome.await)
    }

    async fn get_spectrum(&self, request: Request<GetSpectrumRequest>) -> Answer<Spectrum> {
        answer(low_rank::spectrum(&self.registry, request.into_inner()).await)
    }

    async fn compare(&self, request: Request<CompareRequest>) -> Answer<Comparison> {
        answer(low_rank::compare(&self.registry, request.into_inner()).await)
    }

    async fn compress(&self, request: Request<CompressRequest>) -> Answer<CompressResponse> {
        answer(low_rank::compress(&self.registry, request.into_inner()).await)
    }

    type MergeStream = merge::MergeStream;

    async fn merge(&self, request: Request<pb::MergeRequest>) -> Answer<Self::MergeStream> {
        answer(merge::merge(&self.registry, request.into_inner()))
    }

    async fn delete_version(&self, request: Request<DeleteVersionRequest>) -> Answer<AdapterVersion> {
        let outcome = async {
            let DeleteVersionRequest { adapter, version, who, why } = request.into_inner();
            let (adapter, reason) = (AdapterName::try_new(adapter)?, Reason::try_new(who, why)?);
            Ok(wire_version(self.registry.delete(&adapter, Version(version), &reason).await?))
        };
        answer(outcome.await)
    }

    async fn undelete_version(&self, request: Request<UndeleteVersionRequest>) -> Answer<AdapterVersion> {
        let outcome = async {
            let UndeleteVersionRequest { adapter, version, who, why } = request.into_inner();
            let (adapter, reason) = (AdapterName::try_new(adapter)?, Reason::try_new(who, why)?);
            Ok(wire_version(self.registry.undelete(&adapter, Version(version), &reason).await?))
        };
        answer(outcome.await)
    }

    async fn set_retention(&self, request: Request<SetRetentionRequest>) -> Answer<pb::Retention> {
        let outcome = async {
            let SetRetentionRequest { adapter, rules, who, why } = request.into_inner();
            let (adapter, reason) = (AdapterName::try_new(adapter)?, Reason::try_new(who, why)?);
            let rules = rules
                .map(|rules| Rules::try_new(rules.keep_last, rules.keep_ms, rules.keep_tags.into_iter().collect()))
                .transpose()?;
            Ok(wire_house::retention(&adapter, self.registry.set_retention(&adapter, rules, reason).await?))
        };
        answer(outcome.await)
    }

    async fn get_retention(&self, request: Request<GetRetentionRequest>) -> Answer<pb::Retention> {
        let outcome = async {
            let adapter = AdapterName::try_new(request.into_inner().adapter)?;
            let found = self.registry.retention(&adapter).await?;
            let nothing = || pb::Retention { adapter: adapter.to_string(), ..Default::default() };
            Ok(found.map_or_else(nothing, |found| wire_house::retention(&adapter, found)))
        };
        answer(outcome.await)
    }

    async fn collect(&self, request: Request<CollectRequest>) -> Answer<CollectResponse> {
        let outcome = async {
            let CollectRequest { dry_run, who, why } = request.into_inner();
            let done = self.registry.collect(dry_run, &Reason::try_new(who, why)?).await?;
            Ok(wire_house::collected(&done))
        };
        answer(outcome.await)
    }

    type ExportAuditStream = BoxStream<'static, Result<AuditEntry, Status>>;

    async fn export_audit(&self, request: Request<ExportAuditRequest>) -> Answer<Self::ExportAuditStream> {
        let from = request.into_inner().from_sequence;
        self.registry.catch_up().await.map_err(|error| status(&error))?;
        let registry = self.registry.clone();
        let links = futures::stream::try_unfold(from, move |from| {
            let registry = registry.clone();
            async move {
                let links = registry.links(from, LINKS_AT_ONCE).await?;
                let next = links.last().map(|last| last.seq + 1);
                Ok::<_, Error>(next.map(|next| (futures::stream::iter(links.into_iter().map(Ok::<_, Error>)), next)))
            }
        });
        let entries = links.try_flatten().map_ok(|link| AuditEntry {
            sequence: link.seq,
            digest: link.digest.to_string(),
            record: link.bytes.to_vec(),
        });
        Ok(Response::new(entries.map_err(|error: Error| status(&error)).boxed()))
    }

    async fn verify(&self, _: Request<VerifyRequest>) -> Answer<VerifyResponse> {
        let outcome = async {
            let seen = self.registry.verify().await?;
            Ok(VerifyResponse {
                links: seen.links,
                records: seen.records,
                blobs: seen.blobs,
                made_up: seen.made_up,
                problems: seen.problems.into_iter().collect(),
            })
        };
        answer(outcome.await)
    }

    async fn get_usage(&self, _: Request<GetUsageRequest>) -> Answer<pb::Usage> {
        let outcome = async {
            let usage = self.registry.usage().await?;
            Ok(wire_house::usage(usage, &self.registry.house))
        };
        answer(outcome.await)
    }

    type WatchStream = watch::WatchStream;

    async fn watch(&self, request: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        Ok(Response::new(watch::watch(&self.registry, &self.stop, request.get_ref())))
    }

    async fn set_policy(&self, request: Request<SetPolicyRequest>) -> Answer<Policy> {
        answer(policy::set(&self.registry, request.into_inner()).await)
    }

    async fn get_policy(&self, request: Request<GetPolicyRequest>) -> Answer<Policy> {
        answer(policy::get(&self.registry, request.into_inner()).await)
    }

    async fn check_policy(&self, request: Request<CheckPolicyRequest>) -> Answer<CheckPolicyResponse> {
        answer(policy::check(&self.registry, request.into_inner()).await)
    }

    async fn approve_version(&self, request: Request<ApproveVersionRequest>) -> Answer<Approval> {
        answer(policy::approve(&self.registry, request.into_inner()).await)
    }
}

fn broken_off(cause: Status) -> Error {
    Error::BrokenOff { problem: cause.message().to_owned() }
}

fn chunk(message: UploadBlobRequest) -> Result<Vec<u8>> {
    match message.part {
        Some(Part::Chunk(bytes)) if bytes.len() <= MAX_CHUNK_BYTES => Ok(bytes),
        Some(Part::Chunk(bytes)) => {
            Err(Invalid::new("chunk", format!("{} bytes; the limit is {MAX_CHUNK_BYTES}", bytes.len())).into())
        }
        Some(Part::Header(_)) => Err(Invalid::new("header", "only the first message may carry it").into()),
        None => Err(Invalid::new("chunk", "the message is empty").into()),
    }
}

fn new_base(request: RegisterBaseRequest) -> Result<NewBase, Invalid> {
    Ok(NewBase {
        name: BaseName::try_new(request.name)?,
        fingerprint: Digest::try_new(request.fingerprint)?,
        quant: convert::quant_code(&request.quant)?,
        dtype: request.dtype,
        files: request.files.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        parameters: request.parameters,
        merged_from: None,
    })
}

fn new_version(request: PublishVersionRequest) -> Result<NewVersion, Invalid> {
    let origin = match request.job_id.as_str() {
        "" => None,
        job => Some(Origin { job: JobId::try_new(job)?, fence: request.fence }),
    };
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let template = given(request.prompt_template).unwrap_or_else(|| "{input}".to_owned());
    let new = NewVersion {
        adapter: AdapterName::try_new(request.adapter)?,
        base: BaseName::try_new(request.base)?,
        config: Digest::try_new(request.config_digest)?,
        weights: Digest::try_new(request.weights_digest)?,
        prompt_template: template,
        dataset: given(request.dataset),
        dataset_digest: given(request.dataset_digest).map(Digest::try_new).transpose()?,
        origin,
        metrics: request.metrics.into_iter().collect(),
        notes: request.notes,
        code_commit: request.code_commit,
        license: request.license,
        tags: request.tags.into_iter().collect(),
        who: request.who,
    };
    check_words(&new)?;
    Ok(new)
}

fn wire_version(version: AliasedVersion) -> AdapterVersion {
    let deletion = version.gone.map(wire_house::deletion);
    AdapterVersion { aliases: version.aliases, deletion, ..AdapterVersion::from(&*version.manifest) }
}

fn wire_adapter(adapter: AdapterSummary) -> Adapter {
    Adapter {
        name: adapter.name.to_string(),
        latest_version: adapter.latest.0,
        base: adapter.base.to_string(),
        aliases: adapter.aliases.into_iter().map(|(alias, version)| (alias, version.0)).collect(),
    }
}
