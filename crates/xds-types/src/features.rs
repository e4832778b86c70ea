//! What a version of the native proxy has to know to carry out a resource.
//!
//! A proxy says in `Node.client_features` what it knows, as `dev.outrider.NAME`; whoever serves it looks with [`needed`]
//! into what it is about to send. Holds: what is named here was known to every proxy that names anything; one that names
//! nothing is of the time before, and knew all of [`ALL`] as of then. So a new thing that is sent to proxies gets a name
//! here in the same change that sends it, and proxies name it once they carry it out. Does not: say what Envoy knows,
//! which has everything that is compiled.

use std::collections::BTreeSet;

use prost::{Message, Name};

use crate::pb::envoy::config::cluster::v3::{Cluster, cluster};
use crate::pb::envoy::config::core::v3::health_check::HealthChecker;
use crate::pb::envoy::config::listener::v3::{Listener, filter};
use crate::pb::envoy::config::route::v3::{
    HeaderMatcher, Route, RouteConfiguration, header_matcher, route, route_action, route_match,
};
use crate::pb::envoy::extensions::filters::http::fault::v3::{HttpFault, fault_abort};
use crate::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use crate::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use crate::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::CodecType, http_connection_manager::RouteSpecifier,
    http_filter,
};
use crate::pb::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use crate::pb::envoy::extensions::upstreams::http::v3::{
    HttpProtocolOptions, http_protocol_options as options,
};
use crate::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use crate::pb::google::protobuf::Any;
use crate::type_url;

/// Before every name in `client_features`.
pub const PREFIX: &str = "dev.outrider.";

/// HTTP/2 and gRPC.
pub const HTTP2: &str = "http2";
/// Regular expressions over paths or headers.
pub const REGEX: &str = "regex";
/// Conditions on parameters of the query.
pub const QUERY_PARAMS: &str = "query-params";
/// Redirects.
pub const REDIRECT: &str = "redirect";
/// Changes of host and path.
pub const REWRITE: &str = "rewrite";
/// Copies of requests.
pub const MIRROR: &str = "mirror";
/// Several destinations of TCP connections.
pub const TCP_SPLIT: &str = "tcp-split";
/// Policies of retries.
pub const RETRIES: &str = "retries";
/// Leaving out endpoints that fail.
pub const OUTLIER: &str = "outlier-ejection";
/// Asking endpoints how they are.
pub const HEALTH_CHECK: &str = "health-check";
/// Asking by gRPC.
pub const GRPC_HEALTH_CHECK: &str = "grpc-health-check";
/// Balancing by hashes.
pub const HASH: &str = "hash-balancing";
/// Less for new endpoints.
pub const SLOW_START: &str = "slow-start";
/// Faults on purpose.
pub const FAULT: &str = "fault";
/// Those that are statuses of gRPC.
pub const GRPC_FAULT: &str = "grpc-fault";
/// Rates of requests.
pub const RATE_LIMIT: &str = "rate-limit";
/// Access by what is asked for, and audits of it.
pub const ACCESS_RULES: &str = "access-rules";
/// WebSockets as streams of HTTP/2 (RFC 8441).
pub const HTTP2_WEBSOCKET: &str = "http2-websocket";
/// Ages of connections to endpoints.
pub const CONNECTION_AGE: &str = "connection-age";
/// Upgrades to other protocols than WebSocket.
pub const UPGRADES: &str = "upgrades";
/// Identities by endpoint: services that calls fail over to.
pub const ENDPOINT_TLS: &str = "endpoint-tls";

/// Long lists of endpoints that come in parts, see `outrider_xds::lists`. No resource needs it: who does not name it is sent
/// whole lists. Agents name it as well.
pub const LEDS: &str = "leds";

/// Everything that proxies of this version know, beside [`LEDS`].
pub const ALL: [&str; 21] = [
    HTTP2,
    REGEX,
    QUERY_PARAMS,
    REDIRECT,
    REWRITE,
    MIRROR,
    TCP_SPLIT,
    RETRIES,
    OUTLIER,
    HEALTH_CHECK,
    GRPC_HEALTH_CHECK,
    HASH,
    SLOW_START,
    FAULT,
    GRPC_FAULT,
    RATE_LIMIT,
    ACCESS_RULES,
    HTTP2_WEBSOCKET,
    CONNECTION_AGE,
    UPGRADES,
    ENDPOINT_TLS,
];

