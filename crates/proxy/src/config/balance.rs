//! How endpoints are chosen, and the endpoints themselves.

use std::sync::Arc;
use std::time::Duration;

use outrider_proxy_core::balance::{
    BalanceConfig, DEFAULT_MAGLEV, DEFAULT_RING, Layout, MAX_RING, OVERPROVISIONING, Policy, SlowStart,
    TableKind,
};
use outrider_xds_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::LocalityConfigSpecifier;
use outrider_xds_types::pb::envoy::config::cluster::v3::cluster::ring_hash_lb_config::HashFunction;
use outrider_xds_types::pb::envoy::config::cluster::v3::cluster::{
    CommonLbConfig, LbConfig, LbPolicy, LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig,
    RoundRobinLbConfig, SlowStartConfig,
};
use outrider_xds_types::pb::envoy::config::cluster::v3::{Cluster, LoadBalancingPolicy};
use outrider_xds_types::pb::envoy::config::core::v3::HealthStatus;
use outrider_xds_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use outrider_xds_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints,
};
use outrider_xds_types::pb::google::protobuf::{UInt32Value, UInt64Value};
use outrider_xds_types::prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use outrider_xds_types::prost::{DecodeError, Message};

use super::Endpoint;
use super::fields::{Refusal, duration, join, nothing_left, socket_address};
use super::marks::Marks;

mod usual;

/// Most localities, counted once for each priority, of one cluster.
const MAX_LOCALITIES: usize = 256;
/// The balancer that Envoy has outside of its usual builds.
const PEAK_EWMA: &str =
    "type.googleapis.com/envoy.extensions.load_balancing_policies.peak_ewma.v3alpha.PeakEwma";
/// Envoy's limit of priorities.
const MAX_PRIORITY: u32 = 128;

/// Endpoints with what is said of them together, without tables.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assignment {
    /// In the order of the resource.
    pub list: Arc<[Endpoint]>,
    /// Weights of localities and the like.
    pub layout: Arc<Layout>,
    /// What endpoints say of themselves.
    pub marks: Arc<Marks>,
}

impl Assignment {
    /// The layout with the tables that a cluster of these settings needs.
    pub fn layout_for(&self, config: &BalanceConfig) -> Arc<Layout> {
        if !matches!(config.policy, Policy::Table(_)) {
            return Arc::clone(&self.layout);
        }
        let mut layout = Layout::clone(&self.layout);
        layout.make_tables(&self.list, config);
        Arc::new(layout)
    }
}

/// Takes the balancing out of a cluster.
pub(super) fn balance(cluster: &mut Cluster) -> Result<BalanceConfig, Refusal> {
    let mut config = BalanceConfig { by_locality: false, ..BalanceConfig::default() };
    let named = LbPolicy::try_from(std::mem::take(&mut cluster.lb_policy));
    let settings = cluster.lb_config.take();
    match cluster.load_balancing_policy.take() {
        Some(policy) if settings.is_none() => config.policy = extension(policy, "load_balancing_policy")?,
        Some(_) => return Err(Refusal::new("lb_config", "load_balancing_policy is set as well")),
        None => (config.policy, config.slow_start) = policy(named, settings)?,
    }
    common(cluster.common_lb_config.take().unwrap_or_default(), &mut config)?;
    Ok(config)
}

/// Of the policies listed, the first one that is known here, as Envoy does it.
fn extension(mut given: LoadBalancingPolicy, path: &str) -> Result<Policy, Refusal> {
    for (n, mut one) in std::mem::take(&mut given.policies).into_iter().enumerate() {
        let path = join(path, &format!("policies[{n}].typed_extension_config"));
        let any = one.typed_extension_config.take().and_then(|extension| extension.typed_config);
        match any {
            Some(any) if any.type_url == PEAK_EWMA && any.value.is_empty() => return Ok(Policy::PeakEwma),
            Some(any) if any.type_url == PEAK_EWMA => {
                return Err(Refusal::new(join(&path, "typed_config"), "only the defaults are supported"));
            }
            _ => {}
        }
    }
    nothing_left(&given, path)?;
    Err(Refusal::new(path, "none of these policies is supported: use lb_policy for the usual ones"))
}

type Chosen = (Policy, Option<SlowStart>);

