//! What is compiled beside the intent while a change is under way.
//!
//! Callers and servers are changed in an order: servers accept what is new before callers use it, and what callers
//! may still use until they do not. So for a time callers are compiled by an earlier intent, and servers accept more
//! than is declared. Who decides for how long is the control plane.

use std::collections::{BTreeMap, BTreeSet};

use outrider_intent::model::{Intent, Mtls, Port, Protocol, Service, ServiceRef};

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
    /// Connections without TLS are taken too.
    pub plaintext: bool,
    /// Connections with TLS are taken too.
    pub tls: bool,
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
}

impl<'a> Accepts<'a> {
    pub(crate) fn new(view: &View<'a>, service: &'a Service, kept: Option<&'a Kept>) -> Self {
        let mut accepts = Self {
            ports: service.ports.clone(),
            mtls: view.mtls(&service.id),
            callers: view.callers(&service.id).collect(),
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
        accepts
    }
}
