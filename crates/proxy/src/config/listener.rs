//! Listeners: filter chains, TLS, access, HTTP and TCP services.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrider_proxy_core::access::{AccessPolicy, Rules};
use outrider_proxy_core::fault::Fault;
use outrider_proxy_core::http1::Limits;
use outrider_proxy_core::limit::RateLimit;
use outrider_proxy_core::route::{Backend, RouteTable, Split, SplitBy};
use outrider_xds_types::names::ListenerMetadata;
use outrider_xds_types::pb::envoy::config::core::v3::TrafficDirection;
use outrider_xds_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter, filter, listener_filter,
};
use outrider_xds_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use outrider_xds_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use outrider_xds_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use outrider_xds_types::pb::envoy::extensions::filters::http::router::v3::Router;
use outrider_xds_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, RouteSpecifier, SetCurrentClientCertDetails, UpgradeConfig,
};
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_filter,
};
use outrider_xds_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use outrider_xds_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::{
    TcpProxy, tcp_proxy::ClusterSpecifier, tcp_proxy::WeightedCluster, tcp_proxy::weighted_cluster::ClusterWeight,
};
use outrider_xds_types::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;
use outrider_xds_types::pb::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use outrider_xds_types::pb::google::protobuf::Any;
use outrider_xds_types::prost::{Message, Name};

use super::access::Access;
use super::cluster::{CommonTls, common_tls, http1_options};
use super::fields::{Refusal, join, limit, nothing_left, over_ads, socket_address, transport_socket, unpack};
use super::{Slots, Version, http2, resilience, route};

/// Idle limit of HTTP connections where none is given; Envoy's.
const DEFAULT_IDLE: Duration = Duration::from_secs(300);
/// Idle limit between requests where none is given; Envoy's.
const DEFAULT_CONNECTION_IDLE: Duration = Duration::from_secs(3600);
/// Limit of a head's arrival where none is given.
const DEFAULT_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle limit of TCP where none is given; Envoy's.
const DEFAULT_TCP_IDLE: Duration = Duration::from_secs(3600);

/// Names of protocols, lower case.
type Protocols = Arc<[Box<str>]>;

/// Most protocols beside WebSocket that connections of a listener can be switched to, and the longest name of one.
const MAX_UPGRADES: usize = 16;
const MAX_UPGRADE: usize = 64;

/// A listener without what arrives separately: routes over RDS, certificates, descriptors.
pub struct ParsedListener {
    /// Resource name.
    pub name: Arc<str>,
    /// Where callers connect.
    pub address: SocketAddr,
    /// Whether others call this service through it.
    pub inbound: bool,
    /// Connections that begin with TLS, and the ALPN names offered.
    pub tls: Option<(Vec<Vec<u8>>, ParsedService)>,
    /// Others.
    pub plain: Option<ParsedService>,
    /// When silence means "no TLS"; only with both.
    pub detect: Option<Duration>,
    /// What callers most likely call the service; empty if nobody says.
    pub default_host: Arc<str>,
    /// SPIFFE IDs of callers that may finish what they have begun, sorted.
    pub finishing: Arc<[Box<str>]>,
}

impl ParsedListener {
    /// Both services.
    pub fn services(&self) -> impl Iterator<Item = &ParsedService> {
        self.tls.iter().map(|(_, service)| service).chain(&self.plain)
    }

    /// Takes from what was read before who may call, and what, where that is the same: looked at once here, and by nobody
    /// after.
    pub fn keep(&mut self, former: &Self) {
        if self.finishing == former.finishing {
            self.finishing = Arc::clone(&former.finishing);
        }
        let secure = self.tls.iter_mut().zip(&former.tls).map(|((_, ours), (_, theirs))| (ours, theirs));
        for (ours, theirs) in secure.chain(self.plain.iter_mut().zip(&former.plain)) {
            let (access, rules) = ours.access_mut();
            let (former_access, former_rules) = theirs.access();
            if access == former_access {
                access.clone_from(former_access);
            }
            if rules == former_rules {
                rules.clone_from(former_rules);
            }
        }
    }
}

