//! Under which address other workers reach this one.
//!
//! The address of the interface that the kernel would send over is the one that the other side sees: nothing has to be set on
//! machines with one network, in containers or in pods.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::error::{Error, Result};

#[derive(Debug)]
pub struct Network {
    /// `trainer.rendezvous_host`.
    host: Option<String>,
    /// `host:port` that every worker reaches.
    common: String,
}

impl Network {
    /// `common` is the URL of a service that all workers call.
    pub fn new(host: &str, common: &str) -> Self {
        let host = Some(host.trim().to_owned()).filter(|host| !host.is_empty());
        Self { host, common: host_and_port(common) }
    }

    /// This machine's address for workers that are yet to come.
    ///
    /// # Errors
    /// The name has no address; there is no way to the common service.
    pub async fn own(&self) -> Result<IpAddr> {
        if let Some(own) = self.set().await? {
            return Ok(own);
        }
        let common = resolve("services.registry", &self.common).await?;
        source_toward(common)
    }

    /// This machine's address for who is at `peer`.
    ///
    /// # Errors
    /// The name has no address; there is no way to the peer.
    pub async fn toward(&self, peer: SocketAddr) -> Result<IpAddr> {
        match self.set().await? {
            Some(own) => Ok(own),
            None => source_toward(peer),
        }
    }

    async fn set(&self) -> Result<Option<IpAddr>> {
        let Some(host) = &self.host else { return Ok(None) };
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Some(address));
        }
        Ok(Some(resolve("trainer.rendezvous_host", &format!("{host}:0")).await?.ip()))
    }
}

async fn resolve(setting: &str, name: &str) -> Result<SocketAddr> {
    let found = tokio::net::lookup_host(name).await;
    let mut addresses = found.map_err(|error| Error::Ranks(format!("{setting}: {name} has no address: {error}")))?;
    addresses.next().ok_or_else(|| Error::Ranks(format!("{setting}: {name} has no address")))
}

/// The address that packets to `peer` would carry. None is sent: connecting a UDP socket only asks for the route.
fn source_toward(peer: SocketAddr) -> Result<IpAddr> {
    let any = if peer.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let port = peer.port().max(1);
    let asked = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((peer.ip(), port))?;
        Ok(socket.local_addr()?.ip())
    });
    asked.map_err(|error| Error::Ranks(format!("no way to {peer}: {error}; set trainer.rendezvous_host")))
}

/// `host:port` of a URL.
fn host_and_port(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    let authority = rest.split('/').next().unwrap_or_default();
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    match (has_port, scheme) {
        (true, _) => authority.to_owned(),
        (false, "https") => format!("{authority}:443"),
        (false, _) => format!("{authority}:80"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_its_own_port_or_its_schemes() {
        assert_eq!(host_and_port("http://registry:50053"), "registry:50053");
        assert_eq!(host_and_port("https://registry.example/x"), "registry.example:443");
        assert_eq!(host_and_port("http://[::1]:7"), "[::1]:7");
        assert_eq!(host_and_port("http://[::1]"), "[::1]:80");
    }

    #[tokio::test]
    async fn the_address_is_that_of_the_way_to_the_peer_unless_one_is_set() {
        let network = Network::new("", "http://127.0.0.1:9");
        assert_eq!(network.own().await.expect("loopback"), IpAddr::V4(Ipv4Addr::LOCALHOST));
        let set = Network::new("127.0.0.7", "http://127.0.0.1:9");
        assert_eq!(set.own().await.expect("as set").to_string(), "127.0.0.7");
        let peer = SocketAddr::from(([127, 0, 0, 1], 9));
        assert_eq!(set.toward(peer).await.expect("as set").to_string(), "127.0.0.7");
        assert_eq!(network.toward(peer).await.expect("the way").to_string(), "127.0.0.1");
        let wrong = Network::new("no.such.host.invalid", "http://127.0.0.1:9").own().await.expect_err("no address");
        assert!(wrong.to_string().contains("trainer.rendezvous_host: no.such.host.invalid"), "{wrong}");
    }
}
