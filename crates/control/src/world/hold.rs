//! Which endpoints are served, and the brake on losing many of them at once.
//!
//! Facts can be wrong together: an agent that starts anew and reports nothing, a probe that fails everywhere, hosts
//! that fall silent behind one switch. Holds: when facts take more than half of a service's endpoints (at least
//! three) within [`Hold::new`]'s time, or empty more than a fifth of all ports that have endpoints (at least ten),
//! what they take is served on, and leaves when it is still so after that time: the second observation. What is
//! ready again meanwhile stays. At once leaves what drains, for its agent says so of each; what a person deleted or
//! changed; and what was on one host that is silent while others are heard, since that was observed for three
//! heartbeats, or on hosts that were given more time before.
//!
//! Does not: survive a restart. Endpoints known before it are what the brake starts from.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use outrider_intent::model::ServiceRef;

use super::Millis;
use super::hosts::{Hosts, State};

/// Fewer endpoints of a service are never held.
const LEAST_ENDPOINTS: usize = 3;
/// Fewer ports that become empty are never held.
const LEAST_PORTS: usize = 10;

/// Port name → where.
pub(super) type Ports = BTreeMap<String, SocketAddr>;

/// Why endpoints may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A host reported its instances.
    Report,
    /// Hosts are silent; `observed`: that was looked at twice.
    Silence { observed: bool },
    /// A person wanted it.
    Person,
}

/// An instance as it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Served {
    pub(super) host: String,
    pub(super) ports: Ports,
    /// By the facts it is gone, and it leaves at this time.
    pub(super) until: Option<Millis>,
}

/// Something for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HoldNote {
    pub(crate) service: String,
    pub(crate) endpoints: usize,
    /// Held from now on; else they leave now.
    pub(crate) held: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Hold {
    hold_ms: Millis,
    /// By service and `NS/INSTANCE`; no service without instances.
    served: BTreeMap<ServiceRef, BTreeMap<String, Served>>,
    /// When endpoints were taken that were not held, and how many.
    taken: BTreeMap<ServiceRef, Vec<(Millis, usize)>>,
    /// When ports became empty, and how many.
    emptied: Vec<(Millis, usize)>,
    /// Services that a person changed, until when their facts are believed at once.
    changed: BTreeMap<ServiceRef, Millis>,
    last_silence: Option<Millis>,
    /// Nothing held leaves before. Kept, because it is asked for with every fact.
    next: Option<Millis>,
    notes: Vec<HoldNote>,
}

impl Hold {
    /// Starts with everything that is ready. Holds for `hold_ms`.
    pub(super) fn new(hold_ms: Millis, hosts: &Hosts) -> Self {
        let mut hold = Self {
            hold_ms,
            served: BTreeMap::new(),
            taken: BTreeMap::new(),
            emptied: Vec::new(),
            changed: BTreeMap::new(),
            last_silence: None,
            next: None,
            notes: Vec::new(),
        };
        let services: BTreeSet<ServiceRef> = hosts
            .iter()
            .flat_map(|(_, host)| host.instances.values())
            .map(|instance| instance.service.clone())
            .collect();
        hold.follow(&services, hosts, Cause::Person, 0);
        hold
    }