/// What is done with a connection.
pub enum ParsedService {
    /// Requests.
    Http(ParsedHttp),
    /// Bytes.
    Tcp {
        /// Where bytes go, as slots of clusters.
        split: Split,
        /// Whether keys are callers' addresses.
        by_source: bool,
        /// Who may.
        access: AccessPolicy,
        /// What else is asked of who calls.
        rules: Option<Arc<Rules>>,
        /// Longest silence.
        idle: Option<Duration>,
        /// Endpoints tried.
        attempts: u32,
    },
}

impl ParsedService {
    const fn access(&self) -> (&AccessPolicy, &Option<Arc<Rules>>) {
        let (Self::Http(ParsedHttp { access, rules, .. }) | Self::Tcp { access, rules, .. }) = self;
        (access, rules)
    }

    const fn access_mut(&mut self) -> (&mut AccessPolicy, &mut Option<Arc<Rules>>) {
        let (Self::Http(ParsedHttp { access, rules, .. }) | Self::Tcp { access, rules, .. }) = self;
        (access, rules)
    }

    /// The same for these SPIFFE IDs only.
    fn only(mut self, ids: &[Arc<str>]) -> Self {
        let (access, _) = self.access_mut();
        *access = std::mem::take(access).only(ids);
        self
    }
}

/// An HTTP service whose routes may still be elsewhere.
pub struct ParsedHttp {
    /// What is spoken.
    pub version: Version,
    /// Routes.
    pub routes: Routes,
    /// Who may.
    pub access: AccessPolicy,
    /// And what.
    pub rules: Option<Arc<Rules>>,
    /// Whether `x-forwarded-client-cert` is ours.
    pub forward_client_cert: bool,
    /// Whether callers may ask for WebSocket.
    pub upgrades: bool,
    /// To what else they may switch.
    pub tunnels: Protocols,
    /// Longest silence within an exchange.
    pub idle: Option<Duration>,
    /// Longest silence between two requests.
    pub connection_idle: Duration,
    /// From the first byte of a head to its last.
    pub head_timeout: Duration,
    /// Limits of heads.
    pub limits: Limits,
    /// Limit of requests.
    pub limit: Option<Arc<RateLimit>>,
    /// Faults on purpose.
    pub fault: Option<Arc<Fault>>,
}

/// Where routes are.
pub enum Routes {
    /// In the listener.
    Inline(Arc<RouteTable>, Vec<u32>),
    /// In the route configuration of this name.
    Rds(String),
}

/// Reads a `Listener`.
///
/// # Errors
/// What cannot be honoured.
pub fn parse(body: &[u8], slots: &mut Slots) -> Result<ParsedListener, Refusal> {
    let mut listener = Listener::decode(body).map_err(|e| Refusal::new("", e.to_string()))?;
    let name: Arc<str> = std::mem::take(&mut listener.name).into();
    let address = socket_address(listener.address.take(), "address")?;
    for (n, filter) in std::mem::take(&mut listener.listener_filters).into_iter().enumerate() {
        listener_filter(filter, &format!("listener_filters[{n}]"))?;
    }
    let inbound = std::mem::take(&mut listener.traffic_direction) == TrafficDirection::Inbound as i32;
    let about = listener.metadata.take().and_then(|metadata| ListenerMetadata::from_metadata(&metadata));
    let mut about = about.unwrap_or_default();
    let mut finishing: Vec<Box<str>> =
        std::mem::take(&mut about.finishing).into_iter().map(Into::into).collect();
    finishing.sort_unstable();
    let (finishing, default_host) = (finishing.into(), default_host(about));
    let mut parsed = ParsedListener {
        name,
        address,
        inbound,
        tls: None,
        plain: None,
        detect: None,
        default_host,
        finishing,
    };
    let chains = std::mem::take(&mut listener.filter_chains);
    if chains.is_empty() {
        return Err(Refusal::new("filter_chains", "at least one is required"));
    }
    let only = chains.len() == 1;
    for (n, chain) in chains.into_iter().enumerate() {
        filter_chain(chain, only, &format!("filter_chains[{n}]"), &mut parsed, slots)?;
    }
    // What follows says what this proxy does anyway, or is for others.
    listener.stat_prefix.clear();
    // The agent binds; how is its affair.
    listener.enable_reuse_port = None;
    listener.tcp_backlog_size = None;
    let detect = limit(listener.listener_filters_timeout.take(), "listener_filters_timeout")?;
    if std::mem::take(&mut listener.continue_on_listener_filters_timeout) {
        parsed.detect = detect;
    }
    listener.per_connection_buffer_limit_bytes = None;
    nothing_left(&listener, "")?;
    Ok(parsed)
}

