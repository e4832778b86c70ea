//! What is compiled beside the intent while a change is under way.
//!
//! Callers and servers are changed in an order: servers accept what is new before callers use it, and what callers
//! may still use until they do not. So for a time callers are compiled by an earlier intent, and servers accept more
//! than is declared. Who decides for how long is the control plane.

use std::collections::{BTreeMap, BTreeSet};

use outrider_intent::model::{Engine, Intent, Mtls, Port, Protocol, Service, ServiceRef};

use crate::view::View;

/// What the proxies of one service accept although it is not declared, or not any more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Ports that the service had. One that is declared under the same name counts instead.
    pub ports: Vec<Port>,
    /// Names of ports that are taken for bytes, whatever is declared: bytes carry HTTP as well.
    pub bytes: BTreeSet<String>,
    /// Callers that are let in.
    pub callers: BTreeSet<ServiceRef>,
    /// Callers that are not, and may finish what they have begun: no route leads them here any more. Under the native
    /// proxy; Envoy asks about nothing again that has begun.
    pub finishing: BTreeSet<ServiceRef>,
    /// Connections without TLS are taken too.
    pub plaintext: bool,
    /// Connections with TLS are taken too.
    pub tls: bool,
}

impl Kept {
    /// Whether nothing can begin by it.
    pub(crate) fn is_finishing(&self) -> bool {
        let Self { ports, bytes, callers, finishing: _, plaintext, tls } = self;
        ports.is_empty() && bytes.is_empty() && callers.is_empty() && !plaintext && !tls
    }
}

/// A change that is under way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stage {
    /// The intent that callers go by; `None` for the one that is declared.
    pub calls: Option<Intent>,
    /// What servers accept beside what is declared.
    pub kept: BTreeMap<ServiceRef, Kept>,
}

/// What a proxy takes connections for.
pub(crate) struct Accepts<'a> {
    pub(crate) ports: Vec<Port>,
    pub(crate) mtls: Mtls,
    pub(crate) callers: BTreeSet<&'a ServiceRef>,
    /// Callers that only finish what they have begun.
    pub(crate) finishing: Vec<&'a ServiceRef>,
}

impl<'a> Accepts<'a> {
    pub(crate) fn new(view: &View<'a>, service: &'a Service, kept: Option<&'a Kept>) -> Self {
        let mut accepts = Self {
            ports: service.ports.clone(),
            mtls: view.mtls(&service.id),
            callers: view.callers(&service.id).collect(),
            finishing: Vec::new(),
        };
        let Some(kept) = kept else { return accepts };
        let gone = kept.ports.iter().filter(|old| service.ports.iter().all(|port| port.name != old.name));
        accepts.ports.extend(gone.cloned());
        for port in accepts.ports.iter_mut().filter(|port| kept.bytes.contains(&port.name)) {
            port.protocol = Protocol::Tcp;
        }
        accepts.mtls = match accepts.mtls {
            Mtls::Required if kept.plaintext => Mtls::Both,
            Mtls::Off if kept.tls => Mtls::Both,
            declared => declared,
        };
        accepts.callers.extend(&kept.callers);
        if service.engine == Engine::Native {
            accepts.finishing =
                kept.finishing.iter().filter(|caller| !accepts.callers.contains(caller)).collect();
        }
        accepts
    }
}
