//! All four services in one process, each on its own loopback port, over real gRPC: the in-process queue instead of Redis,
//! a local folder instead of S3, and nothing else different.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tailor_queue::{InProcessQueue, JobQueue};
use tailor_serverkit::{Serving, Settings, health, server, store};
use tokio_util::sync::CancellationToken;

use crate::connect::{Addresses, Endpoints};

/// How long the services may take to be ready.
const STARTUP: Duration = Duration::from_secs(15);

pub struct Embedded {
    pub addresses: Addresses,
    stop: CancellationToken,
    servings: Vec<Serving>,
    /// Held while we run: two processes on one folder would each have a queue of their own.
    _lock: File,
}

/// Starts the system on `state`, with settings from `config` and the environment.
///
/// # Errors
/// Settings that are not valid, a port that is taken, a folder that another process uses or that cannot be written.
pub async fn start(settings: &Settings, state: &Path, host: IpAddr, first_port: u16) -> anyhow::Result<Embedded> {
    std::fs::create_dir_all(state).with_context(|| format!("cannot make {}", state.display()))?;
    let lock = lock(state)?;
    let mut settings = settings.clone();
    let folder = std::path::absolute(state)?;
    settings.store.url = folder.join("store").display().to_string();
    settings.cache_dir = folder.join("cache");
    // The queue is this process's own, so no other worker can ever take a seat.
    settings.trainer.max_ranks = 1;
    let store = store::open(&settings).await?;
    let queue: Arc<dyn JobQueue> = Arc::new(InProcessQueue::new());
    let mut listeners = Vec::new();
    for offset in 0..4 {
        let port = if first_port == 0 { 0 } else { first_port.checked_add(offset).context("--port is above 65532")? };
        listeners.push(server::bind(SocketAddr::new(host, port)).await.context("cannot start: --port")?);
    }
    let mut urls = Vec::new();
    for listener in &listeners {
        let mut address = listener.local_addr()?;
        if address.ip().is_unspecified() {
            address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        urls.push(format!("http://{address}"));
    }
    let [dataset, trainer, registry, gateway] = <[String; 4]>::try_from(urls).map_err(|_| anyhow::anyhow!("four"))?;
    let addresses = Addresses { dataset, trainer, registry, gateway };
    settings.services.dataset.clone_from(&addresses.dataset);
    settings.services.trainer.clone_from(&addresses.trainer);
    settings.services.registry.clone_from(&addresses.registry);
    settings.services.gateway.clone_from(&addresses.gateway);

    let stop = CancellationToken::new();
    let [dataset, trainer, registry, gateway] = <[_; 4]>::try_from(listeners).map_err(|_| anyhow::anyhow!("four"))?;
    let servings = vec![
        tailor_registry::start(&settings, store.clone(), registry, stop.clone()).await?,
        tailor_dataset::start(&settings, store.clone(), dataset, stop.clone()).await?,
        tailor_trainer::start(&settings, store.clone(), queue, trainer, stop.clone()).await?,
        tailor_gateway::start(&settings, store, gateway, stop.clone()).await?,
    ];
    for serving in &servings {
        match health::wait(&serving.address.to_string(), STARTUP).await {
            // It waits for something that may yet come, e.g. a base of `gateway.preload` that nobody has added.
            Err(error @ health::Error::NotServing { .. }) => tracing::warn!(%error, "not everything is ready yet"),
            outcome => outcome?,
        }
    }
    Ok(Embedded { addresses, stop, servings, _lock: lock })
}

fn lock(state: &Path) -> anyhow::Result<File> {
    let path = state.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => anyhow::bail!(
            "another tailor runs on {}; stop it, use its addresses, or choose another folder with --state",
            state.display()
        ),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

impl Embedded {
    pub fn endpoints(&self, token: Option<String>, state: &Path) -> Endpoints {
        Endpoints::new(self.addresses.clone(), token, state.to_owned())
    }

    /// Ends all services in order and waits for them.
    ///
    /// # Errors
    /// A server failed while it ran.
    pub async fn shut_down(self) -> anyhow::Result<()> {
        self.stop.cancel();
        for serving in self.servings {
            serving.finished().await?;
        }
        Ok(())
    }
}
