//! From documents to meaning: defaults, inheritance, references, and rules that concern several fields or objects.
//!
//! Holds: an [`Intent`] is given only if nothing is wrong in the whole set. A document with errors of its own
//! counts as declared, so that references to it are not reported on top. Does not: report again what
//! [`crate::parse`] reported.

use std::collections::{BTreeMap, BTreeSet};

use crate::diagnostic::{Code, Diagnostic};
use crate::document::{Document, Key, Kind, MAX_FINDINGS, Wire};
use crate::model::{AccessPolicy, Intent, Namespace, Port, Protocol, Role, Service, ServiceRef};
use crate::settings::{self, Limits, NamespaceSettings};
use crate::traffic::{ByTarget, Policies};
use crate::wire::{PortSpec, ReferenceGrantSpec, RouteKindName, ServiceSpec};
use crate::words::nearest;
use crate::{access, overlap, reach, route, traffic};

/// How to resolve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolveOptions {
    /// A call to a service that nothing declares goes to `Service::missing_calls` instead of being an error, and fail-over to
    /// one is left as it is.
    pub tolerate_missing_calls: bool,
    /// The same, for these services only: those deleted by force before. [`Intent::missing`] of the previous intent is what
    /// belongs here.
    pub known_missing: BTreeSet<ServiceRef>,
}

impl ResolveOptions {
    /// Whether nothing needs to declare this service.
    pub(crate) fn tolerates(&self, service: &ServiceRef) -> bool {
        self.tolerate_missing_calls || self.known_missing.contains(service)
    }
}

/// What [`resolve`] found.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    /// The meaning; `None` if a finding is an error or a document is not valid.
    pub intent: Option<Intent>,
    /// Everything found about the set as a whole.
    pub diagnostics: Vec<Diagnostic>,
}

/// Computes the meaning of a whole set of documents. If a key occurs more than once, the later document wins:
/// so stored documents come first and new ones after them. (Duplicates within new sources are found by
/// [`crate::parse`].)
pub fn resolve(documents: &[Document], options: &ResolveOptions) -> Resolved {
    let set = Set::new(documents);
    let mut findings = Vec::new();
    let mut intent = Intent::default();

    for (name, settings) in &set.namespaces {
        if let Some(document) = set.find(Kind::Namespace, "", name)
            && settings.limits.idle_before_request()
        {
            findings.push(idle_before_request(document, &settings.limits));
        }
        let namespace = Namespace {
            name: name.clone(),
            mtls: settings.mtls.value,
            channel: settings.channel.value,
            engine: settings.engine.value,
            timeouts: settings.limits.timeouts(),
            tcp_idle: settings.tcp_idle.value,
        };
        intent.namespaces.insert(name.clone(), namespace);
    }
    findings.extend(set.mistyped_namespaces());
    let mut more = false;
    // Sorted by namespace and name, as the documents are.
    let mut access: Vec<(&str, Option<ServiceRef>, AccessPolicy)> = Vec::new();
    for (key, document) in &set.documents {
        if findings.len() > MAX_FINDINGS {
            more = true;
            if findings.iter().any(Diagnostic::is_error) {
                break;
            }
            // Warnings are not worth more room, but an error may still come.
            findings.truncate(MAX_FINDINGS);
        }
        match document.wire() {
            Some(Wire::Service(wire)) => {
                let service = service(&set, document, wire.spec.as_ref(), options, &mut findings);
                intent.services.insert(service.id.clone(), service);
            }
            Some(Wire::HttpRoute(wire)) => {
                let route = route::http_route(&set, document, &wire.spec, &mut findings);
                intent.http_routes.insert((key.namespace.clone(), key.name.clone()), route);
            }
            Some(Wire::GrpcRoute(wire)) => {
                let route = route::grpc_route(&set, document, &wire.spec, &mut findings);
                intent.grpc_routes.insert((key.namespace.clone(), key.name.clone()), route);
            }
            Some(Wire::TcpRoute(wire)) => {
                let route = route::tcp_route(&set, document, &wire.spec, &mut findings);
                intent.tcp_routes.insert((key.namespace.clone(), key.name.clone()), route);
            }
            Some(Wire::TrafficPolicy(wire)) => {
                traffic::check(&set, document, &wire.spec, &mut findings);
                traffic::check_failover(&set, document, &wire.spec, options, &mut findings);
                traffic::twice(&set, document, &wire.spec, &mut findings);
                let target = wire.spec.target_ref.as_ref().map(|target| traffic::target_id(document, target));
                intent.policies.insert((*key).clone(), target);
            }
            Some(Wire::AccessPolicy(wire)) => {
                let policy = access::access_policy(&set, document, &wire.spec, &mut findings);
                let target = wire.spec.target_ref.as_ref().map(|target| traffic::target_id(document, target));
                access.push((key.namespace.as_str(), target.clone(), policy));
                intent.policies.insert((*key).clone(), target);
            }
            Some(Wire::Namespace(_) | Wire::ReferenceGrant(_)) | None => {}
        }
    }
    one_tcp_route_each(&set, &intent, &mut findings);
    for service in intent.services.values_mut() {
        let holds = |(namespace, target, _): &&(&str, Option<ServiceRef>, AccessPolicy)| match target {
            Some(target) => *target == service.id,
            None => *namespace == service.id.namespace,
        };
        service.access = access.iter().filter(holds).map(|(.., policy)| policy.clone()).collect();
    }
    reach::check(&set, &intent, &access, &mut findings);
    overlap::check(&set, &intent, &mut findings);
    limit(&mut findings, more);
    let valid = set.documents.values().all(|document| document.is_valid());
    let intent = Some(intent).filter(|_| valid && !findings.iter().any(Diagnostic::is_error));
    Resolved { intent, diagnostics: findings }
}

