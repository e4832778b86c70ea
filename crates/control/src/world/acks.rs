//! What each proxy has in use, and what it refused.
//!
//! Holds: a proxy is current only if it has said of every expected resource that this very version is in use,
//! and of nothing else. Nothing is assumed.

use std::collections::{BTreeMap, HashSet};

use outrider_api::agent::{Applied, ResourceVersion};
use outrider_xds_types::type_url;

use super::hosts::printable;

/// Names that are not expected are remembered up to this number and four times what is expected, per type and
/// proxy: what an earlier intent left, not what an agent invents.
const SPARE: usize = 64;
/// Longest name in bytes; ours have three labels and a direction.
const MAX_NAME: usize = 256;
/// Longest version in bytes; ours are hashes.
const MAX_VERSION: usize = 128;
/// Most characters kept of an engine's words.
const MAX_WORDS: usize = 2_000;

/// Kinds of resources that proxies acknowledge: type URL and word for people.
pub(crate) const KINDS: [(&str, &str); 4] = [
    (type_url::CLUSTER, "cluster"),
    (type_url::ENDPOINT, "endpoints"),
    (type_url::LISTENER, "listener"),
    (type_url::ROUTE, "route"),
];

/// The word for a type URL; `None` for types proxies do not acknowledge to us.
pub(crate) fn kind(url: &str) -> Option<&'static str> {
    KINDS.iter().find(|(type_url, _)| *type_url == url).map(|(_, word)| *word)
}

/// A resource as a proxy should have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) kind: &'static str,
    /// Unscoped.
    pub(crate) name: String,
    pub(crate) version: String,
}

/// What is known of a resource of a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Current,
    /// Not in use yet; what is, if anything.
    Pending {
        has: Option<String>,
    },
    /// Refused in this version, with the engine's words.
    Rejected {
        words: String,
    },
}

#[derive(Clone, Debug, Default)]
struct OfKind {
    applied: BTreeMap<String, String>,
    refused: BTreeMap<String, (String, String)>,
}

/// Everything acknowledged, by proxy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Acks(BTreeMap<String, BTreeMap<&'static str, OfKind>>);

impl Acks {
    /// Takes a fact in, of a proxy that should have `expected`. `false` if its type does not concern us or a
    /// limit is passed; what fits is taken all the same. Refusals of what is not expected are not kept: nobody
    /// would be shown them.
    pub(crate) fn apply(&mut self, fact: &Applied, expected: &[Expected]) -> bool {
        let Some(kind) = kind(&fact.type_url) else { return false };
        let of_kind = self.0.entry(fact.proxy.clone()).or_default().entry(kind).or_default();
        if fact.reset {
            *of_kind = OfKind::default();
        }
        for name in &fact.removed {
            of_kind.applied.remove(name);
            of_kind.refused.remove(name);
        }
        let expected = names_of(expected, kind);
        let most = 4 * expected.len() + SPARE;
        let mut all = true;
        for ResourceVersion { name, version } in &fact.acked {
            let known = expected.contains(name.as_str()) || of_kind.applied.contains_key(name);
            let fits = (known || of_kind.applied.len() < most) && is_sane(name, version);
            if fits {
                of_kind.applied.insert(name.clone(), version.clone());
            }
            of_kind.refused.remove(name);
            all &= fits;
        }
        let words = printable(&fact.error, MAX_WORDS);
        for ResourceVersion { name, version } in &fact.refused {
            let fits = expected.contains(name.as_str()) && is_sane(name, version);
            if fits {
                of_kind.refused.insert(name.clone(), (version.clone(), words.clone()));
            }
            all &= fits;
        }
        of_kind.refused.retain(|name, _| expected.contains(name.as_str()));
        all
    }

    /// Forgets a proxy.
    pub(crate) fn forget(&mut self, proxy: &str) {
        self.0.remove(proxy);
    }

    /// What is known of one resource.
    pub(crate) fn standing(&self, proxy: &str, expected: &Expected) -> Standing {
        let of_kind = self.0.get(proxy).and_then(|kinds| kinds.get(expected.kind));
        let has = of_kind.and_then(|of_kind| of_kind.applied.get(&expected.name));
        if has == Some(&expected.version) {
            return Standing::Current;
        }
        match of_kind.and_then(|of_kind| of_kind.refused.get(&expected.name)) {
            Some((version, words)) if *version == expected.version => {
                Standing::Rejected { words: words.clone() }
            }
            _ => Standing::Pending { has: has.cloned() },
        }
    }

    /// Names of a kind that a proxy still has in use although it should not.
    pub(crate) fn left_over<'a>(
        &'a self,
        proxy: &str,
        kind: &str,
        expected: &'a [Expected],
    ) -> impl Iterator<Item = &'a str> {
        let of_kind = self.0.get(proxy).and_then(|kinds| kinds.get(kind));
        let expected = names_of(expected, kind);
        let names = of_kind.into_iter().flat_map(|of_kind| of_kind.applied.keys()).map(String::as_str);
        names.filter(move |name| !expected.contains(name))
    }
}

