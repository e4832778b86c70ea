//! Clusters and their endpoints.

use std::sync::Arc;
use std::time::Duration;

use outrider_proxy_core::balance::Policy;
use outrider_xds_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use outrider_xds_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig, LbPolicy,
    LeastRequestLbConfig,
};
use outrider_xds_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster};
use outrider_xds_types::pb::envoy::config::core::v3::{
    HealthStatus, Http1ProtocolOptions, HttpProtocolOptions as CommonOptions,
};
use outrider_xds_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use outrider_xds_types::pb::envoy::config::endpoint::v3::{
    ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints,
};
use outrider_xds_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use outrider_xds_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, SdsSecretConfig, SubjectAltNameMatcher, TlsParameters,
    UpstreamTlsContext, subject_alt_name_matcher::SanType, tls_parameters::TlsProtocol,
};
use outrider_xds_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use outrider_xds_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
};
use outrider_xds_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use outrider_xds_types::pb::google::protobuf::{Any, UInt32Value};
use outrider_xds_types::prost::Message;
use outrider_xds_types::{SECRET_BUNDLE, SECRET_SVID};
use rustls_pki_types::ServerName;

use super::Endpoint;
use super::fields::{Refusal, join, limit, nothing_left, over_ads, socket_address, transport_socket, unpack};

/// Key of the HTTP options of a cluster, which is also their type's name.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A cluster without what arrives separately: endpoints and secrets.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedCluster {
    /// Resource name.
    pub name: Arc<str>,
    /// Connect and handshake.
    pub connect_timeout: Duration,
    /// How an endpoint is picked.
    pub policy: Policy,
    /// Percent of healthy endpoints below which health is ignored.
    pub panic_threshold: u8,
    /// TLS, and who must answer.
    pub tls: Option<ParsedTls>,
    /// How long an unused connection is kept.
    pub pool_idle: Duration,
    /// Most requests at once.
    pub max_requests: u32,
    /// Most connections at once.
    pub max_connections: u32,
    /// Where endpoints come from.
    pub endpoints: Source,
}

/// Where endpoints come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// In the cluster itself.
    Static(Arc<[Endpoint]>),
    /// The load assignment of this name.
    Eds(String),
}

/// TLS towards an upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedTls {
    /// SPIFFE IDs, one of which the upstream must have.
    pub expected: Vec<Arc<str>>,
    /// Sent as SNI.
    pub server_name: ServerName<'static>,
    /// Sent as ALPN.
    pub alpn: Vec<Vec<u8>>,
}

/// Reads a `Cluster`.
///
/// # Errors
/// What cannot be honoured.
pub fn parse(body: &[u8]) -> Result<ParsedCluster, Refusal> {
    let mut cluster = Cluster::decode(body).map_err(|e| Refusal::new("", e.to_string()))?;
    let name: Arc<str> = std::mem::take(&mut cluster.name).into();
    let discovery = match cluster.cluster_discovery_type.take() {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(n)) => {
            DiscoveryType::try_from(n).map_err(|_| Refusal::new("type", "unknown"))?
        }
        Some(ClusterDiscoveryType::ClusterType(_)) => {
            return Err(Refusal::new("cluster_type", "custom clusters are not supported"));
        }
    };
    let endpoints = match discovery {
        DiscoveryType::Static => {
            let assignment = cluster
                .load_assignment
                .take()
                .ok_or_else(|| Refusal::new("load_assignment", "a static cluster needs one"))?;
            Source::Static(endpoints(assignment, "load_assignment")?)
        }
        DiscoveryType::Eds => {
            let mut eds: EdsClusterConfig = cluster
                .eds_cluster_config
                .take()
                .ok_or_else(|| Refusal::new("eds_cluster_config", "an EDS cluster needs one"))?;
            over_ads(eds.eds_config.take(), "eds_cluster_config.eds_config")?;
            let service = std::mem::take(&mut eds.service_name);
            Source::Eds(if service.is_empty() { name.to_string() } else { service })
        }
        other => return Err(Refusal::new("type", format!("{} is not supported", other.as_str_name()))),
    };
    let policy = balance_policy(&mut cluster)?;
    let panic_threshold = panic_threshold(&mut cluster)?;
    let tls = match cluster.transport_socket.take() {
        Some(socket) => Some(upstream_tls(&transport_socket(socket, "transport_socket")?)?),
        None => None,
    };
    let connect_timeout =
        limit(cluster.connect_timeout.take(), "connect_timeout")?.unwrap_or(Duration::from_secs(5));
    let pool_idle = http_options(&mut cluster)?;
    let (max_connections, max_requests) = limits(cluster.circuit_breakers.take())?;

    // What follows says what this proxy does anyway.
    cluster.alt_stat_name.clear();
    cluster.metadata = None;
    // Endpoints leave with discovery, whatever their health.
    cluster.ignore_health_on_host_removal = false;
    // Idle probes: this proxy probes every upstream connection after 60 s of silence.
    cluster.upstream_connection_options = None;
    // Buffers are bounded by design, at 256 KiB or less.
    cluster.per_connection_buffer_limit_bytes = None;
    nothing_left(&cluster, "")?;
    Ok(ParsedCluster {
        name,
        connect_timeout,
        policy,
        panic_threshold,
        tls,
        pool_idle,
        max_requests,
        max_connections,
        endpoints,
    })
}

