//! Routes: the Gateway API's rules that concern several fields or objects.
//!
//! | kind | attaches to ports that speak |
//! |---|---|
//! | HTTPRoute | `http`, `http2` |
//! | GRPCRoute | `grpc` |
//! | TCPRoute | `tcp` |
//!
//! What was declared is what is carried: a backend speaks what the parent's port speaks. A service of another
//! namespace is a backend only if a ReferenceGrant there says so.

use std::collections::{BTreeMap, BTreeSet};

use crate::diagnostic::{Code, Diagnostic};
use crate::document::{Document, Key, Kind};
use crate::formats;
use crate::model::{
    BackendRef, HttpMatch, HttpRoute, HttpRule, PathMatch, Protocol, ServiceRef, TcpRoute, ValueMatch,
};
use crate::resolve::{Found, Set};
use crate::settings;
use crate::wire::{
    BackendRefSpec, GrpcMatchSpec, GrpcRouteSpec, HeaderMatchSpec, HttpRouteSpec, Label, MatchSpec,
    ParentRef, PathKind, PathSpec, PortSpec, RuleSpec, RuleTimeouts, ServiceSpec, TcpRouteSpec,
    ValueMatchKind,
};
use crate::words::listed;

mod filters;

use filters::Filters;

/// Most matches over all rules of a route.
const MAX_MATCHES: usize = 128;

/// The meaning of an HTTP route. Parts with findings are left out.
pub(crate) fn http_route(
    set: &Set<'_>,
    document: &Document,
    spec: &HttpRouteSpec,
    findings: &mut Vec<Diagnostic>,
) -> HttpRoute {
    let Key { namespace, name, .. } = document.key();
    let mut route = Walk::new(set, document, Family::Http, findings);
    let parents = route.parents(&spec.parent_refs);
    let rules: Vec<HttpRule> =
        spec.rules.iter().enumerate().map(|(index, rule)| route.rule(index, rule)).collect();
    route.count_matches(&rules);
    route.find_unreachable(&rules);
    HttpRoute { namespace: namespace.clone(), name: name.clone(), parents, rules }
}

/// The meaning of a gRPC route likewise.
pub(crate) fn grpc_route(
    set: &Set<'_>,
    document: &Document,
    spec: &GrpcRouteSpec,
    findings: &mut Vec<Diagnostic>,
) -> HttpRoute {
    let Key { namespace, name, .. } = document.key();
    let mut route = Walk::new(set, document, Family::Grpc, findings);
    let parents = route.parents(&spec.parent_refs);
    let mut rules = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        let path = format!("spec/rules/{index}");
        let written = rule.matches.as_deref().unwrap_or_default();
        let matches = written
            .iter()
            .enumerate()
            .map(|(index, spec)| route.grpc_match(&format!("{path}/matches/{index}"), spec))
            .collect();
        let filters = route.filters(&path, rule.filters.as_deref(), written.is_empty(), None);
        let backends = route.backends(&path, rule.backend_refs.as_deref());
        route.warn_of_no_backends(&path, &backends);
        rules.push(route.finish(&path, matches, filters, backends, rule.timeouts.as_ref()));
    }
    route.count_matches(&rules);
    route.find_unreachable(&rules);
    HttpRoute { namespace: namespace.clone(), name: name.clone(), parents, rules }
}

/// The meaning of a TCP route likewise.
pub(crate) fn tcp_route(
    set: &Set<'_>,
    document: &Document,
    spec: &TcpRouteSpec,
    findings: &mut Vec<Diagnostic>,
) -> TcpRoute {
    let Key { namespace, name, .. } = document.key();
    let mut route = Walk::new(set, document, Family::Tcp, findings);
    let parents = route.parents(&spec.parent_refs);
    let backends =
        spec.rules.iter().enumerate().flat_map(|(index, rule)| {
            route.backends(&format!("spec/rules/{index}"), Some(&rule.backend_refs))
        });
    let backends: Vec<BackendRef> = backends.collect();
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
        let message = "a connection has nowhere to go: every weight is 0";
        let help = "give one of the backends a weight";
        route.error(Code::InvalidValue, "spec/rules/0/backendRefs", message, help);
    }
    TcpRoute { namespace: namespace.clone(), name: name.clone(), parents, backends }
}

