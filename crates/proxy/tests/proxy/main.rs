//! The whole proxy over real sockets: compiled intents over xDS, listeners from an agent's hand, raw origins.

#![allow(unreachable_pub, missing_docs, reason = "a test binary has no API")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "that is how a test fails")]

mod access;
mod allocations;
mod balancing;
mod binary;
mod bypass;
mod changes;
mod churn;
#[path = "../../../proxy-core/tests/smuggling/corpus.rs"]
mod corpus;
mod documents;
mod drains;
mod edges;
mod failover;
mod finishing;
mod gates;
mod generations;
mod grants;
mod hops;
mod hostile;
mod http;
mod http2;
mod lasting;
mod limits;
mod lists;
mod mesh;
mod mirrors;
mod policies;
#[allow(dead_code, reason = "only requests are read here")]
#[path = "../../../proxy-core/tests/smuggling/readers.rs"]
mod readers;
mod refusals;
mod refused;
mod resilience;
mod routes;
mod sequences;
mod start;
mod support;
mod tables;
mod tcp;
mod told;
mod unreachable;
mod upgrades;
mod withdrawals;
