//! What each proxy has in use, and what it refused.
//!
//! Holds: a proxy is current only if it has said of every expected resource that this very version is in use,
//! and of nothing else. Nothing is assumed; a version is published for one time only ([`super::versions`]), so what
//! was said of an earlier time never counts. What one node's proxies say takes a bounded number of bytes; what
//! does not fit is not kept, so its proxies are shown as behind.

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
/// Bytes that all proxies of a node may have said: 200 proxies with 1,000 resources each.
const MAX_NODE_BYTES: usize = 32 << 20;
/// What an entry takes beside its texts.
const ENTRY: usize = 64;

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

fn cost(texts: &[&str]) -> usize {
    ENTRY + texts.iter().map(|text| text.len()).sum::<usize>()
}

impl OfKind {
    fn bytes(&self) -> usize {
        let applied = self.applied.iter().map(|(name, version)| cost(&[name, version]));
        let refused = self.refused.iter().map(|(name, (version, words))| cost(&[name, version, words]));
        applied.chain(refused).sum()
    }
}

#[derive(Clone, Debug, Default)]
struct OfProxy {
    node: String,
    bytes: usize,
    kinds: BTreeMap<&'static str, OfKind>,
}

/// A fact was not kept, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AckError {
    #[error("its type does not concern the control plane")]
    Type,
    #[error(
        "a name or version is too long or has control characters, or there are too many that are not expected"
    )]
    Names,
    #[error("what the node's proxies acknowledge exceeds {} MiB", MAX_NODE_BYTES >> 20)]
    TooMuch,
}

/// Everything acknowledged, by proxy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Acks {
    proxies: BTreeMap<String, OfProxy>,
    /// Bytes by node.
    nodes: BTreeMap<String, usize>,
}

impl Acks {
    /// Takes a fact of `node` in, of a proxy that should have `expected`. What fits is taken even if there is an
    /// error. Refusals of what is not expected are not kept: nobody would be shown them.
    pub(crate) fn apply(
        &mut self,
        node: &str,
        fact: &Applied,
        expected: &[Expected],
    ) -> Result<(), AckError> {
        let kind = kind(&fact.type_url).ok_or(AckError::Type)?;
        if self.proxies.get(&fact.proxy).is_some_and(|proxy| proxy.node != node) {
            self.forget(&fact.proxy);
        }
        let all_bytes = self.nodes.entry(node.to_owned()).or_default();
        let of_proxy = self.proxies.entry(fact.proxy.clone()).or_default();
        node.clone_into(&mut of_proxy.node);
        let of_kind = of_proxy.kinds.entry(kind).or_default();
        let before = of_kind.bytes();
        let room = MAX_NODE_BYTES.saturating_sub(*all_bytes - before);
        if fact.reset {
            *of_kind = OfKind::default();
        }
        for name in &fact.removed {
            of_kind.applied.remove(name);
            of_kind.refused.remove(name);
        }
        let mut bytes = of_kind.bytes();
        let expected = names_of(expected, kind);
        let most = 4 * expected.len() + SPARE;
        let mut result = Ok(());
        for ResourceVersion { name, version } in &fact.acked {
            if let Some((version, words)) = of_kind.refused.remove(name) {
                bytes -= cost(&[name, &version, &words]);
            }
            let known = expected.contains(name.as_str()) || of_kind.applied.contains_key(name);
            if !(known || of_kind.applied.len() < most) || !is_sane(name, version) {
                result = Err(AckError::Names);
                continue;
            }
            // The earlier one is over, whether there is room for this one or not.
            if let Some(earlier) = of_kind.applied.remove(name) {
                bytes -= cost(&[name, &earlier]);
            }
            if bytes + cost(&[name, version]) > room {
                result = Err(AckError::TooMuch);
                continue;
            }
            bytes += cost(&[name, version]);
            of_kind.applied.insert(name.clone(), version.clone());
        }
        let words = printable(&fact.error, MAX_WORDS);
        for ResourceVersion { name, version } in &fact.refused {
            if !expected.contains(name.as_str()) || !is_sane(name, version) {
                result = Err(AckError::Names);
                continue;
            }
            if let Some((version, words)) = of_kind.refused.remove(name) {
                bytes -= cost(&[name, &version, &words]);
            }
            if bytes + cost(&[name, version, &words]) > room {
                result = Err(AckError::TooMuch);
                continue;
            }
            bytes += cost(&[name, version, &words]);
            of_kind.refused.insert(name.clone(), (version.clone(), words.clone()));
        }
        of_kind.refused.retain(|name, _| expected.contains(name.as_str()));
        let after = of_kind.bytes();
        of_proxy.bytes = of_proxy.bytes - before + after;
        *all_bytes = *all_bytes - before + after;
        result
    }

