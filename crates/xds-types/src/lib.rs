//! Envoy's v3 messages, and the names this project gives to the resources it makes of them.
//!
//! The one crate that names `envoy-types`, so that a change in our code never recompiles it. Holds: every
//! resource name, scope and metadata key is built and taken apart here and nowhere else. Does not: decide
//! what is in a resource.
//!
//! # Names
//! | resource | name as the proxy sees it |
//! |---|---|
//! | Listener | `inbound/PORT`, `outbound/NS/SERVICE/PORT` (PORT is the port's name) |
//! | RouteConfiguration | the name of its outbound listener (inbound routes are inline) |
//! | Cluster | `inbound/PORT`, `outbound/NS/SERVICE/PORT` |
//! | ClusterLoadAssignment | `NS/SERVICE/PORT`; one for all callers, so unscoped |
//! | LbEndpoint | `xdstp://outrider/MESSAGE/NS/SERVICE/PORT/zone=ZONE/ADDRESS:PORT`; in the list `…/zone=ZONE/*` |
//! | Secret | [`SECRET_SVID`], [`SECRET_BUNDLE`]; made on the host, never sent by the control plane |
//! | Workload | `NS/SERVICE`; unscoped |
//!
//! On the one stream between host and control plane, listeners, routes and clusters are scoped to a proxy:
//! `xdstp://outrider/MESSAGE/NS/INSTANCE/NAME`; the agent subscribes to `…/NS/INSTANCE/*`.

pub use envoy_types::pb;
pub use prost;
pub use prost_types;

pub mod features;
pub mod names;
pub mod workload;

/// `type.googleapis.com/` URLs of what travels over ADS.
pub mod type_url {
    /// `Listener`.
    pub const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    /// `RouteConfiguration`.
    pub const ROUTE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
    /// `Cluster`.
    pub const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
    /// `ClusterLoadAssignment`.
    pub const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
    /// `LbEndpoint`: one endpoint of a list that comes in parts.
    pub const LB_ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint";
    /// `Secret`.
    pub const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    /// [`crate::workload::Workload`].
    pub const WORKLOAD: &str = "type.googleapis.com/outrider.v1.Workload";
}

/// SDS name of the proxy's own certificate and key.
pub const SECRET_SVID: &str = "default";
/// SDS name of the trust bundle.
pub const SECRET_BUNDLE: &str = "ROOTCA";
/// Key of our `filter_metadata`; its content is [`names::ListenerMetadata`].
pub const METADATA_KEY: &str = "dev.outrider";

/// Packs a message into an `Any` under its type URL.
pub fn pack<M: prost::Message>(type_url: &str, message: &M) -> pb::google::protobuf::Any {
    pb::google::protobuf::Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}
