//! What people declare: kinds, defaults with their origin, and diagnostics.
//!
//! Data in: YAML text. Data out: a [`model::Intent`] (the meaning types) and *all* diagnostics, each with
//! file, line, column, code, sentence and suggestion. Holds: no I/O, no clock; a value in the model has been
//! validated, so nothing after this crate checks a name or a port again. Does not: compile to xDS, store
//! anything, know any proxy.

pub mod model;