/// The service's first name, with the port unless it is the usual one.
fn default_host(about: ListenerMetadata) -> Arc<str> {
    let name = match (about.names.into_iter().next(), about.service.split_once('/')) {
        (Some(name), _) => name,
        (None, Some((namespace, service))) => format!("{service}.{namespace}"),
        (None, None) => return Arc::default(),
    };
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        return Arc::default();
    }
    if about.port == 80 { name.into() } else { format!("{name}:{}", about.port).into() }
}

fn listener_filter(filter: ListenerFilter, path: &str) -> Result<(), Refusal> {
    match filter.config_type {
        Some(listener_filter::ConfigType::TypedConfig(any)) => {
            let inspector: TlsInspector = unpack(&any, &join(path, "typed_config"))?;
            nothing_left(&inspector, &join(path, "typed_config"))
        }
        _ => Err(Refusal::new(join(path, "typed_config"), "required")),
    }
}

fn filter_chain(
    mut chain: FilterChain,
    only: bool,
    path: &str,
    parsed: &mut ParsedListener,
    slots: &mut Slots,
) -> Result<(), Refusal> {
    let mut matched: FilterChainMatch = chain.filter_chain_match.take().unwrap_or_default();
    let protocol = std::mem::take(&mut matched.transport_protocol);
    nothing_left(&matched, &join(path, "filter_chain_match"))?;
    chain.name.clear();
    chain.metadata = None;
    chain.transport_socket_connect_timeout = None;
    let filters = std::mem::take(&mut chain.filters);
    let socket = chain.transport_socket.take();
    nothing_left(&chain, path)?;

    let protocol_path = join(path, "filter_chain_match.transport_protocol");
    let service = service(filters, path, slots)?;
    match (protocol.as_str(), socket) {
        ("tls" | "", Some(socket)) if parsed.tls.is_none() && (only || !protocol.is_empty()) => {
            let path = join(path, "transport_socket");
            let any = transport_socket(socket, &path)?;
            let tls = downstream_tls(&any, &path)?;
            // Who is not named there is refused in the handshake by others; here it is told why.
            let service = if tls.expected.is_empty() { service } else { service.only(&tls.expected) };
            parsed.tls = Some((tls.alpn, service));
        }
        ("raw_buffer" | "", None) if parsed.plain.is_none() && (only || !protocol.is_empty()) => {
            parsed.plain = Some(service);
        }
        _ => {
            return Err(Refusal::new(
                protocol_path,
                "supported are one chain alone, or one `tls` with a TLS socket and one `raw_buffer` without",
            ));
        }
    }
    Ok(())
}

fn downstream_tls(any: &Any, path: &str) -> Result<CommonTls, Refusal> {
    let mut context: DownstreamTlsContext = unpack(any, path)?;
    if !context.require_client_certificate.take().is_some_and(|b| b.value) {
        return Err(Refusal::new(join(path, "require_client_certificate"), "must be true"));
    }
    let common = context
        .common_tls_context
        .take()
        .ok_or_else(|| Refusal::new(join(path, "common_tls_context"), "required"))?;
    nothing_left(&context, path)?;
    common_tls(common, &join(path, "common_tls_context"))
}

fn service(filters: Vec<Filter>, path: &str, slots: &mut Slots) -> Result<ParsedService, Refusal> {
    let mut access: Option<Access> = None;
    let mut filters = filters.into_iter().enumerate().peekable();
    while let Some((n, filter)) = filters.next() {
        let path = join(path, &format!("filters[{n}].typed_config"));
        let Some(filter::ConfigType::TypedConfig(any)) = filter.config_type else {
            return Err(Refusal::new(path, "required"));
        };
        let last = filters.peek().is_none();
        if any.type_url == NetworkRbac::type_url() {
            access.get_or_insert_default().network(unpack(&any, &path)?, &path)?;
        } else if any.type_url == HttpConnectionManager::type_url() && last && access.is_none() {
            return Ok(ParsedService::Http(http(unpack(&any, &path)?, &path, slots)?));
        } else if any.type_url == TcpProxy::type_url() && last {
            return tcp(unpack(&any, &path)?, access.unwrap_or_default(), &path, slots);
        } else {
            return Err(Refusal::new(path, format!("`{}` is not supported here", any.type_url)));
        }
    }
    Err(Refusal::new(join(path, "filters"), "an HTTP connection manager or TCP proxy is required at the end"))
}

