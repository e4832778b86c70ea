//! HTTPRoutes of one port → one route configuration, in the Gateway API's order of precedence.

use std::cmp::Reverse;

use outrider_intent::model::{
    BackendRef, HeaderEdits, HttpMatch, HttpRoute, HttpRule, PathMatch, Port, Service, ServiceRef,
};
use outrider_xds_types::names;
use outrider_xds_types::pb::envoy::config::core::v3 as core;
use outrider_xds_types::pb::envoy::config::route::v3 as route;

use crate::Note;
use crate::envoy::{limit, uint};
use crate::http::header;
use crate::tls::exactly;
use crate::view::View;

use core::header_value_option::HeaderAppendAction::{
    self, AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExistsOrAdd,
};
use route::route::Action;
use route::route_action::ClusterSpecifier;
use route::route_match::PathSpecifier;

/// Carries the reason of a response that the proxy made by itself.
pub const REASON_HEADER: &str = "x-outrider-reason";

/// The route configuration of an outbound HTTP listener, and the ports its routes can lead to.
pub(crate) struct Routes<'a> {
    pub(crate) configuration: route::RouteConfiguration,
    pub(crate) targets: Vec<(&'a Service, &'a Port)>,
}

/// Everything, in the order of its precedence.
struct Candidate<'a> {
    route: &'a HttpRoute,
    rule: &'a HttpRule,
    rule_index: usize,
    matched: &'a HttpMatch,
    match_index: usize,
}

pub(crate) fn compile<'a>(
    view: &View<'a>,
    callee: &'a Service,
    port: &'a Port,
    notes: &mut Vec<Note>,
) -> Routes<'a> {
    let name = names::outbound(&callee.id.namespace, &callee.id.name, &port.name);
    let mut targets = Vec::new();
    let mut attached = false;
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    for route in view.routes(&callee.id, port.port) {
        attached = true;
        for (rule_index, rule) in route.rules.iter().enumerate() {
            for (match_index, matched) in rule.matches.iter().enumerate() {
                candidates.push(Candidate { route, rule, rule_index, matched, match_index });
            }
        }
    }
    // Stable: what is equal here stays in the order of route name, rule and match.
    candidates.sort_by_key(|candidate| precedence(candidate.matched));

    let mut routes = Vec::new();
    for candidate in &candidates {
        routes.push(compile_one(view, callee, candidate, &mut targets, notes));
    }
    if !attached {
        targets.push((callee, port));
        let cluster = ClusterSpecifier::Cluster(name.clone());
        routes.push(route::Route {
            name: "default".to_owned(),
            r#match: Some(prefix("/")),
            action: Some(Action::Route(forward(cluster, callee, callee.timeouts.request))),
            ..Default::default()
        });
    }
    Routes { configuration: configuration(&name, routes), targets }
}

