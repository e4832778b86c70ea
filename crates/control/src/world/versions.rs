//! The versions under which resources are published.
//!
//! A version is a function of content, so a proxy that acknowledged A, is sent B, and then A again would look as if
//! it used A while B is still on its way. Holds: no version is ever published twice for different times of a
//! resource. Content that a resource had before comes back as `VERSION.N`, so only an acknowledgement of this very
//! publication counts, and whoever never saw B is sent the new version and acknowledges that. Of a resource that
//! is gone there is nothing to acknowledge if it never arrived, and no word that it will not: so another of its type
//! gets a new version with its removal, which is acknowledged after both.
//!
//! Does not: remember beyond the life of this process. A proxy that had not read B when the control plane ended,
//! and whose agent connects only after A was declared again, is taken for current.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use outrider_intent::model::ServiceRef;
use outrider_xds::{Resource, ResourceSet};

/// Contents of one resource that are remembered; with more, every change counts as a return.
const MAX_PAST: usize = 64;
/// Resources that are gone and remembered, over all proxies.
const MAX_GONE: usize = 4_096;

type Name = (Arc<str>, Arc<str>);

/// What one resource was.
#[derive(Clone, Debug, Default)]
struct Past {
    /// The content that is published, and the version for it; `None` while it is gone.
    current: Option<(Arc<str>, Arc<str>)>,
    /// Contents of before.
    seen: BTreeSet<Arc<str>>,
    /// More contents were forgotten.
    forgot: bool,
    returns: u64,
}

impl Past {
    fn retire(&mut self) {
        if let Some((content, _)) = self.current.take() {
            if self.seen.len() >= MAX_PAST {
                self.seen.clear();
                self.forgot = true;
            }
            self.seen.insert(content);
        }
    }

    /// The version of `content` from now on.
    fn publish(&mut self, content: &Arc<str>) -> Arc<str> {
        match &self.current {
            Some((same, version)) if same == content => version.clone(),
            _ => {
                self.retire();
                if self.forgot || self.seen.contains(content) {
                    return self.again(content);
                }
                self.current = Some((content.clone(), content.clone()));
                content.clone()
            }
        }
    }

    /// A new version of content that was there before.
    fn again(&mut self, content: &Arc<str>) -> Arc<str> {
        self.returns += 1;
        let version: Arc<str> = format!("{content}.{}", self.returns).into();
        self.current = Some((content.clone(), version.clone()));
        version
    }
}

/// Every resource published since the start.
#[derive(Clone, Debug, Default)]
pub(super) struct Versions {
    /// Of the proxies of a service.
    proxies: BTreeMap<ServiceRef, BTreeMap<Name, Past>>,
    /// Of no proxy.
    shared: BTreeMap<Name, Past>,
}

fn publish(past: &mut BTreeMap<Name, Past>, resource: &Arc<Resource>) -> Arc<Resource> {
    let name = (resource.type_url.clone(), resource.name.clone());
    let version = past.entry(name).or_default().publish(&resource.version);
    if version == resource.version {
        return resource.clone();
    }
    Arc::new(Resource { version, ..Resource::clone(resource) })
}

/// Gives the types of which something is gone now.
fn retire_others(past: &mut BTreeMap<Name, Past>, published: &BTreeSet<Name>) -> BTreeSet<Arc<str>> {
    let mut types = BTreeSet::new();
    for ((type_url, _), past) in past.iter_mut().filter(|(name, _)| !published.contains(*name)) {
        if past.current.is_some() {
            types.insert(type_url.clone());
        }
        past.retire();
    }
    types
}

fn names<'a>(resources: impl IntoIterator<Item = &'a Arc<Resource>>) -> BTreeSet<Name> {
    resources.into_iter().map(|resource| (resource.type_url.clone(), resource.name.clone())).collect()
}

