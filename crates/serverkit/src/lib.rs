//! What every service needs around its logic: settings, telemetry, health, reflection, auth, shutdown, errors.
//!
//! A service's `main` is [`boot::main`] with a function that builds its gRPC routes; everything else is here, once.

/// The commit that this program was built from, or its version where the build did not say (`TAILOR_COMMIT`).
pub const CODE_COMMIT: &str = match option_env!("TAILOR_COMMIT") {
    Some(commit) => commit,
    None => concat!("tailor-", env!("CARGO_PKG_VERSION")),
};

pub mod auth;
pub mod boot;
pub mod client;
pub mod clock;
pub mod cors;
pub mod health;
pub mod hint;
pub mod meter;
pub mod page;
pub mod server;
pub mod settings;
pub mod shutdown;
pub mod spool;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod trace;
pub mod trust;

pub use client::{Client, connect};
pub use clock::Clock;
pub use meter::JobMeter;
pub use page::Page;
pub use server::{Doors, Serving, serve, serve_with};
pub use settings::Settings;
pub use status::{Coded, status};
