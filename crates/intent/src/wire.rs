//! Wire types: documents as written, one struct per mapping.
//!
//! These are the one definition of every field: its name, type, bounds and help. The JSON Schema is derived from
//! them (see [`crate::schema`]), the check of what people write reads that schema (see `check`), and serde reads
//! what passed. Two keywords of our own go along: `x-outrider-format` names a rule of `formats`, and
//! `x-outrider-later` lists fields or values that exist but are not honoured yet, so they are refused as such.
//! Defaults are not here but in `defaults`: an unset field stays unset in a document.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::model::{Channel, Engine, Mtls, Protocol, Role, ValueMatch};

mod access;
mod filter;
mod grpc;
mod tcp;
mod traffic;

pub(crate) use access::*;
pub(crate) use filter::*;
pub(crate) use grpc::*;
pub(crate) use tcp::*;
pub(crate) use traffic::*;

macro_rules! text {
    ($($(#[doc = $doc:literal])+ $name:ident: $format:literal, $max:literal, $pattern:literal;)*) => { $(
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub(crate) struct $name(pub(crate) String);

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "maxLength": $max,
                    "pattern": $pattern,
                    "x-outrider-format": $format,
                })
            }
        }
    )* };
}

text! {
    /// RFC 1123 label.
    Label: "label", 63, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
    /// RFC 1035 label.
    ServiceName: "service-name", 63, "^[a-z]([-a-z0-9]*[a-z0-9])?$";
    /// RFC 1123 subdomain.
    Subdomain: "subdomain", 253, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
    /// `name` or `name.namespace`.
    ServiceCall: "service-call", 127,
        "^[a-z]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)?$";
    /// Gateway API duration.
    DurationText: "duration", 28, "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
    /// Gateway API duration above zero.
    PositiveDurationText: "positive-duration", 28, "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
    /// RFC 9110 token.
    HeaderName: "header-name", 256, "^[A-Za-z0-9!#$%&'*+\\-.^_`|~]+$";
    /// Header value.
    HeaderValue: "header-value", 4096, "^[^ \\t]";
    /// Name of a protocol, as in the header `upgrade`.
    UpgradeName: "upgrade", 64, "^[A-Za-z0-9!#$%&'*+\\-.^_`|~/]+$";
    /// Path.
    PathText: "path", 1024, "^/(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})*$";
    /// Path, or a regular expression over paths.
    PathPattern: "path-pattern", 1024, "^[^\\x00-\\x1f\\x7f]+$";
    /// Path, or nothing.
    PathReplacement: "path-replacement", 1024, "^$|^/(?:[-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})*$";
    /// Value of a query parameter, or a regular expression over such values.
    QueryValue: "pattern", 1024, "^[^\\x00-\\x1f\\x7f]+$";
    /// Host name without wildcards.
    Hostname: "hostname", 253, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
    /// Name of a gRPC service or method, or a regular expression over such names.
    GrpcName: "pattern", 1024, "^[^\\x00-\\x1f\\x7f]+$";
    /// Key of a label or annotation.
    MetadataKey: "metadata-key", 317, "^([-a-z0-9.]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";
    /// Value of a label.
    LabelValue: "label-value", 63, "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";
}

/// A namespace: settings that its services share.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NamespaceDocument {
    /// Version of the kind.
    pub(crate) api_version: String,
    /// Kind.
    pub(crate) kind: String,
    /// Name and labels.
    pub(crate) metadata: NamespaceMetadata,
    /// Settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) spec: Option<NamespaceSpec>,
}

/// A service: something that is called, or calls, or both.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ServiceDocument {
    /// Version of the kind.
    pub(crate) api_version: String,
    /// Kind.
    pub(crate) kind: String,
    /// Name, namespace and labels.
    pub(crate) metadata: ServiceMetadata,
    /// Settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) spec: Option<ServiceSpec>,
}

/// A route of HTTP requests to a service: splits, matches, header changes and limits (Gateway API).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HttpRouteDocument {
    /// Version of the kind.
    pub(crate) api_version: String,
    /// Kind.
    pub(crate) kind: String,
    /// Name, namespace and labels.
    pub(crate) metadata: RouteMetadata,
    /// The route.
    pub(crate) spec: HttpRouteSpec,
}

