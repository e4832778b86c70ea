//! The JSON Schema of all kinds.

/// JSON Schema (draft 2020-12) that a document of any kind satisfies. Meant for editors: what it accepts may still
/// be refused by [`crate::parse`] or [`crate::resolve`], what it refuses is refused by them too.
pub fn schema() -> serde_json::Value {
    serde_json::json!({})
}
