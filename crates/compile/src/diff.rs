//! What an apply would change, in words for people and scripts.

use std::fmt;

use outrider_xds::{Change, ResourceSet};
use serde::{Deserialize, Serialize};

/// What happens to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is new.
    Added,
    /// It gets another content.
    Changed,
    /// It goes.
    Removed,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
        })
    }
}

/// One resource that differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    /// The message's name without package, as `Listener`.
    pub kind: String,
    /// Resource name, as in the sets.
    pub name: String,
    /// What happens to it.
    pub action: Action,
}

/// What leads from `before` to `after`, by type and name.
pub fn diff(before: &ResourceSet, after: &ResourceSet) -> Vec<Difference> {
    let changes = before.changes_to(after);
    changes
        .iter()
        .map(|change| {
            let (resource, action) = match change {
                Change::Added(resource) => (resource, Action::Added),
                Change::Changed(resource) => (resource, Action::Changed),
                Change::Removed(resource) => (resource, Action::Removed),
            };
            let kind = resource.type_url.rsplit(['.', '/']).next().unwrap_or_default().to_owned();
            Difference { kind, name: resource.name.to_string(), action }
        })
        .collect()
}