/// Name and labels of a namespace.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NamespaceMetadata {
    /// Name: lower case letters, digits and `-`.
    pub(crate) name: Label,
    /// Labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) labels: Option<BTreeMap<MetadataKey, LabelValue>>,
    /// Annotations: notes that nothing here interprets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<MetadataKey, String>>,
}

/// Name, namespace and labels of a service.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ServiceMetadata {
    /// Name: lower case letters, digits and `-`, starting with a letter.
    pub(crate) name: ServiceName,
    /// Namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<Label>,
    /// Labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) labels: Option<BTreeMap<MetadataKey, LabelValue>>,
    /// Annotations: notes that nothing here interprets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<MetadataKey, String>>,
}

/// Name, namespace and labels of a route.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RouteMetadata {
    /// Name: lower case letters, digits, `-` and `.`.
    pub(crate) name: Subdomain,
    /// Namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<Label>,
    /// Labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) labels: Option<BTreeMap<MetadataKey, LabelValue>>,
    /// Annotations: notes that nothing here interprets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<BTreeMap<MetadataKey, String>>,
}

/// Settings of a namespace.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NamespaceSpec {
    /// Whether connections between proxies are authenticated with mutual TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mtls: Option<Mtls>,
    /// Release channel that its proxies follow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) channel: Option<Channel>,
    /// Engine of every service that does not name its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) engine: Option<Engine>,
    /// Limits of every service that does not set its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeouts: Option<TimeoutsSpec>,
    /// A TCP connection without a byte in either direction ends after this; `0s` is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tcp_idle: Option<DurationText>,
}

/// Time limits.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TimeoutsSpec {
    /// From the end of an HTTP request until the head of its response; `0s` is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request: Option<DurationText>,
    /// An HTTP exchange without a byte in either direction ends after this; `0s` is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) idle: Option<DurationText>,
    /// To open a connection to an endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connect: Option<PositiveDurationText>,
}

/// Settings of a service.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ServiceSpec {
    /// Which directions its proxy serves. Default: `client-server`, or `client` if there are no ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<Role>,
    /// Ports that callers connect to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub(crate) ports: Option<Vec<PortSpec>>,
    /// Services it may call, as `name` or `name.namespace`: its permission, and all that its proxy knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub(crate) calls: Option<Vec<ServiceCall>>,
    /// Engine that carries its bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) engine: Option<Engine>,
    /// Limits of calls to this service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeouts: Option<TimeoutsSpec>,
}

/// A port of a service.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PortSpec {
    /// Name, unique in the service.
    pub(crate) name: Label,
    /// What callers connect to.
    #[schemars(range(min = 1, max = 65535))]
    pub(crate) port: u16,
    /// Where the application listens on loopback. Default: the same as `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub(crate) target_port: Option<u16>,
    /// What is spoken. Declared, never guessed.
    pub(crate) protocol: Protocol,
    /// Protocols besides WebSocket that a connection of `http` may be switched to by the header `upgrade`, as that names
    /// them, with their version, in any case; what follows the switch is carried as bytes. Not those that would carry
    /// further requests (`h2c`, `TLS/1.0`). Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub(crate) upgrades: Option<Vec<UpgradeName>>,
}

/// The route.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-outrider-later" = ["hostnames", "useDefaultGateways"]))]
pub(crate) struct HttpRouteSpec {
    /// Services whose callers this route is for.
    #[schemars(length(min = 1, max = 32))]
    pub(crate) parent_refs: Vec<ParentRef>,
    /// Rules; the most specific match wins, as the Gateway API says.
    #[schemars(length(min = 1, max = 16))]
    pub(crate) rules: Vec<RuleSpec>,
}

/// A parent: a service, or one port of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ParentRef {
    /// API group of the parent: empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-outrider-later" = ["gateway.networking.k8s.io"]))]
    pub(crate) group: Option<Group>,
    /// Kind of the parent: `Service`.
    #[schemars(extend("x-outrider-later" = ["Gateway"]))]
    pub(crate) kind: ParentKind,
    /// Namespace of the parent: the route's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<Label>,
    /// Name of the service.
    pub(crate) name: ServiceName,
    /// Name of the port. Default: every port that speaks what the route is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) section_name: Option<Label>,
    /// Number of the port, as callers see it. Default: every port that speaks what the route is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub(crate) port: Option<u16>,
}

