//! Route configurations.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use outrider_proxy_core::fault::Fault;
use outrider_proxy_core::http1::reply::REASON_HEADER;
use outrider_proxy_core::http1::{HeaderEdits, HeaderKind};
use outrider_proxy_core::limit::RateLimit;
use outrider_proxy_core::reason::Reason;
use outrider_proxy_core::retry::hops::UNPROCESSED;
use outrider_proxy_core::route::{
    DirectResponse, Rewrite, Route as CompiledRoute, RouteAction as CompiledAction, RouteTable,
    RouteTimeouts, VirtualHost as CompiledHost,
};
use outrider_xds_types::pb::envoy::config::core::v3::HeaderValueOption;
use outrider_xds_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use outrider_xds_types::pb::envoy::config::route::v3::route::Action;
use outrider_xds_types::pb::envoy::config::route::v3::route_action::{ClusterSpecifier, MaxStreamDuration};
use outrider_xds_types::pb::envoy::config::route::v3::{
    RetryPolicy, Route, RouteAction, RouteConfiguration, VirtualHost,
};
use outrider_xds_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use outrider_xds_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use outrider_xds_types::pb::google::protobuf::Any;
use outrider_xds_types::prost::{Message, Name};

use super::fields::{Refusal, inline, join, limit, nothing_left, unpack};
use super::{Slots, resilience};

pub(super) mod matching;
mod target;

/// Most places that copies of a request go to.
const MAX_MIRRORS: usize = 16;

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
    // Whatever callers say about their own certificate is left out always, however it is spelt.
    config
        .request_headers_to_remove
        .retain(|name| HeaderKind::of(name.as_bytes()) != HeaderKind::ForwardedClientCert);
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
    let of_all = OfHost {
        retry: host.retry_policy.take().map(|policy| (policy, join(path, "retry_policy"))),
        own: overrides(
            std::mem::take(&mut host.typed_per_filter_config),
            &join(path, "typed_per_filter_config"),
        )?,
    };
    for (n, one) in std::mem::take(&mut host.routes).into_iter().enumerate() {
        routes.push(route(one, &of_all, &join(path, &format!("routes[{n}]")), slots, clusters)?);
    }
    nothing_left(&host, path)?;
    Ok(CompiledHost { domains, routes })
}

/// What a virtual host says for those of its routes that say nothing.
struct OfHost {
    retry: Option<(RetryPolicy, String)>,
    own: Overrides,
}

/// What takes the place of the listener's filters.
#[derive(Default)]
struct Overrides {
    limit: Option<Arc<RateLimit>>,
    fault: Option<Arc<Fault>>,
}

/// Reads them. Which filter is meant is known by the type; the names of filters mean nothing here.
fn overrides(given: HashMap<String, Any>, path: &str) -> Result<Overrides, Refusal> {
    let mut overrides = Overrides::default();
    let mut given: Vec<_> = given.into_iter().collect();
    given.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, any) in given {
        let path = format!("{path}[{name}]");
        if any.type_url == LocalRateLimit::type_url() && overrides.limit.is_none() {
            overrides.limit = Some(resilience::rate_limit(unpack(&any, &path)?, &path)?);
        } else if any.type_url == HttpFault::type_url() && overrides.fault.is_none() {
            overrides.fault = Some(resilience::fault(unpack(&any, &path)?, &path)?);
        } else {
            return Err(Refusal::new(path, format!("`{}` is not supported here", any.type_url)));
        }
    }
    Ok(overrides)
}

