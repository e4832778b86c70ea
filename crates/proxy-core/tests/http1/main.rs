//! HTTP/1 as a whole: tables of raw messages, a foreign corpus, and properties.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod corpus;
mod encoding;
mod properties;
mod requests;
mod responses;
mod support;