/// The core API group, written as an empty text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum Group {
    /// Core.
    #[serde(rename = "")]
    Core,
}

/// Kinds a route's parent may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum ParentKind {
    /// Service.
    Service,
}

/// A rule: requests that match go to the backends.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-outrider-later" = ["name", "retry", "sessionPersistence"]))]
pub(crate) struct RuleSpec {
    /// Conditions, one of which must hold. Default: every path.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub(crate) matches: Option<Vec<MatchSpec>>,
    /// Changes to requests and responses.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub(crate) filters: Option<Vec<FilterSpec>>,
    /// Where requests go, by weight. Without one they are answered with 500.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub(crate) backend_refs: Option<Vec<BackendRefSpec>>,
    /// Limits of requests that match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeouts: Option<RuleTimeouts>,
}

/// A condition: everything in it must hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MatchSpec {
    /// Path of the request. Default: prefix `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<PathSpec>,
    /// Headers of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub(crate) headers: Option<Vec<HeaderMatchSpec>>,
    /// Method of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<Method>,
    /// Parameters in the query of the request; of several with the same name the first counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub(crate) query_params: Option<Vec<QueryParamMatchSpec>>,
}

/// A condition on a parameter of the query.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct QueryParamMatchSpec {
    /// How it is compared.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<ValueMatchKind>,
    /// Parameter, compared as it is written.
    pub(crate) name: HeaderName,
    /// Its value.
    pub(crate) value: QueryValue,
}

/// A condition on the path.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PathSpec {
    /// How it is compared.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<PathKind>,
    /// The path. A regular expression is RE2 and must match the whole of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<PathPattern>,
}

/// Ways to compare a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum PathKind {
    /// The whole path.
    Exact,
    /// Path elements from the start.
    PathPrefix,
    /// RE2, over the whole path without its query.
    RegularExpression,
}

/// A condition on a header.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HeaderMatchSpec {
    /// How it is compared.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<ValueMatchKind>,
    /// Header, in any case.
    pub(crate) name: HeaderName,
    /// Its value.
    pub(crate) value: HeaderValue,
}

impl HeaderMatchSpec {
    /// What it compares with, as it stands.
    pub(crate) fn plain(&self) -> ValueMatch {
        match self.kind.unwrap_or_default() {
            ValueMatchKind::Exact => ValueMatch::Exact(self.value.0.clone()),
            ValueMatchKind::RegularExpression => ValueMatch::Regex(self.value.0.clone()),
        }
    }
}

/// Ways to compare a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum ValueMatchKind {
    /// The whole value.
    #[default]
    Exact,
    /// RE2, over the whole value.
    RegularExpression,
}

/// Request methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Method {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
    /// CONNECT.
    Connect,
    /// OPTIONS.
    Options,
    /// TRACE.
    Trace,
    /// PATCH.
    Patch,
}

impl Method {
    /// As on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
        }
    }
}

/// A destination.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-outrider-later" = ["filters"]))]
pub(crate) struct BackendRefSpec {
    /// API group: empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<Group>,
    /// Kind: `Service`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-outrider-later" = ["ServiceImport"]))]
    pub(crate) kind: Option<ParentKind>,
    /// Name of the service.
    pub(crate) name: ServiceName,
    /// Namespace of the service: the route's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<Label>,
    /// Number of the port, as callers see it.
    #[schemars(range(min = 1, max = 65535))]
    pub(crate) port: u16,
    /// Share of the requests, relative to the sum of all weights of the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(crate) weight: Option<u32>,
}

/// A destination without a weight.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct BackendTarget {
    /// API group: empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<Group>,
    /// Kind: `Service`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-outrider-later" = ["ServiceImport"]))]
    pub(crate) kind: Option<ParentKind>,
    /// Name of the service.
    pub(crate) name: ServiceName,
    /// Namespace of the service: the route's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<Label>,
    /// Number of the port, as callers see it.
    #[schemars(range(min = 1, max = 65535))]
    pub(crate) port: u16,
}

/// Limits of a rule.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RuleTimeouts {
    /// From the end of the request until the head of its response; `0s` is no limit. Default: the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request: Option<DurationText>,
    /// Of one try, at most the limit of the request; `0s` is no limit. With it, the limit of the request is one of
    /// the whole exchange. Default: what a TrafficPolicy says, or the limit of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backend_request: Option<DurationText>,
}