fn tcp(mut proxy: TcpProxy, access: Access, path: &str, slots: &mut Slots) -> Result<ParsedService, Refusal> {
    let backends = match proxy.cluster_specifier.take() {
        Some(ClusterSpecifier::Cluster(name)) => vec![Backend::new(&name, slots.of(&name), 1)],
        Some(ClusterSpecifier::WeightedClusters(mut weighted)) => {
            let path = join(path, "weighted_clusters");
            let mut backends = Vec::new();
            for (n, mut one) in std::mem::take(&mut weighted.clusters).into_iter().enumerate() {
                let (name, weight) = (std::mem::take(&mut one.name), std::mem::take(&mut one.weight));
                nothing_left::<ClusterWeight>(&one, &join(&path, &format!("clusters[{n}]")))?;
                backends.push(Backend::new(&name, slots.of(&name), weight));
            }
            nothing_left::<WeightedCluster>(&weighted, &path)?;
            backends
        }
        _ => return Err(Refusal::new(join(path, "cluster_specifier"), "not supported, or missing")),
    };
    let split = Split::new(backends, SplitBy::Random)
        .map_err(|e| Refusal::new(join(path, "weighted_clusters"), e.to_string()))?;
    let mut by_source = false;
    for policy in std::mem::take(&mut proxy.hash_policy) {
        match policy.policy_specifier {
            Some(PolicySpecifier::SourceIp(_)) => by_source = true,
            _ => return Err(Refusal::new(join(path, "hash_policy"), "only source_ip is supported")),
        }
    }
    let idle = match proxy.idle_timeout.take() {
        None => Some(DEFAULT_TCP_IDLE),
        given => limit(given, &join(path, "idle_timeout"))?,
    };
    let attempts = proxy.max_connect_attempts.take().map_or(1, |n| n.value).clamp(1, 3);
    proxy.stat_prefix.clear();
    nothing_left(&proxy, path)?;
    let (access, rules) = access.finish();
    Ok(ParsedService::Tcp { split, by_source, access, rules, idle, attempts })
}

