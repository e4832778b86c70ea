//! Who may call: the decision of an inbound listener about callers; [`Rules`] decides about requests, where there are any.
//!
//! Identities are compared as whole strings; there are no patterns. Holds: a list never admits a caller
//! without an identity. Does not: verify certificates; the peer given here has been verified.

use std::sync::Arc;

use hashbrown::HashSet;

use crate::reason::Reason;

mod rules;

pub use rules::{Callers, Denied, Effect, NO_RULE_ALLOWS, Permission, Rule, RuleList, Rules};

/// Who is at the other end, as the transport proved it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer<'a> {
    /// Plaintext, or TLS without a client certificate.
    Anonymous,
    /// A verified certificate with this SPIFFE ID.
    Authenticated(&'a str),
}

/// A compiled access policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessPolicy {
    /// Everyone, plaintext included.
    AllowAll,
    /// Everyone who authenticates.
    AnyAuthenticated,
    /// Exactly these SPIFFE IDs, of which there may be very many.
    Allow(Arc<HashSet<Box<str>, foldhash::fast::RandomState>>),
    /// Nobody: also what holds before a policy arrived.
    #[default]
    DenyAll,
}

impl AccessPolicy {
    /// A policy that allows exactly these SPIFFE IDs.
    pub fn allow<S: Into<Box<str>>>(ids: impl IntoIterator<Item = S>) -> Self {
        Self::Allow(Arc::new(ids.into_iter().map(Into::into).collect()))
    }

    /// This policy, for these SPIFFE IDs only.
    #[must_use]
    pub fn only<S: AsRef<str>>(self, ids: &[S]) -> Self {
        let ids = ids.iter().map(AsRef::as_ref);
        match self {
            Self::AllowAll | Self::AnyAuthenticated => Self::allow(ids),
            Self::Allow(allowed) => Self::allow(ids.filter(|id| allowed.contains(*id))),
            Self::DenyAll => Self::DenyAll,
        }
    }

    /// Whether it is the same without a look at who is named: of equal ones, one that was copied from the other.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Allow(ours), Self::Allow(theirs)) => Arc::ptr_eq(ours, theirs),
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }

    /// Decides.
    ///
    /// # Errors
    /// [`Reason::MtlsRequired`] for an anonymous peer where an identity is needed, else
    /// [`Reason::CallerNotAllowed`].
    pub fn decide(&self, peer: Peer<'_>) -> Result<(), Reason> {
        match (self, peer) {
            (Self::AllowAll, _) | (Self::AnyAuthenticated, Peer::Authenticated(_)) => Ok(()),
            (Self::Allow(ids), Peer::Authenticated(id)) if ids.contains(id) => Ok(()),
            (Self::AnyAuthenticated | Self::Allow(_), Peer::Anonymous) => Err(Reason::MtlsRequired),
            _ => Err(Reason::CallerNotAllowed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_list_only_takes_away() {
        let both = AccessPolicy::allow(["a", "b"]);
        assert_eq!(both.clone().only(&["b", "c"]), AccessPolicy::allow(["b"]));
        assert_eq!(AccessPolicy::AllowAll.only(&["a", "b"]), both);
        assert_eq!(AccessPolicy::AnyAuthenticated.only(&["a", "b"]), both);
        assert_eq!(AccessPolicy::DenyAll.only(&["a"]), AccessPolicy::DenyAll);
    }

    #[test]
    fn one_that_was_copied_is_the_same() {
        let list = AccessPolicy::allow(["a"]);
        assert!(list.is_same(&list.clone()) && AccessPolicy::AllowAll.is_same(&AccessPolicy::AllowAll));
        assert!(!list.is_same(&AccessPolicy::allow(["b"])) && !list.is_same(&AccessPolicy::DenyAll));
        // This would have to be looked at.
        assert!(!list.is_same(&AccessPolicy::allow(["a"])));
    }

    #[test]
    fn decisions() {
        const A: &str = "spiffe://outrider.internal/ns/shop/svc/a";
        let list = AccessPolicy::allow([A]);
        let empty = AccessPolicy::allow::<&str>([]);
        let known = Peer::Authenticated(A);
        let longer = Peer::Authenticated("spiffe://outrider.internal/ns/shop/svc/a2");
        let cased = Peer::Authenticated("spiffe://outrider.internal/ns/shop/svc/A");
        let nobody = Peer::Authenticated("");
        use Peer::Anonymous;
        use Reason::{CallerNotAllowed, MtlsRequired};
        for (policy, peer, expected) in [
            (&AccessPolicy::AllowAll, Anonymous, Ok(())),
            (&AccessPolicy::AllowAll, known, Ok(())),
            (&AccessPolicy::AnyAuthenticated, Anonymous, Err(MtlsRequired)),
            (&AccessPolicy::AnyAuthenticated, longer, Ok(())),
            (&list, known, Ok(())),
            (&list, longer, Err(CallerNotAllowed)),
            (&list, cased, Err(CallerNotAllowed)),
            (&list, nobody, Err(CallerNotAllowed)),
            (&list, Anonymous, Err(MtlsRequired)),
            (&empty, known, Err(CallerNotAllowed)),
            (&empty, Anonymous, Err(MtlsRequired)),
            (&AccessPolicy::DenyAll, Anonymous, Err(CallerNotAllowed)),
            (&AccessPolicy::DenyAll, known, Err(CallerNotAllowed)),
            (&AccessPolicy::default(), known, Err(CallerNotAllowed)),
        ] {
            assert_eq!(policy.decide(peer), expected, "{policy:?} {peer:?}");
        }
    }
}
