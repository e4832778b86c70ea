//! End to end: the real binaries, real processes, software nobody here wrote.
//!
//! The suite in `traffic` is written once and runs for every pair of client and server engine. A peer that is not
//! installed is a skip with a message, or a failure where `CI=true` says that everything must be there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, missing_docs)]

mod commands;
mod lifecycle;
mod mesh;
mod peers;
mod traffic;
mod up;
mod wire;
