//! GRPCRoute, as the Gateway API has it in its standard channel.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    BackendRefSpec, FilterSpec, GrpcName, HeaderMatchSpec, ParentRef, RouteMetadata, RuleTimeouts,
    ValueMatchKind,
};

/// A route of gRPC calls to a service: splits, matches and header changes (Gateway API).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct GrpcRouteDocument {
    /// Version of the kind.
    pub(crate) api_version: String,
    /// Kind.
    pub(crate) kind: String,
    /// Name, namespace and labels.
    pub(crate) metadata: RouteMetadata,
    /// The route.
    pub(crate) spec: GrpcRouteSpec,
}

/// The route.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-outrider-later" = ["hostnames", "useDefaultGateways"]))]
pub(crate) struct GrpcRouteSpec {
    /// Services whose callers this route is for: ports that speak `grpc`.
    #[schemars(length(min = 1, max = 32))]
    pub(crate) parent_refs: Vec<ParentRef>,
    /// Rules; the most specific match wins, as the Gateway API says.
    #[schemars(length(min = 1, max = 16))]
    pub(crate) rules: Vec<GrpcRuleSpec>,
}

/// A rule: calls that match go to the backends.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-outrider-later" = ["name", "sessionPersistence"]))]
pub(crate) struct GrpcRuleSpec {
    /// Conditions, one of which must hold. Default: every call.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub(crate) matches: Option<Vec<GrpcMatchSpec>>,
    /// Changes to calls and answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub(crate) filters: Option<Vec<FilterSpec>>,
    /// Where calls go, by weight. Without one they are answered with UNAVAILABLE.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub(crate) backend_refs: Option<Vec<BackendRefSpec>>,
    /// Limits of calls that match. Not part of the Gateway API's GRPCRoute; the same as in an HTTPRoute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) timeouts: Option<RuleTimeouts>,
}

/// A condition: everything in it must hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct GrpcMatchSpec {
    /// Service and method of the call. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<GrpcMethodSpec>,
    /// Metadata of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub(crate) headers: Option<Vec<HeaderMatchSpec>>,
}

/// A condition on service and method, at least one of the two.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct GrpcMethodSpec {
    /// How both are compared.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(crate) kind: Option<ValueMatchKind>,
    /// Full name of the service, like `shop.Inventory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<GrpcName>,
    /// Name of the method, like `Reserve`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<GrpcName>,
}
