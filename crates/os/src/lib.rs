//! What the rest of the project needs from the operating system and cannot say in safe Rust.
//!
//! The only crate that may contain `unsafe`; each block gives its reason and has a test.

pub mod allocator;
pub mod backtrace;
pub mod cgroup;
pub mod child;
pub mod confine;
#[cfg(feature = "coverage")]
pub mod coverage;
pub mod granted;
pub mod image;
pub mod inherit;
pub mod namespace;
pub mod peer;
pub mod process;
pub mod tcp;

pub use inherit::{InheritError, take_inherited_fd};
