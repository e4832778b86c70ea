//! Which nodes may speak here, by the keys of their certificates, and for which services each may act.
//!
//! Holds: a certificate of ours is good only while its key is among those given to the node of its name since it
//! was last admitted. So one admission, or the deletion of the node, ends every certificate of before, also those
//! that were renewed. A node without a record is not admitted. Does not: store; it is told what was stored.

use std::collections::{BTreeMap, BTreeSet};

use outrider_api::http::NodeScope;
use outrider_intent::model::ServiceRef;
use serde::{Deserialize, Serialize};

use super::hosts::is_label;

/// Keys of one node that are good at once: the one in use, and those of renewals that may have got lost.
const MAX_KEYS: usize = 4;
/// Namespaces and services named by one scope.
const MAX_NAMES: usize = 1_000;

/// The services a node may act for. The default is all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scope {
    namespaces: BTreeSet<String>,
    services: BTreeSet<ServiceRef>,
}

/// A scope that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ScopeError {
    #[error("`{0}` is not the name of a namespace")]
    Namespace(String),
    #[error("`{0}` is not a service: write NAMESPACE/SERVICE")]
    Service(String),
    #[error("a scope names at most {MAX_NAMES} namespaces and services")]
    TooMany,
}

impl Scope {
    pub(crate) fn read(scope: &NodeScope) -> Result<Self, ScopeError> {
        if scope.namespaces.len() + scope.services.len() > MAX_NAMES {
            return Err(ScopeError::TooMany);
        }
        if let Some(name) = scope.namespaces.iter().find(|name| !is_label(name)) {
            return Err(ScopeError::Namespace(name.chars().take(100).collect()));
        }
        let service = |text: &String| {
            let (namespace, name) = text.split_once('/')?;
            (is_label(namespace) && is_label(name)).then(|| ServiceRef::new(namespace, name))
        };
        let services = scope
            .services
            .iter()
            .map(|text| service(text).ok_or_else(|| ScopeError::Service(text.chars().take(200).collect())));
        Ok(Self {
            namespaces: scope.namespaces.iter().cloned().collect(),
            services: services.collect::<Result<_, _>>()?,
        })
    }

    pub(crate) fn view(&self) -> NodeScope {
        NodeScope {
            namespaces: self.namespaces.iter().cloned().collect(),
            services: self.services.iter().map(ToString::to_string).collect(),
        }
    }

    pub(crate) fn is_all(&self) -> bool {
        self.namespaces.is_empty() && self.services.is_empty()
    }

    pub(crate) fn allows(&self, service: &ServiceRef) -> bool {
        self.is_all() || self.namespaces.contains(&service.namespace) || self.services.contains(service)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    /// As [`outrider_identity::CertificateInfo::key`].
    key: String,
    /// Unix seconds: the end of the certificate for it.
    until: u64,
}

/// A node as it was let in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Admission {
    pub(crate) scope: Scope,
    /// The oldest first. None: it was let in before keys were kept, and the first it comes with is its own.
    keys: Vec<Key>,
}

impl Admission {
    pub(crate) fn new(scope: Scope, key: String, until: u64) -> Self {
        Self { scope, keys: vec![Key { key, until }] }
    }

    /// Whether all its certificates ended before `now` (Unix seconds).
    pub(crate) fn is_over(&self, now: u64) -> bool {
        !self.keys.is_empty() && self.keys.iter().all(|key| key.until <= now)
    }

    /// With one more key. That of the certificate that asked for it, `own`, is kept.
    pub(crate) fn with_key(&self, own: &str, key: String, until: u64) -> Self {
        let mut admission = self.clone();
        admission.keys.push(Key { key, until });
        while admission.keys.len() > MAX_KEYS {
            let oldest = admission.keys.iter().position(|key| key.key != own).unwrap_or(0);
            admission.keys.remove(oldest);
        }
        admission
    }
}

/// The nodes whose certificates had all ended at `moment` (Unix seconds). None if that is so of every node: then it is
/// more likely that this clock is wrong than that all of them have gone, and who is forgotten stays out.
pub(crate) fn forgotten(all: &BTreeMap<String, Admission>, moment: u64) -> Vec<String> {
    let over: Vec<_> =
        all.iter().filter(|(_, admission)| admission.is_over(moment)).map(|(node, _)| node.clone()).collect();
    if over.len() == all.len() { Vec::new() } else { over }
}

/// The certificate is good for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("node {0} was deleted, or admitted again with another certificate: it may join with a new token")]
pub(crate) struct NotAdmitted(pub(crate) String);

/// Every admitted node, by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Admissions(BTreeMap<String, Admission>);

impl Admissions {
    pub(crate) fn new(known: BTreeMap<String, Admission>) -> Self {
        Self(known)
    }

    pub(crate) fn get(&self, node: &str) -> Option<&Admission> {
        self.0.get(node)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &Admission)> {
        self.0.iter()
    }

