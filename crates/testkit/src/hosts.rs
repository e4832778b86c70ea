//! Several hosts on one machine: network namespaces on one bridge.
//!
//! ```text
//! bridge namespace 10.99.0.1/24 ─┬─ host 1: 10.99.0.11
//!                                └─ host 2: 10.99.0.12
//! ```
//! Holds: nothing is added to the machine's own network, the bridge included; every namespace is removed
//! with the value. Needs root and `ip`.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::peers;
use crate::process::run;
use crate::wait::LONG;

/// Network namespaces made for a test.
#[derive(Debug)]
pub struct Hosts {
    ip: String,
    prefix: String,
    count: u8,
}

impl Hosts {
    /// Makes `count` hosts; `None` with a message where that is not possible.
    pub fn new(count: u8) -> Result<Option<Self>> {
        let Some(ip) = peers::find("ip")? else { return Ok(None) };
        if !rustix::process::geteuid().is_root() {
            peers::skipped("hosts as network namespaces need root");
            return Ok(None);
        }
        // Tests may be threads of one process.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("ot{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let hosts = Self { ip: ip.display().to_string(), prefix, count };
        hosts.build().context("making network namespaces")?;
        Ok(Some(hosts))
    }

    fn build(&self) -> Result<()> {
        let hub = self.namespace(0);
        self.run(&format!("netns add {hub}"))?;
        self.run(&format!("-n {hub} link set lo up"))?;
        self.run(&format!("-n {hub} link add name bridge0 type bridge"))?;
        self.run(&format!("-n {hub} addr add {}/24 dev bridge0", Self::hub_address()))?;
        self.run(&format!("-n {hub} link set bridge0 up"))?;
        for host in 1..=self.count {
            let name = self.namespace(host);
            self.run(&format!("netns add {name}"))?;
            self.run(&format!("-n {hub} link add h{host} type veth peer name eth0 netns {name}"))?;
            self.run(&format!("-n {hub} link set h{host} master bridge0 up"))?;
            self.run(&format!("-n {name} link set lo up"))?;
            self.run(&format!("-n {name} addr add {}/24 dev eth0", Self::address(host)))?;
            self.run(&format!("-n {name} link set eth0 up"))?;
        }
        Ok(())
    }

    fn run(&self, arguments: &str) -> Result<()> {
        let mut command = Command::new(&self.ip);
        command.args(arguments.split(' '));
        run(command, LONG)?.ok().with_context(|| format!("ip {arguments}"))?;
        Ok(())
    }

    /// The name of a host's namespace, as `ip netns list` shows it; 0 is the bridge.
    pub fn namespace(&self, host: u8) -> String {
        format!("{}x{host}", self.prefix)
    }

    /// How many there are.
    pub fn count(&self) -> u8 {
        self.count
    }

    /// Address of the bridge, for the control plane.
    pub fn hub_address() -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, 1)
    }

    /// Address of host `host`, from 1.
    pub fn address(host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 99, 0, 10 + host)
    }

    /// What to put before a command to run it on a host; 0 is the bridge.
    pub fn prefix(&self, host: u8) -> Vec<String> {
        [&self.ip, "netns", "exec", &self.namespace(host)].map(String::from).to_vec()
    }

    /// Pulls or plugs a host's network cable: nothing is told about it, packets just vanish.
    pub fn set_cable(&self, host: u8, plugged: bool) -> Result<()> {
        // Out of the bridge, not down: a link that is down would be noticed by the host itself.
        let change = if plugged { "master bridge0" } else { "nomaster" };
        self.run(&format!("-n {} link set h{host} {change}", self.namespace(0)))
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in (0..=self.count).rev() {
            drop(self.run(&format!("netns del {}", self.namespace(host))));
        }
    }
}