fn policy<E>(named: Result<LbPolicy, E>, settings: Option<LbConfig>) -> Result<Chosen, Refusal> {
    let table = |kind: Result<TableKind, _>, path: &str| match kind {
        Ok(kind) => Ok((Policy::Table(kind), None)),
        Err(e) => Err(Refusal::new(path, format!("{e}"))),
    };
    match (named, settings) {
        (Ok(LbPolicy::Random), None) => Ok((Policy::Random, None)),
        (Ok(LbPolicy::RoundRobin), None) => Ok((Policy::RoundRobin, None)),
        (Ok(LbPolicy::RoundRobin), Some(LbConfig::RoundRobinLbConfig(mut config))) => {
            let path = "round_robin_lb_config";
            let slow = slow_start(config.slow_start_config.take(), &join(path, "slow_start_config"))?;
            nothing_left::<RoundRobinLbConfig>(&config, path)?;
            Ok((Policy::RoundRobin, slow))
        }
        (Ok(LbPolicy::LeastRequest), None) => Ok((Policy::LeastRequest, None)),
        (Ok(LbPolicy::LeastRequest), Some(LbConfig::LeastRequestLbConfig(mut config))) => {
            let path = "least_request_lb_config";
            if config.choice_count.take().is_some_and(|n| n.value != 2) {
                return Err(Refusal::new(join(path, "choice_count"), "only 2 is supported"));
            }
            let slow = slow_start(config.slow_start_config.take(), &join(path, "slow_start_config"))?;
            nothing_left::<LeastRequestLbConfig>(&config, path)?;
            Ok((Policy::LeastRequest, slow))
        }
        (Ok(LbPolicy::RingHash), settings @ (None | Some(LbConfig::RingHashLbConfig(_)))) => {
            let path = "ring_hash_lb_config";
            let mut config = match settings {
                Some(LbConfig::RingHashLbConfig(config)) => config,
                _ => RingHashLbConfig::default(),
            };
            if std::mem::take(&mut config.hash_function) != HashFunction::XxHash as i32 {
                return Err(Refusal::new(join(path, "hash_function"), "only XX_HASH is supported"));
            }
            let min = size(config.minimum_ring_size.take(), DEFAULT_RING);
            // Envoy's is eight times as much; what is between is only a bound.
            let max = size(config.maximum_ring_size.take(), MAX_RING);
            nothing_left::<RingHashLbConfig>(&config, path)?;
            table(TableKind::ring(min, max), &join(path, "minimum_ring_size"))
        }
        (Ok(LbPolicy::Maglev), settings @ (None | Some(LbConfig::MaglevLbConfig(_)))) => {
            let path = "maglev_lb_config";
            let mut config = match settings {
                Some(LbConfig::MaglevLbConfig(config)) => config,
                _ => MaglevLbConfig::default(),
            };
            let places = size(config.table_size.take(), DEFAULT_MAGLEV);
            nothing_left::<MaglevLbConfig>(&config, path)?;
            table(TableKind::maglev(places), &join(path, "table_size"))
        }
        (Ok(LbPolicy::ClusterProvided | LbPolicy::LoadBalancingPolicyConfig) | Err(_), _) => {
            Err(Refusal::new("lb_policy", "not supported"))
        }
        _ => Err(Refusal::new("lb_config", "does not fit lb_policy, or is not supported")),
    }
}

fn size(given: Option<UInt64Value>, default: u32) -> u32 {
    given.map_or(default, |n| u32::try_from(n.value).unwrap_or(u32::MAX))
}

fn slow_start(given: Option<SlowStartConfig>, path: &str) -> Result<Option<SlowStart>, Refusal> {
    let Some(mut given) = given else { return Ok(None) };
    let window = duration(given.slow_start_window.take(), &join(path, "slow_start_window"))?;
    let aggression = match given.aggression.take() {
        None => 1.0,
        // The key names a value at run time, and there are none here.
        Some(value) if value.default_value > 0.0 && value.default_value.is_finite() => value.default_value,
        Some(_) => return Err(Refusal::new(join(path, "aggression"), "must be above 0")),
    };
    let min_weight_percent = given.min_weight_percent.take().map_or(10.0, |percent| percent.value);
    if !(0.0..=100.0).contains(&min_weight_percent) {
        return Err(Refusal::new(join(path, "min_weight_percent"), "not a percentage"));
    }
    nothing_left(&given, path)?;
    let window = window.filter(|window| !window.is_zero());
    let millis = |window: Duration| u64::try_from(window.as_millis()).unwrap_or(u64::MAX).max(1);
    Ok(window.map(|window| SlowStart { window_ms: millis(window), aggression, min_weight_percent }))
}

fn common(mut common: CommonLbConfig, config: &mut BalanceConfig) -> Result<(), Refusal> {
    let path = "common_lb_config";
    let percent = common.healthy_panic_threshold.take().map_or(50.0, |p| p.value);
    if !(0.0..=100.0).contains(&percent) {
        return Err(Refusal::new(join(path, "healthy_panic_threshold"), "not a percentage"));
    }
    // Bounded above, so the conversion is exact but for the fraction.
    config.fail_open_below_percent = percent.round() as u8;
    match common.locality_config_specifier.take() {
        None => {}
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => config.by_locality = true,
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) => {
            return Err(Refusal::new(
                join(path, "zone_aware_lb_config"),
                "where callers are is not known here: prefer a zone by priorities, or by weights of localities",
            ));
        }
    }
    // Updates take effect at once; merging them would only delay.
    common.update_merge_window = None;
    nothing_left(&common, path)
}

/// Takes an assignment apart; `path` is where it was found.
pub(super) fn assignment(given: &ClusterLoadAssignment, path: &str) -> Result<Assignment, Refusal> {
    read(&given.encode_to_vec(), path)
}

