//! What an agent and one native proxy process say to each other, beside xDS.
//!
//! A Unix stream socket pair made by the agent; the proxy inherits its end as descriptor 3
//! ([`CONTROL_FD`]). Holds: descriptors travel with the message that names them; either side may be a
//! version behind, so unknown fields are ignored. Does not: carry configuration (that is xDS).
//!
//! # Wire format
//! ```text
//! length: u32 big endian, at most MAX_MESSAGE │ JSON of that length
//! descriptors (SCM_RIGHTS) are attached to the first byte of the length
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

mod channel;

pub use channel::{Channel, ChannelError, Receiver, Sender};

/// The descriptor at which a proxy finds its end of the socket.
pub const CONTROL_FD: i32 = 3;

/// Largest JSON body, in bytes.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Most descriptors one message may carry.
pub const MAX_DESCRIPTORS: usize = 64;

/// Agent → proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToProxy {
    /// Listening sockets for the `Listener` resource of this name; carries one or more descriptors (more
    /// than one is a SO_REUSEPORT group, spread over the workers). Replaces earlier ones of the same name.
    Listener {
        /// Resource name.
        name: String,
        /// The address they are bound to, which the relayed resource names too.
        address: SocketAddr,
    },
    /// Close the sockets of this name. Open connections stay.
    RemoveListener {
        /// Resource name.
        name: String,
    },
    /// Stop taking connections, finish what is open, exit; at the latest after `drain_ms`.
    Drain {
        /// Milliseconds.
        drain_ms: u64,
    },
    /// Answer with [`FromProxy::Stats`] of the same id.
    Stats {
        /// Echoed.
        id: u64,
    },
    /// Answer with [`FromProxy::Pong`] from the event loop of every worker.
    Ping {
        /// Echoed.
        id: u64,
    },
}

/// Proxy → agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromProxy {
    /// First message.
    Hello {
        /// `CARGO_PKG_VERSION` of the proxy.
        version: String,
        /// Its process id.
        pid: u32,
    },
    /// Every listener of the first configuration is serving, its clusters and certificates warm. Sent once.
    Ready,
    /// Answer to [`ToProxy::Stats`].
    Stats {
        /// Echoed.
        id: u64,
        /// The numbers.
        stats: Stats,
    },
    /// Answer to [`ToProxy::Ping`].
    Pong {
        /// Echoed.
        id: u64,
    },
    /// Draining ended; the process exits next.
    Drained {
        /// Connections that had to be cut.
        cut: u64,
    },
}

/// Counters since the process started, and gauges of now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Milliseconds since the process started.
    pub uptime_ms: u64,
    /// Resident memory in bytes.
    pub resident_bytes: u64,
    /// By listener name.
    pub listeners: BTreeMap<String, ListenerStats>,
    /// By cluster name.
    pub clusters: BTreeMap<String, ClusterStats>,
}

/// Numbers of one listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ListenerStats {
    /// Connections taken.
    pub connections: u64,
    /// Connections open now.
    pub active_connections: u64,
    /// HTTP requests received.
    pub requests: u64,
    /// HTTP requests being served now.
    pub active_requests: u64,
    /// Responses sent, by class 1xx … 5xx.
    pub responses: [u64; 5],
    /// Responses and connection ends made by the proxy itself, by reason.
    pub reasons: BTreeMap<String, u64>,
    /// Bytes read from the downstream side.
    pub bytes_in: u64,
    /// Bytes written to the downstream side.
    pub bytes_out: u64,
    /// Total time from request head to response end, in microseconds, over all requests.
    pub latency_us_sum: u64,
}

/// Numbers of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterStats {
    /// Endpoints known now.
    pub endpoints: u64,
    /// Connections opened.
    pub connections: u64,
    /// Connections open now, pooled ones included.
    pub active_connections: u64,
    /// Attempts to connect that failed.
    pub connect_failures: u64,
    /// Requests (or TCP connections) sent.
    pub requests: u64,
}
