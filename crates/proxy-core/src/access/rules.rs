//! Who may ask for what: lists of rules about callers and requests, in the order in which they decide.
//!
//! The semantics are those of Envoy's RBAC filters: a list that denies refuses what one of its rules matches, a list that
//! allows refuses what none of its rules matches, and an audited list refuses nothing, but says what it would have.
//! Which rules name a caller is worked out when the lists are made, so a decision looks up the caller once, and then
//! looks at the rules about it only.
//!
//! A field may come in several lines, and applications take the first, the last, or all of them. So the careful reading
//! counts: what denies does so if any line is what it names, or all of them joined; what allows needs each of these to be.
//! So do lines whose names have underscores for hyphens: who sees fields as variables cannot tell them apart.
//!
//! Holds: of several rules that match, the first by name is told; a decision allocates nothing, but for a field whose
//! several lines are long and for pieces of a cookie (see [`RequestView`]); making the lists takes time and memory linear
//! in the callers that rules name. Does not: normalise paths; what could be read in two ways is for a rule to refuse.

use std::fmt;
use std::sync::Arc;

use hashbrown::HashMap;

use super::Peer;
use crate::http1::fields::is_alike;
use crate::route::{HeaderMatch, RequestView, ValueMatch};

/// What stands for the policy where a list that allows has no rule that matches.
pub const NO_RULE_ALLOWS: &str = "(no rule allows it)";

/// Name of the field that says who calls. What a caller puts there itself is not looked at.
const CLIENT_CERT: &[u8] = b"x-forwarded-client-cert";

/// A condition on requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Any request, and bytes.
    Any,
    /// Not this.
    Not(Box<Self>),
    /// All of these.
    All(Box<[Self]>),
    /// One of these.
    One(Box<[Self]>),
    /// A header.
    Header(HeaderMatch),
    /// The path without query and fragment.
    Path(ValueMatch),
}

impl Permission {
    /// `wide`: of a field in several lines, one is enough. That is right where a match denies; where it allows, each of
    /// them has to do.
    fn permits(&self, request: &impl RequestView, wide: bool) -> bool {
        match self {
            Self::Any => true,
            Self::Not(inner) => !inner.permits(request, !wide),
            Self::All(all) => all.iter().all(|one| one.permits(request, wide)),
            Self::One(any) => any.iter().any(|one| one.permits(request, wide)),
            Self::Header(header) if wide => header.matches_any_line(request),
            Self::Header(header) => header.matches_every_line(request),
            Self::Path(value) => {
                let path = request.path();
                let end = path.iter().position(|&byte| byte == b'#').unwrap_or(path.len());
                value.is(path.get(..end).unwrap_or_default())
            }
        }
    }

    /// Whether it is about requests at all.
    pub fn is_any(&self) -> bool {
        match self {
            Self::Any => true,
            Self::One(any) => any.iter().any(Self::is_any),
            Self::All(all) => all.iter().all(Self::is_any),
            _ => false,
        }
    }
}

/// Whom a rule is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callers {
    /// Everybody, with a certificate or without.
    pub everybody: bool,
    /// Everybody with a certificate.
    pub authenticated: bool,
    /// These SPIFFE IDs.
    pub ids: Vec<Box<str>>,
}

impl Callers {
    #[cfg(test)]
    fn has(&self, peer: Peer<'_>) -> bool {
        match peer {
            _ if self.everybody => true,
            Peer::Anonymous => false,
            Peer::Authenticated(_) if self.authenticated => true,
            Peer::Authenticated(id) => self.ids.iter().any(|one| **one == *id),
        }
    }
}

/// One rule of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The policy it is of, for records.
    pub policy: Arc<str>,
    /// About whom.
    pub callers: Callers,
    /// About what.
    pub permission: Permission,
}

/// What a list does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Refuses what no rule matches.
    Allow,
    /// Refuses what a rule matches.
    Deny,
}