/// A connection has nothing to choose between routes by, so a port has one.
fn one_tcp_route_each(set: &Set<'_>, intent: &Intent, findings: &mut Vec<Diagnostic>) {
    let mut first: BTreeMap<(&ServiceRef, u16), &str> = BTreeMap::new();
    for route in intent.tcp_routes.values() {
        let Some(document) = set.find(Kind::TcpRoute, &route.namespace, &route.name) else { continue };
        for (parent, only) in &route.parents {
            let ports =
                intent.services.get(parent).map(|service| service.ports.as_slice()).unwrap_or_default();
            let ports = ports.iter().filter(|port| port.protocol == Protocol::Tcp);
            for port in ports.filter(|port| only.is_none_or(|only| only == port.port)) {
                let taken = *first.entry((parent, port.port)).or_insert(&route.name);
                if taken != route.name {
                    let message =
                        format!("the port {} of {parent} has the TCPRoute {taken} already", port.port);
                    findings.push(
                        Diagnostic::error(Code::DuplicateValue, document.at("spec/parentRefs"), message)
                            .help("put all destinations in one route"),
                    );
                }
            }
        }
    }
}

/// Brings findings in order and keeps the first of them, errors rather than warnings. `more`: there were others.
/// Warnings refuse nothing, so too many of them are a warning.
fn limit(findings: &mut Vec<Diagnostic>, more: bool) {
    let more = more || findings.len() > MAX_FINDINGS;
    findings.sort_by(|a, b| (a.severity, &a.place).cmp(&(b.severity, &b.place)));
    findings.truncate(MAX_FINDINGS);
    let failed = findings.iter().any(Diagnostic::is_error);
    findings.sort_by(|a, b| a.place.cmp(&b.place));
    if let Some(last) = findings.last().filter(|_| more) {
        let message = "there are more findings; only the first 1,000 are reported";
        let make = if failed { Diagnostic::error } else { Diagnostic::warning };
        let last = last.place.clone();
        findings.push(make(Code::TooLarge, last, message));
    }
}

/// A set of documents by key, with the settings of every namespace that is declared or used.
pub(crate) struct Set<'a> {
    documents: BTreeMap<&'a Key, &'a Document>,
    services: BTreeMap<ServiceRef, &'a Document>,
    namespaces: BTreeMap<String, NamespaceSettings>,
    traffic: ByTarget<'a>,
    /// By the namespace that grants.
    grants: BTreeMap<&'a str, Vec<&'a ReferenceGrantSpec>>,
}

/// What a reference leads to.
pub(crate) enum Found<'a> {
    Nothing,
    /// Declared in a document that has errors of its own.
    Unreadable,
    Service(Option<&'a ServiceSpec>),
}

