//! What an agent and the `outrider run` of an instance say to each other about listening sockets.
//!
//! `run` outlives agents and proxies, so it holds a copy of every listening socket of its instance and never accepts:
//! while agent and proxies are gone together, connections wait in the kernel's queue instead of being refused. `run`
//! connects to a socket that the agent serves, with the framing of [`Channel`](crate::Channel). Holds: at the end of every
//! connection's beginning ([`ToKeeper::Settled`]) `run` has what the agent has and nothing else, so that no socket
//! outlives its listener; each message carries at most one descriptor; unknown fields and messages are passed over. Does
//! not: say what the sockets are for.
//!
//! ```text
//! run                                agent
//!  │ Hello{pid, room} ──────────────►│ the process that holds the instance?
//!  │ Listener… ─────────────────────►│ a new agent takes those it lacks
//!  │ Returned ──────────────────────►│
//!  │ ◄────────────────────── Keep…   │ all it has
//!  │ ◄────────────────────── Settled │ `run` closes every other one
//!  │ Settled{listeners} ────────────►│
//!  │ ◄──────────── Keep, Close, …    │ as listeners come and go
//! ```

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Most listening sockets that `run` holds, whatever is offered.
pub const MAX_KEPT: usize = 1024;

/// Longest name of a listener here, in bytes. One that is longer is not kept.
pub const MAX_NAME: usize = 512;

/// `run` → agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromKeeper {
    /// First message on every connection.
    Hello {
        /// Its process id.
        pid: u32,
        /// How many sockets it can hold.
        room: usize,
    },
    /// It holds the socket of this listener; carries its descriptor.
    Listener {
        /// Resource name.
        name: String,
        /// The address it is bound to.
        address: SocketAddr,
    },
    /// All [`Listener`](Self::Listener) messages were sent.
    Returned {
        /// How many there were.
        listeners: usize,
    },
    /// Answer to [`ToKeeper::Settled`] and [`ToKeeper::CloseAll`]: everything before it is done.
    Settled {
        /// How many sockets it holds now.
        listeners: usize,
    },
    /// Something of a later version. Never sent.
    #[serde(other)]
    Unknown,
}

/// Agent → `run`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToKeeper {
    /// Hold the socket of this listener; carries its descriptor. Replaces an earlier one of the name.
    Keep {
        /// Resource name.
        name: String,
        /// The address it is bound to.
        address: SocketAddr,
    },
    /// The listener of this name is gone: close its socket.
    Close {
        /// Resource name.
        name: String,
    },
    /// Close every socket that was not named by a [`Keep`](Self::Keep) on this connection.
    Settled,
    /// Close every socket.
    CloseAll,
    /// Something of a later version. Never sent; received, it is passed over.
    #[serde(other)]
    Unknown,
}