/// What is to be said in `client_features`.
pub fn advertised() -> Vec<String> {
    ALL.iter().chain([&LEDS]).map(|name| format!("{PREFIX}{name}")).collect()
}

/// Whether somebody knows a feature who says this.
pub fn knows(client_features: &[String], feature: &str) -> bool {
    client_features.iter().any(|name| name.strip_prefix(PREFIX) == Some(feature))
}

/// What of [`ALL`] somebody does not know who says this. Nothing, if it says nothing.
pub fn lacking(client_features: &[String]) -> BTreeSet<&'static str> {
    let named = client_features.iter().filter_map(|name| name.strip_prefix(PREFIX));
    let named: BTreeSet<&str> = named.filter(|name| *name != LEDS).collect();
    if named.is_empty() {
        return BTreeSet::new();
    }
    ALL.into_iter().filter(|name| !named.contains(name)).collect()
}

type Needed = BTreeSet<&'static str>;

/// What a resource needs. What cannot be read needs nothing: it is refused for that.
pub fn needed(url: &str, body: &[u8]) -> Needed {
    let mut needed = Needed::new();
    match url {
        type_url::LISTENER => of(body, |listener: Listener| of_listener(&listener, &mut needed)),
        type_url::ROUTE => of(body, |routes: RouteConfiguration| of_routes(&routes, &mut needed)),
        type_url::CLUSTER => of(body, |cluster: Cluster| of_cluster(&cluster, &mut needed)),
        _ => {}
    }
    needed
}

fn of<M: Message + Default>(body: &[u8], look: impl FnOnce(M)) {
    if let Ok(message) = M::decode(body) {
        look(message);
    }
}

/// The message in an `Any`, if it is of this type.
fn within<M: Message + Default + Name>(any: &Any) -> Option<M> {
    (any.type_url == M::type_url()).then(|| M::decode(any.value.as_slice()).ok()).flatten()
}

fn of_listener(listener: &Listener, needed: &mut Needed) {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    for filter in chains.flat_map(|chain| &chain.filters) {
        let Some(filter::ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
        if let Some(proxy) = within::<TcpProxy>(any)
            && matches!(proxy.cluster_specifier, Some(tcp_proxy::ClusterSpecifier::WeightedClusters(_)))
        {
            needed.insert(TCP_SPLIT);
        }
        let Some(manager) = within::<HttpConnectionManager>(any) else { continue };
        if manager.codec_type == CodecType::Http2 as i32 {
            needed.insert(HTTP2);
        }
        if manager.http2_protocol_options.as_ref().is_some_and(|http2| http2.allow_connect) {
            needed.insert(HTTP2_WEBSOCKET);
        }
        if manager.upgrade_configs.iter().any(|one| !one.upgrade_type.eq_ignore_ascii_case("websocket")) {
            needed.insert(UPGRADES);
        }
        for filter in &manager.http_filters {
            if let Some(http_filter::ConfigType::TypedConfig(any)) = &filter.config_type {
                of_filter(any, needed);
            }
        }
        if let Some(RouteSpecifier::RouteConfig(routes)) = &manager.route_specifier {
            of_routes(routes, needed);
        }
    }
}

/// A filter, or what a route says in its place.
fn of_filter(any: &Any, needed: &mut Needed) {
    if any.type_url == LocalRateLimit::type_url() {
        needed.insert(RATE_LIMIT);
    }
    if let Some(fault) = within::<HttpFault>(any) {
        needed.insert(FAULT);
        let abort = fault.abort.and_then(|abort| abort.error_type);
        if matches!(abort, Some(fault_abort::ErrorType::GrpcStatus(_))) {
            needed.insert(GRPC_FAULT);
        }
    }
    if let Some(rbac) = within::<Rbac>(any) {
        let rules = rbac.rules.iter().chain(&rbac.shadow_rules);
        let mut permissions =
            rules.flat_map(|rules| rules.policies.values()).flat_map(|one| &one.permissions);
        use crate::pb::envoy::config::rbac::v3::permission::Rule;
        let asks = permissions.any(|permission| !matches!(permission.rule, Some(Rule::Any(_))));
        if asks || rbac.shadow_rules.is_some() {
            needed.insert(ACCESS_RULES);
        }
    }
}

fn of_routes(routes: &RouteConfiguration, needed: &mut Needed) {
    for host in &routes.virtual_hosts {
        host.typed_per_filter_config.values().for_each(|any| of_filter(any, needed));
        if host.retry_policy.is_some() {
            needed.insert(RETRIES);
        }
        host.routes.iter().for_each(|route| of_route(route, needed));
    }
}

fn is_regex(matcher: &HeaderMatcher) -> bool {
    use header_matcher::HeaderMatchSpecifier as Is;
    match &matcher.header_match_specifier {
        Some(Is::StringMatch(text)) => matches!(text.match_pattern, Some(MatchPattern::SafeRegex(_))),
        _ => false,
    }
}

fn of_route(route: &Route, needed: &mut Needed) {
    route.typed_per_filter_config.values().for_each(|any| of_filter(any, needed));
    if let Some(matches) = &route.r#match {
        let by_path = matches!(matches.path_specifier, Some(route_match::PathSpecifier::SafeRegex(_)));
        if by_path || matches.headers.iter().any(is_regex) {
            needed.insert(REGEX);
        }
        if !matches.query_parameters.is_empty() {
            needed.insert(QUERY_PARAMS);
        }
    }
    match &route.action {
        Some(route::Action::Redirect(_)) => drop(needed.insert(REDIRECT)),
        Some(route::Action::Route(action)) => {
            let host = action.host_rewrite_specifier.as_ref().is_some_and(|host| {
                matches!(host, route_action::HostRewriteSpecifier::HostRewriteLiteral(_))
            });
            if host || !action.prefix_rewrite.is_empty() || action.regex_rewrite.is_some() {
                needed.insert(REWRITE);
            }
            if !action.request_mirror_policies.is_empty() {
                needed.insert(MIRROR);
            }
            if !action.hash_policy.is_empty() {
                needed.insert(HASH);
            }
            if action.retry_policy.is_some() {
                needed.insert(RETRIES);
            }
        }
        _ => {}
    }
}

