//! The sockets, addresses and names of one instance.
//!
//! Holds: a socket lives as long as its instance wants it, whatever happens to the proxy; a called service keeps
//! its address for the instance's life; a service that is no longer there keeps its sockets and names, so that a
//! call is answered with the reason instead of being refused, and is found at the same address should it come
//! back. What cannot be bound is a problem of that listener alone. With a new agent sockets come back from the processes
//! that have them; one that nobody has is bound anew at its address. Does not: serve, or tell the proxy (its
//! changes come back as commands).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use outrider_xds::{Resource, ResourceSet};

use super::saved::{self, Saved, SavedListener};
use crate::engine::{Command, Engine};
use crate::facts::Unbound;
use crate::hosts::HostsFile;
use crate::random;
use crate::scope::{self, Scope, Wanted};
use crate::server::Host;
use crate::sockets;

/// Most listeners of services that have gone, so that a client of ever new services does not grow for ever.
const MAX_RETIRED: usize = 256;

/// A listener and its socket.
pub(super) struct Bound {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) address: SocketAddr,
    pub(super) wanted: Wanted,
    /// What the proxy is served in the place of a service that has gone.
    retired: Option<Vec<Resource>>,
}

/// See the module.
pub(super) struct Places {
    host: Arc<Host>,
    hosts: HostsFile,
    bound: BTreeMap<String, Bound>,
    addresses: BTreeMap<String, Ipv4Addr>,
    unbound: Unbound,
    problems: Vec<String>,
    commands: Vec<Command>,
    /// Sockets of an earlier agent that have not come back yet.
    awaited: BTreeMap<String, SavedListener>,
    /// What stands in for services that had gone under an earlier agent.
    awaited_retired: ResourceSet,
}

impl Places {
    pub(super) fn new(host: Arc<Host>, hosts: HostsFile) -> Self {
        Self {
            host,
            hosts,
            bound: BTreeMap::new(),
            addresses: BTreeMap::new(),
            unbound: Unbound::new(),
            problems: Vec::new(),
            commands: Vec::new(),
            awaited: BTreeMap::new(),
            awaited_retired: ResourceSet::new(),
        }
    }

    /// Expects the sockets of an earlier agent, whose instance had `folder`.
    pub(super) fn resume(&mut self, saved: &Saved, folder: &Path) {
        for address in saved.addresses.values() {
            self.host.addresses().take(*address);
        }
        self.addresses.clone_from(&saved.addresses);
        let key = |listener: &SavedListener| (listener.wanted.listener.clone(), listener.clone());
        self.awaited = saved.listeners.iter().map(key).collect();
        self.awaited_retired = saved::read_retired(folder).into_iter().collect();
    }

    /// A process has the sockets of this listener. Of several that have them the first counts: they are the same.
    pub(super) fn returned(&mut self, name: &str, address: SocketAddr, fds: Vec<OwnedFd>) {
        let expected = self.awaited.get(name).is_some_and(|saved| saved.address == address);
        if let (true, Some(fd)) = (expected, fds.into_iter().next())
            && let Some(saved) = self.awaited.remove(name)
        {
            self.take_back(saved, fd);
        }
    }

    /// Whether sockets of an earlier agent have not come back yet.
    pub(super) fn awaits(&self) -> bool {
        !self.awaited.is_empty()
    }

    fn take_back(&mut self, saved: SavedListener, fd: OwnedFd) {
        let SavedListener { wanted, address, retired } = saved;
        let name = wanted.listener.clone();
        let retired = if retired { scope::retire(&self.awaited_retired, &name, &wanted) } else { None };
        self.bound.insert(name, Bound { fd: Arc::new(fd), address, wanted, retired });
    }

    /// Binds what has not come back. Returns what processes are to be told.
    pub(super) fn bind_the_rest(&mut self, engine: Engine) -> Vec<Command> {
        for (name, saved) in std::mem::take(&mut self.awaited) {
            match sockets::bind_again(saved.address, engine.sockets()) {
                Ok(fd) => {
                    let address = saved.address;
                    self.take_back(saved, fd);
                    if let Some(bound) = self.bound.get(&name) {
                        self.commands.push(Command::Listener(name, address, bound.fd.clone()));
                    }
                }
                Err(error) => tracing::warn!(listener = %name, address = %saved.address, %error, "lost"),
            }
        }
        self.awaited_retired = ResourceSet::new();
        std::mem::take(&mut self.commands)
    }

    /// What a next agent needs of this.
    pub(super) fn save(&self, saved: &mut Saved) {
        saved.addresses.clone_from(&self.addresses);
        let listener = |bound: &Bound| SavedListener {
            wanted: bound.wanted.clone(),
            address: bound.address,
            retired: bound.retired.is_some(),
        };
        saved.listeners = self.bound.values().map(listener).collect();
    }

