//! Building and reading resource names and listener metadata.

use std::collections::HashMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::pb::envoy::config::core::v3::Metadata;
use crate::pb::google::protobuf::{Struct, Value, value::Kind};

/// The authority of scoped names.
pub const AUTHORITY: &str = "outrider";

/// `inbound/PORT`.
pub fn inbound(port: &str) -> String {
    format!("inbound/{port}")
}

/// `outbound/NS/SERVICE/PORT`.
pub fn outbound(namespace: &str, service: &str, port: &str) -> String {
    format!("outbound/{namespace}/{service}/{port}")
}

/// `NS/SERVICE/PORT`, the name of a load assignment.
pub fn endpoints(namespace: &str, service: &str, port: &str) -> String {
    format!("{namespace}/{service}/{port}")
}

/// SPIFFE ID of a service's proxies: `spiffe://TRUST-DOMAIN/ns/NS/svc/SERVICE`.
pub fn spiffe_service(trust_domain: &str, namespace: &str, service: &str) -> String {
    format!("spiffe://{trust_domain}/ns/{namespace}/svc/{service}")
}

/// SPIFFE ID of an agent: `spiffe://TRUST-DOMAIN/node/NODE`.
pub fn spiffe_node(trust_domain: &str, node: &str) -> String {
    format!("spiffe://{trust_domain}/node/{node}")
}

/// SPIFFE ID of the control plane: `spiffe://TRUST-DOMAIN/server`.
pub fn spiffe_server(trust_domain: &str) -> String {
    format!("spiffe://{trust_domain}/server")
}

fn message_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}

/// The name of `local` within the scope of one proxy (`proxy` is `NS/INSTANCE`).
pub fn scoped(type_url: &str, proxy: &str, local: &str) -> String {
    format!("xdstp://{AUTHORITY}/{}/{proxy}/{local}", message_name(type_url))
}

/// The subscription to everything in the scope of one proxy.
pub fn scope_glob(type_url: &str, proxy: &str) -> String {
    scoped(type_url, proxy, "*")
}

/// Takes a scoped name apart into (`NS/INSTANCE`, local name); `None` if it is not one.
pub fn unscope(name: &str) -> Option<(&str, &str)> {
    let rest = name.strip_prefix("xdstp://")?.strip_prefix(AUTHORITY)?.strip_prefix('/')?;
    let (_message, rest) = rest.split_once('/')?;
    let first = rest.find('/')?;
    let second = first + 1 + rest[first + 1..].find('/')?;
    Some((&rest[..second], &rest[second + 1..]))
}

/// The part of a list's name that tells the localities of one load assignment apart: by zone, and by the service that calls
/// fail over to. Without slashes.
pub fn list_key(zone: &str, sub_zone: &str) -> String {
    let mut key = String::from("zone=");
    escape(zone, &mut key);
    if !sub_zone.is_empty() {
        key.push_str(",sub_zone=");
        escape(sub_zone, &mut key);
    }
    key
}

fn escape(text: &str, into: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                into.push(char::from(byte))
            }
            _ => *into += &format!("%{byte:02X}"),
        }
    }
}

/// The list of endpoints of a locality of a load assignment: a glob collection.
pub fn list(assignment: &str, key: &str) -> String {
    format!("xdstp://{AUTHORITY}/{}/{assignment}/{key}/*", message_name(crate::type_url::LB_ENDPOINT))
}

/// An endpoint in such a list.
pub fn listed(assignment: &str, key: &str, at: SocketAddr) -> String {
    let (message, ip) = (message_name(crate::type_url::LB_ENDPOINT), at.ip());
    format!("xdstp://{AUTHORITY}/{message}/{assignment}/{key}/{ip}:{}", at.port())
}

/// Takes the name of a list or of an endpoint in it apart: load assignment, key, and the last part; `None` if it is
/// neither.
pub fn unlist(name: &str) -> Option<(&str, &str, &str)> {
    let rest = name.strip_prefix("xdstp://")?.strip_prefix(AUTHORITY)?.strip_prefix('/')?;
    let rest = rest.strip_prefix(message_name(crate::type_url::LB_ENDPOINT))?.strip_prefix('/')?;
    let (rest, last) = rest.rsplit_once('/')?;
    let (assignment, key) = rest.rsplit_once('/')?;
    Some((assignment, key, last))
}

/// The address in the last part of the name of an endpoint in a list, if it is written as [`listed`] does.
pub fn address_listed(last: &str) -> Option<SocketAddr> {
    let (ip, port) = last.rsplit_once(':')?;
    let at = SocketAddr::new(ip.parse().ok()?, port.parse().ok()?);
    (format!("{}:{}", at.ip(), at.port()) == last).then_some(at)
}

