//! What people declare: kinds, defaults with their origin, and diagnostics.
//!
//! Data in: YAML text. Data out: a [`model::Intent`] (the meaning types) and *all* diagnostics, each with
//! file, line, column, code, sentence and suggestion. Holds: no I/O, no clock; a value in the model has been
//! validated, so nothing after this crate checks a name or a port again. Does not: compile to xDS, store
//! anything, know any proxy.
//!
//! ```
//! use outrider_intent::{ResolveOptions, Source, parse, resolve};
//!
//! let text = "apiVersion: outrider.dev/v1alpha1\nkind: Namespace\nmetadata: {name: shop}\n";
//! let parsed = parse(&[Source { name: "shop.yaml".into(), text: text.into() }]);
//! assert_eq!(parsed.diagnostics, []);
//! let resolved = resolve(&parsed.documents, &ResolveOptions::default());
//! assert!(resolved.intent.is_some_and(|intent| intent.namespaces.contains_key("shop")));
//! ```

mod access;
mod check;
mod defaults;
pub mod diagnostic;
mod document;
mod effective;
pub mod features;
mod formats;
pub mod model;
mod overlap;
mod reach;
mod render;
mod resolve;
mod route;
mod schema;
mod settings;
mod traffic;
mod tree;
mod wire;
mod words;

pub use diagnostic::{Code, Diagnostic, Place, Related, Severity};
pub use document::{Document, Key, Kind, Parsed, Source, parse};
pub use effective::{EffectiveValue, effective};
pub use render::{render, render_with_width};
pub use resolve::{ResolveOptions, Resolved, resolve};
pub use schema::schema;