/// Reads an assignment, one endpoint after the other: of a long list there is never more than what is kept of it.
pub(super) fn read(body: &[u8], path: &str) -> Result<Assignment, Refusal> {
    let broken = |error: DecodeError| Refusal::new(path, error.to_string());
    let (groups, rest) = repeated(body).map_err(broken)?;
    let mut given = ClusterLoadAssignment::decode(&*rest).map_err(broken)?;
    given.cluster_name.clear();
    let overprovisioning = overprovisioning(&mut given, path)?;
    nothing_left(&given, path)?;
    if groups.len() > MAX_LOCALITIES {
        let cause = format!("{} localities; at most {MAX_LOCALITIES} are supported", groups.len());
        return Err(Refusal::new(join(path, "endpoints"), cause));
    }
    let mut list = Vec::new();
    let mut localities = Vec::new();
    let mut marks = Marks::default();
    for (n, group) in groups.into_iter().enumerate() {
        let path = join(path, &format!("endpoints[{n}]"));
        let (endpoints, rest) = repeated(group).map_err(broken)?;
        let mut group = LocalityLbEndpoints::decode(&*rest).map_err(broken)?;
        let priority = std::mem::take(&mut group.priority);
        let priority =
            u8::try_from(priority).ok().filter(|p| u32::from(*p) <= MAX_PRIORITY).ok_or_else(|| {
                Refusal::new(join(&path, "priority"), format!("at most {MAX_PRIORITY} is supported"))
            })?;
        // Its name says nothing beside its weight, and how near it is says Envoy nothing either.
        group.locality = None;
        group.proximity = None;
        group.metadata = None;
        localities.push(group.load_balancing_weight.take().map_or(0, |w: UInt32Value| w.value));
        nothing_left::<LocalityLbEndpoints>(&group, &path)?;
        list.reserve(endpoints.len());
        for (m, one) in endpoints.into_iter().enumerate() {
            let general = || {
                let mut one = LbEndpoint::decode(one).map_err(broken)?;
                let metadata = one.metadata.take();
                let endpoint = endpoint(one)?;
                marks.add(endpoint.key, metadata)?;
                Ok(endpoint)
            };
            let endpoint = usual::read(one).map_or_else(general, Ok);
            let within = |refusal: Refusal| {
                Refusal::new(join(&join(&path, &format!("lb_endpoints[{m}]")), &refusal.path), refusal.cause)
            };
            // There are fewer localities than that.
            list.push(Endpoint { priority, locality: n as u16, ..endpoint.map_err(within)? });
        }
    }
    let layout = Layout { localities: localities.into(), overprovisioning, ..Layout::default() };
    Ok(Assignment { list: list.into(), layout: Arc::new(layout), marks: Arc::new(marks) })
}

/// The elements of what is repeated in a message of endpoints, `endpoints` or `lb_endpoints`, and the bytes of its other
/// fields.
fn repeated(mut body: &[u8]) -> Result<(Vec<&[u8]>, Vec<u8>), DecodeError> {
    /// Of both.
    const FIELD: u32 = 2;
    let (mut elements, mut rest) = (Vec::new(), Vec::new());
    while !body.is_empty() {
        let begin = body;
        let (field, kind) = decode_key(&mut body)?;
        let mut element = body;
        skip_field(kind, field, &mut body, DecodeContext::default())?;
        if (field, kind) == (FIELD, WireType::LengthDelimited) {
            decode_varint(&mut element)?;
            elements.push(&element[..element.len() - body.len()]);
        } else {
            rest.extend_from_slice(&begin[..begin.len() - body.len()]);
        }
    }
    Ok((elements, rest))
}

fn overprovisioning(given: &mut ClusterLoadAssignment, path: &str) -> Result<u32, Refusal> {
    let Some(mut policy) = given.policy.take() else { return Ok(OVERPROVISIONING) };
    let path = join(path, "policy");
    let factor = policy.overprovisioning_factor.take().map_or(OVERPROVISIONING, |factor| factor.value);
    nothing_left(&policy, &path)?;
    if (100..=100_000).contains(&factor) {
        Ok(factor)
    } else {
        Err(Refusal::new(join(&path, "overprovisioning_factor"), "must be from 100 to 100000"))
    }
}

/// Paths of refusals begin within it.
fn endpoint(mut one: LbEndpoint) -> Result<Endpoint, Refusal> {
    let health = HealthStatus::try_from(std::mem::take(&mut one.health_status));
    let healthy = match health {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded) => true,
        Ok(_) => false,
        Err(_) => return Err(Refusal::new("health_status", "unknown")),
    };
    let weight = one.load_balancing_weight.take().map_or(1, |w| w.value).max(1);
    let Some(HostIdentifier::Endpoint(mut host)) = one.host_identifier.take() else {
        return Err(Refusal::new("endpoint", "required"));
    };
    nothing_left(&one, "")?;
    let address = socket_address(host.address.take(), "endpoint.address")?;
    host.hostname.clear();
    nothing_left(&host, "endpoint")?;
    Ok(Endpoint { weight, healthy, ..Endpoint::new(address) })
}

#[cfg(test)]
mod tests;
