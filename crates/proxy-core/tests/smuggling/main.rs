//! Request smuggling and response splitting: a corpus of raw messages with verdicts, other readers to compare with, and
//! mutations.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]
#![allow(unreachable_pub, missing_docs, reason = "a test binary has no API")]

mod corpus;
mod mutations;
mod passage;
mod readers;
mod verdicts;