/// What a kind of route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Http,
    Grpc,
    Tcp,
}

impl Family {
    fn takes(self, protocol: Protocol) -> bool {
        match self {
            Self::Http => matches!(protocol, Protocol::Http | Protocol::Http2),
            Self::Grpc => protocol == Protocol::Grpc,
            Self::Tcp => protocol == Protocol::Tcp,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Grpc => "gRPC",
            Self::Tcp => "TCP",
        }
    }

    fn route(self) -> &'static str {
        match self {
            Self::Http => "an HTTP route",
            Self::Grpc => "a gRPC route",
            Self::Tcp => "a TCP route",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::Http => Kind::HttpRoute,
            Self::Grpc => Kind::GrpcRoute,
            Self::Tcp => Kind::TcpRoute,
        }
    }

    /// The ports of a service that it takes, for a message.
    fn ports(self, spec: Option<&ServiceSpec>) -> String {
        let ports = ports(spec).iter().filter(|port| self.takes(port.protocol));
        listed(ports.map(|port| port.port.to_string()))
    }
}

struct Walk<'a> {
    set: &'a Set<'a>,
    document: &'a Document,
    namespace: &'a str,
    family: Family,
    /// What the parents' ports speak.
    spoken: BTreeSet<Protocol>,
    findings: &'a mut Vec<Diagnostic>,
}

impl<'a> Walk<'a> {
    fn new(
        set: &'a Set<'a>,
        document: &'a Document,
        family: Family,
        findings: &'a mut Vec<Diagnostic>,
    ) -> Self {
        let namespace = &document.key().namespace;
        Self { set, document, namespace, family, spoken: BTreeSet::new(), findings }
    }

    fn error(&mut self, code: Code, path: &str, message: impl Into<String>, help: impl Into<String>) {
        self.findings.push(Diagnostic::error(code, self.document.at(path), message).help(help));
    }

    fn repeated(&mut self, path: &str, first: &str, message: impl Into<String>) {
        let finding = Diagnostic::error(Code::DuplicateValue, self.document.at(path), message)
            .related(self.document.at(first), "first here")
            .help("remove one of the two");
        self.findings.push(finding);
    }

