//! Routes.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Links, ServiceRef};
use crate::document::{Key, Kind};

/// How a value is compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ValueMatch {
    /// The whole value.
    Exact(String),
    /// RE2, over the whole value.
    Regex(String),
}

impl fmt::Display for ValueMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Regex(pattern) => write!(f, "~{pattern}"),
        }
    }
}

/// How a path is matched (Gateway API `HTTPPathMatch`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Path elements from the start: `/a` matches `/a` and `/a/b`, not `/ab`.
    Prefix(String),
    /// RE2, over the whole path without its query.
    Regex(String),
    /// Service and method of a gRPC call, at least one of them (Gateway API `GRPCMethodMatch`).
    Grpc {
        /// Full name of the service.
        service: Option<ValueMatch>,
        /// Name of the method.
        method: Option<ValueMatch>,
    },
}

/// One condition of a rule; all parts must hold (Gateway API `HTTPRouteMatch`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpMatch {
    /// Path condition.
    pub path: PathMatch,
    /// Method, upper case.
    pub method: Option<String>,
    /// Headers that must be present with such a value; names lower case.
    pub headers: Vec<(String, ValueMatch)>,
    /// Parameters of the query likewise; names as written.
    pub query: Vec<(String, ValueMatch)>,
}

/// A weighted destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendRef {
    /// The service.
    pub service: ServiceRef,
    /// Its port, as callers see it.
    pub port: u16,
    /// Share relative to the sum, 0–1,000,000.
    pub weight: u32,
}

/// A rule of an HTTP route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRule {
    /// Alternatives; never empty (the default is prefix `/`).
    pub matches: Vec<HttpMatch>,
    /// Request headers to set, add, remove before forwarding, in that order of application.
    pub request_headers: HeaderEdits,
    /// Response headers likewise.
    pub response_headers: HeaderEdits,
    /// Destinations. Empty means 500 with `no_backends`, as the Gateway API says.
    pub backends: Vec<BackendRef>,
    /// Answers instead of forwarding; there are no backends then.
    pub redirect: Option<Redirect>,
    /// Changes of host and path before forwarding.
    pub rewrite: Option<Rewrite>,
    /// Where copies of requests go.
    pub mirrors: Vec<Mirror>,
    /// `timeouts.request` of the rule; `None` inside means no limit; absent means the service's.
    pub request_timeout: Option<Option<Duration>>,
    /// `timeouts.backendRequest` likewise; absent means the policy's.
    pub try_timeout: Option<Option<Duration>>,
}

impl HttpRule {
    /// Services and ports that get its requests, copies included.
    pub fn targets(&self) -> impl Iterator<Item = (&ServiceRef, u16)> {
        let backends = self.backends.iter().map(|backend| (&backend.service, backend.port));
        backends.chain(self.mirrors.iter().map(|mirror| (&mirror.service, mirror.port)))
    }
}

/// A redirect (Gateway API `HTTPRequestRedirectFilter`). What is absent stays as in the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host.
    pub hostname: Option<String>,
    /// Path.
    pub path: Option<PathChange>,
    /// Port.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// Changes of host and path (Gateway API `HTTPURLRewriteFilter`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// `Host` of what is forwarded.
    pub hostname: Option<String>,
    /// Its path.
    pub path: Option<PathChange>,
}

/// A change of the path; the query stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathChange {
    /// This instead of the whole.
    Full(String),
    /// This instead of the prefix of the rule's only match; without `/` at its end.
    Prefix(String),
}

/// A destination of copies (Gateway API `HTTPRequestMirrorFilter`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// The service.
    pub service: ServiceRef,
    /// Its port, as callers see it.
    pub port: u16,
    /// Requests of a million that are copied.
    pub per_million: u32,
}

/// Header modification (Gateway API `HTTPHeaderFilter`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderEdits {
    /// Overwrites.
    pub set: Vec<(String, String)>,
    /// Appends.
    pub add: Vec<(String, String)>,
    /// Removes by name.
    pub remove: Vec<String>,
}

/// A Gateway API `HTTPRoute` whose parents are services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRoute {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Parent services, with the port if only one is meant.
    pub parents: Vec<(ServiceRef, Option<u16>)>,
    /// Rules in the order written.
    pub rules: Vec<HttpRule>,
}

impl HttpRoute {
    pub(super) fn links(&self, kind: Kind) -> Links<'_> {
        Links {
            key: Key { kind, namespace: self.namespace.clone(), name: self.name.clone() },
            parents: &self.parents,
            targets: self.rules.iter().flat_map(HttpRule::targets).collect(),
        }
    }
}

/// A Gateway API `TCPRoute` whose parents are services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpRoute {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Parent services, with the port if only one is meant.
    pub parents: Vec<(ServiceRef, Option<u16>)>,
    /// Destinations. All of weight 0: connections are closed.
    pub backends: Vec<BackendRef>,
}

impl TcpRoute {
    pub(super) fn links(&self) -> Links<'_> {
        Links {
            key: Key { kind: Kind::TcpRoute, namespace: self.namespace.clone(), name: self.name.clone() },
            parents: &self.parents,
            targets: self.backends.iter().map(|backend| (&backend.service, backend.port)).collect(),
        }
    }
}
