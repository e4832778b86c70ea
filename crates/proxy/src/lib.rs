//! The native proxy: a process that carries bytes as its xDS configuration says.
//!
//! ```text
//! main thread                                   workers (share nothing)
//! control socket ─┐                            ┌► worker: listeners, pools, balancing, timers, numbers
//! ADS stream ─────┴► conductor ──snapshots─────┼► worker
//!                    (parse, warm, ack)        └► …
//! ```
//!
//! Holds: traffic never waits for configuration; a snapshot is applied whole; an acknowledgement is sent when
//! every worker uses the resource; losing the agent or the xDS server changes nothing for traffic.
//! Does not: bind sockets (unless told to stand alone), or keep state on disk.

pub mod ads;
pub mod assemble;
pub mod buffers;
pub mod conductor;
pub mod config;
pub mod connection;
pub mod control;
pub mod crew;
pub mod descriptors;
pub mod drain;
pub mod grant;
pub mod http;
pub mod http2;
pub mod liveness;
pub mod log;
mod mirror;
pub mod panics;
pub mod pipes;
pub mod pressure;
pub mod probe;
pub mod secured;
pub mod shared;
pub mod stamp;
pub mod stream;
pub mod tcp;
pub mod timers;
pub mod tls;
pub mod upstream;
pub mod websocket;
pub mod worker;
