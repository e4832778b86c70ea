//! The order in which a change of the intent reaches callers and servers: pure.
//!
//! ```text
//! declared ──► servers accept old and new ──in use──► callers go by the new ──in use──► servers accept the new only
//!              (at most MAKE)                         (at most WITHDRAW)
//! ```
//! Holds: a port, a mode of TLS, or a caller that a route or fail-over leads there, is accepted by servers until every live proxy of
//! those callers has said that it does not use it any more, or [`WITHDRAW_MS`] is over; callers are sent what needs
//! something new of servers when all of them that take calls have that in use, or [`MAKE_MS`] is over. Proxies on hosts
//! of which nothing is heard, and such as do not run, are not waited for. What a person denies (a call that is taken
//! back, a service that is deleted) is denied at once. A change that needs no order is sent to all at once. Callers that
//! nothing leads to a service any more may finish what they have begun there, for as long as they may call what led them
//! and the service allows what it allowed.
//!
//! Does not: survive a restart. Then everybody is sent what is declared, and nothing is accepted longer, nor finished
//! where no route leads. Nor keep
//! anything of a service that is deleted: its proxies keep what they have until their application ends.

use std::collections::{BTreeMap, BTreeSet};

use outrider_compile::{Compiler, Kept, Stage};
use outrider_intent::model::{AccessPolicy, Intent, Mtls, Port, Protocol, Service, ServiceRef};
use outrider_xds_types::names;

use super::Millis;

/// How long callers wait for servers to accept what is new.
pub(super) const MAKE_MS: Millis = 10_000;
/// How long servers wait for callers not to use what is old.
pub(super) const WITHDRAW_MS: Millis = 30_000;
/// After the last caller has said so: what it had sent may still be on its way.
pub(super) const LINGER_MS: Millis = 500;
/// Most withdrawals at once; the oldest is over with one more.
const MAX_WITHDRAWN: usize = 4_096;

/// What proxies of a service are to have in use before callers need it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Need {
    pub(super) service: ServiceRef,
    /// Name of the port.
    pub(super) port: String,
    /// It takes the place of another one, so it must be an endpoint, too.
    pub(super) endpoint: bool,
}

/// What servers accept only because callers may still use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Feature {
    Port(Port),
    /// This port for bytes.
    Bytes(String),
    /// A caller that a route or fail-over led here.
    Caller(ServiceRef),
    Plaintext,
    Tls,
}

/// One of those.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Withdrawal {
    pub(super) service: ServiceRef,
    pub(super) feature: Feature,
    /// Services whose proxies may use it.
    pub(super) callers: BTreeSet<ServiceRef>,
    /// What a caller is let in by: services whose routes or fail-over led it here, as long as it may call one of them.
    through: BTreeSet<ServiceRef>,
    /// What such a caller has begun may go on afterwards: what the service allows is what it was.
    may_finish: bool,
    /// Through these clusters, and others by these load assignments, which have its endpoints as well.
    pub(super) clusters: Vec<String>,
    pub(super) assignments: Vec<String>,
    /// Over in any case.
    until: Millis,
    /// Nobody uses it since.
    unused: Option<Millis>,
}

impl Withdrawal {
    /// Whether a caller may still go by the route or fail-over that led it here.
    pub(super) fn is_led(&self) -> bool {
        matches!(self.feature, Feature::Caller(_)) && self.unused.is_none()
    }

    /// In words, for who waits for the change.
    pub(super) fn text(&self) -> String {
        let what = match &self.feature {
            Feature::Port(port) => format!("inbound/{} is taken away", port.name),
            Feature::Bytes(port) => format!("inbound/{port} takes no more than its protocol"),
            Feature::Caller(caller) => format!("{caller} is not let in any more"),
            Feature::Plaintext => "connections without TLS are refused".to_owned(),
            Feature::Tls => "connections with TLS are refused".to_owned(),
        };
        let callers: Vec<String> = self.callers.iter().map(ToString::to_string).collect();
        format!("{what} once {} is known not to use it", callers.join(", "))
    }
}

/// What is known of proxies.
pub(super) trait Proxies {
    /// Whether any runs.
    fn run(&self, service: &ServiceRef) -> bool;
    /// Whether all proxies of the service that take calls have the port in use as it is sent to them.
    fn accept(&self, need: &Need) -> bool;
    /// Whether a live proxy of `caller` may use the cluster in another form than it is sent now.
    fn may_use(&self, caller: &ServiceRef, cluster: &str) -> bool;
    /// The same of a load assignment.
    fn may_know(&self, caller: &ServiceRef, assignment: &str) -> bool;
}

