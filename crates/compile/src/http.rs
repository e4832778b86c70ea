//! HTTP connection managers: the settings that both directions share.
//!
//! The aim of most of them is that the application's bytes arrive as they were sent: header case, path and
//! `server` stay, nothing is appended to `x-forwarded-for`, no request id is made up.

use outrider_intent::model::{InboundLimits, Protocol, Timeouts};
use outrider_xds_types::pb::envoy::config::accesslog::v3 as accesslog;
use outrider_xds_types::pb::envoy::config::core::v3 as core;
use outrider_xds_types::pb::envoy::config::listener::v3 as listener;
use outrider_xds_types::pb::envoy::config::route::v3 as route;
use outrider_xds_types::pb::envoy::extensions::filters::http::router::v3::Router;
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use outrider_xds_types::pb::envoy::extensions::http::header_formatters::preserve_case::v3::PreserveCaseFormatterConfig;
use outrider_xds_types::pb::envoy::r#type::matcher::v3::StringMatcher;
use outrider_xds_types::pb::google::protobuf::Any;
use outrider_xds_types::prost::Name;

use crate::envoy::{any, boolean, limit, seconds, uint};
use crate::http2;
use crate::routes::REASON_HEADER;
use crate::tls::exactly;

use accesslog::access_log_filter::FilterSpecifier;
use core::header_value_option::HeaderAppendAction;
use hcm::http_connection_manager::{CodecType, RouteSpecifier, ServerHeaderTransformation, UpgradeConfig};
use route::header_matcher::HeaderMatchSpecifier;

/// What every connection of HTTP/1.1 may be switched to.
const UPGRADE: &str = "websocket";

/// What differs between connection managers.
pub(crate) struct Manager<'a> {
    pub(crate) name: &'a str,
    pub(crate) protocol: Protocol,
    /// What its connections may be switched to besides.
    pub(crate) upgrades: &'a [String],
    /// Whether callers are on other hosts.
    pub(crate) remote: bool,
    pub(crate) timeouts: &'a Timeouts,
    /// Of what is taken of callers.
    pub(crate) limits: InboundLimits,
    /// Seconds after which a connection without a request is closed.
    pub(crate) connection_idle: u64,
    pub(crate) routes: RouteSpecifier,
    /// Before the router.
    pub(crate) filters: Vec<hcm::HttpFilter>,
    pub(crate) client_certificates: Option<ClientCertificates>,
}

/// What is told to the application about the caller's certificate.
pub(crate) struct ClientCertificates;

/// An HTTP connection manager as a network filter.
pub(crate) fn manager(manager: Manager<'_>) -> listener::Filter {
    let mut filters = manager.filters;
    filters.push(filter(
        "envoy.filters.http.router",
        &Router { suppress_envoy_headers: true, ..Default::default() },
    ));
    let mut config = hcm::HttpConnectionManager {
        codec_type: CodecType::Http1 as i32,
        stat_prefix: manager.name.to_owned(),
        http_filters: filters,
        common_http_protocol_options: Some(core::HttpProtocolOptions {
            idle_timeout: Some(seconds(manager.connection_idle)),
            max_headers_count: Some(uint(manager.limits.headers_count)),
            ..Default::default()
        }),
        http_protocol_options: Some(http1_options()),
        server_header_transformation: ServerHeaderTransformation::PassThrough as i32,
        max_request_headers_kb: Some(uint(manager.limits.headers_kb)),
        stream_idle_timeout: Some(limit(manager.timeouts.idle_of(manager.protocol))),
        request_headers_timeout: Some(limit(Some(manager.limits.headers_timeout))),
        skip_xff_append: true,
        generate_request_id: Some(boolean(false)),
        upgrade_configs: std::iter::once(UPGRADE)
            .chain(manager.upgrades.iter().map(String::as_str))
            .map(|name| UpgradeConfig { upgrade_type: name.to_owned(), ..UpgradeConfig::default() })
            .collect(),
        normalize_path: Some(boolean(false)),
        local_reply_config: Some(local_replies(manager.protocol)),
        route_specifier: Some(manager.routes),
        ..Default::default()
    };
    if http2::is_spoken(manager.protocol) {
        config.codec_type = CodecType::Http2 as i32;
        config.http_protocol_options = None;
        let streams = manager.limits.streams;
        config.http2_protocol_options = Some(http2::options(manager.protocol, manager.remote, streams));
        if !http2::has_sockets(manager.protocol) {
            config.upgrade_configs.clear();
        }
    }
    if manager.client_certificates.is_some() {
        config.forward_client_cert_details =
            hcm::http_connection_manager::ForwardClientCertDetails::SanitizeSet as i32;
        config.set_current_client_cert_details =
            Some(hcm::http_connection_manager::SetCurrentClientCertDetails {
                uri: true,
                ..Default::default()
            });
    }
    listener::Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(any(&config))),
    }
}

/// An HTTP filter under its stable name.
pub(crate) fn filter<M: Name>(name: &str, config: &M) -> hcm::HttpFilter {
    filter_of(name, any(config))
}

