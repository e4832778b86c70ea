//! What an instance says of itself: to the control plane, to people, and to its application.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use outrider_api::agent as wire;
use outrider_handover::{DrainStats, Stats, shares};
use outrider_proxy_core::grpc::Said;
use outrider_supervise::Step;
use outrider_supervise::size::Size;

use super::withdrawal::Drain;
use super::{Identity, Instance};
use crate::engine::Engine;
use crate::isolation;
use crate::journal::milliseconds;
use crate::lifecycle::Phase;
use crate::local::{InstanceOverview, Told};
use crate::releases::BUILTIN;
use crate::scope::Wanted;

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
        parts.extend(self.proxy.in_use.refusal());
        parts.extend(self.change());
        parts.extend(self.age());
        parts.extend(self.unsaved.clone());
        parts.extend(self.other_engine());
        parts.extend(self.out_of_descriptors());
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
        if let Some(absent) = status.crashes.absent {
            let target = status.target.map(|target| target.to_string()).unwrap_or_default();
            return Some(format!("there is no process of {target}: {absent}"));
        }
        if status.crashes.looping {
            return Some("the proxy ends again and again, so starts are paused".to_owned());
        }
        let target = status.target?;
        let held = status.quarantined.iter().find(|one| one.matches(&target))?;
        Some(format!("{target} is in quarantine: {}", held.reason))
    }

    /// The proxy says of itself that it cannot open anything.
    fn out_of_descriptors(&self) -> Option<String> {
        let short = self.stats.as_ref().is_some_and(|stats| stats.out_of_descriptors);
        short.then(|| "the proxy has no file descriptor left: new connections wait".to_owned())
    }

    /// What of a change of the declared engine is outstanding.
    fn other_engine(&self) -> Option<String> {
        let declared = Engine::parse(&self.workload.as_ref()?.engine)?;
        let name = declared.name();
        (self.engine? != declared)
            .then(|| format!("engine {name} is declared; it takes effect at the next start of the instance"))
    }

    pub(super) async fn report(&mut self) {
        self.tell_drained();
        let reason = self.reason();
        if matches!(self.life.phase(), Phase::Waiting | Phase::Starting) && self.said != reason {
            self.said.clone_from(&reason);
            self.tell(Told::Waiting { reason: reason.clone() }).await;
        }
        let silence = self.life.silence().unwrap_or_default();
        // One that leaves is not looked at any more.
        if self.told_ready && !self.life.leaving() && self.said_silence != silence {
            let reason = silence.to_owned();
            self.said_silence.clone_from(&reason);
            self.tell(Told::Waiting { reason }).await;
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
        let inbound = self.places.in_use().map(|(_, bound)| bound).filter(|bound| bound.wanted.inbound);
        let instance = wire::Instance {
            state: state as i32,
            endpoints: endpoints(inbound.map(|bound| (&bound.wanted, bound.address))),
            engine: self.engine.map(Engine::name).unwrap_or_default().to_owned(),
            engine_version: version,
            proxy_pid: shown.and_then(|live| live.process).map_or(0, |process| process.pid),
            app_pid: self.app.map_or(0, |app| app.pid),
            reason,
            restarts: self.proxy.restarts,
            ..wire_instance(&self.who)
        };
        let overview = InstanceOverview {
            release,
            generation,
            spare_pid: self.proxy.spares.pid(),
            listeners: self.places.in_use().map(|(name, b)| (name.clone(), b.address.to_string())).collect(),
            stats: self.stats.clone(),
            last_good: self.host.last_good.written(&self.who.service_ref()).map(crate::local::seconds),
            ..overview(&self.who, &instance)
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
            let stats = self.proxy.totals.of(generation.generation);
            generation.open = stats
                .and_then(|stats| stats.drain.as_ref())
                .filter(|drain| !drain.inbound_only)
                .map(|DrainStats { open, .. }| wire::OpenConnections {
                    http: open.http + open.greeting,
                    websocket: open.websocket,
                    tcp: open.tcp,
                });
        }
        let inbound = match self.life.phase() {
            Phase::Waiting | Phase::Starting | Phase::Serving => wire::InboundState::Open,
            Phase::Settling | Phase::Draining => wire::InboundState::Draining,
            Phase::Stopping if self.parts() => wire::InboundState::Draining,
            Phase::Stopping | Phase::Ending | Phase::Over => wire::InboundState::Drained,
        };
        status.inbound = inbound.into();
        status.inbound_cut = self.drain.as_ref().and_then(Drain::cut);
        let left = self.drain_left();
        status.inbound_left_ms = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        status.log = self.log().display().to_string();
        status.releases.clone_from(&self.releases);
        let shown = self.proxy.shown().map(|(_, live)| live);
        let seen = isolation::Seen {
            memory_max: self.proxy.size.as_ref().map_or(0, Size::limit),
            confine: self.host.options.confine,
            view: shown.and_then(|live| live.view.as_ref()),
            observed: shown.and_then(|live| live.observed),
        };
        status.isolation = self.engine.and_then(|engine| isolation::shown(engine, seen));
        status.certificate = self.certificate();
        let age = |written| SystemTime::now().duration_since(written).unwrap_or_default().as_millis();
        status.last_good_age_ms =
            self.last_good.map(|written| u64::try_from(age(written)).unwrap_or(u64::MAX));
        status
    }

    fn certificate(&self) -> Option<wire::Certificate> {
        let (info, renew) = self.host.svids.renewal(&self.svid.as_ref()?.id)?;
        Some(wire::Certificate {
            not_before_ms: milliseconds(info.not_before),
            not_after_ms: milliseconds(info.not_after),
            renew_ms: milliseconds(renew),
        })
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

/// Where its inbound listeners are.
pub(super) fn endpoints<'a>(
    inbound: impl Iterator<Item = (&'a Wanted, SocketAddr)>,
) -> Vec<wire::InstanceEndpoint> {
    let endpoint = |(wanted, address): (&Wanted, SocketAddr)| wire::InstanceEndpoint {
        port: wanted.port_name.clone(),
        address: address.ip().to_string(),
        number: address.port().into(),
    };
    inbound.map(endpoint).collect()
}

/// What the control plane is told of an instance, for people.
pub(super) fn overview(who: &Identity, instance: &wire::Instance) -> InstanceOverview {
    InstanceOverview {
        service: who.service_ref(),
        name: who.name.clone(),
        state: match instance.state() {
            wire::InstanceState::Starting => "starting",
            wire::InstanceState::Ready => "ready",
            wire::InstanceState::Draining => "draining",
        }
        .to_owned(),
        reason: instance.reason.clone(),
        engine: instance.engine.clone(),
        engine_version: instance.engine_version.clone(),
        proxy_pid: instance.proxy_pid,
        app_pid: instance.app_pid,
        restarts: instance.restarts,
        ..InstanceOverview::default()
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

/// Requests that failed by a server's doing: 5xx, and calls of gRPC whose status says so. Of bytes what was ended with a
/// reason.
fn errors(listener: &outrider_handover::ListenerStats) -> u64 {
    if listener.requests == 0 {
        return listener.reasons.values().sum();
    }
    let calls = listener.grpc.iter().filter(|(status, _)| Said::is_error_name(status));
    listener.responses[4] + calls.map(|(_, count)| count).sum::<u64>()
}

/// The numbers of a proxy as they travel.
pub(super) fn traffic(proxy: &str, stats: &Stats) -> wire::Traffic {
    let listener =
        |(name, listener): (&String, &outrider_handover::ListenerStats)| wire::ListenerTraffic {
            listener: name.clone(),
            connections: listener.connections,
            requests: listener.requests,
            errors: errors(listener),
            reasons: listener
                .reasons
                .iter()
                .map(|(reason, count)| wire::ReasonCount { reason: reason.clone(), count: *count })
                // What would have been refused is told beside what was.
                .chain(listener.audited.iter().map(|(policy, count)| wire::ReasonCount {
                    reason: format!("audit:{policy}"),
                    count: *count,
                }))
                // How calls ended that did not end well.
                .chain(listener.grpc.iter().filter(|(status, _)| *status != "0").map(|(status, count)| {
                    wire::ReasonCount { reason: format!("grpc:{status}"), count: *count }
                }))
                .collect(),
            latency_us_sum: listener.latency_us_sum,
        };
    let called = stats.clusters.iter().filter(|(name, _)| name.starts_with("outbound/"));
    let named: Vec<u64> = called.clone().map(|(_, cluster)| cluster.unused.len() as u64).collect();
    let mut more_unused: u64 = 0;
    let cluster = |((name, cluster), shown): ((&String, &outrider_handover::ClusterStats), usize)| {
        let unused_count = cluster.all_unused();
        more_unused = more_unused.saturating_add(unused_count.saturating_sub(shown as u64));
        let unused = cluster.unused.iter().take(shown).map(|(address, why)| wire::UnusedEndpoint {
            address: address.clone(),
            why: why.chars().take(wire::MAX_UNUSED_WHY).collect(),
        });
        wire::ClusterTraffic {
            cluster: name.clone(),
            endpoints: cluster.endpoints,
            retries: cluster.retries,
            retries_refused: cluster.retries_refused,
            ejections: cluster.ejections,
            unused: unused.collect(),
            unused_count,
        }
    };
    let clusters = called.zip(shares(&named)).map(cluster).collect();
    wire::Traffic {
        proxy: proxy.to_owned(),
        listeners: stats.listeners.iter().map(listener).collect(),
        resident_bytes: stats.resident_bytes,
        clusters,
        more_unused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_grpc_that_a_server_failed_are_errors_and_all_that_did_not_end_well_are_told() {
        let grpc = [("0", 90), ("5", 4), ("14", 3), ("missing", 2), ("of a later version", 1)];
        let listener = outrider_handover::ListenerStats {
            requests: 101,
            responses: [0, 100, 0, 0, 1],
            grpc: grpc.map(|(status, count)| (status.to_owned(), count)).into(),
            ..Default::default()
        };
        let stats = Stats { listeners: [("inbound/a".to_owned(), listener)].into(), ..Stats::default() };
        let traffic = traffic("shop/a-1", &stats);
        let told = &traffic.listeners[0];
        assert_eq!(told.errors, 1 + 3 + 2);
        let mut reasons: Vec<_> = told.reasons.iter().map(|one| (one.reason.as_str(), one.count)).collect();
        reasons.sort_unstable();
        assert_eq!(
            reasons,
            [("grpc:14", 3), ("grpc:5", 4), ("grpc:missing", 2), ("grpc:of a later version", 1)]
        );
    }

    #[test]
    fn what_is_left_alone_is_told_by_cluster_and_bounded() {
        let unused = |number: usize, why: &str| -> BTreeMap<String, String> {
            (0..number).map(|n| (format!("10.0.0.1:{}", 1000 + n), why.to_owned())).collect()
        };
        let cluster = |endpoints, unused| outrider_handover::ClusterStats {
            endpoints,
            retries: 2,
            retries_refused: 4,
            ejections: 1,
            unused,
            ..Default::default()
        };
        let counted =
            outrider_handover::ClusterStats { unused_count: 500, ..cluster(600, unused(3, "ejected")) };
        let clusters = [
            ("inbound/http".to_owned(), cluster(1, unused(1, "ours"))),
            ("outbound/shop/a/http".to_owned(), cluster(2, unused(1, "fails its checks: answers 500"))),
            ("outbound/shop/b/http".to_owned(), cluster(100, unused(70, &"é".repeat(1000)))),
            ("outbound/shop/c/http".to_owned(), counted),
        ];
        let told = traffic("shop/w-1", &Stats { clusters: clusters.into(), ..Stats::default() });
        let names: Vec<_> =
            told.clusters.iter().map(|one| (one.cluster.as_str(), one.unused.len())).collect();
        assert_eq!(
            names,
            [("outbound/shop/a/http", 1), ("outbound/shop/b/http", 60), ("outbound/shop/c/http", 3)]
        );
        // A proxy that counts them names fewer than there are; older ones only name them.
        assert_eq!(told.clusters.iter().map(|one| one.unused_count).collect::<Vec<_>>(), [1, 70, 500]);
        assert_eq!(told.more_unused, 10 + 497);
        let first = &told.clusters[0];
        assert_eq!((first.endpoints, first.retries, first.retries_refused, first.ejections), (2, 2, 4, 1));
        assert_eq!(first.unused[0].address, "10.0.0.1:1000");
        assert_eq!(first.unused[0].why, "fails its checks: answers 500");
        assert_eq!(told.clusters[1].unused[0].why.chars().count(), wire::MAX_UNUSED_WHY);
    }

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
