//! Hosts, their instances, and whether they are alive.
//!
//! A host is *lost* when nothing was heard of it for [`Timing::lost_after_ms`]; its instances then leave the
//! endpoint sets (they are *withdrawn*), and come back when it is heard of again. Facts count only from the
//! newest session of a host.
//!
//! Holds: silence of others is taken for their end only while this side hears well. While no host at all is
//! heard, the control plane is *cut off*: endpoints stay as they are, and when the first host is heard again all
//! others have [`Timing::grace_ms`] to come back. The same grace is given when this process itself was late, and
//! once when more hosts are silent than heard.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use outrider_api::agent::{self as wire, RefusalReason};
use outrider_intent::model::ServiceRef;
use serde::{Deserialize, Serialize};

use super::admissions::Scope;
use super::{Millis, Timing};

/// Most instances of one host.
const MAX_INSTANCES: usize = 4_096;
/// Most ports of one instance.
const MAX_ENDPOINTS: usize = 64;
/// Most characters kept of a text an agent sends.
const MAX_TEXT: usize = 500;

/// State of an instance as its agent says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum State {
    Starting,
    Ready,
    Draining,
}

/// One running copy of a service, as its agent reported it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Instance {
    pub(crate) service: ServiceRef,
    pub(crate) name: String,
    pub(crate) state: State,
    pub(crate) endpoints: BTreeMap<String, SocketAddr>,
    pub(crate) engine: String,
    pub(crate) engine_version: String,
    pub(crate) proxy_pid: u32,
    pub(crate) reason: String,
    pub(crate) restarts: u32,
}

impl Instance {
    /// `NS/INSTANCE`.
    pub(crate) fn proxy(&self) -> String {
        format!("{}/{}", self.service.namespace, self.name)
    }
}

/// What the store keeps of a host.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct HostRecord {
    pub(crate) address: String,
    pub(crate) version: String,
    /// Where it is; empty if that was not said.
    #[serde(default)]
    pub(crate) zone: String,
    pub(crate) instances: Vec<Instance>,
}

#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) address: String,
    pub(crate) version: String,
    /// Where it is; empty if that was not said.
    pub(crate) zone: String,
    /// The session whose facts count, while it is open.
    pub(crate) session: Option<u64>,
    pub(crate) last_heard: Millis,
    /// When it is lost unless heard of before.
    deadline: Millis,
    /// Nothing is heard of it.
    pub(crate) lost: bool,
    /// Its instances are in no endpoint set, because it is lost.
    pub(crate) withdrawn: bool,
    /// It was given more time, because too many were silent at once.
    pub(super) doubted: bool,
    /// Reported instances that do not count, by `NS/INSTANCE`, and why.
    pub(crate) refused: BTreeMap<String, Refusal>,
    /// What does not work there, by its agent.
    pub(crate) problems: Vec<String>,
    /// Its proxies acknowledge more than is kept.
    pub(crate) too_much: bool,
    /// Sessions that were replaced while they were open.
    pub(crate) superseded: u64,
    /// By `NS/INSTANCE`.
    pub(crate) instances: BTreeMap<String, Instance>,
}

impl Host {
    fn new(address: String, version: String, now: Millis, deadline: Millis) -> Self {
        Self {
            address,
            version,
            zone: String::new(),
            session: None,
            last_heard: now,
            deadline,
            lost: false,
            withdrawn: false,
            doubted: false,
            refused: BTreeMap::new(),
            problems: Vec::new(),
            too_much: false,
            superseded: 0,
            instances: BTreeMap::new(),
        }
    }

    /// Its session is up, and it is heard.
    pub(crate) fn is_connected(&self) -> bool {
        self.session.is_some() && !self.lost
    }

    fn services(&self) -> impl Iterator<Item = ServiceRef> {
        self.instances.values().map(|instance| instance.service.clone())
    }
}

/// Why an instance does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// `NS/SERVICE`, as reported.
    pub(crate) service: String,
    pub(crate) reason: RefusalReason,
}

impl Refusal {
    pub(crate) fn text(&self) -> String {
        match self.reason {
            RefusalReason::BadName => "its namespace, service or name is not a DNS label".to_owned(),
            RefusalReason::TooManyEndpoints => format!("it has more than {MAX_ENDPOINTS} endpoints"),
            RefusalReason::ForeignAddress => "an endpoint has another address than its host".to_owned(),
            RefusalReason::BadEndpoint => {
                "an endpoint has no port name, IP address or port number".to_owned()
            }
            RefusalReason::NameTaken => "another host has an instance of this name".to_owned(),
            RefusalReason::OutOfScope => {
                format!("this node may not run {}: its join token did not name it", self.service)
            }
            RefusalReason::Other => "the control plane does not count it".to_owned(),
        }
    }
}

