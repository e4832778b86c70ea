//! AccessPolicy: who may do what at a service, among those who may call it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{HeaderMatchSpec, Label, Method, PathSpec, RouteMetadata, ServiceName, TargetRef};

/// Who may do what at a service, among those who may call it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AccessPolicyDocument {
    /// Version of the kind.
    pub(crate) api_version: String,
    /// Kind.
    pub(crate) kind: String,
    /// Name, namespace and labels.
    pub(crate) metadata: RouteMetadata,
    /// The policy.
    pub(crate) spec: AccessPolicySpec,
}

/// The policy. What a `deny` matches is refused. If there is an `allow` for a service, what none matches is
/// refused as well. Both come on top of `calls`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AccessPolicySpec {
    /// The service it protects. Default: every service of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target_ref: Option<TargetRef>,
    /// What happens to what it matches.
    pub(crate) action: AccessAction,
    /// Whether it is carried out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mode: Option<AccessMode>,
    /// Rules, one of which must match.
    #[schemars(length(min = 1, max = 64))]
    pub(crate) rules: Vec<AccessRuleSpec>,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AccessAction {
    /// It may pass.
    Allow,
    /// It is refused.
    Deny,
}

/// Whether a policy is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AccessMode {
    /// It is.
    Enforce,
    /// It is only counted what it would refuse.
    Audit,
}

/// A rule: who, and what. Without `from` everybody, without `to` everything.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AccessRuleSpec {
    /// Callers, one of which it must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub(crate) from: Option<Vec<CallerSpec>>,
    /// Requests, one of which it must be.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    pub(crate) to: Option<Vec<OperationSpec>>,
}

/// Callers: a service, or all of a namespace.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct CallerSpec {
    /// Name of the service. Default: every service of the namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<ServiceName>,
    /// Its namespace: the own one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<Label>,
}

/// Requests: everything in it must hold.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct OperationSpec {
    /// Numbers of the ports, as callers see them. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16), inner(range(min = 1, max = 65535)))]
    pub(crate) ports: Option<Vec<u16>>,
    /// Methods. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 9))]
    pub(crate) methods: Option<Vec<Method>>,
    /// Paths, one of which it must be. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub(crate) paths: Option<Vec<PathSpec>>,
    /// Headers, all of which it must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub(crate) headers: Option<Vec<HeaderMatchSpec>>,
}