/// A caller that no route leads to a service any more, and that may finish what it has begun there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finishing {
    /// See [`Withdrawal::through`].
    through: BTreeSet<ServiceRef>,
    /// Of all there ever were.
    number: u64,
}

/// Who is let in by what is declared, worked out once for each service.
struct LetIn<'a> {
    compiler: Compiler<'a>,
    known: BTreeMap<ServiceRef, BTreeSet<ServiceRef>>,
}

impl<'a> LetIn<'a> {
    fn new(declared: &'a Intent) -> Self {
        Self { compiler: Compiler::new(declared, ""), known: BTreeMap::new() }
    }

    fn has(&mut self, service: &ServiceRef, caller: &ServiceRef) -> bool {
        if !self.known.contains_key(service) {
            self.known.insert(service.clone(), callers(&self.compiler, service));
        }
        self.known.get(service).is_some_and(|all| all.contains(caller))
    }
}

#[derive(Clone, Debug)]
struct Making {
    /// What callers go by.
    calls: Intent,
    needs: BTreeSet<Need>,
    until: Millis,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Shift {
    making: Option<Making>,
    withdrawn: Vec<Withdrawal>,
    /// By service and caller; at most [`MAX_WITHDRAWN`] of the whole mesh. The oldest is over with one more.
    finishing: BTreeMap<(ServiceRef, ServiceRef), Finishing>,
    /// How many there ever were.
    finished: u64,
    /// A heartbeat is no reason to look.
    stirred: bool,
    /// A step was taken that a view may show.
    stepped: bool,
}

impl Shift {
    /// The intent changes. Returns what is to be compiled.
    pub(super) fn declare(
        &mut self,
        before: &Intent,
        after: &Intent,
        proxies: &impl Proxies,
        now: Millis,
    ) -> Stage {
        let may_call = |caller: &ServiceRef, through: &BTreeSet<ServiceRef>| {
            after.services.get(caller).filter(|is| !is.calls.is_disjoint(through))
        };
        self.withdrawn.retain_mut(|one| {
            let Feature::Caller(caller) = &one.feature else { return true };
            one.may_finish = one.may_finish && allows_as(before, after, &one.service);
            // Whom a call of its own lets in is denied at once when that is taken back.
            let is_led = |caller: &Service| !caller.calls.contains(&one.service);
            after.services.contains_key(&one.service) && may_call(caller, &one.through).is_some_and(is_led)
        });
        if !self.finishing.is_empty() {
            let mut let_in = LetIn::new(after);
            self.finishing.retain(|(service, caller), one| {
                let goes_on = may_call(caller, &one.through).is_some() && allows_as(before, after, service);
                goes_on && !let_in.has(service, caller)
            });
        }
        let making = self.making.take();
        let calls = making.as_ref().map_or(before, |making| &making.calls);
        let needs = needs(calls, after, proxies);
        if needs.is_empty() {
            self.withdraw(lost(calls, after, proxies), after, now);
        } else {
            let until = making.as_ref().map_or(now + MAKE_MS, |making| making.until);
            self.making = Some(Making { calls: with_new(calls, after), needs, until });
        }
        self.stirred = true;
        self.stage(after, proxies)
    }

    /// What is to be compiled beside `declared`.
    fn stage(&self, declared: &Intent, proxies: &impl Proxies) -> Stage {
        let mut kept: BTreeMap<ServiceRef, Kept> = BTreeMap::new();
        let calls = self.making.as_ref().map(|making| making.calls.clone());
        let also = calls.as_ref().map(|calls| lost(calls, declared, proxies)).unwrap_or_default();
        for Withdrawal { service, feature, .. } in self.withdrawn.iter().chain(&also) {
            let kept = kept.entry(service.clone()).or_default();
            match feature {
                Feature::Port(port) if kept.ports.iter().any(|one| one.name == port.name) => {}
                Feature::Port(port) => kept.ports.push(port.clone()),
                Feature::Bytes(port) => drop(kept.bytes.insert(port.clone())),
                Feature::Caller(caller) => drop(kept.callers.insert(caller.clone())),
                Feature::Plaintext => kept.plaintext = true,
                Feature::Tls => kept.tls = true,
            }
        }
        for (service, caller) in self.finishing.keys() {
            kept.entry(service.clone()).or_default().finishing.insert(caller.clone());
        }
        Stage { calls, kept }
    }

