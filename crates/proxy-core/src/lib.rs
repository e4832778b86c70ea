//! The pure half of the native proxy: everything it decides, without I/O, clock or randomness of its own.
//!
//! Bytes and configuration go in; parsed heads, framing verdicts, bytes to send, routes, endpoints, access
//! decisions and reasons come out. Time and random numbers are arguments.
//!
//! What holds:
//! - Nothing here allocates per request once its buffers are warm (asserted by `tests/allocations.rs`).
//! - The bytes a decision was made on are the bytes that are forwarded: header case and order survive, and
//!   nothing is normalised on one path only.
//! - What is ambiguous is refused with a [`reason::Reason`], never repaired.
//!
//! What it does not do: HTTP/2 (crate `http2`), TLS, sockets, waiting. Those belong to the process around it.

pub mod access;
pub mod authority;
pub mod balance;
#[cfg(test)]
mod counted;
pub mod fault;
pub mod grpc;
pub mod hash;
pub mod health;
pub mod http1;
pub mod limit;
pub mod outlier;
pub mod reason;
pub mod retry;
pub mod route;
pub mod span;
pub mod stats;