fn route(
    mut route: Route,
    host: &OfHost,
    path: &str,
    slots: &mut Slots,
    clusters: &mut Vec<u32>,
) -> Result<CompiledRoute, Refusal> {
    let name = std::mem::take(&mut route.name).into();
    route.metadata = None;
    route.stat_prefix.clear();
    let matches = matching::matches(route.r#match.take().unwrap_or_default(), &join(path, "match"))?;
    let request_headers = edits(
        std::mem::take(&mut route.request_headers_to_add),
        std::mem::take(&mut route.request_headers_to_remove),
        &join(path, "request_headers_to_add"),
    )?;
    let reason = named_reason(&route.response_headers_to_add);
    // It never goes on, whoever asks for that.
    route.response_headers_to_remove.retain(|name| !name.eq_ignore_ascii_case(UNPROCESSED));
    let response_headers = edits(
        std::mem::take(&mut route.response_headers_to_add),
        std::mem::take(&mut route.response_headers_to_remove),
        &join(path, "response_headers_to_add"),
    )?;
    let own = overrides(
        std::mem::take(&mut route.typed_per_filter_config),
        &join(path, "typed_per_filter_config"),
    )?;
    let mut retry = None;
    let mut rewrite = Rewrite::default();
    let mut hash = Vec::new();
    let mut mirrors = Vec::new();
    let (action, timeouts) = match route.action.take() {
        Some(Action::Route(mut action)) => {
            let path = join(path, "route");
            retry = action.retry_policy.take();
            rewrite = target::rewrite(&mut action, &path)?;
            hash = target::hash_policies(std::mem::take(&mut action.hash_policy), &path)?;
            for (n, policy) in std::mem::take(&mut action.request_mirror_policies).into_iter().enumerate() {
                let path = join(&path, &format!("request_mirror_policies[{n}]"));
                mirrors.push(target::mirror(policy, &path, slots)?);
            }
            if mirrors.len() > MAX_MIRRORS {
                let cause = format!("more than {MAX_MIRRORS}");
                return Err(Refusal::new(join(&path, "request_mirror_policies"), cause));
            }
            clusters.extend(mirrors.iter().map(|mirror| mirror.cluster));
            forward(action, &path, slots, clusters)?
        }
        Some(Action::Redirect(redirect)) => {
            let redirect = target::redirect(redirect, &join(path, "redirect"))?;
            (CompiledAction::Redirect(redirect), RouteTimeouts::default())
        }
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
        _ => {
            return Err(Refusal::new(
                join(path, "action"),
                "only route, redirect and direct_response are supported",
            ));
        }
    };
    nothing_left(&route, path)?;
    let given = match retry {
        Some(policy) => Some((policy, join(path, "route.retry_policy"))),
        None => host.retry.clone(),
    };
    let (retry, response_head) = match given {
        Some((policy, path)) => resilience::retry(policy, &path)?,
        None => Default::default(),
    };
    let timeouts = RouteTimeouts { response_head, ..timeouts };
    let (limit, fault) = (own.limit.or(host.own.limit.clone()), own.fault.or(host.own.fault.clone()));
    Ok(CompiledRoute {
        name,
        matches,
        action,
        timeouts,
        rewrite,
        hash,
        retry,
        fault,
        limit,
        mirrors: mirrors.into(),
        request_headers,
        response_headers,
    })
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
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            CompiledAction::Weighted(target::split(weighted, &join(path, "weighted_clusters"), &mut slot)?)
        }
        _ => return Err(Refusal::new(join(path, "cluster_specifier"), "not supported, or missing")),
    };
    let total = match action.timeout.take() {
        // Absence means 15 s to Envoy, and must mean the same here.
        None => Some(Duration::from_secs(15)),
        given => limit(given, &join(path, "timeout"))?,
    };
    // Both end the exchange, and both count from its begin here.
    let most = max_stream_duration(action.max_stream_duration.take(), &join(path, "max_stream_duration"))?;
    let total = [total, most].into_iter().flatten().min();
    let idle = limit(action.idle_timeout.take(), &join(path, "idle_timeout"))?;
    action.cluster_not_found_response_code = 0;
    nothing_left(&action, path)?;
    Ok((compiled, RouteTimeouts { response_head: None, total, idle }))
}

fn max_stream_duration(given: Option<MaxStreamDuration>, path: &str) -> Result<Option<Duration>, Refusal> {
    let mut given = given.unwrap_or_default();
    let most = limit(given.max_stream_duration.take(), &join(path, "max_stream_duration"))?;
    nothing_left(&given, path)?;
    Ok(most)
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

#[cfg(test)]
mod tests;
