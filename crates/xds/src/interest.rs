//! What one side of a stream wants of one type: names, globs, the wildcard.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::set::{Resource, ResourceSet};

/// The subscription to everything of a type that is not an `xdstp:` name.
pub const WILDCARD: &str = "*";

const SCHEME: &str = "xdstp://";

/// A set of subscriptions of one type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// What stands before the `*`, its last `/` included.
    globs: BTreeSet<Arc<str>>,
    /// Bytes of both together.
    bytes: usize,
}

fn glob_prefix(name: &str) -> Option<&str> {
    let prefix = name.strip_suffix('*')?;
    (name.starts_with(SCHEME) && prefix.ends_with('/')).then_some(prefix)
}

impl Interest {
    /// Adds a name, a glob or the wildcard. `false` if it was there.
    pub fn add(&mut self, name: &str) -> bool {
        if name == WILDCARD {
            return !std::mem::replace(&mut self.wildcard, true);
        }
        let (new, bytes) = match glob_prefix(name) {
            Some(prefix) => (self.globs.insert(prefix.into()), prefix.len()),
            None => (self.names.insert(name.into()), name.len()),
        };
        if new {
            self.bytes += bytes;
        }
        new
    }

    /// Takes a name, a glob or the wildcard away. `false` if it was not there.
    pub fn remove(&mut self, name: &str) -> bool {
        if name == WILDCARD {
            return std::mem::replace(&mut self.wildcard, false);
        }
        let (gone, bytes) = match glob_prefix(name) {
            Some(prefix) => (self.globs.remove(prefix), prefix.len()),
            None => (self.names.remove(name), name.len()),
        };
        if gone {
            self.bytes -= bytes;
        }
        gone
    }

    /// Bytes of all names and globs together.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a resource of this name is wanted.
    pub fn covers(&self, name: &str) -> bool {
        (self.wildcard && !name.starts_with(SCHEME))
            || self.names.contains(name)
            || (!self.globs.is_empty()
                && name.match_indices('/').any(|(at, _)| self.globs.contains(&name[..=at])))
    }

    /// Whether it is wanted by name, not only by wildcard or glob.
    pub fn names(&self) -> &BTreeSet<Arc<str>> {
        &self.names
    }

    /// Number of subscriptions.
    pub fn len(&self) -> usize {
        self.names.len() + self.globs.len() + usize::from(self.wildcard)
    }

    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the wildcard is the only subscription.
    pub(crate) fn only_wildcard(&self) -> bool {
        self.wildcard && self.len() == 1
    }

    /// Subscriptions as they are written in a request, sorted.
    pub fn iter(&self) -> impl Iterator<Item = String> {
        self.wildcard
            .then(|| WILDCARD.to_owned())
            .into_iter()
            .chain(self.names.iter().map(|name| name.to_string()))
            .chain(self.globs.iter().map(|prefix| format!("{prefix}*")))
    }

    /// The resources of `set` that are wanted, each once.
    pub(crate) fn select<'a>(&'a self, type_url: &str, set: &'a ResourceSet) -> Vec<&'a Arc<Resource>> {
        if self.wildcard {
            return set.of_type(type_url).filter(|resource| self.covers(&resource.name)).collect();
        }
        let mut found: Vec<_> = self.names.iter().filter_map(|name| set.get(type_url, name)).collect();
        for prefix in &self.globs {
            found.extend(set.with_prefix(type_url, prefix));
        }
        if !self.globs.is_empty() {
            found.sort_by(|a, b| a.name.cmp(&b.name));
            found.dedup_by(|a, b| a.name == b.name);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_covers_what() {
        for (subscription, name, expected) in [
            ("*", "inbound/http", true),
            ("*", "xdstp://outrider/T/shop/a/inbound/http", false),
            ("a", "a", true),
            ("a", "ab", false),
            ("xdstp://outrider/T/shop/a/*", "xdstp://outrider/T/shop/a/inbound/http", true),
            ("xdstp://outrider/T/shop/a/*", "xdstp://outrider/T/shop/ab/inbound/http", false),
            ("xdstp://outrider/T/shop/a/*", "xdstp://outrider/T/shop/a", false),
            ("shop/*", "shop/a", false),
            ("xdstp://outrider/T/a*", "xdstp://outrider/T/ab", false),
        ] {
            let mut interest = Interest::default();
            assert!(interest.add(subscription));
            assert!(!interest.add(subscription), "{subscription} was added already");
            assert_eq!(interest.covers(name), expected, "{subscription} covers {name}");
            assert_eq!(interest.iter().collect::<Vec<_>>(), [subscription]);
            assert!(interest.remove(subscription));
            assert!(interest.is_empty());
        }
    }
}
