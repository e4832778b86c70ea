//! What a mesh's control plane is told and asked, by the `outrider` command.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outrider_api::http::{InstanceView, NodeView};

use super::Mesh;
use crate::process::{Finished, run};
use crate::wait::{LONG, until};

/// Longest any command of the CLI may take that is not told to wait.
const COMMAND: Duration = Duration::from_secs(40);

/// Answer of an apply that was accepted.
pub type Applied = outrider_api::http::ChangeResponse;

impl Mesh {
    /// Runs `outrider ARGUMENTS`.
    pub fn cli(&self, arguments: &[&str]) -> Result<Finished> {
        let mut command = self.outrider()?;
        command.args(arguments);
        run(command, COMMAND)
    }

    /// A command that applies these documents, with more arguments. They are in a file that stays.
    pub fn apply_command(&self, yaml: &str, more: &[&str]) -> Result<Command> {
        let file = self.scratch()?.join("intent.yaml");
        std::fs::write(&file, yaml)?;
        let mut command = self.outrider()?;
        command.arg("apply").arg("-f").arg(file).args(more);
        Ok(command)
    }

    /// Applies documents, which must be accepted. Does not wait for proxies.
    pub fn apply(&self, yaml: &str) -> Result<Applied> {
        let ended = run(self.apply_command(yaml, &["-o", "json"])?, COMMAND)?.ok().context("apply")?;
        serde_json::from_str(&ended.stdout).with_context(|| format!("answer of apply: {}", ended.stdout))
    }

    /// Every instance of every namespace.
    pub fn instances(&self) -> Result<Vec<InstanceView>> {
        self.get("instances")
    }

    /// Instances of a service (`NS/NAME`), in the order of their names.
    pub fn instances_of(&self, service: &str) -> Result<Vec<InstanceView>> {
        let (namespace, name) = service.split_once('/').context("a service is NS/NAME")?;
        let mut all = self.instances()?;
        all.retain(|instance| instance.namespace == namespace && instance.service == name);
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// The only instance of a service.
    pub fn instance_of(&self, service: &str) -> Result<InstanceView> {
        let mut all = self.instances_of(service)?;
        ensure!(all.len() == 1, "{} instances of {service}: {all:?}", all.len());
        all.pop().context("no instance")
    }

    /// Where the proxies of a service's only instance take connections from other proxies.
    pub fn endpoint_of(&self, service: &str, port: &str) -> Result<std::net::SocketAddr> {
        let instance = self.instance_of(service)?;
        let address = instance.endpoints.get(port).with_context(|| format!("no {port} in {instance:?}"))?;
        Ok(address.parse()?)
    }

    /// Every host.
    pub fn get_nodes(&self) -> Result<Vec<NodeView>> {
        self.get("nodes")
    }

    /// `outrider get KIND -A -o json`.
    pub fn get<T: serde::de::DeserializeOwned>(&self, kind: &str) -> Result<Vec<T>> {
        let ended = self.cli(&["get", kind, "-A", "-o", "json"])?.ok()?;
        serde_json::from_str(&ended.stdout).with_context(|| format!("answer of get {kind}: {}", ended.stdout))
    }

    /// Waits until the instances of a service are as `wanted` says; its error is what it saw.
    pub fn wait_instances(
        &self,
        what: &str,
        service: &str,
        limit: Duration,
        wanted: impl Fn(&[InstanceView]) -> bool,
    ) -> Result<Vec<InstanceView>> {
        until(&format!("{what} of {service}"), limit, || {
            let all = self.instances_of(service).map_err(|error| format!("{error:#}"))?;
            if wanted(&all) { Ok(all) } else { Err(format!("{all:?}")) }
        })
    }

    /// Waits until every proxy has everything in use that was compiled for it, and none refused anything.
    pub fn wait_current(&self) -> Result<Vec<InstanceView>> {
        until("every proxy to be current", LONG, || {
            let all = self.instances().map_err(|error| format!("{error:#}"))?;
            let current = |i: &InstanceView| i.proxy.config == "current" && i.proxy.behind.is_empty();
            let behind: Vec<_> = all.iter().filter(|instance| !current(instance)).collect();
            if behind.is_empty() { Ok(()) } else { Err(format!("{behind:?}")) }
        })?;
        self.instances()
    }

    /// How often proxies of a service have ended something for this reason on their inbound side.
    pub fn inbound_reason(&self, service: &str, reason: &str) -> Result<u64> {
        let all = self.instances_of(service)?;
        Ok(all.iter().filter_map(|instance| instance.proxy.inbound.reasons.get(reason)).sum())
    }
}
