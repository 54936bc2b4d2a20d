//! What names mean now: this gateway's own table of aliases and rollouts, kept by the registry's watch.
//!
//! The table is taken for true as long as the registry has confirmed it within `gateway.alias_ttl_ms`; later, and for
//! everything that is no alias, the registry is asked. So an alias that has been moved is followed within that time,
//! whatever happens to the watch. What a base's name means is asked, and taken for true for the same time. Only where no
//! registry answers at all does a name go on meaning what it last meant, for `gateway.outage_grace_ms`: nobody can have moved
//! it through a registry that is away. One that hangs is found out once, and then waited for by nobody ([`silence`]).

mod base_names;
mod follow;
mod silence;
mod table;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tailor_domain::{
    AdapterName, AdapterRef, AliasName, BaseManifest, BaseName, ErrorCode, Rollout, Selector, Version,
};
use tailor_pb::registry;
use tailor_pb::registry::adapter_registry_client::AdapterRegistryClient;
use tailor_pb::registry::rollout_registry_client::RolloutRegistryClient;
use tailor_serverkit::client::Client;
use tailor_serverkit::status::code_of;
use tailor_serverkit::{Settings, connect, server};
use tonic::{Code, Status};

use self::base_names::BaseNames;
use self::silence::{LONGEST, PATIENCE, Silence};
pub use self::table::{Route, Table};
use crate::error::{Error, Result};

/// What a reference means, and who said so.
#[derive(Debug, Clone)]
pub struct Found {
    pub route: Arc<Route>,
    pub from_table: bool,
}

pub struct Routes {
    registry: Client,
    table: Table,
    fresh: Duration,
    grace: Duration,
    /// What references that are no alias were last said to mean, for when no registry answers.
    said: Mutex<HashMap<String, registry::AdapterVersion>>,
    base_names: BaseNames,
    silence: Silence,
}

/// References that are remembered; beyond it all are forgotten.
const MAX_SAID: usize = 10_000;

impl Routes {
    pub fn new(settings: &Settings) -> Result<Self> {
        Ok(Self {
            registry: connect("registry", &settings.services.registry, settings.auth.token.as_deref())?,
            table: Table::default(),
            fresh: Duration::from_millis(settings.gateway.alias_ttl_ms),
            grace: Duration::from_millis(settings.gateway.outage_grace_ms),
            said: Mutex::default(),
            base_names: BaseNames::default(),
            silence: Silence::default(),
        })
    }

    pub fn registry(&self) -> AdapterRegistryClient<Client> {
        AdapterRegistryClient::new(self.registry.clone()).max_decoding_message_size(server::max_message_bytes())
    }