fn balance_policy(cluster: &mut Cluster) -> Result<Policy, Refusal> {
    let named = LbPolicy::try_from(std::mem::take(&mut cluster.lb_policy));
    let policy = match named {
        Ok(LbPolicy::RoundRobin) => Policy::RoundRobin,
        Ok(LbPolicy::LeastRequest) => Policy::LeastRequest,
        Ok(LbPolicy::Random) => Policy::Random,
        _ => return Err(Refusal::new("lb_policy", "not supported")),
    };
    match cluster.lb_config.take() {
        None => {}
        Some(LbConfig::LeastRequestLbConfig(mut config)) if policy == Policy::LeastRequest => {
            if config.choice_count.take().is_some_and(|n| n.value != 2) {
                return Err(Refusal::new("least_request_lb_config.choice_count", "only 2 is supported"));
            }
            nothing_left::<LeastRequestLbConfig>(&config, "least_request_lb_config")?;
        }
        Some(_) => return Err(Refusal::new("lb_config", "does not fit lb_policy, or is not supported")),
    }
    Ok(policy)
}

fn panic_threshold(cluster: &mut Cluster) -> Result<u8, Refusal> {
    let mut common = cluster.common_lb_config.take().unwrap_or_default();
    let percent = common.healthy_panic_threshold.take().map_or(50.0, |p| p.value);
    if !(0.0..=100.0).contains(&percent) {
        return Err(Refusal::new("common_lb_config.healthy_panic_threshold", "not a percentage"));
    }
    // Updates take effect at once; merging them would only delay.
    common.update_merge_window = None;
    nothing_left::<CommonLbConfig>(&common, "common_lb_config")?;
    // Bounded above, so the conversion is exact but for the fraction.
    Ok(percent.round() as u8)
}

fn http_options(cluster: &mut Cluster) -> Result<Duration, Refusal> {
    let default = Duration::from_secs(60);
    let path = "typed_extension_protocol_options";
    let mut idle = None;
    if let Some(any) = cluster.typed_extension_protocol_options.remove(HTTP_OPTIONS) {
        let path = join(path, HTTP_OPTIONS);
        let mut options: HttpProtocolOptions = unpack(&any, &path)?;
        idle = common_idle(
            options.common_http_protocol_options.take(),
            &join(&path, "common_http_protocol_options"),
        )?;
        match options.upstream_protocol_options.take() {
            None => {}
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
                None => {}
                Some(ProtocolConfig::HttpProtocolOptions(http1)) => http1_options(http1, &path)?,
                Some(_) => return Err(Refusal::new(path, "only HTTP/1.1 is supported towards endpoints")),
            },
            Some(_) => return Err(Refusal::new(path, "only an explicit protocol is supported")),
        }
        nothing_left(&options, &path)?;
    }
    Ok(idle.unwrap_or(default))
}

fn common_idle(options: Option<CommonOptions>, path: &str) -> Result<Option<Duration>, Refusal> {
    let mut options = options.unwrap_or_default();
    let idle = limit(options.idle_timeout.take(), &join(path, "idle_timeout"))?;
    // The limits of heads are the same in both directions: 96 KiB and 200 lines.
    options.max_headers_count = None;
    options.max_response_headers_kb = None;
    nothing_left(&options, path)?;
    Ok(idle)
}