/// What a listener says about itself to the agent, under [`crate::METADATA_KEY`].
///
/// Carried as one JSON string: a protobuf map with several keys has no stable encoding, and versions are
/// hashes of content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerMetadata {
    /// `NS/SERVICE` this listener leads to.
    pub service: String,
    /// The port's name.
    pub port_name: String,
    /// The declared port: what callers connect to.
    pub port: u16,
    /// Names the agent gives to the listener's address; empty for inbound listeners.
    #[serde(default)]
    pub names: Vec<String>,
    /// SPIFFE IDs of callers that may finish what they have begun, and begin nothing: no route leads them here any more,
    /// and nobody denied them anything. For the native proxy; what does not know it ends what they have begun.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub finishing: Vec<String>,
}

const LISTENER_FIELD: &str = "listener";

/// Metadata of endpoints under this key decides which of a cluster's transport sockets is theirs: Envoy's word.
pub const TRANSPORT_SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// What endpoints of a service say there that take calls of another one, and what its transport socket asks for.
pub fn of_service(service: &str) -> Struct {
    let value = Value { kind: Some(Kind::StringValue(service.to_owned())) };
    Struct { fields: HashMap::from([("service".to_owned(), value)]) }
}

impl ListenerMetadata {
    /// As Envoy metadata.
    pub fn to_metadata(&self) -> Metadata {
        let json = serde_json::json!(self).to_string();
        let value = Value { kind: Some(Kind::StringValue(json)) };
        let fields = HashMap::from([(LISTENER_FIELD.to_owned(), value)]);
        Metadata {
            filter_metadata: HashMap::from([(crate::METADATA_KEY.to_owned(), Struct { fields })]),
            ..Metadata::default()
        }
    }

    /// From Envoy metadata; `None` if ours is absent or has another shape.
    pub fn from_metadata(metadata: &Metadata) -> Option<Self> {
        match &metadata.filter_metadata.get(crate::METADATA_KEY)?.fields.get(LISTENER_FIELD)?.kind {
            Some(Kind::StringValue(json)) => serde_json::from_str(json).ok(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_lists_come_apart_again() {
        let key = list_key("eu/west 1_a", "");
        assert_eq!(key, "zone=eu%2Fwest%201_a");
        let list = list("shop/api/main", &key);
        assert_eq!(unlist(&list), Some(("shop/api/main", key.as_str(), "*")));
        for at in ["10.0.0.1:80", "[2001:db8::1]:8080"] {
            let at: SocketAddr = at.parse().unwrap();
            let name = listed("shop/api/main", &key, at);
            let (assignment, of, last) = unlist(&name).unwrap();
            assert_eq!((assignment, of, address_listed(last)), ("shop/api/main", key.as_str(), Some(at)));
            assert!(name.starts_with(list.trim_end_matches('*')));
        }
        for other in ["010.0.0.1:80", "10.0.0.1:080", "10.0.0.1", "[::1]:80", "0:0::1:80", "a:1", ""] {
            assert_eq!(address_listed(other), None, "{other}");
        }
        for other in
            ["shop/api/main", "xdstp://outrider/x/a/b/c", &scoped(crate::type_url::LISTENER, "a/b", "c")]
        {
            assert_eq!(unlist(other), None, "{other}");
        }
    }

    #[test]
    fn scoped_names_come_apart_again() {
        let name = scoped(crate::type_url::LISTENER, "shop/checkout-x7k2p", "outbound/shop/inventory/http");
        assert_eq!(
            name,
            "xdstp://outrider/envoy.config.listener.v3.Listener/shop/checkout-x7k2p/outbound/shop/inventory/http"
        );
        assert_eq!(unscope(&name), Some(("shop/checkout-x7k2p", "outbound/shop/inventory/http")));
        assert_eq!(unscope("shop/checkout/http"), None);
        assert_eq!(unscope("xdstp://outrider/x/shop"), None);
    }

    #[test]
    fn metadata_survives_the_round_trip() {
        let ours = ListenerMetadata {
            service: "shop/inventory".into(),
            port_name: "http".into(),
            port: 80,
            names: vec!["inventory".into(), "inventory.shop".into()],
            finishing: vec!["spiffe://x/ns/shop/svc/checkout".into()],
        };
        assert_eq!(ListenerMetadata::from_metadata(&ours.to_metadata()), Some(ours));
    }
}
