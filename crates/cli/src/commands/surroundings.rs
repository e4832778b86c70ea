//! What a declared object is connected with, as `describe` shows it beside its settings: the ports of a service and how
//! they are called, the routes around it, and where its calls go when it fails.
//!
//! Holds: computed from all documents by the code the control plane uses. Does not: ask anybody.

use outrider_intent::model::{
    BackendRef, Failover, HeaderEdits, HttpMatch, HttpRoute, HttpRule, Intent, Links, PathChange, PathMatch,
    Port, ServiceRef, TcpRoute, ValueMatch,
};
use serde::Serialize;

use super::get::word;
use crate::args::Kind;
use crate::output::{Style, Table};

/// Most conditions of a rule in its line.
const MAX_MATCHES: usize = 3;

/// What there is around an object; empty for what has none.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Surroundings {
    /// Of a service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ports: Vec<PortView>,
    /// Those attached to a service; of a route, itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<RouteView>,
    /// Names of the routes that send to a service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    backend_of: Vec<String>,
    /// Services that take its calls as far as its endpoints fail, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    fails_over_to: Vec<FailoverView>,
    /// Services whose calls it takes as far as theirs fail.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    takes_calls_of: Vec<String>,
    /// Kind and name of the policies that are about a service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    policies: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct PortView {
    name: String,
    protocol: String,
    /// What callers of every namespace use.
    address: String,
    /// What callers of the same namespace may use too.
    short_address: String,
    /// Where the application listens on loopback.
    target_port: u16,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FailoverView {
    service: String,
    /// Absent: the port of the same name as the called one.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<String>,
    /// It was deleted by force, so it is passed over.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    missing: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct RouteView {
    name: String,
    /// What its ports speak.
    #[serde(skip)]
    family: &'static str,
    parents: Vec<ParentView>,
    rules: Vec<RuleView>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ParentView {
    service: String,
    /// Absent: every port that speaks what the route is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct RuleView {
    /// Alternatives, in words; none is every request.
    matches: Vec<String>,
    /// What happens on the way, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changes: Vec<String>,
    backends: Vec<BackendView>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct BackendView {
    service: String,
    port: u16,
    weight: u32,
}

impl Surroundings {
    /// Of the object of this name.
    pub(super) fn of(intent: &Intent, kind: Kind, namespace: &str, name: &str) -> Self {
        let id = ServiceRef::new(namespace, name);
        match kind {
            Kind::Services => {
                let ports = intent.services.get(&id).map(|service| service.ports.as_slice());
                let attached =
                    |parents: &[(ServiceRef, Option<u16>)]| parents.iter().any(|(one, _)| *one == id);
                let failover = |id: &ServiceRef| {
                    intent.services.get(id).map_or([].as_slice(), |service| &service.traffic.failover)
                };
                let bytes = intent.tcp_routes.values().filter(|route| attached(&route.parents));
                let sends = |route: &Links<'_>| route.targets.iter().any(|(service, _)| **service == id);
                Self {
                    ports: ports.unwrap_or_default().iter().map(|port| port_view(&id, port)).collect(),
                    routes: [("HTTP", &intent.http_routes), ("gRPC", &intent.grpc_routes)]
                        .into_iter()
                        .flat_map(|(family, routes)| routes.values().map(move |route| (family, route)))
                        .filter(|(_, route)| attached(&route.parents))
                        .map(|(family, route)| route_view(family, route))
                        .chain(bytes.map(tcp_view))
                        .collect(),
                    backend_of: intent
                        .routes()
                        .filter(sends)
                        .map(|route| format!("{}/{}", route.key.namespace, route.key.name))
                        .collect(),
                    fails_over_to: failover(&id).iter().map(|one| failover_view(intent, one)).collect(),
                    takes_calls_of: intent
                        .services
                        .keys()
                        .filter(|other| failover(other).iter().any(|one| one.service == id))
                        .map(ToString::to_string)
                        .collect(),
                    policies: intent
                        .policies
                        .iter()
                        .filter(|(key, target)| match target {
                            Some(target) => *target == id,
                            None => key.namespace == id.namespace,
                        })
                        .map(|(key, _)| key.to_string())
                        .collect(),
                }
            }
            Kind::Routes => {
                let found = intent.http_routes.get(&(id.namespace, id.name));
                let found = found.map(|route| route_view("HTTP", route));
                Self { routes: found.into_iter().collect(), ..Self::default() }
            }
            Kind::GrpcRoutes => {
                let found = intent.grpc_routes.get(&(id.namespace, id.name));
                let found = found.map(|route| route_view("gRPC", route));
                Self { routes: found.into_iter().collect(), ..Self::default() }
            }
            Kind::TcpRoutes => {
                let found = intent.tcp_routes.get(&(id.namespace, id.name));
                Self { routes: found.map(tcp_view).into_iter().collect(), ..Self::default() }
            }
            _ => Self::default(),
        }
    }

    /// Titles and their lines, for people. `alone` if the object is the route itself.
    pub(super) fn sections(&self, alone: bool, style: Style) -> Vec<(&'static str, Vec<String>)> {
        let mut sections = Vec::new();
        if alone {
            for route in &self.routes {
                sections.push((
                    "Parents",
                    route.parents.iter().map(|parent| parent_line(route.family, parent)).collect(),
                ));
                sections.push(("Rules", route.rules.iter().map(rule_line).collect()));
            }
            return sections;
        }
        let mut table =
            Table::new(&["PORT", "PROTOCOL", "CALLED AS", "IN ITS NAMESPACE ALSO", "APPLICATION AT"]);
        for port in &self.ports {
            table.row(vec![
                port.name.clone(),
                port.protocol.clone(),
                port.address.clone(),
                port.short_address.clone(),
                format!("127.0.0.1:{}", port.target_port),
            ]);
        }
        if !table.is_empty() {
            sections.push(("Ports", table.lines(style)));
        }
        let attached = self.routes.iter().flat_map(|route| {
            let parents: Vec<_> =
                route.parents.iter().map(|parent| parent_line(route.family, parent)).collect();
            let head = format!("{}  of {}", route.name, parents.join(", "));
            std::iter::once(head).chain(route.rules.iter().map(|rule| format!("  {}", rule_line(rule))))
        });
        sections.push(("Routes attached", attached.collect()));
        sections.push(("Routes that send here", self.backend_of.clone()));
        sections.push(("Fails over to", self.fails_over_to.iter().map(failover_line).collect()));
        sections.push(("Takes calls of, where they fail", self.takes_calls_of.clone()));
        sections.push(("Policies", self.policies.clone()));
        sections.retain(|(_, lines)| !lines.is_empty());
        sections
    }
}

impl Surroundings {
    /// The service that takes its calls first where it fails.
    pub(super) fn next_taker(&self) -> Option<&str> {
        self.fails_over_to.iter().find(|one| !one.missing).map(|one| one.service.as_str())
    }

    /// Nothing but a list of services that take its calls.
    #[cfg(test)]
    pub(super) fn failing_over_to(services: &[&str]) -> Self {
        let view =
            |service: &&str| FailoverView { service: (*service).to_owned(), port: None, missing: false };
        Self { fails_over_to: services.iter().map(view).collect(), ..Self::default() }
    }
}

fn port_view(id: &ServiceRef, port: &Port) -> PortView {
    PortView {
        name: port.name.clone(),
        protocol: word(&port.protocol),
        address: format!("{}.{}:{}", id.name, id.namespace, port.port),
        short_address: format!("{}:{}", id.name, port.port),
        target_port: port.target_port,
    }
}

fn failover_view(intent: &Intent, one: &Failover) -> FailoverView {
    FailoverView {
        service: one.service.to_string(),
        port: one.port.clone(),
        missing: !intent.services.contains_key(&one.service),
    }
}

fn failover_line(one: &FailoverView) -> String {
    let port = one.port.as_ref().map(|port| format!(" port {port}")).unwrap_or_default();
    let missing = if one.missing { ": not declared, so it is passed over" } else { "" };
    format!("{}{port}{missing}", one.service)
}

fn route_view(family: &'static str, route: &HttpRoute) -> RouteView {
    let parent = |(service, port): &(ServiceRef, Option<u16>)| ParentView {
        service: service.to_string(),
        port: *port,
    };
    RouteView {
        name: format!("{}/{}", route.namespace, route.name),
        family,
        parents: route.parents.iter().map(parent).collect(),
        rules: route.rules.iter().map(rule_view).collect(),
    }
}

fn tcp_view(route: &TcpRoute) -> RouteView {
    let parent = |(service, port): &(ServiceRef, Option<u16>)| ParentView {
        service: service.to_string(),
        port: *port,
    };
    let backends = route.backends.iter().map(backend_view).collect();
    RouteView {
        name: format!("{}/{}", route.namespace, route.name),
        family: "TCP",
        parents: route.parents.iter().map(parent).collect(),
        rules: vec![RuleView { matches: Vec::new(), changes: Vec::new(), backends }],
    }
}

fn backend_view(backend: &BackendRef) -> BackendView {
    BackendView { service: backend.service.to_string(), port: backend.port, weight: backend.weight }
}

/// What happens to requests on their way, in words.
fn changes(rule: &HttpRule) -> Vec<String> {
    let path = |change: &PathChange| match change {
        PathChange::Full(path) => format!("path {path}"),
        PathChange::Prefix(prefix) if prefix.is_empty() => "prefix /".to_owned(),
        PathChange::Prefix(prefix) => format!("prefix {prefix}"),
    };
    let mut all = Vec::new();
    if let Some(redirect) = &rule.redirect {
        let mut words = vec![format!("redirected with {}", redirect.status)];
        words.extend(redirect.scheme.iter().map(|scheme| format!("scheme {scheme}")));
        words.extend(redirect.hostname.iter().map(|host| format!("host {host}")));
        words.extend(redirect.port.iter().map(|port| format!("port {port}")));
        words.extend(redirect.path.iter().map(path));
        all.push(words.join(", "));
    }
    if let Some(rewrite) = &rule.rewrite {
        let host = rewrite.hostname.iter().map(|host| format!("host {host}"));
        let words: Vec<String> = host.chain(rewrite.path.iter().map(path)).collect();
        all.push(format!("rewritten to {}", words.join(", ")));
    }
    for mirror in &rule.mirrors {
        let percent = f64::from(mirror.per_million) / 10_000.0;
        all.push(format!("{percent} % copied to {}:{}", mirror.service, mirror.port));
    }
    all.extend(edits("request", &rule.request_headers));
    all.extend(edits("response", &rule.response_headers));
    for (name, limit) in [("request", rule.request_timeout), ("backendRequest", rule.try_timeout)] {
        all.extend(limit.map(|limit| match limit {
            Some(limit) => format!("timeouts.{name} {limit:?}"),
            None => format!("timeouts.{name} none"),
        }));
    }
    all
}

/// `request headers: x-a: 1 set, x-b removed`.
fn edits(of: &str, edits: &HeaderEdits) -> Option<String> {
    let said = |word: &'static str| move |(name, value): &(String, String)| format!("{name}: {value} {word}");
    let set = edits.set.iter().map(said("set"));
    let added = edits.add.iter().map(said("added"));
    let removed = edits.remove.iter().map(|name| format!("{name} removed"));
    let words: Vec<String> = set.chain(added).chain(removed).collect();
    (!words.is_empty()).then(|| format!("{of} headers: {}", words.join(", ")))
}

fn rule_view(rule: &HttpRule) -> RuleView {
    let every = |one: &HttpMatch| {
        one.path == PathMatch::Prefix("/".into())
            && one.method.is_none()
            && one.headers.is_empty()
            && one.query.is_empty()
    };
    let matches = if rule.matches.iter().any(every) {
        Vec::new()
    } else {
        rule.matches.iter().map(condition).collect()
    };
    RuleView { matches, changes: changes(rule), backends: rule.backends.iter().map(backend_view).collect() }
}

/// `GET /a and below with x-user: 7`.
fn condition(one: &HttpMatch) -> String {
    let mut text = one.method.as_ref().map(|method| format!("{method} ")).unwrap_or_default();
    match &one.path {
        PathMatch::Exact(path) => text.push_str(path),
        PathMatch::Prefix(path) if path == "/" => text.push_str("any path"),
        PathMatch::Prefix(path) => text.push_str(&format!("{path} and below")),
        PathMatch::Regex(pattern) => text.push_str(&format!("~{pattern}")),
        PathMatch::Grpc { service, method } => {
            let part = |part: &Option<ValueMatch>, any: &str| {
                part.as_ref().map_or_else(|| any.to_owned(), ToString::to_string)
            };
            text.push_str(&format!("{}/{}", part(service, "any service"), part(method, "any method")));
        }
    }
    let headers = one.headers.iter().map(|(name, value)| format!("{name}: {value}"));
    let query = one.query.iter().map(|(name, value)| format!("?{name}={value}"));
    for (at, condition) in headers.chain(query).enumerate() {
        let word = if at == 0 { "with" } else { "and" };
        text.push_str(&format!(" {word} {condition}"));
    }
    text
}

fn parent_line(family: &str, parent: &ParentView) -> String {
    match parent.port {
        Some(port) => format!("{} port {port}", parent.service),
        None => format!("{} every {family} port", parent.service),
    }
}

fn rule_line(rule: &RuleView) -> String {
    let requests = match rule.matches.as_slice() {
        [] => "every request".to_owned(),
        few if few.len() <= MAX_MATCHES => few.join(" or "),
        many => format!("{} or {} more", many[..MAX_MATCHES].join(" or "), many.len() - MAX_MATCHES),
    };
    let to = match rule.backends.as_slice() {
        [] if rule.changes.iter().any(|change| change.starts_with("redirected")) => rule.changes.join("; "),
        [] => "nowhere: answered with 500".to_owned(),
        [one] if one.weight > 0 => format!("{}:{}", one.service, one.port),
        several => several
            .iter()
            .map(|backend| format!("{}:{} weight {}", backend.service, backend.port, backend.weight))
            .collect::<Vec<_>>()
            .join(", "),
    };
    match rule.changes.as_slice() {
        changes if !changes.is_empty() && !rule.backends.is_empty() => {
            format!("{requests} → {to} ({})", changes.join("; "))
        }
        _ => format!("{requests} → {to}"),
    }
}

#[cfg(test)]
mod tests {
    use outrider_intent as intent;

    use super::*;

    const TEXT: &str = "
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {name: api, namespace: shop}
spec:
  ports:
    - {name: http, port: 80, targetPort: 8080, protocol: http}
    - {name: raw, port: 90, protocol: tcp}
---
apiVersion: outrider.dev/v1alpha1
kind: Service
metadata: {name: api-v2, namespace: shop}
spec: {ports: [{name: http, port: 80, targetPort: 8081, protocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{kind: Service, name: api, port: 80}]
  rules:
    - backendRefs: [{name: api, port: 80, weight: 95}, {name: api-v2, port: 80, weight: 5}]
    - matches:
        - {method: GET, path: {type: Exact, value: /health}}
        - {path: {value: /a}, headers: [{name: X-User, value: '7'}]}
        - {headers: [{name: x-user, value: '8'}]}
        - {path: {value: /b}}
        - {path: {value: /c}}
      backendRefs: [{name: api-v2, port: 80}]
    - matches: [{path: {value: /new}}]
      filters:
        - type: URLRewrite
          urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /old}}
        - type: RequestHeaderModifier
          requestHeaderModifier: {set: [{name: x-a, value: '1'}], add: [{name: x-b, value: '2'}], remove: [x-c]}
        - type: ResponseHeaderModifier
          responseHeaderModifier: {remove: [server]}
      timeouts: {request: 2s, backendRequest: 500ms}
      backendRefs: [{name: api, port: 80}]
    - matches: [{path: {value: /gone}}]
    - matches: [{path: {value: /off}}]
      backendRefs: [{name: api, port: 80, weight: 0}]
---
apiVersion: outrider.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: api-v2, namespace: shop}
spec:
  targetRef: {kind: Service, name: api-v2}
  failover: [{name: gone}, {name: api, port: http}]
";

    fn shown(kind: Kind, name: &str) -> String {
        let parsed = intent::parse(&[intent::Source { name: "a.yaml".into(), text: TEXT.into() }]);
        let options = intent::ResolveOptions { tolerate_missing_calls: true, ..Default::default() };
        let resolved = intent::resolve(&parsed.documents, &options);
        let model = resolved.intent.unwrap_or_else(|| panic!("{:?}", resolved.diagnostics));
        let around = Surroundings::of(&model, kind, "shop", name);
        let mut text = String::new();
        for (title, lines) in around.sections(kind == Kind::Routes, Style::plain()) {
            text.push_str(&format!("{title}\n  {}\n", lines.join("\n  ")));
        }
        text
    }

    #[test]
    fn a_service_shows_how_it_is_called_and_its_routes() {
        insta::assert_snapshot!(shown(Kind::Services, "api"), @r"
        Ports
          PORT  PROTOCOL  CALLED AS    IN ITS NAMESPACE ALSO  APPLICATION AT
          http  http      api.shop:80  api:80                 127.0.0.1:8080
          raw   tcp       api.shop:90  api:90                 127.0.0.1:90
        Routes attached
          shop/split  of shop/api port 80
            every request → shop/api:80 weight 95, shop/api-v2:80 weight 5
            GET /health or /a and below with x-user: 7 or any path with x-user: 8 or 2 more → shop/api-v2:80
            /new and below → shop/api:80 (rewritten to prefix /old; request headers: x-a: 1 set, x-b: 2 added, x-c removed; response headers: server removed; timeouts.request 2s; timeouts.backendRequest 500ms)
            /gone and below → nowhere: answered with 500
            /off and below → shop/api:80 weight 0
        Routes that send here
          shop/split
        Takes calls of, where they fail
          shop/api-v2
        ");
        insta::assert_snapshot!(shown(Kind::Services, "api-v2"), @r"
        Ports
          PORT  PROTOCOL  CALLED AS       IN ITS NAMESPACE ALSO  APPLICATION AT
          http  http      api-v2.shop:80  api-v2:80              127.0.0.1:8081
        Routes that send here
          shop/split
        Fails over to
          shop/gone: not declared, so it is passed over
          shop/api port http
        Policies
          TrafficPolicy shop/api-v2
        ");
        assert_eq!(shown(Kind::Services, "other"), "");
        assert_eq!(shown(Kind::Namespaces, "shop"), "");
    }

    #[test]
    fn a_route_shows_parents_and_rules() {
        insta::assert_snapshot!(shown(Kind::Routes, "split"), @r"
        Parents
          shop/api port 80
        Rules
          every request → shop/api:80 weight 95, shop/api-v2:80 weight 5
          GET /health or /a and below with x-user: 7 or any path with x-user: 8 or 2 more → shop/api-v2:80
          /new and below → shop/api:80 (rewritten to prefix /old; request headers: x-a: 1 set, x-b: 2 added, x-c removed; response headers: server removed; timeouts.request 2s; timeouts.backendRequest 500ms)
          /gone and below → nowhere: answered with 500
          /off and below → shop/api:80 weight 0
        ");
    }
}
