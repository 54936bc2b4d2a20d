//! The gateway's: its role, who is let in, and how much memory goes to what.

use serde::Deserialize;
use tailor_domain::BaseName;

use super::{Error, is_url, positive};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GatewayRole {
    Both,
    Edge,
    Engine,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// `both`: it answers, and makes the tokens itself. `edge`: it answers, and engines elsewhere make the tokens. `engine`: it
    /// makes tokens for edges.
    pub role: GatewayRole,
    /// An edge's engines: addresses (`http://host:port`) parted by commas.
    pub engines: String,
    /// Sequences waiting for the device before callers are turned away.
    pub max_queue: usize,
    /// Tokens, prompts and answers together, that those may come to.
    pub max_queue_tokens: usize,
    /// Sequences in one step.
    pub max_batch: usize,
    /// What a tenant (`x-tailor-tenant`) may ask for; 0 is no limit. Tokens are prompts and answers together.
    pub tenant_requests_per_minute: u64,
    pub tenant_tokens_per_minute: u64,
    /// Memory for the keys and values of each base's sequences; one sequence of the greatest length fits always.
    pub kv_bytes: u64,
    /// Memory of the device for bases, their keys and values included; the longest unused leave when another needs it. What is in
    /// use, preloaded, or has a pinned adapter stays. 0: what the device, the machine or its control group has beside what
    /// adapters may take, and at least half of it; all of it for a base alone.
    pub base_bytes: u64,
    /// Memory of the device for adapters; what is worth least (uses, time to load, bytes) leaves when it is full. What is in
    /// use or pinned stays.
    pub adapter_bytes: u64,
    /// The host's memory for the files of adapters, so that those that left the device come back without the store.
    pub adapter_memory_bytes: u64,
    /// Disk (`cache_dir`) for the files of adapters.
    pub adapter_disk_bytes: u64,
    /// How long after the registry last said so an alias' target, or what a base's name means, may be taken for true. Later the
    /// registry is asked.
    pub alias_ttl_ms: u64,
    /// How long aliases, versions and bases go on meaning what they last meant while no registry answers; 0: not at all.
    pub outage_grace_ms: u64,
    /// Pages that may call from a browser: origins (`https://host[:port]`) parted by commas, or `*` for all. Empty: none.
    pub cors_origins: String,
    /// Bases that are loaded at the start and stay, names parted by commas; the gateway is ready when they answer. Others are
    /// loaded at their first use.
    pub preload: String,
    /// How long a step may take. A device that is at work for longer without an end of it counts as hung, and the gateway says
    /// that it does not serve until the step ends.
    pub hang_ms: u64,
    /// Adapters that metrics name one by one; what comes after so many counts as `other`.
    pub metered_adapters: usize,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            role: GatewayRole::Both,
            engines: String::new(),
            max_queue: 256,
            max_queue_tokens: 1 << 20,
            max_batch: 32,
            tenant_requests_per_minute: 0,
            tenant_tokens_per_minute: 0,
            kv_bytes: 4 << 30,
            base_bytes: 0,
            adapter_bytes: 8 << 30,
            adapter_memory_bytes: 1 << 30,
            adapter_disk_bytes: 32 << 30,
            alias_ttl_ms: 100,
            outage_grace_ms: 600_000,
            cors_origins: String::new(),
            preload: String::new(),
            hang_ms: 60_000,
            metered_adapters: 100,
        }
    }
}

impl Gateway {
    /// The addresses in `engines`.
    pub fn engine_urls(&self) -> impl Iterator<Item = &str> {
        self.engines.split(',').map(str::trim).filter(|url| !url.is_empty())
    }

    /// An edge has engines, nobody else.
    fn check_role(&self) -> Result<(), String> {
        if let Some(url) = self.engine_urls().find(|url| !is_url(url)) {
            return Err(format!("{url:?} is no address; write http://host:port"));
        }
        let has_engines = self.engine_urls().next().is_some();
        match self.role {
            GatewayRole::Edge if !has_engines => {
                Err("an edge (gateway.role) needs engines; name at least one, http://host:port".into())
            }
            GatewayRole::Both | GatewayRole::Engine if has_engines => {
                Err("only an edge sends requests to engines; set gateway.role to edge, or leave this out".into())
            }
            _ => Ok(()),
        }
    }

    /// The names in `preload`.
    ///
    /// # Errors
    /// What cannot be a base's name.
    pub fn preloaded(&self) -> Result<Vec<BaseName>, tailor_domain::Invalid> {
        let names = self.preload.split(',').map(str::trim).filter(|name| !name.is_empty());
        names.map(BaseName::try_new).collect()
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        positive("gateway.max_queue", self.max_queue as u64)?;
        positive("gateway.max_queue_tokens", self.max_queue_tokens as u64)?;
        positive("gateway.max_batch", self.max_batch as u64)?;
        positive("gateway.kv_bytes", self.kv_bytes)?;
        positive("gateway.hang_ms", self.hang_ms)?;
        if let Err(problem) = crate::cors::origins(&self.cors_origins) {
            return Err(Error::Invalid { key: "gateway.cors_origins", problem });
        }
        if let Err(problem) = self.check_role() {
            return Err(Error::Invalid { key: "gateway.engines", problem });
        }
        if let Err(problem) = self.preloaded() {
            return Err(Error::Invalid { key: "gateway.preload", problem: problem.to_string() });
        }
        Ok(())
    }
}
