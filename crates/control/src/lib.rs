//! The control plane: `outrider server`, and the first half of `outrider up`.
//!
//! Data in: documents over the HTTP API, facts from agents. Data out: xDS resources and certificates to agents,
//! answers to people. Holds: a change is on disk before it is answered or pushed; no stream is answered before
//! stored intent and known instances are loaded, and instances known before a restart stay for a grace time; an
//! agent sees the resources of its own instances only; what the state of the mesh is, is decided by one thread
//! ([`world`]) on a clock that is given to it. Does not: touch a proxy or an application; agents do.
//!
//! ```text
//! HTTP API ─► declare ─► store ─► world ─► resources ─► ADS streams ─► agents
//!                                  ▲ facts: hosts, instances, acks, traffic ─┘
//! ```

mod actor;
mod commands;
mod declare;
mod grpc;
mod http;
mod incoming;
mod limits;
mod server;
mod world;

pub use http::openapi;
pub use server::{Bound, ServeError, Server, ServerOptions, serve};
pub use world::Timing;
