//! What each proxy has in use, and what it refused.
//!
//! Holds: a proxy is current only if it has said of every expected resource that this very version is in use,
//! and of nothing else. Nothing is assumed.

use std::collections::BTreeMap;

use outrider_api::agent::Applied;
use outrider_xds_types::type_url;

/// Most resources of one type remembered of a proxy.
const MAX_RESOURCES: usize = 100_000;
const MAX_NAME: usize = 2_048;
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
    /// Takes a fact in. `false` if its type does not concern us or a limit is passed.
    pub(crate) fn apply(&mut self, fact: &Applied) -> bool {
        let Some(kind) = kind(&fact.type_url) else { return false };
        let of_kind = self.0.entry(fact.proxy.clone()).or_default().entry(kind).or_default();
        if fact.reset {
            *of_kind = OfKind::default();
        }
        for name in &fact.removed {
            of_kind.applied.remove(name);
            of_kind.refused.remove(name);
        }
        let mut all = true;
        for resource in &fact.acked {
            all &= keep(&mut of_kind.applied, &resource.name, resource.version.clone());
            of_kind.refused.remove(&resource.name);
        }
        let words: String = fact.error.chars().take(MAX_WORDS).collect();
        for resource in &fact.refused {
            all &= keep(&mut of_kind.refused, &resource.name, (resource.version.clone(), words.clone()));
        }
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
        let kind = kind.to_owned();
        of_kind.into_iter().flat_map(|of_kind| of_kind.applied.keys()).map(String::as_str).filter(
            move |name| !expected.iter().any(|expected| expected.kind == kind && expected.name == *name),
        )
    }
}

fn keep<V>(map: &mut BTreeMap<String, V>, name: &str, value: V) -> bool {
    let fits = name.len() <= MAX_NAME && (map.len() < MAX_RESOURCES || map.contains_key(name));
    if fits {
        map.insert(name.to_owned(), value);
    }
    fits
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

    fn standing(acks: &Acks, name: &str, version: &str) -> Standing {
        let expected = Expected { kind: "listener", name: name.into(), version: version.into() };
        acks.standing("shop/a-1", &expected)
    }

    #[test]
    fn only_the_same_version_in_use_is_current() {
        let mut acks = Acks::default();
        assert_eq!(standing(&acks, "l", "1"), Standing::Pending { has: None });
        assert!(acks.apply(&fact(&[("l", "1")], &[], &[])));
        assert_eq!(standing(&acks, "l", "1"), Standing::Current);
        assert_eq!(standing(&acks, "l", "2"), Standing::Pending { has: Some("1".into()) });
        acks.apply(&fact(&[], &[("l", "2")], &[]));
        assert_eq!(standing(&acks, "l", "2"), Standing::Rejected { words: "bad field".into() });
        assert_eq!(standing(&acks, "l", "1"), Standing::Current, "the earlier version stays in use");
        assert_eq!(standing(&acks, "l", "3"), Standing::Pending { has: Some("1".into()) });
        acks.apply(&fact(&[("l", "3")], &[], &[]));
        assert_eq!(standing(&acks, "l", "3"), Standing::Current);
        acks.apply(&fact(&[], &[], &["l"]));
        assert_eq!(standing(&acks, "l", "3"), Standing::Pending { has: None });
    }

    #[test]
    fn resets_left_overs_and_foreign_types() {
        let mut acks = Acks::default();
        acks.apply(&fact(&[("l", "1"), ("m", "1")], &[], &[]));
        let expected = [Expected { kind: "listener", name: "l".into(), version: "1".into() }];
        assert!(acks.left_over("shop/a-1", "listener", &expected).eq(["m"]));
        assert!(acks.left_over("shop/a-1", "cluster", &expected).eq(std::iter::empty::<&str>()));
        acks.apply(&Applied { reset: true, ..fact(&[("m", "2")], &[], &[]) });
        assert_eq!(standing(&acks, "l", "1"), Standing::Pending { has: None });
        assert_eq!(standing(&acks, "m", "2"), Standing::Current);
        assert!(!acks.apply(&Applied { type_url: type_url::SECRET.into(), ..fact(&[], &[], &[]) }));
        assert!(!acks.apply(&fact(&[(&"n".repeat(MAX_NAME + 1), "1")], &[], &[])));
        acks.forget("shop/a-1");
        assert_eq!(standing(&acks, "m", "2"), Standing::Pending { has: None });
    }
}