fn http(mut hcm: HttpConnectionManager, path: &str, slots: &mut Slots) -> Result<ParsedHttp, Refusal> {
    let codec = CodecType::try_from(std::mem::take(&mut hcm.codec_type));
    let version = match (codec, hcm.http2_protocol_options.take()) {
        (Ok(CodecType::Http1), None) => Version::Http1,
        (Ok(CodecType::Http2), options) => {
            let path = join(path, "http2_protocol_options");
            Version::Http2(http2::options(options.unwrap_or_default(), &path)?)
        }
        (Ok(CodecType::Http1), Some(_)) => {
            return Err(Refusal::new(join(path, "http2_protocol_options"), "not with codec_type HTTP1"));
        }
        _ => return Err(Refusal::new(join(path, "codec_type"), "only HTTP1 and HTTP2 are supported")),
    };
    let routes = match hcm.route_specifier.take() {
        Some(RouteSpecifier::RouteConfig(routes)) => {
            let (table, clusters) = route::table(routes, &join(path, "route_config"), slots)?;
            Routes::Inline(table, clusters)
        }
        Some(RouteSpecifier::Rds(mut rds)) => {
            over_ads(rds.config_source.take(), &join(path, "rds.config_source"))?;
            let name = std::mem::take(&mut rds.route_config_name);
            nothing_left::<Rds>(&rds, &join(path, "rds"))?;
            Routes::Rds(name)
        }
        _ => return Err(Refusal::new(join(path, "route_specifier"), "rds or route_config is required")),
    };
    let mut limits = Limits::default();
    if let Some(kb) = hcm.max_request_headers_kb.take() {
        let most = (limits.max_head >> 10) as u32;
        let kb = within(kb.value, most, || join(path, "max_request_headers_kb"))?;
        limits.max_head = (kb as usize) << 10;
    }
    let mut connection_idle = DEFAULT_CONNECTION_IDLE;
    let idle = match hcm.stream_idle_timeout.take() {
        None => Some(DEFAULT_IDLE),
        given => limit(given, &join(path, "stream_idle_timeout"))?,
    };
    if let Some(mut common) = hcm.common_http_protocol_options.take() {
        let path = join(path, "common_http_protocol_options");
        if let Some(count) = common.max_headers_count.take() {
            let most = outrider_proxy_core::http1::head::MAX_HEADERS as u32;
            limits.max_headers = within(count.value, most, || join(&path, "max_headers_count"))? as usize;
        }
        if let Some(given) = limit(common.idle_timeout.take(), &join(&path, "idle_timeout"))? {
            connection_idle = given;
        }
        if std::mem::take(&mut common.headers_with_underscores_action) != 0 {
            let cause = "only ALLOW is supported: underscores pass, as any other byte of a name";
            return Err(Refusal::new(join(&path, "headers_with_underscores_action"), cause));
        }
        nothing_left(&common, &path)?;
    }
    let head_timeout = limit(hcm.request_headers_timeout.take(), &join(path, "request_headers_timeout"))?
        .unwrap_or(DEFAULT_HEAD_TIMEOUT);
    if let Some(options) = hcm.http_protocol_options.take() {
        http1_options(options, &join(path, "http_protocol_options"))?;
    }
    let (upgrades, tunnels) =
        upgrades(std::mem::take(&mut hcm.upgrade_configs), version, &join(path, "upgrade_configs"))?;
    let forward_client_cert = client_cert(&mut hcm, path)?;
    let Filters { access: (access, rules), limit: rate_limit, fault } =
        http_filters(std::mem::take(&mut hcm.http_filters), path)?;

    // What follows says what this proxy does anyway.
    hcm.stat_prefix.clear();
    hcm.server_header_transformation = 0;
    hcm.skip_xff_append = false;
    if hcm.generate_request_id.take().is_some_and(|b| b.value) {
        return Err(Refusal::new(join(path, "generate_request_id"), "headers are not added here"));
    }
    if hcm.normalize_path.take().is_some_and(|b| b.value) {
        return Err(Refusal::new(join(path, "normalize_path"), "paths are forwarded as they came"));
    }
    if hcm.use_remote_address.take().is_some_and(|b| b.value) {
        return Err(Refusal::new(join(path, "use_remote_address"), "headers are not added here"));
    }
    if limit(hcm.request_timeout.take(), &join(path, "request_timeout"))?.is_some() {
        return Err(Refusal::new(join(path, "request_timeout"), "timeouts of requests belong to routes"));
    }
    hcm.stream_error_on_invalid_http_message = None;
    hcm.preserve_external_request_id = false;
    hcm.drain_timeout = None;
    hcm.delayed_close_timeout = None;
    // Every reply of this proxy carries its reason already.
    hcm.local_reply_config = None;
    nothing_left(&hcm, path)?;
    Ok(ParsedHttp {
        version,
        routes,
        access,
        rules,
        forward_client_cert,
        upgrades,
        tunnels,
        idle,
        connection_idle,
        head_timeout,
        limits,
        limit: rate_limit,
        fault,
    })
}

