//! Who may do what at a port: declared callers, then access policies, as Envoy's RBAC.
//!
//! What policies say of callers alone is decided here: the callers that are left are listed, for any engine and for
//! bytes as well. Only conditions on requests become rules of their own, under the names of their policies.
//!
//! What a rule names could come in another form ([`ambiguous`]): where rules decide by path, or deny by method, there are
//! rules about that beside those of the policies, enforced and audited alike.
//!
//! On ports of bytes conditions on requests cannot be seen. The safe reading counts: an `allow` with them lets
//! nobody in, a `deny` with them refuses all whom it names.

use outrider_intent::model::{
    AccessPolicy, AccessRule, Engine, Operation, PathMatch, Port, Protocol, Service, ServiceRef,
};
use outrider_xds_types::pb::envoy::config::rbac::v3 as rbac;
use outrider_xds_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use outrider_xds_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use outrider_xds_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as TcpRbac;
use outrider_xds_types::pb::google::protobuf::Any;
use outrider_xds_types::prost::{Message, Name};

use crate::ambiguous;
use crate::http::filter_of;
use crate::matching::{all_of, any_of, header_is, method_is, permission, permits_path};
use crate::staged::Accepts;
use crate::tls::exactly;
use crate::view::View;

use rbac::permission::Rule;
use rbac::principal::Identifier;
use rbac::rbac::Action;

/// Where connections come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// With a certificate, by which the caller is known.
    Authenticated,
    /// Without.
    Plaintext,
}

/// Access to one port.
pub(crate) struct Access<'a> {
    view: &'a View<'a>,
    service: &'a Service,
    port: &'a Port,
    /// Callers that are let in at all, sorted.
    callers: Vec<&'a ServiceRef>,
    /// Others, which may finish what they have begun as long as nothing denies it.
    finishing: Vec<&'a ServiceRef>,
}

/// Entries of an RBAC by name, in order.
type Entries = Vec<(String, rbac::Policy)>;

impl<'a> Access<'a> {
    pub(crate) fn new(
        view: &'a View<'a>,
        service: &'a Service,
        port: &'a Port,
        accepts: &Accepts<'a>,
    ) -> Self {
        let callers = accepts.callers.iter().copied().collect();
        Self { view, service, port, callers, finishing: accepts.finishing.clone() }
    }

    fn is_bytes(&self) -> bool {
        self.port.protocol == Protocol::Tcp
    }

    fn policies(&self, allow: bool, audit: bool) -> impl Iterator<Item = &'a AccessPolicy> + use<'a> {
        let all = self.service.access.iter();
        all.filter(move |policy| policy.allow == allow && policy.audit == audit)
    }

    /// Operations of a rule that are about this port; `None` if it is not.
    fn operations(&self, rule: &'a AccessRule) -> Option<Vec<&'a Operation>> {
        let here = |one: &&Operation| one.ports.is_empty() || one.ports.contains(&self.port.port);
        let all: Vec<&Operation> = rule.to.iter().filter(here).collect();
        (rule.to.is_empty() || !all.is_empty()).then_some(all)
    }

    /// Whether a rule about this port depends on requests.
    fn is_of_requests(&self, rule: &'a AccessRule) -> bool {
        let operations = self.operations(rule);
        operations.is_some_and(|all| all.iter().any(|one| one.is_of_requests()))
    }

    /// Whether any enforced policy about this port depends on requests.
    fn needs_rules(&self) -> bool {
        let policies = self.policies(true, false).chain(self.policies(false, false));
        !self.is_bytes() && policies.flat_map(|policy| &policy.rules).any(|rule| self.is_of_requests(rule))
    }

    /// Whether a rule without conditions on requests, or on bytes, matches a caller; `None` is one without certificate.
    fn names(&self, rule: &'a AccessRule, allow: bool, caller: Option<&ServiceRef>) -> bool {
        let Some(operations) = self.operations(rule) else { return false };
        let every = operations.is_empty() || operations.iter().any(|one| !one.is_of_requests());
        // Conditions that cannot be seen.
        if !every && allow {
            return false;
        }
        rule.from.is_empty() || caller.is_some_and(|caller| rule.from.iter().any(|from| from.is(caller)))
    }

    /// Whether the enforced policies let a caller in, where requests do not matter.
    fn admits(&self, caller: Option<&ServiceRef>) -> bool {
        let matches =
            |policy: &'a AccessPolicy| policy.rules.iter().any(|rule| self.names(rule, policy.allow, caller));
        if self.policies(false, false).any(matches) {
            return false;
        }
        let mut allows = self.policies(true, false).peekable();
        allows.peek().is_none() || allows.any(matches)
    }

    /// Callers that may be let in: by name, before any request.
    fn admitted(&self) -> Vec<&'a ServiceRef> {
        self.admitted_of(&self.callers)
    }

