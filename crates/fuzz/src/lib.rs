//! What reads bytes from outside, fed with bytes that are nearly right.
//!
//! ```text
//! corpus/TARGET/*, cases of other crates ─► mutate ─► check (does it hold?) ─► input, made smaller, and its seed
//! ```
//! [`targets::TARGETS`] is the one list: a parser that is new belongs there. A check says more than "no panic" wherever there
//! is more to say: the same verdict however the bytes arrive, the same fields as another implementation finds (`httparse`,
//! `h2`), what was written is read again as it was, memory in proportion to the input.
//!
//! An ordinary test run takes some hundred or thousand inputs for each, always the same; `cargo xtask fuzz [TARGET] --seconds N` goes on
//! with a seed of its own, which it prints, and `--coverage` keeps inputs that reach new code. What was found once is a
//! file of `corpus/TARGET`, and is checked by every run before anything else.
//!
//! Does not: use libFuzzer, which needs a nightly compiler for its runtime; `--coverage` needs none (`coverage` says how).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a tool of tests: that is how a check fails"
)]

mod coverage;
pub mod mutate;
pub mod run;
pub mod targets;