    /// Something was heard of proxies.
    pub(super) fn stir(&mut self) {
        self.stirred = true;
    }

    /// Whether a step was taken since the last call.
    pub(super) fn take_step(&mut self) -> bool {
        std::mem::take(&mut self.stepped)
    }

    /// Whether [`Shift::look`] may have something to do.
    pub(super) fn is_due(&self, now: Millis) -> bool {
        let open = self.making.is_some() || !self.withdrawn.is_empty();
        open && (self.stirred || self.next_deadline().is_some_and(|next| next <= now))
    }

    /// Looks how far proxies are. Returns what is to be compiled from now on, if that is something else.
    pub(super) fn look(&mut self, declared: &Intent, proxies: &impl Proxies, now: Millis) -> Option<Stage> {
        self.stirred = false;
        if let Some(making) = &mut self.making {
            making.needs.retain(|need| !proxies.accept(need));
            if making.needs.is_empty() || making.until <= now {
                let calls = self.making.take().map(|making| making.calls).unwrap_or_default();
                self.withdraw(lost(&calls, declared, proxies), declared, now);
                // Callers are behind from here on, which is seen when they are compiled.
                (self.stirred, self.stepped) = (true, true);
                return Some(self.stage(declared, proxies));
            }
        }
        let over = self.withdrawn.extract_if(.., |one| {
            let used = one.callers.iter().any(|caller| {
                one.clusters.iter().any(|cluster| proxies.may_use(caller, cluster))
                    || one.assignments.iter().any(|assignment| proxies.may_know(caller, assignment))
            });
            one.unused = if used { None } else { Some(one.unused.unwrap_or(now)) };
            one.until <= now || one.unused.is_some_and(|since| since + LINGER_MS <= now)
        });
        let over: Vec<Withdrawal> = over.collect();
        if over.is_empty() {
            return None;
        }
        self.stepped = true;
        self.let_finish(over, declared);
        Some(self.stage(declared, proxies))
    }

    /// What callers have begun where a route led them goes on, unless something else lets them in.
    fn let_finish(&mut self, over: Vec<Withdrawal>, declared: &Intent) {
        let mut let_in = LetIn::new(declared);
        for one in over {
            let Withdrawal { service, feature: Feature::Caller(caller), through, may_finish: true, .. } = one
            else {
                continue;
            };
            if !let_in.has(&service, &caller) {
                self.finished += 1;
                self.finishing.insert((service, caller), Finishing { through, number: self.finished });
            }
        }
        while self.finishing.len() > MAX_WITHDRAWN {
            let Some(oldest) = self.finishing.values().map(|one| one.number).min() else { break };
            self.finishing.retain(|_, one| one.number > oldest);
        }
    }

    /// When [`Shift::look`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Millis> {
        let making = self.making.as_ref().map(|making| making.until);
        let withdrawn =
            self.withdrawn.iter().map(|one| one.unused.map_or(one.until, |at| one.until.min(at + LINGER_MS)));
        withdrawn.chain(making).min()
    }

    fn withdraw(&mut self, lost: Vec<Withdrawal>, declared: &Intent, now: Millis) {
        for mut one in lost {
            self.withdrawn.retain(|old| {
                let same = (&old.service, &old.feature) == (&one.service, &one.feature);
                one.may_finish &= !same || old.may_finish;
                !same
            });
            self.withdrawn.push(Withdrawal { until: now + WITHDRAW_MS, ..one });
        }
        let many = self.withdrawn.len().saturating_sub(MAX_WITHDRAWN);
        let over: Vec<Withdrawal> = self.withdrawn.drain(..many).collect();
        if !over.is_empty() {
            self.let_finish(over, declared);
        }
    }

    /// What a service still accepts.
    pub(super) fn withdrawn(&self, service: &ServiceRef) -> impl Iterator<Item = &Withdrawal> {
        self.withdrawn.iter().filter(move |one| one.service == *service)
    }

    /// What callers wait for.
    pub(super) fn needs(&self) -> impl Iterator<Item = &Need> {
        self.making.iter().flat_map(|making| &making.needs)
    }
}

