//! Clusters and their endpoints.

use std::sync::Arc;
use std::time::Duration;

use outrider_proxy_core::balance::BalanceConfig;
use outrider_proxy_core::http1::Limits as HeadLimits;
use outrider_proxy_core::outlier::OutlierConfig;
use outrider_xds_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, EdsClusterConfig,
};
use outrider_xds_types::pb::envoy::config::cluster::v3::{Cluster, UpstreamConnectionOptions};
use outrider_xds_types::pb::envoy::config::core::v3::{
    Http1ProtocolOptions, HttpProtocolOptions as CommonOptions,
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

use super::balance::{self, Assignment, assignment, balance};
use super::check::{self, Check, CheckKind};
use super::fields::{Refusal, join, limit, nothing_left, over_ads, transport_socket, unpack};
use super::marks::{self, ParsedMatch};
use super::{Version, http2, resilience};
use crate::liveness::Probes;
use crate::shared::Limits;

/// Key of the HTTP options of a cluster, which is also their type's name.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// A cluster without what arrives separately: endpoints and secrets.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedCluster {
    /// Resource name.
    pub name: Arc<str>,
    /// Connect and handshake.
    pub connect_timeout: Duration,
    /// How silent connections are probed.
    pub probes: Probes,
    /// How an endpoint is picked.
    pub balance: BalanceConfig,
    /// TLS, and who must answer.
    pub tls: Option<ParsedTls>,
    /// The same of endpoints that say so, instead.
    pub matches: Vec<ParsedMatch>,
    /// What is spoken with endpoints.
    pub version: Version,
    /// How long an unused connection is kept.
    pub pool_idle: Duration,
    /// How long a connection is used for further requests; `None` is without end.
    pub max_age: Option<Duration>,
    /// Most of it at once.
    pub limits: Limits,
    /// When endpoints are ejected.
    pub outlier: Option<OutlierConfig>,
    /// How endpoints are checked.
    pub check: Option<Arc<Check>>,
    /// Where endpoints come from.
    pub endpoints: Source,
}

/// Where endpoints come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// In the cluster itself.
    Static(Assignment),
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
            let given = cluster
                .load_assignment
                .take()
                .ok_or_else(|| Refusal::new("load_assignment", "a static cluster needs one"))?;
            Source::Static(assignment(&given, "load_assignment")?)
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
    let balance = balance(&mut cluster)?;
    let tls = match cluster.transport_socket.take() {
        Some(socket) => {
            Some(upstream_tls(&transport_socket(socket, "transport_socket")?, "transport_socket")?)
        }
        None => None,
    };
    let matches = marks::matches(std::mem::take(&mut cluster.transport_socket_matches))?;
    if tls.is_none() && !matches.is_empty() {
        let why = "only a cluster with a transport_socket can have others beside it";
        return Err(Refusal::new("transport_socket_matches", why));
    }
    let connect_timeout =
        limit(cluster.connect_timeout.take(), "connect_timeout")?.unwrap_or(Duration::from_secs(5));
    let Options { pool_idle, max_age, version } = http_options(&mut cluster)?;
    let limits = resilience::limits(cluster.circuit_breakers.take())?;
    let outlier = cluster.outlier_detection.take().map(resilience::outlier).transpose()?;
    let probes = probes(cluster.upstream_connection_options.take())?;
    let check = check::check(std::mem::take(&mut cluster.health_checks), &name)?;

    if let Some(check) = &check {
        let why = match (&check.kind, version.http2()) {
            (CheckKind::Http { .. }, Some(_)) => {
                Some("this cluster speaks HTTP/2: codec_client_type says HTTP1")
            }
            (CheckKind::Http2 { .. } | CheckKind::Grpc { .. }, None) => Some("this cluster speaks HTTP/1.1"),
            _ => None,
        };
        if let Some(why) = why {
            return Err(Refusal::new("health_checks[0].health_checker", why));
        }
    }

    // What follows says what this proxy does anyway.
    cluster.alt_stat_name.clear();
    cluster.metadata = None;
    // Endpoints leave with discovery, whatever their health.
    cluster.ignore_health_on_host_removal = false;
    // Buffers are bounded by design, at 256 KiB or less.
    cluster.per_connection_buffer_limit_bytes = None;
    nothing_left(&cluster, "")?;
    Ok(ParsedCluster {
        name,
        connect_timeout,
        probes,
        balance,
        tls,
        matches,
        version,
        pool_idle,
        max_age,
        limits,
        outlier,
        check,
        endpoints,
    })
}

/// How silent connections are probed; what is not said is [`Probes::default`]'s.
fn probes(options: Option<UpstreamConnectionOptions>) -> Result<Probes, Refusal> {
    let mut probes = Probes::default();
    let Some(mut options) = options else { return Ok(probes) };
    let path = "upstream_connection_options.tcp_keepalive";
    if let Some(given) = options.tcp_keepalive.take() {
        // The kernel's own bounds.
        let within = |name: &str, value: Option<UInt32Value>, most: u32| match value.map(|value| value.value)
        {
            Some(value) if !(1..=most).contains(&value) => {
                Err(Refusal::new(join(path, name), format!("1 to {most}, and not {value}")))
            }
            value => Ok(value),
        };
        let seconds = |value: u32| Duration::from_secs(value.into());
        let after = within("keepalive_time", given.keepalive_time, 32_767)?;
        let interval = within("keepalive_interval", given.keepalive_interval, 32_767)?;
        let count = within("keepalive_probes", given.keepalive_probes, 127)?;
        probes = Probes {
            after: after.map_or(probes.after, seconds),
            interval: interval.map_or(probes.interval, seconds),
            count: count.unwrap_or(probes.count),
        };
    }
    nothing_left(&options, "upstream_connection_options")?;
    Ok(probes)
}

