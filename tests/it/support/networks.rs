//! Machines of their own for processes, as far as the network goes: each in a namespace with an address on one bridge.

use std::net::Ipv4Addr;
use std::process::Command;

use tailor_testkit::skipped;
use tokio::net::{TcpListener, TcpStream};

/// Namespaces of one test. Gone when dropped.
pub struct Networks {
    id: u32,
    count: usize,
}

impl Networks {
    /// Makes `count` namespaces. `None`, and a loud line, where the system does not let us: it takes root and iproute2.
    pub fn make(count: usize) -> Option<Self> {
        let networks = Self { id: std::process::id(), count };
        match networks.build() {
            Ok(()) => Some(networks),
            Err(problem) => {
                skipped(&format!("network namespaces cannot be made ({problem}); loopback addresses take their place"));
                None
            }
        }
    }

    fn build(&self) -> Result<(), String> {
        let (bridge, host) = (self.bridge(), format!("{}/24", self.host()));
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["addr", "add", &host, "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        // A container engine lets nothing pass that it did not ask for, bridges included. Without iptables nobody forbids it.
        let _ = self.let_through("-I");
        for at in 0..self.count {
            let (name, outside, inside) = (self.name(at), self.outside(at), format!("{}/24", self.address(at)));
            ip(&["netns", "add", &name])?;
            ip(&["link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", &name])?;
            ip(&["link", "set", &outside, "master", &bridge, "up"])?;
            ip(&["-n", &name, "addr", "add", &inside, "dev", "eth0"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    /// `-I` adds the rule that packets from namespace to namespace pass, `-D` takes it away.
    fn let_through(&self, how: &str) -> std::io::Result<std::process::Output> {
        let bridge = self.bridge();
        Command::new("iptables").args([how, "FORWARD", "-i", &bridge, "-o", &bridge, "-j", "ACCEPT"]).output()
    }

    /// Under this address the namespaces reach what [`Networks::forward`] lets through.
    pub fn host(&self) -> Ipv4Addr {
        self.number(1)
    }

    pub fn address(&self, at: usize) -> Ipv4Addr {
        self.number(10 + at as u8)
    }

    /// The same program in a namespace, with this machine's loopback address in its settings replaced by the bridge's.
    pub fn command(&self, at: usize, inner: &Command) -> Command {
        let host = self.host().to_string();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(at)]).arg(inner.get_program()).args(inner.get_args());
        for (variable, value) in inner.get_envs() {
            match value.map(|value| value.to_string_lossy().replace("127.0.0.1", &host)) {
                Some(value) => command.env(variable, value),
                None => command.env_remove(variable),
            };
        }
        command
    }

    /// Lets the namespaces reach a loopback port of this machine, under the same number.
    pub async fn forward(&self, port: u16) {
        let listener = TcpListener::bind((self.host(), port)).await.expect("bind on the bridge");
        tokio::spawn(async move {
            while let Ok((mut caller, _)) = listener.accept().await {
                tokio::spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await {
                        let _ = tokio::io::copy_bidirectional(&mut caller, &mut server).await;
                    }
                });
            }
        });
    }

    fn number(&self, last: u8) -> Ipv4Addr {
        // TEST-NET of benchmarks (RFC 2544), so that no real network is shadowed.
        Ipv4Addr::new(198, 18 + (self.id >> 8 & 1) as u8, self.id as u8, last)
    }

    fn name(&self, at: usize) -> String {
        format!("tailor-{}-{at}", self.id)
    }

    fn bridge(&self) -> String {
        format!("tb{}", self.id)
    }

    fn outside(&self, at: usize) -> String {
        format!("tv{}-{at}", self.id)
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        // What was not made cannot be removed, and nothing hangs on the answer.
        for at in 0..self.count {
            let _ = ip(&["link", "del", &self.outside(at)]);
            let _ = ip(&["netns", "del", &self.name(at)]);
        }
        let _ = ip(&["link", "del", &self.bridge()]);
        let _ = self.let_through("-D");
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| format!("ip: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