    /// What stands in for services that have gone.
    pub(super) fn retired(&self) -> impl Iterator<Item = &Resource> {
        self.bound.values().flat_map(|bound| bound.retired.iter().flatten())
    }

    /// Every socket, also those of services that have gone.
    pub(super) fn sockets(&self) -> impl Iterator<Item = (&String, &Bound)> {
        self.bound.iter()
    }

    /// Sockets of what is declared.
    pub(super) fn in_use(&self) -> impl Iterator<Item = (&String, &Bound)> {
        self.bound.iter().filter(|(_, bound)| bound.retired.is_none())
    }

    /// Listeners that have no socket, and why.
    pub(super) fn unbound(&self) -> &Unbound {
        &self.unbound
    }

    /// Everything that does not work, in words.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        let unbound = self.unbound.iter().map(|(listener, (_, why))| format!("{listener}: {why}"));
        unbound.chain(self.problems.iter().cloned())
    }

    /// What is relayed: `scope` with the addresses of the sockets, and the answers in the name of what has gone.
    pub(super) fn localise(&self, scope: &Scope, set: &ResourceSet) -> ResourceSet {
        let addresses = self.in_use().map(|(name, bound)| (name.clone(), bound.address)).collect();
        let mut local = scope.localise(&addresses, set);
        for resource in self.bound.values().flat_map(|bound| bound.retired.iter().flatten()) {
            if local.get(&resource.type_url, &resource.name).is_none() {
                local.insert(resource.clone());
            }
        }
        local
    }

    /// Makes the sockets and names that the listeners of `scope` want. `relayed` is what the proxy was served
    /// until now. Returns what the proxy is to be told.
    pub(super) fn update(
        &mut self,
        scope: &Scope,
        engine: Engine,
        inbound_open: bool,
        relayed: Option<&ResourceSet>,
    ) -> Vec<Command> {
        let (wanted, unreadable) = scope.wanted();
        let wanted: Vec<Wanted> = wanted.into_iter().filter(|w| inbound_open || !w.inbound).collect();
        self.unbound.clear();
        self.problems = unreadable;
        self.rename(&wanted);
        self.release(&wanted, relayed);

        let mode = engine.sockets();
        let mut by_service: BTreeMap<String, Vec<Wanted>> = BTreeMap::new();
        for want in wanted {
            match self.bound.get_mut(&want.listener) {
                Some(bound) => {
                    bound.retired = None;
                    bound.wanted = want;
                }
                None if want.inbound => match self.bind_inbound(mode) {
                    Ok((fd, address)) => self.add(want, fd, address),
                    Err(why) => self.refuse(&want, why),
                },
                None => by_service.entry(want.service.clone()).or_default().push(want),
            }
        }
        for (service, wants) in by_service {
            self.bind_service(&service, wants, mode);
        }
        self.write_names();
        std::mem::take(&mut self.commands)
    }

    /// A port that has another name now keeps its socket, and with it the connections that wait there.
    fn rename(&mut self, wanted: &[Wanted]) {
        let unknown = |bound: &BTreeMap<String, Bound>, want: &Wanted| {
            !want.inbound && !bound.contains_key(&want.listener)
        };
        for want in wanted {
            if !unknown(&self.bound, want) {
                continue;
            }
            let old = self.bound.iter().find(|(name, bound)| {
                same_place(want, &bound.wanted) && wanted.iter().all(|other| other.listener != **name)
            });
            let Some(old) = old.map(|(name, _)| name.clone()) else { continue };
            if let Some(bound) = self.bound.remove(&old) {
                self.commands.push(Command::RemoveListener(old));
                let name = want.listener.clone();
                self.commands.push(Command::Listener(name.clone(), bound.address, bound.fd.clone()));
                self.bound.insert(name, Bound { wanted: want.clone(), retired: None, ..bound });
            }
        }
    }

    /// Lets go of sockets that nobody wants and retires those of services that have gone.
    fn release(&mut self, wanted: &[Wanted], relayed: Option<&ResourceSet>) {
        let retired = self.bound.values().filter(|bound| bound.retired.is_some()).count();
        let mut room = MAX_RETIRED.saturating_sub(retired);
        let mut gone = Vec::new();
        for (name, bound) in &mut self.bound {
            if wanted.iter().any(|w| w.listener == *name && same_place(w, &bound.wanted)) {
                continue;
            }
            let place_is_free = !wanted.iter().any(|w| {
                w.listener == *name || (w.service == bound.wanted.service && w.port == bound.wanted.port)
            });
            if !bound.wanted.inbound && place_is_free {
                if bound.retired.is_some() {
                    continue;
                }
                if room > 0 {
                    room -= 1;
                    bound.retired = relayed.and_then(|relayed| scope::retire(relayed, name, &bound.wanted));
                    if bound.retired.is_some() {
                        tracing::info!(listener = %name, "the called service has gone; calls are told so");
                        continue;
                    }
                }
            }
            gone.push(name.clone());
        }
        for name in gone {
            self.bound.remove(&name);
            self.commands.push(Command::RemoveListener(name));
        }
    }

    /// Closes what other proxies connect to. Returns what the proxy is to be told.
    pub(super) fn close_inbound(&mut self) -> Vec<Command> {
        let inbound = self.bound.extract_if(.., |_, bound| bound.wanted.inbound);
        inbound.map(|(name, _)| Command::RemoveListener(name)).collect()
    }

    fn bind_inbound(&self, mode: sockets::Mode) -> Result<(OwnedFd, SocketAddr), String> {
        let ip = self.host.options.advertise;
        match &self.host.options.inbound_ports {
            None => {
                let any = SocketAddr::new(ip, 0);
                sockets::bind(any, mode).map_err(|error| sockets::explain(any, &error))
            }
            Some(range) => sockets::bind_in(ip, range, random::bits(), mode).map_err(|error| {
                let (low, high) = (range.start(), range.end());
                match error.kind() {
                    std::io::ErrorKind::AddrInUse => {
                        format!("no port of --inbound-ports {low}-{high} is free on {ip}")
                    }
                    _ => sockets::explain(SocketAddr::new(ip, *low), &error),
                }
            }),
        }
    }

    /// One address for all ports of a called service.
    fn bind_service(&mut self, service: &str, wants: Vec<Wanted>, mode: sockets::Mode) {
        let bind_at = |address: Ipv4Addr| {
            let bind = |want: &Wanted| {
                let place = SocketAddr::from((address, want.port));
                let outcome = sockets::bind(place, mode);
                let taken = matches!(&outcome, Err(e) if e.kind() == std::io::ErrorKind::AddrInUse);
                (want.clone(), outcome.map_err(|error| sockets::explain(place, &error)), taken)
            };
            wants.iter().map(bind).collect::<Vec<_>>()
        };
        let outcomes = match self.addresses.get(service) {
            // Its address is known to the application already, so a port that is taken there stays a problem.
            Some(address) => bind_at(*address),
            None => {
                let preferred = wants.first().and_then(|want| self.hosts.address_of(&want.names));
                let free =
                    |address| Some(bind_at(address)).filter(|all| !all.iter().any(|(.., taken)| *taken));
                let allocated = self.host.addresses().allocate(preferred, free);
                match allocated {
                    Some((address, outcomes)) => {
                        self.addresses.insert(service.to_owned(), address);
                        outcomes
                    }
                    None => {
                        for want in &wants {
                            self.refuse(want, format!("no loopback address is free for port {}", want.port));
                        }
                        return;
                    }
                }
            }
        };
        for (want, outcome, _) in outcomes {
            match outcome {
                Ok((fd, address)) => self.add(want, fd, address),
                Err(why) => self.refuse(&want, why),
            }
        }
    }

    fn write_names(&mut self) {
        let mut names: BTreeMap<Ipv4Addr, Vec<String>> = BTreeMap::new();
        for bound in self.bound.values().filter(|bound| !bound.wanted.inbound) {
            if let IpAddr::V4(address) = bound.address.ip() {
                let of_address = names.entry(address).or_default();
                for name in &bound.wanted.names {
                    if !of_address.contains(name) {
                        of_address.push(name.clone());
                    }
                }
            }
        }
        if let Err(error) = self.hosts.set(&names) {
            self.problems.push(format!("the names cannot be written: {error}"));
        }
    }

    fn add(&mut self, wanted: Wanted, fd: OwnedFd, address: SocketAddr) {
        let bound = Bound { fd: Arc::new(fd), address, wanted, retired: None };
        let name = bound.wanted.listener.clone();
        self.commands.push(Command::Listener(name.clone(), address, bound.fd.clone()));
        self.bound.insert(name, bound);
    }

    fn refuse(&mut self, wanted: &Wanted, why: String) {
        self.unbound.insert(wanted.listener.clone(), (wanted.version.clone(), why));
    }

    /// Gives the addresses back.
    pub(super) fn close(&self) {
        for address in self.addresses.values() {
            self.host.addresses().release(*address);
        }
    }
}

/// Whether a socket serves another version of its listener as well. Callers of other hosts know an inbound one by
/// its own port, whatever is declared.
fn same_place(new: &Wanted, old: &Wanted) -> bool {
    if new.inbound && old.inbound {
        return new.service == old.service;
    }
    (new.inbound, &new.service, new.port, &new.names) == (old.inbound, &old.service, old.port, &old.names)
}