    /// The instances of a service that are endpoints.
    pub(super) fn served(&self, service: &ServiceRef) -> impl Iterator<Item = &Served> {
        self.served.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// Instances that are endpoints only because they are held.
    pub(super) fn held(&self) -> impl Iterator<Item = (&ServiceRef, &String, &Served)> {
        self.served.iter().flat_map(|(service, instances)| {
            let held = instances.iter().filter(|(_, served)| served.until.is_some());
            held.map(move |(proxy, served)| (service, proxy, served))
        })
    }

    /// Instances of a service as they are served, by `NS/INSTANCE`.
    pub(super) fn ports_of(&self, service: &ServiceRef) -> impl Iterator<Item = (&String, &Ports)> {
        self.served.get(service).into_iter().flatten().map(|(proxy, served)| (proxy, &served.ports))
    }

    pub(super) fn is_held(&self, service: &ServiceRef, proxy: &str) -> bool {
        let served = self.served.get(service).and_then(|instances| instances.get(proxy));
        served.is_some_and(|served| served.until.is_some())
    }

    pub(super) fn take_notes(&mut self) -> Vec<HoldNote> {
        std::mem::take(&mut self.notes)
    }

    /// A person changed these services: what their instances then report follows from it.
    pub(super) fn declared(&mut self, services: impl IntoIterator<Item = ServiceRef>, now: Millis) {
        self.changed.retain(|_, until| now < *until);
        self.changed.extend(services.into_iter().map(|service| (service, now + self.hold_ms)));
    }

    /// Whether hosts that fall silent now do so alone: no other did within the time.
    pub(super) fn silent_alone(&mut self, hosts: usize, now: Millis) -> bool {
        let alone = hosts == 1 && self.last_silence.is_none_or(|last| last + self.hold_ms <= now);
        self.last_silence = Some(now);
        alone
    }

    /// Takes over what `hosts` say of these services.
    pub(super) fn follow(
        &mut self,
        services: &BTreeSet<ServiceRef>,
        hosts: &Hosts,
        cause: Cause,
        now: Millis,
    ) {
        // A heartbeat changes no service.
        if services.is_empty() {
            return;
        }
        let recent = |at: Millis| now < at + self.hold_ms;
        self.taken.retain(|_, taken| {
            taken.retain(|(at, _)| recent(*at));
            !taken.is_empty()
        });
        self.emptied.retain(|(at, _)| recent(*at));

        let mut steps = Vec::new();
        for service in services {
            let ready = ready(hosts, service);
            let before = self.served.get(service).cloned().unwrap_or_default();
            let drains = |proxy: &String| {
                hosts.find(proxy).is_some_and(|(.., instance)| instance.state == State::Draining)
            };
            let gone: Vec<(String, Served)> = before
                .iter()
                .filter(|(proxy, _)| !ready.contains_key(*proxy) && !drains(proxy))
                .map(|(proxy, served)| (proxy.clone(), served.clone()))
                .collect();
            let by_person =
                cause == Cause::Person || self.changed.get(service).is_some_and(|until| now < *until);
            let (held, new): (Vec<_>, Vec<_>) =
                gone.into_iter().partition(|(_, served)| served.until.is_some());
            let mut step =
                Step { service, before: filled(&before), after: ready, new, held: Vec::new(), hold: false };
            // What is held already waits for its own time, unless its host was deleted.
            step.held = held.into_iter().filter(|(_, served)| hosts.get(&served.host).is_some()).collect();
            if !by_person {
                let taken: usize =
                    self.taken.get(service).into_iter().flatten().map(|(_, count)| count).sum();
                let leave = step.new.len() + step.held.len() + taken;
                let had = before.len() + taken;
                let many = leave >= LEAST_ENDPOINTS && 2 * leave > had;
                step.hold = many && !step.new.is_empty() && cause != Cause::Silence { observed: true };
            } else {
                step.new.clear();
            }
            steps.push(step);
        }

        let emptied: usize = steps.iter().map(Step::emptied).sum();
        let recently: usize = self.emptied.iter().map(|(_, count)| count).sum();
        // All ports are counted only where it matters: there may be many.
        let had = || self.served.values().map(filled).sum::<usize>() + recently;
        let many = emptied + recently >= LEAST_PORTS && 5 * (emptied + recently) > had();
        let all = many && emptied > 0 && !matches!(cause, Cause::Person | Cause::Silence { observed: true });
        for mut step in steps {
            if (step.hold || all) && !step.new.is_empty() {
                let note =
                    HoldNote { service: step.service.to_string(), endpoints: step.new.len(), held: true };
                self.notes.push(note);
                let until = now + self.hold_ms;
                self.next = Some(self.next.map_or(until, |next| next.min(until)));
                let held = |(proxy, served)| (proxy, Served { until: Some(until), ..served });
                step.held.extend(step.new.drain(..).map(held));
            }
            if !step.new.is_empty() {
                self.taken.entry(step.service.clone()).or_default().push((now, step.new.len()));
                match step.emptied() {
                    0 => {}
                    count => self.emptied.push((now, count)),
                }
            }
            step.after.extend(step.held);
            if step.after.is_empty() {
                self.served.remove(step.service);
            } else {
                self.served.insert(step.service.clone(), step.after);
            }
        }
    }

    /// What was held and is still gone leaves at its time. Names the services that have fewer endpoints now.
    pub(super) fn tick(&mut self, now: Millis) -> BTreeSet<ServiceRef> {
        if self.next.is_none_or(|next| now < next) {
            return BTreeSet::new();
        }
        let services = self.release(|served| served.until.is_some_and(|until| until <= now));
        self.next = self.held().filter_map(|(.., served)| served.until).min();
        services
    }

    /// A person deleted a host: nothing of it is held.
    pub(super) fn evict(&mut self, host: &str) -> BTreeSet<ServiceRef> {
        self.release(|served| served.until.is_some() && served.host == host)
    }

    fn release(&mut self, leaves: impl Fn(&Served) -> bool) -> BTreeSet<ServiceRef> {
        let mut services = BTreeSet::new();
        for (service, instances) in &mut self.served {
            let before = instances.len();
            instances.retain(|_, served| !leaves(served));
            let endpoints = before - instances.len();
            if endpoints > 0 {
                services.insert(service.clone());
                self.notes.push(HoldNote { service: service.to_string(), endpoints, held: false });
            }
        }
        self.served.retain(|_, instances| !instances.is_empty());
        services
    }

    /// When [`Hold::tick`] may have something to do next.
    pub(super) fn next_deadline(&self) -> Option<Millis> {
        self.next
    }
}

/// What a change does to one service.
struct Step<'a> {
    service: &'a ServiceRef,
    /// Ports with endpoints before it.
    before: usize,
    after: BTreeMap<String, Served>,
    /// Gone by these facts.
    new: Vec<(String, Served)>,
    /// Gone by earlier ones, and held.
    held: Vec<(String, Served)>,
    hold: bool,
}

impl Step<'_> {
    /// Ports that lose their last endpoint, unless it is held.
    fn emptied(&self) -> usize {
        let left = self.after.values().chain(self.held.iter().map(|(_, served)| served));
        let left: BTreeSet<&String> = left.flat_map(|served| served.ports.keys()).collect();
        if self.hold || self.new.is_empty() { 0 } else { self.before.saturating_sub(left.len()) }
    }
}

fn filled(instances: &BTreeMap<String, Served>) -> usize {
    instances.values().flat_map(|served| served.ports.keys()).collect::<BTreeSet<_>>().len()
}

/// Ready instances on hosts that are not withdrawn.
fn ready(hosts: &Hosts, service: &ServiceRef) -> BTreeMap<String, Served> {
    hosts
        .of_service(service)
        .filter(|(_, host, instance)| !host.withdrawn && instance.state == State::Ready)
        .map(|(name, _, instance)| {
            let ports = instance.endpoints.clone();
            (instance.proxy(), Served { host: name.to_owned(), ports, until: None })
        })
        .collect()
}

#[cfg(test)]
mod tests;
