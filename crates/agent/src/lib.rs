//! Placeholder.
pub mod hosts;
pub mod sockets;