    /// Forgets a proxy.
    pub(crate) fn forget(&mut self, proxy: &str) {
        let Some(proxy) = self.proxies.remove(proxy) else { return };
        if let Some(bytes) = self.nodes.get_mut(&proxy.node) {
            *bytes -= proxy.bytes.min(*bytes);
            if *bytes == 0 {
                self.nodes.remove(&proxy.node);
            }
        }
    }

    fn of_kind(&self, proxy: &str, kind: &str) -> Option<&OfKind> {
        self.proxies.get(proxy)?.kinds.get(kind)
    }

    /// What is known of one resource.
    pub(crate) fn standing(&self, proxy: &str, expected: &Expected) -> Standing {
        let of_kind = self.of_kind(proxy, expected.kind);
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

    /// Whether a proxy said that it has a resource in use, in whatever version.
    pub(crate) fn has(&self, proxy: &str, kind: &str, name: &str) -> bool {
        self.version(proxy, kind, name).is_some()
    }

    /// The version that a proxy has in use.
    pub(crate) fn version(&self, proxy: &str, kind: &str, name: &str) -> Option<&str> {
        self.of_kind(proxy, kind)?.applied.get(name).map(String::as_str)
    }

    /// Names of a kind that a proxy still has in use although it should not.
    pub(crate) fn left_over<'a>(
        &'a self,
        proxy: &str,
        kind: &str,
        expected: &'a [Expected],
    ) -> impl Iterator<Item = &'a str> {
        let of_kind = self.of_kind(proxy, kind);
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
            self.check_bytes();
            let expected =
                ["l", "m"].map(|name| Expected { kind: "listener", name: name.into(), version: "1".into() });
            let result = self.apply("a", fact, &expected);
            self.check_bytes();
            result.is_ok()
        }

        /// The sums are the sums.
        fn check_bytes(&self) {
            let mut nodes = BTreeMap::<String, usize>::new();
            for proxy in self.proxies.values() {
                assert_eq!(proxy.bytes, proxy.kinds.values().map(OfKind::bytes).sum::<usize>());
                *nodes.entry(proxy.node.clone()).or_default() += proxy.bytes;
            }
            let held = |nodes: &BTreeMap<String, usize>| -> BTreeMap<String, usize> {
                nodes
                    .iter()
                    .filter(|(_, bytes)| **bytes > 0)
                    .map(|(node, bytes)| (node.clone(), *bytes))
                    .collect()
            };
            assert_eq!(held(&nodes), held(&self.nodes));
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

    #[test]
    fn a_node_is_bounded_in_bytes_whatever_it_reports_and_others_are_not_concerned() {
        let mut acks = Acks::default();
        let names: Vec<String> = (0..300).map(|number| format!("{number:-<240}")).collect();
        let version = "v".repeat(MAX_VERSION);
        let expected: Vec<Expected> = names
            .iter()
            .map(|name| Expected { kind: "listener", name: name.clone(), version: version.clone() })
            .collect();
        let all: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), version.as_str())).collect();
        let of = |proxy: usize| Applied { proxy: format!("shop/a-{proxy}"), ..fact(&all, &[], &[]) };
        let results: Vec<_> = (0..4_096).map(|proxy| acks.apply("hostile", &of(proxy), &expected)).collect();
        let full = results.iter().position(|result| *result == Err(AckError::TooMuch)).unwrap();
        assert!((200..1_000).contains(&full), "{full}");
        assert!(results[full..].iter().all(|result| *result == Err(AckError::TooMuch)));
        assert!(acks.nodes["hostile"] <= MAX_NODE_BYTES);
        let known = |acks: &Acks, proxy: usize| acks.standing(&format!("shop/a-{proxy}"), &expected[299]);
        assert_eq!(
            (known(&acks, 0), known(&acks, 4_095)),
            (Standing::Current, Standing::Pending { has: None })
        );
        // Another node has its own room, and what is forgotten makes room.
        assert_eq!(acks.apply("good", &Applied { proxy: "shop/b-1".into(), ..of(0) }, &expected), Ok(()));
        acks.forget("shop/a-0");
        acks.check_bytes();
        assert_eq!(acks.apply("hostile", &of(4_095), &expected), Ok(()));
        (0..4_096).for_each(|proxy| acks.forget(&format!("shop/a-{proxy}")));
        assert_eq!(acks.nodes.keys().collect::<Vec<_>>(), ["good"]);
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
