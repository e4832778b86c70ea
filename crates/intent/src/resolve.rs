//! From documents to meaning: defaults, inheritance, references.

use std::collections::BTreeSet;

use crate::model::{Intent, ServiceRef};
use crate::{Diagnostic, Document};

/// How to resolve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolveOptions {
    /// A call to a service that nothing declares goes to `Service::missing_calls` instead of being an error.
    pub tolerate_missing_calls: bool,
    /// The same, for these services only: those deleted by force before. The union of `missing_calls` of the
    /// previous intent is what belongs here.
    pub known_missing: BTreeSet<ServiceRef>,
}

/// What [`resolve`] found.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    /// The meaning; `None` if a finding is an error or a document is not valid.
    pub intent: Option<Intent>,
    /// Everything found about the set as a whole.
    pub diagnostics: Vec<Diagnostic>,
}

/// Computes the meaning of a whole set of documents. If a key occurs more than once, the later document wins:
/// so stored documents come first and new ones after them. (Duplicates within new sources are found by
/// [`crate::parse`].)
pub fn resolve(_documents: &[Document], _options: &ResolveOptions) -> Resolved {
    Resolved::default()
}
