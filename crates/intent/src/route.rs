//! HTTP routes: the Gateway API's rules that concern several fields or objects.

use std::collections::{BTreeMap, BTreeSet};

use crate::diagnostic::{Code, Diagnostic};
use crate::document::{Document, Key};
use crate::model::{
    BackendRef, HeaderEdits, HttpMatch, HttpRoute, HttpRule, PathMatch, Protocol, ServiceRef,
};
use crate::resolve::{Found, Set, http_ports};
use crate::settings;
use crate::wire::{
    FilterKind, FilterSpec, HeaderModifier, HeaderSpec, HttpRouteSpec, MatchSpec, ParentRef, PathKind,
    PortSpec, RuleSpec, ServiceSpec,
};

/// Most matches over all rules of a route.
const MAX_MATCHES: usize = 128;

/// Headers that belong to the connection, to the framing of the message or to the proxy: changing them would change
/// where a message ends, which host it is for, or who vouches for its caller. Underscores count as hyphens, because
/// applications that see fields as variables cannot tell them apart; the native proxy refuses such edits.
const RESERVED_HEADERS: [&str; 11] = [
    "host",
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
    "x-outrider-reason",
];

/// The meaning of a route. Parts with findings are left out.
pub(crate) fn http_route(
    set: &Set<'_>,
    document: &Document,
    spec: &HttpRouteSpec,
    findings: &mut Vec<Diagnostic>,
) -> HttpRoute {
    let Key { namespace, name, .. } = document.key();
    let mut route = Walk { set, document, namespace, findings };
    let parents = route.parents(&spec.parent_refs);
    let rules: Vec<HttpRule> =
        spec.rules.iter().enumerate().map(|(index, rule)| route.rule(index, rule)).collect();
    route.count_matches(&rules);
    route.find_unreachable(&rules);
    HttpRoute { namespace: namespace.clone(), name: name.clone(), parents, rules }
}

struct Walk<'a> {
    set: &'a Set<'a>,
    document: &'a Document,
    namespace: &'a str,
    findings: &'a mut Vec<Diagnostic>,
}

impl<'a> Walk<'a> {
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
    fn service(&mut self, path: &str, namespace: Option<&str>, name: &str, why: &str) -> Option<Target<'a>> {
        if namespace.is_some_and(|namespace| namespace != self.namespace) {
            let message = "a service of another namespace is not supported yet";
            self.error(Code::NotSupportedYet, &format!("{path}/namespace"), message, why);
            return None;
        }
        let id = ServiceRef::new(self.namespace, name);
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

