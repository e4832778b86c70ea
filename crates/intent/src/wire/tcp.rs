//! TCPRoute, as the Gateway API has it in its experimental channel.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BackendRefSpec, Group, Label, ParentKind, ParentRef, RouteMetadata, ServiceName};

/// A route of TCP connections to a service: splits (Gateway API).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TcpRouteDocument {
    /// Version of the kind.
    pub(crate) api_version: String,
    /// Kind.
    pub(crate) kind: String,
    /// Name, namespace and labels.
    pub(crate) metadata: RouteMetadata,
    /// The route.
    pub(crate) spec: TcpRouteSpec,
}

/// The route.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-outrider-later" = ["useDefaultGateways"]))]
pub(crate) struct TcpRouteSpec {
    /// Services whose callers this route is for: ports that speak `tcp`.
    #[schemars(length(min = 1, max = 32))]
    pub(crate) parent_refs: Vec<ParentRef>,
    /// The one rule.
    #[schemars(length(min = 1, max = 1))]
    pub(crate) rules: Vec<TcpRuleSpec>,
}

/// A rule: connections go to the backends.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-outrider-later" = ["name"]))]
pub(crate) struct TcpRuleSpec {
    /// Where connections go, by weight.
    #[schemars(length(min = 1, max = 16))]
    pub(crate) backend_refs: Vec<BackendRefSpec>,
}

/// Permission for routes of other namespaces to send to services of this one (Gateway API).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ReferenceGrantDocument {
    /// Version of the kind.
    pub(crate) api_version: String,
    /// Kind.
    pub(crate) kind: String,
    /// Name, namespace and labels.
    pub(crate) metadata: RouteMetadata,
    /// Who may refer to what.
    pub(crate) spec: ReferenceGrantSpec,
}

/// Who may refer to what.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ReferenceGrantSpec {
    /// Routes that may.
    #[schemars(length(min = 1, max = 16))]
    pub(crate) from: Vec<GrantFrom>,
    /// What they may refer to, of the grant's own namespace.
    #[schemars(length(min = 1, max = 16))]
    pub(crate) to: Vec<GrantTo>,
}

/// Routes of a kind in a namespace.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct GrantFrom {
    /// API group of the routes.
    pub(crate) group: RouteGroup,
    /// Kind of the routes.
    pub(crate) kind: RouteKindName,
    /// Their namespace.
    pub(crate) namespace: Label,
}

/// The API group of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum RouteGroup {
    /// Gateway API.
    #[serde(rename = "gateway.networking.k8s.io")]
    Gateway,
}

/// Kinds of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum RouteKindName {
    /// HTTPRoute.
    #[serde(rename = "HTTPRoute")]
    Http,
    /// GRPCRoute.
    #[serde(rename = "GRPCRoute")]
    Grpc,
    /// TCPRoute.
    #[serde(rename = "TCPRoute")]
    Tcp,
}

/// Services, or one of them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct GrantTo {
    /// API group: empty.
    pub(crate) group: Group,
    /// Kind: `Service`.
    pub(crate) kind: ParentKind,
    /// Name of the service. Default: every service of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<ServiceName>,
}
