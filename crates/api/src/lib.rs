//! What the tiers say to each other beside xDS: the control plane's HTTP API and the agents' gRPC service.
//!
//! Holds: these are wire types; conversions to and from meaning types live at the edges that use them.
//! Does not: serve or call anything by itself.

pub mod agent;
pub mod http;
