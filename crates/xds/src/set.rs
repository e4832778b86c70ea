//! Resources by type and name: what a server serves and what a client holds.
//!
//! Holds: a set is cheap to clone and to compare (shared trees, one stamp per type); names are sorted; a version
//! is a function of content, so equal versions mean equal bodies. Does not: compute versions.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use outrider_xds_types::pb::envoy::service::discovery::v3 as discovery;
use outrider_xds_types::pb::google::protobuf::Any;

/// One named, versioned resource. Shared, never changed in place.
#[derive(Clone, PartialEq, Eq)]
pub struct Resource {
    /// Type URL of [`Resource::body`].
    pub type_url: Arc<str>,
    /// Unique within its type.
    pub name: Arc<str>,
    /// A function of the body.
    pub version: Arc<str>,
    /// The encoded message, the `value` of its `Any`.
    pub body: Vec<u8>,
}

impl Resource {
    /// A resource from its parts.
    pub fn new(
        type_url: impl Into<Arc<str>>,
        name: impl Into<Arc<str>>,
        version: impl Into<Arc<str>>,
        body: Vec<u8>,
    ) -> Self {
        Self { type_url: type_url.into(), name: name.into(), version: version.into(), body }
    }

    /// The same content under another name, for scoping.
    pub fn renamed(&self, name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), ..self.clone() }
    }

    /// As it travels.
    pub fn to_wire(&self) -> discovery::Resource {
        discovery::Resource {
            name: self.name.to_string(),
            version: self.version.to_string(),
            resource: Some(Any { type_url: self.type_url.to_string(), value: self.body.clone() }),
            ..discovery::Resource::default()
        }
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource")
            .field("type_url", &self.type_url)
            .field("name", &self.name)
            .field("version", &self.version)
            .field("bytes", &self.body.len())
            .finish()
    }
}

/// Changes whenever the resources of a type change; equal stamps mean an equal content.
///
/// The allocation is the identity, so a stamp that somebody still holds is never handed out again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stamp(Arc<()>);

impl Stamp {
    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

type Tree = BTreeMap<Arc<str>, Arc<Resource>>;

#[derive(Clone, Debug, Default)]
struct OfType {
    tree: Arc<Tree>,
    stamp: Stamp,
}

/// Resources by (type, name).
#[derive(Clone, Debug, Default)]
pub struct ResourceSet {
    types: BTreeMap<Arc<str>, OfType>,
}

/// One difference between two sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// In the later set only.
    Added(Arc<Resource>),
    /// In both, with another version; the later one.
    Changed(Arc<Resource>),
    /// In the earlier set only; the earlier one.
    Removed(Arc<Resource>),
}

impl ResourceSet {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces a resource. `false` if the same version was there already.
    pub fn insert(&mut self, resource: impl Into<Arc<Resource>>) -> bool {
        let resource = resource.into();
        if self.get(&resource.type_url, &resource.name).is_some_and(|old| old.version == resource.version) {
            return false;
        }
        let of_type = self.types.entry(resource.type_url.clone()).or_default();
        Arc::make_mut(&mut of_type.tree).insert(resource.name.clone(), resource);
        of_type.stamp = Stamp::default();
        true
    }

    /// Takes a resource out.
    pub fn remove(&mut self, type_url: &str, name: &str) -> Option<Arc<Resource>> {
        let of_type = self.types.get_mut(type_url)?;
        if !of_type.tree.contains_key(name) {
            return None;
        }
        of_type.stamp = Stamp::default();
        Arc::make_mut(&mut of_type.tree).remove(name)
    }

    /// Makes `resources` all there is of a type. Others of that type go; equal versions are kept as they are.
    /// Resources of another type among them are ignored. `false` if nothing changed.
    pub fn replace(&mut self, type_url: &str, resources: impl IntoIterator<Item = Arc<Resource>>) -> bool {
        let new: Tree = resources
            .into_iter()
            .filter(|resource| &*resource.type_url == type_url)
            .map(|resource| (resource.name.clone(), resource))
            .collect();
        let same = match self.types.get(type_url) {
            None => new.is_empty(),
            Some(old) => {
                old.tree.len() == new.len()
                    && old.tree.iter().zip(&new).all(|((a, x), (b, y))| a == b && x.version == y.version)
            }
        };
        if !same {
            self.types.insert(type_url.into(), OfType { tree: Arc::new(new), stamp: Stamp::default() });
        }
        !same
    }

    /// Adds everything of another set, which wins where both have a name.
    pub fn extend(&mut self, other: &Self) {
        for resource in other.iter() {
            self.insert(resource.clone());
        }
    }

    /// Takes over every type of `other` as it is there, in place of ours. Shares the content, so that a set
    /// composed anew of the same parts costs nothing to serve.
    pub fn adopt(&mut self, other: &Self) {
        for (type_url, of_type) in &other.types {
            self.types.insert(type_url.clone(), of_type.clone());
        }
    }

    /// The resource of that name.
    pub fn get(&self, type_url: &str, name: &str) -> Option<&Arc<Resource>> {
        self.types.get(type_url)?.tree.get(name)
    }

    /// All of a type, by name.
    pub fn of_type(&self, type_url: &str) -> impl Iterator<Item = &Arc<Resource>> {
        self.types.get(type_url).into_iter().flat_map(|of_type| of_type.tree.values())
    }

    /// All of a type whose names start with `prefix`, by name.
    pub fn with_prefix<'a>(
        &'a self,
        type_url: &str,
        prefix: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Resource>> {
        self.types
            .get(type_url)
            .into_iter()
            .flat_map(move |of_type| {
                of_type.tree.range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            })
            .take_while(move |(name, _)| name.starts_with(prefix))
            .map(|(_, resource)| resource)
    }

    /// Everything, by type and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.types.values().flat_map(|of_type| of_type.tree.values())
    }

    /// Number of resources.
    pub fn len(&self) -> usize {
        self.types.values().map(|of_type| of_type.tree.len()).sum()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What leads from `self` to `later`, by type and name. Types whose content is shared cost nothing.
    pub fn changes_to(&self, later: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        let empty = OfType::default();
        let mut types: Vec<&Arc<str>> = self.types.keys().chain(later.types.keys()).collect();
        types.sort();
        types.dedup();
        for type_url in types {
            let before = self.types.get(type_url).unwrap_or(&empty);
            let after = later.types.get(type_url).unwrap_or(&empty);
            if before.stamp.same(&after.stamp) {
                continue;
            }
            let mut names: Vec<&Arc<str>> = before.tree.keys().chain(after.tree.keys()).collect();
            names.sort();
            names.dedup();
            for name in names {
                match (before.tree.get(name), after.tree.get(name)) {
                    (None, Some(new)) => changes.push(Change::Added(new.clone())),
                    (Some(old), None) => changes.push(Change::Removed(old.clone())),
                    (Some(old), Some(new)) if old.version != new.version => {
                        changes.push(Change::Changed(new.clone()));
                    }
                    _ => {}
                }
            }
        }
        changes
    }

    pub(crate) fn stamp(&self, type_url: &str) -> Option<&Stamp> {
        self.types.get(type_url).map(|of_type| &of_type.stamp)
    }
}

impl PartialEq for ResourceSet {
    /// Equal names and versions.
    fn eq(&self, other: &Self) -> bool {
        self.changes_to(other).is_empty()
    }
}

impl FromIterator<Resource> for ResourceSet {
    fn from_iter<I: IntoIterator<Item = Resource>>(resources: I) -> Self {
        let mut set = Self::new();
        for resource in resources {
            set.insert(resource);
        }
        set
    }
}

#[cfg(test)]
mod tests;