    fn parents(&mut self, refs: &[ParentRef]) -> Vec<(ServiceRef, Option<u16>)> {
        let mut parents = Vec::new();
        let mut seen = BTreeMap::new();
        for (index, parent) in refs.iter().enumerate() {
            let path = format!("spec/parentRefs/{index}");
            let namespace = parent.namespace.as_ref().map(|label| label.0.as_str());
            let why = "a route applies to the callers of a service of its own namespace";
            let Some(Target { id, spec }) = self.service(&path, namespace, &parent.name.0, why) else {
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

    /// The port a parent reference means: outside `None` after a finding, inside `None` for every HTTP port.
    fn parent_port(
        &mut self,
        path: &str,
        parent: &ParentRef,
        id: &ServiceRef,
        spec: Option<&ServiceSpec>,
    ) -> Option<Option<u16>> {
        let ports = ports(spec);
        let by_name = match &parent.section_name {
            None => None,
            Some(name) => match ports.iter().find(|port| port.name == *name) {
                Some(port) => Some(port),
                None => {
                    let message = format!("the service {id} has no port named `{}`", name.0);
                    let help = format!("its HTTP ports are {}", http_ports(spec));
                    self.error(Code::UnknownPort, &format!("{path}/sectionName"), message, help);
                    return None;
                }
            },
        };
        let by_number = match parent.port {
            None => None,
            Some(number) => Some(self.http_port(&format!("{path}/port"), id, spec, number)?),
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
            if port.protocol != Protocol::Http {
                let message = format!("the port `{}` of {id} does not speak HTTP", port.name.0);
                let help = format!("its HTTP ports are {}", http_ports(spec));
                self.error(Code::ProtocolMismatch, &format!("{path}/sectionName"), message, help);
                return None;
            }
            return Some(Some(port.port));
        }
        if !ports.iter().any(|port| port.protocol == Protocol::Http) {
            let message = format!("the service {id} has no HTTP port");
            let help = "an HTTP route needs a parent that is called over HTTP";
            self.error(Code::ProtocolMismatch, &format!("{path}/name"), message, help);
            return None;
        }
        Some(None)
    }

    /// The HTTP port of this number, or a finding.
    fn http_port<'s>(
        &mut self,
        path: &str,
        id: &ServiceRef,
        spec: Option<&'s ServiceSpec>,
        number: u16,
    ) -> Option<&'s PortSpec> {
        let help = || match http_ports(spec).as_str() {
            "none" => "it has no HTTP port".to_owned(),
            ports => format!("its HTTP ports are {ports}"),
        };
        match ports(spec).iter().find(|port| port.port == number) {
            None => {
                let message = format!("the service {id} has no port {number}");
                self.error(Code::UnknownPort, path, message, help());
                None
            }
            Some(port) if port.protocol != Protocol::Http => {
                let message = format!("the port {number} of {id} does not speak HTTP");
                self.error(Code::ProtocolMismatch, path, message, help());
                None
            }
            Some(port) => Some(port),
        }
    }

    fn rule(&mut self, index: usize, rule: &RuleSpec) -> HttpRule {
        let path = format!("spec/rules/{index}");
        let written = rule.matches.as_deref().unwrap_or_default();
        let mut matches: Vec<HttpMatch> = written
            .iter()
            .enumerate()
            .map(|(index, spec)| self.one_match(&format!("{path}/matches/{index}"), spec))
            .collect();
        if matches.is_empty() {
            matches.push(HttpMatch {
                path: PathMatch::Prefix("/".to_owned()),
                method: None,
                headers: Vec::new(),
            });
        }
        let filters = rule.filters.as_deref().unwrap_or_default();
        let (request_headers, response_headers) = self.filters(&path, filters);
        let timeout = rule.timeouts.as_ref().and_then(|timeouts| timeouts.request.as_ref());
        HttpRule {
            matches,
            request_headers,
            response_headers,
            backends: self.backends(&path, rule),
            request_timeout: settings::written(timeout.map(|text| text.0.as_str())),
        }
    }

    fn one_match(&mut self, path: &str, spec: &MatchSpec) -> HttpMatch {
        let written = spec.path.as_ref();
        let value = written.and_then(|path| path.value.as_ref()).map_or("/", |value| value.0.as_str());
        let kind = written.and_then(|path| path.kind).unwrap_or(PathKind::PathPrefix);
        let mut headers: Vec<(String, String)> = Vec::new();
        for (index, header) in spec.headers.as_deref().unwrap_or_default().iter().enumerate() {
            let name = header.name.0.to_ascii_lowercase();
            if let Some(first) = headers.iter().position(|(known, _)| *known == name) {
                self.repeated(
                    &format!("{path}/headers/{index}/name"),
                    &format!("{path}/headers/{first}/name"),
                    format!("a condition on the header `{name}` is here a second time"),
                );
            }
            headers.push((name, header.value.0.clone()));
        }
        HttpMatch {
            path: match kind {
                PathKind::Exact => PathMatch::Exact(value.to_owned()),
                // `/a/` and `/a` are the same prefix, since whole elements are compared.
                PathKind::PathPrefix => match value.trim_end_matches('/') {
                    "" => PathMatch::Prefix("/".to_owned()),
                    prefix => PathMatch::Prefix(prefix.to_owned()),
                },
            },
            method: spec.method.map(|method| method.as_str().to_owned()),
            headers,
        }
    }

    fn filters(&mut self, rule: &str, filters: &[FilterSpec]) -> (HeaderEdits, HeaderEdits) {
        let mut request: Option<(usize, HeaderEdits)> = None;
        let mut response: Option<(usize, HeaderEdits)> = None;
        for (index, filter) in filters.iter().enumerate() {
            let path = format!("{rule}/filters/{index}");
            let (slot, own, own_name, other, other_name) = match filter.kind {
                FilterKind::RequestHeaderModifier => (
                    &mut request,
                    &filter.request_header_modifier,
                    "requestHeaderModifier",
                    &filter.response_header_modifier,
                    "responseHeaderModifier",
                ),
                FilterKind::ResponseHeaderModifier => (
                    &mut response,
                    &filter.response_header_modifier,
                    "responseHeaderModifier",
                    &filter.request_header_modifier,
                    "requestHeaderModifier",
                ),
            };
            if other.is_some() {
                let message = format!("`{other_name}` does not belong to a filter of this type");
                let help = "write one filter for each type";
                self.error(Code::InvalidValue, &format!("{path}/{other_name}"), message, help);
            }
            let Some(modifier) = own else {
                let message = format!("the filter lacks the field `{own_name}`");
                let help = format!("add `{own_name}`");
                self.error(Code::MissingField, &format!("{path}/type"), message, help);
                continue;
            };
            if let Some((first, _)) = slot {
                let first = format!("{rule}/filters/{first}/type");
                let message = "a filter of this type is here a second time in the rule";
                self.repeated(&format!("{path}/type"), &first, message);
                continue;
            }
            *slot = Some((index, self.edits(&format!("{path}/{own_name}"), modifier)));
        }
        let edits = |slot: Option<(usize, HeaderEdits)>| slot.map(|(_, edits)| edits).unwrap_or_default();
        (edits(request), edits(response))
    }

    fn edits(&mut self, path: &str, modifier: &HeaderModifier) -> HeaderEdits {
        let mut list = |part: &str, headers: Option<&[HeaderSpec]>| {
            let mut known: Vec<(String, String)> = Vec::new();
            for (index, header) in headers.unwrap_or_default().iter().enumerate() {
                let name = header.name.0.to_ascii_lowercase();
                self.editable(&format!("{path}/{part}/{index}/name"), &name);
                if let Some(first) = known.iter().position(|(known, _)| *known == name) {
                    self.repeated(
                        &format!("{path}/{part}/{index}/name"),
                        &format!("{path}/{part}/{first}/name"),
                        format!("the header `{name}` is here a second time"),
                    );
                }
                known.push((name, header.value.0.clone()));
            }
            known
        };
        let set = list("set", modifier.set.as_deref());
        let add = list("add", modifier.add.as_deref());
        let mut remove: Vec<String> = Vec::new();
        for (index, header) in modifier.remove.as_deref().unwrap_or_default().iter().enumerate() {
            let name = header.0.to_ascii_lowercase();
            let here = format!("{path}/remove/{index}");
            self.editable(&here, &name);
            if let Some(first) = remove.iter().position(|known| *known == name) {
                let first = format!("{path}/remove/{first}");
                self.repeated(&here, &first, format!("the header `{name}` is here a second time"));
            }
            remove.push(name);
        }
        HeaderEdits { set, add, remove }
    }

    fn editable(&mut self, path: &str, name: &str) {
        if RESERVED_HEADERS.contains(&&*name.replace('_', "-")) {
            let message = format!("the header `{name}` cannot be changed by a route");
            let help = "it belongs to the connection, to the message's framing or to the proxy; remove it";
            self.error(Code::InvalidValue, path, message, help);
        }
    }

    fn backends(&mut self, rule: &str, spec: &RuleSpec) -> Vec<BackendRef> {
        let mut backends = Vec::new();
        for (index, backend) in spec.backend_refs.as_deref().unwrap_or_default().iter().enumerate() {
            let path = format!("{rule}/backendRefs/{index}");
            let namespace = backend.namespace.as_ref().map(|label| label.0.as_str());
            let why = "it would need a ReferenceGrant; use a service of the route's own namespace";
            let Some(Target { id, spec }) = self.service(&path, namespace, &backend.name.0, why) else {
                continue;
            };
            if self.http_port(&format!("{path}/port"), &id, spec, backend.port).is_some() {
                let weight = backend.weight.unwrap_or(crate::defaults::WEIGHT.default);
                backends.push(BackendRef { service: id, port: backend.port, weight });
            }
        }
        backends
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
                let headers: BTreeSet<_> = condition.headers.iter().collect();
                let same = format!("{:?} {:?} {headers:?}", condition.path, condition.method);
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