/// `calls` with the services that are new: nothing of theirs is in use yet.
fn with_new(calls: &Intent, declared: &Intent) -> Intent {
    let mut all = calls.clone();
    for (id, service) in &declared.services {
        all.services.entry(id.clone()).or_insert_with(|| service.clone());
    }
    for (name, namespace) in &declared.namespaces {
        all.namespaces.entry(name.clone()).or_insert_with(|| namespace.clone());
    }
    let is_new = |parents: &[(ServiceRef, Option<u16>)]| {
        parents.iter().all(|(parent, _)| !calls.services.contains_key(parent))
    };
    for (name, route) in declared.http_routes.iter().filter(|(_, route)| is_new(&route.parents)) {
        all.http_routes.entry(name.clone()).or_insert_with(|| route.clone());
    }
    for (name, route) in declared.grpc_routes.iter().filter(|(_, route)| is_new(&route.parents)) {
        all.grpc_routes.entry(name.clone()).or_insert_with(|| route.clone());
    }
    for (name, route) in declared.tcp_routes.iter().filter(|(_, route)| is_new(&route.parents)) {
        all.tcp_routes.entry(name.clone()).or_insert_with(|| route.clone());
    }
    all
}

/// Whether what is enforced at a service allows the same under both. What denies is asked about by itself.
fn allows_as(before: &Intent, after: &Intent, service: &ServiceRef) -> bool {
    let (Some(was), Some(is)) = (before.services.get(service), after.services.get(service)) else {
        return false;
    };
    let enforced = |policy: &&AccessPolicy| policy.allow && !policy.audit;
    was.access.iter().filter(enforced).eq(is.access.iter().filter(enforced))
}

fn mtls(intent: &Intent, service: &ServiceRef) -> Mtls {
    intent.namespaces.get(&service.namespace).map_or(Mtls::Required, |namespace| namespace.mtls)
}

fn port<'a>(service: &'a Service, name: &str) -> Option<&'a Port> {
    service.ports.iter().find(|port| port.name == name)
}

fn cluster(service: &ServiceRef, port: &Port) -> String {
    names::outbound(&service.namespace, &service.name, &port.name)
}

/// Who may call, by calls and by routes.
fn callers(compiler: &Compiler<'_>, service: &ServiceRef) -> BTreeSet<ServiceRef> {
    compiler.callers(service).cloned().collect()
}

/// Services of both intents that run, as they are in each.
fn both<'a>(
    old: &'a Intent,
    new: &'a Intent,
    proxies: &impl Proxies,
) -> impl Iterator<Item = (&'a ServiceRef, &'a Service, &'a Service)> {
    let both = old.services.iter().filter_map(|(id, before)| Some((id, before, new.services.get(id)?)));
    both.filter(|(id, ..)| proxies.run(id))
}

/// What callers under `new` need of servers that callers under `old` do not.
fn needs(old: &Intent, new: &Intent, proxies: &impl Proxies) -> BTreeSet<Need> {
    let (before, after) = (Compiler::new(old, ""), Compiler::new(new, ""));
    let mut needs = BTreeSet::new();
    for (id, was, is) in both(old, new, proxies) {
        let (used, uses) = (callers(&before, id), callers(&after, id));
        let runs = |caller: &&ServiceRef| old.services.contains_key(*caller) && proxies.run(caller);
        if !uses.iter().any(|caller| runs(&caller)) {
            continue;
        }
        let need = |port: &Port, endpoint| Need { service: id.clone(), port: port.name.clone(), endpoint };
        let all = uses.difference(&used).any(|caller| runs(&caller))
            || match (mtls(old, id), mtls(new, id)) {
                (Mtls::Required, Mtls::Off) | (Mtls::Off, Mtls::Both | Mtls::Required) => true,
                (Mtls::Off | Mtls::Both | Mtls::Required, _) => false,
            };
        for port_now in &is.ports {
            match port(was, &port_now.name) {
                None => {
                    let renamed = was.ports.iter().any(|old| old.port == port_now.port);
                    if renamed || leads_to(new, id, port_now.port) {
                        needs.insert(need(port_now, true));
                    }
                }
                Some(port_then) => {
                    // Bytes are what both sides of every change of what is spoken can be.
                    let to_bytes = port_then.protocol != Protocol::Tcp && is_other(port_then, port_now);
                    if all || to_bytes {
                        needs.insert(need(port_now, false));
                    }
                }
            }
        }
    }
    needs
}

/// Whether the two are carried differently: gRPC is HTTP/2.
fn is_other(then: &Port, now: &Port) -> bool {
    let carried = |port: &Port| match port.protocol {
        Protocol::Grpc => Protocol::Http2,
        protocol => protocol,
    };
    carried(then) != carried(now)
}

