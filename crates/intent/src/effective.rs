//! Every value an object has in effect, and where it came from.

use serde::{Deserialize, Serialize};

use crate::{Document, Key};

/// An effective value and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveValue {
    /// Dotted path below `spec`, like `timeouts.request` or `ports[0].targetPort`.
    pub path: String,
    /// As it would be written in YAML.
    pub value: String,
    /// `declared`, `namespace shop`, `service shop/checkout` (routes only) or `default`.
    pub origin: String,
    /// For defaults: why this one.
    pub ground: Option<String>,
}

/// Every setting of an object, in the order of the reference. Empty if no valid document has that key.
pub fn effective(_documents: &[Document], _key: &Key) -> Vec<EffectiveValue> {
    Vec::new()
}
