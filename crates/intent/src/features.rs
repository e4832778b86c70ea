//! What documents ask of engines: each thing that not every engine may have, where it is written, and whose proxies
//! carry it out.
//!
//! Which engine has what is not known here; see `engines` in the crate `compile`.

use std::fmt;

use crate::diagnostic::Place;
use crate::document::{Document, Wire};
use crate::model::{Intent, Operation, Protocol, ServiceRef};
use crate::wire::{
    AccessMode, AccessPolicySpec, BalancingPolicy, BalancingSpec, FilterKind, FilterSpec, HeaderMatchSpec,
    HealthCheckKind, ParentRef, PathKind, TargetRef, TrafficPolicySpec, ValueMatchKind,
};

/// A thing that an engine has or has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// Ports that speak HTTP/2 or gRPC.
    Http2,
    /// Regular expressions over paths, names of gRPC included.
    PathRegex,
    /// Regular expressions over headers.
    HeaderRegex,
    /// Conditions on parameters of the query.
    QueryParams,
    /// Redirects.
    Redirect,
    /// Changes of host and path.
    Rewrite,
    /// Copies of requests.
    Mirror,
    /// Several destinations of TCP connections.
    TcpSplit,
    /// Trying again by policy.
    Retries,
    /// Leaving out endpoints that fail.
    OutlierEjection,
    /// Asking endpoints how they are.
    HealthCheck,
    /// Asking them by requests of HTTP/2.
    Http2HealthCheck,
    /// Asking them by gRPC.
    GrpcHealthCheck,
    /// Balancing by hashes.
    HashBalancing,
    /// Balancing by how long answers take.
    PeakEwma,
    /// Less for new endpoints.
    SlowStart,
    /// Faults on purpose.
    FaultInjection,
    /// Faults that are statuses of gRPC.
    GrpcFault,
    /// Rates of requests.
    RateLimit,
    /// Access by method, path or header.
    AccessByRequest,
    /// Counting what would be refused.
    AccessAudit,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http2 => "carry HTTP/2 and gRPC",
            Self::PathRegex => "match paths by regular expressions",
            Self::HeaderRegex => "match headers by regular expressions",
            Self::QueryParams => "match parameters of the query",
            Self::Redirect => "redirect",
            Self::Rewrite => "rewrite host or path",
            Self::Mirror => "send copies of requests",
            Self::TcpSplit => "split TCP connections by weight",
            Self::Retries => "retry by policy",
            Self::OutlierEjection => "eject endpoints that fail",
            Self::HealthCheck => "check the health of endpoints",
            Self::Http2HealthCheck => "ask endpoints how they are over HTTP/2",
            Self::GrpcHealthCheck => "ask endpoints how they are by gRPC",
            Self::HashBalancing => "balance by hashes",
            Self::PeakEwma => "balance by peak EWMA",
            Self::SlowStart => "start slowly with new endpoints",
            Self::FaultInjection => "inject faults",
            Self::GrpcFault => "answer with statuses of gRPC on purpose",
            Self::RateLimit => "limit the rate of requests",
            Self::AccessByRequest => "decide access by method, path or header",
            Self::AccessAudit => "audit access",
        })
    }
}

/// Whose proxies carry something out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// Of the services that call this one.
    Callers(ServiceRef),
    /// Of this service.
    Service(ServiceRef),
}

/// One use of a feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// What.
    pub feature: Feature,
    /// By whom.
    pub by: By,
    /// Where it is written.
    pub place: Place,
}

/// Every use in a set of documents that means `intent`, in the order of the documents.
pub fn uses(documents: &[Document], intent: &Intent) -> Vec<Use> {
    let mut found = Uses { intent, document: None, all: Vec::new() };
    for document in documents {
        found.document = Some(document);
        found.document(document);
    }
    found.all
}

struct Uses<'a> {
    intent: &'a Intent,
    document: Option<&'a Document>,
    all: Vec<Use>,
}