/// Whether a route leads to this port, or fail-over.
fn leads_to(intent: &Intent, service: &ServiceRef, port: u16) -> bool {
    let takes = |called: &Service, of: &Port| {
        intent.failover(called, of).any(|(other, takes)| other.id == *service && takes.port == port)
    };
    let mut services = intent.services.values();
    intent.routes().any(|route| route.targets.contains(&(service, port)))
        || services.any(|called| called.ports.iter().any(|port| takes(called, port)))
}

/// By service the load assignments that have its endpoints in them because calls of others fail over to it.
fn failing_over(intent: &Intent) -> BTreeMap<&ServiceRef, Vec<String>> {
    let mut all: BTreeMap<&ServiceRef, Vec<String>> = BTreeMap::new();
    for service in intent.services.values() {
        let ServiceRef { namespace, name } = &service.id;
        for other in &service.traffic.failover {
            let ports = service.ports.iter().map(|port| names::endpoints(namespace, name, &port.name));
            all.entry(&other.service).or_default().extend(ports);
        }
    }
    all
}

/// What callers under `old` use that servers under `new` would not accept.
fn lost(old: &Intent, new: &Intent, proxies: &impl Proxies) -> Vec<Withdrawal> {
    let (before, after) = (Compiler::new(old, ""), Compiler::new(new, ""));
    let (led, assignments, mut lost) = (old.led(), failing_over(old), Vec::new());
    for (id, was, is) in both(old, new, proxies) {
        let used = callers(&before, id);
        if used.is_empty() {
            continue;
        }
        let assignments = assignments.get(id).cloned().unwrap_or_default();
        let others = assignments.iter().map(|name| format!("outbound/{name}"));
        let own = was.ports.iter().map(|port| cluster(id, port));
        let clusters: Vec<String> = own.chain(others.clone()).collect();
        let mut add = |feature, callers: &BTreeSet<ServiceRef>, clusters| {
            let (service, callers, through) = (id.clone(), callers.clone(), BTreeSet::new());
            let (may_finish, assignments) = (false, assignments.clone());
            lost.push(Withdrawal {
                service,
                feature,
                callers,
                through,
                may_finish,
                clusters,
                assignments,
                until: 0,
                unused: None,
            });
        };
        for port_then in &was.ports {
            let only = std::iter::once(cluster(id, port_then)).chain(others.clone()).collect();
            match port(is, &port_then.name) {
                None => add(Feature::Port(port_then.clone()), &used, only),
                Some(now) if now.protocol != Protocol::Tcp && is_other(port_then, now) => {
                    add(Feature::Bytes(port_then.name.clone()), &used, only);
                }
                Some(_) => {}
            }
        }
        match (mtls(old, id), mtls(new, id)) {
            (Mtls::Off, Mtls::Required) => add(Feature::Plaintext, &used, clusters.clone()),
            (Mtls::Both | Mtls::Required, Mtls::Off) => add(Feature::Tls, &used, clusters.clone()),
            (Mtls::Off | Mtls::Both | Mtls::Required, _) => {}
        }
        let uses = callers(&after, id);
        for caller in used.difference(&uses) {
            let through = led_by(old, new, &led, caller, id);
            if !through.is_empty() {
                let (service, clusters, callers) = (id.clone(), clusters.clone(), [caller.clone()].into());
                let (feature, assignments) = (Feature::Caller(caller.clone()), assignments.clone());
                lost.push(Withdrawal {
                    service,
                    feature,
                    callers,
                    through,
                    may_finish: allows_as(old, new, id),
                    clusters,
                    assignments,
                    until: 0,
                    unused: None,
                });
            }
        }
    }
    lost
}

/// What `caller` still calls and was led by to `service`, if it reached that by routes and fail-over only: nobody took a
/// permission from it. `led` is of the old intent.
fn led_by(
    old: &Intent,
    new: &Intent,
    led: &BTreeMap<&ServiceRef, BTreeSet<&ServiceRef>>,
    caller: &ServiceRef,
    service: &ServiceRef,
) -> BTreeSet<ServiceRef> {
    let (Some(was), Some(is)) = (old.services.get(caller), new.services.get(caller)) else {
        return BTreeSet::new();
    };
    if was.calls.contains(service) {
        return BTreeSet::new();
    }
    let leads = led.iter().filter(|(_, to)| to.contains(service)).map(|(parent, _)| *parent);
    leads.filter(|parent| was.calls.contains(*parent) && is.calls.contains(*parent)).cloned().collect()
}

#[cfg(test)]
mod tests;
