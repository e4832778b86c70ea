//! The host tier: owns sockets, processes, names and identities of the instances on one host.
//!
//! ```text
//!  control plane ◄── link ──► upstream ──► scope ──► instance ──► relay ──► proxy
//!                             (facts up)    (pure)    (lifecycle,  (xDS on a
//!                                                      sockets,     Unix socket)
//!            run ◄── local API ── server ──────────►   hosts,
//!                                                      supervisor)──► engine ──► processes
//!                                                       │    │
//!                                                lastgood    journal  (on disk)
//! ```
//!
//! Holds: everything here goes on without the control plane; listening sockets outlive proxies; keys do not
//! leave the host; an agent that ends leaves the proxies to the next one. Does not: carry bytes of applications, or decide what is configured.

mod aside;
mod claims;
mod clock;
mod commands;
pub mod control;
pub mod credentials;
pub mod engine;
pub mod facts;
pub mod hosts;
mod instance;
pub mod inuse;
mod isolation;
pub mod journal;
pub mod kept;
pub mod lastgood;
pub mod lifecycle;
pub mod link;
pub mod local;
mod logs;
mod probe;
pub mod proven;
mod random;
pub mod relay;
pub mod releases;
mod reserve;
pub mod run;
pub mod scope;
pub mod server;
mod sizes;
pub mod sockets;
pub mod svids;
mod unix;
pub mod upstream;
mod zones;

pub use outrider_supervise::Policy;
pub use run::{Hooks, RunError, RunOptions, STOP_TIMEOUT, run, run_with};
pub use server::{AgentError, AgentOptions, OnStop, serve};