    /// Takes over what was stored.
    pub(crate) fn put(&mut self, node: &str, admission: Admission) {
        self.0.insert(node.to_owned(), admission);
    }

    pub(crate) fn remove(&mut self, node: &str) -> bool {
        self.0.remove(node).is_some()
    }

    /// Whether a certificate of `node` with this key is good. `Some`: it is, if this admission is stored and put.
    pub(crate) fn check(&self, node: &str, key: &str) -> Result<Option<Admission>, NotAdmitted> {
        let admission = self.0.get(node).ok_or_else(|| NotAdmitted(node.to_owned()))?;
        if admission.keys.is_empty() {
            return Ok(Some(admission.with_key(key, key.to_owned(), u64::MAX)));
        }
        let known = admission.keys.iter().any(|known| known.key == key);
        if known { Ok(None) } else { Err(NotAdmitted(node.to_owned())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(namespaces: &[&str], services: &[&str]) -> Result<Scope, ScopeError> {
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Scope::read(&NodeScope { namespaces: all(namespaces), services: all(services) })
    }

    #[test]
    fn scopes_allow_what_they_name() {
        let cases: [(&[&str], &[&str], [bool; 3]); 4] = [
            (&[], &[], [true, true, true]),
            (&["shop"], &[], [true, true, false]),
            (&[], &["shop/web"], [true, false, false]),
            (&["finance"], &["shop/db"], [false, true, true]),
        ];
        for (namespaces, services, expected) in cases {
            let scope = scope(namespaces, services).unwrap();
            let asked = [("shop", "web"), ("shop", "db"), ("finance", "ledger")];
            let allowed = asked.map(|(namespace, name)| scope.allows(&ServiceRef::new(namespace, name)));
            assert_eq!(allowed, expected, "{namespaces:?} {services:?}");
            assert_eq!(Scope::read(&scope.view()), Ok(scope));
        }
        for bad in ["", "Shop", "a/b", "x y", "\u{1b}"] {
            assert_eq!(scope(&[bad], &[]), Err(ScopeError::Namespace(bad.to_owned())));
        }
        for bad in ["", "web", "shop/", "/web", "shop/web/x", "shop/Web"] {
            assert_eq!(scope(&[], &[bad]), Err(ScopeError::Service(bad.to_owned())));
        }
        assert_eq!(scope(&vec!["a"; MAX_NAMES], &["a/b"]), Err(ScopeError::TooMany));
    }

    #[test]
    fn nobody_is_forgotten_by_a_clock_that_is_years_ahead() {
        let of = |until| Admission::new(Scope::default(), "k".into(), until);
        let mut all = BTreeMap::from([("a".to_owned(), of(10)), ("b".to_owned(), of(20))]);
        assert_eq!(forgotten(&all, 5), Vec::<String>::new());
        assert_eq!(forgotten(&all, 15), ["a"]);
        assert_eq!(forgotten(&all, 1_000_000), Vec::<String>::new(), "all of them at once");
        all.insert("c".to_owned(), of(2_000_000));
        assert_eq!(forgotten(&all, 1_000_000), ["a", "b"]);
        assert_eq!(forgotten(&BTreeMap::new(), 1), Vec::<String>::new());
    }

    #[test]
    fn keys_are_good_from_admission_or_renewal_to_deletion() {
        let mut admissions = Admissions::default();
        let denied = Err(NotAdmitted("n".into()));
        assert_eq!(admissions.check("n", "k1"), denied);
        admissions.put("n", Admission::new(Scope::default(), "k1".into(), 10));
        assert_eq!((admissions.check("n", "k1"), admissions.check("n", "k2")), (Ok(None), denied.clone()));
        // Renewals whose answers get lost never cost it the key it has.
        for number in 2..20 {
            let renewed = admissions.get("n").unwrap().with_key("k1", format!("k{number}"), 20);
            admissions.put("n", renewed);
            assert_eq!(admissions.check("n", "k1"), Ok(None));
            assert_eq!(admissions.check("n", &format!("k{number}")), Ok(None));
        }
        assert_eq!(admissions.get("n").unwrap().keys.len(), MAX_KEYS);
        assert!(!admissions.get("n").unwrap().is_over(19) && admissions.get("n").unwrap().is_over(20));
        // Admitted again, by a token that another machine has.
        admissions.put("n", Admission::new(Scope::default(), "new".into(), 30));
        assert_eq!(admissions.check("n", "k1"), denied);
        assert!(admissions.remove("n") && !admissions.remove("n"));
        assert_eq!(admissions.check("n", "new"), denied);

        // One of before keys were kept: the first it comes with.
        admissions.put("old", Admission::default());
        let pinned = admissions.check("old", "k1").unwrap().unwrap();
        admissions.put("old", pinned);
        assert_eq!(admissions.check("old", "k1"), Ok(None));
        assert!(admissions.check("old", "k2").is_err());
    }
}