/// Accepts only what this proxy does anyway: bytes are not touched.
pub(super) fn http1_options(mut options: Http1ProtocolOptions, path: &str) -> Result<(), Refusal> {
    // Case is always preserved, trailers always pass, HTTP/1.0 callers are served.
    options.header_key_format = None;
    options.enable_trailers = false;
    options.accept_http_10 = false;
    options.default_host_for_http_10.clear();
    // Any method passes that is a valid token.
    options.allow_custom_methods = false;
    nothing_left(&options, path)
}

fn limits(breakers: Option<CircuitBreakers>) -> Result<(u32, u32), Refusal> {
    let mut connections = 1024;
    let mut requests = 1024;
    let Some(mut breakers) = breakers else { return Ok((connections, requests)) };
    for mut thresholds in std::mem::take(&mut breakers.thresholds) {
        let read = |value: Option<UInt32Value>, default| value.map_or(default, |v| v.value);
        connections = read(thresholds.max_connections.take(), connections);
        requests = read(thresholds.max_requests.take(), requests);
        // A request that finds no connection makes one, so nothing is ever pending beyond max_connections;
        // retries are one per request.
        thresholds.max_pending_requests = None;
        thresholds.max_retries = None;
        thresholds.track_remaining = false;
        nothing_left::<Thresholds>(&thresholds, "circuit_breakers.thresholds")?;
    }
    nothing_left(&breakers, "circuit_breakers")?;
    Ok((connections, requests))
}

fn upstream_tls(any: &Any) -> Result<ParsedTls, Refusal> {
    let path = "transport_socket";
    let mut context: UpstreamTlsContext = unpack(any, path)?;
    let common = context
        .common_tls_context
        .take()
        .ok_or_else(|| Refusal::new(join(path, "common_tls_context"), "required"))?;
    let sni = std::mem::take(&mut context.sni);
    nothing_left(&context, path)?;
    let parsed = common_tls(common, &join(path, "common_tls_context"))?;
    if parsed.expected.is_empty() {
        return Err(Refusal::new(
            join(path, "common_tls_context.validation_context"),
            "the upstream's identity must be given as match_typed_subject_alt_names",
        ));
    }
    let server_name = if sni.is_empty() { "outrider.internal".to_owned() } else { sni };
    let server_name =
        ServerName::try_from(server_name).map_err(|_| Refusal::new(join(path, "sni"), "not a host name"))?;
    Ok(ParsedTls { expected: parsed.expected, server_name, alpn: parsed.alpn })
}

/// The part that both directions of TLS share.
pub(super) struct CommonTls {
    /// Exact SPIFFE IDs.
    pub expected: Vec<Arc<str>>,
    /// In order of preference.
    pub alpn: Vec<Vec<u8>>,
}

pub(super) fn common_tls(mut context: CommonTlsContext, path: &str) -> Result<CommonTls, Refusal> {
    if let Some(mut params) = context.tls_params.take() {
        let path = join(path, "tls_params");
        let minimum = std::mem::take(&mut params.tls_minimum_protocol_version);
        let maximum = std::mem::take(&mut params.tls_maximum_protocol_version);
        if minimum != TlsProtocol::TlSv13 as i32 {
            return Err(Refusal::new(join(&path, "tls_minimum_protocol_version"), "only TLS 1.3 is spoken"));
        }
        if maximum != TlsProtocol::TlSv13 as i32 && maximum != TlsProtocol::TlsAuto as i32 {
            return Err(Refusal::new(join(&path, "tls_maximum_protocol_version"), "only TLS 1.3 is spoken"));
        }
        nothing_left::<TlsParameters>(&params, &path)?;
    }
    let certificates = std::mem::take(&mut context.tls_certificate_sds_secret_configs);
    let [certificate] = <[SdsSecretConfig; 1]>::try_from(certificates).map_err(|_| {
        Refusal::new(join(path, "tls_certificate_sds_secret_configs"), "exactly one is required")
    })?;
    secret_reference(certificate, SECRET_SVID, &join(path, "tls_certificate_sds_secret_configs"))?;
    let expected = match context.validation_context_type.take() {
        Some(ValidationContextType::ValidationContextSdsSecretConfig(bundle)) => {
            secret_reference(bundle, SECRET_BUNDLE, &join(path, "validation_context_sds_secret_config"))?;
            Vec::new()
        }
        Some(ValidationContextType::CombinedValidationContext(mut combined)) => {
            let path = join(path, "combined_validation_context");
            let bundle = combined.validation_context_sds_secret_config.take().unwrap_or_default();
            secret_reference(bundle, SECRET_BUNDLE, &join(&path, "validation_context_sds_secret_config"))?;
            let mut inner = combined.default_validation_context.take().unwrap_or_default();
            let names = std::mem::take(&mut inner.match_typed_subject_alt_names)
                .into_iter()
                .map(|matcher| san(matcher, &join(&path, "match_typed_subject_alt_names")))
                .collect::<Result<_, _>>()?;
            nothing_left::<CertificateValidationContext>(&inner, &join(&path, "default_validation_context"))?;
            nothing_left::<CombinedCertificateValidationContext>(&combined, &path)?;
            names
        }
        _ => return Err(Refusal::new(join(path, "validation_context_type"), "only SDS is supported")),
    };
    let alpn = std::mem::take(&mut context.alpn_protocols).into_iter().map(String::into_bytes).collect();
    nothing_left(&context, path)?;
    Ok(CommonTls { expected, alpn })
}

