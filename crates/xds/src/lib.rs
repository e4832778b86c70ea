//! The delta xDS protocol as two state machines: [`server::Session`] and [`client::Client`].
//!
//! Data in: delta requests and responses, and the [`ResourceSet`] to be served. Data out: the messages to send
//! next, and what became known (acknowledged, refused, subscribed). Holds: no I/O, no clock; one value per
//! stream and side; every list a peer can make grow is bounded. Does not: know what is inside a resource, with
//! two exceptions: what it leads to ([`refers`]), and what a client has to know for it ([`fit`]). Transport, time limits
//! and back-off belong to the caller.
//!
//! # The protocol in short
//! ```text
//! client → server   DeltaDiscoveryRequest   subscribe / unsubscribe; initial versions on a new stream;
//!                                           response_nonce = ACK, with error_detail = NACK
//! server → client   DeltaDiscoveryResponse  resources (new or changed), removed_resources, nonce
//! ```
//! Subscriptions are names, the wildcard `*` (or, in the first request of a type, nothing at all), and globs
//! `xdstp://AUTHORITY/TYPE/…/*`, which cover every name under their last `/`. The wildcard covers names without
//! the `xdstp:` scheme only.
//!
//! # Feature `serve`
//! The one piece with I/O, [`serve`]: a gRPC server around [`server::Session`]. Off unless asked for.

pub mod client;
pub mod fit;
mod interest;
mod lists;
pub mod refers;
pub mod refusal;
#[cfg(feature = "serve")]
pub mod serve;
pub mod server;
pub mod set;

pub use interest::{Interest, WILDCARD};
pub use set::{Change, Resource, ResourceSet};
