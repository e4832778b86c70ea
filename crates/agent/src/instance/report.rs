//! What an instance says of itself: to the control plane, to people, and to its application.

use std::collections::BTreeMap;
use std::time::SystemTime;

use outrider_api::agent as wire;
use outrider_handover::Stats;
use outrider_supervise::Step;

use super::{Identity, Instance};
use crate::engine::Engine;
use crate::isolation;
use crate::lifecycle::Phase;
use crate::local::{InstanceOverview, Told};
use crate::releases::BUILTIN;

impl Instance {
    /// What the application is told by its environment.
    pub(super) fn environment(&self) -> BTreeMap<String, String> {
        let mut env = BTreeMap::from([
            ("OUTRIDER_SERVICE".to_owned(), self.who.service_ref()),
            ("OUTRIDER_INSTANCE".to_owned(), self.who.name.clone()),
        ]);
        for bound in self.places.in_use().map(|(_, bound)| bound).filter(|bound| !bound.wanted.inbound) {
            let prefix = callee_prefix(&bound.wanted.service, &self.who.namespace);
            let port = bound.address.port().to_string();
            let port_name = shout(&bound.wanted.port_name);
            env.entry(format!("{prefix}_HOST")).or_insert_with(|| bound.address.ip().to_string());
            env.entry(format!("{prefix}_PORT")).or_insert_with(|| port.clone());
            env.insert(format!("{prefix}_PORT_{port_name}"), port);
        }
        env
    }

    fn reason(&self) -> String {
        let mut parts = vec![self.life.reason()];
        let uncounted = self.host.upstream.refusal(&self.who.proxy());
        parts.extend(uncounted.map(|why| format!("the control plane refused this instance: {why}")));
        parts.extend(self.refusal.iter().map(|error| format!("the proxy refused a resource: {error}")));
        parts.extend(self.change());
        parts.extend(self.age());
        parts.extend(self.unsaved.clone());
        parts.extend(self.other_engine());
        parts.extend(self.places.problems());
        parts.retain(|part| !part.is_empty());
        parts.join("; ")
    }

    /// A change of the proxy that is under way, or what keeps it from being at its target.
    fn change(&self) -> Option<String> {
        let status = self.proxy.supervisor.status(std::time::Instant::now());
        if let Some(change) = status.change {
            let step = match change.step {
                Step::Waiting => "is tried again",
                Step::Preparing => "is being prepared",
                Step::Probation => "is on probation",
                Step::PuttingBack => "is taken back",
            };
            return Some(format!("{} {step}", change.to));
        }
        if status.crashes.looping {
            return Some("the proxy ends again and again, so starts are paused".to_owned());
        }
        let target = status.target?;
        let held = status.quarantined.iter().find(|one| one.matches(&target))?;
        Some(format!("{target} is in quarantine: {}", held.reason))
    }

    /// What of a change of the declared engine is outstanding.
    fn other_engine(&self) -> Option<String> {
        let declared = Engine::parse(&self.workload.as_ref()?.engine)?;
        let name = declared.name();
        (self.engine? != declared)
            .then(|| format!("engine {name} is declared; it takes effect at the next start of the instance"))
    }

    pub(super) async fn report(&mut self) {
        let reason = self.reason();
        if matches!(self.life.phase(), Phase::Waiting | Phase::Starting) && self.said != reason {
            self.said.clone_from(&reason);
            self.tell(Told::Waiting { reason: reason.clone() }).await;
        }
        if self.told_ready
            && self.saved.as_ref().is_some_and(|saved| saved.answers != self.life.in_endpoint_set())
        {
            self.save();
        }
        let state = match (self.life.leaving(), self.life.in_endpoint_set()) {
            (true, _) => wire::InstanceState::Draining,
            (false, true) => wire::InstanceState::Ready,
            (false, false) => wire::InstanceState::Starting,
        };
        let shown = self.proxy.shown();
        let generation = shown.map_or(0, |(number, _)| number);
        let shown = shown.map(|(_, live)| live);
        let release = shown.map(|live| live.target.release.to_string()).unwrap_or_default();
        let version = shown.map(|live| live.version.clone()).unwrap_or_default();
        let app_pid = self.app.map_or(0, |app| app.pid);
        let engine = self.engine.map(Engine::name).unwrap_or_default().to_owned();
        let inbound = self.places.in_use().map(|(_, bound)| bound).filter(|bound| bound.wanted.inbound);
        let instance = wire::Instance {
            state: state as i32,
            endpoints: inbound
                .map(|bound| wire::InstanceEndpoint {
                    port: bound.wanted.port_name.clone(),
                    address: bound.address.ip().to_string(),
                    number: bound.address.port().into(),
                })
                .collect(),
            engine: engine.clone(),
            engine_version: version.clone(),
            proxy_pid: shown.and_then(|live| live.process).map_or(0, |process| process.pid),
            app_pid,
            reason: reason.clone(),
            restarts: self.proxy.restarts,
            ..wire_instance(&self.who)
        };
        let overview = InstanceOverview {
            service: self.who.service_ref(),
            name: self.who.name.clone(),
            state: match state {
                wire::InstanceState::Starting => "starting",
                wire::InstanceState::Ready => "ready",
                wire::InstanceState::Draining => "draining",
            }
            .to_owned(),
            reason,
            engine,
            engine_version: version.clone(),
            release,
            generation,
            proxy_pid: instance.proxy_pid,
            app_pid,
            restarts: instance.restarts,
            listeners: self.places.in_use().map(|(name, b)| (name.clone(), b.address.to_string())).collect(),
            stats: self.stats.clone(),
            last_good: self.host.last_good.written(&self.who.service_ref()).map(crate::local::seconds),
        };
        self.host.publish(&self.who.proxy(), Some((instance, overview)));
        // After the instance: the control plane takes no status of one it does not know.
        self.host.upstream.proxy_status(self.status());
    }

