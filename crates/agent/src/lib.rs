//! The host tier: owns sockets, processes, names and identities of the instances on one host.
//!
//! ```text
//!  control plane ◄── link ──► upstream ──► scope ──► instance ──► relay ──► proxy
//!                             (last good    (pure)    (lifecycle,  (xDS on a
//!                              on disk)                sockets,     Unix socket)
//!            run ◄── local API ── server ──────────►   hosts, engine)
//! ```
//!
//! Holds: everything here goes on without the control plane; listening sockets outlive proxies; keys do not
//! leave the host. Does not: carry bytes of applications, or decide what is configured.

mod claims;
pub mod credentials;
pub mod engine;
pub mod facts;
pub mod hosts;
mod instance;
mod isolation;
pub mod lifecycle;
pub mod link;
pub mod local;
mod probe;
mod random;
pub mod relay;
pub mod run;
pub mod scope;
pub mod server;
pub mod sockets;
pub mod svids;
pub mod upstream;

pub use run::{Hooks, RunError, RunOptions, run, run_with};
pub use server::{AgentError, AgentOptions, serve};
