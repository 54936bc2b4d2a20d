//! Serving gRPC, and HTTP on the same port where a service has such routes: health, reflection, tokens, traces, and an orderly end.
//!
//! The end: health says NOT_SERVING, and for a while (`shutdown_wait_ms`) all is served as before, so that balancers see it;
//! then new connections are refused, calls in flight finish within the grace period, what is left then is cut.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::util::option_layer;
use tower_http::cors::CorsLayer;

use crate::auth::AuthLayer;
use crate::settings::Settings;
use crate::trace::TraceLayer;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("settings: listen: {address} cannot be bound: {problem}; {remedy}")]
    Bind { address: SocketAddr, problem: std::io::Error, remedy: &'static str },
    #[error("server at {address} failed: {problem}")]
    Serve { address: SocketAddr, problem: tonic::transport::Error },
    #[error("{name}: {problem}")]
    Companion { name: &'static str, problem: String },
}

/// Largest gRPC message in either direction; files travel in chunks far below it.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Binds the address that the settings name.
///
/// # Errors
/// The port is taken or not ours to take; the message says so.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|problem| {
        let remedy = match problem.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another program listens there; stop it or choose another port (0 finds a free one)"
            }
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need rights; choose a higher one",
            _ => "choose an address of this machine",
        };
        Error::Bind { address, problem, remedy }
    })
}

/// A server that runs until its token is cancelled.
pub struct Serving {
    pub address: SocketAddr,
    task: JoinHandle<Result<(), Error>>,
    /// What works beside the server and ends by the same token.
    companions: Vec<(&'static str, JoinHandle<Result<(), String>>)>,
    stop: CancellationToken,
    grace: Duration,
}

impl Serving {
    /// Runs `work` beside the server. It must end by the server's token, and the server's end waits for it: a process
    /// that left while a device thread computes would pull libtorch from under it.
    #[must_use]
    pub fn beside(self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> Self {
        self.beside_or_fail(name, async {
            work.await;
            Ok(())
        })
    }

    /// As [`Self::beside`] for work that may have to give up. It ends the server by its token then, and its words are those
    /// that the process ends with.
    #[must_use]
    pub fn beside_or_fail(
        mut self,
        name: &'static str,
        work: impl Future<Output = Result<(), String>> + Send + 'static,
    ) -> Self {
        self.companions.push((name, tokio::spawn(work)));
        self
    }

    /// Waits for the server's end, and within the grace period for what runs beside it.
    ///
    /// # Errors
    /// The transport failed; what runs beside it gave up.
    pub async fn finished(self) -> Result<(), Error> {
        let mut outcome = self.task.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        // Also where the server failed: nothing goes on without it.
        self.stop.cancel();
        let deadline = tokio::time::Instant::now() + self.grace;
        for (name, companion) in self.companions {
            match tokio::time::timeout_at(deadline, companion).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(problem))) => outcome = outcome.and(Err(Error::Companion { name, problem })),
                Ok(Err(panic)) => tracing::error!(name, %panic, "ended by a panic"),
                Err(_) => tracing::warn!(name, grace = ?self.grace, "still at work at the end of the grace period"),
            }
        }
        outcome
    }
}

/// Why a service does not serve yet, or any more; nothing while it does.
pub type Hindrances = watch::Receiver<Vec<String>>;

/// What not every service has.
#[derive(Default)]
pub struct Doors {
    /// Which pages may call from a browser.
    pub cors: Option<CorsLayer>,
    /// What health follows; without it a service is well as soon as it listens.
    pub hindrances: Option<Hindrances>,
}

/// Serves `routes` on `listener` until `stop` is cancelled, with health and reflection beside them.
///
/// # Errors
/// The listener has no address.
pub async fn serve(
    service: &'static str,
    listener: TcpListener,
    routes: Routes,
    settings: &Settings,
    stop: CancellationToken,
) -> std::io::Result<Serving> {
    serve_with(service, listener, routes, settings, Doors::default(), stop).await
}

/// As [`serve`], with what not every service has.
///
/// # Errors
/// The listener has no address.
pub async fn serve_with(
    service: &'static str,
    listener: TcpListener,
    routes: Routes,
    settings: &Settings,
    doors: Doors,
    stop: CancellationToken,
) -> std::io::Result<Serving> {
    let address = listener.local_addr()?;
    let (wait, grace) = (settings.shutdown_wait(), settings.shutdown_grace());
    let (health, health_service) = tonic_health::server::health_reporter();
    let begins = doors.hindrances.as_ref().map_or(ServingStatus::Serving, status_of);
    health.set_service_status("", begins).await;
    let router = Server::builder()
        // For those routes that are no gRPC.
        .accept_http1(true)
        .layer(option_layer(doors.cors))
        .layer(TraceLayer { service })
        .layer(AuthLayer::new(settings.auth.token.as_deref()))
        .add_routes(routes)
        .add_service(health_service);
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tailor_pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Python's grpcio and older tools still ask for the alpha of the protocol.
    let router = match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(alpha)) => router.add_service(v1).add_service(alpha),
        (Err(error), _) | (_, Err(error)) => return Err(std::io::Error::other(error)),
    };
    // Without it the kernel holds a stream's small messages back until the one before is acknowledged: 40 ms for a token.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let ends = stop.clone();
    let task = tokio::spawn(async move {
        let stop = ends;
        let draining = stop.clone();
        let end = async move {
            tokio::select! {
                () = draining.cancelled() => {}
                () = follow(&health, doors.hindrances) => {}
            }
            health.set_service_status("", ServingStatus::NotServing).await;
            tracing::info!(service, %address, "draining");
            tokio::time::sleep(wait).await;
        };
        let serving = router.serve_with_incoming_shutdown(incoming, end);
        tokio::select! {
            outcome = serving => outcome.map_err(|problem| Error::Serve { address, problem }),
            () = after(stop, wait + grace) => {
                tracing::warn!(service, ?grace, "calls were still running at the end of the grace period and were cut");
                Ok(())
            }
        }
    });
    tracing::info!(service, %address, "serving");
    Ok(Serving { address, task, companions: Vec::new(), stop, grace })
}

fn status_of(hindrances: &Hindrances) -> ServingStatus {
    if hindrances.borrow().is_empty() { ServingStatus::Serving } else { ServingStatus::NotServing }
}

/// Says what the service says of itself, and never ends.
async fn follow(health: &HealthReporter, hindrances: Option<Hindrances>) {
    if let Some(mut hindrances) = hindrances {
        while hindrances.changed().await.is_ok() {
            let now = hindrances.borrow_and_update().clone();
            match now.as_slice() {
                [] => tracing::info!("serving"),
                why => tracing::warn!(why = why.join("; "), "not serving"),
            }
            health.set_service_status("", status_of(&hindrances)).await;
        }
    }
    std::future::pending().await
}

async fn after(stop: CancellationToken, grace: Duration) {
    stop.cancelled().await;
    tokio::time::sleep(grace).await;
}

/// Applies the message limits to a generated server.
#[macro_export]
macro_rules! limited {
    ($server:expr) => {
        $server
            .max_decoding_message_size($crate::server::max_message_bytes())
            .max_encoding_message_size($crate::server::max_message_bytes())
    };
}

pub const fn max_message_bytes() -> usize {
    MAX_MESSAGE_BYTES
}