impl Uses<'_> {
    fn add(&mut self, feature: Feature, path: &str, by: impl IntoIterator<Item = By>) {
        let Some(document) = self.document else { return };
        let uses = by.into_iter().map(|by| Use { feature, by, place: document.at(path) });
        self.all.extend(uses);
    }

    fn document(&mut self, document: &Document) {
        let namespace = &document.key().namespace;
        let callers = |parents: &[ParentRef]| -> Vec<By> {
            parents.iter().map(|one| By::Callers(ServiceRef::new(namespace, &one.name.0))).collect()
        };
        match document.wire() {
            Some(Wire::Service(wire)) => {
                let id = ServiceRef::new(namespace, &document.key().name);
                let ports = wire.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
                for (index, port) in ports.iter().enumerate() {
                    if matches!(port.protocol, Protocol::Http2 | Protocol::Grpc) {
                        let by = [By::Service(id.clone()), By::Callers(id.clone())];
                        self.add(Feature::Http2, &format!("spec/ports/{index}/protocol"), by);
                    }
                }
            }
            Some(Wire::HttpRoute(wire)) => {
                let by = callers(&wire.spec.parent_refs);
                for (index, rule) in wire.spec.rules.iter().enumerate() {
                    let path = format!("spec/rules/{index}");
                    for (index, one) in rule.matches.as_deref().unwrap_or_default().iter().enumerate() {
                        let path = format!("{path}/matches/{index}");
                        if one.path.as_ref().and_then(|path| path.kind) == Some(PathKind::RegularExpression) {
                            self.add(Feature::PathRegex, &format!("{path}/path/type"), by.clone());
                        }
                        self.headers(&format!("{path}/headers"), one.headers.as_deref(), &by);
                        if one.query_params.as_ref().is_some_and(|all| !all.is_empty()) {
                            self.add(Feature::QueryParams, &format!("{path}/queryParams"), by.clone());
                        }
                    }
                    self.filters(&path, rule.filters.as_deref(), &by);
                }
            }
            Some(Wire::GrpcRoute(wire)) => {
                let by = callers(&wire.spec.parent_refs);
                for (index, rule) in wire.spec.rules.iter().enumerate() {
                    let path = format!("spec/rules/{index}");
                    for (index, one) in rule.matches.as_deref().unwrap_or_default().iter().enumerate() {
                        let path = format!("{path}/matches/{index}");
                        // A method of any service is a pattern over paths, too.
                        if let Some(method) = &one.method
                            && (method.kind == Some(ValueMatchKind::RegularExpression)
                                || method.service.is_none())
                        {
                            self.add(Feature::PathRegex, &format!("{path}/method"), by.clone());
                        }
                        self.headers(&format!("{path}/headers"), one.headers.as_deref(), &by);
                    }
                    self.filters(&path, rule.filters.as_deref(), &by);
                }
            }
            Some(Wire::TcpRoute(wire)) => {
                let by = callers(&wire.spec.parent_refs);
                for (index, rule) in wire.spec.rules.iter().enumerate() {
                    if rule.backend_refs.iter().filter(|one| one.weight != Some(0)).count() > 1 {
                        let path = format!("spec/rules/{index}/backendRefs");
                        self.add(Feature::TcpSplit, &path, by.clone());
                    }
                }
            }
            Some(Wire::TrafficPolicy(wire)) => {
                let services = self.targets(namespace, wire.spec.target_ref.as_ref());
                self.traffic(&wire.spec, &services);
            }
            Some(Wire::AccessPolicy(wire)) => {
                let services = self.targets(namespace, wire.spec.target_ref.as_ref());
                self.access(&wire.spec, &document.key().name, &services);
            }
            Some(Wire::Namespace(_) | Wire::ReferenceGrant(_)) | None => {}
        }
    }

    /// Services that a policy is for.
    fn targets(&self, namespace: &str, target: Option<&TargetRef>) -> Vec<ServiceRef> {
        match target {
            Some(target) => vec![ServiceRef::new(namespace, &target.name.0)],
            None => self.intent.services.keys().filter(|id| id.namespace == namespace).cloned().collect(),
        }
    }

    fn headers(&mut self, path: &str, headers: Option<&[HeaderMatchSpec]>, by: &[By]) {
        for (index, header) in headers.unwrap_or_default().iter().enumerate() {
            if header.kind == Some(ValueMatchKind::RegularExpression) {
                self.add(Feature::HeaderRegex, &format!("{path}/{index}/type"), by.iter().cloned());
            }
        }
    }

    fn filters(&mut self, rule: &str, filters: Option<&[FilterSpec]>, by: &[By]) {
        for (index, filter) in filters.unwrap_or_default().iter().enumerate() {
            let feature = match filter.kind {
                FilterKind::RequestHeaderModifier | FilterKind::ResponseHeaderModifier => continue,
                FilterKind::RequestRedirect => Feature::Redirect,
                FilterKind::UrlRewrite => Feature::Rewrite,
                FilterKind::RequestMirror => Feature::Mirror,
            };
            self.add(feature, &format!("{rule}/filters/{index}/type"), by.iter().cloned());
        }
    }

    fn traffic(&mut self, spec: &TrafficPolicySpec, services: &[ServiceRef]) {
        let callers = || services.iter().cloned().map(By::Callers);
        if spec.retries.as_ref().is_some_and(|retries| retries.attempts != Some(0)) {
            self.add(Feature::Retries, "spec/retries", callers());
        }
        let counts = spec.outlier_ejection.as_ref().is_some_and(|one| {
            one.max_ejection_percent != Some(0)
                && (one.consecutive_gateway_errors != Some(0)
                    || one.consecutive_5xx_errors.is_some_and(|count| count > 0)
                    || one.consecutive_local_origin_failures != Some(0)
                    || one.success_rate.is_some()
                    || one.failure_percentage.is_some())
        });
        if counts {
            self.add(Feature::OutlierEjection, "spec/outlierEjection", callers());
        }
        if let Some(check) = &spec.health_check {
            self.add(Feature::HealthCheck, "spec/healthCheck", callers());
            let speaks_http2 = |id: &&ServiceRef| {
                let ports = self.intent.services.get(*id).map(|service| service.ports.as_slice());
                ports.unwrap_or_default().iter().any(|port| port.protocol == Protocol::Http2)
            };
            let http2: Vec<ServiceRef> = services.iter().filter(speaks_http2).cloned().collect();
            if check.kind == HealthCheckKind::Http && !http2.is_empty() {
                let by = http2.into_iter().map(By::Callers);
                self.add(Feature::Http2HealthCheck, "spec/healthCheck/type", by);
            }
            if check.kind == HealthCheckKind::Grpc {
                self.add(Feature::GrpcHealthCheck, "spec/healthCheck/type", callers());
            }
        }
        let BalancingSpec { policy, slow_start, .. } = spec.balancing.clone().unwrap_or_default();
        if matches!(policy, Some(BalancingPolicy::RingHash | BalancingPolicy::Maglev)) {
            self.add(Feature::HashBalancing, "spec/balancing/policy", callers());
        }
        if policy == Some(BalancingPolicy::PeakEwma) {
            // Of bytes no answers are known, so nobody is told of it.
            let answers = |id: &&ServiceRef| {
                let ports = self.intent.services.get(*id).map(|service| service.ports.as_slice());
                ports.unwrap_or_default().iter().any(|port| port.protocol != Protocol::Tcp)
            };
            let with_answers: Vec<ServiceRef> = services.iter().filter(answers).cloned().collect();
            self.add(Feature::PeakEwma, "spec/balancing/policy", with_answers.into_iter().map(By::Callers));
        }
        if slow_start.is_some() {
            self.add(Feature::SlowStart, "spec/balancing/slowStart", callers());
        }
        if let Some(fault) = &spec.fault_injection {
            self.add(Feature::FaultInjection, "spec/faultInjection", callers());
            if fault.abort.as_ref().is_some_and(|abort| abort.grpc_status.is_some()) {
                self.add(Feature::GrpcFault, "spec/faultInjection/abort/grpcStatus", callers());
            }
        }
        if spec.rate_limit.is_some() {
            self.add(Feature::RateLimit, "spec/rateLimit", services.iter().cloned().map(By::Service));
        }
    }

    fn access(&mut self, spec: &AccessPolicySpec, name: &str, services: &[ServiceRef]) {
        // Streams of bytes know no requests: conditions on them are decided by callers alone.
        let of_requests = |id: &&ServiceRef| {
            let service = self.intent.services.get(*id);
            service.is_some_and(|one| one.ports.iter().any(|port| port.protocol != Protocol::Tcp))
        };
        let http: Vec<By> = services.iter().filter(of_requests).cloned().map(By::Service).collect();
        let by = services.iter().cloned().map(By::Service);
        if spec.mode == Some(AccessMode::Audit) {
            self.add(Feature::AccessAudit, "spec/mode", by);
            return;
        }
        let policies = services.iter().filter_map(|id| self.intent.services.get(id));
        let policy = policies.flat_map(|service| &service.access).find(|policy| policy.name == name);
        let Some(policy) = policy else { return };
        if let Some(index) =
            policy.rules.iter().position(|rule| rule.to.iter().any(Operation::is_of_requests))
        {
            self.add(Feature::AccessByRequest, &format!("spec/rules/{index}/to"), http);
        }
    }
}
