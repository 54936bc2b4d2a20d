//! Asking a service how it is, for container health checks and for `tailor up`.

use std::time::Duration;

use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{address} is no address; write host:port")]
    Address { address: String },
    #[error("{address} does not answer: {problem}")]
    Silent { address: String, problem: String },
    #[error("{address} answers, but does not serve")]
    NotServing { address: String },
}

/// As [`probe`], asking until it serves or `patience` is over.
///
/// # Errors
/// What it said last.
pub async fn wait(address: &str, patience: Duration) -> Result<(), Error> {
    let give_up_at = tokio::time::Instant::now() + patience;
    loop {
        match probe(address, patience).await {
            Err(_) if tokio::time::Instant::now() < give_up_at => tokio::time::sleep(Duration::from_millis(20)).await,
            outcome => return outcome,
        }
    }
}

/// Succeeds when the service at `host:port` says SERVING within `timeout`.
///
/// # Errors
/// It does not answer, or answers otherwise.
pub async fn probe(address: &str, timeout: Duration) -> Result<(), Error> {
    let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let endpoint =
        Endpoint::from_shared(url).map_err(|_| Error::Address { address: address.into() })?.connect_timeout(timeout);
    let silent = |problem: String| Error::Silent { address: address.into(), problem };
    let ask = async {
        let channel = endpoint.connect().await.map_err(|error| silent(error.to_string()))?;
        let request = HealthCheckRequest { service: String::new() };
        let answer = HealthClient::new(channel).check(request).await.map_err(|error| silent(error.to_string()))?;
        match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            ServingStatus::Unknown | ServingStatus::NotServing | ServingStatus::ServiceUnknown => {
                Err(Error::NotServing { address: address.into() })
            }
        }
    };
    tokio::time::timeout(timeout, ask).await.map_err(|_| silent(format!("no answer within {timeout:?}")))?
}