impl<'a> Set<'a> {
    pub(crate) fn new(documents: &'a [Document]) -> Self {
        let documents: BTreeMap<&Key, &Document> =
            documents.iter().map(|document| (document.key(), document)).collect();
        let mut namespaces = BTreeMap::new();
        let mut services = BTreeMap::new();
        let mut traffic = ByTarget::new();
        let mut grants: BTreeMap<&str, Vec<&ReferenceGrantSpec>> = BTreeMap::new();
        for (key, document) in &documents {
            match document.wire() {
                Some(Wire::TrafficPolicy(wire)) => {
                    let target = wire.spec.target_ref.as_ref().map(|target| target.name.0.as_str());
                    traffic.entry((&key.namespace, target)).or_insert((*document, &wire.spec));
                }
                Some(Wire::ReferenceGrant(wire)) => {
                    grants.entry(&key.namespace).or_default().push(&wire.spec);
                }
                _ => {}
            }
            if key.kind == Kind::Service {
                services.insert(ServiceRef::new(&key.namespace, &key.name), *document);
            }
            match document.wire() {
                Some(Wire::Namespace(wire)) => {
                    namespaces.insert(key.name.clone(), settings::namespace(wire.spec.as_ref()));
                }
                Some(_) => {
                    namespaces.entry(key.namespace.clone()).or_insert_with(|| settings::namespace(None));
                }
                None => {}
            }
        }
        Self { documents, services, namespaces, traffic, grants }
    }

    pub(crate) fn find(&self, kind: Kind, namespace: &str, name: &str) -> Option<&'a Document> {
        let key = Key { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        self.documents.get(&key).copied()
    }

    /// Namespaces need not be declared, so only a name that is nearly a declared one is taken for a mistake. Each is
    /// named once, where it occurs first.
    fn mistyped_namespaces(&self) -> Vec<Diagnostic> {
        let declared = |key: &&&Key| key.kind == Kind::Namespace;
        let declared: BTreeSet<&str> =
            self.documents.keys().filter(declared).map(|key| key.name.as_str()).collect();
        let mut first: BTreeMap<&str, &Document> = BTreeMap::new();
        for (key, document) in self.documents.iter().filter(|(key, _)| key.kind != Kind::Namespace) {
            // A name that is wrong in itself was reported already.
            if document.is_valid() && !declared.contains(key.namespace.as_str()) {
                first.entry(&key.namespace).or_insert(document);
            }
        }
        let mistyped = |(name, document): (&str, &Document)| {
            let near = nearest(name, declared.iter().copied())?;
            let place = document.at("metadata/namespace");
            let message = format!("nothing declares the namespace `{name}`, so it has every default");
            let help = format!("did you mean `{near}`?");
            Some(Diagnostic::warning(Code::UnknownNamespace, place, message).help(help))
        };
        first.into_iter().filter_map(mistyped).collect()
    }

    /// The settings of a namespace; defaults if nothing declares it.
    pub(crate) fn namespace(&self, name: &str) -> NamespaceSettings {
        self.namespaces.get(name).cloned().unwrap_or_else(|| settings::namespace(None))
    }

    /// The traffic policies that hold for a service.
    pub(crate) fn policies(&self, id: &ServiceRef) -> Policies<'a> {
        let get = |name| self.traffic.get(&(id.namespace.as_str(), name)).copied();
        Policies { own: get(Some(id.name.as_str())), namespace: get(None) }
    }

    /// The traffic policy that counts for a service, or for a namespace.
    pub(crate) fn traffic_policy(&self, namespace: &str, service: Option<&str>) -> Option<&'a Document> {
        self.traffic.get(&(namespace, service)).map(|(document, _)| *document)
    }

    /// Whether routes of a kind in `namespace` may lead to a service elsewhere.
    pub(crate) fn grants(&self, kind: Kind, namespace: &str, to: &ServiceRef) -> bool {
        let is_kind = |name: RouteKindName| {
            matches!(
                (name, kind),
                (RouteKindName::Http, Kind::HttpRoute)
                    | (RouteKindName::Grpc, Kind::GrpcRoute)
                    | (RouteKindName::Tcp, Kind::TcpRoute)
            )
        };
        self.grants.get(to.namespace.as_str()).into_iter().flatten().any(|grant| {
            let from = grant.from.iter().any(|from| is_kind(from.kind) && from.namespace.0 == namespace);
            from && grant.to.iter().any(|one| one.name.as_ref().is_none_or(|name| name.0 == to.name))
        })
    }

    pub(crate) fn service(&self, id: &ServiceRef) -> Found<'a> {
        match self.services.get(id).map(|document| document.wire()) {
            None => Found::Nothing,
            Some(Some(Wire::Service(wire))) => Found::Service(wire.spec.as_ref()),
            Some(_) => Found::Unreadable,
        }
    }

    /// What a reference from `namespace` to a service that nothing declares may have meant.
    pub(crate) fn meant(&self, namespace: &str, missing: &ServiceRef, other_namespaces: bool) -> String {
        if other_namespaces {
            let elsewhere = self.services.keys().find(|id| id.name == missing.name);
            if let Some(id) = elsewhere {
                return format!("did you mean `{}`?", written_from(namespace, id));
            }
        }
        let siblings = self.services.keys().filter(|id| id.namespace == missing.namespace);
        match nearest(&missing.name, siblings.map(|id| id.name.as_str())) {
            Some(near) => {
                let id = ServiceRef::new(&missing.namespace, near);
                format!("did you mean `{}`?", written_from(namespace, &id))
            }
            None => format!("declare a Service `{}` in namespace `{}`", missing.name, missing.namespace),
        }
    }
}

