//! What the tests share: programs, processes, clients, a cluster and an embedded system of them, and small inputs.

pub mod answers;
pub mod base;
pub mod cli;
pub mod clients;
pub mod cluster;
pub mod faults;
pub mod fleet;
pub mod gate;
pub mod hang;
pub mod http;
pub mod networks;
pub mod process;
pub mod rows;
pub mod spans;
pub mod up;

pub use base::Family;
pub use cli::Cli;
pub use clients::Training;
pub use cluster::{Cluster, Service};
pub use fleet::Fleet;
pub use gate::Gate;
pub use hang::Hang;
pub use process::{Process, program, repository};
pub use up::Up;

use std::time::{Duration, Instant};

/// Long enough for a busy machine; a test that gets this far has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until there is an answer.
///
/// # Panics
/// There is none within [`PATIENCE`]; the message says what was waited for.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(Instant::now() < give_up_at, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
