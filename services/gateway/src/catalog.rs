//! What can be asked for by name: every base, and of every adapter the versions that have a name.

use std::collections::BTreeMap;
use std::future::Future;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use tailor_domain::ErrorCode;
use tailor_pb::inference as pb;
use tailor_pb::{common, registry};

use crate::error::{Error, Result};
use crate::models::Models;

/// Versions that the registry is asked for at the same time.
const ASKED_AT_ONCE: usize = 16;

/// A version by its adapter's name and its number, and the aliases that point to it.
struct Named {
    adapter: String,
    version: u64,
    aliases: Vec<String>,
}

/// Every base, and of every adapter the versions that have a name: an alias, or being the newest.
pub async fn list(models: &Models) -> Result<Vec<pb::Model>> {
    let mut listed = bases(models).await?;
    let resolve = |reference: String| async move { models.resolve(&reference).await };
    listed.extend(found(named(models).await?, resolve).await?);
    Ok(listed)
}

async fn bases(models: &Models) -> Result<Vec<pb::Model>> {
    let (mut client, mut listed, mut token) = (models.registry(), Vec::new(), String::new());
    loop {
        let page = Some(common::Page { size: 0, token });
        let answer = models.routes().answered(client.list_bases(registry::ListBasesRequest { page })).await;
        let answer = answer.map_err(Error::service("registry"))?.into_inner();
        listed.extend(answer.bases.into_iter().map(|base| pb::Model {
            id: base.name.clone(),
            base: base.name,
            digest: base.fingerprint,
            ..Default::default()
        }));
        token = answer.next_page_token;
        if token.is_empty() {
            return Ok(listed);
        }
    }
}

async fn named(models: &Models) -> Result<Vec<Named>> {
    let (mut client, mut listed, mut token) = (models.registry(), Vec::new(), String::new());
    loop {
        let page = Some(common::Page { size: 0, token });
        let answer = models.routes().answered(client.list_adapters(registry::ListAdaptersRequest { page })).await;
        let answer = answer.map_err(Error::service("registry"))?.into_inner();
        listed.extend(answer.adapters.into_iter().flat_map(versions));
        token = answer.next_page_token;
        if token.is_empty() {
            return Ok(listed);
        }
    }
}

fn versions(adapter: registry::Adapter) -> Vec<Named> {
    let mut versions = BTreeMap::from([(adapter.latest_version, Vec::new())]);
    for (alias, version) in adapter.aliases {
        versions.entry(version).or_default().push(alias);
    }
    let named = versions.into_iter().map(|(version, mut aliases)| {
        aliases.sort();
        Named { adapter: adapter.name.clone(), version, aliases }
    });
    named.collect()
}

/// The versions as they are listed, in their order. One that was deleted since it was named is left out.
async fn found<F>(named: Vec<Named>, resolve: impl Fn(String) -> F) -> Result<Vec<pb::Model>>
where
    F: Future<Output = Result<registry::AdapterVersion>>,
{
    let resolve = &resolve;
    let models = stream::iter(named).map(|Named { adapter, version, aliases }| async move {
        let reference = format!("{adapter}@{version}");
        match resolve(reference.clone()).await {
            Ok(found) => {
                let id = format!("{}:{reference}", found.base);
                Ok(Some(pb::Model { id, base: found.base, adapter, version, aliases, digest: found.digest }))
            }
            Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    });
    let models: Vec<Option<pb::Model>> = models.buffered(ASKED_AT_ONCE).try_collect().await?;
    Ok(models.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn all(count: u64) -> Vec<Named> {
        (1..=count).map(|version| Named { adapter: "a".into(), version, aliases: Vec::new() }).collect()
    }

    fn version(reference: &str) -> registry::AdapterVersion {
        registry::AdapterVersion { base: "little".into(), digest: reference.to_owned(), ..Default::default() }
    }

    #[test]
    fn an_adapter_is_named_by_its_newest_version_and_by_each_alias() {
        let aliases = [("production", 2), ("staging", 5), ("old", 2)];
        let adapter = registry::Adapter {
            name: "a".into(),
            latest_version: 5,
            aliases: aliases.map(|(alias, version)| (alias.to_owned(), version)).into(),
            ..Default::default()
        };
        let named: Vec<_> = versions(adapter).into_iter().map(|named| (named.version, named.aliases)).collect();
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(named, [(2, texts(&["old", "production"])), (5, texts(&["staging"]))]);
    }

    #[tokio::test]
    async fn a_version_that_has_gone_meanwhile_is_left_out_and_what_fails_otherwise_fails_the_list() {
        let of = |gone: tonic::Code| {
            found(all(3), move |reference| async move {
                if reference == "a@2" {
                    return Err(Error::service("registry")(tonic::Status::new(gone, "no")));
                }
                Ok(version(&reference))
            })
        };
        let listed = of(tonic::Code::NotFound).await.expect("a list");
        let ids: Vec<_> = listed.iter().map(|model| (model.id.as_str(), model.digest.as_str())).collect();
        assert_eq!(ids, [("little:a@1", "a@1"), ("little:a@3", "a@3")]);
        let error = of(tonic::Code::Unavailable).await.expect_err("nobody knows what there is");
        assert_eq!(error.code(), ErrorCode::Unavailable);
    }

    #[tokio::test]
    async fn versions_are_asked_for_side_by_side_but_not_all_at_once() {
        let (running, most) = &(AtomicUsize::new(0), AtomicUsize::new(0));
        let listed = found(all(50), |reference| async move {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok(version(&reference))
        });
        assert_eq!(listed.await.expect("a list").len(), 50);
        assert_eq!(most.load(Ordering::SeqCst), ASKED_AT_ONCE);
    }
}