/// The same of a packed message.
pub(crate) fn filter_of(name: &str, config: Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

/// HTTP/1.1 as the application wrote it: header case kept, trailers passed on.
pub(crate) fn http1_options() -> core::Http1ProtocolOptions {
    let formatter = core::TypedExtensionConfig {
        name: "preserve_case".to_owned(),
        typed_config: Some(any(&PreserveCaseFormatterConfig::default())),
    };
    core::Http1ProtocolOptions {
        header_key_format: Some(core::http1_protocol_options::HeaderKeyFormat {
            header_format: Some(
                core::http1_protocol_options::header_key_format::HeaderFormat::StatefulFormatter(formatter),
            ),
        }),
        enable_trailers: true,
        ..Default::default()
    }
}

/// Envoy's response flags, and the reason each of them is here. The first that fits wins.
const FLAGS: [(&str, &str); 9] = [
    ("NR", "no_route"),
    ("UH", "no_healthy_endpoints"),
    ("UF", "connect_failed"),
    ("UO", "overload_pending"),
    ("UT", "request_timeout"),
    ("UC", "upstream_closed_before_response"),
    ("UR", "upstream_reset"),
    ("SI", "idle_timeout"),
    ("UPE", "upstream_protocol_error"),
];

/// Status codes of local replies without a flag of their own, the refusal of an upgrade (which is a 403 as well)
/// told apart before. The native proxy refuses none in HTTP/1.1: it forwards such a request without its upgrade. In HTTP/2 a
/// stream cannot be opened without one, and both say so.
const CODES: [(u32, &str); 3] =
    [(403, "caller_not_allowed"), (408, "request_head_timeout"), (431, "header_too_large")];

/// What the proxy answers by itself says why, in the same words whatever the engine. Envoy's own words where
/// there is no reason of ours.
pub(crate) fn local_replies(protocol: Protocol) -> hcm::LocalReplyConfig {
    let flag = |(flag, reason): (&str, &str)| {
        let filter = accesslog::ResponseFlagFilter { flags: vec![flag.to_owned()] };
        mapper(FilterSpecifier::ResponseFlagFilter(filter), reason)
    };
    let code = |(code, reason)| mapper(comparison(accesslog::comparison_filter::Op::Eq, code), reason);
    let upgrade = accesslog::AndFilter {
        filters: [
            comparison(accesslog::comparison_filter::Op::Eq, 403),
            request_header(HeaderMatchSpecifier::PresentMatch(true), false),
            request_header(
                HeaderMatchSpecifier::StringMatch(StringMatcher {
                    ignore_case: true,
                    ..exactly(UPGRADE.to_owned())
                }),
                true,
            ),
        ]
        .map(|filter| accesslog::AccessLogFilter { filter_specifier: Some(filter) })
        .into(),
    };
    let upgrade = FilterSpecifier::AndFilter(upgrade);
    let upgrade = match http2::has_sockets(protocol) {
        true => {
            hcm::ResponseMapper { status_code: Some(uint(501)), ..mapper(upgrade, "protocol_not_supported") }
        }
        false => mapper(upgrade, "%RESPONSE_CODE_DETAILS%"),
    };
    let any_code = comparison(accesslog::comparison_filter::Op::Ge, 100);
    hcm::LocalReplyConfig {
        mappers: FLAGS
            .map(flag)
            .into_iter()
            .chain([upgrade])
            .chain(CODES.map(code))
            .chain([mapper(any_code, "%RESPONSE_CODE_DETAILS%")])
            .collect(),
        ..Default::default()
    }
}

#[cfg(test)]
pub(crate) fn local_reply_reasons() -> impl Iterator<Item = &'static str> {
    FLAGS.map(|(_, reason)| reason).into_iter().chain(CODES.map(|(_, reason)| reason))
}

/// Matches the `upgrade` field of the request.
fn request_header(what: HeaderMatchSpecifier, invert_match: bool) -> FilterSpecifier {
    FilterSpecifier::HeaderFilter(accesslog::HeaderFilter {
        header: Some(route::HeaderMatcher {
            name: "upgrade".to_owned(),
            header_match_specifier: Some(what),
            invert_match,
            ..Default::default()
        }),
    })
}

fn comparison(op: accesslog::comparison_filter::Op, code: u32) -> FilterSpecifier {
    // Envoy demands a key under which an operator could overrule the number.
    let value = core::RuntimeUInt32 { default_value: code, runtime_key: "outrider.unused".to_owned() };
    let comparison = accesslog::ComparisonFilter { op: op as i32, value: Some(value) };
    FilterSpecifier::StatusCodeFilter(accesslog::StatusCodeFilter { comparison: Some(comparison) })
}

fn mapper(filter: FilterSpecifier, reason: &str) -> hcm::ResponseMapper {
    hcm::ResponseMapper {
        filter: Some(accesslog::AccessLogFilter { filter_specifier: Some(filter) }),
        headers_to_add: vec![header(REASON_HEADER, reason, HeaderAppendAction::AddIfAbsent)],
        ..Default::default()
    }
}

pub(crate) fn header(name: &str, value: &str, action: HeaderAppendAction) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        }),
        append_action: action as i32,
        ..Default::default()
    }
}