    pub fn rollouts(&self) -> RolloutRegistryClient<Client> {
        RolloutRegistryClient::new(self.registry.clone())
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    /// What a reference means now.
    ///
    /// # Errors
    /// The reference is none, or the registry's answer: NOT_FOUND, or UNAVAILABLE for longer than the grace.
    pub async fn find(&self, reference: &str) -> Result<Found> {
        let reference: AdapterRef = reference.parse()?;
        let Selector::Alias(alias) = &reference.selector else {
            let reference = reference.to_string();
            let target = self.or_remember(&reference, self.resolve(&reference)).await;
            let target = target.map_err(Error::service("registry"))?;
            return Ok(Found { route: Arc::new(Route::fixed(target)), from_table: false });
        };
        let known = self.table.find(reference.adapter.as_str(), alias.as_str());
        if let Some(route) = &known
            && self.table.confirmed_within(self.fresh)
            && route.target.is_some()
        {
            return Ok(Found { route: route.clone(), from_table: true });
        }
        let is_known = known.as_ref().is_some_and(|route| route.target.is_some());
        match self.or_silence(is_known, self.ask(&reference, alias)).await {
            Ok(route) => Ok(Found { route: Arc::new(route), from_table: false }),
            Err(status) => match known {
                Some(route) if route.target.is_some() && self.in_grace(&status) => {
                    tracing::debug!(%reference, "no registry answers; the alias goes on meaning what it last meant");
                    Ok(Found { route, from_table: true })
                }
                _ => Err(Error::Service { service: "registry", status: Box::new(status) }),
            },
        }
    }

    /// What a base's name means now.
    ///
    /// # Errors
    /// The registry's answer: NOT_FOUND, or UNAVAILABLE for longer than the grace.
    pub async fn base(&self, name: &BaseName) -> Result<Arc<BaseManifest>> {
        let ask = || async move {
            let request = registry::GetBaseRequest { name: name.to_string() };
            let found = self.registry().get_base(request).await?.into_inner();
            let manifest = BaseManifest::try_from(found).map_err(|error| Status::internal(error.to_string()))?;
            Ok::<_, Status>(Arc::new(manifest))
        };
        if let Some(manifest) = self.base_names.fresh(name, self.fresh) {
            return Ok(manifest);
        }
        let is_known = self.base_names.last(name).is_some();
        match self.or_silence(is_known, self.base_names.find(name, self.fresh, ask)).await {
            Ok(manifest) => Ok(manifest),
            // It goes on being what it was as long as nobody can say otherwise.
            Err(status) => match self.base_names.last(name).filter(|_| self.in_grace(&status)) {
                Some(manifest) => Ok(manifest),
                None => Err(Error::service("registry")(status)),
            },
        }
    }

    /// Whether what the registry has said may be held to while it, or its store, is away.
    pub fn in_grace(&self, status: &Status) -> bool {
        code_of(status) == ErrorCode::Unavailable && self.table.confirmed_within(self.grace)
    }

    /// What the registry answers, or that it is away, if it does not say a word. `is_known`: whether there is something to go by
    /// then; without it a slow answer is waited for.
    async fn or_silence<T>(
        &self,
        is_known: bool,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let patience = if is_known && self.table.confirmed_within(self.grace) { PATIENCE } else { LONGEST };
        self.silence.ask(patience, answer).await
    }

    /// What the registry answers to a question of which nothing is remembered.
    ///
    /// # Errors
    /// What it says; UNAVAILABLE where it does not say a word.
    pub async fn answered<T>(&self, answer: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        self.or_silence(false, answer).await
    }

    /// What the registry answers of a reference, or what it last did, while none answers.
    async fn or_remember(
        &self,
        reference: &str,
        asked: impl Future<Output = Result<registry::AdapterVersion, Status>>,
    ) -> Result<registry::AdapterVersion, Status> {
        let is_known = self.said().contains_key(reference);
        let answer = self.or_silence(is_known, asked).await;
        let mut said = self.said();
        match answer {
            Ok(target) => {
                if said.len() >= MAX_SAID && !said.contains_key(reference) {
                    said.clear();
                }
                said.insert(reference.to_owned(), target.clone());
                Ok(target)
            }
            Err(status) => said.get(reference).filter(|_| self.in_grace(&status)).cloned().ok_or(status),
        }
    }

    fn said(&self) -> MutexGuard<'_, HashMap<String, registry::AdapterVersion>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registry's answer for an alias, its rollout with it.
    async fn ask(&self, reference: &AdapterRef, alias: &AliasName) -> Result<Route, Status> {
        let target = self.resolve(&reference.to_string()).await?;
        let request = registry::GetRolloutRequest { adapter: reference.adapter.to_string(), alias: alias.to_string() };
        let rollout = match self.rollouts().get_rollout(request).await {
            Ok(rollout) => rollout.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(Route::fixed(target)),
            Err(status) => return Err(status),
        };
        // Between the two answers the alias may have moved: then the rollout is of another target and does not count.
        let splits =
            matches!(rollout.state.as_str(), "RUNNING" | "PROMOTING") && rollout.stable_version == target.version;
        if !splits {
            return Ok(Route::fixed(target));
        }
        let canary = self.get_version(&target.adapter, Version(rollout.canary_version)).await?;
        let alias_seq = rollout.alias_sequence;
        let rollout = Rollout::try_from(rollout).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Route { alias_seq, target: Some(target), rollout: Some(rollout), canary: Some(canary), previous: None })
    }

