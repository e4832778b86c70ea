//! Access policies.

use serde::{Deserialize, Serialize};

use super::{PathMatch, ServiceRef, ValueMatch};

/// An access policy as it holds for one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessPolicy {
    /// Name, unique in the namespace.
    pub name: String,
    /// Whether what matches may pass, or is refused.
    pub allow: bool,
    /// Whether it is only counted what would be refused.
    pub audit: bool,
    /// Rules, one of which must match; never empty.
    pub rules: Vec<AccessRule>,
}

/// A rule: callers and requests, both of which must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRule {
    /// Callers; empty is everybody, without a certificate too.
    pub from: Vec<Caller>,
    /// Requests; empty is all.
    pub to: Vec<Operation>,
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Caller {
    /// This service.
    Service(ServiceRef),
    /// Any service of this namespace.
    Namespace(String),
}

impl Caller {
    /// Whether a service is meant.
    pub fn is(&self, service: &ServiceRef) -> bool {
        match self {
            Self::Service(id) => id == service,
            Self::Namespace(namespace) => *namespace == service.namespace,
        }
    }
}

/// What is called; every part must match, and one element of each list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Numbers of ports; empty is all.
    pub ports: Vec<u16>,
    /// Methods; empty is all.
    pub methods: Vec<String>,
    /// Paths; empty is all.
    pub paths: Vec<PathMatch>,
    /// Headers, all of which must match.
    pub headers: Vec<(String, ValueMatch)>,
}

impl Operation {
    /// Whether it has conditions on requests, so that it says nothing of a stream of bytes.
    pub fn is_of_requests(&self) -> bool {
        !(self.methods.is_empty() && self.paths.is_empty() && self.headers.is_empty())
    }
}