/// A reference as it is written in a document of `namespace`.
fn written_from(namespace: &str, id: &ServiceRef) -> String {
    if id.namespace == namespace { id.name.clone() } else { format!("{}.{}", id.name, id.namespace) }
}

fn idle_before_request(document: &Document, limits: &Limits) -> Diagnostic {
    let written = if limits.request.is_declared() { "request" } else { "idle" };
    let place = document.at(&format!("spec/timeouts/{written}"));
    let message = "the idle limit is shorter than the request limit, so it ends requests first";
    Diagnostic::warning(Code::IdleBeforeRequest, place, message)
        .help("make `timeouts.idle` at least as long as `timeouts.request`")
}

fn service(
    set: &Set<'_>,
    document: &Document,
    spec: Option<&ServiceSpec>,
    options: &ResolveOptions,
    findings: &mut Vec<Diagnostic>,
) -> Service {
    let Key { namespace, name, .. } = document.key();
    let settings = settings::service(spec, namespace, &set.namespace(namespace));
    // What a namespace that cannot be read would say is not known.
    let namespace_known = set.find(Kind::Namespace, "", namespace).is_none_or(Document::is_valid);
    if namespace_known && settings.limits.idle_before_request() {
        findings.push(idle_before_request(document, &settings.limits));
    }
    let ports = ports(document, spec, findings);
    check_role(document, spec, settings.role.value, findings);

    let id = ServiceRef::new(namespace, name);
    let mut calls = BTreeMap::new();
    let mut missing_calls = BTreeSet::new();
    let written = spec.and_then(|spec| spec.calls.as_deref()).unwrap_or_default();
    for (index, call) in written.iter().enumerate() {
        let place = document.at(&format!("spec/calls/{index}"));
        let callee = match call.0.split_once('.') {
            Some((name, namespace)) => ServiceRef::new(namespace, name),
            None => ServiceRef::new(namespace, &call.0),
        };
        if let Some(first) = calls.get(&callee) {
            let message = format!("{callee} is listed a second time");
            findings.push(
                Diagnostic::error(Code::DuplicateValue, place, message)
                    .related(document.at(&format!("spec/calls/{first}")), "first here")
                    .help("remove one of the two"),
            );
            continue;
        }
        calls.insert(callee.clone(), index);
        match set.service(&callee) {
            Found::Unreadable => {}
            Found::Nothing => {
                if options.tolerates(&callee) {
                    missing_calls.insert(callee);
                } else {
                    let message = format!("nothing declares the service {callee}");
                    findings.push(
                        Diagnostic::error(Code::UnknownService, place, message)
                            .help(set.meant(namespace, &callee, true)),
                    );
                }
            }
            Found::Service(spec) => {
                if spec.and_then(|spec| spec.ports.as_ref()).is_none_or(Vec::is_empty) {
                    let message = format!("the service {callee} has no ports, so it cannot be called");
                    findings.push(
                        Diagnostic::error(Code::NotCallable, place, message)
                            .help(format!("give {callee} a port, or remove the call")),
                    );
                }
            }
        }
    }
    let (traffic, _) = set.policies(&id).traffic(false);
    Service {
        id,
        role: settings.role.value,
        ports,
        calls: calls.into_keys().filter(|callee| !missing_calls.contains(callee)).collect(),
        missing_calls,
        engine: settings.engine.value,
        timeouts: settings.limits.timeouts(),
        traffic,
        access: Vec::new(),
    }
}

