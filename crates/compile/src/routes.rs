//! Routes of one port → one route configuration, in the Gateway API's order of precedence.
//!
//! Where it leaves the order open: exact paths come before regular expressions, longer patterns before shorter ones,
//! and both before prefixes, because they name more of the path. Documents do not say when they were made, so of two
//! routes that are equal in everything the first by namespace and name counts.

use std::cmp::Reverse;

use outrider_intent::model::{
    BackendRef, Engine, HeaderEdits, HttpMatch, HttpRoute, HttpRule, Mirror, PathChange, PathMatch, Port,
    Protocol, Redirect, Rewrite, Service, ServiceRef, ValueMatch,
};
use outrider_xds_types::names;
use outrider_xds_types::pb::envoy::config::core::v3 as core;
use outrider_xds_types::pb::envoy::config::route::v3 as route;
use outrider_xds_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use outrider_xds_types::pb::envoy::r#type::v3 as types;

use crate::envoy::{boolean, limit, uint};
use crate::http::header;
use crate::matching::{conditions, escaped, regex};
use crate::view::View;
use crate::{Note, matching, traffic};

use core::header_value_option::HeaderAppendAction::{
    self, AddIfAbsent, AppendIfExistsOrAdd, OverwriteIfExistsOrAdd,
};
use route::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
use route::route::Action;
use route::route_action::{ClusterSpecifier, HostRewriteSpecifier, RequestMirrorPolicy};
use route::weighted_cluster::RandomValueSpecifier;

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
    engine: Engine,
    callee: &'a Service,
    port: &'a Port,
    notes: &mut Vec<Note>,
) -> Routes<'a> {
    let name = names::outbound(&callee.id.namespace, &callee.id.name, &port.name);
    let mut targets = Vec::new();
    let mut attached = false;
    let mut candidates: Vec<Candidate<'a>> = Vec::new();
    for route in view.routes(&callee.id, port) {
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
        routes.push(compile_one(view, engine, callee, port, candidate, &mut targets, notes));
    }
    if !attached {
        targets.push((callee, port));
        let cluster = ClusterSpecifier::Cluster(name.clone());
        routes.push(route::Route {
            name: "default".to_owned(),
            r#match: Some(everything()),
            action: Some(Action::Route(forward(&Forward {
                cluster,
                parent: callee,
                engine,
                protocol: port.protocol,
                request: callee.timeouts.request,
                one_try: None,
                targets: &[callee],
            }))),
            typed_per_filter_config: traffic::faults(callee),
            ..Default::default()
        });
    }
    Routes { configuration: configuration(&name, routes), targets }
}

/// What ends at each hop between proxies. Who does not know that (Envoy, a native proxy of before) is told, so that no
/// application says it in its proxy's name or hears it.
const UNPROCESSED: &str = "x-outrider-unprocessed";

