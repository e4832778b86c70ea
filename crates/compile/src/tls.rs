//! TLS contexts: 1.3 only, our SVID and trust bundle from the agent, identity checked exactly.

use outrider_intent::model::Protocol;
use outrider_xds_types::pb::envoy::config::core::v3::TransportSocket;
use outrider_xds_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use outrider_xds_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use outrider_xds_types::{SECRET_BUNDLE, SECRET_SVID};

use crate::envoy::{boolean, over_ads, transport_socket};

use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
use tls::subject_alt_name_matcher::SanType;
use tls::tls_parameters::TlsProtocol;

fn secret(name: &str) -> tls::SdsSecretConfig {
    tls::SdsSecretConfig { name: name.to_owned(), sds_config: Some(over_ads()) }
}

fn common(protocol: Protocol, validation: ValidationContextType) -> tls::CommonTlsContext {
    let alpn = match protocol {
        Protocol::Http => vec!["http/1.1".to_owned()],
        Protocol::Http2 | Protocol::Grpc => vec!["h2".to_owned()],
        Protocol::Tcp => Vec::new(),
    };
    tls::CommonTlsContext {
        tls_params: Some(tls::TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13 as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![secret(SECRET_SVID)],
        alpn_protocols: alpn,
        validation_context_type: Some(validation),
        ..Default::default()
    }
}

/// A certificate of the trust bundle that has one of these SPIFFE IDs.
fn one_of(ids: impl IntoIterator<Item = String>) -> ValidationContextType {
    let identity = |id| tls::SubjectAltNameMatcher {
        san_type: SanType::Uri as i32,
        matcher: Some(exactly(id)),
        ..Default::default()
    };
    ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_typed_subject_alt_names: ids.into_iter().map(identity).collect(),
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(secret(SECRET_BUNDLE)),
        ..Default::default()
    })
}

/// Towards a service: it must present exactly this SPIFFE ID.
pub(crate) fn upstream(protocol: Protocol, sni: String, spiffe_id: String) -> TransportSocket {
    let validation = one_of([spiffe_id]);
    transport_socket(&tls::UpstreamTlsContext {
        common_tls_context: Some(common(protocol, validation)),
        sni,
        ..Default::default()
    })
}

/// From callers: they must present a certificate of the trust bundle, and be one of `callers` if that is given.
/// Who may call is decided after that. The list must not be empty, which Envoy would read as everybody.
pub(crate) fn downstream(protocol: Protocol, callers: Option<Vec<String>>) -> TransportSocket {
    let validation = match callers {
        None => ValidationContextType::ValidationContextSdsSecretConfig(secret(SECRET_BUNDLE)),
        Some(callers) => one_of(callers),
    };
    transport_socket(&tls::DownstreamTlsContext {
        common_tls_context: Some(common(protocol, validation)),
        require_client_certificate: Some(boolean(true)),
        ..Default::default()
    })
}

pub(crate) fn exactly(text: String) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Exact(text)), ..Default::default() }
}