fn ports(document: &Document, spec: Option<&ServiceSpec>, findings: &mut Vec<Diagnostic>) -> Vec<Port> {
    let written = spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let mut names = BTreeMap::new();
    let mut numbers = BTreeMap::new();
    let mut ports = Vec::new();
    for (index, port) in written.iter().enumerate() {
        if let Some(first) = names.get(&port.name.0) {
            let message = format!("a port named `{}` is here a second time", port.name.0);
            let place = document.at(&format!("spec/ports/{index}/name"));
            findings.push(
                Diagnostic::error(Code::DuplicateName, place, message)
                    .related(document.at(&format!("spec/ports/{first}/name")), "first here")
                    .help("give one of them another name"),
            );
        } else {
            names.insert(&port.name.0, index);
        }
        if let Some(first) = numbers.get(&port.port) {
            let message = format!("the port number {} is here a second time", port.port);
            let place = document.at(&format!("spec/ports/{index}/port"));
            findings.push(
                Diagnostic::error(Code::PortClash, place, message)
                    .related(document.at(&format!("spec/ports/{first}/port")), "first here")
                    .help("callers tell ports apart by number; give one of them another"),
            );
        } else {
            numbers.insert(port.port, index);
        }
        ports.push(Port {
            name: port.name.0.clone(),
            port: port.port,
            target_port: port.target_port.unwrap_or(port.port),
            protocol: port.protocol,
            upgrades: upgrades(document, port, index, findings),
        });
    }
    ports
}

/// What connections of a port may be switched to, in small letters as names of protocols are compared.
fn upgrades(
    document: &Document,
    port: &PortSpec,
    index: usize,
    findings: &mut Vec<Diagnostic>,
) -> Vec<String> {
    let written = port.upgrades.as_deref().unwrap_or_default();
    if !written.is_empty() && port.protocol != Protocol::Http {
        let place = document.at(&format!("spec/ports/{index}/upgrades"));
        let message = "connections are switched to other protocols by HTTP/1.1 only";
        let help = match port.protocol {
            Protocol::Tcp => "a port of `tcp` carries any bytes; remove it",
            _ => "remove it, or use `protocol: http`",
        };
        findings.push(Diagnostic::error(Code::ProtocolMismatch, place, message).help(help));
        return Vec::new();
    }
    let mut names = Vec::new();
    for (at, name) in written.iter().enumerate() {
        match written[..at].iter().position(|one| one.0.eq_ignore_ascii_case(&name.0)) {
            None => names.push(name.0.to_ascii_lowercase()),
            Some(first) => {
                let place = |at: usize| document.at(&format!("spec/ports/{index}/upgrades/{at}"));
                let message = format!("`{}` is listed a second time", name.0);
                findings.push(
                    Diagnostic::error(Code::DuplicateValue, place(at), message)
                        .related(place(first), "first here")
                        .help("remove one of them"),
                );
            }
        }
    }
    names
}

/// The role against ports and calls.
fn check_role(document: &Document, spec: Option<&ServiceSpec>, role: Role, findings: &mut Vec<Diagnostic>) {
    let has_ports = spec.and_then(|spec| spec.ports.as_ref()).is_some_and(|ports| !ports.is_empty());
    let has_calls = spec.and_then(|spec| spec.calls.as_ref()).is_some_and(|calls| !calls.is_empty());
    let place = document.at("spec/role");
    match role {
        Role::Client if has_ports => findings.push(
            Diagnostic::error(Code::RoleMismatch, place, "a `client` is not called, and this one has ports")
                .help("remove `ports`, or use `client-server`"),
        ),
        Role::Server | Role::ClientServer if !has_ports => findings.push(
            Diagnostic::error(
                Code::RoleMismatch,
                place,
                "a service that is called needs ports, and there are none",
            )
            .help("add `ports`, or use `client`"),
        ),
        _ => {}
    }
    if role == Role::Server && has_calls {
        let message = "a `server` is only called, and this one calls others";
        findings.push(
            Diagnostic::error(Code::RoleMismatch, document.at("spec/calls"), message)
                .help("remove `calls`, or use `client-server`"),
        );
    }
}