    /// Where the proxy is in its life, for the control plane.
    pub(super) fn status(&self) -> wire::ProxyStatus {
        let status = self.proxy.supervisor.status(std::time::Instant::now());
        let mut status = wire::ProxyStatus::new(&self.who.proxy(), &status);
        for generation in &mut status.generations {
            if let Some(live) = self.proxy.live.get(&generation.generation) {
                generation.pid = live.process.map_or(0, |process| process.pid);
                generation.version.clone_from(&live.version);
            }
        }
        let inbound = match self.life.phase() {
            Phase::Waiting | Phase::Starting | Phase::Serving => wire::InboundState::Open,
            Phase::Settling | Phase::Draining => wire::InboundState::Draining,
            Phase::Stopping | Phase::Ending | Phase::Over => wire::InboundState::Drained,
        };
        status.inbound = inbound.into();
        status.log = self.log().display().to_string();
        status.releases.clone_from(&self.releases);
        status.isolation = self.engine.and_then(isolation::shown);
        let age = |written| SystemTime::now().duration_since(written).unwrap_or_default().as_millis();
        status.last_good_age_ms =
            self.last_good.map(|written| u64::try_from(age(written)).unwrap_or(u64::MAX));
        status
    }

    /// Looks which releases of its engine are on this host.
    pub(super) fn look_for_releases(&mut self) {
        self.releases = match self.engine {
            Some(Engine::Native) | None => self.host.releases.names(),
            Some(Engine::Envoy) => vec![BUILTIN.to_owned()],
        };
    }
}

/// An instance of which nothing is known but who it is.
pub(super) fn wire_instance(who: &Identity) -> wire::Instance {
    wire::Instance {
        namespace: who.namespace.clone(),
        service: who.service.clone(),
        name: who.name.clone(),
        ..wire::Instance::default()
    }
}

/// `inventory` → `INVENTORY`; of another namespace `ledger.finance` → `LEDGER_FINANCE`.
fn callee_prefix(service: &str, own_namespace: &str) -> String {
    match service.split_once('/') {
        Some((namespace, name)) if namespace == own_namespace => shout(name),
        Some((namespace, name)) => format!("{}_{}", shout(name), shout(namespace)),
        None => shout(service),
    }
}

fn shout(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// The numbers of a proxy as they travel.
pub(super) fn traffic(proxy: &str, stats: &Stats) -> wire::Traffic {
    let listener = |(name, listener): (&String, &outrider_handover::ListenerStats)| wire::ListenerTraffic {
        listener: name.clone(),
        connections: listener.connections,
        requests: listener.requests,
        errors: if listener.requests > 0 { listener.responses[4] } else { listener.reasons.values().sum() },
        reasons: listener
            .reasons
            .iter()
            .map(|(reason, count)| wire::ReasonCount { reason: reason.clone(), count: *count })
            .collect(),
        latency_us_sum: listener.latency_us_sum,
    };
    wire::Traffic {
        proxy: proxy.to_owned(),
        listeners: stats.listeners.iter().map(listener).collect(),
        resident_bytes: stats.resident_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callees_have_one_spelling_in_the_environment() {
        for (service, prefix) in [
            ("shop/inventory", "INVENTORY"),
            ("shop/user-db", "USER_DB"),
            ("finance/ledger", "LEDGER_FINANCE"),
        ] {
            assert_eq!(callee_prefix(service, "shop"), prefix);
        }
    }
}