/// One virtual host for every `Host`: a listener leads to one service, whatever the caller calls it.
pub(crate) fn configuration(name: &str, mut routes: Vec<route::Route>) -> route::RouteConfiguration {
    for route in &mut routes {
        route.response_headers_to_remove.push(UNPROCESSED.to_owned());
    }
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

/// Lower comes first: exact paths, patterns, longer prefixes, a method, more headers, more parameters; of gRPC names
/// that are written out, more of the service, more of the method, more headers.
fn precedence(matched: &HttpMatch) -> impl Ord + use<> {
    let length = |part: &Option<ValueMatch>| match part {
        None => (1, Reverse(0)),
        Some(ValueMatch::Exact(name)) => (0, Reverse(name.len())),
        Some(ValueMatch::Regex(pattern)) => (1, Reverse(pattern.len())),
    };
    let (kind, first, second) = match &matched.path {
        PathMatch::Exact(path) => (0, (0, Reverse(path.len())), (0, Reverse(0))),
        PathMatch::Regex(pattern) => (1, (0, Reverse(pattern.len())), (0, Reverse(0))),
        PathMatch::Prefix(path) => (2, (2, Reverse(path.trim_end_matches('/').len())), (0, Reverse(0))),
        PathMatch::Grpc { service, method } => (2, length(service), length(method)),
    };
    let (headers, query) = (Reverse(matched.headers.len()), Reverse(matched.query.len()));
    (kind, first, second, matched.method.is_none(), headers, query)
}

fn compile_one<'a>(
    view: &View<'a>,
    engine: Engine,
    parent: &'a Service,
    port: &'a Port,
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
    if let Some(redirect) = &rule.redirect {
        compiled.action = Some(Action::Redirect(redirect_action(redirect, matched, port)));
        return compiled;
    }
    let mut destination = |service: &ServiceRef, number: u16| {
        let found = view.port(service, number, port.protocol);
        match found {
            Some(found) => targets.push(found),
            None => notes.push(unusable(route, service, number)),
        }
        found.map(|(service, port)| {
            (service, names::outbound(&service.id.namespace, &service.id.name, &port.name))
        })
    };
    let mut weighted: Vec<(&Service, String, u32)> = Vec::new();
    for BackendRef { service, port, weight } in &rule.backends {
        if let Some((service, name)) = destination(service, *port).filter(|_| *weight > 0) {
            weighted.push((service, name, *weight));
        }
    }
    let mut mirrors = Vec::new();
    for Mirror { service, port, per_million } in &rule.mirrors {
        if let Some((_, cluster)) = destination(service, *port) {
            mirrors.push(mirror(cluster, *per_million));
        }
    }
    // Who has a key stays with a destination while weights move.
    let keeps_keys = weighted.iter().any(|(service, ..)| service.traffic.balancing.policy.hashes());
    let cluster = match weighted.as_slice() {
        [] => None,
        [(_, only, _)] => Some(ClusterSpecifier::Cluster(only.clone())),
        several => Some(ClusterSpecifier::WeightedClusters(route::WeightedCluster {
            clusters: several
                .iter()
                .map(|(_, name, weight)| route::weighted_cluster::ClusterWeight {
                    name: name.clone(),
                    weight: Some(uint(*weight)),
                    ..Default::default()
                })
                .collect(),
            random_value_specifier: keeps_keys.then(|| RandomValueSpecifier::UseHashPolicy(boolean(true))),
            ..Default::default()
        })),
    };
    compiled.action = Some(match cluster {
        Some(cluster) => {
            let services: Vec<&Service> = weighted.iter().map(|(service, ..)| *service).collect();
            let mut action = forward(&Forward {
                cluster,
                parent,
                engine,
                protocol: port.protocol,
                request: rule.request_timeout.unwrap_or(parent.timeouts.request),
                one_try: rule.try_timeout,
                targets: &services,
            });
            action.request_mirror_policies = mirrors;
            if let Some(rewrite) = &rule.rewrite {
                rewrite_with(&mut action, rewrite, matched);
            }
            compiled.typed_per_filter_config = traffic::faults(parent);
            Action::Route(action)
        }
        None => {
            compiled.response_headers_to_add.push(header(REASON_HEADER, "no_backends", AddIfAbsent));
            // What the Gateway API says: 500, and UNAVAILABLE for gRPC, which 503 means there.
            let status = if port.protocol == Protocol::Grpc { 503 } else { 500 };
            let words = "no_backends: The matching route has no backend to send to.\n".to_owned();
            let body = core::DataSource {
                specifier: Some(core::data_source::Specifier::InlineString(words)),
                ..Default::default()
            };
            Action::DirectResponse(route::DirectResponseAction {
                status,
                body: Some(body),
                ..Default::default()
            })
        }
    });
    compiled
}

fn mirror(cluster: String, per_million: u32) -> RequestMirrorPolicy {
    let share = types::FractionalPercent {
        numerator: per_million,
        denominator: types::fractional_percent::DenominatorType::Million as i32,
    };
    RequestMirrorPolicy {
        cluster,
        runtime_fraction: Some(core::RuntimeFractionalPercent {
            default_value: Some(share),
            ..Default::default()
        }),
        // A copy is the request as it was sent.
        disable_shadow_host_suffix_append: true,
        ..Default::default()
    }
}

/// How the path changes.
enum NewPath {
    /// The matched prefix becomes this.
    Prefix(String),
    /// What matches becomes this.
    Regex(RegexMatchAndSubstitute),
}

