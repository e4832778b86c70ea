//! The ports of the application, and whether it can have them.
//!
//! Holds: what answers on a target port is the application: its ports are no other instance's on this host, and
//! nobody listened on them before it was started. Both are left out for an application that is not started by its
//! `run` (`adopts`), and the second for one that comes back to a new agent. Does not: see through who listens once
//! it runs.

use outrider_xds_types::workload::Workload;

use super::Instance;
use crate::lifecycle::Phase;
use crate::probe::{self, Port, Targets};

impl Instance {
    /// Claims the ports of `workload`.
    pub(super) fn claim(&self, workload: &Workload) {
        let ports = workload.ports.iter().filter_map(|port| {
            Some(Port { name: port.name.clone(), number: port.target_port.try_into().ok()? })
        });
        let ports: Vec<Port> = ports.collect();
        let numbers: Vec<u16> = ports.iter().map(|port| port.number).collect();
        let proxy = self.who.proxy();
        let taken = match self.host.claims().claim(&proxy, if self.who.adopts { &[] } else { &numbers }) {
            Ok(()) => None,
            Err((port, holder)) => Some(format!("127.0.0.1:{port} is taken by {holder}")),
        };
        let targets = Some(Targets { service: self.who.service_ref(), ports, taken });
        self.targets.send_if_modified(|old| {
            let changed = *old != targets;
            if changed {
                *old = targets;
            }
            changed
        });
    }

    /// Why the application may not be started yet, in words.
    pub(super) async fn occupied(&self) -> Option<String> {
        if self.who.adopts || self.life.phase() != Phase::Waiting {
            return None;
        }
        let targets = self.targets.borrow().clone()?;
        if targets.taken.is_some() || self.who.returns {
            return targets.taken;
        }
        let port = probe::listened_on(&targets.ports).await?;
        Some(format!(
            "something else listens on 127.0.0.1:{port} already: end it or choose another targetPort; if that is the \
             application, `run --adopt` takes it as such"
        ))
    }

    /// Gives the ports back, to who waits for them.
    pub(super) fn release_targets(&self) {
        let released = self.host.claims().release(&self.who.proxy());
        if released {
            self.host.upstream.look_again();
        }
    }
}
