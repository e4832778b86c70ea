//! The whole proxy over real sockets: compiled intents over xDS, listeners from an agent's hand, raw origins.

#![allow(unreachable_pub, missing_docs, reason = "a test binary has no API")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

mod binary;
mod changes;
mod drains;
mod generations;
mod grants;
mod http;
mod limits;
mod mesh;
mod start;
mod support;
mod tcp;
