//! Fail-over to other services: what a policy says of it, and the rules it must keep.
//!
//! Holds: whoever takes calls speaks what was called, on every port that may be called. Does not: forbid circles. A list
//! is for calls of its own service only, so no call is led on from where it was led.

use super::{Rows, target_id};
use crate::diagnostic::{Code, Diagnostic};
use crate::document::Document;
use crate::model::{Failover, ServiceRef};
use crate::resolve::{Found, ResolveOptions, Set};
use crate::wire::{FailoverRef, PortSpec, ServiceSpec, TrafficPolicySpec};
use crate::words::{listed, nearest};

pub(super) fn read(namespace: &str, spec: &[FailoverRef], rows: &mut Rows) -> Vec<Failover> {
    let one = |(index, one): (usize, &FailoverRef)| {
        rows.written(&format!("failover[{index}].name"), &one.name.0);
        let port = one.port.as_ref().map(|port| port.0.clone());
        if let Some(port) = &port {
            rows.written(&format!("failover[{index}].port"), port);
        }
        Failover { service: ServiceRef::new(namespace, &one.name.0), port }
    };
    spec.iter().enumerate().map(one).collect()
}

fn ports(spec: Option<&ServiceSpec>) -> &[PortSpec] {
    spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default()
}

/// Everything that is wrong with the fail-over of a policy.
pub(crate) fn check(
    set: &Set<'_>,
    document: &Document,
    spec: &TrafficPolicySpec,
    options: &ResolveOptions,
    findings: &mut Vec<Diagnostic>,
) {
    let Some(list) = &spec.failover else { return };
    let mut error = |code: Code, path: &str, message: String, help: String| {
        let place = document.at(&format!("spec/{path}"));
        findings.push(Diagnostic::error(code, place, message).help(help));
    };
    let Some(target) = &spec.target_ref else {
        let message = "`failover` is about the calls of one service, and this policy is for every service of \
                       its namespace";
        let help = "add `targetRef`, or write it in a policy that has one";
        error(Code::MissingField, "failover", message.to_owned(), help.to_owned());
        return;
    };
    let called = target_id(document, target);
    // Whether there is one, and with ports, is a finding of its own.
    let called_ports = match set.service(&called) {
        Found::Service(spec) => ports(spec),
        Found::Nothing | Found::Unreadable => &[],
    };
    for (index, one) in list.iter().enumerate() {
        let id = ServiceRef::new(&called.namespace, &one.name.0);
        let path = format!("failover/{index}/name");
        if id == called {
            let message = format!("{id} cannot fail over to itself");
            error(Code::InvalidValue, &path, message, "name another service, or remove this".to_owned());
            continue;
        }
        if list[..index].iter().any(|earlier| earlier.name.0 == one.name.0) {
            let message = format!("{id} is listed a second time");
            error(Code::DuplicateValue, &path, message, "remove one of the two".to_owned());
            continue;
        }
        match set.service(&id) {
            Found::Unreadable => {}
            Found::Nothing if options.tolerates(&id) => {}
            Found::Nothing => {
                let message = format!("nothing declares the service {id}");
                error(Code::UnknownService, &path, message, set.meant(&called.namespace, &id, false));
            }
            Found::Service(spec) if ports(spec).is_empty() => {
                let message = format!("the service {id} has no ports, so it takes no calls");
                error(Code::NotCallable, &path, message, format!("give {id} a port, or remove this"));
            }
            Found::Service(spec) => {
                for (code, field, message, help) in misfits(&called, called_ports, one, &id, ports(spec)) {
                    error(code, &format!("failover/{index}/{field}"), message, help);
                }
            }
        }
    }
}

type Misfit = (Code, &'static str, String, String);

/// What keeps `ports` of the service `id` from taking the calls to these ports.
fn misfits(
    called: &ServiceRef,
    called_ports: &[PortSpec],
    one: &FailoverRef,
    id: &ServiceRef,
    ports: &[PortSpec],
) -> Vec<Misfit> {
    let mut misfits = Vec::new();
    let field = if one.port.is_some() { "port" } else { "name" };
    let names = || ports.iter().map(|port| port.name.0.as_str());
    let declared = one.port.as_ref().map(|port| &port.0);
    if let Some(name) = declared.filter(|name| names().all(|port| port != name.as_str())) {
        let help = match nearest(name, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("its ports are {}", listed(names())),
        };
        return vec![(Code::UnknownPort, field, format!("the service {id} has no port `{name}`"), help)];
    }
    for port in called_ports {
        let name = declared.unwrap_or(&port.name.0);
        let Some(takes) = ports.iter().find(|other| other.name.0 == *name) else {
            let message =
                format!("the service {id} has no port `{name}` for calls to port `{name}` of {called}");
            let help =
                format!("give it one, or say which port takes them: `port` is one of {}", listed(names()));
            misfits.push((Code::UnknownPort, field, message, help));
            continue;
        };
        if takes.protocol != port.protocol {
            let word = super::word;
            let message = format!(
                "port `{name}` of {id} speaks `{}`, and port `{}` of {called} speaks `{}`",
                word(&takes.protocol),
                port.name.0,
                word(&port.protocol)
            );
            let help = "nothing is translated: name a service whose port speaks the same".to_owned();
            misfits.push((Code::ProtocolMismatch, field, message, help));
        }
    }
    misfits
}
