//! Filters of rules.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BackendTarget, HeaderName, HeaderValue, Hostname, PathReplacement, PathText};

/// A change to requests or responses: `type` says which field holds it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-outrider-later" = ["cors", "externalAuth", "extensionRef"]))]
pub(crate) struct FilterSpec {
    /// Which change.
    #[serde(rename = "type")]
    #[schemars(extend("x-outrider-later" = ["CORS", "ExternalAuth", "ExtensionRef"]))]
    pub(crate) kind: FilterKind,
    /// Changes to the headers of requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_header_modifier: Option<HeaderModifier>,
    /// Changes to the headers of responses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) response_header_modifier: Option<HeaderModifier>,
    /// An answer that sends the caller elsewhere; the rule then has no backends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_redirect: Option<RedirectSpec>,
    /// Changes to host and path before the request is sent on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url_rewrite: Option<RewriteSpec>,
    /// A second destination whose answers nobody reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) request_mirror: Option<MirrorSpec>,
}

/// Kinds of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum FilterKind {
    /// Change headers of the request.
    RequestHeaderModifier,
    /// Change headers of the response.
    ResponseHeaderModifier,
    /// Answer with a redirect.
    RequestRedirect,
    /// Change host and path.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// Send a copy of the request elsewhere.
    RequestMirror,
}

impl FilterKind {
    /// The field that holds its settings.
    pub(crate) fn field(self) -> &'static str {
        match self {
            Self::RequestHeaderModifier => "requestHeaderModifier",
            Self::ResponseHeaderModifier => "responseHeaderModifier",
            Self::RequestRedirect => "requestRedirect",
            Self::UrlRewrite => "urlRewrite",
            Self::RequestMirror => "requestMirror",
        }
    }
}

/// Changes to headers.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HeaderModifier {
    /// Overwrites.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub(crate) set: Option<Vec<HeaderSpec>>,
    /// Appends.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub(crate) add: Option<Vec<HeaderSpec>>,
    /// Removes by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub(crate) remove: Option<Vec<HeaderName>>,
}

/// A header.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HeaderSpec {
    /// Name, in any case.
    pub(crate) name: HeaderName,
    /// Value.
    pub(crate) value: HeaderValue,
}

/// A redirect.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RedirectSpec {
    /// Scheme of the new address: the request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scheme: Option<Scheme>,
    /// Host of the new address: the request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hostname: Option<Hostname>,
    /// Path of the new address: the request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<PathModifier>,
    /// Port of the new address. Default: the usual one of `scheme` if that is set, else that of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub(crate) port: Option<u16>,
    /// Status: 301, 302, 303, 307 or 308.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 301, max = 308))]
    pub(crate) status_code: Option<u16>,
}

/// Schemes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scheme {
    /// http.
    Http,
    /// https.
    Https,
}

/// Changes to host and path.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct RewriteSpec {
    /// What `Host` becomes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hostname: Option<Hostname>,
    /// What the path becomes; the query stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<PathModifier>,
}

/// A change of the path: `type` says which field holds it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PathModifier {
    /// How much is replaced.
    #[serde(rename = "type")]
    pub(crate) kind: PathModifierKind,
    /// Instead of the whole path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replace_full_path: Option<PathText>,
    /// Instead of the prefix that the rule's only match names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) replace_prefix_match: Option<PathReplacement>,
}

/// Ways to change a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum PathModifierKind {
    /// The whole path.
    ReplaceFullPath,
    /// The prefix that matched.
    ReplacePrefixMatch,
}

/// A second destination.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MirrorSpec {
    /// Where copies go.
    pub(crate) backend_ref: BackendTarget,
    /// Share of the requests that is copied. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub(crate) percent: Option<u32>,
    /// The same share, as a fraction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fraction: Option<Fraction>,
}

/// A share.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Fraction {
    /// Part, at most the denominator.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(crate) numerator: u32,
    /// Whole. Default: 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(crate) denominator: Option<u32>,
}