    fn admitted_of(&self, callers: &[&'a ServiceRef]) -> Vec<&'a ServiceRef> {
        let needs_rules = self.needs_rules();
        callers.iter().copied().filter(|caller| needs_rules || self.admits(Some(caller))).collect()
    }

    /// Whom the native proxy lets finish what they have begun.
    pub(crate) fn finishing(&self) -> Vec<String> {
        self.admitted_of(&self.finishing).into_iter().map(|caller| self.view.spiffe_id(caller)).collect()
    }

    /// Whom the handshake lets in; `None` is everybody with a certificate of the mesh.
    pub(crate) fn handshake(&self) -> Option<Vec<String>> {
        if !self.is_bytes() {
            return None;
        }
        let ids: Vec<String> =
            self.admitted().into_iter().map(|caller| self.view.spiffe_id(caller)).collect();
        Some(if ids.is_empty() { vec![self.view.nobody()] } else { ids })
    }

    /// Network filters of a port of bytes.
    pub(crate) fn network(&self, side: Side, name: &str) -> Vec<Any> {
        let mut all = Vec::new();
        let rules = match side {
            Side::Authenticated => Some(self.listed(&self.admitted())),
            Side::Plaintext => (!self.admits(None)).then(|| (Action::Allow, Vec::new())),
        };
        if let Some((action, entries)) = rules {
            all.push(merged(entries, |policies| TcpRbac {
                rules: Some(rules_of(action, policies)),
                stat_prefix: name.to_owned(),
                ..Default::default()
            }));
        }
        for (action, entries) in self.audits(side) {
            all.push(merged(entries, |policies| TcpRbac {
                shadow_rules: Some(rules_of(action, policies)),
                stat_prefix: name.to_owned(),
                shadow_rules_stat_prefix: AUDIT.to_owned(),
                ..Default::default()
            }));
        }
        all
    }

    /// HTTP filters of a port of requests.
    pub(crate) fn http(&self, side: Side) -> Vec<hcm::HttpFilter> {
        let mut enforced: Vec<(Action, Entries)> = Vec::new();
        if self.needs_rules() {
            let mut denied = self.entries(self.policies(false, false), side, false);
            denied.extend(self.ambiguous(false));
            if !denied.is_empty() {
                enforced.push((Action::Deny, denied));
            }
            if self.policies(true, false).next().is_some() {
                enforced.push((Action::Allow, self.entries(self.policies(true, false), side, true)));
            } else if side == Side::Authenticated {
                enforced.push(self.listed(&self.callers));
            }
        } else {
            match side {
                Side::Authenticated => enforced.push(self.listed(&self.admitted())),
                Side::Plaintext if !self.admits(None) => enforced.push((Action::Allow, Vec::new())),
                Side::Plaintext => {}
            }
        }
        let enforced = enforced.into_iter().map(|(action, entries)| {
            merged(entries, |policies| HttpRbac {
                rules: Some(rules_of(action, policies)),
                ..Default::default()
            })
        });
        let audits = self.audits(side).into_iter().map(|(action, entries)| {
            merged(entries, |policies| HttpRbac {
                shadow_rules: Some(rules_of(action, policies)),
                shadow_rules_stat_prefix: AUDIT.to_owned(),
                ..Default::default()
            })
        });
        enforced.chain(audits).map(|any| filter_of(HTTP_RBAC, any)).collect()
    }

    /// What would be refused beyond what is.
    fn audits(&self, side: Side) -> Vec<(Action, Entries)> {
        let mut all = Vec::new();
        let mut denied = self.entries(self.policies(false, true), side, false);
        // What enforcing these as well would refuse, and is not refused yet.
        let enforced = self.ambiguous(false);
        denied.extend(self.ambiguous(true).into_iter().filter(|entry| !enforced.contains(entry)));
        if !denied.is_empty() {
            all.push((Action::Deny, denied));
        }
        if self.policies(true, true).next().is_some() {
            let mut allowed = self.entries(self.policies(true, true), side, true);
            allowed.extend(self.entries(self.policies(true, false), side, true));
            all.push((Action::Allow, allowed));
        }
        all
    }

    /// The one entry that lets these pass. Without any, nobody: an `ALLOW` without policies denies.
    fn listed(&self, callers: &[&ServiceRef]) -> (Action, Entries) {
        let principals: Vec<_> = callers.iter().map(|caller| self.is(caller)).collect();
        let entry = || rbac::Policy {
            permissions: vec![permission(Rule::Any(true))],
            principals: principals.clone(),
            ..Default::default()
        };
        let entries = if principals.is_empty() { Vec::new() } else { vec![("callers".to_owned(), entry())] };
        (Action::Allow, entries)
    }

    fn is(&self, caller: &ServiceRef) -> rbac::Principal {
        rbac::Principal {
            identifier: Some(Identifier::Authenticated(rbac::principal::Authenticated {
                principal_name: Some(exactly(self.view.spiffe_id(caller))),
            })),
        }
    }

    /// Entries for rules about this port. `allow`: only declared callers pass, so they are listed.
    fn entries(&self, policies: impl Iterator<Item = &'a AccessPolicy>, side: Side, allow: bool) -> Entries {
        let mut entries = Vec::new();
        for policy in policies {
            for (index, rule) in policy.rules.iter().enumerate() {
                let Some(operations) = self.operations(rule) else { continue };
                if self.is_bytes() && allow && self.is_of_requests(rule) {
                    continue;
                }
                let named = |caller: &&&ServiceRef| rule.from.iter().any(|from| from.is(caller));
                // Denied is also what goes on.
                let others = if allow { &[][..] } else { &self.finishing };
                let principals: Vec<_> = match (side, rule.from.is_empty()) {
                    (Side::Authenticated, true) if allow => {
                        self.callers.iter().map(|one| self.is(one)).collect()
                    }
                    (_, true) => vec![anybody()],
                    (Side::Authenticated, false) => {
                        self.callers.iter().chain(others).filter(named).map(|one| self.is(one)).collect()
                    }
                    (Side::Plaintext, false) => Vec::new(),
                };
                if principals.is_empty() {
                    continue;
                }
                let name = format!("{}/{index}", policy.name);
                if operations.is_empty() || self.is_bytes() {
                    let permissions = vec![permission(Rule::Any(true))];
                    entries.push((name, rbac::Policy { permissions, principals, ..Default::default() }));
                    continue;
                }
                // A condition of Envoy's is one of the whole entry.
                let is_envoy = self.service.engine == Engine::Envoy;
                let single = |one: &&Operation| allow && is_envoy && !one.headers.is_empty();
                let (single, all): (Vec<&Operation>, Vec<&Operation>) =
                    operations.into_iter().partition(single);
                if !all.is_empty() {
                    let permissions = all.into_iter().map(|one| operation(one, allow, is_envoy)).collect();
                    let principals = principals.clone();
                    entries
                        .push((name.clone(), rbac::Policy { permissions, principals, ..Default::default() }));
                }
                for (nth, one) in single.into_iter().enumerate() {
                    let entry = rbac::Policy {
                        permissions: vec![operation(one, allow, is_envoy)],
                        principals: principals.clone(),
                        condition: ambiguous::is_one_value(&one.headers),
                        ..Default::default()
                    };
                    entries.push((format!("{name}.{nth}"), entry));
                }
            }
        }
        entries
    }

    /// Rules about what could be taken for something that a rule names; with what audited rules name, if asked.
    fn ambiguous(&self, audits: bool) -> Entries {
        if self.is_bytes() {
            return Vec::new();
        }
        let policies = self.service.access.iter().filter(|policy| audits || !policy.audit);
        let operations =
            |policy: &'a AccessPolicy| policy.rules.iter().filter_map(|rule| self.operations(rule)).flatten();
        let paths: Vec<&PathMatch> =
            policies.clone().flat_map(operations).flat_map(|operation| &operation.paths).collect();
        let mut denying = policies.filter(|policy| !policy.allow).flat_map(operations);
        let methods = denying.any(|operation| !operation.methods.is_empty());
        let entry = |name: &str, permission| {
            let permissions = vec![permission];
            let policy = rbac::Policy { permissions, principals: vec![anybody()], ..Default::default() };
            (name.to_owned(), policy)
        };
        let path = (!paths.is_empty()).then(|| entry(PATH, ambiguous::path(paths.into_iter())));
        path.into_iter().chain(methods.then(|| entry(METHOD, ambiguous::method()))).collect()
    }
}

/// Names of the rules about what could be read in two ways.
const PATH: &str = "ambiguous-path";
const METHOD: &str = "ambiguous-method";

const HTTP_RBAC: &str = "envoy.filters.http.rbac";
/// Prefix of the counters of what would be refused.
const AUDIT: &str = "audit.";

fn anybody() -> rbac::Principal {
    rbac::Principal { identifier: Some(Identifier::Any(true)) }
}

fn operation(one: &Operation, allow: bool, is_envoy: bool) -> rbac::Permission {
    let mut all = Vec::new();
    if !one.methods.is_empty() {
        let methods = one.methods.iter().map(|method| permission(Rule::Header(method_is(method))));
        all.push(any_of(methods.collect()));
    }
    if !one.paths.is_empty() {
        all.push(any_of(one.paths.iter().map(permits_path).collect()));
    }
    for (name, value) in &one.headers {
        let names = if is_envoy { ambiguous::alike(name) } else { vec![name.clone()] };
        if allow {
            all.push(permission(Rule::Header(header_is(name, value))));
            // Which of them an application takes is not known.
            let others = names.iter().skip(1).map(|other| ambiguous::is_missing(other));
            all.extend(others);
        } else {
            all.push(any_of(names.iter().map(|name| ambiguous::listed(name, value)).collect()));
        }
    }
    all_of(all)
}

fn rules_of(action: Action, entry: Option<(String, rbac::Policy)>) -> rbac::Rbac {
    rbac::Rbac { action: action as i32, policies: entry.into_iter().collect(), ..Default::default() }
}

/// A message with all entries. A map has no order of its own, and versions are functions of content: so the message
/// is put together of messages with one entry each, which is how protocol buffers merge.
fn merged<M: Message + Name>(entries: Entries, with: impl Fn(Option<(String, rbac::Policy)>) -> M) -> Any {
    let mut value = Vec::new();
    let none = if entries.is_empty() { Some(None) } else { None };
    for entry in entries.into_iter().map(Some).chain(none) {
        value.extend(with(entry).encode_to_vec());
    }
    Any { type_url: M::type_url(), value }
}