    async fn resolve(&self, reference: &str) -> Result<registry::AdapterVersion, Status> {
        let request = registry::ResolveRequest { reference: reference.to_owned() };
        Ok(self.registry().resolve(request).await?.into_inner())
    }

    pub async fn version(&self, adapter: &str, version: Version) -> Result<registry::AdapterVersion, Status> {
        self.answered(self.get_version(adapter, version)).await
    }

    async fn get_version(&self, adapter: &str, version: Version) -> Result<registry::AdapterVersion, Status> {
        let request = registry::GetVersionRequest { adapter: adapter.to_owned(), version: version.0 };
        Ok(self.registry().get_version(request).await?.into_inner())
    }

    /// A version that an edge has resolved: as [`Self::version`], and while no registry answers as it last was.
    pub async fn version_or_remembered(
        &self,
        adapter: &str,
        version: Version,
    ) -> Result<registry::AdapterVersion, Status> {
        self.or_remember(&format!("{adapter}@{version}"), self.get_version(adapter, version)).await
    }

    /// Waits until this table has a rollout's entry, so that whoever asked for it finds it in force; not for long, since the
    /// entry holds whether it is here yet or not.
    pub async fn reached(&self, adapter: &AdapterName, alias: &AliasName, seq: u64) {
        const PATIENCE: Duration = Duration::from_secs(2);
        let mut changed = self.table.changed();
        let reached = async {
            loop {
                let route = self.table.find(adapter.as_str(), alias.as_str());
                let has = route.and_then(|route| route.rollout.as_ref().map(|rollout| rollout.seq));
                if has.is_some_and(|has| has >= seq) || changed.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(PATIENCE, reached).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tonic_types::StatusExt as _;

    use super::*;

    fn routes() -> Routes {
        let routes = Routes::new(&Settings::default()).expect("an address");
        routes.table.confirm();
        routes
    }

    fn version(number: u64) -> registry::AdapterVersion {
        registry::AdapterVersion { adapter: "grammar".into(), version: number, ..Default::default() }
    }

    /// What a reference means while the registry hangs, and how long its asker waited.
    async fn ask(routes: &Routes, reference: &str) -> (Result<registry::AdapterVersion, Status>, u64) {
        let begun = Instant::now();
        let said = routes.or_remember(reference, std::future::pending()).await;
        (said, begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_registry_hangs_one_waits_and_then_all_are_told_at_once_what_is_known() {
        let routes = routes();
        routes.or_remember("grammar@1", async { Ok(version(1)) }).await.expect("it answers");
        let (said, waited) = ask(&routes, "grammar@1").await;
        assert_eq!((said.expect("as it last was"), waited), (version(1), 2));
        for _ in 0..5 {
            let (said, waited) = ask(&routes, "grammar@1").await;
            assert_eq!((said.expect("as it last was"), waited), (version(1), 0));
            let (said, waited) = ask(&routes, "grammar@2").await;
            let status = said.expect_err("nobody knows");
            assert_eq!((status.code(), waited), (Code::Unavailable, 0), "{status}");
            assert!(status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()), "{status}");
        }
        routes.silence.heard();
        let found = routes.or_remember("grammar@2", async { Ok(version(2)) }).await;
        assert_eq!(found.expect("it answers again"), version(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_knows_is_waited_for_but_not_for_ever() {
        let routes = routes();
        let (said, waited) = ask(&routes, "grammar@1").await;
        assert_eq!(said.expect_err("nobody knows").code(), Code::Unavailable);
        assert_eq!(waited, LONGEST.as_secs());
    }

    #[tokio::test]
    async fn what_is_known_is_not_forgotten_by_being_asked_again() {
        let routes = routes();
        for number in (0..MAX_SAID as u64).chain([0]) {
            let found = routes.or_remember(&number.to_string(), async { Ok(version(number)) }).await;
            found.expect("it answers");
        }
        assert_eq!(routes.said().len(), MAX_SAID);
        routes.or_remember("one more", async { Ok(version(1)) }).await.expect("it answers");
        assert_eq!(routes.said().len(), 1, "no more than the limit is ever remembered");
    }
}