fn names_of<'a>(expected: &'a [Expected], kind: &str) -> HashSet<&'a str> {
    expected.iter().filter(|expected| expected.kind == kind).map(|expected| expected.name.as_str()).collect()
}

fn is_sane(name: &str, version: &str) -> bool {
    name.len() <= MAX_NAME && version.len() <= MAX_VERSION && !name.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use outrider_api::agent::ResourceVersion;

    use super::*;

    fn pair(name: &str, version: &str) -> ResourceVersion {
        ResourceVersion { name: name.into(), version: version.into() }
    }

    fn fact(acked: &[(&str, &str)], refused: &[(&str, &str)], removed: &[&str]) -> Applied {
        Applied {
            proxy: "shop/a-1".into(),
            type_url: type_url::LISTENER.into(),
            acked: acked.iter().map(|(name, version)| pair(name, version)).collect(),
            refused: refused.iter().map(|(name, version)| pair(name, version)).collect(),
            removed: removed.iter().map(|name| (*name).to_owned()).collect(),
            error: "bad field".into(),
            reset: false,
        }
    }

    impl Acks {
        /// For a proxy that should have listeners `l` and `m`.
        fn apply_any(&mut self, fact: &Applied) -> bool {
            let expected =
                ["l", "m"].map(|name| Expected { kind: "listener", name: name.into(), version: "1".into() });
            self.apply(fact, &expected)
        }
    }

    #[test]
    fn what_an_agent_invents_is_bounded() {
        let mut acks = Acks::default();
        let many: Vec<String> = (0..1_000).map(|number| format!("x{number}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "1")).collect();
        assert!(!acks.apply_any(&fact(&many, &many, &[])));
        assert_eq!(acks.left_over("shop/a-1", "listener", &[]).count(), 2 * 4 + SPARE);
        assert!(acks.apply_any(&fact(&[("l", "1")], &[("m", "1")], &[])), "what is expected always fits");
        let (version, name) = ("1".repeat(MAX_VERSION + 1), "\u{1b}[2J");
        assert!(!acks.apply_any(&fact(&[("l", &version)], &[], &[])));
        assert!(!acks.apply_any(&fact(&[(name, "1")], &[], &[])));
        acks.apply_any(&Applied { error: "\u{1b}[2Jbad".into(), ..fact(&[], &[("m", "1")], &[]) });
        assert_eq!(standing(&acks, "m", "1"), Standing::Rejected { words: " [2Jbad".into() });
    }

    fn standing(acks: &Acks, name: &str, version: &str) -> Standing {
        let expected = Expected { kind: "listener", name: name.into(), version: version.into() };
        acks.standing("shop/a-1", &expected)
    }

    #[test]
    fn only_the_same_version_in_use_is_current() {
        let mut acks = Acks::default();
        assert_eq!(standing(&acks, "l", "1"), Standing::Pending { has: None });
        assert!(acks.apply_any(&fact(&[("l", "1")], &[], &[])));
        assert_eq!(standing(&acks, "l", "1"), Standing::Current);
        assert_eq!(standing(&acks, "l", "2"), Standing::Pending { has: Some("1".into()) });
        acks.apply_any(&fact(&[], &[("l", "2")], &[]));
        assert_eq!(standing(&acks, "l", "2"), Standing::Rejected { words: "bad field".into() });
        assert_eq!(standing(&acks, "l", "1"), Standing::Current, "the earlier version stays in use");
        assert_eq!(standing(&acks, "l", "3"), Standing::Pending { has: Some("1".into()) });
        acks.apply_any(&fact(&[("l", "3")], &[], &[]));
        assert_eq!(standing(&acks, "l", "3"), Standing::Current);
        acks.apply_any(&fact(&[], &[], &["l"]));
        assert_eq!(standing(&acks, "l", "3"), Standing::Pending { has: None });
    }

    #[test]
    fn resets_left_overs_and_foreign_types() {
        let mut acks = Acks::default();
        acks.apply_any(&fact(&[("l", "1"), ("m", "1")], &[], &[]));
        let expected = [Expected { kind: "listener", name: "l".into(), version: "1".into() }];
        assert!(acks.left_over("shop/a-1", "listener", &expected).eq(["m"]));
        assert!(acks.left_over("shop/a-1", "cluster", &expected).eq(std::iter::empty::<&str>()));
        acks.apply_any(&Applied { reset: true, ..fact(&[("m", "2")], &[], &[]) });
        assert_eq!(standing(&acks, "l", "1"), Standing::Pending { has: None });
        assert_eq!(standing(&acks, "m", "2"), Standing::Current);
        assert!(!acks.apply_any(&Applied { type_url: type_url::SECRET.into(), ..fact(&[], &[], &[]) }));
        assert!(!acks.apply_any(&fact(&[(&"n".repeat(MAX_NAME + 1), "1")], &[], &[])));
        acks.forget("shop/a-1");
        assert_eq!(standing(&acks, "m", "2"), Standing::Pending { has: None });
    }
}