/// A list of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleList {
    /// What it does.
    pub effect: Effect,
    /// It only says what it would do.
    pub audit: bool,
    /// Its rules, in any order.
    pub rules: Vec<Rule>,
}

/// Why something is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The rule that denies, or [`NO_RULE_ALLOWS`].
    pub policy: Arc<str>,
}

impl Denied {
    /// Whether nothing allows it, and nothing denies it either.
    pub fn is_by_omission(&self) -> bool {
        *self.policy == *NO_RULE_ALLOWS
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "access policy {}", self.policy)
    }
}

impl std::error::Error for Denied {}

#[derive(Debug, PartialEq, Eq)]
struct Compiled {
    effect: Effect,
    audit: bool,
    policies: Box<[Arc<str>]>,
    permissions: Box<[Permission]>,
}

/// Rules about a kind of callers: for each list, the places of its rules, ascending.
type Selection = Box<[Box<[u32]>]>;

/// Lists of rules, compiled.
#[derive(Debug, PartialEq, Eq)]
pub struct Rules {
    lists: Box<[Compiled]>,
    /// About everybody.
    anonymous: Selection,
    /// About everybody with a certificate.
    unnamed: Selection,
    /// About these callers by name, beside those about everybody with a certificate.
    named: HashMap<Box<str>, Selection, foldhash::fast::RandomState>,
    none: Arc<str>,
}

impl Rules {
    /// Compiles lists, which decide in this order.
    pub fn new(mut lists: Vec<RuleList>) -> Self {
        for list in &mut lists {
            list.rules.sort_by(|a, b| a.policy.cmp(&b.policy));
        }
        let select = |matches: &dyn Fn(&Callers) -> bool| -> Selection {
            let of = |list: &RuleList| -> Box<[u32]> {
                let rules = (0_u32..).zip(&list.rules);
                rules.filter(|(_, rule)| matches(&rule.callers)).map(|(place, _)| place).collect()
            };
            lists.iter().map(of).collect()
        };
        let anonymous = select(&|callers| callers.everybody);
        let unnamed = select(&|callers| callers.everybody || callers.authenticated);
        // One walk over the names: there may be thousands, each in every rule.
        let mut places: HashMap<&str, Vec<Vec<u32>>, foldhash::fast::RandomState> = HashMap::default();
        for (nth, list) in lists.iter().enumerate() {
            for (place, rule) in (0_u32..).zip(&list.rules) {
                if rule.callers.everybody || rule.callers.authenticated {
                    continue;
                }
                for id in &rule.callers.ids {
                    let own = places.entry(id).or_insert_with(|| vec![Vec::new(); lists.len()]);
                    if let Some(own) = own.get_mut(nth).filter(|own| own.last() != Some(&place)) {
                        own.push(place);
                    }
                }
            }
        }
        let boxed = |own: Vec<Vec<u32>>| -> Selection { own.into_iter().map(Vec::into).collect() };
        let named = places.into_iter().map(|(id, own)| (id.into(), boxed(own))).collect();
        let compiled = lists.into_iter().map(|list| {
            let (policies, permissions): (Vec<_>, Vec<_>) =
                list.rules.into_iter().map(|rule| (rule.policy, rule.permission)).unzip();
            Compiled {
                effect: list.effect,
                audit: list.audit,
                policies: policies.into(),
                permissions: permissions.into(),
            }
        });
        Self { lists: compiled.collect(), anonymous, unnamed, named, none: NO_RULE_ALLOWS.into() }
    }

