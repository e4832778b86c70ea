//! What an instance makes of what the control plane says.
//!
//! Holds: a change is relayed only when it is whole; until then the proxy keeps what it has. What was deleted
//! under a running instance stays until the application ends.

use outrider_xds_types::prost::Message;
use outrider_xds_types::type_url;
use outrider_xds_types::workload::Workload;

use super::{Instance, Svid};
use crate::engine::Engine;
use crate::scope::Scope;
use crate::upstream::{Known, LinkState};

impl Instance {
    /// Takes in what is known now. Returns what is missing before the proxy can be started, in words.
    pub(super) fn take_knowledge(&mut self) -> Option<String> {
        match self.take_what_is_known() {
            Some(_) if self.fall_back() => self.take_what_is_known(),
            missing => missing,
        }
    }

    /// All of it is of one moment: endpoints that come between two looks would count as known and be missing.
    fn take_what_is_known(&mut self) -> Option<String> {
        let upstream = self.host.upstream.clone();
        let service = self.who.service_ref();
        let away = match upstream.link() {
            LinkState::Connected => String::new(),
            LinkState::Away(why) => format!("; no connection to the control plane: {why}"),
        };
        let view = upstream.view();
        match view.known(type_url::WORKLOAD, &service) {
            Known::Yes(resource) => match Workload::decode(resource.body.as_slice()) {
                Ok(workload) => {
                    self.life.set_serves(!workload.ports.is_empty());
                    self.want_svid(&workload.spiffe_id);
                    // The engine of a running instance stays: its sockets are prepared for it.
                    self.engine = self.engine.or(Engine::parse(&workload.engine));
                    self.claim(&workload);
                    self.workload = Some(workload);
                }
                Err(error) => return Some(format!("the workload of {service} cannot be read: {error}")),
            },
            // Deleted under a running instance: what it has stays until the application ends.
            Known::No if self.workload.is_none() => {
                return Some(format!("service {service} is not declared; `outrider apply` it"));
            }
            Known::NotYet if self.workload.is_none() => {
                return Some(format!("service {service} is not known here yet{away}"));
            }
            Known::No | Known::NotYet => {}
        }
        let workload = self.workload.clone()?;
        let Some(engine) = self.engine else {
            return Some(format!("this agent has no engine {}", workload.engine));
        };
        let set = view.resources();
        let scope = Scope::read(set, &self.who.proxy());
        self.follow_endpoints(&scope);
        let missing = scope.missing(&workload, |name| view.known(type_url::ENDPOINT, name) != Known::NotYet);
        let Some(credential) = self.svid.as_ref().and_then(|svid| svid.current.borrow().clone()) else {
            return Some(format!("waiting for the certificate of {service}{away}"));
        };
        if let Some(missing) = missing {
            return Some(format!("{missing}{away}"));
        }
        let commands = {
            let relayed = self.local.borrow();
            self.places.update(&scope, engine, !self.inbound_closed, relayed.as_ref())
        };
        commands.iter().for_each(|command| self.command(command));
        if !commands.is_empty() {
            self.save();
        }
        upstream.facts(|facts| facts.set_unbound(&self.who.proxy(), self.places.unbound()));
        let mut local = self.places.localise(&scope, set);
        for secret in credential.secrets() {
            local.insert(secret);
        }
        if upstream.link() == LinkState::Connected {
            self.last_good = None;
        }
        let changed = self.local.borrow().as_ref() != Some(&local);
        if changed {
            if !self.inbound_closed {
                let mut kept = scope.unscoped(set);
                if let Known::Yes(workload) = view.known(type_url::WORKLOAD, &service) {
                    kept.insert(workload);
                }
                self.try_out(&local, kept);
            }
            self.local.send_replace(Some(local));
            self.served_anew();
        }
        None
    }

    fn want_svid(&mut self, id: &str) {
        if self.svid.as_ref().is_some_and(|svid| svid.id == id) {
            return;
        }
        if let Some(old) = self.svid.take() {
            self.host.svids.release(&old.id);
        }
        let current = self.host.svids.want(&self.host.identity_folder(), id);
        self.svid = Some(Svid { id: id.to_owned(), current });
    }

    fn follow_endpoints(&mut self, scope: &Scope) {
        let wanted = scope.endpoints();
        self.endpoints.retain(|name, _| wanted.contains(name));
        for name in wanted {
            let upstream = &self.host.upstream;
            self.endpoints
                .entry(name)
                .or_insert_with_key(|name| upstream.subscribe(type_url::ENDPOINT, name));
        }
    }
}