    /// The service a reference leads to, or a finding. `None` in the result: it has errors of its own.
    fn service(&mut self, path: &str, id: ServiceRef) -> Option<Target<'a>> {
        match self.set.service(&id) {
            Found::Nothing => {
                let help = self.set.meant(self.namespace, &id, false);
                let message = format!("nothing declares the service {id}");
                self.error(Code::UnknownService, &format!("{path}/name"), message, help);
                None
            }
            Found::Unreadable => None,
            Found::Service(spec) => Some(Target { id, spec }),
        }
    }

    /// A service that gets traffic, and the port of it.
    fn target(
        &mut self,
        path: &str,
        namespace: Option<&Label>,
        name: &str,
        port: u16,
    ) -> Option<(ServiceRef, u16)> {
        let namespace = namespace.map_or(self.namespace, |label| label.0.as_str());
        let Target { id, spec } = self.service(path, ServiceRef::new(namespace, name))?;
        if namespace != self.namespace && !self.set.grants(self.family.kind(), self.namespace, &id) {
            let message = format!("nothing in the namespace {namespace} lets this route send to {id}");
            let help = format!(
                "declare a ReferenceGrant in {namespace} from {} of {} to this service",
                self.family.kind(),
                self.namespace
            );
            self.error(Code::NotGranted, &format!("{path}/namespace"), message, help);
            return None;
        }
        let found = self.port(&format!("{path}/port"), &id, spec, port)?;
        let spoken = self.spoken.iter().find(|spoken| **spoken != found.protocol);
        if let Some(spoken) = spoken.copied() {
            let word = |protocol: Protocol| crate::defaults::Yaml::yaml(&protocol);
            let (theirs, ours) = (word(found.protocol), word(spoken));
            let message =
                format!("the port {port} of {id} speaks `{theirs}`, and the parent's port `{ours}`");
            let help =
                "nothing is translated: send to a port that speaks the same, or name one port of the parent";
            self.error(Code::ProtocolMismatch, &format!("{path}/port"), message, help);
            return None;
        }
        Some((id, port))
    }

    fn parents(&mut self, refs: &[ParentRef]) -> Vec<(ServiceRef, Option<u16>)> {
        let mut parents = Vec::new();
        let mut seen = BTreeMap::new();
        for (index, parent) in refs.iter().enumerate() {
            let path = format!("spec/parentRefs/{index}");
            if parent.namespace.as_ref().is_some_and(|label| label.0 != self.namespace) {
                let message = "a service of another namespace is not supported yet";
                let help = "a route applies to the callers of a service of its own namespace";
                self.error(Code::NotSupportedYet, &format!("{path}/namespace"), message, help);
                continue;
            }
            let id = ServiceRef::new(self.namespace, &parent.name.0);
            let Some(Target { id, spec }) = self.service(&path, id) else {
                continue;
            };
            let found = match self.parent_port(&path, parent, &id, spec) {
                Some(port) => (id, port),
                None => continue,
            };
            if let Some(first) = seen.get(&found) {
                let first = format!("spec/parentRefs/{first}/name");
                self.repeated(&format!("{path}/name"), &first, "this parent is listed a second time");
            } else {
                seen.insert(found.clone(), index);
                parents.push(found);
            }
        }
        parents
    }

    /// The port a parent reference means: outside `None` after a finding, inside `None` for every one that fits.
    fn parent_port(
        &mut self,
        path: &str,
        parent: &ParentRef,
        id: &ServiceRef,
        spec: Option<&ServiceSpec>,
    ) -> Option<Option<u16>> {
        let (ports, family) = (ports(spec), self.family);
        let by_name = match &parent.section_name {
            None => None,
            Some(name) => match ports.iter().find(|port| port.name == *name) {
                Some(port) => Some(port),
                None => {
                    let message = format!("the service {id} has no port named `{}`", name.0);
                    let help = format!("its {} ports are {}", family.word(), family.ports(spec));
                    self.error(Code::UnknownPort, &format!("{path}/sectionName"), message, help);
                    return None;
                }
            },
        };
        let by_number = match parent.port {
            None => None,
            Some(number) => Some(self.port(&format!("{path}/port"), id, spec, number)?),
        };
        if let (Some(named), Some(numbered)) = (by_name, by_number)
            && named.port != numbered.port
        {
            let message = format!("the port `{}` of {id} has the number {}", named.name.0, named.port);
            self.error(Code::UnknownPort, &format!("{path}/port"), message, "leave out one of the two");
            return None;
        }
        if let Some(port) = by_name.or(by_number) {
            // For a port given by number this has been checked.
            if !family.takes(port.protocol) {
                let message = format!("the port `{}` of {id} does not speak {}", port.name.0, family.word());
                let help = format!("its {} ports are {}", family.word(), family.ports(spec));
                self.error(Code::ProtocolMismatch, &format!("{path}/sectionName"), message, help);
                return None;
            }
            self.spoken.insert(port.protocol);
            return Some(Some(port.port));
        }
        let fitting = ports.iter().map(|port| port.protocol).filter(|protocol| family.takes(*protocol));
        let fitting: BTreeSet<Protocol> = fitting.collect();
        if fitting.is_empty() {
            let message = format!("the service {id} has no {} port", family.word());
            let help = format!("{} needs a parent that is called over {}", family.route(), family.word());
            self.error(Code::ProtocolMismatch, &format!("{path}/name"), message, help);
            return None;
        }
        self.spoken.extend(fitting);
        Some(None)
    }

    /// The port of this number, or a finding.
    fn port<'s>(
        &mut self,
        path: &str,
        id: &ServiceRef,
        spec: Option<&'s ServiceSpec>,
        number: u16,
    ) -> Option<&'s PortSpec> {
        let (family, word) = (self.family, self.family.word());
        let help = || match family.ports(spec).as_str() {
            "none" => format!("it has no {word} port"),
            ports => format!("its {word} ports are {ports}"),
        };
        match ports(spec).iter().find(|port| port.port == number) {
            None => {
                let message = format!("the service {id} has no port {number}");
                self.error(Code::UnknownPort, path, message, help());
                None
            }
            Some(port) if !family.takes(port.protocol) => {
                let message = format!("the port {number} of {id} does not speak {word}");
                self.error(Code::ProtocolMismatch, path, message, help());
                None
            }
            Some(port) => Some(port),
        }
    }

    fn rule(&mut self, index: usize, rule: &RuleSpec) -> HttpRule {
        let path = format!("spec/rules/{index}");
        let written = rule.matches.as_deref().unwrap_or_default();
        let matches: Vec<HttpMatch> = written
            .iter()
            .enumerate()
            .map(|(index, spec)| self.one_match(&format!("{path}/matches/{index}"), spec))
            .collect();
        // What a prefix can be replaced in.
        let prefix = match matches.as_slice() {
            [only] => matches!(only.path, PathMatch::Prefix(_)),
            several => several.is_empty(),
        };
        let backend_refs = rule.backend_refs.as_deref();
        let filters = self.filters(&path, rule.filters.as_deref(), prefix, backend_refs);
        let backends = self.backends(&path, backend_refs);
        self.warn_of_no_backends(&path, &backends);
        self.finish(&path, matches, filters, backends, rule.timeouts.as_ref())
    }

    fn finish(
        &mut self,
        path: &str,
        mut matches: Vec<HttpMatch>,
        filters: Filters,
        backends: Vec<BackendRef>,
        timeouts: Option<&RuleTimeouts>,
    ) -> HttpRule {
        if matches.is_empty() {
            matches.push(HttpMatch {
                path: PathMatch::Prefix("/".to_owned()),
                method: None,
                headers: Vec::new(),
                query: Vec::new(),
            });
        }
        let limit = |of: fn(&RuleTimeouts) -> Option<&str>| settings::written(timeouts.and_then(of));
        let request_timeout = limit(|all| all.request.as_ref().map(|text| text.0.as_str()));
        let try_timeout = limit(|all| all.backend_request.as_ref().map(|text| text.0.as_str()));
        if let (Some(Some(whole)), Some(one)) = (request_timeout, try_timeout)
            && one.is_none_or(|one| one > whole)
        {
            let message = "the limit of one try is longer than the limit of the request";
            let help = "make `backendRequest` at most as long as `request`";
            self.error(Code::OutOfBounds, &format!("{path}/timeouts/backendRequest"), message, help);
        }
        HttpRule {
            matches,
            request_headers: filters.request_headers,
            response_headers: filters.response_headers,
            redirect: filters.redirect,
            rewrite: filters.rewrite,
            mirrors: filters.mirrors,
            backends,
            request_timeout,
            try_timeout,
        }
    }

    fn one_match(&mut self, path: &str, spec: &MatchSpec) -> HttpMatch {
        let mut conditions = Conditions { document: self.document, findings: self.findings };
        HttpMatch {
            path: Conditions::path(spec.path.as_ref()),
            method: spec.method.map(|method| method.as_str().to_owned()),
            headers: conditions.headers(&format!("{path}/headers"), spec.headers.as_deref()),
            query: conditions.query(&format!("{path}/queryParams"), spec),
        }
    }

    fn grpc_match(&mut self, path: &str, spec: &GrpcMatchSpec) -> HttpMatch {
        let mut conditions = Conditions { document: self.document, findings: self.findings };
        let headers = conditions.headers(&format!("{path}/headers"), spec.headers.as_deref());
        let matched = match &spec.method {
            None => PathMatch::Prefix("/".to_owned()),
            Some(method) => {
                let kind = method.kind.unwrap_or_default();
                let mut part = |field: &str, text: Option<&str>, dots: bool| {
                    let text = text?;
                    let path = format!("{path}/method/{field}");
                    if kind == ValueMatchKind::Exact && !is_grpc_name(text, dots) {
                        let message = format!("`{}` is no name of gRPC", crate::words::shown(text));
                        let help =
                            "use letters, digits and `_`, parts of a service's name with `.` between them";
                        conditions.error(Code::InvalidName, &path, message, help);
                    }
                    Some(conditions.value(&path, Some(kind), text))
                };
                let service = part("service", method.service.as_ref().map(|name| name.0.as_str()), true);
                let name = part("method", method.method.as_ref().map(|name| name.0.as_str()), false);
                if service.is_none() && name.is_none() {
                    let message = "a condition on the method names neither `service` nor `method`";
                    let help = "add one of the two, or leave `method` out";
                    conditions.error(Code::MissingField, &format!("{path}/method"), message, help);
                }
                PathMatch::Grpc { service, method: name }
            }
        };
        HttpMatch { path: matched, method: None, headers, query: Vec::new() }
    }

    fn backends(&mut self, rule: &str, refs: Option<&[BackendRefSpec]>) -> Vec<BackendRef> {
        let mut backends = Vec::new();
        for (index, backend) in refs.unwrap_or_default().iter().enumerate() {
            let path = format!("{rule}/backendRefs/{index}");
            let namespace = backend.namespace.as_ref();
            if let Some((service, port)) = self.target(&path, namespace, &backend.name.0, backend.port) {
                let weight = backend.weight.unwrap_or(crate::defaults::WEIGHT.default);
                backends.push(BackendRef { service, port, weight });
            }
        }
        backends
    }

    /// A rule that sends nothing anywhere is possible, and seldom meant.
    fn warn_of_no_backends(&mut self, rule: &str, backends: &[BackendRef]) {
        if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
            let place = self.document.at(&format!("{rule}/backendRefs"));
            let message =
                "no call of this rule goes anywhere, because the weights of its backends add up to 0";
            let help =
                "callers are refused with `no_backends`; give one of them a weight, or leave the rule out";
            self.findings.push(Diagnostic::warning(Code::NoBackends, place, message).help(help));
        }
    }

    fn count_matches(&mut self, rules: &[HttpRule]) {
        let count: usize = rules.iter().map(|rule| rule.matches.len()).sum();
        if count > MAX_MATCHES {
            let message =
                format!("the route has {count} matches; {MAX_MATCHES} over all rules are the limit");
            self.error(Code::OutOfBounds, "spec/rules", message, "split it into several routes");
        }
    }

    /// Matches that an equal one precedes.
    fn find_unreachable(&mut self, rules: &[HttpRule]) {
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        for (rule_index, rule) in rules.iter().enumerate() {
            for (index, condition) in rule.matches.iter().enumerate() {
                let same = condition.identity();
                let path = format!("spec/rules/{rule_index}/matches/{index}");
                if let Some(first) = seen.get(&same) {
                    let finding = Diagnostic::warning(
                        Code::UnreachableMatch,
                        self.document.at(&path),
                        "this match is never reached, because an earlier one is the same",
                    )
                    .related(self.document.at(first), "the same match")
                    .help("remove it, or make it more specific");
                    self.findings.push(finding);
                } else {
                    seen.insert(same, path);
                }
            }
        }
    }
}