/// Whether connections may be switched to WebSocket, and to what else, lower case.
fn upgrades(configs: Vec<UpgradeConfig>, version: Version, path: &str) -> Result<(bool, Protocols), Refusal> {
    let (mut sockets, mut tunnels) = (false, Vec::<Box<str>>::new());
    for mut upgrade in configs {
        let kind = std::mem::take(&mut upgrade.upgrade_type).to_ascii_lowercase();
        let enabled = upgrade.enabled.take().is_none_or(|b| b.value);
        nothing_left::<UpgradeConfig>(&upgrade, path)?;
        let no = |why: &str| Err(Refusal::new(path, format!("upgrade to `{kind}` is not supported: {why}")));
        if kind == "websocket" {
            sockets |= enabled;
            continue;
        }
        // A tunnel of it would carry requests past routes and access.
        let first = kind.split(['/', '-']).next().unwrap_or_default();
        if ["h2", "h2c", "http", "spdy", "tls"].contains(&first) {
            return no("requests would pass in it that nobody looks at");
        }
        if version != Version::Http1 {
            return no("only WebSockets are streams of HTTP/2");
        }
        if first == "connect" {
            return no("there are no tunnels by CONNECT");
        }
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&byte);
        if kind.is_empty() || kind.len() > MAX_UPGRADE || !kind.bytes().all(token) {
            return no("not the name of a protocol");
        }
        if enabled && !tunnels.iter().any(|one| **one == *kind) {
            tunnels.push(kind.into_boxed_str());
        }
        if tunnels.len() > MAX_UPGRADES {
            return Err(Refusal::new(path, format!("at most {MAX_UPGRADES} are supported")));
        }
    }
    Ok((sockets, tunnels.into()))
}

/// A number from 1 to `most`.
fn within(given: u32, most: u32, path: impl FnOnce() -> String) -> Result<u32, Refusal> {
    if (1..=most).contains(&given) {
        return Ok(given);
    }
    Err(Refusal::new(path(), format!("must be from 1 to {most}, is {given}")))
}

fn client_cert(hcm: &mut HttpConnectionManager, path: &str) -> Result<bool, Refusal> {
    let mut details = hcm.set_current_client_cert_details.take().unwrap_or_default();
    let mode = ForwardClientCertDetails::try_from(std::mem::take(&mut hcm.forward_client_cert_details));
    match mode {
        Ok(ForwardClientCertDetails::Sanitize) => Ok(false),
        Ok(ForwardClientCertDetails::SanitizeSet) => {
            details.uri = false;
            nothing_left::<SetCurrentClientCertDetails>(
                &details,
                &join(path, "set_current_client_cert_details"),
            )?;
            Ok(true)
        }
        _ => Err(Refusal::new(
            join(path, "forward_client_cert_details"),
            "only SANITIZE and SANITIZE_SET are supported",
        )),
    }
}

/// What HTTP filters say.
struct Filters {
    access: (AccessPolicy, Option<Arc<Rules>>),
    limit: Option<Arc<RateLimit>>,
    fault: Option<Arc<Fault>>,
}

/// Filters are supported in the order in which this proxy decides: access, rate limit, fault, router.
fn http_filters(filters: Vec<HttpFilter>, path: &str) -> Result<Filters, Refusal> {
    let mut access = Access::default();
    let (mut limit, mut fault) = (None, None);
    let mut filters = filters.into_iter().enumerate().peekable();
    while let Some((n, mut filter)) = filters.next() {
        let path = join(path, &format!("http_filters[{n}]"));
        filter.name.clear();
        let Some(http_filter::ConfigType::TypedConfig(any)) = filter.config_type.take() else {
            return Err(Refusal::new(join(&path, "typed_config"), "required"));
        };
        nothing_left(&filter, &path)?;
        let path = join(&path, "typed_config");
        let last = filters.peek().is_none();
        let first = limit.is_none() && fault.is_none();
        if any.type_url == HttpRbac::type_url() && first && !last {
            access.http(unpack(&any, &path)?, &path)?;
        } else if any.type_url == LocalRateLimit::type_url() && first && !last {
            limit = Some(resilience::rate_limit(unpack(&any, &path)?, &path)?);
        } else if any.type_url == HttpFault::type_url() && fault.is_none() && !last {
            fault = Some(resilience::fault(unpack(&any, &path)?, &path)?);
        } else if any.type_url == Router::type_url() && last {
            let mut router: Router = unpack(&any, &path)?;
            // Such headers are never made here.
            router.suppress_envoy_headers = false;
            router.dynamic_stats = None;
            nothing_left(&router, &path)?;
            return Ok(Filters { access: access.finish(), limit, fault });
        } else {
            return Err(Refusal::new(path, format!("`{}` is not supported here", any.type_url)));
        }
    }
    Err(Refusal::new(join(path, "http_filters"), "the router is required at the end"))
}