/// One virtual host for every `Host`: a listener leads to one service, whatever the caller calls it.
pub(crate) fn configuration(name: &str, routes: Vec<route::Route>) -> route::RouteConfiguration {
    route::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![route::VirtualHost {
            name: "any".to_owned(),
            domains: vec!["*".to_owned()],
            routes,
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Lower comes first: exact paths, longer prefixes, a method, more headers.
fn precedence(matched: &HttpMatch) -> impl Ord + use<> {
    let (kind, length) = match &matched.path {
        PathMatch::Exact(path) => (0, path.len()),
        PathMatch::Prefix(path) => (1, path.trim_end_matches('/').len()),
    };
    (kind, Reverse(length), matched.method.is_none(), Reverse(matched.headers.len()))
}

fn compile_one<'a>(
    view: &View<'a>,
    parent: &Service,
    candidate: &Candidate<'a>,
    targets: &mut Vec<(&'a Service, &'a Port)>,
    notes: &mut Vec<Note>,
) -> route::Route {
    let Candidate { route, rule, rule_index, matched, match_index } = candidate;
    let mut compiled = route::Route {
        name: format!("{}/{}/{rule_index}/{match_index}", route.namespace, route.name),
        r#match: Some(conditions(matched)),
        request_headers_to_add: additions(&rule.request_headers),
        request_headers_to_remove: rule.request_headers.remove.clone(),
        response_headers_to_add: additions(&rule.response_headers),
        response_headers_to_remove: rule.response_headers.remove.clone(),
        ..Default::default()
    };
    let mut weighted: Vec<(String, u32)> = Vec::new();
    for BackendRef { service, port, weight } in &rule.backends {
        let Some((service, port)) = view.http_port(service, *port) else {
            notes.push(unusable(route, service, *port));
            continue;
        };
        targets.push((service, port));
        if *weight > 0 {
            weighted.push((names::outbound(&service.id.namespace, &service.id.name, &port.name), *weight));
        }
    }
    let cluster = match weighted.as_slice() {
        [] => None,
        [(only, _)] => Some(ClusterSpecifier::Cluster(only.clone())),
        several => Some(ClusterSpecifier::WeightedClusters(route::WeightedCluster {
            clusters: several
                .iter()
                .map(|(name, weight)| route::weighted_cluster::ClusterWeight {
                    name: name.clone(),
                    weight: Some(uint(*weight)),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        })),
    };
    compiled.action = Some(match cluster {
        Some(cluster) => {
            let timeout = rule.request_timeout.unwrap_or(parent.timeouts.request);
            Action::Route(forward(cluster, parent, timeout))
        }
        None => {
            compiled.response_headers_to_add.push(header(REASON_HEADER, "no_backends", AddIfAbsent));
            Action::DirectResponse(route::DirectResponseAction { status: 500, ..Default::default() })
        }
    });
    compiled
}

fn unusable(route: &HttpRoute, service: &ServiceRef, port: u16) -> Note {
    Note::UnusableBackend {
        route: (route.namespace.clone(), route.name.clone()),
        service: service.clone(),
        port,
    }
}

/// Forwarding. The request limit is a limit on the only try, which ends with the response head: a response
/// that flows is never cut. There is no limit on the whole exchange, only on its silence.
pub(crate) fn forward(
    cluster: ClusterSpecifier,
    limits_of: &Service,
    request_timeout: Option<std::time::Duration>,
) -> route::RouteAction {
    route::RouteAction {
        timeout: Some(limit(None)),
        idle_timeout: Some(limit(limits_of.timeouts.idle)),
        retry_policy: request_timeout.map(|timeout| route::RetryPolicy {
            num_retries: Some(uint(0)),
            per_try_timeout: Some(limit(Some(timeout))),
            ..Default::default()
        }),
        cluster_specifier: Some(cluster),
        ..Default::default()
    }
}

pub(crate) fn prefix(path: &str) -> route::RouteMatch {
    let path = match path.trim_end_matches('/') {
        "" => PathSpecifier::Prefix("/".to_owned()),
        elements => PathSpecifier::PathSeparatedPrefix(elements.to_owned()),
    };
    route::RouteMatch { path_specifier: Some(path), ..Default::default() }
}

fn conditions(matched: &HttpMatch) -> route::RouteMatch {
    let mut conditions = match &matched.path {
        PathMatch::Exact(path) => route::RouteMatch {
            path_specifier: Some(PathSpecifier::Path(path.clone())),
            ..Default::default()
        },
        PathMatch::Prefix(path) => prefix(path),
    };
    let method = matched.method.iter().map(|method| (":method", method.as_str()));
    let headers = matched.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    conditions.headers = method
        .chain(headers)
        .map(|(name, value)| route::HeaderMatcher {
            name: name.to_owned(),
            header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(exactly(
                value.to_owned(),
            ))),
            ..Default::default()
        })
        .collect();
    conditions
}

/// `%` begins a variable in Envoy's header values; what people write is meant as it stands. Envoy removes before it
/// adds, and the order is set, add, remove: so what is removed in the end is not added at all.
fn additions(edits: &HeaderEdits) -> Vec<core::HeaderValueOption> {
    let with = |list: &[(String, String)], action: HeaderAppendAction| -> Vec<core::HeaderValueOption> {
        list.iter()
            .filter(|(name, _)| !edits.remove.contains(name))
            .map(|(name, value)| header(name, &value.replace('%', "%%"), action))
            .collect()
    };
    let mut all = with(&edits.set, OverwriteIfExistsOrAdd);
    all.extend(with(&edits.add, AppendIfExistsOrAdd));
    all
}