/// A service that a reference leads to.
struct Target<'a> {
    id: ServiceRef,
    spec: Option<&'a ServiceSpec>,
}

fn ports(spec: Option<&ServiceSpec>) -> &[PortSpec] {
    spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default()
}

/// Whether a text is a name of a gRPC service (`dots`) or method.
fn is_grpc_name(text: &str, dots: bool) -> bool {
    let part = |part: &str| {
        let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
        part.bytes().next().is_some_and(letter)
            && part.bytes().all(|byte| letter(byte) || byte.is_ascii_digit())
    };
    if dots { text.trim_start_matches('.').split('.').all(part) } else { part(text) }
}

/// Reads conditions on requests, wherever they are written.
pub(crate) struct Conditions<'a> {
    pub(crate) document: &'a Document,
    pub(crate) findings: &'a mut Vec<Diagnostic>,
}

impl Conditions<'_> {
    fn error(&mut self, code: Code, path: &str, message: impl Into<String>, help: impl Into<String>) {
        self.findings.push(Diagnostic::error(code, self.document.at(path), message).help(help));
    }

    fn check(&mut self, path: &str, text: &str, checked: Result<(), formats::Refusal>) {
        if let Err(refusal) = checked {
            let message = format!("`{}` {}", crate::words::shown(text), refusal.message);
            let mut finding = Diagnostic::error(refusal.code, self.document.at(path), message);
            finding.help = refusal.help;
            self.findings.push(finding);
        }
    }

    pub(crate) fn path(spec: Option<&PathSpec>) -> PathMatch {
        let value = spec.and_then(|spec| spec.value.as_ref()).map_or("/", |value| value.0.as_str());
        // What it says was checked where it was read.
        match spec.and_then(|spec| spec.kind).unwrap_or(PathKind::PathPrefix) {
            PathKind::RegularExpression => PathMatch::Regex(value.to_owned()),
            PathKind::Exact => PathMatch::Exact(value.to_owned()),
            // `/a/` and `/a` are the same prefix, since whole elements are compared.
            PathKind::PathPrefix => match value.trim_end_matches('/') {
                "" => PathMatch::Prefix("/".to_owned()),
                prefix => PathMatch::Prefix(prefix.to_owned()),
            },
        }
    }

    fn value(&mut self, path: &str, kind: Option<ValueMatchKind>, text: &str) -> ValueMatch {
        match kind.unwrap_or_default() {
            ValueMatchKind::Exact => ValueMatch::Exact(text.to_owned()),
            ValueMatchKind::RegularExpression => {
                self.check(path, text, formats::regex(text));
                ValueMatch::Regex(text.to_owned())
            }
        }
    }

    fn twice(&mut self, path: &str, index: usize, first: usize, message: String) {
        let finding = Diagnostic::error(
            Code::DuplicateValue,
            self.document.at(&format!("{path}/{index}/name")),
            message,
        )
        .related(self.document.at(&format!("{path}/{first}/name")), "first here")
        .help("remove one of the two");
        self.findings.push(finding);
    }

    pub(crate) fn headers(
        &mut self,
        path: &str,
        specs: Option<&[HeaderMatchSpec]>,
    ) -> Vec<(String, ValueMatch)> {
        let mut headers: Vec<(String, ValueMatch)> = Vec::new();
        for (index, header) in specs.unwrap_or_default().iter().enumerate() {
            let name = header.name.0.to_ascii_lowercase();
            if let Some(first) = headers.iter().position(|(known, _)| *known == name) {
                let message = format!("a condition on the header `{name}` is here a second time");
                self.twice(path, index, first, message);
            }
            let value = self.value(&format!("{path}/{index}/value"), header.kind, &header.value.0);
            headers.push((name, value));
        }
        headers
    }

    fn query(&mut self, path: &str, spec: &MatchSpec) -> Vec<(String, ValueMatch)> {
        let mut all: Vec<(String, ValueMatch)> = Vec::new();
        for (index, parameter) in spec.query_params.as_deref().unwrap_or_default().iter().enumerate() {
            let name = parameter.name.0.clone();
            if let Some(first) = all.iter().position(|(known, _)| *known == name) {
                let message = format!("a condition on the parameter `{name}` is here a second time");
                self.twice(path, index, first, message);
            }
            let value = self.value(&format!("{path}/{index}/value"), parameter.kind, &parameter.value.0);
            all.push((name, value));
        }
        all
    }
}