impl Versions {
    /// Everything the proxies of a service get from now on.
    pub(super) fn of_proxies(&mut self, service: &ServiceRef, resources: &ResourceSet) -> ResourceSet {
        let past = self.proxies.entry(service.clone()).or_default();
        let mut gone = retire_others(past, &names(resources.iter()));
        let mut published = ResourceSet::new();
        for resource in resources.iter() {
            let name = (resource.type_url.clone(), resource.name.clone());
            let before = past.get(&name).and_then(|past| past.current.clone());
            let resource = publish(past, resource);
            if before.is_none_or(|(_, version)| version != resource.version) {
                gone.remove(&resource.type_url);
            }
            published.insert(resource);
        }
        // Nothing else of these types is to be acknowledged anew.
        for type_url in gone {
            let Some(resource) = resources.of_type(&type_url).next() else { continue };
            let Some(past) = past.get_mut(&(type_url, resource.name.clone())) else { continue };
            let version = past.again(&resource.version);
            published.insert(Resource { version, ..Resource::clone(resource) });
        }
        published
    }

    /// The proxies of a service get nothing any more: it is not declared.
    pub(super) fn no_proxies(&mut self, service: &ServiceRef) {
        if let Some(past) = self.proxies.get_mut(service) {
            retire_others(past, &BTreeSet::new());
        }
    }

    /// Forgets services without proxies: what comes later is of other proxies.
    pub(super) fn retain(&mut self, has_proxies: impl Fn(&ServiceRef) -> bool) {
        self.proxies.retain(|service, _| has_proxies(service));
    }

    /// One resource of no proxy.
    pub(super) fn of_all(&mut self, resource: &Arc<Resource>) -> Arc<Resource> {
        publish(&mut self.shared, resource)
    }

    /// All resources of no proxy of the type of these.
    pub(super) fn all_of(&mut self, resources: &[Arc<Resource>]) -> Vec<Arc<Resource>> {
        retire_others(&mut self.shared, &names(resources));
        let published = resources.iter().map(|resource| publish(&mut self.shared, resource)).collect();
        let gone = self.shared.values().filter(|past| past.current.is_none()).count();
        if gone > MAX_GONE {
            self.shared.retain(|_, past| past.current.is_some());
        }
        published
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_version_is_published_for_two_times() {
        let mut past = Past::default();
        let mut versions = BTreeSet::new();
        let mut publish = |past: &mut Past, content: &str| {
            let version = past.publish(&content.into());
            assert_eq!(past.publish(&content.into()), version, "the same until it changes");
            assert!(versions.insert(version.clone()), "{version} again");
            version
        };
        let mut published = |content: &str| publish(&mut past, content).to_string();
        assert_eq!(["a", "b", "a", "b", "c", "a"].map(&mut published), ["a", "b", "a.1", "b.2", "c", "a.3"]);
        // More than are remembered.
        for round in 0..5 {
            for number in 0..MAX_PAST {
                published(&format!("x{number}"));
            }
            published(&format!("y{round}"));
        }
        assert!(past.seen.len() <= MAX_PAST);
    }

    #[test]
    fn what_is_gone_comes_back_as_another_and_its_end_is_told_by_a_neighbour() {
        let service = ServiceRef::new("shop", "web");
        let set = |names: &[&str]| {
            let resources = names.iter().map(|name| Resource::new("t", *name, "v", Vec::new()));
            resources.collect::<ResourceSet>()
        };
        let mut versions = Versions::default();
        let mut publish = |names: &[&str]| -> Vec<String> {
            versions.of_proxies(&service, &set(names)).iter().map(|one| one.version.to_string()).collect()
        };
        assert_eq!(publish(&["a", "b"]), ["v", "v"]);
        assert_eq!(publish(&["b"]), ["v.1"], "so that the end of `a` is acknowledged");
        assert_eq!(publish(&["b"]), ["v.1"]);
        assert_eq!(publish(&["a", "b"]), ["v.1", "v.1"]);
        versions.no_proxies(&service);
        let again = versions.of_proxies(&service, &set(&["a"]));
        assert_eq!(&*again.iter().next().unwrap().version, "v.2");
        versions.retain(|_| false);
        let other = versions.of_proxies(&service, &set(&["a"]));
        assert_eq!(&*other.iter().next().unwrap().version, "v");

        let shared = |version: &str| Arc::new(Resource::new("t", "a", version, Vec::new()));
        let version = |resource: Arc<Resource>| resource.version.to_string();
        assert_eq!(version(versions.of_all(&shared("v"))), "v");
        versions.all_of(&[]);
        assert_eq!(version(versions.of_all(&shared("v"))), "v.1");
    }
}
