//! Route configurations.

use std::sync::Arc;

use outrider_proxy_core::http1::HeaderEdits;
use outrider_proxy_core::http1::reply::REASON_HEADER;
use outrider_proxy_core::reason::Reason;
use outrider_proxy_core::route::{
    DirectResponse, HeaderMatch, PathMatch, Route as CompiledRoute, RouteAction as CompiledAction,
    RouteMatch as CompiledMatch, RouteTable, RouteTimeouts, ValueMatch, VirtualHost as CompiledHost,
};
use outrider_xds_types::pb::envoy::config::core::v3::HeaderValueOption;
use outrider_xds_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use outrider_xds_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use outrider_xds_types::pb::envoy::config::route::v3::route::Action;
use outrider_xds_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use outrider_xds_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use outrider_xds_types::pb::envoy::config::route::v3::weighted_cluster::ClusterWeight;
use outrider_xds_types::pb::envoy::config::route::v3::{
    HeaderMatcher, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
    WeightedCluster,
};
use outrider_xds_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use outrider_xds_types::prost::Message;

use super::Slots;
use super::fields::{Refusal, inline, join, limit, nothing_left};

/// A compiled table and the slots of the clusters it leads to.
pub type Table = (Arc<RouteTable>, Vec<u32>);

/// Reads a `RouteConfiguration`.
///
/// # Errors
/// What cannot be honoured.
pub fn parse(body: &[u8], slots: &mut Slots) -> Result<Table, Refusal> {
    let routes = RouteConfiguration::decode(body).map_err(|e| Refusal::new("", e.to_string()))?;
    table(routes, "", slots)
}

/// Compiles a route configuration; `path` is where it was found.
///
/// # Errors
/// What cannot be honoured.
pub fn table(mut config: RouteConfiguration, path: &str, slots: &mut Slots) -> Result<Table, Refusal> {
    config.name.clear();
    config.metadata = None;
    // A route waits for its clusters here anyway.
    config.validate_clusters = None;
    let ignore_port = std::mem::take(&mut config.ignore_port_in_host_matching);
    let mut clusters = Vec::new();
    let mut hosts = Vec::new();
    for (n, host) in std::mem::take(&mut config.virtual_hosts).into_iter().enumerate() {
        hosts.push(virtual_host(host, &join(path, &format!("virtual_hosts[{n}]")), slots, &mut clusters)?);
    }
    nothing_left(&config, path)?;
    clusters.sort_unstable();
    clusters.dedup();
    let table = RouteTable::new(hosts, ignore_port).map_err(|e| Refusal::new(path, e.to_string()))?;
    Ok((Arc::new(table), clusters))
}

fn virtual_host(
    mut host: VirtualHost,
    path: &str,
    slots: &mut Slots,
    clusters: &mut Vec<u32>,
) -> Result<CompiledHost, Refusal> {
    host.name.clear();
    host.metadata = None;
    let domains = std::mem::take(&mut host.domains);
    let mut routes = Vec::new();
    for (n, one) in std::mem::take(&mut host.routes).into_iter().enumerate() {
        routes.push(route(one, &join(path, &format!("routes[{n}]")), slots, clusters)?);
    }
    nothing_left(&host, path)?;
    Ok(CompiledHost { domains, routes })
}