fn new_path(change: &PathChange, matched: &HttpMatch) -> NewPath {
    let substitute = |pattern: String, with: &str| {
        NewPath::Regex(RegexMatchAndSubstitute {
            pattern: Some(regex(&pattern)),
            substitution: with.replace('\\', "\\\\"),
        })
    };
    let prefix = match &matched.path {
        PathMatch::Prefix(prefix) => prefix.trim_end_matches('/'),
        _ => "",
    };
    match change {
        PathChange::Full(path) => substitute("^/.*$".to_owned(), path),
        // Of `/a` nothing would be left, and of `/a/b` a second slash.
        PathChange::Prefix(with) if with.is_empty() && prefix.is_empty() => NewPath::Prefix("/".to_owned()),
        PathChange::Prefix(with) if with.is_empty() => substitute(format!("^{}/*", escaped(prefix)), "/"),
        // The prefix `/` is followed by no slash.
        PathChange::Prefix(with) if prefix.is_empty() => NewPath::Prefix(format!("{with}/")),
        PathChange::Prefix(with) => NewPath::Prefix(with.clone()),
    }
}

fn rewrite_with(action: &mut route::RouteAction, rewrite: &Rewrite, matched: &HttpMatch) {
    let host = rewrite.hostname.clone().map(HostRewriteSpecifier::HostRewriteLiteral);
    action.host_rewrite_specifier = host;
    match rewrite.path.as_ref().map(|change| new_path(change, matched)) {
        None => {}
        Some(NewPath::Prefix(prefix)) => action.prefix_rewrite = prefix,
        Some(NewPath::Regex(rewrite)) => action.regex_rewrite = Some(rewrite),
    }
}

fn redirect_action(redirect: &Redirect, matched: &HttpMatch, port: &Port) -> route::RedirectAction {
    let code = match redirect.status {
        301 => RedirectResponseCode::MovedPermanently,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::Found,
    };
    let path = redirect.path.as_ref().map(|change| match (change, new_path(change, matched)) {
        (PathChange::Full(path), _) => PathRewriteSpecifier::PathRedirect(path.clone()),
        (_, NewPath::Prefix(prefix)) => PathRewriteSpecifier::PrefixRewrite(prefix),
        (_, NewPath::Regex(rewrite)) => PathRewriteSpecifier::RegexRewrite(rewrite),
    });
    // Another host is at the same port unless something else is said; 80 goes without saying.
    let same = redirect.hostname.is_some() && redirect.scheme.is_none() && port.port != 80;
    let number = redirect.port.or(same.then_some(port.port));
    route::RedirectAction {
        host_redirect: redirect.hostname.clone().unwrap_or_default(),
        port_redirect: number.map(u32::from).unwrap_or_default(),
        response_code: code as i32,
        scheme_rewrite_specifier: redirect.scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: path,
        ..Default::default()
    }
}

fn unusable(route: &HttpRoute, service: &ServiceRef, port: u16) -> Note {
    Note::UnusableBackend {
        route: (route.namespace.clone(), route.name.clone()),
        service: service.clone(),
        port,
    }
}

/// What a route that forwards depends on.
pub(crate) struct Forward<'f> {
    pub(crate) cluster: ClusterSpecifier,
    /// Whose limits and retries hold.
    pub(crate) parent: &'f Service,
    /// Of the proxy that forwards.
    pub(crate) engine: Engine,
    pub(crate) protocol: Protocol,
    /// Limit of the request.
    pub(crate) request: Option<std::time::Duration>,
    /// Limit of one try, if the route has one of its own.
    pub(crate) one_try: Option<Option<std::time::Duration>>,
    /// Where it may lead.
    pub(crate) targets: &'f [&'f Service],
}

/// Forwarding. What limits what is in [`traffic::tries`].
pub(crate) fn forward(forward: &Forward<'_>) -> route::RouteAction {
    let Forward { parent, engine, protocol, request, one_try, .. } = *forward;
    let (whole, retry_policy) = traffic::tries(parent, engine, request, one_try, protocol);
    route::RouteAction {
        timeout: Some(limit(whole)),
        idle_timeout: Some(limit(parent.timeouts.idle_of(protocol))),
        retry_policy,
        hash_policy: traffic::hash_policies(forward.targets.iter().copied()),
        cluster_specifier: Some(forward.cluster.clone()),
        ..Default::default()
    }
}

/// Every request.
pub(crate) fn everything() -> route::RouteMatch {
    route::RouteMatch { path_specifier: Some(matching::prefix("/")), ..Default::default() }
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
