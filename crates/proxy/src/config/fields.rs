//! Taking protobuf messages apart without overlooking a field.

use std::fmt::Debug;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use outrider_xds_types::pb::envoy::config::core::v3::{
    Address, ConfigSource, DataSource, SocketAddress, TransportSocket, address::Address as AddressKind,
    config_source::ConfigSourceSpecifier, data_source::Specifier, socket_address::PortSpecifier,
    transport_socket,
};
use outrider_xds_types::pb::google::protobuf::{Any, Duration as PbDuration};
use outrider_xds_types::prost::Message;

/// Why a resource is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {cause}")]
pub struct Refusal {
    /// The field, from the top of the resource.
    pub path: String,
    /// What is wrong with it.
    pub cause: String,
}

impl Refusal {
    /// At `path`, because of `cause`.
    pub fn new(path: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { path: path.into(), cause: cause.into() }
    }
}

/// Refuses what no converter has taken. `rest` is the message after everything understood was moved out.
///
/// # Errors
/// Names the first field that is set.
pub fn nothing_left<M: Default + PartialEq + Debug>(rest: &M, path: &str) -> Result<(), Refusal> {
    let default = M::default();
    if *rest == default {
        return Ok(());
    }
    // The derived text form names fields; comparing it line by line finds the first one that differs without
    // a list of fields that could fall behind the messages.
    let (rest, default) = (format!("{rest:#?}"), format!("{default:#?}"));
    let field = rest
        .lines()
        .zip(default.lines())
        .find(|(a, b)| a != b)
        .and_then(|(line, _)| line.trim().split_once(':'))
        .map_or("?", |(name, _)| name);
    let field = field.strip_prefix("r#").unwrap_or(field);
    Err(Refusal::new(join(path, field), "this field is set, and this proxy does not support it"))
}

/// `path.field`, or the field alone at the top.
pub fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// Decodes an `Any` that must be of type `T`.
///
/// # Errors
/// Another type, or bytes that are not that type.
pub fn unpack<T: Message + Default + outrider_xds_types::prost::Name>(
    any: &Any,
    path: &str,
) -> Result<T, Refusal> {
    if any.type_url != T::type_url() {
        return Err(Refusal::new(path, format!("`{}` is not supported here", any.type_url)));
    }
    T::decode(&*any.value).map_err(|e| Refusal::new(path, e.to_string()))
}

/// A duration of at least zero; `None` if unset.
///
/// # Errors
/// Negative or out of range.
pub fn duration(value: Option<PbDuration>, path: &str) -> Result<Option<Duration>, Refusal> {
    let Some(value) = value else { return Ok(None) };
    let seconds = u64::try_from(value.seconds).ok();
    let nanos = u32::try_from(value.nanos).ok().filter(|n| *n < 1_000_000_000);
    match (seconds, nanos) {
        (Some(s), Some(n)) if s <= 315_576_000_000 => Ok(Some(Duration::new(s, n))),
        _ => Err(Refusal::new(path, "not a duration")),
    }
}

/// A duration where zero means "no limit" and so does absence.
///
/// # Errors
/// As [`duration`].
pub fn limit(value: Option<PbDuration>, path: &str) -> Result<Option<Duration>, Refusal> {
    Ok(duration(value, path)?.filter(|d| !d.is_zero()))
}

/// A TCP address with a numeric port.
///
/// # Errors
/// Anything else.
pub fn socket_address(address: Option<Address>, path: &str) -> Result<SocketAddr, Refusal> {
    let Some(Address { address: Some(AddressKind::SocketAddress(mut socket)) }) = address else {
        return Err(Refusal::new(path, "a socket address is required"));
    };
    let text = std::mem::take(&mut socket.address);
    let ip: IpAddr = text.parse().map_err(|_| {
        Refusal::new(join(path, "socket_address.address"), format!("`{text}` is not an IP address"))
    })?;
    let port = match socket.port_specifier.take() {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
        _ => None,
    };
    if socket != SocketAddress::default() {
        nothing_left(&socket, &join(path, "socket_address"))?;
    }
    let port =
        port.ok_or_else(|| Refusal::new(join(path, "socket_address.port_value"), "a port is required"))?;
    Ok(SocketAddr::new(ip, port))
}

/// Only "over the same ADS stream" is a source we know.
///
/// # Errors
/// Any other source.
pub fn over_ads(source: Option<ConfigSource>, path: &str) -> Result<(), Refusal> {
    let mut source = source.unwrap_or_default();
    source.resource_api_version = 0;
    // Waiting for the first answer is bounded for the whole configuration, not by source.
    source.initial_fetch_timeout = None;
    match source.config_source_specifier.take() {
        Some(ConfigSourceSpecifier::Ads(_)) => nothing_left(&source, path),
        _ => Err(Refusal::new(path, "only `ads` is supported")),
    }
}

/// Bytes given inline.
///
/// # Errors
/// A file or environment variable.
pub fn inline(source: Option<DataSource>, path: &str) -> Result<Vec<u8>, Refusal> {
    match source.and_then(|source| source.specifier) {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes),
        Some(Specifier::InlineString(text)) => Ok(text.into_bytes()),
        _ => Err(Refusal::new(path, "only inline data is supported")),
    }
}

/// The typed configuration of a transport socket.
///
/// # Errors
/// There is none.
pub fn transport_socket(socket: TransportSocket, path: &str) -> Result<Any, Refusal> {
    match socket.config_type {
        Some(transport_socket::ConfigType::TypedConfig(any)) => Ok(any),
        None => Err(Refusal::new(path, "typed_config is required")),
    }
}

#[cfg(test)]
mod tests {
    use outrider_xds_types::pb::envoy::config::cluster::v3::Cluster;

    use super::*;

    #[test]
    fn a_field_nobody_took_is_named() {
        assert_eq!(nothing_left(&Cluster::default(), ""), Ok(()));
        let left = Cluster { close_connections_on_host_health_failure: true, ..Cluster::default() };
        assert_eq!(nothing_left(&left, "").unwrap_err().path, "close_connections_on_host_health_failure");
        let left = Cluster { outlier_detection: Some(Default::default()), ..Cluster::default() };
        assert_eq!(nothing_left(&left, "clusters[0]").unwrap_err().path, "clusters[0].outlier_detection");
    }

    #[test]
    fn durations_have_bounds() {
        let ok = duration(Some(PbDuration { seconds: 1, nanos: 500_000_000 }), "t");
        assert_eq!(ok, Ok(Some(Duration::from_millis(1500))));
        assert_eq!(limit(Some(PbDuration::default()), "t"), Ok(None));
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MAX, 0)] {
            assert!(duration(Some(PbDuration { seconds, nanos }), "t").is_err());
        }
    }
}