fn route(
    mut route: Route,
    path: &str,
    slots: &mut Slots,
    clusters: &mut Vec<u32>,
) -> Result<CompiledRoute, Refusal> {
    let name = std::mem::take(&mut route.name).into();
    route.metadata = None;
    route.stat_prefix.clear();
    let matches = matches(route.r#match.take().unwrap_or_default(), &join(path, "match"))?;
    let request_headers = edits(
        std::mem::take(&mut route.request_headers_to_add),
        std::mem::take(&mut route.request_headers_to_remove),
        &join(path, "request_headers_to_add"),
    )?;
    let reason = named_reason(&route.response_headers_to_add);
    let response_headers = edits(
        std::mem::take(&mut route.response_headers_to_add),
        std::mem::take(&mut route.response_headers_to_remove),
        &join(path, "response_headers_to_add"),
    )?;
    let (action, timeouts) = match route.action.take() {
        Some(Action::Route(action)) => forward(action, &join(path, "route"), slots, clusters)?,
        Some(Action::DirectResponse(mut direct)) => {
            let path = join(path, "direct_response");
            let body = match direct.body.take() {
                Some(body) => inline(Some(body), &join(&path, "body"))?,
                None => Vec::new(),
            };
            let status = u16::try_from(std::mem::take(&mut direct.status)).unwrap_or(0);
            nothing_left(&direct, &path)?;
            // The Gateway API's answer to a rule whose backends have no weight.
            let unnamed = if status == 500 { Reason::NoBackends } else { Reason::DirectResponse };
            let reason = reason.unwrap_or(unnamed);
            (
                CompiledAction::Direct(DirectResponse { status, body: body.into(), reason }),
                RouteTimeouts::default(),
            )
        }
        _ => return Err(Refusal::new(join(path, "action"), "only route and direct_response are supported")),
    };
    nothing_left(&route, path)?;
    Ok(CompiledRoute { name, matches, action, timeouts, request_headers, response_headers })
}

fn matches(mut given: RouteMatch, path: &str) -> Result<CompiledMatch, Refusal> {
    let matched_path = match given.path_specifier.take() {
        Some(PathSpecifier::Prefix(prefix)) if prefix == "/" => PathMatch::Any,
        Some(PathSpecifier::Prefix(prefix)) => PathMatch::Prefix(prefix.into_bytes().into()),
        Some(PathSpecifier::Path(exact)) => PathMatch::Exact(exact.into_bytes().into()),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => {
            PathMatch::ElementPrefix(prefix.into_bytes().into())
        }
        _ => return Err(Refusal::new(join(path, "path_specifier"), "not supported, or missing")),
    };
    if given.case_sensitive.take().is_some_and(|b| !b.value) {
        return Err(Refusal::new(join(path, "case_sensitive"), "paths are compared byte for byte"));
    }
    let mut method = None;
    let mut headers = Vec::new();
    for (n, matcher) in std::mem::take(&mut given.headers).into_iter().enumerate() {
        let header = header_match(matcher, &join(path, &format!("headers[{n}]")))?;
        match &header {
            HeaderMatch { name, value: ValueMatch::Exact(value), invert: false }
                if &**name == ":method" && method.is_none() =>
            {
                method = Some(String::from_utf8_lossy(value).into_owned().into_boxed_str());
            }
            _ => headers.push(header),
        }
    }
    nothing_left(&given, path)?;
    Ok(CompiledMatch { path: matched_path, method, headers })
}

fn header_match(mut matcher: HeaderMatcher, path: &str) -> Result<HeaderMatch, Refusal> {
    let name = std::mem::take(&mut matcher.name);
    let invert = std::mem::take(&mut matcher.invert_match);
    let unsupported = || Refusal::new(join(path, "header_match_specifier"), "not supported");
    let value = match matcher.header_match_specifier.take() {
        None | Some(HeaderMatchSpecifier::PresentMatch(true)) => ValueMatch::Present,
        Some(HeaderMatchSpecifier::StringMatch(mut matcher)) => {
            let pattern = matcher.match_pattern.take();
            nothing_left(&matcher, &join(path, "string_match"))?;
            match pattern {
                Some(MatchPattern::Exact(text)) => ValueMatch::Exact(text.into_bytes().into()),
                Some(MatchPattern::Prefix(text)) => ValueMatch::Prefix(text.into_bytes().into()),
                _ => return Err(unsupported()),
            }
        }
        _ => return Err(unsupported()),
    };
    nothing_left(&matcher, path)?;
    Ok(HeaderMatch { name: name.into(), value, invert })
}

fn forward(
    mut action: RouteAction,
    path: &str,
    slots: &mut Slots,
    clusters: &mut Vec<u32>,
) -> Result<(CompiledAction, RouteTimeouts), Refusal> {
    let mut slot = |name: &str| {
        let slot = slots.of(name);
        clusters.push(slot);
        slot
    };
    let compiled = match action.cluster_specifier.take() {
        Some(ClusterSpecifier::Cluster(name)) => CompiledAction::Cluster(slot(&name)),
        Some(ClusterSpecifier::WeightedClusters(mut weighted)) => {
            let path = join(path, "weighted_clusters");
            let mut list = Vec::new();
            for (n, mut one) in std::mem::take(&mut weighted.clusters).into_iter().enumerate() {
                let name = std::mem::take(&mut one.name);
                let weight = one.weight.take().map_or(0, |w| w.value);
                nothing_left::<ClusterWeight>(&one, &join(&path, &format!("clusters[{n}]")))?;
                list.push((slot(&name), weight));
            }
            nothing_left::<WeightedCluster>(&weighted, &path)?;
            CompiledAction::Weighted(list)
        }
        _ => return Err(Refusal::new(join(path, "cluster_specifier"), "not supported, or missing")),
    };
    let total = match action.timeout.take() {
        // Absence means 15 s to Envoy, and must mean the same here.
        None => Some(std::time::Duration::from_secs(15)),
        given => limit(given, &join(path, "timeout"))?,
    };
    let idle = limit(action.idle_timeout.take(), &join(path, "idle_timeout"))?;
    let response_head = match action.retry_policy.take() {
        Some(policy) => per_try_timeout(policy, &join(path, "retry_policy"))?,
        None => None,
    };
    action.cluster_not_found_response_code = 0;
    nothing_left(&action, path)?;
    Ok((compiled, RouteTimeouts { response_head, total, idle }))
}

/// The limit of one try, which here is the limit until the response head. Retries by policy are not supported;
/// what is safe to repeat is repeated anyway.
fn per_try_timeout(mut policy: RetryPolicy, path: &str) -> Result<Option<std::time::Duration>, Refusal> {
    let retries = policy.num_retries.take().map_or(1, |n| n.value);
    let on = std::mem::take(&mut policy.retry_on);
    let connect_only =
        on.split(',').all(|cause| matches!(cause.trim(), "" | "connect-failure" | "reset-before-request"));
    if retries != 0 && !connect_only {
        return Err(Refusal::new(join(path, "retry_on"), format!("`{on}` is not supported")));
    }
    policy.host_selection_retry_max_attempts = 0;
    let timeout = limit(policy.per_try_timeout.take(), &join(path, "per_try_timeout"))?;
    nothing_left(&policy, path)?;
    Ok(timeout)
}

/// The reason a route that answers by itself gives in its headers, if it is one of ours.
fn named_reason(headers: &[HeaderValueOption]) -> Option<Reason> {
    let mut given = headers.iter().filter_map(|option| option.header.as_ref());
    let named = given.find(|header| header.key == REASON_HEADER)?;
    Reason::ALL.iter().copied().find(|reason| reason.as_str() == named.value)
}

fn edits(add: Vec<HeaderValueOption>, remove: Vec<String>, path: &str) -> Result<HeaderEdits, Refusal> {
    let mut sets = Vec::new();
    let mut adds = Vec::new();
    for (n, mut option) in add.into_iter().enumerate() {
        let path = join(path, &format!("[{n}]"));
        let action = HeaderAppendAction::try_from(std::mem::take(&mut option.append_action));
        let header = option.header.take().unwrap_or_default();
        option.keep_empty_value = false;
        nothing_left(&option, &path)?;
        let value = if header.raw_value.is_empty() { header.value.into_bytes() } else { header.raw_value };
        let value =
            literal(value).ok_or_else(|| Refusal::new(&path, "substitutions (`%`) are not supported"))?;
        match action {
            Ok(HeaderAppendAction::AppendIfExistsOrAdd) => adds.push((header.key, value)),
            Ok(HeaderAppendAction::OverwriteIfExistsOrAdd) => sets.push((header.key, value)),
            // Every reply of this proxy has one already.
            Ok(HeaderAppendAction::AddIfAbsent) if header.key == REASON_HEADER => {}
            _ => return Err(Refusal::new(join(&path, "append_action"), "not supported")),
        }
    }
    HeaderEdits::new(
        sets.iter().map(|(name, value)| (name.as_bytes(), value.as_slice())),
        adds.iter().map(|(name, value)| (name.as_bytes(), value.as_slice())),
        remove.iter().map(String::as_bytes),
    )
    .map_err(|e| Refusal::new(path, e.to_string()))
}

/// The text of a value that has no substitutions, where `%%` stands for `%`.
fn literal(value: Vec<u8>) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(value.len());
    let mut bytes = value.into_iter();
    while let Some(byte) = bytes.next() {
        if byte == b'%' && bytes.next() != Some(b'%') {
            return None;
        }
        text.push(byte);
    }
    Some(text)
}