fn of_cluster(cluster: &Cluster, needed: &mut Needed) {
    use cluster::LbConfig;
    let slow_start = match &cluster.lb_config {
        Some(LbConfig::LeastRequestLbConfig(config)) => config.slow_start_config.is_some(),
        Some(LbConfig::RoundRobinLbConfig(config)) => config.slow_start_config.is_some(),
        _ => false,
    };
    if slow_start {
        needed.insert(SLOW_START);
    }
    if [cluster::LbPolicy::RingHash as i32, cluster::LbPolicy::Maglev as i32].contains(&cluster.lb_policy) {
        needed.insert(HASH);
    }
    if cluster.outlier_detection.is_some() {
        needed.insert(OUTLIER);
    }
    if !cluster.transport_socket_matches.is_empty() {
        needed.insert(ENDPOINT_TLS);
    }
    for check in &cluster.health_checks {
        needed.insert(HEALTH_CHECK);
        if matches!(check.health_checker, Some(HealthChecker::GrpcHealthCheck(_))) {
            needed.insert(GRPC_HEALTH_CHECK);
        }
    }
    let spoken = cluster.typed_extension_protocol_options.values().find_map(within::<HttpProtocolOptions>);
    let common = spoken.as_ref().and_then(|options| options.common_http_protocol_options.as_ref());
    if common.is_some_and(|common| common.max_connection_duration.is_some()) {
        needed.insert(CONNECTION_AGE);
    }
    let spoken = spoken.and_then(|options| options.upstream_protocol_options);
    if let Some(options::UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) = spoken {
        use options::explicit_http_config::ProtocolConfig;
        if matches!(explicit.protocol_config, Some(ProtocolConfig::Http2ProtocolOptions(_))) {
            needed.insert(HTTP2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_nothing_is_of_the_time_before_and_who_names_something_means_that() {
        assert_eq!(lacking(&[]), Needed::new());
        assert_eq!(lacking(&["envoy.something".to_owned()]), Needed::new());
        assert_eq!(lacking(&advertised()), Needed::new());
        let some: Vec<String> = advertised().into_iter().filter(|name| !name.ends_with(".mirror")).collect();
        assert_eq!(lacking(&some), Needed::from([MIRROR]));
        let later = [format!("{PREFIX}of-a-later-version")];
        assert_eq!(lacking(&later).len(), ALL.len());
    }
}
