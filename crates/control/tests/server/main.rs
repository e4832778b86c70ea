//! A real server over its real sockets: HTTP over Unix and TCP, gRPC over mTLS.

#![allow(clippy::unwrap_used, clippy::panic)]

mod agents;
mod api;
mod crash;
mod limits;
mod lists;
mod nodes;
mod proxies;
mod support;
