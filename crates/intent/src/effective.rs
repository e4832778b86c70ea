//! Every value an object has in effect, and where it came from.

use serde::{Deserialize, Serialize};

use crate::defaults::{self, Yaml};
use crate::document::{Document, Key, Kind, Wire};
use crate::model::ServiceRef;
use crate::resolve::Set;
use crate::settings::{self, Limits, NamespaceSettings, Origin, Row};
use crate::traffic::Policies;
use crate::wire::{
    BackendRefSpec, FilterSpec, GrpcRouteSpec, HttpRouteSpec, ParentRef, RuleTimeouts, ServiceSpec, TargetRef,
};

/// An effective value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveValue {
    /// Dotted path below `spec`, like `timeouts.request` or `ports[0].targetPort`. Of a service, also what holds
    /// for it in its namespace: `mtls`, `channel`, `tcpIdle`.
    pub path: String,
    /// As it would be written in YAML.
    pub value: String,
    /// `declared`, `namespace shop`, `service shop/checkout` (routes only) or `default`.
    pub origin: String,
    /// For defaults: why this one.
    pub ground: Option<String>,
}

/// Every setting of an object, in the order of the reference. Empty if no valid document has that key.
/// If several have it, the later one counts, as in [`crate::resolve`].
pub fn effective(documents: &[Document], key: &Key) -> Vec<EffectiveValue> {
    let set = Set::new(documents);
    let Some(wire) = set.find(key.kind, &key.namespace, &key.name).and_then(Document::wire) else {
        return Vec::new();
    };
    match wire {
        Wire::Namespace(wire) => namespace(&settings::namespace(wire.spec.as_ref())),
        Wire::Service(wire) => {
            let mut values = service(wire.spec.as_ref(), &key.namespace, &set.namespace(&key.namespace));
            let has_ports = wire.spec.as_ref().and_then(|spec| spec.ports.as_ref());
            if has_ports.is_some_and(|ports| !ports.is_empty()) {
                values.extend(set.policies(&ServiceRef::new(&key.namespace, &key.name)).traffic(false).1);
            }
            values
        }
        Wire::HttpRoute(wire) => http_route(&set, &wire.spec, &key.namespace),
        Wire::GrpcRoute(wire) => grpc_route(&set, &wire.spec, &key.namespace),
        Wire::TcpRoute(wire) => {
            let rules = wire.spec.rules.iter().enumerate();
            rules.flat_map(|(index, rule)| backends(index, Some(&rule.backend_refs))).collect()
        }
        Wire::ReferenceGrant(wire) => {
            let row = |path: &str, text: String| value(path, text, &Origin::Declared);
            vec![row("from", flow(&wire.spec.from)), row("to", flow(&wire.spec.to))]
        }
        Wire::TrafficPolicy(wire) => {
            let Some(document) = set.find(key.kind, &key.namespace, &key.name) else { return Vec::new() };
            let mut values = vec![target(wire.spec.target_ref.as_ref())];
            let alone = Policies { own: Some((document, &wire.spec)), namespace: None };
            values.extend(alone.traffic(true).1);
            values
        }
        Wire::AccessPolicy(wire) => {
            let mut values = vec![target(wire.spec.target_ref.as_ref())];
            values.push(value("action", word(&wire.spec.action), &Origin::Declared));
            let (mode, origin) = match &wire.spec.mode {
                Some(mode) => (word(mode), Origin::Declared),
                None => ("enforce".to_owned(), Origin::Default(defaults::MODE_GROUND)),
            };
            values.push(value("mode", mode, &origin));
            for (index, rule) in wire.spec.rules.iter().enumerate() {
                values.push(value(format!("rules[{index}]"), flow(rule), &Origin::Declared));
            }
            values
        }
    }
}

fn value(path: impl Into<String>, value: impl Into<String>, origin: &Origin) -> EffectiveValue {
    EffectiveValue {
        path: path.into(),
        value: value.into(),
        origin: origin.to_string(),
        ground: origin.ground().map(str::to_owned),
    }
}

fn row((path, yaml, origin): Row<'_>) -> EffectiveValue {
    value(path, yaml.yaml(), origin)
}

fn limits(limits: &Limits) -> [EffectiveValue; 4] {
    let call_idle = limits.call_idle();
    [row(limits.request.row()), row(limits.idle.row()), row(call_idle.row()), row(limits.connect.row())]
}

fn namespace(settings: &NamespaceSettings) -> Vec<EffectiveValue> {
    let mut values = vec![row(settings.mtls.row()), row(settings.channel.row()), row(settings.engine.row())];
    values.extend(limits(&settings.limits));
    values.push(row(settings.tcp_idle.row()));
    values
}

fn service(spec: Option<&ServiceSpec>, name: &str, outer: &NamespaceSettings) -> Vec<EffectiveValue> {
    let settings = settings::service(spec, name, outer);
    let mut values = vec![row(settings.role.row())];
    for (index, port) in spec.and_then(|spec| spec.ports.as_deref()).unwrap_or_default().iter().enumerate() {
        let path = |field: &str| format!("ports[{index}].{field}");
        values.push(value(path("name"), &port.name.0, &Origin::Declared));
        values.push(value(path("port"), port.port.to_string(), &Origin::Declared));
        let (target, origin) = match port.target_port {
            Some(target) => (target, Origin::Declared),
            None => (port.port, Origin::Default(defaults::TARGET_PORT_GROUND)),
        };
        values.push(value(path("targetPort"), target.to_string(), &origin));
        values.push(value(path("protocol"), port.protocol.yaml(), &Origin::Declared));
        if let Some(names) = &port.upgrades {
            let names: Vec<&str> = names.iter().map(|name| name.0.as_str()).collect();
            values.push(value(path("upgrades"), format!("[{}]", names.join(", ")), &Origin::Declared));
        }
    }
    let (calls, origin) = match spec.and_then(|spec| spec.calls.as_deref()) {
        Some(calls) => (calls, Origin::Declared),
        None => (&[][..], Origin::Default(defaults::CALLS_GROUND)),
    };
    let calls: Vec<&str> = calls.iter().map(|call| call.0.as_str()).collect();
    values.push(value("calls", format!("[{}]", calls.join(", ")), &origin));
    values.push(row(settings.engine.row()));
    values.extend(limits(&settings.limits));
    values.extend([row(settings.mtls.row()), row(settings.channel.row()), row(settings.tcp_idle.row())]);
    values
}