/// What became different.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Services whose endpoints may be others now.
    pub(crate) endpoints: BTreeSet<ServiceRef>,
    /// Hosts whose set of instances is another now.
    pub(crate) proxies: BTreeSet<String>,
    /// Hosts whose record is another now, or gone.
    pub(crate) records: BTreeSet<String>,
    /// Proxies that are no more.
    pub(crate) gone: BTreeSet<String>,
    /// Hosts that were lost just now.
    pub(crate) lost: BTreeSet<String>,
    /// Hosts whose endpoints were withdrawn just now.
    pub(crate) withdrawn: BTreeSet<String>,
}

impl Changed {
    fn absorb(&mut self, other: Self) {
        self.endpoints.extend(other.endpoints);
        self.proxies.extend(other.proxies);
        self.records.extend(other.records);
        self.gone.extend(other.gone);
        self.lost.extend(other.lost);
        self.withdrawn.extend(other.withdrawn);
    }
}

/// A fact was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FactError {
    #[error("the first fact of a session must be Hello, of the node whose certificate it uses")]
    NoHello,
    #[error("a newer session of this node took over")]
    Superseded,
    #[error(transparent)]
    NotAdmitted(#[from] super::admissions::NotAdmitted),
    #[error("more than {MAX_INSTANCES} instances on one host")]
    TooMany,
    #[error("{0} is not an instance of this host")]
    Foreign(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Hosts {
    timing: Timing,
    hosts: BTreeMap<String, Host>,
    /// `NS/INSTANCE` → host.
    owners: BTreeMap<String, String>,
    by_service: BTreeMap<ServiceRef, BTreeSet<String>>,
    /// Names given to joining agents that have not said hello yet, until when.
    reserved: BTreeMap<String, Millis>,
    /// No host is heard.
    cut_off: bool,
}

impl Hosts {
    /// Starts with the hosts known before a restart. Their instances stay in use for [`Timing::grace_ms`].
    pub(crate) fn new(timing: Timing, known: BTreeMap<String, HostRecord>, now: Millis) -> Self {
        let mut hosts = Self {
            timing,
            hosts: BTreeMap::new(),
            owners: BTreeMap::new(),
            by_service: BTreeMap::new(),
            reserved: BTreeMap::new(),
            cut_off: false,
        };
        for (name, record) in known {
            let mut host = Host::new(record.address, record.version, now, now + timing.grace_ms);
            host.zone = record.zone;
            hosts.hosts.insert(name.clone(), host);
            hosts.replace_instances(&name, record.instances);
        }
        hosts
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Host)> {
        self.hosts.iter()
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Host> {
        self.hosts.get(name)
    }

    /// The host of a proxy.
    pub(crate) fn owner(&self, proxy: &str) -> Option<&str> {
        self.owners.get(proxy).map(String::as_str)
    }

    pub(crate) fn find(&self, proxy: &str) -> Option<(&str, &Host, &Instance)> {
        let name = self.owner(proxy)?;
        let host = self.hosts.get(name)?;
        Some((name, host, host.instances.get(proxy)?))
    }

    /// Instances of a service on any host, by `NS/INSTANCE`.
    pub(crate) fn of_service(&self, service: &ServiceRef) -> impl Iterator<Item = (&str, &Host, &Instance)> {
        self.by_service.get(service).into_iter().flatten().filter_map(|proxy| self.find(proxy))
    }

    /// Whether any host said where it is.
    pub(crate) fn have_zones(&self) -> bool {
        self.hosts.values().any(|host| !host.zone.is_empty())
    }

    /// The zone of a host, empty if it is not known.
    pub(crate) fn zone(&self, name: &str) -> &str {
        self.hosts.get(name).map_or("", |host| &host.zone)
    }

    /// Everything of a host that outlives this process.
    pub(crate) fn record(&self, name: &str) -> Option<HostRecord> {
        self.hosts.get(name).map(|host| HostRecord {
            address: host.address.clone(),
            version: host.version.clone(),
            zone: host.zone.clone(),
            instances: host.instances.values().cloned().collect(),
        })
    }

    /// Gives the name to a joining agent, unless a host has it that is not lost: one that is disconnected for a
    /// moment keeps its name.
    pub(crate) fn reserve(&mut self, name: &str, now: Millis) -> bool {
        let live = self.hosts.get(name).is_some_and(|host| !host.lost);
        let reserved = self.reserved.get(name).is_some_and(|until| now < *until);
        self.reserved.retain(|_, until| now < *until);
        if !live && !reserved {
            self.reserved.insert(name.to_owned(), now + self.timing.grace_ms);
        }
        !live && !reserved
    }

    /// Takes a name back that was reserved for a join that failed.
    pub(crate) fn release(&mut self, name: &str) {
        self.reserved.remove(name);
    }

    /// A session begins. An earlier one of the same host counts no more.
    pub(crate) fn hello(&mut self, name: &str, session: u64, hello: &wire::Hello, now: Millis) -> Changed {
        self.reserved.remove(name);
        let new = !self.hosts.contains_key(name);
        let host = self
            .hosts
            .entry(name.to_owned())
            .or_insert_with(|| Host::new(String::new(), String::new(), now, now));
        let (address, version) = (clean(&hello.address), clean(&hello.version));
        let zone = Some(hello.zone.clone()).filter(|zone| wire::is_zone(zone)).unwrap_or_default();
        let moved = std::mem::replace(&mut host.zone, zone) != host.zone;
        let differs = new || moved || host.address != address || host.version != version;
        host.superseded += u64::from(host.session.is_some());
        (host.address, host.version, host.session) = (address, version, Some(session));
        let services: Vec<ServiceRef> = if moved { host.services().collect() } else { Vec::new() };
        let mut changed = self.heard(name, now);
        changed.endpoints.extend(services);
        if differs {
            changed.records.insert(name.to_owned());
        }
        changed
    }

    /// Checks that a fact of this session counts.
    pub(crate) fn check(&self, name: &str, session: u64) -> Result<(), FactError> {
        match self.hosts.get(name).map(|host| host.session) {
            Some(Some(current)) if current == session => Ok(()),
            Some(Some(_)) => Err(FactError::Superseded),
            _ => Err(FactError::NoHello),
        }
    }

    /// Something was heard of the host: it is alive, and its instances are back if it was lost.
    /// What does not work on a host, by its agent; what is more than is kept is left out.
    pub(crate) fn set_problems(&mut self, name: &str, problems: &[String]) {
        if let Some(host) = self.hosts.get_mut(name) {
            let kept = problems.iter().take(wire::MAX_PROBLEMS);
            let clean = |text: &String| printable(cut(text, wire::MAX_PROBLEM), wire::MAX_PROBLEM);
            host.problems = kept.map(clean).collect();
        }
    }

    pub(crate) fn heard(&mut self, name: &str, now: Millis) -> Changed {
        let mut changed = Changed::default();
        if !self.hosts.contains_key(name) {
            return changed;
        }
        if std::mem::take(&mut self.cut_off) {
            self.was_late(now);
        }
        if let Some(host) = self.hosts.get_mut(name) {
            host.last_heard = host.last_heard.max(now);
            host.deadline = host.deadline.max(now + self.timing.lost_after_ms);
            (host.lost, host.doubted) = (false, false);
            if std::mem::take(&mut host.withdrawn) {
                changed.endpoints.extend(host.services());
            }
        }
        changed
    }

    /// This process was held up until `now`, or cut off: what it did not hear says nothing. Hosts have
    /// [`Timing::grace_ms`] to be heard.
    pub(crate) fn was_late(&mut self, now: Millis) {
        for host in self.hosts.values_mut().filter(|host| !host.withdrawn) {
            host.deadline = host.deadline.max(now + self.timing.grace_ms);
        }
    }

    /// No host is heard at all.
    pub(crate) fn cut_off(&self) -> bool {
        self.cut_off
    }

    /// All instances of the host, which may act for the services of `scope`. Bad ones are left out and named,
    /// those with a reason that is new also in the answer. An instance that a lost host had before is this host's
    /// from now on.
    pub(crate) fn instances(
        &mut self,
        name: &str,
        report: &wire::Instances,
        scope: &Scope,
    ) -> Result<(Changed, Vec<(String, Refusal)>), FactError> {
        if report.instances.len() > MAX_INSTANCES {
            return Err(FactError::TooMany);
        }
        let address = self.hosts.get(name).and_then(|host| host.address.parse().ok());
        let (mut instances, mut refused) = (Vec::with_capacity(report.instances.len()), BTreeMap::new());
        let mut changed = Changed::default();
        for reported in &report.instances {
            let refusal = |reason| Refusal {
                service: format!("{}/{}", name_of(&reported.namespace), name_of(&reported.service)),
                reason,
            };
            let instance = match read(reported, address) {
                Ok(instance) if scope.allows(&instance.service) => instance,
                other => {
                    let reason = other.err().unwrap_or(RefusalReason::OutOfScope);
                    let proxy = format!("{}/{}", name_of(&reported.namespace), name_of(&reported.name));
                    refused.insert(proxy, refusal(reason));
                    continue;
                }
            };
            let proxy = instance.proxy();
            match self.owner(&proxy).filter(|owner| *owner != name).map(str::to_owned) {
                Some(owner) if self.hosts.get(&owner).is_some_and(|host| !host.lost) => {
                    refused.insert(proxy, refusal(RefusalReason::NameTaken));
                    continue;
                }
                Some(owner) => changed.absorb(self.take_from(&owner, &proxy)),
                None => {}
            }
            instances.push(instance);
        }
        changed.absorb(self.replace_instances(name, instances));
        let Some(host) = self.hosts.get_mut(name) else { return Ok((changed, Vec::new())) };
        let before = std::mem::replace(&mut host.refused, refused.clone());
        let news = refused.into_iter().filter(|(proxy, cause)| before.get(proxy) != Some(cause)).collect();
        Ok((changed, news))
    }

    /// Whether the last thing its proxies acknowledged was too much. `true` if that is new.
    pub(crate) fn set_too_much(&mut self, name: &str, too_much: bool) -> bool {
        let before = self.hosts.get_mut(name).map(|host| std::mem::replace(&mut host.too_much, too_much));
        before.is_some_and(|before| before != too_much)
    }

    /// Forgets a host and everything on it.
    pub(crate) fn evict(&mut self, name: &str) -> Changed {
        let mut changed = self.replace_instances(name, Vec::new());
        if self.hosts.remove(name).is_some() {
            changed.records.insert(name.to_owned());
        }
        self.reserved.remove(name);
        changed
    }

    /// Forgets what a host said, and ends its session: somebody else says hello under its name next.
    pub(crate) fn disown(&mut self, name: &str) -> Changed {
        if let Some(host) = self.hosts.get_mut(name) {
            (host.session, host.too_much) = (None, false);
            host.refused.clear();
        }
        self.replace_instances(name, Vec::new())
    }

    fn take_from(&mut self, owner: &str, proxy: &str) -> Changed {
        let Some(host) = self.hosts.get(owner) else { return Changed::default() };
        let others = host.instances.iter().filter(|(name, _)| *name != proxy);
        let others = others.map(|(_, instance)| instance.clone()).collect();
        self.replace_instances(owner, others)
    }

    fn replace_instances(&mut self, name: &str, instances: Vec<Instance>) -> Changed {
        let mut changed = Changed::default();
        let Some(host) = self.hosts.get_mut(name) else { return changed };
        let new: BTreeMap<String, Instance> =
            instances.into_iter().map(|instance| (instance.proxy(), instance)).collect();
        let old = std::mem::replace(&mut host.instances, new.clone());
        let shape =
            |instance: &Instance| (instance.service.clone(), instance.state, instance.endpoints.clone());
        for (proxy, before) in &old {
            match new.get(proxy) {
                Some(after) if shape(after) == shape(before) => {}
                after => {
                    changed.endpoints.insert(before.service.clone());
                    changed.endpoints.extend(after.map(|after| after.service.clone()));
                }
            }
            let moved = new.get(proxy).is_none_or(|after| after.service != before.service);
            if moved {
                changed.proxies.insert(name.to_owned());
                changed.gone.insert(proxy.clone());
                self.owners.remove(proxy);
                if let Some(proxies) = self.by_service.get_mut(&before.service) {
                    proxies.remove(proxy);
                    if proxies.is_empty() {
                        self.by_service.remove(&before.service);
                    }
                }
            }
        }
        for (proxy, after) in &new {
            if self.owners.insert(proxy.clone(), name.to_owned()).is_none() {
                changed.proxies.insert(name.to_owned());
                changed.endpoints.insert(after.service.clone());
                self.by_service.entry(after.service.clone()).or_default().insert(proxy.clone());
            }
        }
        if old != new {
            changed.records.insert(name.to_owned());
        }
        changed
    }

    /// The session ended. The host stays until its deadline, for it may be back at once.
    pub(crate) fn closed(&mut self, name: &str, session: u64) {
        if let Some(host) = self.hosts.get_mut(name)
            && host.session == Some(session)
        {
            host.session = None;
        }
    }

    /// Lets time pass.
    pub(crate) fn tick(&mut self, now: Millis) -> Changed {
        let mut changed = Changed::default();
        let mut forgotten = Vec::new();
        // Half the time a host has: whoever missed no heartbeat is heard, and when all connections broke at
        // once nobody is by the time the first deadline passes.
        let is_heard = |host: &Host| !host.lost && now < host.last_heard + self.timing.lost_after_ms / 2;
        let heard = self.hosts.values().filter(|host| is_heard(host)).count();
        let silent = self.hosts.values().filter(|host| !host.withdrawn && !is_heard(host)).count();
        for (name, host) in &mut self.hosts {
            if !host.withdrawn && now >= host.deadline {
                if !std::mem::replace(&mut host.lost, true) {
                    changed.lost.insert(name.clone());
                }
                if heard == 0 {
                    self.cut_off = true;
                } else if silent > heard && !host.doubted {
                    host.doubted = true;
                    host.deadline = now + self.timing.grace_ms;
                } else {
                    host.withdrawn = true;
                    changed.withdrawn.insert(name.clone());
                    changed.endpoints.extend(host.services());
                }
            }
            if host.withdrawn && now >= host.deadline + self.timing.forget_ms {
                forgotten.push(name.clone());
            }
        }
        for name in forgotten {
            let emptied = self.replace_instances(&name, Vec::new());
            changed.proxies.extend(emptied.proxies);
            changed.gone.extend(emptied.gone);
            changed.records.insert(name.clone());
            self.hosts.remove(&name);
        }
        changed
    }

    /// When [`Hosts::tick`] has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Millis> {
        let waits = |host: &Host| match (host.withdrawn, host.lost && self.cut_off) {
            (true, _) => Some(host.deadline + self.timing.forget_ms),
            // Until somebody is heard.
            (false, true) => None,
            (false, false) => Some(host.deadline),
        };
        self.hosts.values().filter_map(waits).min()
    }
}

/// Text of an agent, for people: not too long, and without characters that steer a terminal.
pub(crate) fn printable(text: &str, most: usize) -> String {
    let steers = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().take(most).map(|c| if steers(c) { ' ' } else { c }).collect()
}

/// A name that an agent says; of a bad one the beginning.
fn name_of(text: &str) -> String {
    printable(text, 100)
}

fn clean(text: &str) -> String {
    printable(text, MAX_TEXT)
}

/// Reads a reported instance of the host with this address.
fn read(reported: &wire::Instance, host: Option<IpAddr>) -> Result<Instance, RefusalReason> {
    if ![&reported.namespace, &reported.service, &reported.name].into_iter().all(|name| is_label(name)) {
        return Err(RefusalReason::BadName);
    }
    if reported.endpoints.len() > MAX_ENDPOINTS {
        return Err(RefusalReason::TooManyEndpoints);
    }
    let mut endpoints = BTreeMap::new();
    for endpoint in &reported.endpoints {
        let address: Option<IpAddr> = endpoint.address.parse().ok();
        let number = u16::try_from(endpoint.number).ok().filter(|number| *number != 0);
        match (address, number, is_label(&endpoint.port)) {
            (Some(address), ..) if Some(address) != host => {
                return Err(RefusalReason::ForeignAddress);
            }
            (Some(address), Some(number), true) => {
                endpoints.insert(endpoint.port.clone(), SocketAddr::new(address, number));
            }
            _ => return Err(RefusalReason::BadEndpoint),
        }
    }
    let state = match wire::InstanceState::try_from(reported.state) {
        Ok(wire::InstanceState::Starting) => State::Starting,
        Ok(wire::InstanceState::Ready) => State::Ready,
        Ok(wire::InstanceState::Draining) => State::Draining,
        // A state of a newer agent: whatever it is, it is not known to be ready.
        Err(_) => State::Starting,
    };
    Ok(Instance {
        service: ServiceRef::new(&reported.namespace, &reported.service),
        name: reported.name.clone(),
        state,
        endpoints,
        engine: clean(&reported.engine),
        engine_version: clean(&reported.engine_version),
        proxy_pid: reported.proxy_pid,
        reason: clean(&reported.reason),
        restarts: reported.restarts,
    })
}

/// An RFC 1123 label. Instance names may be longer than one by their suffix.
pub(crate) fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    (1..=80).contains(&bytes.len())
        && bytes.iter().all(inner)
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

/// An RFC 1123 subdomain: labels with dots between, at most 253 bytes. What a node may be called.
pub(crate) fn is_node_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(|label| label.len() <= 63 && is_label(label))
}

/// At most so many bytes of a text, whole characters.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

#[cfg(test)]
#[path = "hosts/tests.rs"]
mod tests;