    /// Decides about a request. `client_cert` is what the called service is told in `x-forwarded-client-cert`, if
    /// anything. `audited` hears of every policy that would deny it if it were enforced.
    ///
    /// # Errors
    /// What denies it.
    pub fn decide(
        &self,
        peer: Peer<'_>,
        request: &impl RequestView,
        client_cert: Option<&[u8]>,
        mut audited: impl FnMut(&Arc<str>),
    ) -> Result<(), Denied> {
        let request = &Told { request, client_cert };
        let (general, own) = match peer {
            Peer::Anonymous => (&self.anonymous, None),
            Peer::Authenticated(id) => (&self.unnamed, self.named.get(id)),
        };
        for (nth, (list, general)) in self.lists.iter().zip(general).enumerate() {
            let own = own.and_then(|own| own.get(nth)).map_or([].as_slice(), |own| own);
            let wide = list.effect == Effect::Deny;
            let permits = |place: &usize| {
                list.permissions.get(*place).is_some_and(|permission| permission.permits(request, wide))
            };
            let found = merged(own, general).find(permits).and_then(|place| list.policies.get(place));
            let denied = match (list.effect, found) {
                (Effect::Deny, Some(policy)) => policy,
                (Effect::Allow, None) => &self.none,
                _ => continue,
            };
            if !list.audit {
                return Err(Denied { policy: Arc::clone(denied) });
            }
            audited(denied);
        }
        Ok(())
    }

    /// The policies that [`Self::decide`] may tell to be audited.
    pub fn audits(&self) -> impl Iterator<Item = &str> {
        let audited = self.lists.iter().filter(|list| list.audit);
        audited.flat_map(|list| {
            let denies = list.effect == Effect::Deny;
            let policies = list.policies.iter().filter(move |_| denies).map(|policy| &**policy);
            policies.chain((!denies).then_some(NO_RULE_ALLOWS))
        })
    }

    /// The same of a stream of bytes, of which only the caller is known.
    ///
    /// # Errors
    /// What denies it.
    pub fn decide_bytes(&self, peer: Peer<'_>, audited: impl FnMut(&Arc<str>)) -> Result<(), Denied> {
        self.decide(peer, &NoRequest, None, audited)
    }
}

/// Both in order, each place once.
fn merged<'a>(mut own: &'a [u32], mut general: &'a [u32]) -> impl Iterator<Item = usize> + 'a {
    std::iter::from_fn(move || {
        let (next, from) = match (own.split_first(), general.split_first()) {
            (Some((next, rest)), Some((other, _))) if next < other => (next, (rest, general)),
            (_, Some((next, rest))) => (next, (own, rest)),
            (Some((next, rest)), None) => (next, (rest, general)),
            (None, None) => return None,
        };
        (own, general) = from;
        Some(*next as usize)
    })
}

/// A request with the certificate's field as it goes on.
struct Told<'a, V> {
    request: &'a V,
    client_cert: Option<&'a [u8]>,
}

impl<V: RequestView> RequestView for Told<'_, V> {
    fn method(&self) -> &[u8] {
        self.request.method()
    }

    fn scheme(&self) -> &[u8] {
        self.request.scheme()
    }

    fn authority(&self) -> &[u8] {
        self.request.authority()
    }

    fn path_and_query(&self) -> &[u8] {
        self.request.path_and_query()
    }

    fn values<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        let ours = name.eq_ignore_ascii_case(CLIENT_CERT);
        let own = self.client_cert.filter(|_| ours);
        own.into_iter().chain(self.request.values(name).filter(move |_| !ours))
    }

    fn values_alike<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        let ours = is_alike(name, CLIENT_CERT);
        let own = self.client_cert.filter(|_| ours);
        own.into_iter().chain(self.request.values_alike(name).filter(move |_| !ours))
    }
}

/// What there is to see of a stream of bytes.
struct NoRequest;

impl RequestView for NoRequest {
    fn method(&self) -> &[u8] {
        b""
    }

    fn authority(&self) -> &[u8] {
        b""
    }

    fn path_and_query(&self) -> &[u8] {
        b""
    }

    fn values<'a>(&'a self, _: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        std::iter::empty()
    }

    fn values_alike<'a>(&'a self, _: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        std::iter::empty()
    }
}

#[cfg(test)]
mod tests;