fn secret_reference(config: SdsSecretConfig, expected: &str, path: &str) -> Result<(), Refusal> {
    over_ads(config.sds_config, &join(path, "sds_config"))?;
    if config.name == expected {
        Ok(())
    } else {
        Err(Refusal::new(join(path, "name"), format!("must be `{expected}`, is `{}`", config.name)))
    }
}

fn san(matcher: SubjectAltNameMatcher, path: &str) -> Result<Arc<str>, Refusal> {
    if matcher.san_type != SanType::Uri as i32 {
        return Err(Refusal::new(join(path, "san_type"), "only URI is supported"));
    }
    exact(matcher.matcher, &join(path, "matcher")).map(Into::into)
}

/// A string matcher that is an exact one.
pub(super) fn exact(matcher: Option<StringMatcher>, path: &str) -> Result<String, Refusal> {
    let mut matcher = matcher.unwrap_or_default();
    match matcher.match_pattern.take() {
        Some(MatchPattern::Exact(text)) if !text.is_empty() => {
            nothing_left(&matcher, path)?;
            Ok(text)
        }
        _ => Err(Refusal::new(path, "only an exact match is supported")),
    }
}

/// Reads a `ClusterLoadAssignment`.
///
/// # Errors
/// What cannot be honoured.
pub fn parse_endpoints(body: &[u8]) -> Result<Arc<[Endpoint]>, Refusal> {
    let assignment = ClusterLoadAssignment::decode(body).map_err(|e| Refusal::new("", e.to_string()))?;
    endpoints(assignment, "")
}

fn endpoints(mut assignment: ClusterLoadAssignment, path: &str) -> Result<Arc<[Endpoint]>, Refusal> {
    assignment.cluster_name.clear();
    let mut list = Vec::new();
    for (n, mut locality) in std::mem::take(&mut assignment.endpoints).into_iter().enumerate() {
        let path = join(path, &format!("endpoints[{n}]"));
        if locality.priority != 0 {
            return Err(Refusal::new(join(&path, "priority"), "only 0 is supported"));
        }
        // Where endpoints are is not used for balancing; all weigh by themselves.
        locality.locality = None;
        locality.load_balancing_weight = None;
        locality.metadata = None;
        for (n, one) in std::mem::take(&mut locality.lb_endpoints).into_iter().enumerate() {
            list.push(endpoint(one, &join(&path, &format!("lb_endpoints[{n}]")))?);
        }
        nothing_left::<LocalityLbEndpoints>(&locality, &path)?;
    }
    nothing_left(&assignment, path)?;
    Ok(list.into())
}

fn endpoint(mut one: LbEndpoint, path: &str) -> Result<Endpoint, Refusal> {
    let health = HealthStatus::try_from(std::mem::take(&mut one.health_status));
    let healthy = match health {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded) => true,
        Ok(_) => false,
        Err(_) => return Err(Refusal::new(join(path, "health_status"), "unknown")),
    };
    let weight = one.load_balancing_weight.take().map_or(1, |w| w.value).max(1);
    let Some(HostIdentifier::Endpoint(mut host)) = one.host_identifier.take() else {
        return Err(Refusal::new(join(path, "endpoint"), "required"));
    };
    one.metadata = None;
    nothing_left(&one, path)?;
    let address = socket_address(host.address.take(), &join(path, "endpoint.address"))?;
    host.hostname.clear();
    nothing_left(&host, &join(path, "endpoint"))?;
    Ok(Endpoint { key: address, weight, healthy })
}
