//! Small messages that everything else is built of, and versions.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use outrider_xds::Resource;
use outrider_xds_types::pb::envoy::config::core::v3 as core;
use outrider_xds_types::pb::google::protobuf as wkt;
use outrider_xds_types::prost::{Message, Name};

/// Packs a message under its own type URL.
pub(crate) fn any<M: Name>(message: &M) -> wkt::Any {
    outrider_xds_types::pack(&M::type_url(), message)
}

/// The version of a resource: the first 16 hexadecimal digits of the SHA-256 of its encoded `Any`.
pub fn version_of(type_url: &str, body: &[u8]) -> String {
    use sha2::Digest;
    let any = wkt::Any { type_url: type_url.to_owned(), value: body.to_vec() };
    let digest = sha2::Sha256::digest(any.encode_to_vec());
    let mut version = String::with_capacity(16);
    for byte in digest.iter().take(8) {
        // Writing to a string cannot fail.
        let _ = write!(version, "{byte:02x}");
    }
    version
}

/// A resource whose version is a function of its content.
pub(crate) fn resource<M: Message>(type_url: &str, name: &str, message: &M) -> Arc<Resource> {
    let body = message.encode_to_vec();
    let version = version_of(type_url, &body);
    Arc::new(Resource::new(type_url, name, version, body))
}

/// A limit, where none is written as zero.
pub(crate) fn limit(duration: Option<Duration>) -> wkt::Duration {
    let duration = duration.unwrap_or_default();
    wkt::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        // Below 1,000,000,000, so it fits.
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

pub(crate) fn seconds(seconds: u64) -> wkt::Duration {
    limit(Some(Duration::from_secs(seconds)))
}

pub(crate) fn uint(value: u32) -> wkt::UInt32Value {
    wkt::UInt32Value { value }
}

pub(crate) fn boolean(value: bool) -> wkt::BoolValue {
    wkt::BoolValue { value }
}

/// "Over the stream that this came on".
pub(crate) fn over_ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3 as i32,
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..Default::default()
    }
}

pub(crate) fn socket_address(address: &str, port: u16) -> core::Address {
    core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: address.to_owned(),
            port_specifier: Some(core::socket_address::PortSpecifier::PortValue(u32::from(port))),
            ..Default::default()
        })),
    }
}

pub(crate) fn transport_socket<M: Name>(context: &M) -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(any(context))),
    }
}