/// What is said of connections to endpoints.
struct Options {
    pool_idle: Duration,
    max_age: Option<Duration>,
    version: Version,
}

/// How long an unused connection is kept, unless something else is said.
const POOL_IDLE: Duration = Duration::from_secs(60);
/// How long a connection is used for further requests, unless something else is said: its buffers are given back now and
/// then, and what is in front of endpoints can share connections out anew. Nothing in it is cut. Envoy has no limit by itself.
const MAX_AGE: Duration = Duration::from_secs(3600);

fn http_options(cluster: &mut Cluster) -> Result<Options, Refusal> {
    let path = "typed_extension_protocol_options";
    let (mut idle, mut age) = (None, Some(MAX_AGE));
    let mut version = Version::Http1;
    if let Some(any) = cluster.typed_extension_protocol_options.remove(HTTP_OPTIONS) {
        let path = join(path, HTTP_OPTIONS);
        let mut options: HttpProtocolOptions = unpack(&any, &path)?;
        let common = options.common_http_protocol_options.take();
        (idle, age) = common_options(common, &join(&path, "common_http_protocol_options"))?;
        match options.upstream_protocol_options.take() {
            None => {}
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
                None => {}
                Some(ProtocolConfig::HttpProtocolOptions(http1)) => http1_options(http1, &path)?,
                Some(ProtocolConfig::Http2ProtocolOptions(options)) => {
                    version =
                        Version::Http2(http2::options(options, &join(&path, "http2_protocol_options"))?);
                }
                Some(_) => {
                    return Err(Refusal::new(
                        path,
                        "only HTTP/1.1 and HTTP/2 are supported towards endpoints",
                    ));
                }
            },
            Some(_) => return Err(Refusal::new(path, "only an explicit protocol is supported")),
        }
        nothing_left(&options, &path)?;
    }
    Ok(Options { pool_idle: idle.unwrap_or(POOL_IDLE), max_age: age, version })
}

/// For how long an unused connection, and any connection, is kept.
fn common_options(
    options: Option<CommonOptions>,
    path: &str,
) -> Result<(Option<Duration>, Option<Duration>), Refusal> {
    let mut options = options.unwrap_or_default();
    let idle = limit(options.idle_timeout.take(), &join(path, "idle_timeout"))?;
    let age = match options.max_connection_duration.take() {
        None => Some(MAX_AGE),
        given => limit(given, &join(path, "max_connection_duration"))?,
    };
    // What heads of responses are held against does not change.
    let accepted = HeadLimits::default();
    for (field, given, fixed) in [
        ("max_headers_count", options.max_headers_count.take(), accepted.max_headers),
        ("max_response_headers_kb", options.max_response_headers_kb.take(), accepted.max_head >> 10),
    ] {
        if let Some(given) = given.filter(|given| given.value as usize != fixed) {
            let why = format!("towards endpoints only {fixed} is supported, not {}", given.value);
            return Err(Refusal::new(join(path, field), why));
        }
    }
    nothing_left(&options, path)?;
    Ok((idle, age))
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

pub(super) fn upstream_tls(any: &Any, path: &str) -> Result<ParsedTls, Refusal> {
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
pub fn parse_endpoints(body: &[u8]) -> Result<Assignment, Refusal> {
    balance::read(body, "")
}

#[cfg(test)]
mod tests {
    use outrider_xds_types::pb::envoy::config::core::v3::TcpKeepalive;

    use super::*;

    /// What is said of probes is carried out, or refused by its name.
    #[test]
    fn e34_probes_are_those_that_are_declared() {
        let said = |value: u32| Some(UInt32Value { value });
        let cluster = |keepalive_time, keepalive_interval, keepalive_probes, interface| {
            let tcp_keepalive = Some(TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval });
            UpstreamConnectionOptions {
                tcp_keepalive,
                set_local_interface_name_on_upstream_connections: interface,
                ..Default::default()
            }
        };
        let seconds = Duration::from_secs;
        let all = Probes { after: seconds(30), interval: seconds(5), count: 4 };
        let one = Probes { after: seconds(7), ..Probes::default() };
        let cases = [
            (None, Ok(Probes::default())),
            (Some(cluster(said(30), said(5), said(4), false)), Ok(all)),
            (Some(cluster(said(7), None, None, false)), Ok(one)),
            (Some(cluster(said(0), None, None, false)), Err("tcp_keepalive.keepalive_time")),
            (Some(cluster(None, said(40_000), None, false)), Err("tcp_keepalive.keepalive_interval")),
            (Some(cluster(None, None, said(128), false)), Err("tcp_keepalive.keepalive_probes")),
            (Some(cluster(None, None, None, true)), Err("set_local_interface_name")),
        ];
        for (options, expected) in cases {
            match (probes(options), expected) {
                (Ok(probes), Ok(expected)) => assert_eq!(probes, expected),
                (Err(refusal), Err(named)) => assert!(refusal.to_string().contains(named), "{refusal}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