fn http_route(set: &Set<'_>, spec: &HttpRouteSpec, namespace: &str) -> Vec<EffectiveValue> {
    let mut values = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        let matches = rule.matches.as_deref().unwrap_or_default();
        values.push(matches_row(index, matches, "[{path: {type: PathPrefix, value: /}}]"));
        values.extend(filters_row(index, rule.filters.as_deref()));
        values.extend(backends(index, rule.backend_refs.as_deref()));
        values.extend(timeouts(set, &spec.parent_refs, namespace, index, rule.timeouts.as_ref()));
    }
    values
}

fn grpc_route(set: &Set<'_>, spec: &GrpcRouteSpec, namespace: &str) -> Vec<EffectiveValue> {
    let mut values = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        values.push(matches_row(index, rule.matches.as_deref().unwrap_or_default(), "[{}]"));
        values.extend(filters_row(index, rule.filters.as_deref()));
        values.extend(backends(index, rule.backend_refs.as_deref()));
        values.extend(timeouts(set, &spec.parent_refs, namespace, index, rule.timeouts.as_ref()));
    }
    values
}

fn target(target: Option<&TargetRef>) -> EffectiveValue {
    match target {
        Some(target) => value("targetRef.name", &target.name.0, &Origin::Declared),
        None => {
            value("targetRef", "every service of the namespace", &Origin::Default(defaults::TARGET_GROUND))
        }
    }
}

fn matches_row<T: Serialize>(index: usize, matches: &[T], every: &str) -> EffectiveValue {
    let path = format!("rules[{index}].matches");
    match matches {
        [] => value(path, every, &Origin::Default(defaults::MATCHES_GROUND)),
        matches => value(path, flow(&matches), &Origin::Declared),
    }
}

fn filters_row(index: usize, filters: Option<&[FilterSpec]>) -> Option<EffectiveValue> {
    filters.map(|filters| value(format!("rules[{index}].filters"), flow(&filters), &Origin::Declared))
}

fn backends(index: usize, refs: Option<&[BackendRefSpec]>) -> Vec<EffectiveValue> {
    let mut values = Vec::new();
    for (position, backend) in refs.unwrap_or_default().iter().enumerate() {
        let path = |field: &str| format!("rules[{index}].backendRefs[{position}].{field}");
        values.push(value(path("name"), &backend.name.0, &Origin::Declared));
        if let Some(namespace) = &backend.namespace {
            values.push(value(path("namespace"), &namespace.0, &Origin::Declared));
        }
        values.push(value(path("port"), backend.port.to_string(), &Origin::Declared));
        let (weight, origin) = match backend.weight {
            Some(weight) => (weight, Origin::Declared),
            None => (defaults::WEIGHT.default, Origin::Default(defaults::WEIGHT.ground)),
        };
        values.push(value(path("weight"), weight.yaml(), &origin));
    }
    values
}

fn timeouts(
    set: &Set<'_>,
    parents: &[ParentRef],
    namespace: &str,
    index: usize,
    written: Option<&RuleTimeouts>,
) -> Vec<EffectiveValue> {
    let path = format!("rules[{index}].timeouts.request");
    let mut values = match written.and_then(|timeouts| timeouts.request.as_ref()) {
        Some(text) => vec![value(path, &text.0, &Origin::Declared)],
        None => parents_request(set, parents, namespace, &path),
    };
    if let Some(text) = written.and_then(|timeouts| timeouts.backend_request.as_ref()) {
        let path = format!("rules[{index}].timeouts.backendRequest");
        values.push(value(path, &text.0, &Origin::Declared));
    }
    values
}

/// The request limit of a rule that has none: that of each parent, once if they agree.
fn parents_request(set: &Set<'_>, parents: &[ParentRef], namespace: &str, path: &str) -> Vec<EffectiveValue> {
    let outer = set.namespace(namespace);
    let mut values: Vec<EffectiveValue> = Vec::new();
    for parent in parents {
        let Some(Wire::Service(wire)) =
            set.find(Kind::Service, namespace, &parent.name.0).and_then(Document::wire)
        else {
            continue;
        };
        let request = settings::service(wire.spec.as_ref(), namespace, &outer).limits.request;
        let origin = match request.origin {
            Origin::Declared => Origin::Service(format!("{namespace}/{}", parent.name.0)),
            origin => origin,
        };
        let found = value(path, request.value.yaml(), &origin);
        if !values.contains(&found) {
            values.push(found);
        }
    }
    values
}

/// As YAML on one line. JSON is that.
fn flow<T: Serialize>(part: &T) -> String {
    serde_json::to_string(part).unwrap_or_default()
}

/// A word as it is written.
fn word<T: Serialize>(value: &T) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}
